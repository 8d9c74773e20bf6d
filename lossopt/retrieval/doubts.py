"""What a person should look at again, from lists of neighbours: wrong labels, near-duplicates, confused classes.

Letters: n rows, q queries, k neighbours, c classes.
"""

from typing import NamedTuple

import numpy as np

from lossopt.retrieval.index import Neighbours

_CELLS = 2**22


class LabelDoubt(NamedTuple):
    """A row whose neighbours agree on another class.

    row: its number. label: its class. rival: the class that most neighbours have. score: the rival's share of the
    neighbours less the own class's share of those that it could have there; 1: all are the rival's. margin: how much
    farther the nearest of its own class is than the nearest rival. examples: the nearest rivals' rows, nearest first.
    """

    row: int
    label: int
    rival: int
    score: float
    margin: float
    examples: tuple[int, ...]


def label_doubts(
    near: Neighbours, query_rows: np.ndarray, labels: np.ndarray, relevant: np.ndarray, most: int = 50, shown: int = 3
) -> tuple[list[LabelDoubt], int]:
    """Rows of which one other class has more than half of the k neighbours, and more than their own; the surest first.

    Args:
        near: (q, k) neighbours of the queries, nearest first, -1 past the end; k = 10 serves well.
        query_rows: (q,) their row numbers.
        labels: (n,) 0..c-1.
        relevant: (q,) items of its class that each query can find. One that has none is not doubted.
        most: doubts returned. shown: examples of each.

    Returns:
        the doubts, by score, then margin; and how many there are in all.

    Source: k-nearest-neighbour noise filter, Wilson 1972, IEEE Transactions on Systems, Man, and Cybernetics 2.
    """
    queries, k = near.rows.shape
    rival, score = np.full(queries, -1, dtype=np.int64), np.full(queries, -np.inf)
    step = max(1, _CELLS // max(1, k * k))
    for start in range(0, queries, step):
        some = slice(start, start + step)
        rival[some], score[some] = _rivals(near.rows[some], labels[query_rows[some]], labels, relevant[some])
    suspects = np.flatnonzero(score > 0)
    found, distances = _classes_of(near.rows[suspects], labels), near.distances[suspects]
    of_rival, own = found == rival[suspects, None], found == labels[query_rows[suspects], None]
    last = np.where(np.isfinite(distances), distances, -np.inf).max(axis=1, initial=-np.inf)
    margin = np.minimum(np.where(own, distances, np.inf).min(axis=1, initial=np.inf), last)
    margin -= np.where(of_rival, distances, np.inf).min(axis=1, initial=np.inf)
    order = np.lexsort((query_rows[suspects], -margin, -score[suspects]))[:most]
    doubts = [
        LabelDoubt(
            row=int(query_rows[suspects[one]]),
            label=int(labels[query_rows[suspects[one]]]),
            rival=int(rival[suspects[one]]),
            score=float(score[suspects[one]]),
            margin=float(margin[one]),
            examples=tuple(near.rows[suspects[one]][of_rival[one]][:shown].tolist()),
        )
        for one in order
    ]
    return doubts, len(suspects)


def _classes_of(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Classes of (q, k) rows; -1 past the end of a list."""
    return np.where(rows >= 0, labels[rows], -1)


def _rivals(
    rows: np.ndarray, own: np.ndarray, labels: np.ndarray, relevant: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(q,) the other class that most of the (q, k) rows have, and its score, -inf where it is no majority."""
    found = _classes_of(rows, labels)
    agreeing = (found[:, :, None] == found[:, None, :]).sum(axis=2)
    agreeing[(found == own[:, None]) | (found < 0)] = 0
    best = agreeing.argmax(axis=1)  # of several such classes, the one with the nearest item
    each = np.arange(len(found))
    there = (found >= 0).sum(axis=1)
    votes = agreeing[each, best]
    own_share = (found == own[:, None]).sum(axis=1) / np.maximum(1, np.minimum(there, relevant))
    score = votes / np.maximum(1, there) - own_share
    return found[each, best], np.where((2 * votes > there) & (relevant > 0), score, -np.inf)


class NearDuplicate(NamedTuple):
    """Two rows, first < second, so close that they may be one image. exact: their distance is 0."""

    first: int
    second: int
    distance: float
    same_class: bool
    exact: bool


class NearDuplicates(NamedTuple):
    """pairs: the closest. exact, close: how many there are at distance 0, and above it. threshold: of the close."""

    pairs: list[NearDuplicate]
    exact: int
    close: int
    threshold: float


def near_duplicates(
    near: Neighbours, query_rows: np.ndarray, labels: np.ndarray, most: int = 50, closer: float = 0.25
) -> NearDuplicates:
    """Pairs closer than `closer` times the median distance of a row to its nearest neighbour that is not its copy.

    Each row is paired once, with the closest row before it, so that many copies of one image make a short list.

    Args:
        near: (q, k) neighbours of the queries, nearest first, -1 past the end.
        query_rows: (q,) their row numbers.
        labels: (n,) classes.
        most: pairs returned, closest first.
        closer: share of that median. With trained networks and 10,000 images, 0.25 picks 47 pairs of Fashion-MNIST,
            which has near-copies, 5 of MNIST and 1 of Omniglot.
    """
    positive = np.where(near.distances > 0, near.distances, np.inf).min(axis=1, initial=np.inf)
    positive = positive[np.isfinite(positive)]
    threshold = closer * float(np.median(positive)) if len(positive) else 0.0
    close = (near.rows >= 0) & ((near.distances < threshold) | (near.distances == 0))
    one, other = np.broadcast_to(query_rows[:, None], near.rows.shape)[close], near.rows[close]
    first, second, distances = np.minimum(one, other), np.maximum(one, other), near.distances[close]
    order = np.lexsort((first, second, distances))
    order = order[np.sort(np.unique(second[order], return_index=True)[1])]
    exact = int((distances[order] == 0).sum())
    pairs = [
        NearDuplicate(int(a), int(b), float(distance), bool(labels[a] == labels[b]), bool(distance == 0))
        for a, b, distance in zip(*(column[order[:most]] for column in (first, second, distances)), strict=True)
    ]
    return NearDuplicates(pairs, exact, len(order) - exact, threshold)


class ConfusedPair(NamedTuple):
    """Two classes that queries mistake for each other; `first` is the one mistaken more often.

    first_as_second, second_as_first: queries of one whose first wrong item is of the other. queries: of both classes.
    examples: (query row, item row), the closest ones.
    """

    first: int
    second: int
    first_as_second: int
    second_as_first: int
    queries: int
    examples: tuple[tuple[int, int], ...]


class Confusions(NamedTuple):
    """pairs: most confused first. taken_for, times: (c,) the class each is taken for most, -1: none, and how often."""

    pairs: list[ConfusedPair]
    taken_for: np.ndarray
    times: np.ndarray


def confusions(
    near: Neighbours,
    query_rows: np.ndarray,
    labels: np.ndarray,
    relevant: np.ndarray,
    most: int = 20,
    shown: int = 3,
) -> Confusions:
    """Which classes are taken for which: the first wrong item that a query meets among its R nearest, at most k.

    Args:
        near: (q, k) neighbours of the queries, nearest first, -1 past the end.
        query_rows: (q,) their row numbers.
        labels: (n,) 0..c-1.
        relevant: (q,) R, items of its class that each query can find. One that has none confuses nothing.
        most: pairs returned. shown: examples of each.
    """
    c, own = int(labels.max()) + 1, labels[query_rows]
    found = _classes_of(near.rows, labels)
    wrong = (found >= 0) & (found != own[:, None]) & (np.arange(found.shape[1]) < relevant[:, None])
    at = np.flatnonzero(wrong.any(axis=1))
    place = wrong[at].argmax(axis=1)
    asked, met, item, distance = own[at], found[at, place], near.rows[at, place], near.distances[at, place]
    directed, counts = np.unique(asked * c + met, return_counts=True)
    taken_for, times = _most_frequent(directed // c, directed % c, counts, c)
    key = np.minimum(asked, met) * c + np.maximum(asked, met)
    undirected, inverse, totals = np.unique(key, return_inverse=True, return_counts=True)
    queries = np.bincount(own, minlength=c)
    pairs = []
    how_late = np.bincount(inverse, weights=place)
    for chosen in np.lexsort((undirected, how_late, -totals))[:most]:  # of equals, those met sooner
        low, high = divmod(int(undirected[chosen]), c)
        members = np.flatnonzero(inverse == chosen)
        members = members[np.argsort(distance[members], kind="stable")]
        forth = int((asked[members] == low).sum())
        back = len(members) - forth
        first, second = (low, high) if forth >= back else (high, low)
        pairs.append(
            ConfusedPair(
                *(first, second, max(forth, back), min(forth, back), int(queries[low] + queries[high])),
                _unmirrored(query_rows[at[members]], item[members], shown),
            )
        )
    return Confusions(pairs, taken_for, times)


def _unmirrored(queries: np.ndarray, items: np.ndarray, most: int) -> tuple[tuple[int, int], ...]:
    """The first few (query, item) pairs, without those that were there in the other direction."""
    kept: dict[frozenset[int], tuple[int, int]] = {}
    for pair in zip(queries.tolist(), items.tolist(), strict=True):
        if len(kept) < most:
            kept.setdefault(frozenset(pair), pair)
    return tuple(kept.values())


def _most_frequent(asked: np.ndarray, met: np.ndarray, counts: np.ndarray, c: int) -> tuple[np.ndarray, np.ndarray]:
    """(c,) for each class the one it met most often, the lower number if equal, and how often; -1 and 0 if none."""
    taken_for, times = np.full(c, -1, dtype=np.int64), np.zeros(c, dtype=np.int64)
    order = np.lexsort((-met, counts))  # the last one written stays
    taken_for[asked[order]], times[asked[order]] = met[order], counts[order]
    return taken_for, times
