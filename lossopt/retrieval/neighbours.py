"""The nearest allowed items of some queries: FAISS proposes them, float64 distances put them in order.

Letters: n rows, q queries, k neighbours, d dimensions.
"""

import numpy as np

from lossopt.retrieval.factory import FLAT
from lossopt.retrieval.index import Distance, NeighbourIndex, Neighbours
from lossopt.retrieval.task import Task

_SLACK = 8
_CELLS = 2**22


def nearest(
    embeddings: np.ndarray,
    task: Task,
    queries: np.ndarray,
    k: int,
    distance: Distance = "euclidean",
    query_embeddings: np.ndarray | None = None,
    factory: str = FLAT,
    parameters: str = "",
    left_out: int = 0,
) -> Neighbours:
    """The k nearest gallery rows of each query, without itself and without what the task leaves out.

    Args:
        embeddings: (n, d) finite floats.
        task: who is searched.
        queries: (q,) row numbers.
        k: neighbours.
        distance: "euclidean" or "cosine" (1 - cosine similarity).
        query_embeddings: (q, d) what to ask with instead of the rows' own embeddings.
        factory, parameters: of the `NeighbourIndex` that proposes; what an approximate one does not find is missing.
        left_out: how many near rows the task may leave out of an answer, as a guess; a poor one costs time only.

    Returns:
        distances: (q, k) float64, ascending, inf past the end; rows: (q, k) row numbers of `embeddings`, -1 past the
        end. Equal distances are in the order of their rows.
    """
    asked = np.asarray(embeddings[queries] if query_embeddings is None else query_embeddings)
    gallery = np.asarray(embeddings[task.gallery_rows])
    scales = [_lengths(some) if distance == "cosine" else np.ones(len(some)) for some in (asked, gallery)]
    part = np.linspace(0, len(gallery) - 1, min(1024, len(gallery))).astype(np.int64)
    # around their middle, distances stay and float32 loses less near a collapse; a power of two loses nothing
    centre = np.median(gallery[part] * scales[1][part, None], axis=0).astype(np.float64)
    largest = max(_reach(gallery, scales[1], centre), _reach(asked, scales[0], centre))
    shrink = 2.0 ** -np.ceil(np.log2(largest)) if largest > 1e-150 else 1.0
    index = NeighbourIndex(_around(gallery, scales[1], centre, shrink), "euclidean", factory, parameters)
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    distances = np.full((len(queries), k), np.inf)
    pending, length = np.arange(len(queries)), k + left_out + _SLACK
    while len(pending):
        length = min(length, len(gallery))
        unfinished = []
        step = max(1, _CELLS // (length + asked.shape[1]))
        for start in range(0, len(pending), step):
            some = pending[start : start + step]
            found = index.search(_around(asked[some], scales[0][some], centre, shrink), length).rows
            items = task.gallery_rows[found]
            exact = _distances(asked[some] * scales[0][some, None], gallery, scales[1], found)
            exact[task.left_out(queries[some], items) | (found < 0)] = np.inf
            order = np.lexsort((items, exact), axis=1)[:, :k]
            exact = np.take_along_axis(exact, order, axis=1)
            there = order.shape[1]
            distances[some, :there] = exact
            rows[some, :there] = np.where(np.isfinite(exact), np.take_along_axis(items, order, axis=1), -1)
            if length < len(gallery):  # an index that gave fewer than asked for has no more to give
                unfinished.append(some[~np.isfinite(exact[:, -1]) & (found >= 0).all(axis=1)])
        pending = np.concatenate(unfinished) if unfinished else pending[:0]
        length *= 4
    return Neighbours(distances / 2 if distance == "cosine" else np.sqrt(distances), rows)


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """(n,) 1 / length of each row; 1 for a row of zeros."""
    step = max(1, _CELLS // vectors.shape[1])
    starts = range(0, max(len(vectors), 1), step)
    squares = np.concatenate([np.square(vectors[i : i + step], dtype=np.float64).sum(axis=1) for i in starts])
    return 1 / np.sqrt(np.where(squares > 0, squares, 1))


def _reach(vectors: np.ndarray, scale: np.ndarray, centre: np.ndarray) -> float:
    """The largest coordinate around the centre."""
    step = max(1, _CELLS // vectors.shape[1])
    starts = range(0, len(vectors), step)
    return max(
        (float(np.abs(vectors[i : i + step] * scale[i : i + step, None] - centre).max()) for i in starts), default=0.0
    )


def _around(vectors: np.ndarray, scale: np.ndarray, centre: np.ndarray, shrink: float) -> np.ndarray:
    """(n, d) float32 copies, shifted and shrunk."""
    copies = np.empty(vectors.shape, dtype=np.float32)
    step = max(1, _CELLS // vectors.shape[1])
    for i in range(0, len(vectors), step):
        copies[i : i + step] = (vectors[i : i + step] * scale[i : i + step, None] - centre) * shrink
    return copies


def _distances(asked: np.ndarray, gallery: np.ndarray, scale: np.ndarray, found: np.ndarray) -> np.ndarray:
    """(q, m) squared Euclidean distances in float64 between (q, d) queries and (q, m) positions of the gallery."""
    exact = np.empty(found.shape)
    step = max(1, _CELLS // (found.shape[1] * asked.shape[1]))
    for start in range(0, len(asked), step):
        some = slice(start, start + step)
        difference = gallery[found[some]] * scale[found[some]][:, :, None] - asked[some, None, :]
        exact[some] = np.einsum("qmd,qmd->qm", difference, difference)
    return exact
