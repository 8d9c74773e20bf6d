"""Formulas of retrieval metrics as pure NumPy: ranked lists in, one value per query out, exact under ties.

A list holds, for each query, the distances to its nearest gallery items in ascending order, and which are relevant.
Items at equal distance are in random order by right; every metric is its mean over those orders, so that the order of
rows in a file cannot change it. Letters: q queries, m length of the lists, R relevant items in the whole gallery.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import gammaln


class TieGroups(NamedTuple):
    """Runs of equal distance, described at each of the (q, m) positions.

    start: position where the run begins; size: its length; hits: relevant items in it; hits_before: relevant before it.
    """

    start: np.ndarray
    size: np.ndarray
    hits: np.ndarray
    hits_before: np.ndarray


def tie_groups(distances: np.ndarray, relevant: np.ndarray) -> TieGroups:
    """distances: (q, m), ascending along each row, inf past the end. relevant: (q, m) bool."""
    q, m = distances.shape
    new = np.ones((q, m), dtype=bool)
    new[:, 1:] = distances[:, 1:] != distances[:, :-1]
    position = np.broadcast_to(np.arange(m), (q, m))
    start = np.maximum.accumulate(np.where(new, position, 0), axis=1)
    last = np.ones((q, m), dtype=bool)
    last[:, :-1] = new[:, 1:]
    end = np.minimum.accumulate(np.where(last, position, m)[:, ::-1], axis=1)[:, ::-1]
    hits_up_to = np.concatenate([np.zeros((q, 1), dtype=np.int64), np.cumsum(relevant, axis=1)], axis=1)
    hits_before = np.take_along_axis(hits_up_to, start, axis=1)
    hits = np.take_along_axis(hits_up_to, end + 1, axis=1) - hits_before
    return TieGroups(start, end - start + 1, hits, hits_before)


def recall_at_k(groups: TieGroups, k: int) -> np.ndarray:
    """(q,) probability that at least one of the k nearest is relevant: recall@k of metric learning (hit rate, CMC).

    If the list is shorter than k, the whole list counts.
    """
    cut = min(k, groups.start.shape[1]) - 1
    start, size, hits, before = (column[:, cut] for column in groups)
    drawn, misses = cut + 1 - start, size - hits
    with np.errstate(invalid="ignore"):
        log_none = _log_choose(misses, drawn) - _log_choose(size, drawn)
    none = np.where(drawn > misses, 0.0, np.exp(np.where(drawn > misses, 0.0, log_none)))
    return np.where(before > 0, 1.0, np.where(hits == 0, 0.0, 1 - none))


def _log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    return gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)


def map_at_r(groups: TieGroups, r: np.ndarray) -> np.ndarray:
    """(q,) mean average precision at R: mean over i = 1..R of precision@i where the i-th is relevant, else 0.

    Args:
        groups: lists at least R long.
        r: (q,) relevant items of each query, >= 1.

    Source: Musgrave, Belongie & Lim 2020, A Metric Learning Reality Check, section 4.3.
    """
    m = groups.start.shape[1]
    position = np.arange(m)
    chance = groups.hits / groups.size
    within = position - groups.start
    # given that the item here is relevant, the others of its run before it are relevant at this rate
    rate = np.divide(groups.hits - 1, groups.size - 1, out=np.zeros(groups.size.shape), where=groups.size > 1)
    precision = (groups.hits_before + 1 + within * rate) / (position + 1)
    counted = position < r[:, None]
    return (chance * precision * counted).sum(axis=1) / r


def one_shot_accuracy(distances: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """(q,) probability of naming the right one of s support images by the smallest distance, ties broken by chance.

    Args:
        distances: (q, s). answers: (q,) position of the right support image.
    """
    nearest = distances == distances.min(axis=1, keepdims=True)
    return nearest[np.arange(len(answers)), answers] / nearest.sum(axis=1)
