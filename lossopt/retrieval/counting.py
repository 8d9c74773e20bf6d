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
from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from lossopt.errors import EvaluationError
from lossopt.retrieval import kernels
from lossopt.retrieval.index import Distance
from lossopt.retrieval.metrics import HitGroups
from lossopt.retrieval.task import Task

_TILE = (512, 4096)  # queries x gallery items of one product
_SQUARE = 2040  # side of a product that serves rows and columns; rows a power of two apart share cache lines
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
    embeddings: np.ndarray,
    task: Task,
    distance: Distance = "euclidean",
    query_embeddings: np.ndarray | None = None,
    most: int | None = None,
) -> Iterator[RankedChunk]:
    """Ranks of the relevant items of each query that has any, a chunk of queries at a time.

    Args:
        embeddings: (n, d) finite numbers of any type, possibly a memory map.
        task: who asks and who is searched.
        distance: "euclidean" or "cosine".
        query_embeddings: (q, d) what the queries of the task ask with instead of their own rows; None: their own.
        most: rank only so many of the nearest relevant items, and those tied with the last; no rank up to `most` is
            missed. None: all.

    Raises:
        EvaluationError: rows that are NaN or infinite, too large, or of length zero under the cosine distance; named.
    """
    threads = _threads()
    with ThreadPoolExecutor(threads) as pool:
        yield from _Counting(embeddings, task, distance, query_embeddings, most, threads, pool).chunks()


@dataclass
class _Block:
    """Some rows, as stored and as float32 (or 64) working copies around the centre."""

    rows: np.ndarray
    raw: np.ndarray
    scale: np.ndarray
    near: np.ndarray
    squares: np.ndarray
    groups: np.ndarray

    def some(self, part: slice) -> "_Block":
        """Views of some of the rows."""
        columns = (self.rows, self.raw, self.scale, self.near, self.squares, self.groups)
        return _Block(*(column[part] for column in columns))


