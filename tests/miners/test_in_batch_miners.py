"""Each miner against its definition typed out over itertools, on distances of small integers: full of ties."""

import itertools
import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import miners as pml_miners

from lossopt.losses import tiles
from lossopt.miners import (
    AllPairsMiner,
    AllTripletsMiner,
    AngularMiner,
    BatchHardMiner,
    EasyPositiveMiner,
    HardMiner,
    HardPairMiner,
    MultiSimilarityMiner,
    RankWindowMiner,
    SemiHardMiner,
)

BIG = 2**24
LABELS = st.sampled_from([-1, 0, 1, BIG, BIG + 1])


class Case:
    """A batch with or without a reference, told in plain lists; `mine` asks a miner, the rest is the definition."""

    def __init__(self, rows, labels, groups, reference, own, rule, rows_per_tile):
        self.rows, self.labels, self.groups = rows, labels, groups
        self.reference, self.own, self.rule, self.rows_per_tile = reference, own, rule, rows_per_tile
        self.ref_rows, self.ref_labels, self.ref_groups = reference or (rows, labels, groups)
        self.anchors = range(len(labels))
        self.d = [[sum((a - b) ** 2 for a, b in zip(u, v, strict=True)) for v in self.ref_rows] for u in rows]

    def mine(self, make, *arguments, **settings):
        miner = make(*arguments, group_rule=self.rule, **settings)
        x, reference = matrix(self.rows), None if self.reference is None else matrix(self.ref_rows)
        given = {"groups": torch.tensor(self.groups, dtype=torch.int64)}
        if reference is not None:
            given |= {"ref_groups": torch.tensor(self.ref_groups, dtype=torch.int64), "own": self.own}
        ref_labels = None if reference is None else torch.tensor(self.ref_labels, dtype=torch.int64)
        cells = self.rows_per_tile * max(1, len(self.ref_labels))
        with mock.patch.object(tiles, "_CELLS_CPU", cells):
            return miner(x, torch.tensor(self.labels, dtype=torch.int64), reference, ref_labels, **given)

    def positives(self, a):
        return [p for p, label in enumerate(self.ref_labels) if label == self.labels[a] and not self.itself(a, p)]

    def itself(self, a, p):
        return p == a if self.reference is None else self.own is not None and p == self.own + a

    def negatives(self, a):
        allowed = {"any": (True, False), "same": (True,), "other": (False,)}[self.rule]
        return [
            n
            for n, label in enumerate(self.ref_labels)
            if label != self.labels[a] and (self.ref_groups[n] == self.groups[a]) in allowed
        ]

    def triplets(self):
        return [(a, p, n) for a in self.anchors for p in self.positives(a) for n in self.negatives(a)]


def matrix(rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 2)


@st.composite
def cases(draw):
    """Labels with lone, negative and huge ids; rows from a 3 x 3 grid, so that duplicates and ties are the rule."""

    def batch(most):
        labels = draw(st.lists(LABELS, max_size=most))
        grid = st.lists(st.tuples(*[st.integers(0, 2)] * 2), min_size=len(labels), max_size=len(labels))
        groups = st.lists(st.sampled_from([BIG, BIG + 1, -7]), min_size=len(labels), max_size=len(labels))
        return draw(grid), labels, draw(groups)

    own_rows, kind = batch(8), draw(st.sampled_from(["batch", "reference", "own"]))
    reference, own = (None, None) if kind == "batch" else (batch(6), None)
    if kind == "own":
        before, after = reference, batch(2)
        reference = tuple(a + b + c for a, b, c in zip(before, own_rows, after, strict=True))
        own = len(before[1])
    return Case(*own_rows, reference, own, draw(st.sampled_from(["any", "other", "same"])), draw(st.integers(1, 9)))


every_case = lambda test: settings(max_examples=50, deadline=None)(given(cases())(test))  # noqa: E731


def as_list(columns):
    return list(zip(*(column.tolist() for column in columns), strict=True))


