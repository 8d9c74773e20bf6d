"""What is drawn: how often by definition, from which candidates, what a budget leaves, and again from a state."""

import copy
import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import miners as pml_miners
from scipy.stats import chisquare

from lossopt.losses import tiles
from lossopt.miners import (
    AllPairsMiner,
    AllTripletsMiner,
    AngularMiner,
    DistanceWeightedMiner,
    HardMiner,
    MultiSimilarityMiner,
    RandomPairMiner,
    RandomTripletMiner,
    RankWindowMiner,
    SemiHardMiner,
)
from lossopt.miners.candidates import Candidates
from lossopt.miners.draws import RandomStream

BIG = 2**24
labels_of = lambda most: st.lists(st.sampled_from([-1, 0, 1, BIG, BIG + 1]), min_size=1, max_size=most)  # noqa: E731


def as_list(columns):
    return list(zip(*(column.tolist() for column in columns), strict=True))


def positives_of(a, labels):
    return [p for p in range(len(labels)) if p != a and labels[p] == labels[a]]


def negatives_of(a, labels):
    return [n for n in range(len(labels)) if labels[n] != labels[a]]


def random_batch(n=24, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator), torch.randint(0, 5, (n,), generator=generator)


def near(counts, draws, shares):
    """Each count within five standard deviations of its share of so many draws."""
    return all(abs(counts[key] - draws * p) <= 5 * math.sqrt(draws * p * (1 - p)) for key, p in shares.items())


# ---- candidates by number


@settings(max_examples=150, deadline=None)
@given(st.data(), labels_of(6), labels_of(9), st.sampled_from(["any", "other", "same"]))
def test_candidates_by_number_are_those_of_the_definition(data, labels, ref_labels, rule):
    own = data.draw(st.none() | st.integers(0, len(ref_labels)))
    if own is not None:
        ref_labels = ref_labels[:own] + labels + ref_labels[own:]
    groups, ref_groups = (
        data.draw(st.lists(st.integers(-1, 2), min_size=len(of), max_size=len(of))) for of in (labels, ref_labels)
    )
    if own is not None:
        ref_groups[own : own + len(labels)] = groups
    both = None if rule == "any" else (torch.tensor(groups), torch.tensor(ref_groups))
    found = Candidates(torch.tensor(labels), torch.tensor(ref_labels), own, rule, both)
    for a, label in enumerate(labels):
        positives = [j for j, of in enumerate(ref_labels) if of == label and (own is None or j != own + a)]
        negatives = [
            j
            for j, of in enumerate(ref_labels)
            if of != label and (rule == "any" or (ref_groups[j] == groups[a]) == (rule == "same"))
        ]
        assert found.positive_count[a] == len(positives)
        assert found.negative_count[a] == len(negatives)
        number = torch.arange(len(ref_labels))
        anchor = torch.full_like(number, a)
        assert found.positive(anchor, number)[: len(positives)].tolist() == positives
        some = slice(0, len(negatives))
        assert sorted(found.negative(anchor[some], number[some]).tolist()) == negatives
        assert found.different(a, a + 1).nonzero()[:, 1].tolist() == negatives
        columns, filled = found.positives(a, a + 1)
        assert columns[filled].tolist() == positives


# ---- random numbers


@pytest.mark.parametrize(("total", "size"), [(9, 3), (9, 7), (5000, 3), (5000, 1000), (5000, 4000), (5000, 5000)])
def test_samples_are_sets_of_numbers_every_one_as_likely(total, size):
    """Inclusion by chi-square; the smallest and the largest have the means that they have over all sets."""
    stream, times = RandomStream(0), 400
    counts, ends = torch.zeros(total), torch.zeros(times, 2)
    for i in range(times):
        found = stream.sample(total, size)
        assert found.dtype == torch.int64
        assert len(found) == size
        assert (found.diff() > 0).all()
        assert found[0] >= 0
        assert found[-1] < total
        counts[found] += 1
        ends[i] = torch.stack((found[0], total - 1 - found[-1]))
    if size < total:  # of counts without replacement the variance is smaller, by the share that is left out
        expected = times * size / total
        square = ((counts - expected) ** 2 / expected / (1 - size / total)).sum().item()
        assert abs(square - total) < 5 * math.sqrt(2 * total) + 5 * total / math.sqrt(times)
    mean = (total - size) / (size + 1)
    for found in ends.mean(0).tolist():
        assert found == pytest.approx(mean, abs=5 * (mean + 1) / math.sqrt(times))


