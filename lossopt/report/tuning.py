"""A page on indexes: recall against time per query, the best trade-offs, and the table behind the picture."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from lossopt.report.chart import Chart, Dot, Line, Mark, Tick
from lossopt.report.page import percent, render, write_page
from lossopt.retrieval.tuning import OperatingPoint, Tuning, at_least

TARGETS = (0.9, 0.95, 0.99, 0.999)
_SHARES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
_FACTORS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))
_LEAST_SPAN = 0.6  # of the axis of time, in powers of ten
_WIDE, _NARROW = (960, 440), (370, 400)
_LETTER = 6.4  # mean width of a letter in a label, SVG units
_FINEST = 1e-3  # of the missing share: what finds more counts as everything in the picture


Box = tuple[float, float, float, float]


class Picture(NamedTuple):
    """A chart, and the name of each index beside its line, with the style sheet's name of its colour."""

    chart: Chart
    names: list[tuple[str, Mark]]


class Choice(NamedTuple):
    """What to take for a recall of at least so much; empty if nothing reaches it."""

    target: float
    points: list[OperatingPoint]


def write_tuning_page(path: Path, tuning: Tuning, title: str) -> Path:
    """Writes the page; an earlier one is replaced as a whole.

    Args:
        path: of the HTML file.
        tuning: what was measured.
        title: what was indexed, in words.

    Returns:
        `path`.

    Raises:
        LossoptError: it cannot be written.
    """
    factories = list(dict.fromkeys(point.factory for point in tuning.points))
    values = {
        "tuning": tuning,
        "title": title,
        "pictures": [("wide", tuning_picture(tuning, _WIDE)), ("narrow", tuning_picture(tuning, _NARROW))],
        "choices": [Choice(target, at_least(tuning, target)) for target in TARGETS],
        "colours": {factory: f"c{number % 12}" for number, factory in enumerate(factories)},
        "smallest": min(point.measured.nbytes for point in tuning.points),
    }
    return write_page(path, render("tuning.html.j2", values, {"time": time_text, "size": size_text, "rate": rate_text}))


def tuning_picture(tuning: Tuning, size: tuple[int, int]) -> Picture:
    """Recall over the time of one query: a line per index, the best trade-offs ringed and joined.

    Both axes are logarithmic: time as it is, recall by the share that is missed, so that 99 % and 99.9 % stand apart.

    Args:
        tuning: what was measured.
        size: (width, height) in SVG units.
    """
    area = (44.0, float(size[0] - 20), 30.0, float(size[1] - 44))
    times = [1e3 * point.measured.seconds for point in tuning.points]
    across, x_ticks = _times(min(times), max(times), area[:2])
    up, y_ticks = _shares(min(point.measured.recall for point in tuning.points), area[2:])
    place = {id(point): (across(1e3 * point.measured.seconds), up(point.measured.recall)) for point in tuning.points}
    lines = []
    factories = list(dict.fromkeys(point.factory for point in tuning.points))
    for number, factory in enumerate(factories):
        own = sorted((point for point in tuning.points if point.factory == factory), key=lambda p: p.measured.seconds)
        dots = [Dot(*place[id(point)], _described(point)) for point in own]
        lines.append(Line(f"c{number % 12}", _path([dot[:2] for dot in dots]), "", dots))
    best = sorted((point for point in tuning.points if point.optimal), key=lambda point: point.measured.seconds)
    front = [place[id(point)] for point in best]
    lines.insert(0, Line("front", _path(front), "", []))
    boxes = [(x - 4, y - 4, x + 4, y + 4) for line in lines for x, y, _ in line.dots]
    marks = _labels(best, front, boxes, area)
    named = {point.factory for point, mark in zip(best, marks, strict=True) if mark.text == point.name}
    others = [(line, factory) for line, factory in zip(lines[1:], factories, strict=True) if factory not in named]
    chart = Chart(
        title="Recall against time",
        note="",
        described=f"Recall@{tuning.k} over the time of one query; best trade-offs: "
        + "; ".join(_described(point) for point in best),
        x_label="one query, milliseconds",
        lines=lines,
        marks=marks,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        size=size,
        area=area,
        y_label=f"recall@{tuning.k}, %",
    )
    return Picture(chart, _names(others, boxes + [box for line in lines for box in _along(line)], area))


def time_text(seconds: float) -> str:
    """Milliseconds, with more decimals where there are few."""
    milliseconds = 1e3 * seconds
    decimals = 3 if milliseconds < 1 else 2 if milliseconds < 10 else 1
    return f"{milliseconds:,.{decimals}f}\N{NO-BREAK SPACE}ms"


def size_text(nbytes: int) -> str:
    """Megabytes."""
    return f"{nbytes / 1e6:,.1f}\N{NO-BREAK SPACE}MB"


