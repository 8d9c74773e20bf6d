"""What every loss over tuples promises; they are found by inspection, so exporting a new one tests it."""

import inspect

import pytest
import torch

import lossopt.losses
from lossopt.losses.embedding import EmbeddingLoss
from lossopt.miners import BatchHardMiner, HardPairMiner

LOSSES = [
    member
    for _, member in inspect.getmembers(lossopt.losses, inspect.isclass)
    if issubclass(member, EmbeddingLoss) and not inspect.isabstract(member)
]
every_loss = pytest.mark.parametrize("make", LOSSES)
MINERS = {"pairs": HardPairMiner, "triplets": BatchHardMiner}


def batch(dtype=torch.float32):
    """Rows 0 and 5 are the same and of one class, 1 and 2 the same but of two, 6 has a label of its own, 4 is zero."""
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(2))
    x[5], x[2], x[4] = x[0], x[1], 0
    return x.to(dtype), torch.tensor([3, 1, 3, 1, 2**25 + 1, 3, 9, 2**25, 2**25, 2**25 + 1])


def empty(kind):
    return (torch.empty(0, dtype=torch.int64),) * {"pairs": 4, "triplets": 3}[kind]


def test_losses_are_found():
    assert len(LOSSES) >= 6
    assert {loss.tuples for loss in LOSSES} == {"pairs", "triplets"}


@every_loss
def test_scalar_with_finite_gradient_on_duplicates_and_lone_labels(make):
    x, labels = batch()
    x.requires_grad_()
    loss_fn = make()
    loss = loss_fn(x, labels)
    loss.backward()
    assert loss.shape == ()
    assert loss > 0
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0
    assert loss_fn.share_active.shape == ()
    assert not loss_fn.share_active.requires_grad
    assert 0 < loss_fn.share_active <= 1
    assert loss_fn.tuple_count > 0


@every_loss
def test_permuting_rows_permutes_the_gradient(make):
    x, labels = batch(torch.float64)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    ours, moved = x.clone().requires_grad_(), x[order].clone().requires_grad_()
    loss, other = make()(ours, labels), make()(moved, labels[order])
    loss.backward()
    other.backward()
    torch.testing.assert_close(loss, other)
    torch.testing.assert_close(ours.grad[order], moved.grad)


@every_loss
def test_every_row_of_the_class_is_compared_once(make):
    """The all-tuples default equals the loss on its own tuples, which are valid and without duplicates."""
    x, labels = batch()
    loss_fn = make()
    indices = loss_fn.every_tuple(x, labels, None, None)
    split = [indices] if make.tuples == "triplets" else [indices[:2], indices[2:]]
    for columns in split:
        rows = torch.stack(columns)
        assert rows.dtype == torch.int64
        assert rows.unique(dim=1).shape == rows.shape
        assert all(len(set(row)) == len(row) for row in rows.T.tolist())
    torch.testing.assert_close(loss_fn(x, labels), loss_fn(x, None, indices))


@every_loss
@pytest.mark.parametrize("rows", [0, 1, 10])
def test_no_tuples_give_zero_with_zero_gradient(make, rows):
    x = batch()[0][:rows].clone().requires_grad_()
    loss_fn = make()
    for loss in (
        loss_fn(x, torch.zeros(rows, dtype=torch.int64), empty(make.tuples)),
        loss_fn(x[:1], torch.ones(len(x[:1]))),
    ):
        x.grad = None
        loss.backward()
        assert loss == 0
        assert (x.grad == 0).all()
        assert loss_fn.tuple_count == 0
        assert loss_fn.share_active == 0


@every_loss
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_is_never_dropped(make, bad):
    x, labels = batch()
    x[6, 2] = bad  # the row without a partner of its class
    assert make()(x, labels).isnan()
    assert make()(x, labels, empty(make.tuples)).isnan()
    assert make()(x, labels, MINERS[make.tuples]()(x, labels)).isnan()
    good = batch()[0]
    assert make()(good, labels, empty(make.tuples), x, labels).isnan()


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(make, dtype):
    x, labels = batch(dtype)
    x = (x * 1000).requires_grad_()  # squared norms beyond float16
    loss = make()(x, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    torch.testing.assert_close(loss, make()(x.detach().float(), labels))
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()


@every_loss
def test_autocast_changes_nothing(make):
    x, labels = batch()
    with torch.autocast("cpu", torch.bfloat16):
        inside = make()(x, labels)
    assert torch.equal(inside, make()(x, labels))


@every_loss
def test_non_contiguous_rows_and_a_reference_that_is_the_batch(make):
    x, labels = batch()
    loss_fn = make()
    assert torch.equal(loss_fn(x.T.contiguous().T, labels), loss_fn(x, labels))
    assert torch.equal(loss_fn(x, labels, None, x, labels), loss_fn(x, labels))
    assert loss_fn(x, labels, None, x.clone(), labels).isfinite()


@every_loss
def test_state_dict_holds_nothing(make):
    assert not make().state_dict()