def test_a_sample_of_billions_holds_only_itself():
    found = RandomStream(0).sample(2**40, 1000)
    assert len(found.unique()) == 1000
    assert abs(found.double().mean().item() / 2**40 - 0.5) < 5 / math.sqrt(12 * 1000)


def test_distinct_numbers_are_every_ordered_choice_as_likely():
    stream, rows = RandomStream(1), 24_000
    found = stream.distinct(torch.tensor([4, 2, 0]).repeat(rows // 3), 3)
    assert found.shape == (rows, 3)
    assert (found[2::3] == -1).all()
    assert (found[1::3, 2] == -1).all()
    counts = Counter(map(tuple, found[0::3].tolist()))
    assert near(counts, rows // 3, dict.fromkeys(itertools.permutations(range(4), 3), 1 / 24))
    assert sum(counts.values()) == rows // 3
    counts = Counter(map(tuple, found[1::3, :2].tolist()))
    assert near(counts, rows // 3, {(0, 1): 1 / 2, (1, 0): 1 / 2})


# ---- random miners


@settings(max_examples=60, deadline=None)
@given(labels_of(9), st.sampled_from([1, 2, 5, 1000]), st.integers(0, 99))
def test_random_triplets_are_valid_different_and_as_many_as_asked(labels, per_anchor, seed):
    found = as_list(RandomTripletMiner(per_anchor, seed)(torch.zeros(len(labels), 2), torch.tensor(labels)))
    every = {(a, p, n) for a in range(len(labels)) for p in positives_of(a, labels) for n in negatives_of(a, labels)}
    assert set(found) <= every
    assert len(set(found)) == len(found)
    counts, possible = Counter(a for a, _, _ in found), Counter(a for a, _, _ in every)
    assert counts == {a: min(per_anchor, count) for a, count in possible.items()}
    for a in counts:  # used as evenly as can be
        for column in (1, 2):
            uses = Counter(triplet[column] for triplet in found if triplet[0] == a)
            rest = positives_of(a, labels) if column == 1 else negatives_of(a, labels)
            assert max(uses.values()) - min(uses[row] for row in rest) <= 1


@settings(max_examples=60, deadline=None)
@given(labels_of(9), st.sampled_from([1, 2, 1000]), st.sampled_from([1, 3, 1000]))
def test_random_pairs_are_valid_different_and_as_many_as_asked(labels, of_same, of_different):
    found = RandomPairMiner(of_same, of_different)(torch.zeros(len(labels), 2), torch.tensor(labels))
    for pairs, choose, most in (
        (as_list(found[:2]), positives_of, of_same),
        (as_list(found[2:]), negatives_of, of_different),
    ):
        assert len(set(pairs)) == len(pairs)
        assert all(partner in choose(a, labels) for a, partner in pairs)
        wanted = {a: min(most, len(choose(a, labels))) for a in range(len(labels)) if choose(a, labels)}
        assert Counter(a for a, _ in pairs) == wanted


EVEN = {
    "triplets": RandomTripletMiner(),
    "pairs": RandomPairMiner(),
    "semi-hard": SemiHardMiner(100, "random", "squared"),
    "hard": HardMiner("random", "squared"),
    "window": RankWindowMiner(0, 9, "random", 1),
}


@pytest.mark.parametrize("kind", EVEN)
def test_random_choice_is_even(kind):
    """Draws for 2,000 copies of an anchor that has 2 positives and 4 negatives."""
    here = {"hard": [9.0, 9.0, 1, 1, 1, 1]}.get(kind, [1.0, 1.0, 2, 2, 2, 2])
    reference, ref_labels = torch.tensor(here)[:, None], torch.tensor([0, 0, 1, 2, 3, 4])
    found = EVEN[kind](torch.zeros(2000, 1), torch.zeros(2000, dtype=torch.int64), reference, ref_labels)
    draws = len(found[-1])
    assert draws == (4000 if kind in ("semi-hard", "hard") else 2000)
    counts = Counter(found[-1].tolist())
    assert near(counts, draws, dict.fromkeys((2, 3, 4, 5), 1 / 4))
    assert sum(counts.values()) == draws
    assert near(Counter(found[1].tolist()), draws, dict.fromkeys((0, 1), 1 / 2))
    if kind == "triplets":
        assert near(Counter(as_list(found[1:])), draws, dict.fromkeys(itertools.product((0, 1), (2, 3, 4, 5)), 1 / 8))


# ---- distance-weighted


def on_sphere(distances, d):
    """An anchor, and rows at these distances from it, all of length 1."""
    rows = torch.zeros(len(distances) + 1, d, dtype=torch.float64)
    rows[0, 0] = 1
    for i, r in enumerate(distances):
        rows[i + 1, 0] = 1 - r * r / 2
        rows[i + 1, 1 + i % 2] = math.sqrt(1 - rows[i + 1, 0] ** 2)
    return rows.float()


@pytest.mark.parametrize("d", [3, 8, 128, 512])
def test_distance_weighted_draws_are_one_over_the_density(d):
    """20,000 draws against the definition in float64, by chi-square; clipped rows, and two beyond the cutoff."""
    spread = 0.9 if d <= 8 else 40 / d
    distances = [0.2, 0.5, 1.39 - spread, *(1.39 - spread * share for share in (0.75, 0.5, 0.25, 0.0)), 1.41, 1.9]
    distances = distances if d <= 8 else distances[2:]
    reference = on_sphere(distances, d)
    ref_labels = torch.tensor([0] + [1] * len(distances))
    # Every other anchor is a negative of the others, its own weights beyond compare with theirs.
    anchors = 3 * reference[:2].repeat(20_000, 1)
    found = DistanceWeightedMiner(seed=4)(anchors, torch.zeros(40_000, dtype=torch.int64), 7 * reference, ref_labels)
    weights = []
    for r in distances:
        r = max(r, 0.5)
        log_q = (d - 2) * math.log(r) + (d - 3) / 2 * math.log(1 - r * r / 4)
        weights.append(-log_q if r < 1.4 else -math.inf)
    largest = max(weights)
    wanted = [math.exp(w - largest) for w in weights]
    counts = torch.bincount(found.negative[found.anchor % 2 == 0], minlength=len(reference))[1:].tolist()
    assert (found.positive == 0).all()
    assert sum(counts) == 20_000
    assert [c for c, w in zip(counts, wanted, strict=True) if w == 0] == [0, 0]
    seen = [(c, w) for c, w in zip(counts, wanted, strict=True) if w > 0]
    scale = 20_000 / sum(w for _, w in seen)
    assert len(seen) > 4
    assert chisquare([c for c, _ in seen], [w * scale for _, w in seen]).pvalue > 1e-5


def test_distance_weighted_draws_once_per_positive_and_leaves_out_anchors_without_a_near_negative():
    x = torch.cat((on_sphere([0.1, 0.2], 9), -on_sphere([1.0], 9)))
    found = DistanceWeightedMiner()(x, torch.tensor([0, 0, 0, 1, 2]))
    assert as_list(found) == []  # 3 is opposite to 0; 4 is alone
    x[4] = x[0]
    pairs = [(a, p) for a, p, _ in as_list(DistanceWeightedMiner()(x, torch.tensor([0, 0, 0, 1, 2])))]
    assert pairs == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]


def test_weights_are_relative_to_the_row_where_pytorch_metric_learnings_vanish():
    """In 512 dimensions a pair of other classes at 0.5 takes every weight from an anchor whose negatives are at 1.3."""
    x = torch.zeros(7, 512)
    x[:6] = torch.eye(512)[[0, 0, 0, 1, 1, 1]]
    x[2] = on_sphere([0.5], 512)[1]
    x[5], x[6] = torch.eye(512)[1], torch.eye(512)[1] * 0.155 + torch.eye(512)[9] * math.sqrt(1 - 0.155**2)
    labels = torch.tensor([0, 0, 1, 2, 2, 2, 1])
    ours, theirs = (
        set(miner(x, labels)[0].tolist()) for miner in (DistanceWeightedMiner(), pml_miners.DistanceWeightedMiner())
    )
    assert {0, 1, 3, 4, 5} <= ours
    assert theirs & {3, 4, 5} == set()


# ---- budgets


def budgeted(budget, seed=0):
    return [
        AllTripletsMiner(budget, seed),
        AllTripletsMiner(budget, seed, margin=0.5),
        AllPairsMiner(budget, seed),
        SemiHardMiner(1.0, budget=budget, seed=seed),
        HardMiner(budget=budget, seed=seed),
        AngularMiner(30, seed, budget),
        MultiSimilarityMiner(0.5, seed=seed, budget=budget),
        RankWindowMiner(1, 4, budget=budget, seed=seed),
    ]


def tuples_in(found):
    """All tuples; of pairs those of both kinds."""
    return as_list(found) if len(found) == 3 else [*as_list(found[:2]), *as_list(found[2:])]


@pytest.mark.parametrize("which", range(8))
@pytest.mark.parametrize("rows_per_tile", [2, 1000])
def test_a_budget_is_a_uniform_sample_and_says_what_it_dropped(which, rows_per_tile, monkeypatch):
    x, labels = random_batch(12, 3)
    monkeypatch.setattr(tiles, "_CELLS_CPU", rows_per_tile * len(x))
    make = budgeted(10**6)[which]
    every = tuples_in(make(x, labels))
    assert make.dropped == 0
    assert make.dropped.dtype == torch.int64
    assert len(every) > 30
    budget, counts, times = len(every) // 3, Counter(), 120
    miner = budgeted(budget)[which]
    for _ in range(times):
        found = tuples_in(miner(x, labels))
        assert len(found) == len(set(found)) == budget
        assert miner.dropped == len(every) - budget
        counts.update(found)
    assert set(counts) <= set(every)
    assert near(counts, times, dict.fromkeys(every, budget / len(every)))
    exact = budgeted(len(every))[which]
    assert tuples_in(exact(x, labels)) == every
    assert exact.dropped == 0
    exact(x[:0], labels[:0])
    assert exact.dropped == 0


# ---- streams

RANDOM = [
    RandomTripletMiner(2, seed=5),
    RandomPairMiner(2, 2, seed=5),
    SemiHardMiner(5.0, "random", seed=5),
    HardMiner("random", seed=5),
    DistanceWeightedMiner(seed=5),
    RankWindowMiner(1, 5, "random", 2, seed=5),
    *budgeted(20, seed=5),
]


@pytest.mark.parametrize("miner", RANDOM, ids=lambda miner: type(miner).__name__)
def test_the_stream_continues_from_a_state_dict_and_touches_no_other_generator(miner, tmp_path):
    batch, before = random_batch(), torch.get_rng_state()
    first, again = copy.deepcopy(miner), copy.deepcopy(miner)
    draws = [tuples_in(first(*batch)) for _ in range(3)]
    assert draws[0] != draws[1]
    torch.save(first.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for a, b in zip(first(*batch), again(*batch), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="triplets_per_anchor must be >= 1, got 0"):
        RandomTripletMiner(0)
    with pytest.raises(ValueError, match="negatives_per_anchor must be >= 1, got -1"):
        RandomPairMiner(1, -1)
    with pytest.raises(ValueError, match="seed must be >= 0, got -3"):
        RandomTripletMiner(1, -3)
    for cutoffs in ((0, 1.4), (1.4, 0.5), (0.5, 2.1), (math.nan, 1)):
        with pytest.raises(ValueError, match="DistanceWeightedMiner needs 0 < cutoff < nonzero_loss_cutoff <= 2"):
            DistanceWeightedMiner(*cutoffs)
