"""What the lab page shows, as plain data: computed in this folder, drawn in `lossopt.report`; the page does no sums.

A slider stands on one of the values that were computed, so that no formula is written a second time in a script.
Letters: n points of a curve, v values of a slider, s steps of a path, k checkpoints, a and b sides of a landscape.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

Family = Literal["regression", "classification", "embedding", "activation"]


class Slider(NamedTuple):
    """One number in the reader's hand. name: as in the code. values: (v,) ascending. start: the place in `values`."""

    name: str
    values: Sequence[float]
    start: int


class Curve(NamedTuple):
    """A loss or an activation over its argument.

    name: in words. family: where it is listed. formula: plain text with mathematical signs. says: what it does, in a
    sentence. source: a paper or book. where: the class that trains with it, dotted. x_label: the argument.
    x: (n,). slider: None: it has no number to turn. value, gradient: (v, n), v = 1 without a slider; NaN where there is
    none (a gap in the line). edge: what happens at the edges (ties, zero, infinity), in a sentence; may be empty.
    """

    name: str
    family: Family
    formula: str
    says: str
    source: str
    where: str
    x_label: str
    x: np.ndarray
    slider: Slider | None
    value: np.ndarray
    gradient: np.ndarray
    edge: str = ""


class Surface(NamedTuple):
    """A function of two weights. x, y: axes, (a,), (b,). height: (b, a). minimum: its lowest point; None: a saddle."""

    name: str
    says: str
    formula: str
    x: np.ndarray
    y: np.ndarray
    height: np.ndarray
    start: tuple[float, float]
    minimum: tuple[float, float] | None


class Paths(NamedTuple):
    """One optimiser on one surface, for every place of its sliders.

    momentum: None where the optimiser has none. points: (rates, momenta, s, 2), momenta = 1 without; a path that leaves
    for infinity ends on the edge of three times the drawn range, NaN after. height: (rates, momenta, s).
    formula, says, source, where: of the optimiser, as of a Curve, the same on every surface.
    """

    optimizer: str
    surface: str
    rate: Slider
    momentum: Slider | None
    points: np.ndarray
    height: np.ndarray
    formula: str = ""
    says: str = ""
    source: str = ""
    where: str = ""


class Lines(NamedTuple):
    """Lines over one axis: the error of a gradient over the step, averages of a noisy series, a schedule of rates.

    name, formula, says, source, where: as of a Curve. x_label, y_label: the axes. log: whether the x and the y axis are
    logarithmic. x: (n,). slider: None: it has no number to turn. lines: name to (v, n), or to (1, n) where the slider
    does not move it; NaN where there is none.
    """

    name: str
    formula: str
    says: str
    source: str
    where: str
    x_label: str
    y_label: str
    log: tuple[bool, bool]
    x: np.ndarray
    slider: Slider | None
    lines: dict[str, np.ndarray]


class Descent(NamedTuple):
    """Batch against stochastic descent on one real problem of two weights.

    surface: of the loss of the whole data set. paths: way to (s, 2) weights; losses: way to (s,) loss of the whole data
    set after each step; seen: way to (s,) examples looked at by then.
    """

    surface: Surface
    paths: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]
    seen: dict[str, np.ndarray]


class Landscape(NamedTuple):
    """The loss around trained weights, along two filter-normalised directions.

    title: which run. axes: what the two directions are, in words. x, y: (a,), (b,). loss: (b, a). path: (k, 2) where
    the checkpoints of its own training lie on the plane, first to last, with their epochs (k,) and their own losses
    (k,). apart: (k,) share of each checkpoint's squared distance from the centre that the plane does not show. notes:
    what a reader must know.
    """

    title: str
    axes: tuple[str, str]
    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray
    path: np.ndarray
    epochs: Sequence[int]
    path_loss: np.ndarray
    apart: np.ndarray
    notes: Sequence[str]


class Activity(NamedTuple):
    """What a trained network's units do on real images, layer by layer.

    network: activation and learning rate, in words. layers: names. dead: (layers,) share of units that are 0, with
    gradient 0, for every image. saturated: (layers,) share of activations where the gradient is below 1 % of the
    largest. mean: (layers,) mean activation (0: centred). accuracy: of the network, in [0, 1].
    """

    network: str
    layers: Sequence[str]
    dead: np.ndarray
    saturated: np.ndarray
    mean: np.ndarray
    accuracy: float


class TripletStep(NamedTuple):
    """What one gradient step on a triplet loss does to a small embedding, for every place of the margin's slider.

    points: (n, 2) before; classes: (n,). moved: (v, n, 2) after. loss_before, loss_after: (v,). active: (v,) triplets
    with a loss above 0, of `triplets`.
    """

    points: np.ndarray
    classes: np.ndarray
    margin: Slider
    moved: np.ndarray
    loss_before: np.ndarray
    loss_after: np.ndarray
    active: np.ndarray
    triplets: int
