"""Ways down a loss: where a gradient comes from, whether it is right, and how many examples are looked at for a step.

A function here takes weights (..., d) to values (...), each value from its own weights only, so that one call may look
at many places. Letters: n examples, d weights, s steps.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import gradcheck

from lossopt.lab.optimizers import SGD, Number, Rule

Function = Callable[[Tensor], Tensor]


class MeanLoss(Protocol):
    """A loss of (d,) weights on n examples."""

    def __call__(self, weights: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss."""


def analytic_gradient(function: Function, weights: Tensor) -> Tensor:
    """(..., d) gradient by the chain rule (autograd): exact up to round-off, at the cost of about two evaluations."""
    weights = weights.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(function(weights).sum(), weights)
    return gradient


def numerical_gradient(function: Function, weights: Tensor, h: float, central: bool = True) -> Tensor:
    """Gradient from the definition of the derivative, one weight at a time.

        (f(w + h) - f(w - h)) / 2h     central: wrong by about h², and by round-off / h
        (f(w + h) - f(w)) / h          forward: wrong by about h, and by round-off / h

    Args:
        function: (..., d) to (...).
        weights: (..., d).
        h: the step, > 0, in the units of the weights.
        central: whether to step to both sides.

    Returns:
        (..., d), at the cost of 2 d evaluations (forward: d + 1).

    Raises:
        ValueError: `h` is not above 0.
    """
    if not h > 0:
        raise ValueError(f"h must be above 0, got {h}; for float64 and a central difference 1e-5 is a good start.")
    steps = h * torch.eye(weights.shape[-1], dtype=weights.dtype)  # row i moves weight i
    ahead = function(weights[..., None, :] + steps)
    if central:
        return (ahead - function(weights[..., None, :] - steps)) / (2 * h)
    return (ahead - function(weights)[..., None]) / h


def gradient_is_right(function: Function, weights: Tensor) -> bool:
    """Whether autograd's gradient agrees with the numerical one, to a part in a thousand (`torch.autograd.gradcheck`).

    Raises:
        ValueError: weights are not float64; in float32 round-off hides the answer.
    """
    if weights.dtype != torch.float64:
        raise ValueError(f"A gradient check needs float64 weights, got {weights.dtype}; call weights.double().")
    return gradcheck(function, (weights.detach().requires_grad_(),), raise_exception=False)


def descend(rule: Rule, gradient: Function, start: Tensor, steps: int) -> Tensor:
    """(steps + 1, ..., d) weights at the start and after each step of `rule` along `gradient`."""
    weights, memory = start, rule.begin(start)
    path = [weights]
    for _ in range(steps):
        weights, memory = rule.step(weights, gradient(weights), memory)
        path.append(weights)
    return torch.stack(path)


def random_search(function: Function, start: Tensor, scale: float, tries: int, generator: torch.Generator) -> Tensor:
    """Guess a place near the best one so far, and move there if it is lower: descent without a gradient.

    Args:
        function: (d,) to a number.
        start: (d,).
        scale: standard deviation of a guess, in the units of the weights.
        tries: guesses; each costs one evaluation.
        generator: of the guesses.

    Returns:
        (tries + 1, d) the best place so far; a guess that is no lower, or NaN, repeats it.
    """
    best, lowest = start, function(start)
    path = [best]
    for _ in range(tries):
        guess = best + scale * torch.randn(start.shape, generator=generator, dtype=start.dtype)
        value = function(guess)
        if value < lowest:
            best, lowest = guess, value
        path.append(best)
    return torch.stack(path)


def batch_descent(
    loss: MeanLoss,
    inputs: Tensor,
    targets: Tensor,
    start: Tensor,
    rule: Rule,
    batch_size: int,
    epochs: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Full-batch, mini-batch or stochastic descent: the three differ only in `batch_size` (n, a few, 1).

    Every epoch looks at each example once, in a new order; a last batch may be smaller.

    Args:
        loss: weights (d,), inputs and targets of a batch to their mean loss.
        inputs, targets: n rows each.
        start: (d,).
        rule: how the weights move along the gradient of a batch.
        batch_size: examples per step; n or more takes them all.
        epochs: passes over the examples.
        generator: of the orders.

    Returns:
        (s + 1, d) weights at the start and after each step, and (s + 1,) examples looked at by then.

    Raises:
        ValueError: no examples, inputs and targets of different length, or a batch size below 1.
    """
    if not len(inputs) or len(inputs) != len(targets):
        raise ValueError(f"Descent needs a target for each example, got {len(inputs)} and {len(targets)} rows.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
    weights, memory = start, rule.begin(start)
    path, seen = [weights], [0]
    for _ in range(epochs):
        for chosen in torch.randperm(len(inputs), generator=generator).split(batch_size):
            mean_loss = partial(loss, inputs=inputs[chosen], targets=targets[chosen])
            gradient = analytic_gradient(mean_loss, weights)
            weights, memory = rule.step(weights, gradient, memory)
            path.append(weights)
            seen.append(seen[-1] + len(chosen))
    return torch.stack(path), torch.tensor(seen)


def exponential_average(values: Tensor, beta: Number, corrected: bool = True) -> Tensor:
    """Exponentially weighted average of a series, which remembers about 1 / (1 - beta) values.

        a ← beta · a + (1 - beta) · value, from a = 0;  corrected: a / (1 - betaᵗ) at step t

    Without the correction the first averages lean towards 0, their invented start.

    Args:
        values: (..., n); NaN spoils everything after it.
        beta: in [0, 1), a number or a tensor that broadcasts against (...).
        corrected: whether the weights of the values add up to 1.

    Returns:
        (..., n).

    Raises:
        ValueError: `beta` is outside [0, 1).

    Source: Kingma & Ba 2015, section 3.
    """
    share = torch.as_tensor(beta, dtype=values.dtype)
    if not bool(((share >= 0) & (share < 1)).all()):
        raise ValueError(f"beta must be in [0, 1), got {beta}. With 1 the average never moves.")
    average, averages = torch.zeros_like(share * values[..., 0]), []
    for step, value in enumerate(values.unbind(-1), start=1):
        average = share * average + (1 - share) * value
        averages.append(average / (1 - share**step) if corrected else average)
    return torch.stack(averages, dim=-1)


def worked_example() -> Tensor:
    """(5,) weights of the example to do by hand: L(W) = W², rate 0.3, from 4: 4, 1.6, 0.64, 0.256, 0.1024.

    The gradient is 2 W, so each step leaves 1 - 0.3 · 2 = 0.4 of the weight.
    """
    start = torch.tensor([4.0], dtype=torch.float64)
    return descend(SGD(0.3), lambda w: analytic_gradient(lambda v: v.square().sum(-1), w), start, steps=4)[:, 0]
