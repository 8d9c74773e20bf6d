"""Each miner against its definition typed out over itertools, on distances of small integers: full of ties."""

import copy
import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import miners as pml_miners

from lossopt.miners import (
    BatchHardMiner,
    EasyPositiveMiner,
    HardPairMiner,
    RandomPairMiner,
    RandomTripletMiner,
    SemiHardMiner,
)

BIG = 2**24
label_lists = st.lists(st.sampled_from([-1, 0, 1, BIG, BIG + 1]), min_size=0, max_size=9)


@st.composite
def batches(draw):
    """Labels with lone, negative and huge ids; rows from a 3 x 3 grid, so that duplicates and ties are the rule."""
    labels = draw(label_lists)
    rows = draw(st.lists(st.tuples(*[st.integers(0, 2)] * 2), min_size=len(labels), max_size=len(labels)))
    return rows, labels


def squared(rows):
    return [[sum((a - b) ** 2 for a, b in zip(u, v, strict=True)) for v in rows] for u in rows]


def tensors(rows, labels):
    return torch.tensor(rows, dtype=torch.float32).reshape(len(labels), 2), torch.tensor(labels, dtype=torch.int64)


def as_list(columns):
    return list(zip(*(column.tolist() for column in columns), strict=True))


def positives_of(a, labels):
    return [p for p in range(len(labels)) if p != a and labels[p] == labels[a]]


def negatives_of(a, labels):
    return [n for n in range(len(labels)) if labels[n] != labels[a]]


def semi_hard_by_definition(d, labels, margin):
    return {
        (a, p, n)
        for a, p, n in itertools.permutations(range(len(labels)), 3)
        if labels[a] == labels[p] and labels[a] != labels[n] and d[a][p] < d[a][n] < d[a][p] + margin
    }


@settings(max_examples=60, deadline=None)
@given(batches())
def test_batch_hard(batch):
    rows, labels = batch
    d, wanted = squared(rows), []
    for a in range(len(labels)):
        positives, negatives = positives_of(a, labels), negatives_of(a, labels)
        if positives and negatives:
            wanted.append((a, max(positives, key=lambda p: d[a][p]), min(negatives, key=lambda n: d[a][n])))
    assert as_list(BatchHardMiner("squared")(*tensors(rows, labels))) == wanted


@settings(max_examples=60, deadline=None)
@given(batches())
def test_hard_pairs(batch):
    rows, labels = batch
    d = squared(rows)
    found = HardPairMiner("squared")(*tensors(rows, labels))
    anchors = range(len(labels))
    assert as_list(found[:2]) == [
        (a, max(positives_of(a, labels), key=d[a].__getitem__)) for a in anchors if positives_of(a, labels)
    ]
    assert as_list(found[2:]) == [
        (a, min(negatives_of(a, labels), key=d[a].__getitem__)) for a in anchors if negatives_of(a, labels)
    ]


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from([0.5, 1.0, 2.0, 100.0]))
def test_semi_hard(batch, margin):
    rows, labels = batch
    d = [
        [sum(abs(a - b) for a, b in zip(u, v, strict=True)) for v in rows] for u in rows
    ]  # exact, so the band's ends are
    x = tensors(rows, labels)
    wanted = semi_hard_by_definition(d, labels, margin)
    found = as_list(SemiHardMiner(margin, "all", "manhattan")(*x))
    assert set(found) == wanted
    assert len(found) == len(wanted)

    by_pair = {}
    for a, p, n in sorted(wanted):
        by_pair.setdefault((a, p), []).append(n)
    hardest = {(a, p, min(ns, key=d[a].__getitem__)) for (a, p), ns in by_pair.items()}
    assert set(as_list(SemiHardMiner(margin, "hardest", "manhattan")(*x))) == hardest

    drawn = as_list(SemiHardMiner(margin, "random", "manhattan", seed=len(labels))(*x))
    assert set(drawn) <= wanted
    assert sorted((a, p) for a, p, _ in drawn) == sorted(by_pair)


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from(["semi-hard", "hard"]))
def test_easy_positive(batch, kind):
    rows, labels = batch
    d, wanted = squared(rows), []
    for a in range(len(labels)):
        if not positives_of(a, labels):
            continue
        p = min(positives_of(a, labels), key=d[a].__getitem__)
        negatives = [n for n in negatives_of(a, labels) if kind == "hard" or d[a][n] > d[a][p]]
        if negatives:
            wanted.append((a, p, min(negatives, key=d[a].__getitem__)))
    assert as_list(EasyPositiveMiner(kind, "squared")(*tensors(rows, labels))) == wanted


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from([1, 2, 5, 1000]), st.integers(0, 99))
def test_random_triplets_are_valid_different_and_as_many_as_asked(batch, per_anchor, seed):
    rows, labels = batch
    found = as_list(RandomTripletMiner(per_anchor, seed)(*tensors(rows, labels)))
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
@given(batches(), st.sampled_from([1, 2, 1000]), st.sampled_from([1, 3, 1000]))
def test_random_pairs_are_valid_different_and_as_many_as_asked(batch, of_same, of_different):
    rows, labels = batch
    found = RandomPairMiner(of_same, of_different)(*tensors(rows, labels))
    for pairs, choose, most in (
        (as_list(found[:2]), positives_of, of_same),
        (as_list(found[2:]), negatives_of, of_different),
    ):
        assert len(set(pairs)) == len(pairs)
        assert all(partner in choose(a, labels) for a, partner in pairs)
        wanted = {a: min(most, len(choose(a, labels))) for a in range(len(labels)) if choose(a, labels)}
        assert Counter(a for a, _ in pairs) == wanted


