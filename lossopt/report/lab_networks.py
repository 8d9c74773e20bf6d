"""Trained networks on the lab page: the loss around their weights, their units at work, a step on triplets."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from lossopt.lab.pieces import Activity, Landscape, TripletStep
from lossopt.report.chart import Tick
from lossopt.report.lab_curves import slider_of
from lossopt.report.lab_drawing import (
    Axes,
    Frame,
    Handle,
    Moving,
    Plot,
    Script,
    ends,
    handle,
    number,
    plot,
    ticks_of,
    trace,
)
from lossopt.report.lab_relief import Level, bands, level_lines

_MAP = (52.0, 632.0, 20.0, 600.0)
_STEP = (10.0, 450.0, 10.0, 450.0)
_BESIDE = (46.0, 350.0, 24.0, 190.0)
_MOST_LEVELS = 14
_SHAPES = 4  # of the marks of classes; colours go on
_APART = 24.0  # of the labels of epochs, in SVG units


class Checkpoint(NamedTuple):
    """A checkpoint of a run on the map of its loss. label: whether its epoch stands beside it."""

    x: float
    y: float
    epoch: int
    loss: float
    apart: float
    label: bool


@dataclass(frozen=True)
class LandscapeFigure:
    """A map of the loss. levels: its lines, with the loss on them. hand: the slider through the checkpoints."""

    landscape: Landscape
    frame: Frame
    bands: list[str]
    levels: list[Level]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    path: str
    checkpoints: list[Checkpoint]
    hand: Handle | None
    ends: tuple[str, str]


class Cell(NamedTuple):
    """A figure of a layer. share: how strongly it is coloured, in [0, 1]."""

    words: str
    share: float


class ActivityRow(NamedTuple):
    """A network. cells: dead, saturated and mean, layer by layer."""

    network: str
    accuracy: float
    dead: list[Cell]
    saturated: list[Cell]
    mean: list[Cell]


class ActivityTable(NamedTuple):
    """Networks of the same layers."""

    layers: Sequence[str]
    rows: list[ActivityRow]


class Moved(NamedTuple):
    """A point before and after the step. shape: 0 to 3."""

    kind: str
    shape: int
    before: tuple[float, float]
    after: tuple[float, float]


@dataclass(frozen=True)
class StepFigure:
    """What a step on triplets does, at one margin."""

    step: TripletStep
    moved: list[Moved]
    slider: Handle
    said: str
    losses: Plot
    active: Plot


def landscape_of(script: Script, landscape: Landscape) -> LandscapeFigure:
    """The loss around trained weights, with the path of its own training on top."""
    x, y = (ends(np.asarray(axis)) for axis in (landscape.x, landscape.y))
    frame = Frame(*_MAP, x, y)
    script.frames[frame.clip] = frame
    levels = loss_levels(landscape.loss)
    across, down = frame.across(landscape.path[:, 0]), frame.down(landscape.path[:, 1])
    epochs = [str(epoch) for epoch in landscape.epochs]
    hand = handle(script, "landscape epoch", "epoch", epochs, len(epochs) - 1) if epochs else None
    if hand:
        script.drawings["landscape"] = {
            "kind": "checkpoint",
            "hand": hand.key,
            "places": [[round(a, 1), round(b, 1)] for a, b in zip(across.tolist(), down.tolist(), strict=True)],
            "said": [_said(loss, apart) for loss, apart in zip(landscape.path_loss, landscape.apart, strict=True)],
        }
    finite = landscape.loss[np.isfinite(landscape.loss)]
    return LandscapeFigure(
        landscape=landscape,
        frame=frame,
        bands=bands(frame, landscape.x, landscape.y, landscape.loss, levels),
        levels=level_lines(frame, landscape.x, landscape.y, landscape.loss, levels, np.pi / 3),
        x_ticks=[Tick(round(float(frame.across(at)), 1), w) for at, w in ticks_of(x, about=6) if x[0] <= at <= x[1]],
        y_ticks=[Tick(round(float(frame.down(at)), 1), w) for at, w in ticks_of(y, about=6) if y[0] <= at <= y[1]],
        path=trace(across, down),
        checkpoints=_checkpoints(landscape, across, down),
        hand=hand,
        ends=(number(float(finite.min())), number(float(finite.max()))) if finite.size else ("–", "–"),
    )


def loss_levels(loss: np.ndarray) -> list[float]:
    """1, 2 and 5 times powers of ten between the least and the greatest loss; more of them where these are few."""
    finite = loss[np.isfinite(loss)]
    if not finite.size or finite.min() == finite.max():
        return []
    low, high = float(finite.min()), float(finite.max())
    if low > 0 and high / low > 4:
        powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        for digits in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            levels = [digit * 10.0**power for power in powers for digit in digits if low < digit * 10.0**power < high]
            if len(levels) <= _MOST_LEVELS:
                return levels
        return levels[:: len(levels) // _MOST_LEVELS + 1]
    return np.linspace(low, high, _MOST_LEVELS + 2)[1:-1].tolist()


def activity_of(activity: Sequence[Activity]) -> list[ActivityTable]:
    """A table for each set of layers, in the order given."""
    peak = max((float(np.nanmax(np.abs(one.mean))) for one in activity if len(one.mean)), default=0.0) or 1.0
    return [
        ActivityTable(list(layers), [_activity_row(one, peak) for one in some])
        for layers, some in groupby(activity, key=lambda one: tuple(one.layers))
    ]


def _activity_row(one: Activity, peak: float) -> ActivityRow:
    return ActivityRow(
        network=one.network,
        accuracy=one.accuracy,
        dead=[Cell(_per_cent(share), _share(share)) for share in one.dead.tolist()],
        saturated=[Cell(_per_cent(share), _share(share)) for share in one.saturated.tolist()],
        mean=[Cell(number(mean, 2), _share(abs(mean) / peak)) for mean in one.mean.tolist()],
    )


def step_of(script: Script, step: TripletStep) -> StepFigure:
    """A small embedding before and after one step on its triplets, for every margin."""
    slider = slider_of(script, "triplet margin", step.margin)
    x, y = _square(np.concatenate([step.points[None], step.moved]))
    frame = Frame(*_STEP, x, y)
    start = step.margin.start
    classes = np.unique(step.classes, return_inverse=True)[1].tolist()
    before = _places(frame, step.points)
    said = [
        f"{active} of {step.triplets} triplets have a loss above 0. Mean loss {number(a)}; after the step {number(b)}."
        for active, a, b in zip(step.active.tolist(), step.loss_before.tolist(), step.loss_after.tolist(), strict=True)
    ]
    script.drawings["triplet"] = {
        "kind": "moved",
        "hand": slider.key,
        "before": before,
        "after": [_places(frame, moved) for moved in step.moved],
        "said": said,
    }
    return StepFigure(
        step=step,
        moved=[
            Moved(f"k{own}", own % _SHAPES, one, after)
            for own, one, after in zip(classes, before, _places(frame, step.moved[start]), strict=True)
        ],
        slider=slider,
        said=said[start],
        losses=_over_margin(script, step, "mean loss", {"before": step.loss_before, "after": step.loss_after}),
        active=_over_margin(script, step, f"triplets above 0, of {step.triplets}", {"": step.active}),
    )


def _over_margin(script: Script, step: TripletStep, name: str, values: dict[str, np.ndarray]) -> Plot:
    x = np.asarray(step.margin.values, dtype=np.float64)
    lines = [
        Moving(label or name, f"k{place}", np.asarray(one, dtype=np.float64), (), (), label)
        for place, (label, one) in enumerate(values.items())
    ]
    most = max(float(np.nanmax(line.values)) for line in lines)
    axes = Axes(ends(x), (0.0, most or 1.0), "margin", name, about=(4, 3))
    key = f"triplet {name}"
    return plot(
        script,
        key,
        _BESIDE,
        axes,
        x,
        lines,
        hand=("triplet margin", step.margin.start),
        described=f"{name} over the margin",
    )


def _places(frame: Frame, points: np.ndarray) -> list[tuple[float, float]]:
    across, down = frame.across(points[:, 0]), frame.down(points[:, 1])
    return [(round(a, 1), round(b, 1)) for a, b in zip(across.tolist(), down.tolist(), strict=True)]


def _square(points: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ends of two axes of the same scale that hold (..., 2) points, with a little room around them."""
    flat = points.reshape(-1, 2)
    flat = flat[np.isfinite(flat).all(axis=1)]
    low, high = flat.min(axis=0), flat.max(axis=0)
    middle, half = (low + high) / 2, 0.54 * float((high - low).max() or 1.0)
    return (middle[0] - half, middle[0] + half), (middle[1] - half, middle[1] + half)


