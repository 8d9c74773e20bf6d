"""What every miner promises; the miners are found by inspection, so exporting a new one tests it."""

import inspect

import pytest
import torch

import lossopt.miners
from lossopt.losses import ContrastiveLoss, TripletLoss, tiles
from lossopt.miners import DistanceWeightedMiner, RandomPairMiner, RandomTripletMiner
from lossopt.miners.in_batch import InBatchMiner

MINERS = [
    member
    for _, member in inspect.getmembers(lossopt.miners, inspect.isclass)
    if issubclass(member, InBatchMiner) and not inspect.isabstract(member)
]
every_miner = pytest.mark.parametrize("make", MINERS)
LOSSES = {"pairs": ContrastiveLoss, "triplets": TripletLoss}


def batch(n=18, dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    x, labels = torch.randn(n, 5, generator=generator), torch.randint(0, 4, (n,), generator=generator)
    x[7] = x[1]
    labels[3] = 2**25 + 1
    labels[4] = 2**25  # both alone, and equal in float32
    return x.to(dtype), labels


def as_pairs(kind, found):
    """(anchor, positive) and (anchor, negative) columns of what was mined."""
    if kind == "pairs":
        return found[:2], found[2:]
    return (found[0], found[1]), (found[0], found[2])


def check_valid(make, found, labels, ref_labels=None, own=None):
    if ref_labels is None:
        ref_labels, own = labels, 0
    assert all(column.dtype == torch.int64 and column.ndim == 1 for column in found)
    (a1, p), (a2, n) = as_pairs(make.tuples, found)
    assert (labels[a1] == ref_labels[p]).all()
    assert (labels[a2] != ref_labels[n]).all()
    assert own is None or (own + a1 != p).all()
    for columns in [found] if make.tuples == "triplets" else [found[:2], found[2:]]:
        rows = torch.stack(tuple(columns))
        assert rows.unique(dim=1).shape == rows.shape


def equal(found, others):
    return len(found) == len(others) and all(torch.equal(a, b) for a, b in zip(found, others, strict=True))


def test_miners_are_found():
    assert len(MINERS) >= 13
    assert {miner.tuples for miner in MINERS} == {"pairs", "triplets"}


@every_miner
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_tuples_are_valid_and_different(make, dtype):
    x, labels = batch(dtype=dtype)
    found = make()(x.requires_grad_(), labels)
    assert len(found) == {"pairs": 4, "triplets": 3}[make.tuples]
    assert len(found[0]) > 0
    check_valid(make, found, labels)


@every_miner
def test_tuples_from_a_reference_are_valid(make):
    x, labels = batch()
    ref, ref_labels = batch(11)
    check_valid(make, make()(x, labels, ref, ref_labels), labels, ref_labels)
    none = make()(x, labels, ref[:0], ref_labels[:0])
    assert all(len(column) == 0 and column.dtype == torch.int64 for column in none)


@every_miner
@pytest.mark.parametrize("before", [0, 4])
def test_the_batch_is_found_in_its_reference(make, before):
    """At column 0 it is the batch alone; further on there are other rows, and none is compared with itself."""
    x, labels = batch()
    others, other_labels = batch(11)
    ref, ref_labels = torch.cat((others[:before], x, others)), torch.cat((other_labels[:before], labels, other_labels))
    found = make()(x, labels, ref, ref_labels, own=before)
    check_valid(make, found, labels, ref_labels, before)
    assert equal(make()(x, labels, x.clone(), labels.clone(), own=0), make()(x, labels))
    for own in (-1, 13 + before):
        with pytest.raises(ValueError, match=f"own is {own}, but 18 rows cannot begin there among {29 + before}"):
            make()(x, labels, ref, ref_labels, own=own)


@every_miner
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_tiles_change_nothing(make, rows, monkeypatch):
    """Nor what is drawn: the random numbers are asked for row by row."""
    given = (*batch(40), *batch(30))
    whole = make()(*given), make()(*given[:2])
    monkeypatch.setattr(tiles, "_CELLS_CPU", rows * 40)
    assert equal(make()(*given), whole[0])
    assert equal(make()(*given[:2]), whole[1])


@every_miner
@pytest.mark.parametrize("budget", [None, 7])
def test_a_square_of_distances_that_is_kept_changes_nothing(make, budget, monkeypatch):
    """Batches of some hundred rows are measured once; a miner that looks twice must find them as they were."""
    if budget and "budget" not in inspect.signature(make).parameters:
        pytest.skip("returns no more than its anchors ask for")
    arguments = {} if budget is None else {"budget": budget}
    given = batch(40)
    whole, dropped = make(**arguments), make(**arguments)
    found = whole(*given)
    monkeypatch.setattr(tiles, "_SIDE", 7)
    monkeypatch.setattr(tiles, "_CELLS_CPU", 3 * 40)
    assert equal(dropped(*given), found)
    assert dropped.dropped == whole.dropped
    assert budget is None or whole.dropped > 0


@every_miner
def test_rows_apart_in_memory_change_nothing(make):
    x, labels = batch()
    apart, labels_apart = torch.randn(5, 36), torch.zeros(18, 2, dtype=torch.int64)
    apart[:, ::2], labels_apart[:, 1] = x.T, labels
    found = make()(apart.T[::2], labels_apart[:, 1])
    assert not apart.T[::2].is_contiguous()
    assert equal(found, make()(x, labels))


@every_miner
def test_groups_rule_the_negatives(make):
    x, labels = batch(60)
    groups = torch.arange(60) % 3 + 2**24
    ref, ref_labels, ref_groups = x[:50].clone(), labels[:50], groups[:50].flip(0)
    for rule, wanted in (("other", False), ("same", True)):
        miner = make(group_rule=rule)
        assert miner.needs_groups
        for found, of in (
            (miner(x, labels, groups=groups), groups),
            (miner(x, labels, ref, ref_labels, groups=groups, ref_groups=ref_groups), ref_groups),
        ):
            check_valid(make, found, labels, None if of is groups else ref_labels)
            anchor, negative = as_pairs(make.tuples, found)[1]
            assert len(anchor) > 0
            assert ((groups[anchor] == of[negative]) == wanted).all()
        none = miner(x, labels, groups=torch.full((60,), -5) if rule == "other" else torch.arange(60))
        assert len(as_pairs(make.tuples, none)[1][0]) == 0
        one = "one integer for each of 60 rows"
        with pytest.raises(
            ValueError, match=rf"{make.__name__}\(group_rule='{rule}'\) needs groups, {one}, got none; call"
        ):
            miner(x, labels)
        with pytest.raises(ValueError, match=rf"needs groups, {one}, got \(59,\)"):
            miner(x, labels, groups=groups[1:])
        with pytest.raises(ValueError, match=r"needs ref_groups, .* of 50 rows, got none; call it with ref_groups="):
            miner(x, labels, ref, ref_labels, groups=groups)
    assert not make().needs_groups
    assert equal(make()(x, labels, groups=groups), make()(x, labels))


@every_miner
def test_a_margin_leaves_out_triplets_without_a_loss(make):
    if make.tuples == "pairs" or "margin" not in inspect.signature(make).parameters:
        return
    x, labels = batch(40)
    x = torch.nn.functional.normalize(x)
    loss = TripletLoss(0.05)
    found = make(margin=0.05)(x, labels)
    loss(x, labels, found)
    assert len(found.anchor) > 0
    assert loss.share_active == 1
    if make in (RandomTripletMiner, DistanceWeightedMiner):
        every = make()(x, labels)
        to_positive, to_negative = ((x[every.anchor] - x[row]).norm(dim=1) for row in every[1:])
        kept = to_negative < to_positive + 0.05
        assert equal(found, tuple(column[kept] for column in every))


@every_miner
def test_nothing_is_dropped_of_a_small_batch(make):
    miner = make()
    miner(*batch())
    assert miner.dropped.shape == ()
    assert miner.dropped.dtype == torch.int64
    assert miner.dropped == 0


DRAWS_BY_ROW = (RandomTripletMiner, RandomPairMiner, DistanceWeightedMiner)


@pytest.mark.parametrize("make", [make for make in MINERS if make not in DRAWS_BY_ROW])
def test_permuting_rows_permutes_the_tuples(make):
    """The others draw by row number; what they draw is counted in the tests of their own."""
    x, labels = batch()
    x[7] += 1  # a tie goes to the lowest row, whichever that is
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(9))
    found, moved = make()(x, labels), make()(x[order], labels[order])
    for columns, others in zip(as_pairs(make.tuples, found), as_pairs(make.tuples, moved), strict=True):
        wanted = set(zip(*(column.tolist() for column in columns), strict=True))
        assert set(zip(*(order[column].tolist() for column in others), strict=True)) == wanted