def same_tuples(found, wanted):
    """The very tuples, and in order: all miners but rank-window give them by anchor, positive, negative."""
    assert as_list(found) == sorted(wanted)


@every_case
def test_batch_hard(case):
    wanted = [
        (a, max(case.positives(a), key=case.d[a].__getitem__), min(case.negatives(a), key=case.d[a].__getitem__))
        for a in case.anchors
        if case.positives(a) and case.negatives(a)
    ]
    same_tuples(case.mine(BatchHardMiner, "squared"), wanted)
    active = [(a, p, n) for a, p, n in wanted if case.d[a][n] < case.d[a][p] + 2]
    same_tuples(case.mine(BatchHardMiner, "squared", margin=2.0), active)


@every_case
def test_hard_pairs(case):
    found = case.mine(HardPairMiner, "squared")
    same_tuples(
        found[:2],
        [(a, max(case.positives(a), key=case.d[a].__getitem__)) for a in case.anchors if case.positives(a)],
    )
    same_tuples(
        found[2:],
        [(a, min(case.negatives(a), key=case.d[a].__getitem__)) for a in case.anchors if case.negatives(a)],
    )


def check_band(case, make, wanted, *arguments):
    """All of the band, the hardest of each pair, and one at random."""
    same_tuples(case.mine(make, *arguments, "all", "squared"), wanted)
    by_pair = {}
    for a, p, n in sorted(wanted):
        by_pair.setdefault((a, p), []).append(n)
    hardest = [(a, p, min(ns, key=case.d[a].__getitem__)) for (a, p), ns in by_pair.items()]
    same_tuples(case.mine(make, *arguments, "hardest", "squared"), hardest)
    drawn = as_list(case.mine(make, *arguments, "random", "squared", seed=3))
    assert set(drawn) <= set(wanted)
    assert [(a, p) for a, p, _ in drawn] == sorted(by_pair)


@every_case
def test_semi_hard(case):
    for margin in (0.5, 1.0, 2.0, 100.0):
        d = case.d
        check_band(
            case,
            SemiHardMiner,
            [t for t in case.triplets() if d[t[0]][t[1]] < d[t[0]][t[2]] < d[t[0]][t[1]] + margin],
            margin,
        )


@every_case
def test_hard(case):
    check_band(case, HardMiner, [(a, p, n) for a, p, n in case.triplets() if case.d[a][n] <= case.d[a][p]])


@every_case
def test_easy_positive(case):
    for kind in ("semi-hard", "hard"):
        wanted = []
        for a in case.anchors:
            if not case.positives(a):
                continue
            p = min(case.positives(a), key=case.d[a].__getitem__)
            negatives = [n for n in case.negatives(a) if kind == "hard" or case.d[a][n] > case.d[a][p]]
            if negatives:
                wanted.append((a, p, min(negatives, key=case.d[a].__getitem__)))
        same_tuples(case.mine(EasyPositiveMiner, kind, "squared"), wanted)


@every_case
def test_all_triplets(case):
    found = as_list(case.mine(AllTripletsMiner))
    assert len(found) == len(set(found))
    assert set(found) == set(case.triplets())
    active = [(a, p, n) for a, p, n in case.triplets() if case.d[a][n] < case.d[a][p] + 2]
    same_tuples(case.mine(AllTripletsMiner, margin=2.0, distance="squared"), active)


@every_case
def test_all_pairs(case):
    found = case.mine(AllPairsMiner)
    for columns, partners in ((found[:2], case.positives), (found[2:], case.negatives)):
        assert sorted(as_list(columns)) == [(a, partner) for a in case.anchors for partner in partners(a)]


@every_case
def test_multi_similarity(case):
    for epsilon in (0.0, 1.0, 1.5):
        found = case.mine(MultiSimilarityMiner, epsilon, "squared")
        d, wanted = case.d, ([], [])
        for a in case.anchors:
            for p, n in itertools.product(case.positives(a), case.negatives(a)):
                if d[a][p] > d[a][n] - epsilon:  # with one of the other kind the inequality holds
                    wanted[0].append((a, p))
                    wanted[1].append((a, n))
        same_tuples(found[:2], set(wanted[0]))
        same_tuples(found[2:], set(wanted[1]))


