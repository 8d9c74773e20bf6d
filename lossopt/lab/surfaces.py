"""Functions of two weights on which optimisers show what they are: a height for every pair, and nothing else."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lossopt.lab.descent import Function, analytic_gradient
from lossopt.lab.pieces import Surface


@dataclass(frozen=True)
class Ground:
    """A function of two weights and where to look at it.

    height: (..., 2) weights to (...) heights. x, y: the drawn range, lowest and highest. start: where paths begin.
    minimum: the lowest point, or None where there is none.
    """

    name: str
    says: str
    formula: str
    height: Function
    x: tuple[float, float]
    y: tuple[float, float]
    start: tuple[float, float]
    minimum: tuple[float, float] | None

    def gradient(self, weights: Tensor) -> Tensor:
        """(..., 2) gradient of the height at (..., 2) weights."""
        return analytic_gradient(self.height, weights)

    def drawn(self, points: int = 61) -> Surface:
        """Heights on a grid of `points` x `points` over the drawn range."""
        x, y = (torch.linspace(*ends, points, dtype=torch.float64) for ends in (self.x, self.y))
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        height = self.height(torch.stack([columns, rows], dim=-1))
        return Surface(
            *(self.name, self.says, self.formula),
            *(x.numpy(), y.numpy(), height.numpy()),
            *(self.start, self.minimum),
        )


def _bowl(w: Tensor) -> Tensor:
    x, y = w.unbind(-1)
    return x**2 + y**2


def _ravine(w: Tensor) -> Tensor:
    x, y = w.unbind(-1)
    return (x**2 + 18 * y**2) / 2


def _saddle(w: Tensor) -> Tensor:
    x, y = w.unbind(-1)
    return x**2 - y**2


def _rosenbrock(w: Tensor) -> Tensor:
    x, y = w.unbind(-1)
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def _beale(w: Tensor) -> Tensor:
    x, y = w.unbind(-1)
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


GROUNDS = (
    Ground(
        name="bowl",
        says="Equally steep on all sides: any optimiser with a fitting rate walks straight to the bottom.",
        formula="x² + y²",
        height=_bowl,
        x=(-2, 2),
        y=(-2, 2),
        start=(-1.6, 1.1),
        minimum=(0, 0),
    ),
    Ground(
        name="ravine",
        says="18 times steeper across than along: a rate that is safe across is slow along.",
        formula="(x² + 18 y²) / 2",
        height=_ravine,
        x=(-2.2, 1.4),
        y=(-1, 1),
        start=(-2, 0.6),
        minimum=(0, 0),
    ),
    Ground(
        name="saddle",
        says="A bottom along x, a top along y: the gradient nearly vanishes where the way down begins.",
        formula="x² - y²",
        height=_saddle,
        x=(-1.5, 1.5),
        y=(-1.5, 1.5),
        start=(-1.2, 0.01),
        minimum=None,
    ),
    Ground(
        name="Rosenbrock",
        says="A bent valley: its floor is found at once, and falls so little that most optimisers creep along it.",
        formula="(1 - x)² + 100 (y - x²)²",  # Rosenbrock 1960, start and all
        height=_rosenbrock,
        x=(-2, 2),
        y=(-1, 3),
        start=(-1.2, 1),
        minimum=(1, 1),
    ),
    Ground(
        name="Beale",
        says="A plateau with steep walls: steps fit for the plain are far too long at the walls.",
        formula="(1.5 - x + x y)² + (2.25 - x + x y²)² + (2.625 - x + x y³)²",  # Beale 1958
        height=_beale,
        x=(-1, 4.5),
        y=(-2.25, 2),
        start=(1, 1.5),
        minimum=(3, 0.5),
    ),
)


def surfaces() -> list[Surface]:
    """Every ground, drawn."""
    return [ground.drawn() for ground in GROUNDS]
