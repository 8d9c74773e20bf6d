"""Query expansion: each query is moved towards what it found first, then asks again; memory of queries x (k + d).

Letters: n rows, q queries, k neighbours, d dimensions.
"""

from dataclasses import replace

import numpy as np

from lossopt.retrieval.index import Distance, unit_length
from lossopt.retrieval.neighbours import nearest
from lossopt.retrieval.task import Task

_CELLS = 2**21  # float64 numbers of neighbours' embeddings in memory at a time


def expand_queries(
    embeddings: np.ndarray,
    task: Task,
    queries: np.ndarray,
    k: int = 5,
    alpha: float = 3.0,
    distance: Distance = "euclidean",
    query_embeddings: np.ndarray | None = None,
) -> np.ndarray:
    """Weighted means of queries and their k nearest items: weight 1 for itself, max(0, cosine)^alpha for a neighbour.

    alpha = 0 is average query expansion: all weights are 1. A query never counts twice, and what the task leaves out
    for it does not count at all; a query that finds nothing stays as it is.

    Args:
        embeddings: (n, d) finite floats.
        task: who is searched.
        queries: (q,) row numbers.
        k: neighbours in the mean; fewer than a class has, or it pulls in other classes. 0: nothing changes.
        alpha: 0 or more; the larger, the less a far neighbour counts.
        distance: by which neighbours are found. "cosine": the mean is of unit vectors and has length 1; "euclidean":
            the mean stays in the units of the embeddings.
        query_embeddings: (q, d) the queries, where they are not the rows' own embeddings.

    Returns:
        (q, d) float64, for `query_embeddings` of evaluation, `nearest` and re-ranking.

    Raises:
        ValueError: a negative k or alpha.

    Source: Chum et al. 2007, Total recall, ICCV (average); Radenovic, Tolias & Chum 2018, Fine-tuning CNN image
    retrieval with no human annotation, TPAMI, section 3.5 (alpha).
    """
    if k < 0 or not 0 <= alpha < np.inf:
        raise ValueError(f"Expansion needs k >= 0 and alpha >= 0, got k={k} and alpha={alpha}.")
    asked = np.asarray(embeddings[queries] if query_embeddings is None else query_embeddings)
    found = nearest(embeddings, task, queries, k, distance, asked).rows if k else np.empty((len(queries), 0), np.int64)
    expanded = np.empty(asked.shape)
    step = max(1, _CELLS // ((k + 1) * asked.shape[1]))
    for start in range(0, len(queries), step):
        some = slice(start, start + step)
        near = embeddings[found[some]].astype(np.float64)
        expanded[some] = _weighted_mean(asked[some].astype(np.float64), near, found[some] >= 0, alpha, distance)
    return expanded


def augment_gallery(
    embeddings: np.ndarray, task: Task, k: int = 5, alpha: float = 3.0, distance: Distance = "euclidean"
) -> np.ndarray:
    """Database-side augmentation: each gallery item becomes the mean of itself and its k nearest gallery items.

    Where the queries stand in the gallery, an item may take up the query's own embedding: the figure then holds for a
    gallery that is known beforehand with all its images, as in leave-one-out tests, not for new queries. Labels play no
    part: only `exclude="all"` of the task is kept to.

    Returns:
        (n, d) float64: a copy in which the gallery rows are replaced. Give the queries' own embeddings as
        `query_embeddings` where they stand in the gallery too.

    Raises:
        ValueError: as `expand_queries`.

    Source: Arandjelovic & Zisserman 2012, Three things everyone should know to improve object retrieval, CVPR.
    """
    among = replace(task, exclude="all" if task.exclude == "all" else "none")
    augmented = np.array(embeddings, dtype=np.float64)
    augmented[task.gallery_rows] = expand_queries(embeddings, among, task.gallery_rows, k, alpha, distance)
    return augmented


def _weighted_mean(
    asked: np.ndarray, near: np.ndarray, there: np.ndarray, alpha: float, distance: Distance
) -> np.ndarray:
    """(b, d) means of (b, d) queries and (b, k, d) neighbours, of which `there` (b, k) tells the real ones."""
    unit = unit_length(asked)
    unit_near = unit_length(near.reshape(-1, near.shape[2])).reshape(near.shape)
    cosine = np.einsum("bkd,bd->bk", unit_near, unit).clip(0, 1)
    weight = np.where(there, cosine**alpha, 0.0)
    if distance == "cosine":
        return unit_length(unit + np.einsum("bk,bkd->bd", weight, unit_near))
    total = 1 + weight.sum(axis=1, keepdims=True)
    mean: np.ndarray = (asked + np.einsum("bk,bkd->bd", weight, near)) / total
    return mean
