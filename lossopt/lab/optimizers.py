"""The rules by which optimisers move weights, typed out to be read; training uses `torch.optim`, which gives the same.

A rule is a frozen set of numbers with two pure functions: `begin` gives what it remembers at the start, `step` gives
the weights after one step and what it remembers then. A rate, a momentum or a beta may also be a tensor that broadcasts
against the weights, so that one call moves along many paths at once.
Letters: w weights, g gradient of the loss at w, t step counted from 1; squares, roots and divisions are per weight.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

Number = float | Tensor
Memory = tuple[Tensor, ...]


class Rule(Protocol):
    """What every optimiser here is."""

    formula: ClassVar[str]
    source: ClassVar[str]

    def begin(self, weights: Tensor) -> Memory:
        """What is remembered before the first step of weights of any shape (...)."""

    def step(self, weights: Tensor, gradient: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """(...) weights after one step, and what is remembered then; nothing is changed in place."""


def _check(rule: object, rate: Number, **shares: Number) -> None:
    """Raise unless the rate is 0 or more and every share (momentum, beta, rho, alpha) is in [0, 1)."""
    name = type(rule).__name__
    if not bool((torch.as_tensor(rate) >= 0).all()):
        raise ValueError(f"{name} needs a rate of 0 or more, got {rate}. A negative rate climbs.")
    for key, share in shares.items():
        given = torch.as_tensor(share)
        if not bool(((given >= 0) & (given < 1)).all()):
            raise ValueError(
                f"{name} needs {key} in [0, 1), got {share}. At 1 or more it never forgets, and runs away."
            )


@dataclass(frozen=True)
class SGD:
    """Straight downhill; "stochastic" is only where the gradient comes from (`lossopt.lab.descent`).

    Source: Cauchy 1847; Robbins & Monro 1951, for gradients with noise.
    """

    rate: Number
    formula: ClassVar[str] = "w ← w - rate · g"
    source: ClassVar[str] = "Cauchy 1847; Robbins & Monro 1951"

    def __post_init__(self) -> None:
        _check(self, self.rate)

    def begin(self, weights: Tensor) -> Memory:
        """Nothing."""
        return ()

    def step(self, weights: Tensor, gradient: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """(...) weights, and nothing."""
        return weights - self.rate * gradient, ()


@dataclass(frozen=True)
class Momentum:
    """A heavy ball: it keeps its velocity, gains speed along a valley and overshoots.

    torch departs from the papers: its velocity is a sum of gradients, and the rate is multiplied in at the step. Polyak
    and Sutskever put the rate inside the velocity: the same path while the rate is constant, another once it is
    scheduled. Nor is it an average: there is no factor 1 - momentum, so a constant gradient ends in steps of
    rate · g / (1 - momentum).

    Source: Polyak 1964; Sutskever et al. 2013, ICML, eq. 1-2.
    """

    rate: Number
    momentum: Number = 0.9
    formula: ClassVar[str] = "v ← momentum · v + g;  w ← w - rate · v"
    source: ClassVar[str] = "Polyak 1964; Sutskever et al. 2013, eq. 1-2, in the form of torch"

    def __post_init__(self) -> None:
        _check(self, self.rate, momentum=self.momentum)

    def begin(self, weights: Tensor) -> Memory:
        """No velocity."""
        return (torch.zeros_like(weights),)

    def step(self, weights: Tensor, gradient: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """(...) weights, and the velocity."""
        (velocity,) = memory
        velocity = self.momentum * velocity + gradient
        return weights - self.rate * velocity, (velocity,)


@dataclass(frozen=True)
class Nesterov:
    """Momentum that looks ahead: it brakes before the bottom, where plain momentum brakes behind it.

    Nesterov and Sutskever take the gradient at w - rate · momentum · v. torch takes it at w, because it writes down
    that point instead of the ball's own place: the weights it holds are those of the paper moved one look ahead.

    Source: Nesterov 1983; Sutskever et al. 2013, ICML, eq. 3-4; the form with the gradient at w: Bengio,
    Boulanger-Lewandowski & Pascanu 2013, ICASSP, section 3.5.
    """

    rate: Number
    momentum: Number = 0.9
    formula: ClassVar[str] = "v ← momentum · v + g;  w ← w - rate · (g + momentum · v)"
    source: ClassVar[str] = "Nesterov 1983; Sutskever et al. 2013, eq. 3-4, in the form of torch"

    def __post_init__(self) -> None:
        _check(self, self.rate, momentum=self.momentum)

    def begin(self, weights: Tensor) -> Memory:
        """No velocity."""
        return (torch.zeros_like(weights),)

    def step(self, weights: Tensor, gradient: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """(...) weights, and the velocity."""
        (velocity,) = memory
        velocity = self.momentum * velocity + gradient
        return weights - self.rate * (gradient + self.momentum * velocity), (velocity,)


@dataclass(frozen=True)
class Adagrad:
    """Each weight has its own rate, which falls with all the squared gradients it has ever seen, and never rises.

    eps stands outside the root, in the paper (its delta) as in torch; many texts print it inside. The first step of
    every weight is `rate` long, whatever its gradient, and 0 where the gradient is 0.

    Source: Duchi, Hazan & Singer 2011, JMLR 12, section 3, without bounds or penalty on the weights.
    """

    rate: Number
    eps: float = 1e-10
    formula: ClassVar[str] = "s ← s + g²;  w ← w - rate · g / (√s + eps)"
    source: ClassVar[str] = "Duchi, Hazan & Singer 2011, diagonal matrices"

    def __post_init__(self) -> None:
        _check(self, self.rate)

    def begin(self, weights: Tensor) -> Memory:
        """No squares."""
        return (torch.zeros_like(weights),)

    def step(self, weights: Tensor, gradient: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """(...) weights, and the sum of squares."""
        (squares,) = memory
        squares = squares + gradient**2
        return weights - self.rate * gradient / (squares.sqrt() + self.eps), (squares,)


@dataclass(frozen=True)
class FullMatrixAdagrad:
    """Adagrad with a rate per direction rather than per weight: a valley may lie slantwise. `torch.optim` lacks it.

    It needs the root of a d x d matrix at each step: out of reach for a network of millions of weights.
    Weights are (..., d): the last axis is one weight vector, the others are paths of their own. A direction in which no
    gradient has yet pointed, up to round-off of the matrix, is left alone (the pseudo-inverse of the paper). A gradient
    whose square is not finite ends its path: NaN from there on, in every weight.

    Source: Duchi, Hazan & Singer 2011, JMLR 12, section 4, without bounds or penalty on the weights.
    """

    rate: Number
    eps: float = 1e-10
    formula: ClassVar[str] = "G ← G + g gᵀ;  w ← w - rate · (√G + eps · I)⁻¹ g,  √ of the matrix"
    source: ClassVar[str] = "Duchi, Hazan & Singer 2011, full matrices"

    def __post_init__(self) -> None:
        _check(self, self.rate)

    def begin(self, weights: Tensor) -> Memory:
        """(..., d, d) zeros."""
        return (weights.new_zeros(weights.shape + weights.shape[-1:]),)

    def step(self, weights: Tensor, gradient: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """(..., d) weights, and the (..., d, d) sum of outer products."""
        (outer,) = memory
        outer = outer + gradient[..., :, None] * gradient[..., None, :]
        finite = outer.isfinite().all(dim=-1).all(dim=-1)[..., None]
        sizes, directions = torch.linalg.eigh(torch.where(finite[..., None], outer, 0))  # columns of `directions`
        smallest = sizes[..., -1:] * sizes.shape[-1] * torch.finfo(sizes.dtype).eps
        inverse = torch.where(sizes > smallest, 1 / (sizes.clamp_min(0).sqrt() + self.eps), 0)
        along = inverse[..., None] * (directions.mT @ gradient[..., None])
        step = torch.where(finite, (directions @ along)[..., 0], torch.nan)
        return weights - self.rate * step, (outer,)


@dataclass(frozen=True)
class Adadelta:
    """Steps are as long as the steps before them, so that no rate is needed: each is in the units of its weight.

    The paper has no rate; torch multiplies one in, and its default of 1 is the paper. eps stands inside both roots, in
    the paper as in torch; it alone sets the length of the first step, √(eps / (1 - rho)), which grows only slowly.

    Source: Zeiler 2012, arXiv 1212.5701, algorithm 1.
    """

    rate: Number = 1.0
    rho: Number = 0.9
    eps: float = 1e-6
    formula: ClassVar[str] = (
        "s ← rho · s + (1 - rho) g²;  d = g · √(u + eps) / √(s + eps);  u ← rho · u + (1 - rho) d²;  w ← w - rate · d"
    )
    source: ClassVar[str] = "Zeiler 2012, algorithm 1"

    def __post_init__(self) -> None:
        _check(self, self.rate, rho=self.rho)

    def begin(self, weights: Tensor) -> Memory:
        """No squares, of gradients and of steps."""
        return (torch.zeros_like(weights), torch.zeros_like(weights))

    def step(self, weights: Tensor, gradient: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """(...) weights, and the average squares of gradients and of steps."""
        squares, steps = memory
        squares = self.rho * squares + (1 - self.rho) * gradient**2
        delta = gradient * (steps + self.eps).sqrt() / (squares + self.eps).sqrt()
        steps = self.rho * steps + (1 - self.rho) * delta**2
        return weights - self.rate * delta, (squares, steps)


@dataclass(frozen=True)
class RMSProp:
    """Adagrad that forgets: the gradient is divided by its recent size, so steps do not dry up, and rarely settle.

    eps stands outside the root, as in torch; other libraries put it inside. The lecture has alpha = 0.9 and no eps;
    torch's default is 0.99. The average starts at 0 without a correction: the first step is rate / √(1 - alpha) long.

    Source: Tieleman & Hinton 2012, lecture 6e of "Neural networks for machine learning".
    """

    rate: Number
    alpha: Number = 0.99
    eps: float = 1e-8
    formula: ClassVar[str] = "s ← alpha · s + (1 - alpha) g²;  w ← w - rate · g / (√s + eps)"
    source: ClassVar[str] = "Tieleman & Hinton 2012, lecture 6e"

    def __post_init__(self) -> None:
        _check(self, self.rate, alpha=self.alpha)

    def begin(self, weights: Tensor) -> Memory:
        """No squares."""
        return (torch.zeros_like(weights),)

    def step(self, weights: Tensor, gradient: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """(...) weights, and the average square of gradients."""
        (squares,) = memory
        squares = self.alpha * squares + (1 - self.alpha) * gradient**2
        return weights - self.rate * gradient / (squares.sqrt() + self.eps), (squares,)


@dataclass(frozen=True)
class Adam:
    """RMSProp with momentum, both averages corrected for having started at 0.

    eps is added to the root after its correction, as in algorithm 1 of the paper and in torch; the paper's faster form,
    at the end of section 2, adds an eps of another size before it. Without the correction (`corrected=False`, which
    torch lacks) the first step is (1 - beta1) / √(1 - beta2) rates long, 3.2 with the usual numbers, instead of 1.

    Source: Kingma & Ba 2015, ICLR, algorithm 1; the correction: section 3.
    """

    rate: Number
    beta1: Number = 0.9
    beta2: Number = 0.999
    eps: float = 1e-8
    corrected: bool = True
    formula: ClassVar[str] = (
        "m ← beta1 · m + (1 - beta1) g;  s ← beta2 · s + (1 - beta2) g²;  "
        "w ← w - rate · m / (1 - beta1ᵗ) / (√(s / (1 - beta2ᵗ)) + eps)"
    )
    source: ClassVar[str] = "Kingma & Ba 2015, algorithm 1"

    def __post_init__(self) -> None:
        _check(self, self.rate, beta1=self.beta1, beta2=self.beta2)

    def begin(self, weights: Tensor) -> Memory:
        """No average of gradients, none of squares, and 0 steps."""
        return (torch.zeros_like(weights), torch.zeros_like(weights), weights.new_zeros(()))

    def step(self, weights: Tensor, gradient: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """(...) weights; the averages of gradients and of squares, and the number of steps."""
        mean, squares, steps = memory
        steps = steps + 1
        mean = self.beta1 * mean + (1 - self.beta1) * gradient
        squares = self.beta2 * squares + (1 - self.beta2) * gradient**2
        fair_mean, fair_squares = mean, squares
        if self.corrected:
            fair_mean, fair_squares = mean / (1 - self.beta1**steps), squares / (1 - self.beta2**steps)
        return weights - self.rate * fair_mean / (fair_squares.sqrt() + self.eps), (mean, squares, steps)