@every_case
def test_rank_window(case):
    for skip, window in ((0, 1), (1, 2), (2, 100)):
        by_anchor = {a: sorted(case.negatives(a), key=case.d[a].__getitem__) for a in case.anchors}
        ranked = {a: negatives[skip : skip + window] for a, negatives in by_anchor.items()}
        for kind, choose in (("all", list), ("hardest", max), ("easiest", min)):
            wanted = []
            for a in case.anchors:
                chosen = case.positives(a)
                if kind != "all" and chosen:
                    chosen = [choose(chosen, key=case.d[a].__getitem__)]
                wanted += [(a, p, n) for p in chosen for n in ranked[a]]
            assert as_list(case.mine(RankWindowMiner, skip, window, kind, distance="squared")) == wanted
        drawn = as_list(case.mine(RankWindowMiner, skip, window, "random", 1, "squared", seed=5))
        assert [a for a, _, _ in drawn] == [a for a in case.anchors if case.positives(a) and ranked[a]]
        assert all(p in case.positives(a) and n in ranked[a] for a, p, n in drawn)
        two = as_list(case.mine(RankWindowMiner, skip, window, "all", 2, "squared", seed=5))
        assert len(set(two)) == len(two)
        for a in case.anchors:
            for p in case.positives(a):
                of_pair = [n for b, q, n in two if (a, p) == (b, q)]
                assert set(of_pair) <= set(ranked[a])
                assert len(of_pair) == min(2, len(ranked[a]))


def random_batch(n=24, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator), torch.randint(0, 5, (n,), generator=generator)


@pytest.mark.parametrize("angle", [12, 20, 33, 60])
@pytest.mark.parametrize("rows_per_tile", [1, 7, 1000])
def test_angular(angle, rows_per_tile, monkeypatch):
    monkeypatch.setattr(tiles, "_CELLS_CPU", rows_per_tile * 24)
    x, labels = random_batch()
    x[3] = 2 * x[5]  # one row, after scaling
    unit, wanted = torch.nn.functional.normalize(x.double()), set()
    for a, p, n in itertools.permutations(range(24), 3):
        if labels[a] == labels[p] != labels[n]:
            center = (unit[a] + unit[p]) / 2
            found = torch.atan((unit[a] - unit[p]).norm() / (2 * (unit[n] - center).norm()))
            assert abs(math.degrees(found) - angle) > 1e-4
            if math.degrees(found) > angle:
                wanted.add((a, p, n))
    assert len(wanted) > 0
    same_tuples(AngularMiner(angle)(x, labels), wanted)
    near = {(a, p, n) for a, p, n in wanted if (unit[a] - unit[n]).norm() < (unit[a] - unit[p]).norm() + 0.1}
    same_tuples(AngularMiner(angle, margin=0.1)(x, labels), near)


def test_reference_rows_are_not_self_excluded_unless_they_are_the_batch():
    x = torch.tensor([[0.0], [5.0], [1.0]])
    labels = torch.tensor([0, 0, 1])
    assert as_list(EasyPositiveMiner("hard")(x, labels, x, labels)) == [(0, 1, 2), (1, 0, 2)]
    assert as_list(EasyPositiveMiner("hard")(x, labels, x.clone(), labels)) == [(0, 0, 2), (1, 1, 2), (2, 2, 0)]
    ref, ref_labels = torch.tensor([[9.0], [1.0], [2.0]]), torch.tensor([1, 0, 0])
    assert as_list(BatchHardMiner()(x, labels, ref, ref_labels)) == [(0, 2, 0), (1, 1, 0), (2, 0, 1)]


