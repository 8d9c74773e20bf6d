"""The page that shows two sets of vectors side by side: what is better by how much, where, and for which images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lossopt.report.galleries import NEIGHBOURS_SHOWN, Album, Shown, split_name
from lossopt.report.page import distance_text, metric_name, render, write_page
from lossopt.report.thumbnails import Pictures, Thumbnails
from lossopt.retrieval.difference import DETAILS, HEADLINE, ClassDifference, Difference, MetricDifference, Pair, verdict
from lossopt.retrieval.neighbours import nearest

_EACH = 8  # queries of a gallery
_CLASSES = 8  # of a short table
_BINS = 20  # of average precision, along each side of the picture
_SIDE = 300.0  # of that picture


class Cell(NamedTuple):
    """A square of the picture of all queries; kind: "a", "b" or "tie" by who is better there."""

    x: float
    y: float
    side: float
    kind: str
    words: str


class Bar(NamedTuple):
    """A row of the table of figures; left, width, at: in per cent of the axis, None without an interval."""

    metric: MetricDifference
    left: float | None
    width: float | None
    at: float
    sure: bool


@dataclass(frozen=True)
class Versus:
    """A query and what each of the two found for it."""

    query: Shown
    relevant: int
    a: float
    b: float
    found_by_a: list[Shown]
    found_by_b: list[Shown]


@dataclass(frozen=True)
class Figures:
    """All that the page shows, worked out."""

    verdict: str
    shown: bool
    main: list[Bar]
    details: list[Bar]
    zero: float
    axis: tuple[str, str]
    cells: list[Cell]
    won_classes: list[ClassDifference]
    lost_classes: list[ClassDifference]
    won: list[Versus]
    lost: list[Versus]
    steepest: float


@dataclass(frozen=True)
class SomePictures:
    """Pictures of some rows of another table.

    Args:
        pictures: of that table.
        rows: (n,) where our rows stand there.
    """

    pictures: Pictures
    rows: np.ndarray

    def read(self, rows: Sequence[int]) -> list[np.ndarray | None]:
        """See `Pictures`."""
        return self.pictures.read([int(self.rows[row]) for row in rows])


@dataclass(frozen=True)
class _AnyPictures:
    """The first image that any of several has of a row."""

    sources: tuple[Pictures, ...]

    def read(self, rows: Sequence[int]) -> list[np.ndarray | None]:
        found: list[np.ndarray | None] = [None] * len(rows)
        for source in self.sources:
            missing = [place for place, image in enumerate(found) if image is None]
            for place, image in zip(missing, source.read([rows[place] for place in missing]), strict=True):
                found[place] = image
        return found


def write_difference_page(
    path: Path, found: Difference, pair: Pair, names: tuple[str, str], pictures: Sequence[Pictures]
) -> Path:
    """Writes the page; an earlier one there is replaced as a whole.

    Args:
        path: of the page.
        found: the difference.
        pair: the two tables.
        names: what A and B are, for people.
        pictures: of the rows of `pair`; where the first has no image, the next is asked.

    Raises:
        LossoptError: it cannot be written.
    """
    page = render(
        "difference.html.j2",
        {
            "found": found,
            "pair": pair,
            "names": names,
            "page": summarise(found, pair, pictures),
            "side": _SIDE,
            "split_name": split_name,
        },
        {"points": points, "short": metric_name, "far": distance_text},
    )
    return write_page(path, page)


def summarise(
    found: Difference,
    pair: Pair,
    pictures: Sequence[Pictures],
    example: Difference | None = None,
    names: tuple[str, str] = ("A", "B"),
) -> Figures:
    """Everything that the page shows, before any HTML.

    Args:
        found: the difference; it may be of figures that are means over several pairs of tables.
        pair: the tables that the galleries are about.
        pictures: of their rows.
        example: the difference of these tables, where `found` is another. The galleries then hold the queries that
            `found` changes most, of those that change the same way here.
        names: what A and B are called in the words of the squares.
    """
    interval = found.headline.interval
    example = example or found
    gain = np.where(found.per_query * example.per_query > 0, found.per_query, 0.0)
    bars, zero, axis = _bars(found.metrics)
    album = Album(pair.a, Thumbnails(_AnyPictures(tuple(pictures))))
    labels = pair.a.labels[found.a.query_rows]
    return Figures(
        verdict=verdict(found),
        shown=interval is not None and (interval[0] > 0 or interval[1] < 0),
        main=[bar for bar in bars if not bar.metric.name.startswith(DETAILS)],
        details=[bar for bar in bars if bar.metric.name.startswith(DETAILS)],
        zero=zero,
        axis=axis,
        cells=_cells(found.a.per_query[HEADLINE], found.b.per_query[HEADLINE], names),
        won_classes=[one for one in found.classes if one.difference > 0][:_CLASSES],
        lost_classes=[one for one in found.classes[::-1] if one.difference < 0][:_CLASSES],
        won=_versus(example, pair, album, most_changed(gain, labels)),
        lost=_versus(example, pair, album, most_changed(-gain, labels)),
        steepest=max((abs(one.difference) for one in found.classes), default=0.0) or 1.0,
    )


def points(share: float | None, decimals: int = 1) -> str:
    """A difference of shares as signed points; a dash for None."""
    return "–" if share is None else f"{100 * share:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def most_changed(gain: np.ndarray, label: np.ndarray, most: int = _EACH) -> list[int]:
    """Positions of the queries that gain most, more than nothing; one of each class as far as there are classes.

    Args:
        gain: (q,) what each query gains.
        label: (q,) its class.
        most: how many.
    """
    order = np.argsort(-gain, kind="stable")
    order = order[gain[order] > 0]
    first = np.zeros(len(order), dtype=bool)
    first[np.unique(label[order], return_index=True)[1]] = True
    chosen = np.concatenate([order[first], order[~first]])[:most]
    ranked: list[int] = chosen[np.argsort(-gain[chosen], kind="stable")].tolist()
    return ranked


def _versus(found: Difference, pair: Pair, album: Album, positions: list[int]) -> list[Versus]:
    if not positions:
        return []
    rows = found.a.query_rows[positions]
    near = [
        nearest(side.vectors, side.task(result.exclude), rows, NEIGHBOURS_SHOWN, result.distance)
        for side, result in ((pair.a, found.a), (pair.b, found.b))
    ]
    scores = [result.per_query[HEADLINE][positions] for result in (found.a, found.b)]
    # both tables have the same rows, so one album shows what either found
    sides = [
        album.gallery(rows.tolist(), one, score, found.a.relevant[positions], np.ones(len(rows)))
        for one, score in zip(near, scores, strict=True)
    ]
    return [
        Versus(a.query, a.relevant, a.average_precision, b.average_precision, a.neighbours, b.neighbours)
        for a, b in zip(*sides, strict=True)
    ]


def _bars(metrics: list[MetricDifference]) -> tuple[list[Bar], float, tuple[str, str]]:
    """Differences and their intervals along one axis that holds 0; where 0 is; the ends of the axis in words."""
    ends = [0.0, *(value for one in metrics for value in (one.difference, *(one.interval or ())))]
    low, high = min(ends), max(ends)
    low, high = low - 0.05 * (high - low or 0.01), high + 0.05 * (high - low or 0.01)

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    bars = []
    for one in metrics:
        left = width = None
        if one.interval is not None:
            left, width = place(one.interval[0]), place(one.interval[1]) - place(one.interval[0])
        sure = one.interval is not None and (one.interval[0] > 0 or one.interval[1] < 0)
        bars.append(Bar(one, left, width, place(one.difference), sure))
    return bars, place(0.0), (points(low), points(high))


def _cells(a: np.ndarray, b: np.ndarray, names: tuple[str, str]) -> list[Cell]:
    """Queries counted by the average precision that both give them; A to the right, B up; areas are counts."""
    across, up = (np.minimum((one * _BINS).astype(np.int64), _BINS - 1) for one in (a, b))
    counts = np.bincount(across * _BINS + up, minlength=_BINS**2).reshape(_BINS, _BINS)
    step = _SIDE / _BINS
    cells = []
    for i, j in np.argwhere(counts).tolist():
        side = max(1.2, step * float(np.sqrt(counts[i, j] / counts.max())))
        x, y = (i + 0.5) * step - side / 2, _SIDE - (j + 0.5) * step - side / 2
        kind = "tie" if i == j else "a" if i > j else "b"
        bins = [f"{one / _BINS:.2f} to {(one + 1) / _BINS:.2f}" for one in (i, j)]
        words = f"{counts[i, j]:,} queries: {names[0]} {bins[0]}, {names[1]} {bins[1]}"
        cells.append(Cell(round(x, 1), round(y, 1), round(side, 1), kind, words))
    return cells
