"""What an index costs and what it finds, measured on the user's own vectors against the exact answer.

Letters: n rows, g gallery rows, q queries, d dimensions, k neighbours.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lossopt.errors import EvaluationError
from lossopt.retrieval.factory import FLAT, ROWS_PER_CENTRE
from lossopt.retrieval.index import Distance, NeighbourIndex, as_parameters, check_vectors, threads, unit_length
from lossopt.retrieval.neighbours import nearest
from lossopt.retrieval.task import Task
from lossopt.retrieval.vectors import LabelledVectors

QUERIES = 1_000
_CELLS = 2**22
_TIED = 1e-9  # relative: what differs by less than rounding counts as equally near
_COMPLETE = 0.9999
_SINGLES = 100  # queries asked one by one
_PATIENCE = 0.5  # seconds: what takes longer is timed once


class Sample(NamedTuple):
    """Queries with the exact answer to each.

    asked: (q, d) their vectors. itself: (q,) int64 position of each among the gallery rows, -1 if it is not there.
    wanted: (q,) how many neighbours there are to find, k or the gallery without the query. reach: (q,) exact distance
    of the last of them: whatever is no farther is right, so equal distances cannot count against an index.
    """

    asked: np.ndarray
    itself: np.ndarray
    wanted: np.ndarray
    reach: np.ndarray
    k: int


class Measured(NamedTuple):
    """recall: of the k exact nearest, the share that is found; mean over queries. seconds: of one query asked alone,
    median. batch_seconds: of one query among all of the sample asked at once. nbytes: of the index as a file."""

    recall: float
    seconds: float
    batch_seconds: float
    nbytes: int


@dataclass(frozen=True)
class OperatingPoint:
    """An index with one setting of its search. optimal: none is better in recall or time and no worse in the other."""

    factory: str
    parameters: str
    measured: Measured
    build_seconds: float
    optimal: bool = False

    @property
    def name(self) -> str:
        """Index and setting as one text."""
        return f"{self.factory} {self.parameters}".rstrip()


@dataclass(frozen=True)
class Tuning:
    """Operating points in the order measured, exact search first; `notes` say what was changed for lack of rows."""

    points: tuple[OperatingPoint, ...]
    k: int
    queries: int
    gallery: int
    dimensions: int
    distance: Distance
    threads: int
    notes: tuple[str, ...]


def draw_sample(
    table: LabelledVectors, distance: Distance = "euclidean", k: int = 10, most: int = QUERIES, seed: int = 0
) -> Sample:
    """Some of a table's queries, drawn by `seed`, and how far their exact k nearest reach.

    Args:
        table: its `query` and `gallery` columns say who asks and who is searched; a row never finds itself.
        distance: "euclidean" or "cosine".
        k: neighbours.
        most: queries at most.
        seed: of the draw.

    Raises:
        EvaluationError: vectors without a distance (NaN, infinite, zero under cosine), or nothing to find.
        ValueError: k or `most` below 1.
    """
    if k < 1 or most < 1:
        raise ValueError(f"k and the number of queries are 1 or more, got {k} and {most}.")
    task = table.task()
    queries = task.query_rows
    if len(queries) > most:
        queries = np.sort(np.random.default_rng(seed).choice(queries, most, replace=False))
    for rows, what in ((task.gallery_rows, "gallery vectors"), (queries, "queries")):
        check_vectors(table.vectors, distance, what, rows)
    place = np.searchsorted(task.gallery_rows, queries)
    there = place < len(task.gallery_rows)
    there[there] = task.gallery_rows[place[there]] == queries[there]
    sample = _answered(table.vectors, task.gallery_rows, queries, np.where(there, place, -1), k, distance)
    if not len(sample.asked):
        raise EvaluationError("There is nothing to find: the gallery holds no other row than the query itself.")
    return sample


def measure(index: NeighbourIndex, table: LabelledVectors, sample: Sample) -> Measured:
    """How much of the exact answer an index finds, and how long it takes.

    Args:
        index: of the gallery rows of `table`, in their order.
        table: as `sample` was drawn from.
        sample: from `draw_sample`, for the same distance.
    """
    k = sample.k + bool((sample.itself >= 0).any())
    began = time.perf_counter()
    found = index.search(sample.asked, k).rows
    batch = [time.perf_counter() - began]
    while len(batch) < 3 and sum(batch) < _PATIENCE:
        began = time.perf_counter()
        index.search(sample.asked, k)
        batch.append(time.perf_counter() - began)
    singles: list[float] = []
    for query in sample.asked[:_SINGLES]:
        began = time.perf_counter()
        index.search(query[None], k)
        singles.append(time.perf_counter() - began)
        if sum(singles) > _PATIENCE:
            break
    recall = float((_right(found, table, sample, index.distance) / sample.wanted).mean())
    return Measured(recall, float(np.median(singles)), float(np.median(batch)) / len(sample.asked), index.nbytes)


def default_factories(n: int, d: int) -> tuple[str, ...]:
    """Indexes worth trying for (n, d) vectors: whole vectors, a byte per number, short codes; lists or graph."""
    found = [FLAT, "SQ8", "HNSW32,Flat"]
    lists = 2 ** round(np.log2(4 * np.sqrt(n)))  # FAISS's guideline: 4 to 16 times the root of n
    if lists * ROWS_PER_CENTRE > n:
        lists = 2 ** int(np.log2(max(n / ROWS_PER_CENTRE, 1)))
    if lists >= 4:
        found += [f"IVF{lists},Flat", f"IVF{lists},SQ8"]
        if d >= 4 and n >= 1_000:
            quarter, half = (max(m for m in range(1, d // part + 1) if d % m == 0) for part in (4, 2))
            found += [f"IVF{lists},PQ{quarter}np", f"IVF{lists},PQ{half}x4fs,Refine(SQ8)"]
    return tuple(found)


def tune(
    table: LabelledVectors,
    distance: Distance = "euclidean",
    factories: Sequence[str] | None = None,
    k: int = 10,
    most_queries: int = QUERIES,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Tuning:
    """Builds each index over the gallery and measures it at every setting of its search that may be worth having.

    The settings are the ranges of FAISS's ParameterSpace. Its OperatingPoints are not used: they count a neighbour as
    missed when an equally near one was listed, and cannot leave the query itself out. A setting is left out when a
    cheaper one of the same index already finds everything, or already takes longer than exact search; one that
    another of the same index beats is not listed.

    Args:
        table: its `query` and `gallery` columns say who asks and who is searched.
        distance: "euclidean" or "cosine".
        factories: FAISS's factory strings; None: `default_factories`. Exact search is always measured, first.
        k: neighbours.
        most_queries: drawn by `seed`.
        seed: also of the rows that indexes are trained on.
        say: told each index before it is built.

    Raises:
        ConfigError: a factory string that FAISS does not take. EvaluationError: as `draw_sample`.
    """
    sample = draw_sample(table, distance, k, most_queries, seed)
    gallery_rows = table.task().gallery_rows
    n, d = len(gallery_rows), table.vectors.shape[1]
    wanted = dict.fromkeys((FLAT, *(default_factories(n, d) if factories is None else factories)))
    points: list[OperatingPoint] = []
    notes: list[str] = []
    for factory in wanted:
        say(factory)
        began = time.perf_counter()
        index = NeighbourIndex(table.vectors, distance, factory, seed=seed, rows=gallery_rows)
        seconds = time.perf_counter() - began
        notes += [f"{factory}: {note}" for note in index.notes]
        if index.factory not in {point.factory for point in points}:
            slowest = points[0].measured.seconds if points else np.inf
            measured = _explored(index, table, sample, seconds, slowest)
            points += [point for point in _marked(measured) if point.optimal]
    return Tuning(tuple(_marked(points)), k, len(sample.asked), n, d, distance, threads(), tuple(notes))


def at_least(tuning: Tuning, recall: float) -> list[OperatingPoint]:
    """The quickest and the smallest of the points with such a recall; one if it is both, none if there is none."""
    good = [point for point in tuning.points if point.measured.recall >= recall]
    if not good:
        return []
    quickest = min(good, key=lambda point: point.measured.seconds)
    smallest = min(good, key=lambda point: (point.measured.nbytes, point.measured.seconds))
    return [quickest] if quickest is smallest else [quickest, smallest]


def as_text(tuning: Tuning) -> str:
    """The points as a table, what the columns mean, and what to choose."""
    k = tuning.k
    lines = [f"   recall@{k:<4}{'one query':>12}{'in a batch':>13}{'memory':>11}{'build':>9}  index"]
    for point in tuning.points:
        found = point.measured
        lines.append(
            f"{'*' if point.optimal else ' '} {100 * found.recall:7.2f} % {1e3 * found.seconds:9.3f} ms "
            f"{1 / found.batch_seconds:9,.0f} /s {found.nbytes / 1e6:7.1f} MB {point.build_seconds:6.1f} s  "
            f"{point.name}"
        )
    lines += [
        "",
        f"{tuning.queries:,} queries, {tuning.gallery:,} rows of {tuning.dimensions} dimensions, {tuning.distance} "
        f"distance, {tuning.threads} thread{'s' if tuning.threads > 1 else ''}.",
        f"recall@{k}: share of the {k} exact nearest that the index finds; equally near ones count, and no row finds "
        "itself. *: no other is as quick and as complete.",
    ]
    for share in (0.95, 0.99):
        chosen = at_least(tuning, share)
        kinds = ("quickest", "smallest") if len(chosen) == 2 else ("quickest and smallest",)
        words = [f"{kind} {point.name}" for kind, point in zip(kinds, chosen, strict=False)]
        lines.append(f"At least {share:.0%}: {'; '.join(words) or 'none of these'}.")
    return "\n".join([*lines, *(f"note  {note}" for note in tuning.notes)])


def _explored(
    index: NeighbourIndex, table: LabelledVectors, sample: Sample, build_seconds: float, slowest: float
) -> list[OperatingPoint]:
    points = []
    enough: list[dict[str, int]] = []  # dearer settings than these can only be slower
    for setting in index.settings():
        if any(all(setting[name] >= value for name, value in done.items()) for done in enough):
            continue
        index.set_parameters(as_parameters(setting))
        measured = measure(index, table, sample)
        points.append(OperatingPoint(index.factory, as_parameters(setting), measured, build_seconds))
        if measured.recall >= _COMPLETE or measured.seconds > slowest:
            enough.append(setting)
    return points


def _marked(points: list[OperatingPoint]) -> list[OperatingPoint]:
    """The same points, those marked that no other beats."""

    def beaten(one: Measured) -> bool:
        return any(
            other.recall >= one.recall
            and other.seconds <= one.seconds
            and (other.recall, other.seconds) != (one.recall, one.seconds)
            for other in (point.measured for point in points)
        )

    return [replace(point, optimal=not beaten(point.measured)) for point in points]


def _answered(
    vectors: np.ndarray, gallery_rows: np.ndarray, queries: np.ndarray, itself: np.ndarray, k: int, distance: Distance
) -> Sample:
    """The exact answers, from a part of the gallery at a time; queries without anything to find are left out."""
    asked = np.asarray(vectors[queries])
    best = np.full((len(asked), k), np.inf)
    step = max(k, _CELLS // vectors.shape[1])
    for start in range(0, len(gallery_rows), step):
        part = np.asarray(vectors[gallery_rows[start : start + step]])
        everyone = np.arange(len(part))
        task = Task(np.zeros_like(everyone), everyone, everyone)
        found = nearest(part, task, itself - start, k, distance, query_embeddings=asked)
        best = np.sort(np.concatenate([best, found.distances], axis=1), axis=1)[:, :k]
    wanted = np.isfinite(best).sum(axis=1)
    kept = wanted > 0
    reach = best[kept, wanted[kept] - 1]
    return Sample(asked[kept], itself[kept], wanted[kept], reach, k)


def _right(found: np.ndarray, table: LabelledVectors, sample: Sample, distance: Distance) -> np.ndarray:
    """(q,) how many of the first k found are no farther than the exact k-th, the query itself left out."""
    gallery_rows = table.task().gallery_rows
    other = (found >= 0) & (found != sample.itself[:, None])
    other &= np.cumsum(other, axis=1) <= sample.k
    right = np.zeros(len(found), dtype=np.int64)
    step = max(1, _CELLS // (found.shape[1] * table.vectors.shape[1]))
    for start in range(0, len(found), step):
        some = slice(start, start + step)
        asked = sample.asked[some]
        items = np.asarray(table.vectors[gallery_rows[found[some]].reshape(-1)])
        if distance == "cosine":
            asked, items = unit_length(asked), unit_length(items)
        difference = items.reshape(*found[some].shape, -1).astype(np.float64) - asked[:, None, :]
        squared = np.einsum("qmd,qmd->qm", difference, difference)
        distances = squared / 2 if distance == "cosine" else np.sqrt(squared)
        right[some] = (other[some] & (distances <= sample.reach[some, None] * (1 + _TIED) + _TIED**2)).sum(axis=1)
    return right