def rate_text(seconds: float) -> str:
    """Queries per second, to two digits: more would be noise."""
    rate = 1 / seconds
    digits = 10 ** max(0, math.floor(math.log10(rate)) - 1) if rate >= 1 else 1
    return f"{round(rate / digits) * digits:,.0f}"


def _described(point: OperatingPoint) -> str:
    found = point.measured
    return f"{point.name}: {percent(found.recall, 2)} in {time_text(found.seconds)}, {size_text(found.nbytes)}"


def _times(least: float, greatest: float, ends: Sequence[float]) -> tuple[Callable[[float], float], list[Tick]]:
    """A logarithmic axis of milliseconds with at least four ticks."""
    spare = max(0.06, (_LEAST_SPAN - math.log10(greatest / least)) / 2)
    low, high = math.log10(least) - spare, math.log10(greatest) + spare

    def across(value: float) -> float:
        return round(ends[0] + (math.log10(value) - low) / (high - low) * (ends[1] - ends[0]), 1)

    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks: list[Tick] = []
    for factors in _FACTORS:
        values = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [Tick(across(value), f"{value:g}") for value in values if low <= math.log10(value) <= high]
        if len(ticks) >= 4:
            break
    return across, ticks


def _shares(least: float, ends: Sequence[float]) -> tuple[Callable[[float], float], list[Tick]]:
    """An axis that stretches towards 100 %: logarithmic in the share that is missed."""
    floor = max(share for share in _SHARES if share <= least or share == 0)
    low, high = -math.log10(1 - floor), -math.log10(_FINEST / 3)

    def up(share: float) -> float:
        height = -math.log10(max(1 - share, _FINEST / 3))
        return round(ends[1] + (height - low) / (high - low) * (ends[0] - ends[1]), 1)

    ticks = [Tick(up(share), f"{100 * share:g}") for share in _SHARES if share >= floor]
    return up, [*ticks, Tick(up(1.0), "100")]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if len(points) > 1 else ""


def _labels(
    points: Sequence[OperatingPoint], places: Sequence[tuple[float, float]], boxes: list[Box], area: Box
) -> list[Mark]:
    """A ring for each of the best, and its name where it hides nothing: where they crowd, some have none.

    `boxes` are the places that are taken; those of the labels are added.
    """
    marks: dict[int, Mark] = {}
    first = sorted(range(len(points)), key=lambda number: -points[number].measured.recall)
    for number in first:
        x, y = places[number]
        for text in filter(None, (points[number].name, points[number].parameters, "")):
            if spot := _free_spot(x, y, text, boxes, area):
                marks[number] = Mark(x, y, text, *spot)
                break
        else:
            marks[number] = Mark(x, y, "", "start", x, y)
    return [marks[number] for number in range(len(points))]


def _along(line: Line) -> list[Box]:
    """Small boxes along a line, so that a name does not seem to belong to it."""
    boxes = []
    for (x, y, _), (to_x, to_y, _) in pairwise(line.dots):
        steps = max(1, int(math.hypot(to_x - x, to_y - y) / 6))
        for step in range(steps):
            at_x, at_y = x + (to_x - x) * step / steps, y + (to_y - y) * step / steps
            boxes.append((at_x - 2, at_y - 2, at_x + 2, at_y + 2))
    return boxes


def _names(lines: Sequence[tuple[Line, str]], boxes: list[Box], area: Box) -> list[tuple[str, Mark]]:
    """The name of each line near one of its dots, from the right; none where there is no room."""
    found = []
    for line, name in lines:
        for x, y, _ in reversed(line.dots):
            if spot := _free_spot(x, y, name, boxes, area):
                found.append((line.kind, Mark(x, y, name, *spot)))
                break
    return found


def _free_spot(x: float, y: float, text: str, boxes: list[Box], area: Box) -> tuple[str, float, float] | None:
    """Anchor, x and y of a label beside a point, where it stays inside and covers nothing; its box is then taken."""
    width = _LETTER * len(text)
    starts = [(x + 9, y + 4), (x + 7, y + 16), (x + 7, y - 9)]
    ends = [(x - 9, y + 4), (x - 7, y - 9), (x - 7, y + 16)]
    spots = [("start", a, b, (a, b - 10, a + width, b + 3)) for a, b in starts]
    spots += [("end", a, b, (a - width, b - 10, a, b + 3)) for a, b in ends]
    for anchor, a, b, (left, top, right, bottom) in spots:
        inside = area[0] + 5 < left and right < area[1] + 16 and area[2] - 12 < top and bottom < area[3]
        if inside and not any(left < box[2] and box[0] < right and top < box[3] and box[1] < bottom for box in boxes):
            boxes.append((left, top, right, bottom))
            return anchor, a, b
    return None
