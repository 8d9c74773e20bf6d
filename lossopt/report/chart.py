"""A line chart as numbers: ticks, and paths in the units of a small SVG; the template draws them."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 340, 200
LEFT, RIGHT, TOP, BOTTOM = 40, 326, 22, 168  # of the plotting area
_MOST_POINTS = 120


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


class Chart(NamedTuple):
    """What the template needs; `line` and `band` are SVG path data, empty without points."""

    title: str
    note: str
    described: str
    x_label: str
    line: str
    band: str
    dots: list[tuple[float, float]]
    marks: list[Mark]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def line_chart(
    title: str,
    x: np.ndarray,
    y: np.ndarray,
    x_label: str,
    unit: str = "",
    decimals: int = 1,
    marked: tuple[tuple[float, str], ...] = (),
) -> Chart:
    """A chart of y over x.

    Args:
        x, y: (n,) finite values, x ascending. More than 120 points become means of equal stretches, with a band from
            the least to the greatest value of each.
        unit: behind each number, such as " %".
        decimals: of the numbers beside marks.
        marked: (x, words) of points to label; the nearest point gets the label.
    """
    band_low, band_high, note = y, y, ""
    if len(x) > _MOST_POINTS:
        parts = np.array_split(np.arange(len(x)), _MOST_POINTS)
        band_low, band_high = (np.array([pick(y[part]) for part in parts]) for pick in (np.min, np.max))
        x, y = (np.array([values[part].mean() for part in parts]) for values in (x, y))
        note = f"Line: mean of about {len(parts[0])} logged steps each; band: their least and greatest value."
    thinned = bool(note)
    bounds_x = (0.0, float(x.max()) if len(x) and x.max() > 0 else 1.0)
    ticks_y = round_numbers(float(band_low.min()), float(band_high.max())) if len(y) else [0.0, 1.0]
    along_x = _scale(bounds_x, (LEFT, RIGHT))
    along_y = _scale((ticks_y[0], ticks_y[-1]), (BOTTOM, TOP))
    points = [(along_x(a), along_y(b)) for a, b in zip(x, y, strict=True)]
    edge = [(along_x(a), along_y(b)) for a, b in zip(x, band_high, strict=True)]
    edge += [(along_x(a), along_y(b)) for a, b in zip(x[::-1], band_low[::-1], strict=True)]
    marks = []
    for at, words in marked if len(x) else ():
        nearest = int(np.argmin(np.abs(x - at)))
        marks.append(_mark(points, nearest, f"{words} {y[nearest]:.{decimals}f}{unit}"))
    return Chart(
        title=title,
        note=note,
        described=_described(title, x, y, x_label, unit, decimals),
        x_label=x_label,
        line=_path(points) if len(points) > 1 else "",
        band=_path(edge) + "Z" if thinned else "",
        dots=points if not thinned and len(points) <= 40 else [],
        marks=marks,
        x_ticks=[Tick(along_x(value), short(value)) for value in round_numbers(*bounds_x, 5) if value <= bounds_x[1]],
        y_ticks=[Tick(along_y(value), f"{value:g}") for value in ticks_y],
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


def _mark(points: list[tuple[float, float]], at: int, text: str) -> Mark:
    """The label goes to the side of the point that the line leaves free, and stays inside the picture."""
    x, y = points[at]
    around = [b for a, b in points if abs(a - x) < 70]
    above = sum(b >= y for b in around) * 2 > len(around)
    anchor = "start" if x < LEFT + 60 else "end" if x > RIGHT - 60 else "middle"
    if above or y + 18 <= BOTTOM:
        return Mark(x, y, text, anchor, x, y - 9 if above else y + 18)
    beside = {"start": 10, "middle": 0, "end": -10}[anchor]
    return Mark(x, y, text, anchor, x + beside, y + 3 if beside else y - 9)


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
