"""Hinges beside their definitions typed out over rows; torch's and scikit-learn's where they are the same."""

import inspect
import math

import pytest
import torch
from sklearn.metrics import hinge_loss as sklearn_hinge_loss
from torch import nn

import lossopt.losses
from lossopt.losses import HingeLoss, MultiClassHingeLoss, SquaredHingeLoss
from lossopt.losses.classification import hinge_loss, multi_class_hinge_loss, squared_hinge_loss
from lossopt.losses.embedding import EmbeddingLoss

SCORE = [0.0, 1.0, -1.0, 1.0, 0.3, -0.3, 1e30, -7.0, 0.75]
SIGN = [1, 1, 1, -1, -1, 1, 1, -1, 1]
SCORES = [[3.0, 3.0, 3.0, 3.0], [0.0, 1.0, -1.0, 2.0], [1e4, -1e4, 0.0, 0.5], [-2.0, -2.0, 5.0, 4.25], [0, 0, 0, 0.75]]
CLASSES = [2, 3, 0, 1, 3]


def reduced(values, reduction):
    return {"none": values, "sum": sum(values), "mean": sum(values) / len(values)}[reduction]


def hinges(margin, power):
    return [max(0.0, margin - y * s) ** power for s, y in zip(SCORE, SIGN, strict=True)]


def multi_class(margin):
    return [
        sum(max(0.0, s - row[y] + margin) for j, s in enumerate(row) if j != y)
        for row, y in zip(SCORES, CLASSES, strict=True)
    ]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("margin", [0.75, 1.0, 3.0])
@pytest.mark.parametrize(("make", "power"), [(HingeLoss, 1), (SquaredHingeLoss, 2)])
def test_hinges_of_two_classes(make, power, margin, reduction):
    found = make(margin, reduction)(torch.tensor(SCORE).double(), torch.tensor(SIGN))
    torch.testing.assert_close(found, torch.tensor(reduced(hinges(margin, power), reduction)).double())


def test_hinge_is_scikit_learns():
    found = hinge_loss(torch.tensor(SCORE).double()[:6], torch.tensor(SIGN)[:6])
    assert float(found) == pytest.approx(sklearn_hinge_loss(SIGN[:6], SCORE[:6]))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("margin", [0.75, 1.0, 10.0])
def test_multi_class_hinge(margin, reduction):
    found = MultiClassHingeLoss(margin, reduction=reduction)(torch.tensor(SCORES).double(), torch.tensor(CLASSES))
    torch.testing.assert_close(found, torch.tensor(reduced(multi_class(margin), reduction)).double())


def test_the_example_of_cs231n():
    """Scores 13, -7, 11, the first class is right, Delta 10: 0 + 8."""
    assert multi_class_hinge_loss(torch.tensor([[13.0, -7.0, 11.0]]), torch.tensor([0]), margin=10) == 8


def test_torchs_divides_by_the_number_of_classes():
    scores, target = torch.tensor(SCORES).double(), torch.tensor(CLASSES)
    torchs = nn.MultiMarginLoss(margin=0.75)(scores, target)
    torch.testing.assert_close(multi_class_hinge_loss(scores, target, 0.75), 4 * torchs)


@pytest.mark.parametrize("function", [hinge_loss, squared_hinge_loss])
def test_gradient_of_two_classes(function):
    score = torch.tensor([0.2, -3.0, 1.7, 40.0, 0.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: function(s, torch.tensor([1, -1, -1, 1, 1]), 1.5), score)


def test_gradient_of_many_classes():
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: multi_class_hinge_loss(s, torch.tensor([0, 3, 3, 1, 2, 0])), scores)


def test_no_gradient_where_nothing_is_missing_and_at_the_corner():
    score = torch.tensor([1.0, 2.0, 0.5], requires_grad=True)
    hinge_loss(score, torch.ones(3), reduction="sum").backward()
    assert score.grad.tolist() == [0, 0, -1]


