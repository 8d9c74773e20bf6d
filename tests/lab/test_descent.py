"""Gradients against derivatives by hand, descent against loops by hand, averages against scipy and their sums."""

import math

import numpy as np
import pytest
import scipy.signal
import torch

from lossopt.lab.descent import (
    analytic_gradient,
    batch_descent,
    descend,
    exponential_average,
    gradient_is_right,
    numerical_gradient,
    random_search,
    worked_example,
)
from lossopt.lab.optimizers import SGD, Momentum


def wavy(w):
    x, y, z = w.unbind(-1)
    return x**2 * y + torch.sin(3 * z) * y + torch.exp(x)


def wavy_gradient(w):
    x, y, z = w
    return [2 * x * y + math.exp(x), x**2 + math.sin(3 * z), 3 * math.cos(3 * z) * y]


PLACES = torch.tensor([[[0.0, 0, 0], [1, -2, 0.3]], [[-3, 0.5, 9], [0.1, 1e3, -1]]], dtype=torch.float64)


def by_hand(places):
    return torch.tensor([[wavy_gradient(w) for w in row] for row in places.tolist()], dtype=torch.float64)


def test_the_analytic_gradient_is_the_derivative_at_every_place():
    given = PLACES.clone()
    torch.testing.assert_close(analytic_gradient(wavy, given), by_hand(PLACES), rtol=1e-13, atol=1e-13)
    assert not given.requires_grad and given.grad is None
    with torch.no_grad():
        assert torch.equal(analytic_gradient(wavy, PLACES), analytic_gradient(wavy, PLACES))


@pytest.mark.parametrize(("central", "h", "near"), [(True, 1e-5, 1e-6), (False, 1e-7, 1e-3)])
def test_the_numerical_gradient_is_near_it(central, h, near):
    found = numerical_gradient(wavy, PLACES, h, central)
    torch.testing.assert_close(found, by_hand(PLACES), rtol=near, atol=near)
    alone = numerical_gradient(wavy, PLACES[0, 1], h, central)
    assert torch.equal(alone, found[0, 1])


def test_the_numerical_gradient_is_the_difference_quotient_and_forward_is_not_central():
    place = torch.tensor([2.0], dtype=torch.float64)
    cube = lambda w: w[..., 0] ** 3  # noqa: E731
    assert numerical_gradient(cube, place, 0.5).item() == pytest.approx((2.5**3 - 1.5**3) / 1)
    assert numerical_gradient(cube, place, 0.5, central=False).item() == pytest.approx((2.5**3 - 2**3) / 0.5)


@pytest.mark.parametrize(("central", "order"), [(True, 2), (False, 1)])
def test_half_the_step_is_a_quarter_of_the_central_and_half_of_the_forward_error(central, order):
    right = by_hand(PLACES)[0, 1]
    far, near = ((numerical_gradient(wavy, PLACES[0, 1], h, central) - right).norm() for h in (1e-2, 5e-3))
    assert float(far / near) == pytest.approx(2**order, rel=0.02)


@pytest.mark.parametrize("h", [0.0, -1e-5, math.nan])
def test_a_step_that_is_none_is_refused(h):
    with pytest.raises(ValueError, match="h must be above 0, got"):
        numerical_gradient(wavy, PLACES, h)


class WrongSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        ctx.save_for_backward(w)
        return w.square()

    @staticmethod
    def backward(ctx, grad):
        return grad * 2.01 * ctx.saved_tensors[0]


def test_a_wrong_gradient_is_found():
    place = torch.tensor([0.5, -1.5, 0.2], dtype=torch.float64)
    assert gradient_is_right(wavy, place)
    assert gradient_is_right(lambda w: w.square().sum(-1), place)
    assert not gradient_is_right(lambda w: WrongSquare.apply(w).sum(-1), place)
    with pytest.raises(ValueError, match=r"float64 weights, got torch\.float32"):
        gradient_is_right(wavy, place.float())


def test_the_worked_example():
    np.testing.assert_allclose(worked_example(), [4, 1.6, 0.64, 0.256, 0.1024], rtol=1e-14)


def test_descend_keeps_the_start_and_what_the_rule_remembers():
    start = torch.tensor([[1.0, 2.0], [0.0, -3.0]], dtype=torch.float64)
    path = descend(Momentum(0.1, 0.5), lambda w: 2 * w, start, 3)
    weights, velocity, expected = start, 0 * start, [start]
    for _ in range(3):
        velocity = 0.5 * velocity + 2 * weights
        weights = weights - 0.1 * velocity
        expected.append(weights)
    torch.testing.assert_close(path, torch.stack(expected))
    assert descend(SGD(0.1), lambda w: w, start, 0).shape == (1, 2, 2)


