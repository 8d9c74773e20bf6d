"""Losses and activations on the lab page: a card for each curve, some of them over one axis, and other lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lossopt.lab.pieces import Curve, Family, Lines, Slider
from lossopt.report.lab_drawing import Axes, Handle, Moving, Plot, Script, ends, handle, number, plot

_VALUE, _GRADIENT = (44.0, 346.0, 22.0, 158.0), (44.0, 346.0, 196.0, 272.0)  # of a card
_WIDE = (46.0, 388.0, 24.0, 268.0)  # of a comparison
_LABEL_SHARE = 0.06  # of the height of a plot
_LINES = (60.0, 520.0, 24.0, 258.0)


class Together(NamedTuple):
    """Curves that are compared.

    names: of the curves, and what to call them. at: where the hand starts. shown: the part of the axis that is drawn;
    None: all of it.
    """

    family: Family
    title: str
    says: str
    names: dict[str, str]
    at: float
    shown: tuple[float, float] | None = None


TOGETHER = (
    Together(
        "regression",
        "Why robust losses are robust",
        "Drag the error outwards. The pull of MSE grows with it; MAE and Huber pull no harder than before, so a few "
        "wrong targets cannot take over. Near 0 it is the other way round: MAE pulls at full strength to the end.",
        {"MSE": "MSE", "MAE (L1)": "MAE", "Huber": "Huber"},
        2.5,
    ),
    Together(
        "classification",
        "What a wrong answer costs",
        "Left of 0 the class is wrong. The hinges are done once the score has passed the margin; the soft margin "
        "always wants a little more. The squared hinge punishes a bad mistake hardest, a wrong label too.",
        {"hinge (margin)": "hinge", "squared hinge": "squared hinge", "soft margin": "soft margin"},
        -2.0,
    ),
    Together(
        "embedding",
        "Pulled together, pushed apart",
        "Two images of a class are pulled harder the farther they are apart; of two classes they are pushed harder the "
        "nearer they are, and left alone beyond the margin.",
        {"contrastive, similar (Y = 0)": "same class", "contrastive, different (Y = 1)": "different"},
        0.5,
    ),
    Together(
        "activation",
        "Both ends of an S pass nothing on",
        "Look at the gradient: a few units away from 0 hardly anything is left of it, and layers multiply what is "
        "left. At its best the sigmoid passes on a quarter, tanh all.",
        {"sigmoid": "sigmoid", "tanh": "tanh"},
        4.0,
    ),
    Together(
        "activation",
        "What is left below 0",
        "All are alike for large inputs. Below 0 ReLU passes nothing on: a unit that is below 0 for every image is "
        "dead. The others keep some slope there.",
        {"ReLU": "ReLU", "leaky ReLU": "leaky ReLU", "ELU": "ELU", "softplus": "softplus"},
        -1.5,
        (-4.0, 1.0),
    ),
)


@dataclass(frozen=True)
class Card:
    """A curve with its own slider."""

    curve: Curve
    value: Plot
    gradient: Plot
    slider: Handle | None


class Reading(NamedTuple):
    """A row beneath a comparison: what a curve says at the hand. share: of its gradient, of the greatest shown."""

    name: str
    kind: str
    value: str
    gradient: str
    share: float
    slider: Handle | None


@dataclass(frozen=True)
class Comparison:
    """Some curves over one axis, and what they say at the hand."""

    key: str
    title: str
    says: str
    x_label: str
    value: Plot
    gradient: Plot
    hand: Handle
    readings: list[Reading]


@dataclass(frozen=True)
class LinesFigure:
    """Lines over one axis."""

    lines: Lines
    plot: Plot
    slider: Handle | None


def slider_of(script: Script, key: str, given: Slider) -> Handle:
    """A slider over numbers."""
    return handle(script, key, given.name, [number(value) for value in given.values], given.start)


def card_of(script: Script, curve: Curve) -> Card:
    """A curve: its value above its gradient, over one axis."""
    slider = slider_of(script, f"curve {curve.name}", curve.slider) if curve.slider else None
    plots = []
    for name, values, place in (("value", curve.value, _VALUE), ("gradient", curve.gradient, _GRADIENT)):
        shown = values[curve.slider.start if curve.slider else 0]
        bounds = within(reach(values), reach(shown))
        axes = Axes(ends(curve.x), bounds, curve.x_label, name, about=(5, 3 if name == "value" else 2))
        key = f"card {curve.name} {name}"
        plots.append(plot(script, key, place, axes, curve.x, [_moving(curve, name)], described=_words(curve, name)))
    return Card(curve, plots[0], plots[1], slider)


def comparisons_of(script: Script, curves: Sequence[Curve], family: Family) -> list[Comparison]:
    """What is compared of a family."""
    by_name = {curve.name: curve for curve in curves if curve.family == family}
    made = []
    for together in TOGETHER:
        some = [by_name[name] for name in together.names if name in by_name]
        some = [curve for curve in some if np.array_equal(curve.x, some[0].x)]
        if together.family == family and len(some) > 1:
            made.append(_comparison(script, together, some))
    return made


def _comparison(script: Script, together: Together, curves: Sequence[Curve]) -> Comparison:
    low, high = together.shown or ends(curves[0].x)
    part = (curves[0].x >= low) & (curves[0].x <= high)
    x = curves[0].x[part]
    start = int(np.argmin(np.abs(x - together.at)))
    key = f"together {together.title}"
    hand = handle(script, key, curves[0].x_label, [number(float(at)) for at in x], start)
    plots = []
    for name in ("value", "gradient"):
        lines = [
            _moving(curve, name)._replace(
                name=curve.name,
                kind=f"k{place}",
                label=together.names[curve.name],
                values=_values(curve, name)[:, part],
                array=f"curve {curve.name} {name}" if part.all() else "",
            )
            for place, curve in enumerate(curves)
        ]
        bounds = reach(np.concatenate([line.shown for line in lines]))
        axes = Axes(ends(x), bounds, curves[0].x_label, name)
        side = labelled_side(lines)
        described = f"{name} of {', '.join(curve.name for curve in curves)} over {curves[0].x_label}"
        where = beside(_WIDE, 500.0, side)
        plots.append(plot(script, f"{key} {name}", where, axes, x, lines, side, (key, start), described, ghosts=False))
    largest = max(abs(end) for end in plots[1].frame.y)
    readings = []
    for place, curve in enumerate(curves):
        at = curve.slider.start if curve.slider else 0
        value, pull = (float(one[at, part][start]) for one in (curve.value, curve.gradient))
        readings.append(
            Reading(
                name=together.names[curve.name],
                kind=f"k{place}",
                value=number(value),
                gradient=number(pull),
                share=min(1.0, abs(pull) / largest) if np.isfinite(pull) else 0.0,
                slider=slider_of(script, f"curve {curve.name}", curve.slider) if curve.slider else None,
            )
        )
    script.drawings[f"{key} readings"] = {
        "kind": "readings",
        "hand": key,
        "largest": largest,
        "value": script.drawings[f"{key} value"]["lines"],
        "gradient": script.drawings[f"{key} gradient"]["lines"],
    }
    return Comparison(key, together.title, together.says, curves[0].x_label, plots[0], plots[1], hand, readings)


def lines_of(script: Script, lines: Lines) -> LinesFigure:
    """Lines over one axis, logarithmic where they say so."""
    key = f"lines {lines.name}"
    slider = slider_of(script, key, lines.slider) if lines.slider else None
    order = np.argsort(lines.x, kind="stable")
    x = scaled(lines.x, lines.log[0])[order]
    moving = []
    for place, (name, given) in enumerate(lines.lines.items()):
        values = np.asarray(given)[:, order]
        moves = slider is not None and len(values) > 1
        start = lines.slider.start if moves and lines.slider else 0
        moving.append(Moving(name, f"k{place}", scaled(values, lines.log[1]), [key if moves else None], [start], name))
    bounds = reach(np.concatenate([line.values.ravel() for line in moving]), zero=False)
    axes = Axes(ends(x), bounds, lines.x_label, lines.y_label, lines.log, (6, 5))
    described = f"{lines.name}: {', '.join(lines.lines)} over {lines.x_label}"
    side = labelled_side(moving)
    where = beside(_LINES, 660.0, side)
    return LinesFigure(lines, plot(script, key, where, axes, x, moving, side, described=described), slider)


def scaled(values: np.ndarray, log: bool) -> np.ndarray:
    """log10 for a logarithmic axis, on which what is not above 0 is a gap."""
    values = np.asarray(values, dtype=np.float64)
    if not log:
        return values
    positive = np.isfinite(values) & (values > 0)
    return np.where(positive, np.log10(np.where(positive, values, 1.0)), np.nan)


def reach(values: np.ndarray, zero: bool = True) -> tuple[float, float]:
    """What an axis must show: all, but not the spikes of a curve that leaves for infinity. zero: 0 in any case."""
    finite = values[np.isfinite(values)]
    low, high = ends(finite)
    if finite.size:
        within = np.percentile(finite, [3, 97])
        if high - low > 4 * (within[1] - within[0]) > 0:
            low, high = float(within[0]), float(within[1])
    return (min(low, 0.0), max(high, 0.0)) if zero else (low, high)


def within(whole: tuple[float, float], shown: tuple[float, float]) -> tuple[float, float]:
    """What an axis shows of all places of a slider: so much that the line shown first is not pressed flat."""
    room = 0.5 * (shown[1] - shown[0])
    return max(whole[0], shown[0] - room), min(whole[1], shown[1] + room)


def _values(curve: Curve, name: str) -> np.ndarray:
    return np.asarray(curve.value if name == "value" else curve.gradient, dtype=np.float64)


def _moving(curve: Curve, name: str) -> Moving:
    start, key = (curve.slider.start, f"curve {curve.name}") if curve.slider else (0, None)
    return Moving(name, name, _values(curve, name), [key], [start], array=f"curve {curve.name} {name}")


def labelled_side(lines: Sequence[Moving]) -> str:
    """The side on which the ends of the lines lie farther apart, so that labels beside them are told apart."""
    low, high = ends(np.concatenate([line.shown for line in lines]))
    apart = {}
    for side, pick in (("right", -1), ("left", 0)):
        outer = [line.shown[np.isfinite(line.shown)] for line in lines]
        gaps = np.diff(sorted(float(one[pick]) for one in outer if one.size)) / (high - low)
        apart[side] = float(np.minimum(gaps, _LABEL_SHARE).sum())  # farther than a label is high is no better
    return "left" if apart["left"] > apart["right"] + 1e-9 else "right"


def beside(place: tuple[float, float, float, float], width: float, side: str) -> tuple[float, float, float, float]:
    """The place of a plot with room for labels on the right, or the same turned round."""
    left, right, top, bottom = place
    return place if side == "right" else (width - right, width - left, top, bottom)


def _words(curve: Curve, name: str) -> str:
    """What a plot shows, for those who do not see it."""
    shown = _values(curve, name)[curve.slider.start if curve.slider else 0]
    finite = np.flatnonzero(np.isfinite(shown))
    if not finite.size:
        return f"{name} of {curve.name}: none"
    first, last = finite[0], finite[-1]
    told = [f"{number(float(shown[at]))} at {number(float(curve.x[at]))}" for at in (first, last)]
    low, high = (number(float(end)) for end in (np.nanmin(shown[finite]), np.nanmax(shown[finite])))
    return f"{name} of {curve.name}: {told[0]}, {told[1]}; least {low}, greatest {high}"
