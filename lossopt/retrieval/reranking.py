"""k-reciprocal re-ranking from neighbour lists and sparse matrices: memory of items x k, never items x items.

Every item has a sparse vector of weights over its k-reciprocal neighbours; two items are close if these vectors
overlap. Only the pairs of the top-k lists are compared, and each gets exactly what the dense method would give it.

Choices where the paper leaves room or the public code of its authors departs from it:
- An item is in its own neighbourhood, at distance 0 (as in the code). Queries and gallery items are each other's
  neighbours (as in the code), so all queries must be at hand, unlabelled. Labels play no part.
- A neighbour's own neighbours join if at least 2/3 of them overlap (the paper; the code asks for more than 2/3). Half
  of k1 is rounded down; k2 counts the item itself, so that k2 = 1 is no local expansion (the code).
- Distances are divided by one number, the mean distance to the k1-th neighbour, so that weights exp(-distance) and
  the mixture do not depend on the scale of the embeddings. The paper has no scale; the code squares distances and
  divides them by each item's greatest, which needs all of them. Weights are not scaled to sum 1 (the paper).
- Where several items are equally far at the edge of a neighbourhood, the first rows are taken: with many ties, the
  result depends on the order of the rows.

Letters: n rows, q queries, k length of the lists, u items (queries and gallery), d dimensions.
Source: Zhong, Zheng, Cao & Li 2017, Re-ranking person re-identification with k-reciprocal encoding, CVPR.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_array

from lossopt.errors import EvaluationError
from lossopt.retrieval.index import Distance, Neighbours, unit_length
from lossopt.retrieval.metrics import HitGroups, groups_of_lists
from lossopt.retrieval.neighbours import nearest
from lossopt.retrieval.task import Exclusion, Task

_CELLS = 2**21  # numbers in memory at a time


@dataclass(frozen=True)
class Reciprocal:
    """How neighbourhoods are made and mixed in.

    k1: size of a neighbourhood. k2: items that a neighbourhood is averaged over, itself included; 1: none.
    original: share of the original distance in the final one (lambda of the paper).
    """

    k1: int = 20
    k2: int = 6
    original: float = 0.3

    def __post_init__(self) -> None:
        if self.k1 < 1 or not 1 <= self.k2 <= self.k1 + 1 or not 0 <= self.original <= 1:
            raise ValueError(
                f"Re-ranking needs k1 >= 1, 1 <= k2 <= k1 + 1 and original from 0 to 1, got k1={self.k1}, "
                f"k2={self.k2}, original={self.original}."
            )


def rerank(
    embeddings: np.ndarray,
    task: Task,
    queries: np.ndarray,
    k: int = 100,
    settings: Reciprocal = Reciprocal(),
    distance: Distance = "euclidean",
    query_embeddings: np.ndarray | None = None,
) -> Neighbours:
    """The k nearest items of each query, in the order of re-ranked distances; what lies behind them keeps its place.

    Args:
        embeddings: (n, d) finite floats.
        task: who is searched. A query's list has what the task lets it find. Neighbourhoods ignore
            `exclude="same class"`, which would tell them labels, and keep to `exclude="all"`.
        queries: (q,) row numbers.
        k: length of the lists; a longer list lets more items move.
        settings: of the neighbourhoods.
        distance: "euclidean" or "cosine".
        query_embeddings: (q, d) what the queries ask with, instead of their own embeddings.

    Returns:
        rows: (q, k) row numbers, -1 past the end; distances: (q, k) float64 ascending, inf past the end: a mixture of a
        share in [0, 1] and a scaled distance, comparable within a list only.
    """
    lists = nearest(embeddings, task, queries, k, distance, query_embeddings)
    graph = _Graph(embeddings, task, queries, settings.k1, distance, query_embeddings, lists)
    overlap = graph.overlaps(graph.smoothed(settings.k2), queries, lists.rows)
    there = lists.rows >= 0
    far = np.where(there, lists.distances, 0.0) / graph.scale
    mixed = (1 - settings.original) * (1 - overlap) + settings.original * far
    mixed = mixed.round(12)  # what differs by rounding only is a tie
    mixed[~there] = np.inf
    order = np.argsort(mixed, axis=1, kind="stable")
    return Neighbours(np.take_along_axis(mixed, order, axis=1), np.take_along_axis(lists.rows, order, axis=1))


def reranked_groups(original: HitGroups, lists: Neighbours, relevant: np.ndarray) -> HitGroups:
    """Where relevant items stand once the first k of each ranking are in a new order and the others stay behind.

    Args:
        original: of the whole rankings, before.
        lists: (q, k) the first k of the same queries, in their new order.
        relevant: (q, k) bool, of the lists' items.

    Raises:
        EvaluationError: the lists are not the first k of these rankings (embeddings too close together to be told
            apart).
    """
    k = lists.rows.shape[1]
    front = groups_of_lists(lists.distances, relevant)
    start = np.maximum(original.start, k)
    size = original.start + original.size - start
    whole = original.start >= k
    behind = original.total(np.where(whole, original.hits, 0))
    at_edge = (original.relevant - front.relevant - behind).astype(np.int64)  # hits of a tie that the cut goes through
    hits = np.where(whole, original.hits, np.where(size > 0, at_edge[original.query], 0))
    if (hits < 0).any() or (hits > size.clip(0)).any() or hits.sum() != (at_edge + behind).sum():
        raise EvaluationError(
            "The neighbour lists and the ranks of the relevant items disagree: embeddings are too close together to be "
            "told apart. Look at the signs of collapse."
        )
    kept = hits > 0
    query = np.concatenate([front.query, original.query[kept]])
    start = np.concatenate([front.start, start[kept]])
    order = np.argsort(query, kind="stable")  # the lists first, then what stays behind
    size, hits = np.concatenate([front.size, size[kept]])[order], np.concatenate([front.hits, hits[kept]])[order]
    query, before = query[order], np.cumsum(hits) - hits
    before -= before[np.searchsorted(query, query)]
    return HitGroups(original.queries, query, start[order], size, hits, before)


class _Graph:
    """Neighbourhoods of the u items that ask or are searched; items are numbered 0..u-1 here.

    near: (u, k1 + 1) items, itself first, -1 past the end. weights: (u, u) sparse, exp(-distance) over the extended
    k-reciprocal neighbours. scale: mean distance to the farthest neighbour.
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        task: Task,
        queries: np.ndarray,
        k1: int,
        distance: Distance,
        query_embeddings: np.ndarray | None,
        lists: Neighbours,
    ) -> None:
        self.items = np.union1d(queries, task.gallery_rows)
        exclude: Exclusion = "all" if task.exclude == "all" else "none"
        everyone = replace(task, query_rows=self.items, gallery_rows=self.items, exclude=exclude)
        asking = np.array(embeddings[self.items], dtype=np.float64)
        if query_embeddings is not None:
            asking[np.searchsorted(self.items, queries)] = query_embeddings
        known = np.array_equal(queries, self.items) and np.array_equal(task.gallery_rows, self.items)
        if known and task.exclude == exclude and lists.rows.shape[1] >= k1:  # leave-one-out: no need to search twice
            found = Neighbours(lists.distances[:, :k1], lists.rows[:, :k1])
        else:
            found = nearest(embeddings, everyone, self.items, k1, distance, asking)
        itself = np.arange(len(self.items))[:, None]
        others = np.where(found.rows < 0, -1, np.searchsorted(self.items, found.rows))
        self.near = np.hstack([itself, others])
        farthest = np.where(found.rows < 0, 0.0, found.distances).max(axis=1)
        self.scale = float(farthest.mean()) or 1.0
        self.weights = self._weigh(_extended(self.near, k1), asking, embeddings, distance)

    def _weigh(self, extended: csr_array, asking: np.ndarray, embeddings: np.ndarray, distance: Distance) -> csr_array:
        """exp(-distance / scale) at each place of (u, u) `extended`."""
        searched = embeddings[self.items]
        if distance == "cosine":
            asking, searched = unit_length(asking), unit_length(searched)
        rows = np.repeat(np.arange(extended.shape[0]), np.diff(extended.indptr))
        step = max(1, _CELLS // asking.shape[1])
        for start in range(0, len(rows), step):
            one, other = rows[start : start + step], extended.indices[start : start + step]
            difference = asking[one] - searched[other]
            squares = np.einsum("pd,pd->p", difference, difference)
            far = squares / 2 if distance == "cosine" else np.sqrt(squares)
            extended.data[start : start + step] = np.exp(-np.where(one == other, 0.0, far) / self.scale)
        return extended

    def smoothed(self, k2: int) -> csr_array:
        """Local query expansion: each item's weights become the mean over itself and its k2 - 1 nearest."""
        if k2 == 1:
            return self.weights
        among = _membership(self.near[:, :k2])
        mean = csr_array((1 / np.diff(among.indptr))[:, None] * (among @ self.weights))
        mean.sort_indices()
        return mean

    def overlaps(self, weights: csr_array, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(q, k) sum of minima / sum of maxima of the weights of each query and each (q, k) row; 0 where row is -1."""
        total = weights.sum(axis=1)
        per_row = max(1, int(np.diff(weights.indptr).max()))
        step = max(1, _CELLS // (per_row * max(1, rows.shape[1])))
        asked = np.searchsorted(self.items, queries)
        found = np.zeros(rows.shape)
        for start in range(0, len(rows), step):
            there = rows[start : start + step] >= 0
            one = np.broadcast_to(asked[start : start + step, None], there.shape)[there]
            other = np.searchsorted(self.items, rows[start : start + step][there])
            shared = weights[one].minimum(weights[other]).sum(axis=1)
            found[start : start + step][there] = shared / (total[one] + total[other] - shared)
        return found


def _membership(near: np.ndarray) -> csr_array:
    """(u, u) sparse: 1 where the (u, m) table lists the item, -1 being nobody."""
    there = near >= 0
    ends = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    return csr_array((np.ones(int(ends[-1])), near[there], ends), shape=(len(near), len(near)))


def _extended(near: np.ndarray, k1: int) -> csr_array:
    """(u, u) sparse 1: the k1-reciprocal neighbours, and those of each at half k1 where 2/3 of these are shared."""
    listed, listed_half = _membership(near), _membership(near[:, : k1 // 2 + 1])
    mutual, half = csr_array(listed * listed.T), csr_array(listed_half * listed_half.T)
    size = np.diff(half.indptr)
    shared = csr_array(mutual * (mutual @ half.T))  # at (p, c): how many of c's half neighbourhood p has, too
    joins = shared.copy()
    joins.data = (3 * shared.data >= 2 * size[shared.indices]).astype(float)
    joins.eliminate_zeros()
    extended = csr_array(mutual + joins @ half)
    extended.sort_indices()
    return extended
