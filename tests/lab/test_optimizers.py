"""The textbook rules give what torch.optim gives, step by step; what torch lacks is compared with its definition."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch

from lossopt.lab.optimizers import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    FullMatrixAdagrad,
    Momentum,
    Nesterov,
    RMSProp,
)

RULES_AND_TORCH = [
    *((partial(SGD, r), partial(torch.optim.SGD, lr=r)) for r in (0.0, 1e-3, 0.7)),
    *(
        (partial(Momentum, r, m), partial(torch.optim.SGD, lr=r, momentum=m))
        for r, m in itertools.product((1e-3, 0.1), (0.0, 0.5, 0.99))
    ),
    *(
        (partial(Nesterov, r, m), partial(torch.optim.SGD, lr=r, momentum=m, nesterov=True))
        for r, m in itertools.product((1e-3, 0.1), (0.3, 0.99))
    ),
    (partial(Adagrad, 0.3), partial(torch.optim.Adagrad, lr=0.3)),
    (partial(Adagrad, 1e-3, 0.1), partial(torch.optim.Adagrad, lr=1e-3, eps=0.1)),
    (Adadelta, torch.optim.Adadelta),
    (partial(Adadelta, 7.0, 0.5, 1e-2), partial(torch.optim.Adadelta, lr=7.0, rho=0.5, eps=1e-2)),
    (partial(RMSProp, 0.01), partial(torch.optim.RMSprop, lr=0.01)),
    (partial(RMSProp, 0.3, 0.5, 0.1), partial(torch.optim.RMSprop, lr=0.3, alpha=0.5, eps=0.1)),
    (partial(Adam, 1e-3), partial(torch.optim.Adam, lr=1e-3)),
    (partial(Adam, 0.5, 0.0, 0.9, 0.1), partial(torch.optim.Adam, lr=0.5, betas=(0.0, 0.9), eps=0.1)),
    (partial(Adam, 0.1, 0.99, 0.5), partial(torch.optim.Adam, lr=0.1, betas=(0.99, 0.5))),
]
NAMES = [f"{i}-{getattr(rule, 'func', rule).__name__}" for i, (rule, _) in enumerate(RULES_AND_TORCH)]


def rosenbrock_gradient(w):
    x, y = w[..., 0], w[..., 1]
    return torch.stack([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)], dim=-1)


def ours(rule, gradient_at, start, steps):
    weights, memory = start, rule.begin(start)
    path = []
    for step in range(steps):
        weights, memory = rule.step(weights, gradient_at(step, weights), memory)
        path.append(weights)
    return torch.stack(path)


def torchs(optimizer, gradient_at, start, steps):
    weights = torch.nn.Parameter(start.clone())
    stepper = optimizer([weights])
    path = []
    for step in range(steps):
        weights.grad = gradient_at(step, weights.detach()).clone()
        stepper.step()
        path.append(weights.detach().clone())
    return torch.stack(path)


def untidy_gradients(shape, steps=60):
    """Gradients of all sizes, with zeros, whole steps of zeros, and sign changes."""
    generator = torch.Generator().manual_seed(len(shape))
    sizes = 10.0 ** torch.randint(-6, 7, (steps, *shape), generator=generator)
    given = torch.randn((steps, *shape), generator=generator, dtype=torch.float64) * sizes
    given[torch.rand((steps, *shape), generator=generator) < 0.3] = 0
    given[:2], given[20:25] = 0, 0
    return given


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 2, 4)])
@pytest.mark.parametrize(("rule", "optimizer"), RULES_AND_TORCH, ids=NAMES)
def test_a_rule_is_torchs_step_by_step_on_untidy_gradients(rule, optimizer, shape):
    gradients = untidy_gradients(shape)
    start = torch.full(shape, 1.5, dtype=torch.float64)
    given, expected = (
        walk(how, lambda step, w: gradients[step], start, 60) for walk, how in ((ours, rule()), (torchs, optimizer))
    )
    torch.testing.assert_close(given, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("rule", "optimizer"), RULES_AND_TORCH, ids=NAMES)
def test_a_rule_is_torchs_where_the_gradient_follows_the_weights(rule, optimizer):
    start = torch.tensor([[-1.2, 1.0], [0.3, -0.1], [1.0, 1.0]], dtype=torch.float64)

    def gradient(step, w):
        return rosenbrock_gradient(w) / 1000

    torch.testing.assert_close(
        ours(rule(), gradient, start, 80), torchs(optimizer, gradient, start, 80), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("size", [1e150, 1e200, math.inf, math.nan])
@pytest.mark.parametrize(("rule", "optimizer"), RULES_AND_TORCH, ids=NAMES)
def test_a_rule_is_torchs_at_huge_and_broken_gradients(rule, optimizer, size):
    if rule().__class__ is Momentum and rule().momentum == 0 and math.isinf(size):
        return  # torch keeps no velocity then; here 0 times infinity is NaN
    gradients = untidy_gradients((4,))
    gradients[30, 1], gradients[40, 2] = size, -size
    start = torch.zeros(4, dtype=torch.float64)
    given, expected = (
        walk(how, lambda step, w: gradients[step], start, 60) for walk, how in ((ours, rule()), (torchs, optimizer))
    )
    torch.testing.assert_close(given, expected, rtol=1e-11, atol=1e-11, equal_nan=True)


ALL = [
    *(SGD, Momentum, Nesterov, Adagrad, FullMatrixAdagrad, Adadelta, RMSProp, Adam),
    partial(Adam, corrected=False),
]


@pytest.mark.parametrize("rule", ALL)
def test_many_rates_at_once_are_each_alone_and_nothing_given_is_changed(rule):
    rates = torch.tensor([1e-3, 0.05, 0.4], dtype=torch.float64)
    start = torch.tensor([0.7, -1.1], dtype=torch.float64)
    gradients = untidy_gradients((2,))
    before = gradients.clone()
    together = ours(rule(rates[:, None]), lambda step, w: gradients[step].expand(3, 2), start.expand(3, 2), 60)
    for row, rate in enumerate(rates.tolist()):
        alone = ours(rule(rate), lambda step, w: gradients[step], start, 60)
        torch.testing.assert_close(together[:, row], alone, rtol=1e-12, atol=1e-12)
    assert torch.equal(gradients, before) and start.tolist() == [0.7, -1.1]
    one = rule(0.1)
    weights, memory = one.step(start, gradients[5], one.begin(start))
    kept = [part.clone() for part in memory]
    one.step(weights, gradients[6], memory)
    assert all(torch.equal(a, b) for a, b in zip(kept, memory, strict=True))


@pytest.mark.parametrize(("rule", "name"), [(Momentum, "momentum"), (Nesterov, "momentum"), (Adam, "beta1")])
def test_many_momenta_at_once_are_each_alone(rule, name):
    momenta = torch.tensor([0.0, 0.5, 0.99], dtype=torch.float64)
    start, gradients = torch.zeros(2, dtype=torch.float64), untidy_gradients((2,))
    together = ours(rule(0.1, momenta[:, None]), lambda step, w: gradients[step].expand(3, 2), start.expand(3, 2), 60)
    for row, momentum in enumerate(momenta.tolist()):
        alone = ours(rule(0.1, **{name: momentum}), lambda step, w: gradients[step], start, 60)
        torch.testing.assert_close(together[:, row], alone, rtol=1e-12, atol=1e-12)


def test_momentum_is_the_papers_while_the_rate_is_constant():
    """Sutskever et al. 2013, eq. 1-2: v = mu v - rate g(w); w = w + v."""
    weights, velocity, path = torch.tensor([-1.2, 1.0], dtype=torch.float64), torch.zeros(2), []
    for _ in range(50):
        velocity = 0.9 * velocity - 1e-4 * rosenbrock_gradient(weights)
        weights = weights + velocity
        path.append(weights)
    given = ours(
        Momentum(1e-4), lambda step, w: rosenbrock_gradient(w), torch.tensor([-1.2, 1.0], dtype=torch.float64), 50
    )
    torch.testing.assert_close(given, torch.stack(path), rtol=1e-10, atol=1e-12)


def test_nesterov_holds_the_papers_weights_one_look_ahead():
    """Sutskever et al. 2013, eq. 3-4: v = mu v - rate g(w + mu v); w = w + v. Ours are its w + mu v."""
    weights, velocity, ahead = torch.tensor([-1.2, 1.0], dtype=torch.float64), torch.zeros(2), []
    for _ in range(50):
        velocity = 0.9 * velocity - 1e-4 * rosenbrock_gradient(weights + 0.9 * velocity)
        weights = weights + velocity
        ahead.append(weights + 0.9 * velocity)
    given = ours(
        Nesterov(1e-4), lambda step, w: rosenbrock_gradient(w), torch.tensor([-1.2, 1.0], dtype=torch.float64), 50
    )
    torch.testing.assert_close(given, torch.stack(ahead), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("corrected", [True, False])
def test_adam_is_its_definition_written_as_sums(corrected):
    gradients = untidy_gradients((3,)).tolist()
    rate, beta1, beta2, eps = 0.2, 0.8, 0.95, 1e-3
    weights, path = [0.4, 0.4, 0.4], []
    for t in range(1, 61):
        for i in range(3):
            mean = sum((1 - beta1) * beta1 ** (t - k) * gradients[k - 1][i] for k in range(1, t + 1))
            squares = sum((1 - beta2) * beta2 ** (t - k) * gradients[k - 1][i] ** 2 for k in range(1, t + 1))
            if corrected:
                mean, squares = mean / (1 - beta1**t), squares / (1 - beta2**t)
            weights[i] -= rate * mean / (math.sqrt(squares) + eps)
        path.append(list(weights))
    rule = Adam(rate, beta1, beta2, eps, corrected=corrected)
    start = torch.full((3,), 0.4, dtype=torch.float64)
    given = ours(rule, lambda step, w: torch.tensor(gradients[step], dtype=torch.float64), start, 60)
    np.testing.assert_allclose(given, path, rtol=1e-10)


@pytest.mark.parametrize(
    ("rule", "length"),
    [
        (Adagrad(0.3), 0.3),
        (FullMatrixAdagrad(0.3), 0.3),
        (RMSProp(0.3, alpha=0.9), 0.3 / math.sqrt(0.1)),
        (Adadelta(), math.sqrt(1e-6 / 0.1)),
        (Adam(0.3), 0.3),
        (Adam(0.3, corrected=False), 0.3 * 0.1 / math.sqrt(0.001)),
    ],
)
def test_the_first_step_is_as_long_as_the_docstring_says_whatever_the_gradient(rule, length):
    for gradient in (1e3, 5e6, -7.0):
        start = torch.zeros(1, dtype=torch.float64)
        weights, _ = rule.step(start, torch.tensor([gradient], dtype=torch.float64), rule.begin(start))
        assert weights.item() == pytest.approx(-math.copysign(length, gradient), rel=1e-4)
    still, _ = rule.step(start, torch.zeros(1, dtype=torch.float64), rule.begin(start))
    assert still.item() == 0


def spread_gradients(shape, steps=60):
    generator = torch.Generator().manual_seed(3)
    return torch.randn((steps, *shape), generator=generator, dtype=torch.float64) * torch.logspace(1, -1, shape[-1])


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("eps", [0.0, 1e-10, 0.3])
def test_full_matrix_adagrad_is_its_definition(size, eps):
    """Duchi et al. 2011: the matrix root by scipy's Schur method, and a solve, once the matrix has full rank."""
    gradients = spread_gradients((size,))
    rule = FullMatrixAdagrad(0.2, eps)
    weights = torch.zeros(size, dtype=torch.float64)
    memory, outer = rule.begin(weights), np.zeros((size, size))
    for step, gradient in enumerate(gradients):
        moved, memory = rule.step(weights, gradient, memory)
        outer += np.outer(gradient, gradient)
        if step >= size + 2:
            root = scipy.linalg.sqrtm(outer).real + eps * np.eye(size)
            np.testing.assert_allclose(moved - weights, -0.2 * np.linalg.solve(root, gradient), rtol=1e-6, atol=1e-9)
        weights = moved


