"""The logarithmic error beside its definition typed out in plain Python, the course's table and scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import mean_squared_log_error
from torch import nn

from lossopt.losses import MSLELoss
from lossopt.losses.regression import msle_loss

PREDICTION = [0.0, -0.9, 3.5, 3.5, 1e6, 1e-12, 7.0, 1e300]
TARGET = [0.0, 4.0, 3.5, -0.5, 1e6 + 1, 0.0, 2e5, 1e300]


def tensor(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def by_definition(prediction, target, base=math.e):
    pairs = zip(prediction, target, strict=True)
    return [((math.log1p(p) - math.log1p(t)) / math.log(base)) ** 2 for p, t in pairs]


@pytest.mark.parametrize(
    ("prediction", "target", "printed"),
    [(30, 20, 0.02861), (30000, 20000, 0.03100), (20, 10, 0.07886), (20, 30, 0.02861)],
)
def test_the_course_table_is_base_10(prediction, target, printed):
    """To the digits that it prints; one of them is cut (0.0310056) where the others are rounded."""
    found = float(MSLELoss(base=10)(tensor([prediction]), tensor([target])))
    assert found == pytest.approx(printed, rel=0, abs=1e-5)


@pytest.mark.parametrize("base", [None, 2, 10, 1.5])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_definition(base, reduction):
    wanted = by_definition(PREDICTION, TARGET, base or math.e)
    wanted = {"none": wanted, "sum": sum(wanted), "mean": sum(wanted) / len(wanted)}[reduction]
    found = MSLELoss(base, reduction)(tensor(PREDICTION), tensor(TARGET))
    torch.testing.assert_close(found, tensor(wanted))


def test_natural_logarithm_is_scikit_learns():
    rows = torch.rand(7, 3, generator=torch.Generator().manual_seed(0)).double() * 50
    found = msle_loss(rows, rows.flip(0))
    assert float(found) == pytest.approx(mean_squared_log_error(rows.flip(0).numpy(), rows.numpy()), rel=1e-12)


def test_gradient():
    prediction = torch.tensor([-0.5, 0.0, 2.0, 2.0, 1e3], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0.0, 0.0, 2.0, 5.0, -0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(MSLELoss(base=10), (prediction, target))


def test_half_and_empty_and_edges():
    assert MSLELoss()(torch.ones(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == (
        torch.bfloat16
    )
    assert MSLELoss(reduction="sum")(torch.zeros(0), torch.zeros(0)) == 0
    assert MSLELoss()(torch.zeros(0), torch.zeros(0)).isnan()
    assert MSLELoss()(torch.tensor([-1.0]), torch.tensor([0.0])) == math.inf
    assert MSLELoss()(torch.tensor([-1.1]), torch.tensor([0.0])).isnan()


@pytest.mark.parametrize("base", [1, 0, -2, 0.5, math.inf, math.nan])
def test_a_base_that_is_none(base):
    with pytest.raises(ValueError, match=r"base must be a number above 1, got .*natural logarithms"):
        MSLELoss(base)


def test_a_reduction_that_is_none():
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', 'none'; got 'avg'"):
        MSLELoss(reduction="avg")


def test_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"\(4, 1\) do not fit targets of shape \(4,\).*squeeze"):
        MSLELoss()(torch.ones(4, 1), torch.ones(4))


def test_l2_is_torchs_summed_square():
    error = torch.tensor([1.0, -2.0, 0.5])
    assert nn.MSELoss(reduction="sum")(error, torch.zeros(3)) == 1 + 4 + 0.25
