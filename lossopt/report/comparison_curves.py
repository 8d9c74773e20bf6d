"""The curves of a comparison: learning with bands over seeds, activity over time, scores against what was tuned.

Letters: s seeds, n validations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lossopt.comparison.conclusion import trained_of
from lossopt.comparison.result import Comparison, Run, Standing, Trial, Tuning
from lossopt.report.chart import BELOW, LEFT, TOP, Chart, Dot, Line, Mark, Series, Tick, round_numbers, share_chart
from lossopt.report.chart import short as short_count

_TOGETHER = 4  # so many curves are legible in one chart; more get a panel each
_PANEL, _WIDE = (256, 158), (480, 300)
_LATER, _CUT_FROM = 0.3, 1.8  # of the budget; times the room that the later part needs
_SPARK = (120.0, 26.0)
_SPARK_POINTS = 60
_LOG_FROM = 8.0  # a parameter whose values span such a factor has a logarithmic axis


class Panel(NamedTuple):
    """A chart and the variant that it is about, "" for all of them."""

    variant: str
    chart: Chart


@dataclass(frozen=True)
class Learning:
    """Charts of the primary metric on validation. panels: whether each variant has one of its own.

    cut: whether curves begin, or stay, below the axis. left_out: words on runs without a curve.
    """

    by_images: list[Panel]
    by_seconds: list[Panel]
    panels: bool
    cut: bool
    left_out: str


class Spark(NamedTuple):
    """Share of active tuples over a run: SVG path data, the first and the last share."""

    path: str
    first: float
    last: float
    size: tuple[float, float]


@dataclass(frozen=True)
class Sensitivity:
    """The panels of one tuned parameter, one for each variant."""

    parameter: str
    bounds: str
    panels: list[Panel]


def learning_of(comparison: Comparison) -> Learning:
    """Mean over seeds, with a band from the least to the greatest, over images and over seconds."""
    trained = trained_of(comparison)
    there = [(one, curve) for one in trained if (curve := _curves(one.runs, comparison.metric)) is not None]
    lost = sum(run.status == "failed" for one in trained for run in one.runs)
    words = f"{lost} failed {'run has' if lost == 1 else 'runs have'} no curve here." if lost else ""
    if not there:
        return Learning([], [], False, False, words)
    healthy = [curve for one, curve in there if 2 * (one.failed + one.collapsed) < len(one.runs)]
    y_ticks, cut = _bounds([curve for _, curve in there], healthy)
    panels = len(there) > _TOGETHER
    sides = [
        _charts([(one.variant, curve.x[axis], curve.y) for one, curve in there], label, y_ticks, panels)
        for axis, label in enumerate(("images seen", "seconds, mean over seeds"))
    ]
    return Learning(sides[0], sides[1], panels, cut, words)


def _bounds(curves: Sequence["_Curves"], healthy: Sequence["_Curves"]) -> tuple[list[float], bool]:
    """Ticks around everything; or, if that leaves little room for it, around what healthy variants reach later on."""
    values = np.concatenate([curve.y.ravel() for curve in curves])
    later = [curve.y[:, curve.x[0] >= _LATER * curve.x[0].max()].ravel() for curve in healthy]
    low, high = float(values.min()), float(values.max())
    cut = bool(later) and high - low > _CUT_FROM * (high - float(np.concatenate(later).min()))
    if cut:
        low = float(np.concatenate(later).min())
    return [tick / 100 for tick in round_numbers(100 * low, 100 * high, 4)], cut


class _Curves(NamedTuple):
    """x: (2, n) images and seconds, means over seeds. y: (s, n)."""

    x: np.ndarray
    y: np.ndarray


def _curves(runs: Sequence[Run], metric: str) -> _Curves | None:
    """The validations that every run that did not fail has; None: there is none."""
    points = [[point for point in run.curve if metric in point.figures] for run in runs if run.status != "failed"]
    points = [some for some in points if some]
    if not points:
        return None
    n = min(len(some) for some in points)
    y = np.array([[point.figures[metric] for point in some[:n]] for some in points])
    x = np.array([[[point.images, point.seconds] for point in some[:n]] for some in points]).mean(axis=0).T
    return _Curves(x, y) if np.isfinite(y).all() else None


def _charts(
    curves: Sequence[tuple[str, np.ndarray, np.ndarray]], label: str, y_ticks: Sequence[float], panels: bool
) -> list[Panel]:
    most = max(float(x.max()) for _, x, _ in curves)
    size, room = (_PANEL, 40) if panels else (_WIDE, 128)
    x_ticks = [(tick, short_count(tick)) for tick in round_numbers(0.0, most, 3 if panels else 5)]
    x_ticks = [*(tick for tick in x_ticks if tick[0] < 0.999 * most), (most, "")]
    if not any(words for at, words in x_ticks if at):
        x_ticks[-1] = (most, short_count(round(most)))
    all_series = [
        _above(
            y_ticks[0], Series(name, f"v{number % 4}", x, y.mean(axis=0), y.min(axis=0), y.max(axis=0), _end(name, y))
        )
        for number, (name, x, y) in enumerate(curves)
    ]

    def drawn(title: str, series: Sequence[Series]) -> Chart:
        chart = share_chart(title, series, label, x_ticks, "%", room=room, y_ticks=y_ticks, size=size)
        bottom = chart.area[3]
        lines = [line._replace(dots=[dot for dot in line.dots if dot.y < bottom]) for line in chart.lines]
        return replace(chart, lines=lines)

    if not panels:
        return [Panel("", drawn(f"Validation over {label}", all_series))]
    grey = [_behind(one) for one in all_series]
    found = []
    for number, (own, (_, _, y)) in enumerate(zip(all_series, curves, strict=True)):
        behind = [one for place, one in enumerate(grey) if place != number]
        last = f"{100 * y[:, -1].mean():.1f}"
        chart = drawn(own.name, [*behind, own._replace(kind="main", label=last)])
        found.append(Panel(own.name, replace(chart, described=_described(own.name, y.mean(axis=0), label))))
    return found


def _behind(one: Series) -> Series:
    """A line behind the others: without a band and without a name."""
    return one._replace(kind="other", label="", low=None, high=None)


def _above(least: float, one: Series) -> Series:
    """The curve from where it first rises above the bottom of the axis; below, it runs along the bottom."""
    if one.y.min() >= least or one.low is None or one.high is None:
        return one._replace(low=None if one.low is None else np.maximum(one.low, least))
    gap = one.y - least
    at = np.flatnonzero(gap[:-1] * gap[1:] < 0)
    crossings = one.x[at] + (one.x[at + 1] - one.x[at]) * gap[at] / (gap[at] - gap[at + 1])
    x = np.sort(np.concatenate([one.x, crossings]))
    y, low, high = (np.maximum(np.interp(x, one.x, values), least) for values in (one.y, one.low, one.high))
    return one._replace(x=x, y=y, low=low, high=high)


def _described(name: str, y: np.ndarray, label: str) -> str:
    return f"{name} over {label}: {100 * y[0]:.1f} to {100 * y[-1]:.1f} %"


def _end(name: str, y: np.ndarray) -> str:
    last = f" {100 * y[:, -1].mean():.1f}"
    return (name if len(name) <= 16 else f"{name[:15]}…") + last


def spark_of(runs: Sequence[Run]) -> Spark | None:
    """Share of tuples with a loss above 0, mean over the runs that logged it; None: no run did."""
    found = [run.activity for run in runs if run.activity]
    if not found:
        return None
    n = min(len(activity) for activity in found)
    share = np.array([[step.share for step in activity[:n]] for activity in found]).mean(axis=0)
    images = np.array([[step.images for step in activity[:n]] for activity in found]).mean(axis=0)
    kept = np.unique(np.linspace(0, n - 1, min(n, _SPARK_POINTS)).round().astype(int))
    width, height = _SPARK
    most = float(images.max()) or 1.0
    points = [
        f"{1 + (width - 2) * images[at] / most:.1f} {height - 1 - (height - 2) * min(share[at], 1.0):.1f}"
        for at in kept
        if np.isfinite(share[at])
    ]
    path = "M" + "L".join(points) if len(points) > 1 else ""
    return Spark(path, float(share[0]), float(share[-1]), _SPARK)


def sensitivity_of(tuning: Tuning, standings: Sequence[Standing]) -> list[Sensitivity]:
    """Score against each tuned parameter: all trials as dots, the chosen one marked, failed ones at the bottom."""
    order = [one.variant for one in standings if one.variant in tuning.trials]
    order += [name for name in tuning.trials if name not in order]
    scores = [one.score for trials in tuning.trials.values() for one in trials if one.score is not None]
    ticks = round_numbers(100 * min(scores), 100 * max(scores), 3) if scores else [0.0, 100.0]
    found = []
    for parameter, bounds in tuning.space.items():
        tried = [
            one.values[parameter] for trials in tuning.trials.values() for one in trials if parameter in one.values
        ]
        if not tried:
            continue
        across = _Axis.around(tried)
        panels = [
            Panel(name, _scatter(name, parameter, tuning.trials[name], tuning.chosen.get(name, {}), across, ticks))
            for name in order
            if any(parameter in one.values for one in tuning.trials[name])
        ]
        found.append(Sensitivity(parameter, bounds, panels))
    return found


@dataclass(frozen=True)
class _Axis:
    """From a value to its place in [0, 1], and the values that have a tick."""

    low: float
    high: float
    log: bool

    @classmethod
    def around(cls, values: Sequence[float]) -> "_Axis":
        low, high = min(values), max(values)
        if low > 0 and high / low >= _LOG_FROM:
            return cls(math.log10(low) - 0.08, math.log10(high) + 0.08, True)
        spare = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(low - spare, high + spare, False)

    def place(self, value: float) -> float:
        at = math.log10(value) if self.log else value
        return (at - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        if not self.log:
            return [tick for tick in round_numbers(self.low, self.high, 3) if self.low <= tick <= self.high]
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5)):
            found = [factor * 10.0**power for power in powers for factor in factors]
            found = [tick for tick in found if self.low <= math.log10(tick) <= self.high]
            if len(found) >= 2:
                break
        return found


def _scatter(
    name: str,
    parameter: str,
    trials: Sequence[Trial],
    chosen: Mapping[str, float],
    across: _Axis,
    ticks: Sequence[float],
) -> Chart:
    size = _PANEL
    area = (LEFT + 4.0, size[0] - 14.0, float(TOP), float(size[1] - BELOW - 4))

    def x(value: float) -> float:
        return round(area[0] + across.place(value) * (area[1] - area[0]), 1)

    def y(score: float) -> float:
        return round(area[3] - 12 - (100 * score - ticks[0]) / (ticks[-1] - ticks[0]) * (area[3] - 12 - area[2]), 1)

    there = [one for one in trials if parameter in one.values]
    dots = [
        Dot(x(one.values[parameter]), y(one.score), f"{_all_values(one)}: {100 * one.score:.1f} %")
        for one in there
        if one.score is not None
    ]
    failed = [
        Dot(x(one.values[parameter]), area[3] - 3, f"{_all_values(one)}: failed") for one in there if one.score is None
    ]
    return Chart(
        title=name,
        note="",
        described=f"{name}: score of {len(dots)} trials against {parameter}, {len(failed)} failed",
        x_label=parameter.rpartition(".")[2],
        lines=[Line("trial", "", "", dots), Line("cross", "", "", failed)],
        marks=_chosen(there, chosen, x, y, parameter),
        x_ticks=[Tick(x(tick), f"{tick:g}") for tick in across.ticks()],
        y_ticks=[Tick(y(tick / 100), f"{tick:g}") for tick in ticks],
        size=size,
        area=area,
        y_label="%",
    )


def _chosen(
    trials: Sequence[Trial],
    chosen: Mapping[str, float],
    x: Callable[[float], float],
    y: Callable[[float], float],
    parameter: str,
) -> list[Mark]:
    best = next((one for one in trials if dict(one.values) == dict(chosen) and one.score is not None), None)
    if best is None or best.score is None:
        return []
    at, up = x(best.values[parameter]), y(best.score)
    return [Mark(at, up, f"{best.values[parameter]:.3g}", "middle", at, up - 9)]


def _all_values(trial: Trial) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {value:.3g}" for key, value in trial.values.items())