def test_full_matrix_adagrad_of_few_gradients_uses_the_pseudo_inverse():
    """The first step is along the gradient, `rate` long; a second stays in the plane of both (root by their SVD)."""
    rule = FullMatrixAdagrad(0.5, eps=1e-10)
    start = torch.zeros(6, dtype=torch.float64)
    one, two = (torch.tensor(g, dtype=torch.float64) for g in ([1e6, -2e6, 0, 3e6, 1e5, 7], [0, 1e5, 2e3, 0, 3e6, -4]))
    weights, memory = rule.step(start, one, rule.begin(start))
    torch.testing.assert_close(weights, -0.5 * one / one.norm(), rtol=1e-9, atol=1e-12)
    moved, _ = rule.step(weights, two, memory)
    plane = torch.stack([one, two], dim=1)
    axes, lengths, _ = torch.linalg.svd(plane, full_matrices=False)  # √(plane planeᵀ) = axes diag(lengths) axesᵀ
    torch.testing.assert_close(moved - weights, -0.5 * axes @ (axes.T @ two / lengths), rtol=1e-6, atol=1e-8)


def test_full_matrix_adagrad_is_the_diagonal_one_where_gradients_lie_along_the_axes():
    gradients = torch.zeros(60, 4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    gradients[torch.arange(60), torch.arange(60) % 3] = torch.randn(60, generator=generator, dtype=torch.float64)
    start = torch.ones(4, dtype=torch.float64)
    paths = [ours(rule(0.3), lambda step, w: gradients[step], start, 60) for rule in (FullMatrixAdagrad, Adagrad)]
    torch.testing.assert_close(*paths, rtol=1e-9, atol=1e-9)
    assert (paths[0][:, 3] == 1).all()  # no gradient ever pointed there


def test_full_matrix_adagrad_turns_with_its_problem_and_the_diagonal_one_does_not():
    turn = torch.from_numpy(scipy.linalg.expm(np.array([[0, -0.7, 0.2], [0.7, 0, 0.4], [-0.2, -0.4, 0]])))
    gradients = spread_gradients((3,))
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def both(rule):
        plain = ours(rule(0.3), lambda step, w: gradients[step], start, 60)
        turned = ours(rule(0.3), lambda step, w: turn @ gradients[step], turn @ start, 60)
        return (plain @ turn.T - turned).abs().max()

    assert both(FullMatrixAdagrad) < 1e-8
    assert both(Adagrad) > 0.1


def test_full_matrix_adagrad_takes_many_paths_each_alone():
    gradients = spread_gradients((2, 3, 4))
    start = torch.zeros(2, 3, 4, dtype=torch.float64)
    together = ours(FullMatrixAdagrad(0.3), lambda step, w: gradients[step], start, 60)
    for i, j in itertools.product(range(2), range(3)):
        alone = ours(FullMatrixAdagrad(0.3), lambda step, w, i=i, j=j: gradients[step, i, j], start[i, j], 60)
        torch.testing.assert_close(together[:, i, j], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("broken", [1e200, math.inf, math.nan])
def test_a_gradient_without_a_finite_square_ends_its_own_path_of_full_matrix_adagrad(broken, size):
    gradients = spread_gradients((2, size))
    gradients[30, 1, 0] = broken
    path = ours(FullMatrixAdagrad(0.3), lambda step, w: gradients[step], torch.zeros(2, size).double(), 60)
    assert path[:, 0].isfinite().all() and path[:30, 1].isfinite().all() and path[30:, 1].isnan().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((partial(rule, -0.1), "needs a rate of 0 or more, got -0.1") for rule in ALL),
        (partial(SGD, math.nan), "got nan"),
        (partial(SGD, torch.tensor([0.1, -0.1])), "SGD needs a rate of 0 or more"),
        (partial(Momentum, 0.1, 1.0), r"Momentum needs momentum in \[0, 1\), got 1.0"),
        (partial(Nesterov, 0.1, -0.1), r"Nesterov needs momentum in \[0, 1\), got -0.1"),
        (partial(Adadelta, 0.1, 1.5), "Adadelta needs rho"),
        (partial(RMSProp, 0.1, 1.0), "RMSProp needs alpha"),
        (partial(Adam, 0.1, 1.0), "Adam needs beta1"),
        (partial(Adam, 0.1, 0.9, 1.0), "Adam needs beta2"),
    ],
)
def test_numbers_that_run_away_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
