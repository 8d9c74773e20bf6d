"""What every loss over tuples promises; they are found by inspection, so exporting a new one tests it."""

import inspect
import itertools

import pytest
import torch

import lossopt.losses
from lossopt.losses import tiles
from lossopt.losses.embedding import EmbeddingLoss
from lossopt.miners import BatchHardMiner, HardPairMiner

LOSSES = [
    member
    for _, member in inspect.getmembers(lossopt.losses, inspect.isclass)
    if issubclass(member, EmbeddingLoss) and not inspect.isabstract(member)
]
every_loss = pytest.mark.parametrize("make", LOSSES)
takes_indices = pytest.mark.parametrize("make", [make for make in LOSSES if make.tuples != "batch"])
MINERS = {"pairs": HardPairMiner, "triplets": BatchHardMiner}
ORDERED = {lossopt.losses.NPairsLoss}  # the order of rows of one class is part of its definition
CONSTANT_WEIGHTS = {lossopt.losses.CircleLoss, lossopt.losses.RankedListLoss}  # their gradient is not the value's


def batch(dtype=torch.float32):
    """Rows 0 and 5 are the same and of one class, 1 and 2 the same but of two, 6 has a label of its own, 4 is zero."""
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(2))
    x[5], x[2], x[4] = x[0], x[1], 0
    return x.to(dtype), torch.tensor([3, 1, 3, 1, 2**25 + 1, 3, 9, 2**25, 2**25, 2**25 + 1])


def empty(kind):
    return (torch.empty(0, dtype=torch.int64),) * {"pairs": 4, "triplets": 3}[kind]


def test_losses_are_found():
    assert len(LOSSES) >= 16
    assert {loss.tuples for loss in LOSSES} == {"pairs", "triplets", "batch"}


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
    if make in ORDERED:
        for label in labels.unique():
            places = labels[order] == label
            order[places] = order[places].sort().values
    ours, moved = x.clone().requires_grad_(), x[order].clone().requires_grad_()
    loss, other = make()(ours, labels), make()(moved, labels[order])
    loss.backward()
    other.backward()
    torch.testing.assert_close(loss, other)
    torch.testing.assert_close(ours.grad[order], moved.grad)


def listed(kind, labels):
    """All pairs, or all triplets, of some labels, by definition."""
    if kind == "triplets":
        rows = itertools.permutations(range(len(labels)), 3)
        found = [(a, p, n) for a, p, n in rows if labels[a] == labels[p] != labels[n]]
        return torch.tensor(found).unbind(1)
    pairs = list(itertools.permutations(range(len(labels)), 2))
    same = torch.tensor([pair for pair in pairs if labels[pair[0]] == labels[pair[1]]])
    different = torch.tensor([pair for pair in pairs if labels[pair[0]] != labels[pair[1]]])
    return (*same.unbind(1), *different.unbind(1))


