"""Softminus and concatenated ReLU beside their definitions, at huge values too."""

import math

import pytest
import torch
import torch.nn.functional as F

from lossopt.activations import CReLU, SoftMinus

UNTIDY = [0.0, -0.0, 1e-20, 0.5, -0.5, 3.0, 3.0, -17.25, 19.9, 20.1, -20.1]


def test_softminus_is_x_minus_softplus():
    wanted = [x - math.log(1 + math.exp(x)) for x in UNTIDY]
    found = SoftMinus()(torch.tensor(UNTIDY).double())
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), atol=1e-14, rtol=1e-6)


def test_softminus_is_softplus_turned_round():
    x = torch.linspace(-15, 15, 61).double()
    torch.testing.assert_close(SoftMinus()(x), -F.softplus(-x))
    torch.testing.assert_close(SoftMinus()(x) + F.softplus(x), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_softminus_of_huge_numbers(dtype):
    x = torch.tensor([-1e4, -1e30, 1e4, 1e30], dtype=dtype, requires_grad=True)
    y = SoftMinus()(x)
    y.sum().backward()
    assert y.dtype == dtype
    assert torch.equal(y.detach(), torch.stack((x[0], x[1], x[2] * 0, x[3] * 0)).detach())
    assert x.grad.tolist() == [1, 1, 0, 0]


def test_softminus_keeps_its_digits_where_the_difference_would_lose_them():
    x = torch.tensor(30.0)
    assert SoftMinus()(x) == pytest.approx(-math.exp(-30), rel=1e-5)
    assert x - F.softplus(x) == 0


@pytest.mark.parametrize(
    ("shape", "dim", "wanted"),
    [
        ((2, 3), 1, (2, 6)),
        ((2, 3, 4, 5), 1, (2, 6, 4, 5)),
        ((7,), 0, (14,)),
        ((2, 3, 4), -1, (2, 3, 8)),
        ((0, 3), 1, (0, 6)),
    ],
)
def test_crelu_doubles_the_channels(shape, dim, wanted):
    assert CReLU(dim)(torch.ones(shape)).shape == wanted


def test_crelu_is_positive_part_then_negative_part():
    rows = [[1.5, -2.0, 0.0], [-1e30, 1e30, -0.0]]
    wanted = [[max(0.0, x) for x in row] + [max(0.0, -x) for x in row] for row in rows]
    found = CReLU()(torch.tensor(rows, dtype=torch.float64))
    assert found.tolist() == wanted
    first, second = found.chunk(2, dim=1)
    assert torch.equal(first - second, torch.tensor(rows, dtype=torch.float64))  # nothing is lost


def test_crelu_has_gradient_on_both_sides_and_none_at_zero():
    x = torch.tensor([[2.0, -3.0, 0.0]], requires_grad=True)
    for half, wanted in zip(CReLU()(x).chunk(2, dim=1), ([[1, 0, 0]], [[0, -1, 0]]), strict=True):
        assert torch.autograd.grad(half.sum(), x, retain_graph=True)[0].tolist() == wanted


@pytest.mark.parametrize("activation", [SoftMinus(), CReLU(), CReLU(dim=0)])
def test_gradient(activation):
    x = (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * 5).double().requires_grad_()
    assert torch.autograd.gradcheck(activation, x)
    assert activation(x.bfloat16()).dtype == torch.bfloat16


def test_crelu_lets_a_nan_through():
    assert CReLU()(torch.tensor([[math.nan]])).isnan().all()
