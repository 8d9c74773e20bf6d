"""Facts of optimisation that are a line or two: how good a numerical gradient is, averages, schedules, an example."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler, ReduceLROnPlateau, StepLR

from lossopt.lab.descent import analytic_gradient, exponential_average, numerical_gradient, worked_example
from lossopt.lab.pieces import Lines, Slider
from lossopt.lab.surfaces import GROUNDS

EPOCHS = 60


def gradient_error() -> Lines:
    """How far a numerical gradient is from the analytic one, over its step h: forward, central, float32, float64."""
    ground = {ground.name: ground for ground in GROUNDS}["Rosenbrock"]
    weights = torch.tensor([-1.23, 0.87], dtype=torch.float64)
    steps = np.logspace(0, -14, 57)  # four a decade

    def errors(dtype: torch.dtype, central: bool) -> np.ndarray:
        given = weights.to(dtype)
        right = analytic_gradient(ground.height, given.double())
        found = torch.stack([numerical_gradient(ground.height, given, float(h), central).double() for h in steps])
        return ((found - right).norm(dim=-1) / right.norm()).numpy()[None]

    return Lines(
        name="numerical against analytic gradient",
        formula="forward (f(w + h) - f(w)) / h;  central (f(w + h) - f(w - h)) / 2h",
        says="A large h misses the bend of the function, a small one drowns in round-off: h has a best value, which is "
        "larger, and worse, in float32. So gradients are checked in float64, with central differences.",
        source="Numerical recipes, section 5.7",
        where="torch.autograd.gradcheck",
        x_label="step h",
        y_label="relative error of the gradient of Rosenbrock's function",
        log=(True, True),
        x=steps,
        slider=None,
        lines={
            "forward, float32": errors(torch.float32, central=False),
            "central, float32": errors(torch.float32, central=True),
            "forward, float64": errors(torch.float64, central=False),
            "central, float64": errors(torch.float64, central=True),
        },
    )


def averages(seed: int = 0) -> Lines:
    """Exponentially weighted averages of a noisy series, with and without bias correction, for every beta."""
    betas = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
    time = torch.arange(1, 151, dtype=torch.float64)
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    series = (3 + torch.sin(time / 20) + 0.5 * noise)[None]
    beta = torch.tensor(betas, dtype=torch.float64)
    return Lines(
        name="exponentially weighted average",
        formula="a ← beta · a + (1 - beta) · value;  corrected: a / (1 - betaᵗ)",
        says="A larger beta is smoother and later: it remembers about 1 / (1 - beta) values. Without the correction "
        "the first averages are too close to 0, where the average started.",
        source="Kingma & Ba 2015, section 3",
        where="lossopt.lab.descent.exponential_average",
        x_label="time",
        y_label="value",
        log=(False, False),
        x=time.numpy(),
        slider=Slider("beta", betas, betas.index(0.9)),
        lines={
            "series": series.numpy(),
            "not corrected": exponential_average(series, beta, corrected=False).numpy(),
            "corrected": exponential_average(series, beta).numpy(),
        },
    )


def scheduled_rates(
    schedule: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau], rate: float, losses: Sequence[float] | None = None
) -> list[float]:
    """(60,) rate of each epoch under a torch schedule; `losses`: (60,) what it is told after each, if anything."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    scheduler = schedule(optimizer)
    rates = []
    for epoch in range(EPOCHS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*(() if losses is None else (losses[epoch],)))
    return rates


def _schedule(
    name: str,
    formula: str,
    says: str,
    scheduler: type,
    slider: Slider,
    rates: list[list[float]],
    told: np.ndarray | None,
) -> Lines:
    lines = {"rate": np.array(rates)}
    if told is not None:
        lines["loss"] = told[None]
    return Lines(
        name=name,
        formula=formula,
        says=says,
        source="",
        where=f"torch.optim.lr_scheduler.{scheduler.__name__}",
        x_label="epoch",
        y_label="rate" if told is None else "rate, loss",
        log=(False, True),
        x=np.arange(1, EPOCHS + 1),
        slider=slider,
        lines=lines,
    )


def schedules(seed: int = 0) -> list[Lines]:
    """Learning rates of 60 epochs under three schedules, from torch's own schedulers."""
    factors, shrinks, patience = (0.1, 0.2, 0.5, 0.8), (0.8, 0.9, 0.95, 0.98), (1, 3, 5, 10)
    noise = torch.rand(EPOCHS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    told = (0.2 + torch.exp(-torch.arange(EPOCHS) / 6) + 0.02 * noise).numpy()
    return [
        _schedule(
            "step schedule",
            "rate · gamma^⌊epoch / 15⌋",
            "The rate falls at once every 15 epochs. Good when it is known how long a stage of the training takes.",
            StepLR,
            Slider("gamma", factors, 0),
            [scheduled_rates(partial(StepLR, step_size=15, gamma=g), 0.1) for g in factors],
            None,
        ),
        _schedule(
            "exponential schedule",
            "rate · gamma^epoch",
            "The rate falls by the same share every epoch; it is small before one notices.",
            ExponentialLR,
            Slider("gamma", shrinks, 2),
            [scheduled_rates(partial(ExponentialLR, gamma=g), 0.1) for g in shrinks],
            None,
        ),
        _schedule(
            "reduce on plateau",
            "rate · 0.5 after more than `patience` epochs without a loss 0.01 % below the best",
            "The rate waits for the loss (an invented one here, which falls and then only wobbles): no length to know "
            "beforehand, but a noisy loss makes it impatient.",
            ReduceLROnPlateau,
            Slider("patience", patience, 2),
            [scheduled_rates(partial(ReduceLROnPlateau, factor=0.5, patience=p), 0.1, told.tolist()) for p in patience],
            told,
        ),
    ]


def by_hand() -> Lines:
    """The worked example L(W) = W² with rate 0.3 from 4: weights and losses."""
    weights: Tensor = worked_example()
    return Lines(
        name="gradient descent by hand",
        formula="L(W) = W²;  W ← W - 0.3 · 2 W",
        says="From 4: 1.6, 0.64, 0.256, 0.1024. Every step leaves 0.4 of the weight, so it never quite arrives at 0.",
        source="",
        where="lossopt.lab.descent.worked_example",
        x_label="step",
        y_label="W, L(W)",
        log=(False, True),
        x=np.arange(len(weights)),
        slider=None,
        lines={"W": weights.numpy()[None], "L(W)": weights.square().numpy()[None]},
    )


def optimisation_lines() -> list[Lines]:
    """All of them, in the order in which they are taught."""
    return [by_hand(), gradient_error(), averages(), *schedules()]
