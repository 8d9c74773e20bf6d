"""Signs that embeddings say nothing, each with a bound that healthy models keep and collapsed ones break.

Measured on at most 2,000 queries and a part of a large gallery: a collapse shows everywhere. Letters: n rows, m some
rows, q queries, g gallery items, d dimensions, c classes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lossopt.errors import EvaluationError
from lossopt.retrieval.duplicates import duplicate_share, first_equal_row
from lossopt.retrieval.index import Distance, Neighbours, unit_length
from lossopt.retrieval.neighbours import nearest
from lossopt.retrieval.task import Task

# Bounds, set between what ill and healthy models reach in tests/retrieval/test_collapse.py.
_SPREAD = 2.5e-3  # x sqrt(effective rank): cones of width 1e-3 per dimension reach 1.7e-3, untrained networks 3.5e-3
_RANK, _LOWEST_RANK, _RANK_STEP = 1.5, 1.01, 0.1  # lines are at 1.00, untrained networks in the plane at 1.05
_MIXED_TIES = 0.5
_ZERO_ROWS = 0.1
_GAP = 0.01
_GALLERY_CELLS = 2**22  # gallery items x dimensions that are searched: bounds time and memory
_CELLS = 2**20
_OUTLIER = 10  # times the median length


@dataclass(frozen=True)
class Collapse:
    """Signs that the embeddings say nothing.

    tie_share: share of queries whose nearest distance is shared by several items. mixed_ties: share of queries of which
        one such item is of another class, so that chance decides; duplicates within a class are no sign of collapse.
    mean_cosine: of random pairs; near 1 when all vectors point one way.
    spread: standard deviation per dimension x sqrt(d), of unit vectors: near 1 spread out, 0 collapsed.
    effective_rank: exp of the entropy of the singular values of centred unit vectors (Roy & Vetterli 2007); 1: a line.
    zero_rows: rows that are all zero. duplicates: share of rows that equal another to the last bit.
    precision_gap: between recall@1 of unit vectors, exact, and as a plain float32 inner product finds it.
    reasons: in words, one for each sign beyond its bound.
    """

    tie_share: float
    mixed_ties: float
    mean_cosine: float
    spread: float
    effective_rank: float
    zero_rows: int
    duplicates: float
    precision_gap: float
    reasons: tuple[str, ...]

    @property
    def collapsed(self) -> bool:
        """Whether a recall figure of these embeddings should not be believed."""
        return bool(self.reasons)


class Shape(NamedTuple):
    """How widely vectors lie: `spread` and `effective_rank` as in `Collapse`; `reasons`: the signs that they tell."""

    spread: float
    effective_rank: float
    reasons: tuple[str, ...]


def measure_shape(vectors: np.ndarray, classes: int, distance: Distance = "euclidean") -> Shape:
    """Whether vectors are nearly equal, or lie nearly on a line; what `measure_collapse` asks without any labels.

    Args:
        vectors: (m, d) finite floats.
        classes: how many there are among them.
        distance: that they are compared by; lengths count unless it is the cosine.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    unit, lengths_too = unit_length(vectors), _without_outliers(vectors)
    spread, rank, plain_rank = _spread(unit), _effective_rank(unit), _effective_rank(lengths_too)
    broad = spread if distance == "cosine" else max(spread, _spread(lengths_too))
    expected = min(vectors.shape[1], classes - 1)
    signs = {
        f"the vectors are nearly equal (spread {broad:.2g})": broad < _SPREAD * np.sqrt(rank),
        f"the vectors lie nearly on a line (effective rank {plain_rank:.2f})": (
            plain_rank < min(_RANK, _LOWEST_RANK + _RANK_STEP * (expected - 2))
        ),
    }
    return Shape(spread, rank, tuple(words for words, raised in signs.items() if raised))


