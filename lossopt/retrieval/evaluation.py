"""Embeddings in, recall@k and MAP@R out: FAISS proposes neighbours, float64 orders them, ties count as expected.

What is excluded is counted; what has no meaning is refused. Letters: n rows, q queries, g gallery, d embedding, R
relevant items of a query.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lossopt.errors import EvaluationError
from lossopt.retrieval.index import Distance, NeighbourIndex, unit_length
from lossopt.retrieval.metrics import map_at_r, recall_at_k, tie_groups

KS = (1, 2, 4, 8)
_LONG_LIST = 512
_LIST_CELLS = 2**21  # queries are taken in chunks of this many (query, neighbour) cells: bounds the memory


@dataclass(frozen=True)
class Collapse:
    """Signs that the embeddings say nothing.

    tie_share: share of queries whose nearest distance is shared by several items.
    mean_cosine: of random pairs; near 1 when all vectors point one way.
    spread: standard deviation per dimension x sqrt(d), of unit vectors: near 1 spread out, 0 collapsed.
    effective_rank: exp of the entropy of the centred singular values (Roy & Vetterli 2007); 1 is a line.
    """

    tie_share: float
    mean_cosine: float
    spread: float
    effective_rank: float

    @property
    def collapsed(self) -> bool:
        """Whether a recall figure of these embeddings should not be believed."""
        return self.tie_share > 0.1 or self.spread < 0.02 or self.effective_rank < 1.5


@dataclass(frozen=True)
class RetrievalResult:
    """What one evaluation found.

    metrics: mean over the queries that have a relevant item; keys "recall@1", ..., "map@r".
    metrics_all_queries: the same with the others counted as 0.
    queries: those with a relevant item; excluded: those without; gallery, classes, d: sizes.
    per_query: metric name to (queries,) values; query_rows: (queries,) row numbers they belong to.
    neighbours: (queries, at most 10) gallery rows, nearest first; neighbour_distances: likewise.
    """

    metrics: dict[str, float]
    metrics_all_queries: dict[str, float]
    queries: int
    excluded: int
    gallery: int
    classes: int
    dimensions: int
    distance: Distance
    collapse: Collapse
    per_query: dict[str, np.ndarray] = field(repr=False)
    query_rows: np.ndarray = field(repr=False)
    neighbours: np.ndarray = field(repr=False)
    neighbour_distances: np.ndarray = field(repr=False)


def evaluate_retrieval(
    embeddings: np.ndarray,
    labels: np.ndarray,
    query: np.ndarray | None = None,
    gallery: np.ndarray | None = None,
    ks: Sequence[int] = KS,
    distance: Distance = "euclidean",
) -> RetrievalResult:
    """Search every query row among the gallery rows; a row in both never finds itself (by row number, not by rank).

    Args:
        embeddings: (n, d) finite floats.
        labels: (n,) integers of any size; equal means relevant.
        query, gallery: (n,) bool; None: all rows.
        ks: cut-offs of recall@k; each at most the number of items a query can find.
        distance: "euclidean" or "cosine".

    Raises:
        EvaluationError: NaN or infinite rows (named), an empty gallery, no query with a relevant item, a k too large.
        ValueError: arguments of the wrong shape or kind.
    """
    if distance not in ("euclidean", "cosine"):
        raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}.")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be one or more whole numbers of at least 1, got {tuple(ks)}.")
    embeddings, labels = np.asarray(embeddings), np.asarray(labels)
    is_query, is_gallery = _mask("query", query, len(embeddings)), _mask("gallery", gallery, len(embeddings))
    _refuse(embeddings, labels, is_query, is_gallery)
    labels = np.unique(labels, return_inverse=True)[1].reshape(-1)
    query_rows, gallery_rows = np.flatnonzero(is_query), np.flatnonzero(is_gallery)
    per_class = np.bincount(labels[gallery_rows], minlength=int(labels.max()) + 1)
    r = per_class[labels[query_rows]] - is_gallery[query_rows]
    asked, excluded = query_rows[r > 0], int((r == 0).sum())
    if not len(asked):
        raise EvaluationError(
            f"None of the {len(query_rows)} queries has another image of its class among the {len(gallery_rows)} "
            "gallery images, so there is nothing to find. Check the labels and the query and gallery columns."
        )
    candidates = len(gallery_rows) - int(is_gallery[asked].any())
    if max(ks) > candidates:
        raise EvaluationError(f"recall@{max(ks)} was asked for, but a query has {candidates} items to find. Lower k.")
    search = _Search(embeddings, labels, gallery_rows, distance)
    lists = search.run(asked, r[r > 0], tuple(ks))
    means = {name: float(values.mean()) for name, values in lists.per_query.items()}
    share = len(asked) / len(query_rows)
    return RetrievalResult(
        metrics=means,
        metrics_all_queries={name: mean * share for name, mean in means.items()},
        queries=len(asked),
        excluded=excluded,
        gallery=len(gallery_rows),
        classes=len(np.unique(labels[gallery_rows])),
        dimensions=embeddings.shape[1],
        distance=distance,
        collapse=measure_collapse(embeddings, lists.tied_first),
        per_query=lists.per_query,
        query_rows=asked,
        neighbours=lists.rows,
        neighbour_distances=lists.distances,
    )


def _mask(name: str, column: np.ndarray | None, n: int) -> np.ndarray:
    if column is None:
        return np.ones(n, dtype=bool)
    column = np.asarray(column)
    if column.dtype != bool or column.shape != (n,):
        raise ValueError(
            f"{name} must be ({n},) booleans, one per row, got {column.dtype} of shape {column.shape}. "
            "From row numbers: mask = np.zeros(n, bool); mask[rows] = True."
        )
    return column


def _refuse(embeddings: np.ndarray, labels: np.ndarray, is_query: np.ndarray, is_gallery: np.ndarray) -> None:
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(f"One label per embedding: got {labels.shape} labels for {embeddings.shape} embeddings.")
    if embeddings.ndim != 2 or not embeddings.shape[1]:
        raise EvaluationError(f"Embeddings must be an (n, d) array, got shape {embeddings.shape}.")
    if not is_query.any() or not is_gallery.any():
        raise EvaluationError(f"{is_query.sum()} queries and {is_gallery.sum()} gallery images: both are needed.")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise EvaluationError(
            f"{len(bad)} of {len(embeddings)} embeddings are NaN or infinite, first rows: {bad[:10].tolist()}. "
            "No number is given for them; look at the images of these rows, or at the training for divergence."
        )


@dataclass
class _Lists:
    per_query: dict[str, np.ndarray]
    tied_first: np.ndarray
    rows: np.ndarray
    distances: np.ndarray


class _Search:
    """FAISS lists, re-ranked in float64 and long enough to hold every tie at a cut.

    Where a query has hundreds of relevant items, its list comes from one float64 matrix product instead: FAISS is slow
    at long lists. Either way the order is that of float64 distances, and equal vectors are equally far.
    """

    def __init__(
        self, embeddings: np.ndarray, labels: np.ndarray, gallery_rows: np.ndarray, distance: Distance
    ) -> None:
        self.vectors = unit_length(embeddings) if distance == "cosine" else embeddings.astype(np.float64)
        self.labels, self.gallery_rows, self.distance = labels, gallery_rows, distance
        self.gallery = self.vectors[gallery_rows]
        self.index = NeighbourIndex(self.gallery.astype(np.float32), "euclidean")
        # a float32 |q|^2 + |g|^2 - 2 q.g is wrong by no more than about this much
        self.error = 4e-7 * np.sqrt(embeddings.shape[1]) * float((self.vectors**2).sum(axis=1).max(initial=0.0))

    def run(self, queries: np.ndarray, r: np.ndarray, ks: tuple[int, ...]) -> _Lists:
        """All metrics of all queries, in chunks of bounded size; queries of like R go together."""
        names = [*(f"recall@{k}" for k in ks), "map@r"]
        result = _Lists(
            per_query={name: np.zeros(len(queries)) for name in names},
            tied_first=np.zeros(len(queries), dtype=bool),
            rows=np.full((len(queries), 10), -1, dtype=np.int64),
            distances=np.full((len(queries), 10), np.inf),
        )
        order = np.argsort(r, kind="stable")
        start = 0
        while start < len(order):
            length = self._list_length(int(r[order[start]]), ks)
            stop = start + max(1, _LIST_CELLS // (length + 1))
            while stop - start > 1 and self._list_length(int(r[order[min(stop, len(order)) - 1]]), ks) > 2 * length:
                stop = start + (min(stop, len(order)) - start) // 2
            part = order[start:stop]
            self._chunk(queries[part], r[part], ks, part, result)
            start += len(part)
        return result

    def _list_length(self, r: int, ks: tuple[int, ...]) -> int:
        needed = max(*ks, 10, r)
        return needed + 1 + 8 + needed // 20  # itself, and slack so that ties and rounding at the cut are inside

    def _chunk(self, queries: np.ndarray, r: np.ndarray, ks: tuple[int, ...], part: np.ndarray, result: _Lists) -> None:
        needed, length = max(*ks, 10, int(r.max())), self._list_length(int(r.max()), ks)
        step = max(1, _LIST_CELLS // len(self.gallery))
        if length > _LONG_LIST and len(queries) > step:
            for some in np.split(np.arange(len(queries)), range(step, len(queries), step)):
                self._chunk(queries[some], r[some], ks, part[some], result)
            return
        if length > _LONG_LIST:
            rows, exact, last = self._by_product(queries, length)
        else:
            found = self.index.search(self.vectors[queries], length)
            rows = self.gallery_rows[found.rows]
            exact, last = self._exact(queries, rows), found.distances[:, -1].astype(np.float64) ** 2 - self.error
        cut = np.partition(exact, min(needed, exact.shape[1] - 1), axis=1)[:, min(needed, exact.shape[1] - 1)]
        safe = np.full(len(queries), exact.shape[1] == len(self.gallery)) | (cut < last)
        self._score(queries[safe], rows[safe], exact[safe], r[safe], ks, part[safe], result)
        unsafe = np.flatnonzero(~safe)
        for begin in range(0, len(unsafe), step):
            some = unsafe[begin : begin + step]
            everyone = np.broadcast_to(self.gallery_rows, (len(some), len(self.gallery_rows)))
            self._score(queries[some], everyone, self._exact(queries[some], everyone), r[some], ks, part[some], result)

    def _by_product(self, queries: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, squared distances and a bound below everything left out; near-ties are settled as in `_exact`."""
        asked = self.vectors[queries]
        squares = (asked**2).sum(axis=1)[:, None] + (self.gallery**2).sum(axis=1)
        product = squares - 2 * asked @ self.gallery.T
        product[queries[:, None] == self.gallery_rows] = np.inf  # itself, by row number
        length = min(length, product.shape[1])
        kept = np.argpartition(product, length - 1, axis=1)[:, :length]
        exact = np.take_along_axis(product, kept, axis=1)
        order = np.argsort(exact, axis=1)
        kept, exact = np.take_along_axis(kept, order, axis=1), np.take_along_axis(exact, order, axis=1)
        doubt = 1e-11 * float(squares.max())  # hundreds of times what a float64 product can be wrong by
        last = exact[:, -1] - doubt
        close = np.diff(exact, axis=1) <= doubt
        unsettled = np.zeros(exact.shape, dtype=bool)
        unsettled[:, 1:] |= close
        unsettled[:, :-1] |= close
        rows = self.gallery_rows[kept]
        for one in np.flatnonzero(unsettled.any(axis=1)):
            settled = self._exact(queries[one : one + 1], rows[one : one + 1, unsettled[one]])
            exact[one, unsettled[one]] = settled[0]
        return rows, exact, last

    def _exact(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(q, m) squared Euclidean distances in float64; equal vectors give equal distances to the last bit."""
        exact = np.empty(rows.shape)
        step = max(1, 2**20 // self.vectors.shape[1])
        for one, query in enumerate(queries):
            for begin in range(0, rows.shape[1], step):
                some = rows[one, begin : begin + step]
                exact[one, begin : begin + step] = ((self.vectors[some] - self.vectors[query]) ** 2).sum(axis=1)
        exact[rows == queries[:, None]] = np.inf  # itself, by row number
        return exact

    def _score(
        self,
        queries: np.ndarray,
        rows: np.ndarray,
        exact: np.ndarray,
        r: np.ndarray,
        ks: tuple[int, ...],
        part: np.ndarray,
        result: _Lists,
    ) -> None:
        if not len(queries):
            return
        order = np.argsort(exact, axis=1, kind="stable")
        exact, rows = np.take_along_axis(exact, order, axis=1), np.take_along_axis(rows, order, axis=1)
        relevant = (self.labels[rows] == self.labels[queries][:, None]) & np.isfinite(exact)
        groups = tie_groups(exact, relevant)
        for k in ks:
            result.per_query[f"recall@{k}"][part] = recall_at_k(groups, k)
        result.per_query["map@r"][part] = map_at_r(groups, r)
        result.tied_first[part] = groups.size[:, 0] > 1
        shown = min(10, rows.shape[1])
        plain = np.sqrt(exact[:, :shown]) if self.distance == "euclidean" else exact[:, :shown] / 2
        result.rows[part, :shown] = np.where(np.isfinite(plain), rows[:, :shown], -1)
        result.distances[part, :shown] = plain


def measure_collapse(embeddings: np.ndarray, tied_first: np.ndarray, sample: int = 2_000) -> Collapse:
    """Signs of collapse on at most `sample` evenly spaced rows; see `Collapse`."""
    rows = np.linspace(0, len(embeddings) - 1, min(sample, len(embeddings))).astype(np.int64)
    unit = unit_length(embeddings[rows])
    count, d = unit.shape
    mean = unit.mean(axis=0)
    cosine = (count * float(mean @ mean) - float((unit**2).sum() / count)) / max(1, count - 1)
    values = np.linalg.svd(unit - mean, compute_uv=False)
    total = float(values.sum())
    shares = values[values > 0] / total if total > 0 else np.ones(1)
    return Collapse(
        tie_share=float(tied_first.mean()),
        mean_cosine=cosine,
        spread=float(np.sqrt(unit.var(axis=0).mean() * d)),
        effective_rank=float(np.exp(-(shares * np.log(shares)).sum())),
    )