def _checkpoints(landscape: Landscape, across: np.ndarray, down: np.ndarray) -> list[Checkpoint]:
    """Labelled are the last, the first, and what stands apart from those labelled so far."""
    places = np.column_stack([across, down])
    labelled: list[int] = []
    for at in [len(places) - 1, 0, *range(1, len(places) - 1)]:
        if len(places) and all(np.hypot(*(places[at] - places[other])) > _APART for other in labelled):
            labelled.append(at)
    return [
        Checkpoint(round(a, 1), round(b, 1), epoch, loss, apart, at in labelled)
        for at, (a, b, epoch, loss, apart) in enumerate(
            zip(
                across.tolist(),
                down.tolist(),
                landscape.epochs,
                landscape.path_loss.tolist(),
                landscape.apart.tolist(),
                strict=True,
            )
        )
    ]


def _said(loss: float, apart: float) -> str:
    return f"loss {number(float(loss))}; {_per_cent(float(apart))} of its distance is not on the map"


def _per_cent(share: float) -> str:
    if not np.isfinite(share):
        return "–"
    return (
        f"{100 * share:.0f}\N{NO-BREAK SPACE}%"
        if share == 0 or share >= 0.0095
        else "<\N{NO-BREAK SPACE}1\N{NO-BREAK SPACE}%"
    )


def _share(share: float) -> float:
    return round(min(max(share, 0.0), 1.0), 3) if np.isfinite(share) else 0.0