@pytest.mark.parametrize("kind", ["triplets", "pairs", "semi-hard"])
def test_random_choice_is_even(kind):
    """2,000 draws for anchor 0, with 2 positives and 4 negatives: each count within five standard deviations."""
    x = torch.tensor([[0.0, 0], [1, 0], [1, 0], [2, 0], [2, 0], [0, 2], [0, 2]])
    labels = torch.tensor([0, 0, 0, 1, 2, 3, 4])
    miner = {
        "triplets": RandomTripletMiner(),
        "pairs": RandomPairMiner(),
        "semi-hard": SemiHardMiner(100, "random"),
    }[kind]
    counts = Counter()
    for _ in range(2000):
        found = miner(x, labels)
        anchors, negatives = (found[2], found[3]) if kind == "pairs" else (found[0], found[2])
        counts[negatives[anchors == 0][0].item()] += 1
    assert set(counts) == {3, 4, 5, 6}
    assert all(abs(count - 500) < 5 * math.sqrt(2000 * 0.25 * 0.75) for count in counts.values())


RANDOM = [RandomTripletMiner(2, seed=5), RandomPairMiner(2, 2, seed=5), SemiHardMiner(5.0, "random", seed=5)]


def random_batch(n=24, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator), torch.randint(0, 5, (n,), generator=generator)