@dataclass
class _Chunk:
    """Queries of one chunk with their thresholds: offset and count per query; edges and counts per tie group."""

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
        self,
        embeddings: np.ndarray,
        task: Task,
        distance: Distance,
        query_embeddings: np.ndarray | None,
        most: int | None,
        threads: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.embeddings, self.task, self.distance = embeddings, task, distance
        self.own = query_embeddings is None
        self.asked = embeddings if query_embeddings is None else query_embeddings
        self.threads, self.pool = threads, pool
        self.most = len(embeddings) if most is None else most
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
        self.query_scale = self.scale if self.own else _lengths(self.asked, distance, None)
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

    def chunks(self) -> Iterator[RankedChunk]:
        """Chunks whose vectors and thresholds fit; all at once if each product can serve both sides."""
        size = np.concatenate([[0], np.cumsum(self.class_stop - self.class_start)])
        square = self.own and np.array_equal(self.task.query_rows, self.task.gallery_rows) and size[-1] <= _THRESHOLDS
        most = len(self.positions) if square else max(1, _CHUNK_BYTES // (4 * self.embeddings.shape[1]))
        start = 0
        while start < len(self.positions):
            stop = int(np.searchsorted(size, size[start] + _THRESHOLDS, side="right")) - 1
            stop = min(max(stop, start + 1), start + most, len(self.positions))
            chunk = self._thresholds(start, stop)
            if square:
                self._count_square(chunk)
            else:
                self._count(chunk, np.arange(stop - start), _FLOAT32)
            for exact in (False, True):
                if chunk.doubtful.any():
                    self._count_again(chunk, exact)
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

    def _thresholds(self, start: int, stop: int) -> _Chunk:
        """Exact distances to the relevant items, sorted, with ties joined."""
        n, positions = stop - start, self.positions[start:stop]
        first, last = self.class_start[start:stop], self.class_stop[start:stop]
        offset = np.concatenate([[0], np.cumsum(last - first)])
        distances = np.empty(offset[-1])
        same_group = self.task.exclude != "none" and self.task.groups is not None
        for part in self._parts(n, _FLOAT32):
            queries = self._queries(positions[part], _FLOAT32)
            for begin in range(int(first[part][0]), int(last[part][-1]), _TILE[1]):
                items = self._block(self.gallery[begin : min(begin + _TILE[1], int(last[part][-1]))], _FLOAT32)
                self._spread(
                    len(positions[part]),
                    kernels.relevant_distances,
                    *(queries.raw, queries.scale, queries.rows, queries.groups),
                    *(items.raw, items.scale, items.rows, items.groups),
                    *(begin, first[part], last[part], same_group, offset[part], distances),
                )
        low, high, hits = np.empty(len(distances)), np.empty(len(distances)), np.empty(len(distances), dtype=np.int64)
        count = np.empty(n, dtype=np.int64)
        self._spread(n, kernels.group_ties, *(offset, distances, self.tiny, self.most, low, high, hits, count))
        below, equal = np.zeros_like(hits), np.zeros_like(hits)
        doubtful = np.zeros(n, dtype=bool)
        return _Chunk(positions, first, last, offset, count, low, high, hits, below, equal, doubtful)

    def _parts(self, n: int, dtype: np.dtype) -> list[slice]:
        step = max(1, _CHUNK_BYTES // (dtype.itemsize * self.embeddings.shape[1]))
        return [slice(start, min(start + step, n)) for start in range(0, n, step)]

    def _queries(self, positions: np.ndarray, dtype: np.dtype) -> _Block:
        return self._block(self.task.query_rows[positions], dtype, positions)

    def _count(self, chunk: _Chunk, some: np.ndarray, dtype: np.dtype, exact: bool = False) -> None:
        """Streams the gallery past the queries `some` of a chunk, in products of `dtype` or, if `exact`, distances."""
        memory = np.empty(_TILE[0] * _TILE[1], dtype=dtype)
        for part in self._parts(len(some), dtype):
            queries = self._queries(chunk.positions[some[part]], dtype)
            for first in range(0, len(self.gallery), _TILE[1]):
                items = self._block(self.gallery[first : first + _TILE[1]], dtype)
                for begin in range(0, len(queries.rows), _TILE[0]):
                    rows = slice(begin, min(begin + _TILE[0], len(queries.rows)))
                    shape = (rows.stop - begin, len(items.rows))
                    product = memory[: shape[0] * shape[1]].reshape(shape)
                    if exact:
                        pairs = (queries.raw[rows], queries.scale[rows], items.raw, items.scale)
                        self._spread(shape[0], kernels.exact_tile, *pairs, product)
                    else:
                        np.matmul(queries.near[rows], items.near.T, out=product)
                    self._count_tile(chunk, some[part][rows], queries.some(rows), items, first, product, exact)

    def _count_square(self, chunk: _Chunk) -> None:
        """Queries are the gallery: a product of two blocks counts for the rows and, transposed, for the columns.

        Each thread takes rows of blocks, with counts of its own and a product on one core: threads of the matrix
        library that wait for the next product would take the time of those that count.
        """
        tops = range(0, len(self.gallery), _SQUARE)
        turns = [number % (2 * self.threads) for number in range(len(tops))]  # there and back: later rows are shorter
        shares = [
            [top for top, turn in zip(tops, turns, strict=True) if min(turn, 2 * self.threads - 1 - turn) == thread]
            for thread in range(self.threads)
        ]
        with threadpool_limits(1, user_api="blas"):
            for part in list(self.pool.map(lambda share: self._count_rows(chunk, share), shares)):
                chunk.below += part.below
                chunk.equal += part.equal
                chunk.doubtful |= part.doubtful

    def _count_rows(self, chunk: _Chunk, tops: list[int]) -> _Chunk:
        """The counts of some rows of blocks, and of the columns that they serve, beginning at 0."""
        alone = copy(self)
        alone.threads = 1
        part = replace(
            chunk,
            below=np.zeros_like(chunk.below),
            equal=np.zeros_like(chunk.equal),
            doubtful=np.zeros_like(chunk.doubtful),
        )
        place = np.full(len(self.embeddings), -1)
        place[self.task.query_rows[chunk.positions]] = np.arange(len(chunk.positions))
        memory = np.empty((2, _SQUARE * _SQUARE), dtype=np.float32)
        for top in tops:
            above = self._block(self.gallery[top : top + _SQUARE], _FLOAT32)
            for left in range(top, len(self.gallery), _SQUARE):
                beside = above if left == top else self._block(self.gallery[left : left + _SQUARE], _FLOAT32)
                shape = (len(above.rows), len(beside.rows))
                product, turned = memory[:, : shape[0] * shape[1]]
                product, turned = product.reshape(shape), turned.reshape(shape[::-1])
                np.matmul(above.near, beside.near.T, out=product)
                alone._count_tile(part, place[above.rows], above, beside, left, product)
                if left != top:
                    kernels.transpose(0, shape[1], product, turned)
                    alone._count_tile(part, place[beside.rows], beside, above, top, turned)
        return part

    def _count_tile(
        self,
        chunk: _Chunk,
        some: np.ndarray,
        queries: _Block,
        items: _Block,
        first: int,
        product: np.ndarray,
        exact: bool = False,
    ) -> None:
        """Counts one tile. some: place of each query in the chunk, -1 for a row that asks nothing."""
        dtype, n = product.dtype, len(some)
        # rounding of a product of d terms, with a wide margin over what is observed (at most 7 where this says 12)
        unit = 0.0 if exact else float(np.finfo(dtype).eps) / 2 * (12 + np.sqrt(self.embeddings.shape[1]) / 2)
        norms, squares = (np.zeros(n), np.zeros(len(items.rows))) if exact else (queries.squares, items.squares)
        error = unit * (np.sqrt(queries.squares) + np.sqrt(items.squares.max())) ** 2
        offset, count = chunk.offset[some], np.where(some >= 0, chunk.count[some], 0)
        doubtful = chunk.doubtful[some]
        counts = (chunk.low, chunk.high, chunk.below, chunk.equal, doubtful)
        lists = (np.empty((n, _PAIRS), dtype=np.int64), np.empty((n, _PAIRS), dtype=dtype), np.zeros(n, dtype=np.int64))
        self._spread(
            n,
            kernels.count_tile,
            *(product, dtype.type(1 if exact else -2), squares.astype(dtype), norms, error),
            *(first, chunk.class_start[some], chunk.class_stop[some], self.by_group, queries.groups, items.groups),
            *(offset, count, *counts, _ACCEPT if dtype == _FLOAT64 else -1.0, _PAIRS, *lists),
        )
        pairs = (queries.raw, queries.scale, items.raw, items.scale)
        self._spread(n, kernels.settle, *(*pairs, norms, error, offset, count, *counts, *lists))
        asking = some >= 0
        chunk.doubtful[some[asking]] = doubtful[asking]

    def _count_again(self, chunk: _Chunk, exact: bool) -> None:
        """Queries with many items too close to tell in float32: products in float64, or the distances themselves."""
        some = np.flatnonzero(chunk.doubtful)
        for i in some:
            entries = slice(chunk.offset[i], chunk.offset[i] + chunk.count[i])
            chunk.below[entries] = chunk.equal[entries] = 0
        chunk.doubtful[:] = False
        self._count(chunk, some, _FLOAT64, exact)

    def _spread(self, n: int, kernel: Callable[..., None], *arguments: object) -> None:
        """Runs kernel(begin, end, ...) over 0..n, a share per thread."""
        edges = np.linspace(0, n, min(self.threads, n) + 1, dtype=np.int64)
        if len(edges) == 2:
            kernel(0, n, *arguments)
            return
        parts = [self.pool.submit(kernel, int(a), int(b), *arguments) for a, b in itertools.pairwise(edges)]
        for done in parts:
            done.result()


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
    small = np.flatnonzero(used & (squares < 1e-290))
    if len(small) and (distance == "cosine" or len(small) == used.sum()) and embeddings[small].any():
        raise EvaluationError("Embeddings so small that squared distances underflow float64. Scale them up.")
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