@pytest.mark.parametrize("distance", ["euclidean", "manhattan", "inner"])
def test_infinite_distances_never_pick_a_row_that_is_not_allowed(distance):
    x, labels = torch.tensor([[0.0], [1.0], [math.inf]]), torch.tensor([0, 0, 1])
    assert as_list(BatchHardMiner(distance)(x, labels)) == [(0, 1, 2), (1, 0, 2)]
    assert as_list(HardPairMiner(distance)(x, labels)[2:])[:2] == [(0, 2), (1, 2)]
    assert as_list(RankWindowMiner(distance=distance)(x, labels)) == [(0, 1, 2), (1, 0, 2)]


def test_an_infinite_negative_is_in_no_semi_hard_band():
    x, labels = torch.tensor([[0.0], [1.0], [math.inf]]), torch.tensor([0, 0, 1])
    for negatives in ("all", "hardest", "random"):
        assert not as_list(SemiHardMiner(1.0, negatives, "manhattan")(x, labels))


@pytest.mark.parametrize(
    "miner", [BatchHardMiner(), EasyPositiveMiner(), EasyPositiveMiner("hard"), RankWindowMiner(0, 1, "hardest")]
)
def test_a_nan_row_is_picked_as_the_hardest(miner):
    x, labels = random_batch()
    bad = int((labels == labels[0]).nonzero()[-1])
    x[bad] = math.nan
    found = miner(x, labels)
    assert (found.negative[labels[found.anchor] != labels[bad]] == bad).all()


@pytest.mark.parametrize("negatives", ["all", "hardest", "random"])
@pytest.mark.parametrize("bad", range(1, 9))
def test_nan_negatives_are_in_no_semi_hard_band(bad, negatives):
    """And the rows that are no NaN keep their distances."""
    x = torch.cat((torch.tensor([0.0, 1.0]), torch.arange(2.0, 11.0)))[:, None]
    labels = torch.tensor([0, 0] + [1] * 9)
    x[2 : 2 + bad] = math.nan
    wanted = {(0, 1, n) for n in range(2 + bad, 11)} | {(1, 0, n) for n in range(2 + bad, 11) if n > 2}
    found = {t for t in as_list(SemiHardMiner(100.0, negatives)(x, labels)) if t[0] < 2}
    assert found == wanted if negatives == "all" else found <= wanted and len(found) == 2
    if negatives == "hardest":
        assert found == {(0, 1, 2 + bad), (1, 0, 2 + bad)}


def test_ties_among_many_go_to_the_lowest_row():
    x = torch.cat((torch.tensor([0.0, 1.0]), torch.full((500,), 3.0)))[:, None]
    labels = torch.tensor([0, 0] + [1] * 500)
    for miner in (SemiHardMiner(9.0, "hardest"), EasyPositiveMiner(), BatchHardMiner(), RankWindowMiner(0, 1)):
        assert as_list(miner(x, labels))[:2] == [(0, 1, 2), (1, 0, 2)]
    assert as_list(RankWindowMiner(2, 2)(x, labels))[:4] == [(0, 1, 4), (0, 1, 5), (1, 0, 4), (1, 0, 5)]