def measure_collapse(
    embeddings: np.ndarray, task: Task, distance: Distance = "euclidean", sample: int = 2_000
) -> Collapse:
    """Measures the signs; see `Collapse`.

    A low rank is a sign only where a higher one is to be expected: two classes can be told apart on a line, and one
    dimension is a line. Lengths count as spread and rank unless the distance is the cosine, and an affine line is a
    line under both.

    Args:
        embeddings: (n, d) finite floats.
        task: who asks, and who is searched.
        distance: that neighbours are found by.
        sample: at most so many queries are asked, and so many rows looked at, evenly spaced.

    Raises:
        EvaluationError: a row is NaN or infinite.
    """
    vectors, part = _part(embeddings, task, sample)
    if not np.isfinite(vectors).all():
        raise EvaluationError("An embedding is NaN or infinite, which is no collapse; evaluation says which rows.")
    unit = unit_length(vectors)
    rows = np.linspace(0, len(unit) - 1, min(sample, len(unit))).astype(np.int64)
    shape = measure_shape(vectors[rows], len(np.unique(part.labels)), distance)
    by_angle = nearest(unit, part, part.query_rows, 2)
    tie_share, mixed_ties = _ties(
        by_angle if distance == "cosine" else nearest(vectors, part, part.query_rows, 2), part
    )
    gap, beyond_chance = _precision_gap(unit, by_angle.rows[:, 0], part)
    zero_rows = _count_zero_rows(embeddings)
    signs = {
        f"{mixed_ties:.1%} of the queries have equally near items of several classes": mixed_ties > _MIXED_TIES,
        f"float32 inner products change recall@1 by {100 * gap:.1f} points": gap > _GAP and beyond_chance,
        f"{zero_rows:,} vectors are zero": zero_rows > _ZERO_ROWS * len(embeddings),
    }
    return Collapse(
        tie_share=tie_share,
        mixed_ties=mixed_ties,
        mean_cosine=_mean_cosine(unit[rows]),
        spread=shape.spread,
        effective_rank=shape.effective_rank,
        zero_rows=zero_rows,
        duplicates=duplicate_share(first_equal_row(embeddings)),
        precision_gap=gap,
        reasons=(*shape.reasons, *(words for words, raised in signs.items() if raised)),
    )


def _part(embeddings: np.ndarray, task: Task, sample: int) -> tuple[np.ndarray, Task]:
    """Some queries and some of the gallery, evenly spaced: float64 vectors, and the task among them alone."""
    most = max(1, _GALLERY_CELLS // embeddings.shape[1])
    queries, gallery = (
        rows[np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(np.int64)]
        for rows, limit in ((task.query_rows, sample), (task.gallery_rows, most))
    )
    kept = np.union1d(queries, gallery)
    part = Task(
        labels=task.labels[kept],
        query_rows=np.searchsorted(kept, queries),
        gallery_rows=np.searchsorted(kept, gallery),
        groups=None if task.groups is None else task.groups[kept],
        exclude=task.exclude,
    )
    return np.asarray(embeddings[kept], dtype=np.float64), part


def _ties(near: Neighbours, part: Task) -> tuple[float, float]:
    """Share of queries whose two nearest are equally near, and share of which one of them is of another class."""
    tied = np.isfinite(near.distances[:, 0]) & (near.distances[:, 0] == near.distances[:, 1])
    other = (part.labels[near.rows] != part.labels[part.query_rows][:, None]).any(axis=1)
    return float(tied.mean()), float((tied & other).mean())


def _mean_cosine(unit: np.ndarray) -> float:
    """Of different rows."""
    n, mean = len(unit), unit.mean(axis=0)
    return float((n * (mean @ mean) - (unit**2).sum() / n) / max(1, n - 1))


def _spread(vectors: np.ndarray) -> float:
    """Distance from the mean over distance from the origin, both as root mean squares; of (m, d) vectors."""
    square = float((vectors**2).sum(axis=1).mean()) if len(vectors) else 0.0
    return float(np.sqrt(vectors.var(axis=0).sum() / square)) if square > 0 else 0.0


def _effective_rank(vectors: np.ndarray) -> float:
    values = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False) if len(vectors) else np.zeros(1)
    shares = values[values > 0] / values.sum() if values.sum() > 0 else np.ones(1)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _without_outliers(vectors: np.ndarray) -> np.ndarray:
    """Without rows many times longer than most, one of which would outweigh all others in spread and rank."""
    lengths = np.linalg.norm(vectors, axis=1)
    return vectors[lengths <= _OUTLIER * np.median(lengths[lengths > 0])] if lengths.any() else vectors


def _precision_gap(unit: np.ndarray, exact: np.ndarray, part: Task) -> tuple[float, bool]:
    """|recall@1, exact - recall@1 by float32 inner products|, which are not centred: as a plain index would have it.

    Also whether more queries change one way than rounding would by chance, which loses about as many as it wins.
    """
    queries, items = part.query_rows, part.gallery_rows
    short = unit.astype(np.float32)
    plain = np.empty(len(queries), dtype=np.int64)
    step = max(1, _CELLS // len(items))
    for start in range(0, len(queries), step):
        some = queries[start : start + step]
        cosine = short[some] @ short[items].T
        cosine[part.left_out(some, items)] = -np.inf
        plain[start : start + step] = items[cosine.argmax(axis=1)]
    answered = exact >= 0
    if not answered.any():
        return 0.0, False
    right = [(part.labels[found] == part.labels[queries])[answered].astype(np.int64) for found in (exact, plain)]
    change = right[1] - right[0]
    return abs(float(change.mean())), bool(abs(change.sum()) > 2 * np.sqrt(np.abs(change).sum()))


def _count_zero_rows(embeddings: np.ndarray) -> int:
    step = max(1, _CELLS // embeddings.shape[1])
    return sum(int((~embeddings[i : i + step].any(axis=1)).sum()) for i in range(0, len(embeddings), step))
