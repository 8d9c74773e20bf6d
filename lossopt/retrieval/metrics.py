"""Formulas of retrieval metrics as pure NumPy: places of relevant items in, one value per query out, exact under ties.

Items at equal distance are in random order by right; every metric is its mean over those orders, so that the order of
rows in a file cannot change it. Letters: q queries, m groups, R relevant items of a query, k cut-off.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import digamma

_DIRECT = 512  # groups up to this size are summed item by item, larger ones in closed form


class HitGroups(NamedTuple):
    """Items of equal distance that hold at least one relevant item; a query's groups stand side by side, nearest first.

    queries: q.
    query: (m,) whose group it is, ascending, 0..q-1.
    start: (m,) items strictly nearer. size: items in the group. hits: relevant ones among them, >= 1.
    hits_before: relevant items strictly nearer.
    """

    queries: int
    query: np.ndarray
    start: np.ndarray
    size: np.ndarray
    hits: np.ndarray
    hits_before: np.ndarray

    def total(self, values: np.ndarray) -> np.ndarray:
        """(q,) sums over the groups of each query."""
        return np.bincount(self.query, values, minlength=self.queries)

    @property
    def relevant(self) -> np.ndarray:
        """(q,) R: all relevant items."""
        return self.total(self.hits)


def groups_of_lists(distances: np.ndarray, relevant: np.ndarray) -> HitGroups:
    """The groups of ranked lists.

    Args:
        distances: (q, m) ascending along each row, inf past the end.
        relevant: (q, m) bool, False past the end.
    """
    q, m = distances.shape
    new = np.ones((q, m), dtype=bool)
    new[:, 1:] = distances[:, 1:] != distances[:, :-1]
    run = np.cumsum(new.ravel()) - 1
    begin = np.flatnonzero(new.ravel())
    size, hits = np.bincount(run, minlength=len(begin)), np.bincount(run, relevant.ravel(), minlength=len(begin))
    query = begin // m
    before = np.concatenate([[0], np.cumsum(hits)[:-1]])
    before -= before[np.searchsorted(query, np.arange(q))][query]
    kept = hits > 0
    whole = (column[kept].astype(np.int64) for column in (query, begin % m, size, hits, before))
    return HitGroups(q, *whole)


def recall_at_k(groups: HitGroups, k: int) -> np.ndarray:
    """(q,) probability that at least one of the k nearest is relevant: recall@k of metric learning (hit rate, CMC)."""
    found = np.zeros(groups.queries)
    first = groups.hits_before == 0
    query, start, size, hits = (c[first] for c in (groups.query, groups.start, groups.size, groups.hits))
    drawn = np.clip(k - start, 0, size)
    # no relevant item among `drawn` of `size`: product over the smaller of the two counts
    none = np.ones(len(query))
    fewer, other = np.minimum(drawn, hits), np.maximum(drawn, hits)
    for i in range(int(fewer.max(initial=0))):
        going = i < fewer
        none[going] *= np.clip((size - other - i)[going], 0, None) / (size - i)[going]
    found[query] = 1 - none
    return found


def hits_at_k(groups: HitGroups, k: int | np.ndarray) -> np.ndarray:
    """(q,) expected relevant items among the k nearest; k may be (q,). Over k: precision@k. Over R: found@k."""
    cut = np.broadcast_to(k, (groups.queries,))[groups.query]
    return groups.total(groups.hits * np.clip(cut - groups.start, 0, groups.size) / groups.size)


def average_precision(groups: HitGroups, cut: np.ndarray | None = None) -> np.ndarray:
    """(q,) mean over relevant items of the precision at their rank; items beyond `cut` count 0. MAP, and MAP@R at R.

    Args:
        groups: all of them: R is how many relevant items they hold.
        cut: (q,) ranks that count; None: all.

    Source: Musgrave, Belongie & Lim 2020, A Metric Learning Reality Check, section 4.3 (MAP@R, cut = R).
    """
    start, size, hits, before = groups.start, groups.size, groups.hits, groups.hits_before
    counted = size if cut is None else np.clip(cut[groups.query] - start, 0, size)
    # given that an item is relevant, the others of its group are relevant at this rate
    rate = np.divide(hits - 1, size - 1, out=np.zeros(len(size)), where=size > 1)
    total = np.zeros(len(size))
    alone = size == 1
    total[alone] = (counted * (before + 1) / (start + 1))[alone]
    small = np.flatnonzero(~alone & (size <= _DIRECT))
    for j in range(int(counted[small].max(initial=0))):
        small = small[counted[small] > j]
        total[small] += (before[small] + 1 + j * rate[small]) / (start[small] + j + 1)
    large = size > _DIRECT
    s, c = start[large], counted[large]
    harmonic = digamma(s + c + 1.0) - digamma(s + 1.0)
    total[large] = c * rate[large] + (before[large] + 1 - rate[large] * (s + 1)) * harmonic
    return groups.total(hits / size * total) / groups.relevant


def reciprocal_rank(groups: HitGroups) -> np.ndarray:
    """(q,) expected 1 / rank of the first relevant item."""
    first = groups.hits_before == 0
    columns = np.stack([groups.start[first], groups.size[first], groups.hits[first]])
    cases, case = np.unique(columns, axis=1, return_inverse=True)
    start, size, hits = cases
    values = 1 / (start + 1.0)
    for i in np.flatnonzero(size > hits):
        j = np.arange(size[i] - hits[i] + 1)
        # the first relevant one is the j-th of the group: one factor (size - j - hits) / (size - j) per miss before it
        missed = np.concatenate([[1.0], np.cumprod((size[i] - hits[i] - j[:-1]) / (size[i] - j[:-1]))])
        values[i] = np.sum(missed * hits[i] / (size[i] - j) / (start[i] + j + 1))
    found = np.zeros(groups.queries)
    found[groups.query[first]] = values[case.reshape(-1)]
    return found


def discounted_gain(groups: HitGroups, k: int) -> np.ndarray:
    """(q,) expected DCG@k with a gain of 1 per relevant item: sum of 1 / log2(1 + rank) over those among the k nearest.

    Source: Jarvelin & Kekalainen 2002, Cumulated gain-based evaluation of IR techniques (base 2).
    """
    discount = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2.0))])
    stop = np.minimum(groups.start + groups.size, k)
    return groups.total(groups.hits / groups.size * (discount[stop] - discount[np.minimum(groups.start, k)]))


def ideal_gain(relevant: np.ndarray, k: int) -> np.ndarray:
    """(q,) DCG@k of the best ranking of R relevant items."""
    discount = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2.0))])
    best: np.ndarray = discount[np.minimum(relevant, k).astype(np.int64)]
    return best


def one_shot_accuracy(distances: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """(q,) probability of naming the right one of s support images by the smallest distance, ties broken by chance.

    Args:
        distances: (q, s). answers: (q,) position of the right support image.
    """
    nearest = distances == distances.min(axis=1, keepdims=True)
    return nearest[np.arange(len(answers)), answers] / nearest.sum(axis=1)
