"""Charts as numbers: ticks, and paths in the units of a small SVG; the template `chart.svg.j2` draws them.

A chart says nothing by colour alone: lines are labelled where they end, marks where they stand.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

LEFT, TOP, BELOW = 40, 22, 36  # margins of the plotting area; on the right it depends on the labels
_MOST_POINTS = 120
_LINE_HEIGHT = 14


class Tick(NamedTuple):
    """Where a label stands along its axis, in SVG units."""

    at: float
    text: str


class Mark(NamedTuple):
    """A labelled point; `text_x`, `text_y` is where its label stands, `anchor` which end of the label."""

    x: float
    y: float
    text: str
    anchor: str
    text_x: float
    text_y: float


class Dot(NamedTuple):
    """A point of a line and what it says when pointed at."""

    x: float
    y: float
    text: str


class Line(NamedTuple):
    """One curve: `kind` is its class in the style sheet; `line` and `band` are SVG path data, empty without points."""

    kind: str
    line: str
    band: str
    dots: list[Dot]
    label: str = ""
    label_y: float = 0.0


class Series(NamedTuple):
    """What a curve is made of: (n,) x ascending, (n,) y, and (n,) bounds of a band around it or None.

    label: at its end; None: the name. "": none, and no dots either: a line behind the others.
    """

    name: str
    kind: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    label: str | None = None

    @property
    def told(self) -> str:
        """What stands at its end."""
        return self.name if self.label is None else self.label


@dataclass(frozen=True)
class Chart:
    """What the template needs. uprights: labelled vertical lines; `area`: (left, right, top, bottom) of the plot."""

    title: str
    note: str
    described: str
    x_label: str
    lines: list[Line]
    marks: list[Mark]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    size: tuple[int, int]
    area: tuple[float, float, float, float]
    uprights: list[Mark] = field(default_factory=list)
    y_label: str = ""


def line_chart(
    title: str,
    x: np.ndarray,
    y: np.ndarray,
    x_label: str,
    unit: str = "",
    decimals: int = 1,
    marked: tuple[tuple[float, str], ...] = (),
) -> Chart:
    """A small chart of y over x, whose vertical axis need not begin at 0.

    Args:
        title, x_label: words.
        x, y: (n,) finite values, x ascending. More than 120 points become means of equal stretches, with a band from
            the least to the greatest value of each.
        unit: behind each number, such as " %".
        decimals: of the numbers beside marks.
        marked: (x, words) of points to label; the nearest point gets the label.
    """
    low, high, note = y, y, ""
    if len(x) > _MOST_POINTS:
        parts = np.array_split(np.arange(len(x)), _MOST_POINTS)
        low, high = (np.array([pick(y[part]) for part in parts]) for pick in (np.min, np.max))
        x, y = (np.array([values[part].mean() for part in parts]) for values in (x, y))
        note = f"Line: mean of about {len(parts[0])} logged steps each; band: their least and greatest value."
    size = (340, 204)
    area = (LEFT, size[0] - 14, TOP, size[1] - BELOW)
    bounds = (0.0, float(x.max()) if len(x) and x.max() > 0 else 1.0)
    ticks = round_numbers(float(low.min()), float(high.max())) if len(y) else [0.0, 1.0]
    along_x, along_y = _scale(bounds, area[:2]), _scale((ticks[0], ticks[-1]), (area[3], area[2]))
    points = [(along_x(a), along_y(b)) for a, b in zip(x, y, strict=True)]
    band = _band(along_x, along_y, x, low, high) if note else ""
    few = not note and len(points) <= 40
    dots = [Dot(*point, f"{value:.{decimals}f}{unit}") for point, value in zip(points, y, strict=True)] if few else []
    marks = []
    for at, words in marked if len(x) else ():
        nearest = int(np.argmin(np.abs(x - at)))
        marks.append(_mark(points, nearest, f"{words} {y[nearest]:.{decimals}f}{unit}", area))
    return Chart(
        title=title,
        note=note,
        described=_described(title, x, y, x_label, unit, decimals),
        x_label=x_label,
        lines=[Line("main", _path(points) if len(points) > 1 else "", band, dots)],
        marks=marks,
        x_ticks=[Tick(along_x(value), short(value)) for value in round_numbers(*bounds, 5) if value <= bounds[1]],
        y_ticks=[Tick(along_y(value), f"{value:g}") for value in ticks],
        size=size,
        area=area,
    )


def share_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    x_ticks: Sequence[tuple[float, str]],
    y_label: str = "",
    note: str = "",
    room: int = 104,
    marked: Sequence[tuple[float, float, str]] = (),
    y_ticks: Sequence[float] = (0, 0.2, 0.4, 0.6, 0.8, 1),
    size: tuple[int, int] = (460, 300),
    factor: float = 100,
    unit: str = " %",
) -> Chart:
    """Curves of shares on an axis in per cent, or of other numbers, each labelled at its right end.

    Args:
        title, x_label, y_label, note: words.
        series: y, low and high in [0, 1]; x in the units of the ticks (log2 of k, say).
        x_ticks: (place, words) along the axis; the outermost ones bound it.
        room: for the labels, in SVG units.
        marked: (x, y, words) of points to label.
        y_ticks: shares; the first and the last bound the axis.
        size: (width, height) in SVG units.
        factor, unit: what numbers are multiplied by where they are written, and what stands behind them.
    """
    area = (LEFT + 4, size[0] - room, TOP, size[1] - BELOW - 4)
    places = [place for place, _ in x_ticks]
    along_x = _scale((min(places), max(*places, min(places) + 1e-9)), area[:2])
    along_y = _scale((y_ticks[0], y_ticks[-1]), (area[3], area[2]))
    named = [one for one in series if one.told]
    spread = _spread([along_y(one.y[-1]) for one in named], _LINE_HEIGHT, area[2], area[3] + 4)
    ends = {id(one): end for one, end in zip(named, spread, strict=True)}
    lines = []
    for one in series:
        points = [(along_x(a), along_y(b)) for a, b in zip(one.x, one.y, strict=True)]
        band = "" if one.low is None or one.high is None else _band(along_x, along_y, one.x, one.low, one.high)
        dots = [
            Dot(*point, f"{one.name}: {factor * value:.1f}{unit}") for point, value in zip(points, one.y, strict=True)
        ]
        path = _path(points) if len(points) > 1 else ""
        dots = dots if len(dots) <= 24 and one.told else []
        lines.append(Line(one.kind, path, band, dots, one.told, ends.get(id(one), 0.0)))
    ends_in_words = ", ".join(f"{one.name} {factor * one.y[0]:.1f} to {factor * one.y[-1]:.1f}{unit}" for one in named)
    return Chart(
        title=title,
        note=note,
        described=f"{title}: {ends_in_words}",
        x_label=x_label,
        lines=lines,
        marks=[_beside(along_x(a), along_y(b), words, area) for a, b, words in marked],
        x_ticks=[Tick(along_x(place), words) for place, words in x_ticks],
        y_ticks=[Tick(along_y(value), f"{factor * value:.6g}") for value in y_ticks],
        size=size,
        area=area,
        y_label=y_label,
    )


def density_chart(
    title: str,
    edges: np.ndarray,
    densities: Sequence[tuple[str, str, np.ndarray]],
    x_label: str,
    uprights: Sequence[tuple[float, str]] = (),
    note: str = "",
) -> Chart:
    """Histograms over one axis, each scaled to its own greatest bar, as outlines with filled areas.

    Args:
        title, x_label, note: words.
        edges: (b + 1,) ascending bounds of the bars.
        densities: (name, kind, (b,) counts or densities) of each histogram.
        uprights: (x, words) of vertical lines.
    """
    size = (460, 300)
    area = (14, size[0] - 14, TOP + 16, size[1] - BELOW - 4)
    bounds = (float(edges[0]), float(edges[-1]) if edges[-1] > edges[0] else float(edges[0]) + 1.0)
    along_x, along_y = _scale(bounds, area[:2]), _scale((0.0, 1.0), (area[3], area[2]))
    lines = []
    for name, kind, density in densities:
        top = float(density.max(initial=0.0))
        heights = density / top if top > 0 else density
        outline = [(along_x(edges[0]), along_y(0.0))]
        for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
            outline += [(along_x(left), along_y(height)), (along_x(right), along_y(height))]
        outline.append((along_x(edges[-1]), along_y(0.0)))
        lines.append(Line(kind, _path(outline), _path(outline) + "Z", [], name))
    marks = []
    for at, words in uprights:
        x = along_x(min(max(at, bounds[0]), bounds[1]))
        anchor = "end" if x > (area[0] + area[1]) / 2 else "start"
        marks.append(Mark(x, area[2] - 14, words, anchor, x + (-6 if anchor == "end" else 6), area[2] - 8))
    ticks = [value for value in round_numbers(*bounds, 8) if bounds[0] <= value <= bounds[1]]
    return Chart(
        title=title,
        note=note,
        described=f"{title}: " + ", ".join(name for name, _, _ in densities) + "".join(f"; {w}" for _, w in uprights),
        x_label=x_label,
        lines=lines,
        marks=[],
        x_ticks=[Tick(along_x(value), f"{value:g}") for value in ticks],
        y_ticks=[],
        size=size,
        area=area,
        uprights=marks,
    )


def round_numbers(low: float, high: float, about: int = 4) -> list[float]:
    """About `about` steps of 1, 2 or 5 times a power of ten that enclose [low, high], or a single value."""
    if high <= low:
        low, high = low - (abs(low) * 0.05 or 0.5), high + (abs(high) * 0.05 or 0.5)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def short(value: float) -> str:
    """A count on an axis: 1500 is 1.5k, 2e6 is 2M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _scale(of: tuple[float, float], onto: tuple[float, float]) -> Callable[[float], float]:
    return lambda value: round(onto[0] + (float(value) - of[0]) / (of[1] - of[0]) * (onto[1] - onto[0]), 1)


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _band(
    along_x: Callable[[float], float],
    along_y: Callable[[float], float],
    x: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> str:
    edge = [(along_x(a), along_y(b)) for a, b in zip(x, high, strict=True)]
    edge += [(along_x(a), along_y(b)) for a, b in zip(x[::-1], low[::-1], strict=True)]
    return _path(edge) + "Z"


def _spread(wanted: list[float], apart: float, least: float, most: float) -> list[float]:
    """Heights near the wanted ones, in the same order, at least `apart` from each other, inside the bounds."""
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    placed = [0.0] * len(wanted)
    above = least - apart
    for at in order:
        placed[at] = above = max(wanted[at], above + apart)
    below = most + apart
    for at in reversed(order):
        placed[at] = below = min(placed[at], below - apart)
    return [round(value, 1) for value in placed]


def _mark(points: list[tuple[float, float]], at: int, text: str, area: tuple[float, float, float, float]) -> Mark:
    """The label goes to the side of the point that the line leaves free, and stays inside the picture."""
    left, right, _, bottom = area
    x, y = points[at]
    around = [b for a, b in points if abs(a - x) < 70]
    above = sum(b >= y for b in around) * 2 > len(around)
    anchor = "start" if x < left + 60 else "end" if x > right - 60 else "middle"
    if above or y + 18 <= bottom:
        return Mark(x, y, text, anchor, x, y - 9 if above else y + 18)
    beside = {"start": 10, "middle": 0, "end": -10}[anchor]
    return Mark(x, y, text, anchor, x + beside, y + 3 if beside else y - 9)


def _beside(x: float, y: float, text: str, area: tuple[float, float, float, float]) -> Mark:
    """The label goes below and to the right, where a rising curve leaves room."""
    if x > area[1] - 120:
        return Mark(x, y, text, "end", x - 8, y + 18)
    return Mark(x, y, text, "start", x + 8, y + 16)


def _described(title: str, x: np.ndarray, y: np.ndarray, x_label: str, unit: str, decimals: int) -> str:
    if not len(y):
        return f"{title}: nothing on record"
    ends = f"{y[0]:.{decimals}f}{unit} at {short(round(float(x[0])))} {x_label}"
    if len(y) == 1:
        return f"{title}: {ends}"
    return (
        f"{title}: from {ends} to {y[-1]:.{decimals}f}{unit} at {short(round(float(x[-1])))}; least "
        f"{y.min():.{decimals}f}{unit}, greatest {y.max():.{decimals}f}{unit}"
    )