def test_the_weight_penalty_is_added_once():
    scores, target = torch.tensor(SCORES).double(), torch.tensor(CLASSES)
    weight = torch.tensor([[1.0, -2.0], [0.5, 0.0]]).double()
    for reduction in ("mean", "sum"):
        found = MultiClassHingeLoss(0.75, 0.1, reduction)(scores, target, weight)
        assert float(found) == pytest.approx(reduced(multi_class(0.75), reduction) + 0.1 * (1 + 4 + 0.25))


def test_a_weight_decay_of_twice_the_penalty_makes_the_same_steps():
    """As the docstring promises for networks, whose loss is not given the weights."""
    x, target = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double(), torch.tensor([0, 1, 1, 3, 2])
    ends = []
    for penalty, decay in ((0.05, 0.0), (0.0, 0.1)):
        weight = torch.linspace(-1, 1, 12).double().reshape(4, 3).requires_grad_()
        optimizer, loss_fn = torch.optim.SGD([weight], lr=0.1, weight_decay=decay), MultiClassHingeLoss(1.0, penalty)
        for _ in range(7):
            optimizer.zero_grad()
            loss_fn(x @ weight.T, target, weight if penalty else None).backward()
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("make", [HingeLoss, SquaredHingeLoss, MultiClassHingeLoss])
def test_a_nan_is_not_hidden_and_half_precision_stays(make):
    many = make is MultiClassHingeLoss
    scores = torch.tensor([[0.5, math.nan, 2.0]]) if many else torch.tensor([0.5, math.nan, 2.0])
    target = torch.tensor([0]) if many else torch.tensor([1, 1, -1])
    assert make()(scores, target).isnan()
    assert make()(scores[..., :1].bfloat16(), target[:1]).dtype == torch.bfloat16


def test_nothing_to_compare():
    assert MultiClassHingeLoss(reduction="sum")(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)) == 0
    assert MultiClassHingeLoss()(torch.zeros(2, 1), torch.tensor([0, 0])) == 0
    assert HingeLoss()(torch.zeros(0), torch.zeros(0)).isnan()


@pytest.mark.parametrize("margin", [0, -1, math.inf, math.nan])
@pytest.mark.parametrize("make", [HingeLoss, SquaredHingeLoss, MultiClassHingeLoss])
def test_a_margin_that_is_none(make, margin):
    with pytest.raises(ValueError, match=rf"{make.__name__} margin must be a finite number > 0"):
        make(margin)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="weight_penalty must be a finite number >= 0, got -1"):
        MultiClassHingeLoss(weight_penalty=-1)
    with pytest.raises(ValueError, match="leaves no room"):
        MultiClassHingeLoss(weight_penalty=1, reduction="none")
    with pytest.raises(ValueError, match="reduction must be one of"):
        HingeLoss(reduction="average")
    with pytest.raises(ValueError, match="reduction must be one of"):
        squared_hinge_loss(torch.ones(2), torch.ones(2), reduction="average")


def test_calls_that_do_not_fit():
    scores, target = torch.tensor(SCORES), torch.tensor(CLASSES)
    with pytest.raises(ValueError, match="called without weights; give both or neither"):
        MultiClassHingeLoss(weight_penalty=0.1)(scores, target)
    with pytest.raises(ValueError, match="called with weights; give both or neither"):
        MultiClassHingeLoss()(scores, target, torch.ones(2))
    with pytest.raises(ValueError, match=r"\(5, 4\) and \(5, 1\); for targets of -1 and 1 use HingeLoss"):
        multi_class_hinge_loss(scores, target[:, None])
    for function in (hinge_loss, squared_hinge_loss):
        with pytest.raises(ValueError, match=rf"{function.__name__} compares.*\(5, 1\).*\(5,\)"):
            function(scores[:, :1], target)


def test_they_are_no_losses_on_embeddings():
    """The contract tests of those, and the choices that a message offers, look for a class's `tuples`."""
    made = [member for _, member in inspect.getmembers(lossopt.losses, inspect.isclass)]
    plain = {member.__name__ for member in made if not issubclass(member, EmbeddingLoss)}
    assert {"HingeLoss", "SquaredHingeLoss", "MultiClassHingeLoss", "MSLELoss"} <= plain
    assert not any(hasattr(getattr(lossopt.losses, name), "tuples") for name in plain - {"CrossBatchMemory"})