def test_random_search_moves_only_downhill():
    start, target = torch.tensor([2.0, -1.0], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    asked = []

    def distance(w):
        asked.append(w)
        return (w - target).norm() if len(asked) % 7 else torch.tensor(math.nan)

    path = random_search(distance, start, 0.3, 200, torch.Generator().manual_seed(1))
    assert path.shape == (201, 2) and len(asked) == 201  # the start and one evaluation per guess
    best = start
    for count, (guess, kept) in enumerate(zip(asked[1:], path[1:], strict=True), start=2):
        if count % 7 and (guess - target).norm() < (best - target).norm():
            best = guess
        assert torch.equal(kept, best)
    assert (path[-1] - target).norm() < 0.2
    steps = torch.stack(asked[1:]) - path[:-1]
    assert steps.std().item() == pytest.approx(0.3, rel=0.15) and abs(steps.mean()) < 0.05


def test_random_search_follows_its_generator_and_stays_on_flat_ground():
    start = torch.zeros(2, dtype=torch.float64)
    one, same, other = (
        random_search(lambda w: w.square().sum() - w.sum(), start, 0.1, 20, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    flat = random_search(lambda w: torch.zeros(()), start, 0.1, 20, torch.Generator().manual_seed(0))
    assert (flat == 0).all()


def line(rows=11):
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return inputs, inputs @ torch.tensor([0.7, -1.3], dtype=torch.float64) + 0.1 * torch.arange(rows)


def mean_square(weights, inputs, targets):
    return (inputs @ weights - targets).square().mean()


@pytest.mark.parametrize("batch_size", [11, 40])
def test_the_full_batch_is_plain_gradient_descent(batch_size):
    inputs, targets = line()
    start = torch.tensor([1.0, 1.0], dtype=torch.float64)
    path, seen = batch_descent(
        mean_square, inputs, targets, start, Momentum(0.05), batch_size, 6, torch.Generator().manual_seed(0)
    )
    weights, velocity, expected = start.numpy(), np.zeros(2), [start.numpy()]
    for _ in range(6):
        slope = 2 * inputs.numpy().T @ (inputs.numpy() @ weights - targets.numpy()) / 11
        velocity = 0.9 * velocity + slope
        weights = weights - 0.05 * velocity
        expected.append(weights)
    np.testing.assert_allclose(path, expected, rtol=1e-12)
    assert seen.tolist() == [0, 11, 22, 33, 44, 55, 66]


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 11), (4, [4, 4, 3]), (10, [10, 1])])
def test_an_epoch_looks_at_each_example_once_in_a_new_order(batch_size, sizes):
    inputs, targets = line()
    batches = []

    def remembered(weights, inputs, targets):
        batches.append((weights.detach().clone(), inputs, targets))
        return mean_square(weights, inputs, targets)

    start = torch.zeros(2, dtype=torch.float64)
    path, seen = batch_descent(
        remembered, inputs, targets, start, SGD(0.02), batch_size, 3, torch.Generator().manual_seed(0)
    )
    assert [len(x) for _, x, _ in batches] == 3 * sizes
    assert seen.tolist() == np.cumsum([0, *3 * sizes]).tolist()
    epochs = [torch.cat([y for _, _, y in batches[i * len(sizes) : (i + 1) * len(sizes)]]).tolist() for i in range(3)]
    assert all(sorted(epoch) == sorted(targets.tolist()) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    for step, (weights, x, y) in enumerate(batches):
        assert torch.equal(weights, path[step])
        assert any(torch.equal(x[0], inputs[i]) and y[0] == targets[i] for i in range(11))  # rows stay together
        slope = 2 * x.T @ (x @ weights - y) / len(x)
        torch.testing.assert_close(path[step + 1], weights - 0.02 * slope, rtol=1e-12, atol=1e-12)


def test_descent_over_examples_follows_its_generator_and_refuses_nonsense():
    inputs, targets = line()
    start = torch.zeros(2, dtype=torch.float64)

    def walk(inputs, targets, batch_size, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return batch_descent(mean_square, inputs, targets, start, SGD(0.02), batch_size, 2, generator)[0]

    assert torch.equal(walk(inputs, targets, 3), walk(inputs, targets, 3))
    assert not torch.equal(walk(inputs, targets, 3), walk(inputs, targets, 3, seed=1))
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        walk(inputs, targets, 0)
    with pytest.raises(ValueError, match="got 11 and 10 rows"):
        walk(inputs, targets[1:], 3)
    with pytest.raises(ValueError, match="got 0 and 0 rows"):
        walk(inputs[:0], targets[:0], 3)


SERIES = torch.tensor([3.0, 0, 0, -1e6, 1e-9, 7, 7, 7, -2, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.9, 0.999])
def test_an_exponential_average_is_scipys_filter_and_its_correction_a_weighted_mean(beta):
    plain = exponential_average(SERIES, beta, corrected=False)
    np.testing.assert_allclose(plain, scipy.signal.lfilter([1 - beta], [1, -beta], SERIES.numpy()), rtol=1e-10)
    corrected = exponential_average(SERIES, beta)
    for t in range(1, len(SERIES) + 1):
        shares = [beta ** (t - i) for i in range(1, t + 1)]
        assert corrected[t - 1].item() == pytest.approx(np.average(SERIES[:t], weights=shares), rel=1e-9)


def test_the_correction_finds_a_constant_at_once_and_its_lack_does_not():
    constant = torch.full((5,), 4.0, dtype=torch.float64)
    np.testing.assert_allclose(exponential_average(constant, 0.99), 4, rtol=1e-12)
    np.testing.assert_allclose(exponential_average(constant, 0.99, corrected=False)[:2], [0.04, 0.0796], rtol=1e-9)


def test_averages_of_many_series_and_betas_are_each_alone_and_nan_spoils_what_follows():
    betas = torch.tensor([0.1, 0.9], dtype=torch.float64)
    both = exponential_average(torch.stack([SERIES, -SERIES])[:, None], betas)
    assert both.shape == (2, 2, 10)
    for row, sign in enumerate((1, -1)):
        for column, beta in enumerate(betas.tolist()):
            torch.testing.assert_close(both[row, column], exponential_average(sign * SERIES, beta))
    spoilt = SERIES.clone()
    spoilt[4] = math.nan
    assert exponential_average(spoilt, 0.5).isnan().tolist() == [False] * 4 + [True] * 6


@pytest.mark.parametrize("beta", [1.0, -0.1, math.nan, torch.tensor([0.5, 1.5])])
def test_a_beta_that_never_moves_is_refused(beta):
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\), got"):
        exponential_average(SERIES, beta)
