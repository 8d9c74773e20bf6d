"""Where optimisers go, for every place of their sliders: on drawn surfaces, and over a loss of real examples."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

from lossopt.lab.descent import batch_descent, descend, random_search
from lossopt.lab.optimizers import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    FullMatrixAdagrad,
    Momentum,
    Nesterov,
    RMSProp,
    Rule,
)
from lossopt.lab.pieces import Descent, Paths, Slider
from lossopt.lab.surfaces import GROUNDS, Ground

MOMENTA = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
STEPS = 80
SIGHT = 3.0  # times the drawn range: a path that has left this is not followed


class Walker(NamedTuple):
    """An optimiser and its sliders.

    rule: rates and momenta, tensors that broadcast against (rates, momenta, 2) weights, to the rule. decade: the lowest
    rate is 10 to this. rates: where the rate's slider starts, surface by surface. momentum: name of what the second
    slider turns, or None.
    """

    name: str
    rule: Callable[[Tensor, Tensor], Rule]
    decade: int
    rates: dict[str, float]
    momentum: str | None
    formula: str
    says: str
    source: str
    where: str


WALKERS = (
    Walker(
        name="gradient descent",
        rule=lambda rate, _: SGD(rate),
        decade=-4,
        rates={"bowl": 0.1, "ravine": 0.1, "saddle": 0.05, "Rosenbrock": 0.002, "Beale": 0.01},
        momentum=None,
        formula=SGD.formula,
        says="Zigzags where one direction is much steeper than another, and stops where the slope does.",
        source=SGD.source,
        where="torch.optim.SGD",
    ),
    Walker(
        name="momentum",
        rule=Momentum,
        decade=-4,
        rates={"bowl": 0.05, "ravine": 0.02, "saddle": 0.02, "Rosenbrock": 0.001, "Beale": 0.005},
        momentum="momentum",
        formula=Momentum.formula,
        says="A heavy ball: it gains speed along a valley, and overshoots.",
        source=Momentum.source,
        where="torch.optim.SGD",
    ),
    Walker(
        name="Nesterov",
        rule=Nesterov,
        decade=-4,
        rates={"bowl": 0.05, "ravine": 0.02, "saddle": 0.02, "Rosenbrock": 0.001, "Beale": 0.005},
        momentum="momentum",
        formula=Nesterov.formula,
        says="Momentum that looks ahead: it brakes earlier, and swings less.",
        source=Nesterov.source,
        where="torch.optim.SGD",
    ),
    Walker(
        name="Adagrad",
        rule=lambda rate, _: Adagrad(rate),
        decade=-2,
        rates={"bowl": 0.5, "ravine": 0.2, "saddle": 0.2, "Rosenbrock": 1.0, "Beale": 0.5},
        momentum=None,
        formula=Adagrad.formula,
        says="Each weight has its own rate, so a steep direction does not slow a flat one; but rates only ever fall.",
        source=Adagrad.source,
        where="torch.optim.Adagrad",
    ),
    Walker(
        name="Adagrad, full matrix",
        rule=lambda rate, _: FullMatrixAdagrad(rate),
        decade=-2,
        rates={"bowl": 0.5, "ravine": 0.2, "saddle": 0.2, "Rosenbrock": 1.0, "Beale": 0.5},
        momentum=None,
        formula=FullMatrixAdagrad.formula,
        says="A rate per direction, not per weight: the valley may lie slantwise. Too costly for a network.",
        source=FullMatrixAdagrad.source,
        where="lossopt.lab.optimizers.FullMatrixAdagrad",
    ),
    Walker(
        name="Adadelta",
        rule=lambda rate, _: Adadelta(rate),
        decade=-2,
        rates={"bowl": 10.0, "ravine": 10.0, "saddle": 5.0, "Rosenbrock": 20.0, "Beale": 20.0},
        momentum=None,
        formula=Adadelta.formula,
        says="Steps as long as the steps before them: tiny at first, slow to grow; at the paper's rate of 1 it creeps.",
        source=Adadelta.source,
        where="torch.optim.Adadelta",
    ),
    Walker(
        name="RMSProp",
        rule=lambda rate, _: RMSProp(rate, alpha=0.9),
        decade=-3,
        rates={"bowl": 0.05, "ravine": 0.05, "saddle": 0.05, "Rosenbrock": 0.2, "Beale": 0.05},
        momentum=None,
        formula=RMSProp.formula,
        says="Adagrad that forgets: steps of about the rate, whatever the slope; it rarely settles.",
        source=RMSProp.source,
        where="torch.optim.RMSprop",
    ),
    Walker(
        name="Adam",
        rule=lambda rate, beta1: Adam(rate, beta1),
        decade=-3,
        rates={"bowl": 0.1, "ravine": 0.1, "saddle": 0.1, "Rosenbrock": 0.5, "Beale": 0.2},
        momentum="beta1",
        formula=Adam.formula,
        says="Momentum with a rate per weight: it starts with steps of exactly the rate, and overshoots a little.",
        source=Adam.source,
        where="torch.optim.Adam",
    ),
    Walker(
        name="Adam, not corrected",
        rule=lambda rate, beta1: Adam(rate, beta1, corrected=False),
        decade=-3,
        rates={"bowl": 0.1, "ravine": 0.1, "saddle": 0.1, "Rosenbrock": 0.1, "Beale": 0.1},
        momentum="beta1",
        formula="m ← beta1 · m + (1 - beta1) g;  s ← beta2 · s + (1 - beta2) g²;  w ← w - rate · m / (√s + eps)",
        says="Averages that start at 0 are too small, that of the squares most: the first steps are far too long.",
        source=Adam.source,
        where="lossopt.lab.optimizers.Adam",
    ),
)


def rates_from(decade: int) -> list[float]:
    """13 rates over four decades, 1 2 5 10 and so on, from 10 to the `decade`."""
    return [float(f"{digit}e{decade + ten}") for ten in range(4) for digit in (1, 2, 5)] + [float(f"1e{decade + 4}")]


def while_in_sight(points: Tensor, ground: Ground) -> Tensor:
    """(..., s, 2) points of which those after a path has left three times the drawn range are NaN.

    The first point outside is moved back along its step to the edge, so that the line leaves the picture where it did.
    """
    ends = torch.tensor([ground.x, ground.y], dtype=points.dtype)  # (2 weights, 2 ends)
    centre, reach = ends.mean(dim=1), SIGHT * (ends[:, 1] - ends[:, 0]) / 2
    outside = ~((points - centre).abs() <= reach).all(dim=-1)  # NaN is outside
    gone = outside.long().cummax(dim=-1).values.bool()
    followed = ~torch.nn.functional.pad(gone, (1, 0))[..., :-1]  # up to and with the first point outside
    before = torch.cat([points[..., :1, :], points[..., :-1, :]], dim=-2)
    step = points - before
    share = (step.sign() * reach + centre - before) / step  # of the step until each edge
    share = torch.where(step == 0, torch.inf, share).amin(dim=-1, keepdim=True)
    points = torch.where(gone[..., None], before + share * step, points)
    return torch.where(followed[..., None], points, torch.nan)


def _paths(walker: Walker, ground: Ground) -> Paths:
    rates = rates_from(walker.decade)
    momenta = MOMENTA if walker.momentum else MOMENTA[:1]
    rate, momentum = torch.tensor(rates, dtype=torch.float64), torch.tensor(momenta, dtype=torch.float64)
    start = torch.tensor(ground.start, dtype=torch.float64).expand(len(rates), len(momenta), 2)
    rule = walker.rule(rate[:, None, None], momentum[:, None])
    points = while_in_sight(descend(rule, ground.gradient, start, STEPS).movedim(0, -2), ground)
    return Paths(
        optimizer=walker.name,
        surface=ground.name,
        rate=Slider("rate", rates, rates.index(walker.rates[ground.name])),
        momentum=Slider(walker.momentum, MOMENTA, MOMENTA.index(0.9)) if walker.momentum else None,
        points=points.numpy(),
        height=ground.height(points).numpy(),
        formula=walker.formula,
        says=walker.says,
        source=walker.source,
        where=walker.where,
    )


def optimizer_paths() -> list[Paths]:
    """Every optimiser on every surface, 13 rates x 7 momenta x 80 steps, walker by walker."""
    return [_paths(walker, ground) for walker in WALKERS for ground in GROUNDS]


class Way(NamedTuple):
    """Examples per step, and the rate of 1 2 5 10 ... with the lowest mean loss over the five epochs (four seeds)."""

    name: str
    batch_size: int
    rate: float


EPOCHS = 5
WAYS = (
    Way("full batch, 442 examples, rate 0.5", 442, 0.5),
    Way("mini-batch, 32 examples, rate 0.2", 32, 0.2),
    Way("one example, rate 0.01", 1, 0.01),
)
GUESS = 0.5  # standard deviation of random search, the best of 0.05 0.1 0.2 0.3 0.5 1 after four guesses (40 seeds)


def diabetes() -> tuple[Tensor, Tensor]:
    """(442, 2) body mass and log triglycerides of patients, and (442,) how far their diabetes went in a year.

    All standardised, so that no intercept is needed; of all pairs in the table these two explain most (R² 0.46).

    Source: Efron, Hastie, Johnstone & Tibshirani 2004, "Least angle regression"; comes with scikit-learn.
    """
    inputs, targets = (torch.from_numpy(values) for values in load_diabetes(return_X_y=True, scaled=False))
    inputs = inputs[:, [2, 8]].double()
    return (
        (inputs - inputs.mean(dim=0)) / inputs.std(dim=0, correction=0),
        (targets - targets.mean()) / targets.std(correction=0),
    )


def squared_error(weights: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """(...) mean squared error of linear regression with (..., d) weights on (n, d) inputs and (n,) targets."""
    return (weights @ inputs.T - targets).square().mean(dim=-1)


def batch_against_stochastic(seed: int = 0) -> Descent:
    """Full batch, mini-batch, one example and random search, all having looked at each example five times."""
    inputs, targets = diabetes()
    best = torch.linalg.lstsq(inputs, targets[:, None]).solution[:, 0].tolist()
    ground = Ground(
        name="linear regression on 442 patients",
        says="How far diabetes goes in a year, from body mass and triglycerides: one bowl, looked at in four ways.",
        formula="mean of (w₁ · body mass + w₂ · log triglycerides - progression)², all standardised",
        height=lambda weights: squared_error(weights, inputs, targets),
        x=(-0.9, 1.3),
        y=(-0.5, 1.5),
        start=(-0.6, 1.2),
        minimum=(best[0], best[1]),
    )
    start = torch.tensor(ground.start, dtype=torch.float64)
    paths, seen = {}, {}
    for way in WAYS:
        generator = torch.Generator().manual_seed(seed)
        walked = batch_descent(squared_error, inputs, targets, start, SGD(way.rate), way.batch_size, EPOCHS, generator)
        paths[way.name], seen[way.name] = walked
    name = f"random search, guesses of standard deviation {GUESS:g}"
    generator = torch.Generator().manual_seed(seed)
    paths[name] = random_search(ground.height, start, GUESS, EPOCHS - 1, generator)
    seen[name] = len(inputs) * torch.arange(1, EPOCHS + 1)  # it must know the loss of the start
    return Descent(
        surface=ground.drawn(),
        paths={name: path.numpy() for name, path in paths.items()},
        losses={name: ground.height(path).numpy() for name, path in paths.items()},
        seen={name: count.numpy() for name, count in seen.items()},
    )
