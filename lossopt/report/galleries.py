"""Which queries a report shows, and what they found: the worst, the near misses, those around the median, the best.

Letters: q queries, k neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lossopt.report.record import without_paths
from lossopt.report.thumbnails import Thumbnail, Thumbnails
from lossopt.retrieval.index import Neighbours
from lossopt.retrieval.vectors import LabelledVectors

NEIGHBOURS_SHOWN = 5


class Chosen(NamedTuple):
    """Positions among the queries; no position is in two of them."""

    worst: list[int]
    near_misses: list[int]
    median: list[int]
    best: list[int]


@dataclass(frozen=True)
class Shown:
    """One image of a page.

    image: None where there is none. above, leaf: the class name up to its last slash, and after it. name: of the row.
    correct, distance: of a neighbour; a query has True and 0.
    """

    image: Thumbnail | None
    class_name: str
    above: str
    leaf: str
    name: str
    correct: bool = True
    distance: float = 0.0


@dataclass(frozen=True)
class Row:
    """A query and its nearest neighbours.

    relevant: images of its class that it could have found. first_right: rank of the first one that it did find, a mean
    over the orders of what is tied.
    """

    query: Shown
    average_precision: float
    relevant: int
    first_right: float
    neighbours: list[Shown]

    @property
    def hits(self) -> int:
        """How many of the neighbours shown are of the query's class."""
        return sum(near.correct for near in self.neighbours)


def choose_queries(score: np.ndarray, label: np.ndarray, reciprocal_rank: np.ndarray, each: int = 6) -> Chosen:
    """The lowest scores, near misses, those around the median, the highest; fewer when there are few queries.

    A near miss has a wrong first neighbour and a right second one; those that are right in all else come first. Of one
    class at most two are taken of a kind, while there are others. Equal scores are taken from different classes in
    turn, classes in a fixed shuffled order, so that six perfect queries are not six of the first alphabet.

    Args:
        score: (q,) average precision of each query.
        label: (q,) its class, a whole number >= 0.
        reciprocal_rank: (q,) 1 / rank of its first right neighbour.
        each: how many of each kind.
    """
    count = min(each, -(-len(score) // 4))
    turn = _turn_within_ties(score, label)
    shuffled = np.random.default_rng(0).permutation(int(label.max()) + 1)[label]
    ascending = np.lexsort((shuffled, turn, score))
    descending = np.lexsort((shuffled, turn, -score))
    worst = _varied(ascending, label, count)
    best = _varied(descending[~np.isin(descending, worst)], label, count)
    taken = np.concatenate([worst, best])
    missed = descending[np.isclose(reciprocal_rank[descending], 0.5) & ~np.isin(descending, taken)]
    near = _varied(missed, label, count)
    rest = ascending[~np.isin(ascending, np.concatenate([taken, near]))]
    from_middle = rest[np.argsort(np.abs(np.arange(len(rest)) - (len(rest) - 1) / 2), kind="stable")]
    median = _varied(from_middle, label, count)
    return Chosen(worst.tolist(), near.tolist(), median.tolist(), best.tolist())


def _varied(order: np.ndarray, label: np.ndarray, count: int, of_a_class: int = 2) -> np.ndarray:
    """The first `count`, in their order, of which no class has more than `of_a_class` while there are others."""
    turn = _turn_within_ties(np.zeros(len(order)), label[order])
    kept = np.argsort(turn >= of_a_class, kind="stable")[:count]
    return order[np.sort(kept)]


def _turn_within_ties(score: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(q,) how many earlier queries have the same score and the same class."""
    order = np.lexsort((label, score))  # stable: file order within
    new = np.ones(len(score), dtype=bool)
    new[1:] = (np.diff(score[order]) != 0) | (np.diff(label[order]) != 0)
    starts = np.maximum.accumulate(np.where(new, np.arange(len(score)), 0))
    turn = np.empty(len(score), dtype=np.int64)
    turn[order] = np.arange(len(score)) - starts
    return turn


def chance_of_recall(relevant: np.ndarray, candidates: np.ndarray, k: int) -> float:
    """Mean recall@k of a random order: 1 - C(candidates - relevant, k) / C(candidates, k), over queries."""
    missed = np.ones(len(relevant))
    for drawn in range(k):
        missed *= np.clip(candidates - relevant - drawn, 0, None) / np.maximum(candidates - drawn, 1)
    return float(1 - missed.mean())


class Album:
    """Rows of a table as what a page shows of them: image, class, name.

    Args:
        vectors: the table.
        thumbnails: of its rows.
    """

    def __init__(self, vectors: LabelledVectors, thumbnails: Thumbnails) -> None:
        self.vectors, self.thumbnails = vectors, thumbnails

    def shown(self, row: int, correct: bool = True, distance: float = 0.0) -> Shown:
        """One row."""
        class_name = without_paths(self.vectors.class_names[int(self.vectors.labels[row])])
        above, leaf = split_name(class_name)
        name = without_paths(str(self.vectors.names[row]))
        return Shown(self.thumbnails.of(row), class_name, above, leaf, name, correct, distance)

    def gallery(
        self, queries: Sequence[int], near: Neighbours, score: np.ndarray, relevant: np.ndarray, rank: np.ndarray
    ) -> list[Row]:
        """Queries with their nearest.

        Args:
            queries: (q,) row numbers.
            near: (q, k) their nearest rows, -1 past the end.
            score, relevant, rank: (q,) average precision, what there was to find, rank of the first right one.
        """
        self.thumbnails.prepare([int(row) for row in (*queries, *near.rows[near.rows >= 0])])
        rows = []
        for place, query in enumerate(queries):
            label = self.vectors.labels[query]
            found = [
                self.shown(int(row), bool(self.vectors.labels[row] == label), float(distance))
                for row, distance in zip(near.rows[place], near.distances[place], strict=True)
                if row >= 0
            ]
            rows.append(Row(self.shown(query), float(score[place]), int(relevant[place]), float(rank[place]), found))
        return rows


def split_name(class_name: str) -> tuple[str, str]:
    """A class name up to and with its last slash, and after it; all of it is the second if nothing would be left."""
    above, slash, leaf = class_name.rpartition("/")
    return (above + slash, leaf) if leaf else ("", class_name)
