"""Where a query's relevant items stand in its ranking, found by counting what is nearer, not by listing neighbours.

Each metric is a function of those ranks. A float32 product of tiles decides what it can; an item too close to a
threshold for float32 is measured in float64, so that the counts are those of float64 distances. Distances that agree to
twelve digits are ties. Memory: a few tiles and the thresholds of one chunk of queries, however large the gallery.

Letters: n rows, q queries, g gallery items, b queries of a chunk, d dimensions, R relevant items of a query.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lossopt.errors import EvaluationError
from lossopt.retrieval import kernels
from lossopt.retrieval.index import Distance
from lossopt.retrieval.metrics import HitGroups
from lossopt.retrieval.task import Task

_TILE = (512, 4096)  # queries x gallery items of one product
_CHUNK_BYTES = 2**24  # of the vectors of a chunk of queries
_THRESHOLDS = 2**20  # of a chunk of queries
_PAIRS = 128  # doubtful items of one query in one tile, before its chunk turns to float64
_ACCEPT = 1e-10  # beyond that many, items that agree so closely with a threshold in float64 are taken for ties
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


class RankedChunk(NamedTuple):
    """queries: (b,) positions in `task.query_rows`, all with a relevant item; groups: where those items stand."""

    queries: np.ndarray
    groups: HitGroups


def relevant_and_candidates(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """(q,) relevant items that each query can find, and (q,) items that it searches; what is left out is in neither."""
    labels, queries, gallery = task.labels, task.query_rows, task.gallery_rows
    relevant = np.bincount(labels[gallery], minlength=int(labels.max()) + 1)[labels[queries]]
    candidates = np.full(len(queries), len(gallery))
    in_gallery = np.zeros(len(labels), dtype=bool)
    in_gallery[gallery] = True
    if task.exclude == "none" or task.groups is None:
        return relevant - in_gallery[queries], candidates - in_gallery[queries]
    width = int(task.groups.max()) + 1
    both = labels * width + task.groups
    names, sizes = np.unique(both[gallery], return_counts=True)
    place = np.minimum(np.searchsorted(names, both[queries]), len(names) - 1)
    shared = np.where(names[place] == both[queries], sizes[place], 0)
    everyone = np.bincount(task.groups[gallery], minlength=width)[task.groups[queries]]
    return relevant - shared, candidates - (everyone if task.exclude == "all" else shared)


def rank_relevant(
    embeddings: np.ndarray, task: Task, distance: Distance = "euclidean", query_embeddings: np.ndarray | None = None
) -> Iterator[RankedChunk]:
    """Ranks of the relevant items of each query that has any, a chunk of queries at a time.

    Args:
        embeddings: (n, d) finite numbers of any type, possibly a memory map.
        task: who asks and who is searched.
        distance: "euclidean" or "cosine".
        query_embeddings: (q, d) what the queries of the task ask with instead of their own rows; None: their own.

    Raises:
        EvaluationError: rows that are NaN or infinite, too large, or of length zero under the cosine distance; named.
    """
    counting = _Counting(embeddings, task, distance, query_embeddings)
    with ThreadPoolExecutor(counting.threads) as pool:
        yield from counting.chunks(pool)


@dataclass
class _Block:
    """Some rows, as stored and as float32 (or 64) working copies around the centre."""

    rows: np.ndarray
    raw: np.ndarray
    scale: np.ndarray
    near: np.ndarray
    squares: np.ndarray
    groups: np.ndarray


@dataclass
class _Chunk:
    """Queries of one chunk with their thresholds: offset and count per query; edges and counts per tie group."""

    block: _Block
    positions: np.ndarray
    class_start: np.ndarray
    class_stop: np.ndarray
    offset: np.ndarray
    count: np.ndarray
    low: np.ndarray
    high: np.ndarray
    hits: np.ndarray
    below: np.ndarray
    equal: np.ndarray
    doubtful: np.ndarray


class _Counting:
    """One evaluation: the gallery in the order of its classes; what the working copies are shifted and scaled by."""

    def __init__(
        self, embeddings: np.ndarray, task: Task, distance: Distance, query_embeddings: np.ndarray | None
    ) -> None:
        self.embeddings, self.task, self.distance = embeddings, task, distance
        self.asked, self.own = (embeddings, True) if query_embeddings is None else (query_embeddings, False)
        self.threads = _threads()
        relevant, _ = relevant_and_candidates(task)
        labels = task.labels
        self.gallery = task.gallery_rows[np.argsort(labels[task.gallery_rows], kind="stable")]
        starts = np.searchsorted(labels[self.gallery], np.arange(int(labels.max()) + 2))
        positions = np.flatnonzero(relevant > 0)
        self.positions = positions[np.argsort(labels[task.query_rows[positions]], kind="stable")]
        label = labels[task.query_rows[self.positions]]
        self.class_start, self.class_stop = starts[label], starts[label + 1]
        self.by_group = task.exclude == "all" and task.groups is not None
        self.groups = np.zeros(len(labels), dtype=np.int64) if task.groups is None else task.groups
        self.scale = _lengths(embeddings, distance, task)
        self.query_scale = self.scale if self.own else _lengths(query_embeddings, distance, None)
        self.tiny = 1e-30 if distance == "cosine" else 0.0
        self._centre()

    def _centre(self) -> None:
        """Shift and shrink: the working copies are small numbers around 0, and squared distances at most about 4."""
        d = self.embeddings.shape[1]
        some = self.gallery[np.linspace(0, len(self.gallery) - 1, min(1024, len(self.gallery))).astype(np.int64)]
        # the median: a far outlier must not move all the others away from 0
        self.centre = np.median(self.embeddings[some].astype(np.float64) * self.scale[some, None], axis=0)
        largest, step = 0.0, max(1, _CHUNK_BYTES // (8 * d))
        for of, rows, scale in (
            (self.embeddings, self.gallery, self.scale),
            (self.asked, self.task.query_rows if self.own else np.arange(len(self.asked)), self.query_scale),
        ):
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                shifted = of[part].astype(np.float64) * scale[part, None] - self.centre
                largest = max(largest, float(np.einsum("nd,nd->n", shifted, shifted).max(initial=0.0)))
        # a power of two loses no bit; numbers this small are zero to every later step
        shrink = 2.0 ** -np.ceil(np.log2(largest) / 2) if largest > 1e-280 else 1.0
        self.centre, self.scale, self.query_scale = self.centre * shrink, self.scale * shrink, self.query_scale * shrink

    def chunks(self, pool: ThreadPoolExecutor) -> Iterator[RankedChunk]:
        """Chunks whose vectors and thresholds fit."""
        most = max(1, _CHUNK_BYTES // (4 * self.embeddings.shape[1]))
        size = np.concatenate([[0], np.cumsum(self.class_stop - self.class_start)])
        start = 0
        while start < len(self.positions):
            stop = int(np.searchsorted(size, size[start] + _THRESHOLDS, side="right")) - 1
            stop = min(max(stop, start + 1), start + most, len(self.positions))
            chunk = self._thresholds(start, stop, pool)
            self._count(chunk, np.arange(stop - start), _FLOAT32, pool)
            for exact in (False, True):
                if chunk.doubtful.any():
                    self._count_again(chunk, pool, exact)
            yield RankedChunk(chunk.positions, _hit_groups(chunk))
            start = stop

    def _block(self, rows: np.ndarray, dtype: np.dtype, asked: np.ndarray | None = None) -> _Block:
        """asked: positions of queries with vectors of their own; rows are still their rows in the table."""
        source, at, scale = self.embeddings, rows, self.scale
        if asked is not None and not self.own:
            source, at, scale = self.asked, asked, self.query_scale
        raw = np.ascontiguousarray(source[at])
        if raw.dtype not in (_FLOAT32, _FLOAT64):
            raw = raw.astype(np.float32 if raw.dtype.itemsize < 4 else np.float64)
        near, squares = np.empty(raw.shape, dtype=dtype), np.empty(len(raw))
        kernels.prepare(raw, scale[at], self.centre, near)
        kernels.squared_norms(near, squares)
        return _Block(rows, raw, scale[at], near, squares, self.groups[rows])

    def _thresholds(self, start: int, stop: int, pool: ThreadPoolExecutor) -> _Chunk:
        """Exact distances to the relevant items, sorted, with ties joined."""
        positions = self.positions[start:stop]
        block = self._block(self.task.query_rows[positions], _FLOAT32, positions)
        first, last = self.class_start[start:stop], self.class_stop[start:stop]
        offset = np.concatenate([[0], np.cumsum(last - first)])
        distances = np.empty(offset[-1])
        same_group = self.task.exclude != "none" and self.task.groups is not None
        for begin in range(int(first[0]), int(last[-1]), _TILE[1]):
            items = self._block(self.gallery[begin : min(begin + _TILE[1], int(last[-1]))], _FLOAT32)
            _spread(
                pool,
                self.threads,
                stop - start,
                kernels.relevant_distances,
                *(block.raw, block.scale, block.rows, block.groups),
                *(items.raw, items.scale, items.rows, items.groups),
                *(begin, first, last, same_group, offset, distances),
            )
        entries = len(distances)
        low, high, hits = np.empty(entries), np.empty(entries), np.empty(entries, dtype=np.int64)
        count = np.empty(stop - start, dtype=np.int64)
        _spread(
            pool,
            self.threads,
            stop - start,
            kernels.group_ties,
            *(offset, distances, self.tiny, low, high, hits, count),
        )
        below, equal = np.zeros(entries, dtype=np.int64), np.zeros(entries, dtype=np.int64)
        doubtful = np.zeros(stop - start, dtype=bool)
        return _Chunk(block, positions, first, last, offset, count, low, high, hits, below, equal, doubtful)

    def _count(
        self, chunk: _Chunk, some: np.ndarray, dtype: np.dtype, pool: ThreadPoolExecutor, exact: bool = False
    ) -> None:
        """Streams the gallery past the queries `some` of a chunk, in products of `dtype` or, if `exact`, distances."""
        queries = (
            chunk.block if dtype == _FLOAT32 else self._block(chunk.block.rows[some], dtype, chunk.positions[some])
        )
        # rounding of a product of d terms, with a wide margin over what is observed (at most 7 where this says 12)
        unit = 0.0 if exact else float(np.finfo(dtype).eps) / 2 * (12 + np.sqrt(self.embeddings.shape[1]) / 2)
        norms = np.zeros(len(some)) if exact else queries.squares
        columns = (chunk.class_start[some], chunk.class_stop[some])
        offset, count = chunk.offset[some], chunk.count[some]
        doubtful = np.zeros(len(some), dtype=bool)
        counts = (chunk.low, chunk.high, chunk.below, chunk.equal)
        b, m = _TILE
        lists = (np.empty((b, _PAIRS), dtype=np.int64), np.empty((b, _PAIRS), dtype=dtype), np.zeros(b, dtype=np.int64))
        memory = np.empty(b * m, dtype=dtype)
        for first in range(0, len(self.gallery), m):
            items = self._block(self.gallery[first : first + m], dtype)
            squares = np.zeros(len(items.rows)) if exact else items.squares.astype(dtype)
            reach = np.sqrt(items.squares.max())
            for begin in range(0, len(some), b):
                part = slice(begin, min(begin + b, len(some)))
                size = part.stop - begin
                pairs = (queries.raw[part], queries.scale[part], items.raw, items.scale)
                product = memory[: size * len(squares)].reshape(size, len(squares))
                if exact:
                    _spread(pool, self.threads, size, kernels.exact_tile, *pairs, product)
                else:
                    np.matmul(queries.near[part], items.near.T, out=product)
                error = unit * (np.sqrt(queries.squares[part]) + reach) ** 2
                _spread(
                    pool,
                    self.threads,
                    size,
                    kernels.count_tile,
                    *(product, dtype.type(1 if exact else -2), squares, norms[part], error, first),
                    *(columns[0][part], columns[1][part], self.by_group, queries.groups[part], items.groups),
                    *(offset[part], count[part], *counts, doubtful[part], _ACCEPT if dtype == _FLOAT64 else -1.0),
                    *(_PAIRS, *lists),
                )
                _spread(
                    pool,
                    self.threads,
                    size,
                    kernels.settle,
                    *(*pairs, norms[part], error, offset[part], count[part], *counts, doubtful[part], *lists),
                )
        chunk.doubtful[some] = doubtful

    def _count_again(self, chunk: _Chunk, pool: ThreadPoolExecutor, exact: bool) -> None:
        """Queries with many items too close to tell in float32: products in float64, or the distances themselves."""
        some = np.flatnonzero(chunk.doubtful)
        step = max(1, _CHUNK_BYTES // (8 * self.embeddings.shape[1]))
        for start in range(0, len(some), step):
            part = some[start : start + step]
            entries = np.concatenate([np.arange(chunk.offset[i], chunk.offset[i] + chunk.count[i]) for i in part])
            chunk.below[entries] = chunk.equal[entries] = 0
            self._count(chunk, part, _FLOAT64, pool, exact)


def _hit_groups(chunk: _Chunk) -> HitGroups:
    """Counts below and level with each threshold, over items of other classes, to places in the whole ranking."""
    query = np.repeat(np.arange(len(chunk.count)), chunk.count)
    begin = np.concatenate([[0], np.cumsum(chunk.count)])[:-1]
    entries = chunk.offset[query] + np.arange(len(query)) - begin[query]
    hits = chunk.hits[entries]
    before = np.concatenate([[0], np.cumsum(hits)])[:-1]
    before -= before[begin][query]
    return HitGroups(len(chunk.count), query, chunk.below[entries] + before, chunk.equal[entries] + hits, hits, before)


def _lengths(embeddings: np.ndarray, distance: Distance, task: Task | None) -> np.ndarray:
    """(n,) what each row is multiplied by: 1, or 1 / its length. Refuses what has no distance."""
    n, d = embeddings.shape
    squares, step = np.empty(n), max(1, _CHUNK_BYTES // (8 * d))
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, n, step):
            wide = embeddings[start : start + step].astype(np.float64)
            squares[start : start + step] = np.einsum("nd,nd->n", wide, wide)
    used = np.ones(n, dtype=bool)
    if task is not None:
        used[:] = False
        used[task.query_rows] = used[task.gallery_rows] = True
    bad = np.flatnonzero(used & ~np.isfinite(squares))
    if len(bad) and np.isfinite(embeddings[bad]).all():
        raise EvaluationError("Embeddings so large that squared distances overflow float64. Scale them down.")
    if len(bad):
        raise EvaluationError(
            f"{len(bad)} of {n} embeddings are NaN or infinite, first rows: {bad[:10].tolist()}. "
            "No number is given for them; look at the images of these rows, or at the training for divergence."
        )
    if distance == "euclidean":
        return np.ones(n)
    zero = np.flatnonzero(used & (squares == 0))
    if len(zero):
        raise EvaluationError(
            f"{len(zero)} of {n} embeddings are all zeros and have no direction, first rows: {zero[:10].tolist()}. "
            "The cosine distance does not exist for them: leave them out, or use the Euclidean distance."
        )
    lengths: np.ndarray = np.sqrt(squares)
    return np.divide(1.0, lengths, out=np.zeros(n), where=lengths > 0)


def _threads() -> int:
    """As many as the matrix product uses."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(int(asked), there) if asked.isdigit() and int(asked) > 0 else there


def _spread(pool: ThreadPoolExecutor, threads: int, n: int, kernel: Callable[..., None], *arguments: object) -> None:
    """Runs kernel(begin, end, ...) over 0..n, a share per thread."""
    edges = np.linspace(0, n, min(threads, n) + 1, dtype=np.int64)
    if len(edges) == 2:
        kernel(0, n, *arguments)
        return
    for done in [pool.submit(kernel, int(a), int(b), *arguments) for a, b in itertools.pairwise(edges)]:
        done.result()
