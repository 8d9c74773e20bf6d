"""What every miner promises; the miners are found by inspection, so exporting a new one tests it."""

import inspect

import pytest
import torch

import lossopt.miners
from lossopt.losses import ContrastiveLoss, TripletLoss
from lossopt.miners import RandomPairMiner, RandomTripletMiner
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


def check_valid(make, found, labels, ref_labels=None):
    own = ref_labels is None
    ref_labels = labels if own else ref_labels
    assert all(column.dtype == torch.int64 and column.ndim == 1 for column in found)
    (a1, p), (a2, n) = as_pairs(make.tuples, found)
    assert (labels[a1] == ref_labels[p]).all()
    assert (labels[a2] != ref_labels[n]).all()
    assert not own or (a1 != p).all()
    for columns in [found] if make.tuples == "triplets" else [found[:2], found[2:]]:
        rows = torch.stack(tuple(columns))
        assert rows.unique(dim=1).shape == rows.shape


def test_miners_are_found():
    assert len(MINERS) >= 6
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


@pytest.mark.parametrize("make", [make for make in MINERS if make not in (RandomTripletMiner, RandomPairMiner)])
def test_permuting_rows_permutes_the_tuples(make):
    """The two others draw by row number; what they draw is counted in the tests of their own."""
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
    assert all(torch.equal(a, b) for a, b in zip(inside, make()(x, labels), strict=True))
