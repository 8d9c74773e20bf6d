"""Pairs of a query and a gallery item that a task allows, drawn without ever holding all of them in memory.

Letters: n rows, q queries, g gallery items, p pairs, d dimensions.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lossopt.errors import EvaluationError
from lossopt.retrieval.index import Distance, unit_length
from lossopt.retrieval.task import Task

_CHUNK = 2**20  # cells (of the grid of pairs, or pairs x dimensions) taken at a time: bounds the memory
_MOST_CELLS = 2**26  # of the grid that are looked at one by one, in search of rare pairs: bounds the time


class Pairs(NamedTuple):
    """Pairs of rows, the positives first. Two rows that are both query and gallery make one pair, not two.

    distances: (p,) float64. same: (p,) bool, of one class. classes: (p, 2) int64, class of either row.
    all_positives, all_negatives: how many such pairs the task has; more than here if they are a sample.
    distance: "euclidean" or "cosine". normalised: whether the vectors had length 1 as they came.
    """

    distances: np.ndarray
    same: np.ndarray
    classes: np.ndarray
    all_positives: int
    all_negatives: int
    distance: Distance
    normalised: bool

    @property
    def positives(self) -> int:
        """How many are here."""
        return int(np.count_nonzero(self.same))

    @property
    def negatives(self) -> int:
        """How many are here."""
        return len(self.same) - self.positives


def draw_pairs(
    embeddings: np.ndarray,
    task: Task,
    distance: Distance = "euclidean",
    most_positives: int = 2**20,
    most_negatives: int = 2**20,
    seed: int = 0,
) -> Pairs:
    """Every pair that the task allows, or a uniform sample of the positives, or of the negatives, where they are many.

    Args:
        embeddings: (n, d) finite floats.
        task: who asks, who is searched, what is left out.
        distance: "euclidean" or "cosine" (1 - cosine similarity).
        most_positives, most_negatives: where there are more of a kind, each is kept with the same chance, so that about
            this many remain.
        seed: of the sample.

    Raises:
        EvaluationError: there is no positive or no negative pair, or a distance is not finite.
    """
    shared = np.intersect1d(task.query_rows, task.gallery_rows)
    ordered, twice = _count(task, task.query_rows, task.gallery_rows), _count(task, shared, shared)
    positives, negatives = (both - mirrored // 2 for both, mirrored in zip(ordered, twice, strict=True))
    if not positives or not negatives:
        raise EvaluationError(
            f"Verification compares pairs of one class with pairs of two; this task has {positives} and {negatives} "
            "such pairs. It needs at least two classes, one of them with two images that may find each other."
        )
    rng = np.random.default_rng(seed)
    first = _choose(task, _within_classes(task), True, most_positives / positives, rng)
    second = _choose(task, _everywhere(task), False, most_negatives / negatives, rng)
    if not len(first) or not len(second):
        raise EvaluationError(
            f"Too few pairs were met to compare: {len(first):,} of one class, {len(second):,} of two, among "
            f"{positives:,} and {negatives:,}. Choose queries and gallery so that neither kind is this rare."
        )
    rows = np.concatenate([first, second])
    same = np.arange(len(rows)) < len(first)
    distances = _distances(embeddings, rows, distance)
    lengths = np.linalg.norm(embeddings[:: max(1, len(embeddings) // 1_000)].astype(np.float64), axis=1)
    normalised = bool((np.abs(lengths - 1) < 1e-3).all())
    return Pairs(distances, same, task.labels[rows], positives, negatives, distance, normalised)


def _count(task: Task, first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """Ordered (first, second) pairs of rows that are allowed: of one class, of two."""

    def alike(code: np.ndarray) -> int:
        size = int(code.max()) + 1
        return int(np.bincount(code[first], minlength=size) @ np.bincount(code[second], minlength=size))

    one_class, everything = alike(task.labels), len(first) * len(second)
    if task.exclude == "none" or task.groups is None:
        return one_class - len(np.intersect1d(first, second)), everything - one_class
    one_class_and_group = alike(task.labels + task.groups * (int(task.labels.max()) + 1))  # each row with itself too
    one_group = alike(task.groups) if task.exclude == "all" else one_class_and_group
    return one_class - one_class_and_group, everything - one_class - (one_group - one_class_and_group)


class _Grid(NamedTuple):
    """(query, gallery item) pairs by number, 0..cells-1, without listing them. rows_of: (p,) numbers to (p,), (p,)."""

    cells: int
    rows_of: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def _everywhere(task: Task) -> _Grid:
    wide = len(task.gallery_rows)
    return _Grid(
        len(task.query_rows) * wide, lambda cell: (task.query_rows[cell // wide], task.gallery_rows[cell % wide])
    )


def _within_classes(task: Task) -> _Grid:
    """The grid of each class, one after the other."""
    labels, c = task.labels, int(task.labels.max()) + 1
    queries, items = (rows[np.argsort(labels[rows], kind="stable")] for rows in (task.query_rows, task.gallery_rows))
    tall, wide = np.bincount(labels[queries], minlength=c), np.bincount(labels[items], minlength=c)
    end, top, left = np.cumsum(tall * wide), np.cumsum(tall) - tall, np.cumsum(wide) - wide

    def rows_of(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        label = np.searchsorted(end, cell, side="right")
        down, across = np.divmod(cell - (end - tall * wide)[label], wide[label])
        return queries[top[label] + down], items[left[label] + across]

    return _Grid(int(end[-1]), rows_of)


def _choose(task: Task, grid: _Grid, same: bool, share: float, rng: np.random.Generator) -> np.ndarray:
    """(p, 2) rows of the allowed pairs of the grid, each kept with probability `share`."""
    is_query, is_gallery = np.zeros((2, len(task.labels)), dtype=bool)
    is_query[task.query_rows], is_gallery[task.gallery_rows] = True, True
    share = min(1.0, share, _MOST_CELLS / grid.cells)
    kept, position = [], -1
    while position < grid.cells - 1:
        left = (grid.cells - position) * share
        gaps = rng.geometric(share, min(_CHUNK, int(left + 5 * np.sqrt(left)) + 1))  # all 1 where all are kept
        cells = position + np.cumsum(gaps)
        position = int(cells[-1])
        first, second = grid.rows_of(cells[cells < grid.cells])
        mirrored = (first > second) & is_gallery[first] & is_query[second]
        wanted = ~mirrored & ((task.labels[first] == task.labels[second]) == same)
        first, second = first[wanted], second[wanted]
        allowed = ~task.left_out(first, second[:, None])[:, 0]
        kept.append(np.column_stack([first[allowed], second[allowed]]))
    return np.concatenate(kept)


def _distances(embeddings: np.ndarray, rows: np.ndarray, distance: Distance) -> np.ndarray:
    """(p,) float64; equal vectors give equal distances to the last bit."""
    squares = np.empty(len(rows))
    step = max(1, _CHUNK // embeddings.shape[1])
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        one, other = embeddings[rows[some, 0]], embeddings[rows[some, 1]]
        if distance == "cosine":
            one, other = unit_length(one), unit_length(other)
        difference = one.astype(np.float64) - other
        squares[some] = np.einsum("pd,pd->p", difference, difference)
    if not np.isfinite(squares).all():
        raise EvaluationError(
            "An embedding is NaN or infinite. No distance is given for it; evaluate to see which rows."
        )
    return squares / 2 if distance == "cosine" else np.sqrt(squares)