@every_miner
@pytest.mark.parametrize(
    "labels", [[], [5], [5] * 6, [1, 2, 3, 4, 5, 6]], ids=["none", "one row", "one class", "distinct"]
)
def test_degenerate_batches_give_empty_tuples_and_a_loss_of_zero(make, labels):
    x = torch.randn(len(labels), 3, requires_grad=True)
    labels = torch.tensor(labels, dtype=torch.int64)
    found = make()(x, labels)
    check_valid(make, found, labels)
    if make.tuples == "triplets":
        assert all(len(column) == 0 for column in found)
    loss = LOSSES[make.tuples]()(x, labels, found)
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()


@every_miner
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rows", [[6], [1, 7], list(range(18))])
def test_bad_rows_keep_tuples_valid_and_make_the_loss_nan(make, bad, rows):
    x, labels = batch()
    x[rows] = bad
    found = make()(x, labels)
    check_valid(make, found, labels)
    assert LOSSES[make.tuples]()(x, labels, found).isnan()


@every_miner
def test_collapsed_embeddings_give_valid_tuples(make):
    _, labels = batch()
    check_valid(make, make()(torch.ones(18, 5), labels), labels)


@every_miner
def test_autocast_changes_nothing(make):
    x, labels = batch()
    with torch.autocast("cpu", torch.bfloat16):
        inside = make()(x, labels)
    assert equal(inside, make()(x, labels))
