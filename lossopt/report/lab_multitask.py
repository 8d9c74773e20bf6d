"""The page of a grid of a multitask network and its single-task networks: what sharing does to each figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lossopt.lab.multitask import Figure, Sharing, conclusion, reach, spread
from lossopt.report.page import render, write_page

_HALF = 100  # of the strip, in its own units, on each side of no difference


class Strip(NamedTuple):
    """A difference drawn: places from -100 to 100, to the right where sharing is better.

    at: the mean; None if it is undefined. low, high: of the interval; None if there is none. seeds: each seed's own
    difference, where it is defined.
    """

    at: float | None
    low: float | None
    high: float | None
    seeds: tuple[float, ...]


class Row(NamedTuple):
    """A figure of the page, in words and drawn."""

    name: str
    alone_as: str
    shared: str
    alone: str
    difference: str
    reach: str
    strip: Strip
    verdict: str


def write_multitask_page(path: Path, name: str, data: str, found: Sharing) -> Path:
    """Writes the page.

    Args:
        path: of the page.
        name: of the grid.
        data: what was trained and tested on, in a sentence.
        found: the comparison.

    Raises:
        LossoptError: it cannot be written.
    """
    values = {
        "name": name,
        "data": data,
        "conclusion": conclusion(found) if found.figures else "No two runs of the same seed ended well.",
        "rows": [_row(figure, found.figures) for figure in found.figures],
        "failed": found.failed,
        "seeds": max((len(figure.shared) for figure in found.figures), default=0),
    }
    return write_page(path, render("lab_multitask.html.j2", values))


def _row(figure: Figure, all_figures: Sequence[Figure]) -> Row:
    alike = [one for one in all_figures if _kind(one) == _kind(figure)]
    return Row(
        name=figure.name,
        alone_as=figure.alone_as,
        shared=spread(figure.shared),
        alone=spread(figure.alone),
        difference=f"{figure.difference:+.4f}",
        reach=reach(figure),
        strip=_strip(figure, max(abs(end) for one in alike for end in _ends(one))),
        verdict=figure.verdict,
    )


def _kind(figure: Figure) -> str:
    """Figures of one kind are drawn to one scale; errors are not of one kind, for each has the unit of its target."""
    return figure.name if figure.smaller_is_better else figure.name.partition("/")[0]


def _differences(figure: Figure) -> list[float]:
    return [shared - alone for shared, alone in zip(figure.shared, figure.alone, strict=True)]


def _ends(figure: Figure) -> list[float]:
    """Everything that a strip must have room for, undefined figures aside."""
    every = [*_differences(figure), *(figure.interval or ())]
    return [one for one in every if one == one] or [0.0]


def _strip(figure: Figure, most: float) -> Strip:
    scale = (_HALF / most if most else 0.0) * (-1 if figure.smaller_is_better else 1)

    def place(value: float) -> float:
        return round(value * scale, 1) + 0.0

    low, high = (None, None) if figure.interval is None else sorted(place(end) for end in figure.interval)
    at = place(figure.difference) if figure.difference == figure.difference else None
    return Strip(at, low, high, tuple(place(one) for one in _differences(figure) if one == one))