def value_and_gradients(loss, *leaves):
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def same_numbers(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@takes_indices
def test_everything_is_compared_once(make):
    """Without indices a loss equals itself on all tuples typed out."""
    x, labels = batch(torch.float64)
    x.requires_grad_()
    loss_fn, other = make(), make()
    whole = value_and_gradients(loss_fn(x, labels), x)
    same_numbers(whole, value_and_gradients(other(x, None, listed(make.tuples, labels.tolist())), x))
    assert loss_fn.tuple_count == other.tuple_count
    assert loss_fn.share_active == other.share_active


@every_loss
@pytest.mark.parametrize("rows", [1, 3])
def test_tiles_change_nothing(make, rows, monkeypatch):
    x, labels = batch(torch.float64)
    y, ref_labels = torch.cat((x.flip(0), x[:3])), torch.cat((labels.flip(0), labels[:3]))
    x.requires_grad_(), y.requires_grad_()
    loss_fn = make()
    whole = value_and_gradients(loss_fn(x, labels), x)
    against = value_and_gradients(loss_fn(x, labels, None, y, ref_labels), x, y)
    counts = loss_fn.tuple_count, loss_fn.share_active
    monkeypatch.setattr(tiles, "_CELLS_CPU", rows * len(y))
    same_numbers(value_and_gradients(loss_fn(x, labels), x), whole)
    same_numbers(value_and_gradients(loss_fn(x, labels, None, y, ref_labels), x, y), against)
    assert (loss_fn.tuple_count, loss_fn.share_active) == counts


@every_loss
@pytest.mark.parametrize("side", [1, 3, 4])
def test_half_of_a_square_serves_both_rows(make, side, monkeypatch):
    x, labels = batch(torch.float64)
    x.requires_grad_()
    loss_fn = make()
    whole = value_and_gradients(loss_fn(x, labels), x)
    monkeypatch.setattr(tiles, "_SIDE", side)
    monkeypatch.setattr(tiles, "_CELLS_CPU", 4 * len(x))
    same_numbers(value_and_gradients(loss_fn(x, labels), x), whole)


@every_loss
def test_rows_among_a_reference_are_not_their_own_positives(make):
    """The batch followed by nothing is the batch; preceded by a memory, it is found where `own` says."""
    x, labels = batch(torch.float64)
    x.requires_grad_()
    loss_fn = make()
    whole = value_and_gradients(loss_fn(x, labels), x)
    y = x.clone()
    same_numbers(value_and_gradients(loss_fn(x, labels, None, y, labels, own=0), x), whole)
    memory, kept = x.detach()[:4] + 1, labels[:4]
    first = loss_fn(x, labels, None, torch.cat((x, memory)), torch.cat((labels, kept)), own=0)
    last = loss_fn(x, labels, None, torch.cat((memory, x)), torch.cat((kept, labels)), own=4)
    same_numbers(value_and_gradients(first, x), value_and_gradients(last, x))
    with pytest.raises(ValueError, match="own is 5, but 10 rows cannot begin there among 14 reference rows"):
        loss_fn(x, labels, None, torch.cat((memory, x)), torch.cat((kept, labels)), own=5)


@pytest.mark.parametrize("make", [make for make in LOSSES if make not in CONSTANT_WEIGHTS])
def test_gradcheck_on_rows_and_reference(make):
    generator = torch.Generator().manual_seed(5)
    x, y = (torch.randn(n, 3, dtype=torch.float64, generator=generator, requires_grad=True) for n in (7, 5))
    labels, ref_labels = torch.tensor([0, 1, 0, 2, 1, 0, 5]), torch.tensor([0, 1, 2, 0, 1])
    loss_fn = make()
    assert torch.autograd.gradcheck(lambda rows: loss_fn(rows, labels), (x,))
    assert torch.autograd.gradcheck(lambda rows, refs: loss_fn(rows, labels, None, refs, ref_labels), (x, y))


@every_loss
def test_collapsed_embeddings_have_a_finite_gradient_and_the_value_that_is_told(make):
    _, labels = batch()
    x = torch.ones(10, 6, requires_grad=True)
    loss_fn = make()
    loss = loss_fn(x, labels)
    loss.backward()
    assert x.grad.isfinite().all()
    assert loss_fn.collapsed_value is None or loss.item() == pytest.approx(loss_fn.collapsed_value, rel=1e-5)


@takes_indices
@pytest.mark.parametrize("rows", [0, 1, 10])
def test_no_tuples_give_zero_with_zero_gradient(make, rows):
    x = batch()[0][:rows].clone().requires_grad_()
    loss_fn = make()
    loss_fn(x, torch.zeros(rows, dtype=torch.int64), empty(make.tuples)).backward()
    assert (x.grad == 0).all()
    assert loss_fn.tuple_count == 0
    assert loss_fn.share_active == 0


@every_loss
@pytest.mark.parametrize("rows", [0, 1])
def test_one_row_or_none_gives_zero_with_zero_gradient(make, rows):
    x = batch()[0][:rows].clone().requires_grad_()
    loss_fn = make()
    loss = loss_fn(x, torch.ones(rows))
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()
    assert loss_fn.tuple_count == 0


@every_loss
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_is_never_dropped(make, bad):
    x, labels = batch()
    x[6, 2] = bad  # the row without a partner of its class
    assert make()(x, labels).isnan()
    good = batch()[0]
    assert make()(good, labels, None, x, labels).isnan()
    if make.tuples != "batch":
        assert make()(x, labels, empty(make.tuples)).isnan()
        assert make()(x, labels, MINERS[make.tuples]()(x, labels)).isnan()
        assert make()(good, labels, empty(make.tuples), x, labels).isnan()


@pytest.mark.parametrize("make", [make for make in LOSSES if make.tuples == "batch"])
def test_losses_on_the_whole_batch_take_no_indices(make):
    x, labels = batch()
    with pytest.raises(ValueError, match=f"{make.__name__} compares all rows of the batch and takes no indices; leave"):
        make()(x, labels, empty("triplets"))


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
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_worked_out_where_none_is_wanted(make, mode, monkeypatch):
    x, labels = batch()
    wanted = make()(x, labels)
    x.requires_grad_()
    monkeypatch.setattr(tiles, "_Gradient", None)
    with mode():
        found = make()(x, labels)
    assert torch.equal(found, wanted)
    assert not found.requires_grad


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