L2 = pml_distances.LpDistance(normalize_embeddings=False)
PEERS = {
    "batch-hard": (BatchHardMiner(), pml_miners.BatchHardMiner(distance=L2)),
    "semi-hard": (SemiHardMiner(0.1), pml_miners.TripletMarginMiner(0.1, "semihard", distance=L2)),
    "semi-hard, wide": (SemiHardMiner(0.7), pml_miners.TripletMarginMiner(0.7, "semihard", distance=L2)),
    "hard": (HardMiner(), pml_miners.TripletMarginMiner(0.2, "hard", distance=L2)),
    "active": (AllTripletsMiner(margin=0.3), pml_miners.TripletMarginMiner(0.3, "all", distance=L2)),
    "easy-positive": (EasyPositiveMiner(), pml_miners.BatchEasyHardMiner("easy", "semihard", distance=L2)),
    "easy-positive, hard": (EasyPositiveMiner("hard"), pml_miners.BatchEasyHardMiner("easy", "hard", distance=L2)),
    "multi-similarity": (MultiSimilarityMiner(0.1), pml_miners.MultiSimilarityMiner(0.1)),
    "angular": (AngularMiner(20), pml_miners.AngularMiner(20)),
    "angular, wide": (AngularMiner(45), pml_miners.AngularMiner(45)),
}


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("reference", [False, True])
def test_the_tuples_are_pytorch_metric_learnings(name, reference):
    x, labels = random_batch(60, 3)
    ref, ref_labels = random_batch(45, 3, seed=1)
    if name.startswith("angular"):  # theirs does not scale the rows, though it says so
        x, ref = torch.nn.functional.normalize(x), torch.nn.functional.normalize(ref)
    given = (x, labels, ref, ref_labels) if reference else (x, labels)
    ours, theirs = (miner(*given) for miner in PEERS[name])
    if len(ours) == 3 and len(theirs) == 4:  # theirs are pairs of one anchor, side by side
        theirs = theirs[0], theirs[1], theirs[3]
    sides = [(slice(0, 3), slice(0, 3))] if len(ours) == 3 else [(slice(0, 2), slice(0, 2)), (slice(2, 4), slice(2, 4))]
    for mine, other in sides:
        assert len(ours[mine][0]) > 0
        assert sorted(as_list(ours[mine])) == sorted(as_list(theirs[other]))


def test_bad_arguments_are_refused():
    for margin in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"SemiHardMiner needs a finite margin > 0, got .* use HardMiner"):
            SemiHardMiner(margin)
        with pytest.raises(ValueError, match=r"BatchHardMiner margin must be a finite number > 0, got .*None keeps"):
            BatchHardMiner(margin=margin)
    with pytest.raises(ValueError, match="negatives must be one of 'all', 'hardest', 'random'; got 'semihard'"):
        SemiHardMiner(0.2, "semihard")
    with pytest.raises(ValueError, match="negatives must be one of 'semi-hard', 'hard'; got 'easy'"):
        EasyPositiveMiner("easy")
    for make in (BatchHardMiner, HardPairMiner):
        with pytest.raises(ValueError, match=r"one of 'euclidean', 'squared', 'cosine', .*; got 'l2'"):
            make("l2")
    for angle in (0, 90, -5, math.nan):
        with pytest.raises(ValueError, match="AngularMiner angle must be between 0 and 90 degrees"):
            AngularMiner(angle)
    with pytest.raises(ValueError, match="epsilon must be a finite number >= 0"):
        MultiSimilarityMiner(-0.1)
    with pytest.raises(ValueError, match="skip must be >= 0, got -1"):
        RankWindowMiner(-1)
    with pytest.raises(ValueError, match="window must be >= 1, got 0"):
        RankWindowMiner(0, 0)
    with pytest.raises(ValueError, match="negatives_per_positive must be >= 1, got 0"):
        RankWindowMiner(0, 1, "all", 0)
    with pytest.raises(
        ValueError, match="positives must be one of 'all', 'hardest', 'easiest', 'random'; got 'nearest'"
    ):
        RankWindowMiner(positives="nearest")
    for make in (AllPairsMiner, AllTripletsMiner, AngularMiner, HardMiner, MultiSimilarityMiner, RankWindowMiner):
        with pytest.raises(ValueError, match="budget must be >= 1, got 0"):
            make(budget=0)
    with pytest.raises(ValueError, match="group_rule must be one of 'any', 'other', 'same'; got 'different'"):
        BatchHardMiner(group_rule="different")
    with pytest.raises(ValueError, match="labels must be one per embedding: 4 rows"):
        BatchHardMiner()(torch.zeros(4, 2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"labels must be \(rows,\), got"):
        BatchHardMiner()(torch.zeros(4, 2), torch.zeros(4, 2))