@pytest.mark.parametrize("miner", RANDOM, ids=lambda miner: type(miner).__name__)
def test_the_stream_continues_from_a_state_dict_and_touches_no_other_generator(miner, tmp_path):
    batch, before = random_batch(), torch.get_rng_state()
    first = copy.deepcopy(miner)
    again = copy.deepcopy(miner)
    draws = [as_list(first(*batch)) if len(first(*batch)) == 3 else first(*batch)[3].tolist() for _ in range(3)]
    assert draws[0] != draws[1]
    torch.save(first.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for a, b in zip(first(*batch), again(*batch), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)


def test_reference_rows_are_not_self_excluded_unless_they_are_the_batch():
    x = torch.tensor([[0.0], [5.0], [1.0]])
    labels = torch.tensor([0, 0, 1])
    assert as_list(EasyPositiveMiner("hard")(x, labels, x, labels)) == [(0, 1, 2), (1, 0, 2)]
    assert as_list(EasyPositiveMiner("hard")(x, labels, x.clone(), labels)) == [(0, 0, 2), (1, 1, 2), (2, 2, 0)]
    ref, ref_labels = torch.tensor([[9.0], [1.0], [2.0]]), torch.tensor([1, 0, 0])
    assert as_list(BatchHardMiner()(x, labels, ref, ref_labels)) == [(0, 2, 0), (1, 1, 0), (2, 0, 1)]


def test_infinite_distances_never_pick_a_row_that_is_not_allowed():
    x = torch.tensor([[0.0], [1.0], [math.inf], [math.inf]])
    assert as_list(BatchHardMiner()(x[:3], torch.tensor([0, 0, 1]))) == [(0, 1, 2), (1, 0, 2)]
    assert as_list(HardPairMiner()(x[:3], torch.tensor([0, 0, 1]))[2:])[:2] == [(0, 2), (1, 2)]
    assert not as_list(SemiHardMiner(1.0)(x[:3], torch.tensor([0, 0, 1])))


@pytest.mark.parametrize("miner", [BatchHardMiner(), EasyPositiveMiner(), EasyPositiveMiner("hard")])
def test_a_nan_row_is_picked_as_the_hardest(miner):
    x, labels = random_batch()
    x[int((labels == labels[0]).nonzero()[-1])] = math.nan
    assert x[torch.cat(miner(x, labels))].isnan().any()


@pytest.mark.parametrize("bad", range(1, 9))
def test_nan_negatives_are_in_no_semi_hard_band(bad):
    x = torch.cat((torch.tensor([0.0, 1.0]), torch.arange(2.0, 11.0)))[:, None]
    labels = torch.tensor([0, 0] + [1] * 9)
    x[2 : 2 + bad] = math.nan
    wanted = {(0, 1, n) for n in range(2 + bad, 11)} | {(1, 0, n) for n in range(2 + bad, 11) if n > 2}
    assert {t for t in as_list(SemiHardMiner(100.0)(x, labels)) if t[0] < 2} == wanted


def test_ties_among_many_go_to_the_lowest_row():
    x = torch.cat((torch.tensor([0.0, 1.0]), torch.full((500,), 3.0)))[:, None]
    labels = torch.tensor([0, 0] + [1] * 500)
    for miner in (SemiHardMiner(9.0, "hardest"), EasyPositiveMiner(), BatchHardMiner()):
        assert as_list(miner(x, labels))[:2] == [(0, 1, 2), (1, 0, 2)]


def test_batch_hard_is_pytorch_metric_learnings():
    x, labels = random_batch(40)
    peer = pml_miners.BatchHardMiner(distance=pml_distances.LpDistance(normalize_embeddings=False))
    assert as_list(BatchHardMiner()(x, labels)) == as_list(peer(x, labels))


@pytest.mark.parametrize("margin", [0.1, 0.7])
def test_semi_hard_is_pytorch_metric_learnings(margin):
    x, labels = random_batch(40)
    peer = pml_miners.TripletMarginMiner(
        margin, "semihard", distance=pml_distances.LpDistance(normalize_embeddings=False)
    )
    assert set(as_list(SemiHardMiner(margin)(x, labels))) == set(as_list(peer(x, labels)))


@pytest.mark.parametrize(("kind", "theirs"), [("hard", "hard"), ("semi-hard", "semihard")])
def test_easy_positive_is_pytorch_metric_learnings(kind, theirs):
    x, labels = random_batch(40)
    peer = pml_miners.BatchEasyHardMiner("easy", theirs, distance=pml_distances.LpDistance(normalize_embeddings=False))
    a, p, _, n = peer(x, labels)
    assert as_list(EasyPositiveMiner(kind)(x, labels)) == as_list((a, p, n))


def test_bad_arguments_are_refused():
    for margin in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"SemiHardMiner needs a finite margin > 0, got .*BatchHardMiner"):
            SemiHardMiner(margin)
    with pytest.raises(ValueError, match="negatives must be one of 'all', 'hardest', 'random'; got 'semihard'"):
        SemiHardMiner(0.2, "semihard")
    with pytest.raises(ValueError, match="negatives must be one of 'semi-hard', 'hard'; got 'easy'"):
        EasyPositiveMiner("easy")
    for make in (BatchHardMiner, HardPairMiner):
        with pytest.raises(ValueError, match="one of 'euclidean', 'squared', 'cosine', 'manhattan'; got 'l2'"):
            make("l2")
    with pytest.raises(ValueError, match="triplets_per_anchor must be >= 1, got 0"):
        RandomTripletMiner(0)
    with pytest.raises(ValueError, match="negatives_per_anchor must be >= 1, got -1"):
        RandomPairMiner(1, -1)
    with pytest.raises(ValueError, match="seed must be >= 0, got -3"):
        RandomTripletMiner(1, -3)
    with pytest.raises(ValueError, match="labels must be one per embedding: 4 rows"):
        BatchHardMiner()(torch.zeros(4, 2), torch.zeros(3))
