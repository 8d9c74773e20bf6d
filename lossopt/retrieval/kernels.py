"""The inner loops of counting, compiled when first used: a tile of products goes in, counts below thresholds come out.

Letters: b queries, m gallery items of a tile, d dimensions, p thresholds of a query; a query's thresholds lie side by
side in flat arrays, from `offset[i]` to `offset[i] + count[i]`.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

_FEW = 24  # up to so many thresholds, comparing with each is faster than searching among them
SAME = 1e-12  # squared distances that agree to this share of themselves are ties: float64 cannot tell more


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Machine code without the interpreter's lock, kept on disk where a cache folder can be written."""
    try:
        made: Callable[..., Any] = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no writable cache folder
        made = numba.njit(nogil=True, error_model="numpy")(function)
    return made


@_compiled
def prepare(raw: np.ndarray, scale: np.ndarray, centre: np.ndarray, out: np.ndarray) -> None:
    """out[i] = raw[i] x scale[i] - centre, worked out in float64 and rounded once."""
    for i in range(raw.shape[0]):
        for j in range(raw.shape[1]):
            out[i, j] = np.float64(raw[i, j]) * scale[i] - centre[j]


@_compiled
def squared_norms(vectors: np.ndarray, out: np.ndarray) -> None:
    """out[i] = |vectors[i]|^2, summed in float64."""
    for i in range(vectors.shape[0]):
        total = 0.0
        for j in range(vectors.shape[1]):
            total += np.float64(vectors[i, j]) * np.float64(vectors[i, j])
        out[i] = total


@_compiled
def _exact(a: np.ndarray, scale_a: float, b: np.ndarray, scale_b: float) -> float:
    """Squared Euclidean distance of two scaled rows in float64, in four running sums."""
    d = a.shape[0]
    one, two, three, four = 0.0, 0.0, 0.0, 0.0
    whole = d - d % 4
    for j in range(0, whole, 4):
        e = np.float64(a[j]) * scale_a - np.float64(b[j]) * scale_b
        f = np.float64(a[j + 1]) * scale_a - np.float64(b[j + 1]) * scale_b
        g = np.float64(a[j + 2]) * scale_a - np.float64(b[j + 2]) * scale_b
        h = np.float64(a[j + 3]) * scale_a - np.float64(b[j + 3]) * scale_b
        one += e * e
        two += f * f
        three += g * g
        four += h * h
    for j in range(whole, d):
        e = np.float64(a[j]) * scale_a - np.float64(b[j]) * scale_b
        one += e * e
    return (one + two) + (three + four)


@_compiled
def relevant_distances(
    begin: int,
    end: int,
    queries: np.ndarray,
    query_scale: np.ndarray,
    query_ids: np.ndarray,
    query_groups: np.ndarray,
    items: np.ndarray,
    item_scale: np.ndarray,
    item_ids: np.ndarray,
    item_groups: np.ndarray,
    first: int,
    class_start: np.ndarray,
    class_stop: np.ndarray,
    by_group: bool,
    offset: np.ndarray,
    distances: np.ndarray,
) -> None:
    """Exact squared distances from queries begin..end to the items of their class in a block of the gallery.

    The gallery is in the order of its classes; the block starts at position `first`. What a query may not find (itself,
    or its group) gets infinity. distances[offset[i] + n] belongs to the n-th item of the class of query i.
    """
    for i in range(begin, end):
        start, stop = max(class_start[i], first), min(class_stop[i], first + items.shape[0])
        for position in range(start, stop):
            j = position - first
            forbidden = item_ids[j] == query_ids[i] or (by_group and item_groups[j] == query_groups[i])
            value = np.inf
            if not forbidden:
                value = _exact(queries[i], query_scale[i], items[j], item_scale[j])
            distances[offset[i] + position - class_start[i]] = value


@_compiled
def group_ties(
    begin: int,
    end: int,
    offset: np.ndarray,
    distances: np.ndarray,
    tiny: float,
    most: int,
    low: np.ndarray,
    high: np.ndarray,
    hits: np.ndarray,
    count: np.ndarray,
) -> None:
    """Sorts the distances of each query and joins those that are the same: low and high edge, and how many they are.

    Groups begin with the `most` nearest only.
    """
    for i in range(begin, end):
        some = distances[offset[i] : offset[i + 1]]
        some.sort()
        groups = 0
        previous = -1.0
        for rank, value in enumerate(some):
            if not np.isfinite(value):
                break
            slack = SAME * value + tiny
            if groups and value - previous <= slack:
                high[offset[i] + groups - 1] = value + slack
                hits[offset[i] + groups - 1] += 1
            elif rank >= most:
                break
            else:
                low[offset[i] + groups] = value - slack
                high[offset[i] + groups] = value + slack
                hits[offset[i] + groups] = 1
                groups += 1
            previous = value
        count[i] = groups


@_compiled
def _compare_with_each(
    values: np.ndarray, lower: np.ndarray, upper: np.ndarray, p: int, below: np.ndarray, unsettled: np.ndarray
) -> None:
    """Raises below[k] by the values under lower[k], unsettled[k] by those from lower[k] to upper[k]; p passes."""
    for k in range(p):
        under, up_to = 0, 0
        edge, top = lower[k], upper[k]
        for j in range(values.shape[0]):
            under += values[j] < edge
            up_to += values[j] <= top
        below[k] += under
        unsettled[k] += up_to - under


@_compiled
def _place(value: float, lower: np.ndarray, p: int) -> int:
    """How many of the p ascending edges are not above the value."""
    left, right = 0, p
    while left < right:
        middle = (left + right) // 2
        if lower[middle] > value:
            right = middle
        else:
            left = middle + 1
    return left


@_compiled
def _search_among(
    values: np.ndarray, lower: np.ndarray, upper: np.ndarray, p: int, below: np.ndarray, unsettled: np.ndarray
) -> None:
    """What `_compare_with_each` does, by one search per value and a histogram."""
    histogram = np.zeros(p + 1, dtype=np.int64)
    last = upper[p - 1]
    for j in range(values.shape[0]):
        value = values[j]
        if value > last:
            continue
        place = _place(value, lower, p)
        histogram[place] += 1
        k = place - 1
        while k >= 0 and upper[k] >= value:
            unsettled[k] += 1
            k -= 1
    running = 0
    for k in range(p):
        running += histogram[k]
        below[k] += running


@_compiled
def _fill(
    values: np.ndarray,
    i: int,
    product: np.ndarray,
    factor: float,
    squares: np.ndarray,
    start: int,
    stop: int,
    by_group: bool,
    query_group: int,
    item_groups: np.ndarray,
) -> None:
    """Squared distances of query i, but for |q|^2; infinite for its own class, start..stop, and its left-out group."""
    for j in range(values.shape[0]):
        values[j] = squares[j] + factor * product[i, j]
    for j in range(max(start, 0), min(stop, values.shape[0])):
        values[j] = np.inf
    if by_group:
        for j in range(values.shape[0]):
            if item_groups[j] == query_group:
                values[j] = np.inf


@_compiled
def _list_unsettled(
    values: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    first: int,
    p: int,
    most: int,
    pair_item: np.ndarray,
    pair_value: np.ndarray,
) -> int:
    """Lists the values between the edges of a threshold, from the first..p-th; returns how many, at most most + 1."""
    kept = 0
    for j in range(values.shape[0]):
        value = values[j]
        if value > upper[p - 1] or value < lower[first]:
            continue
        place = _place(value, lower, p)
        if place > 0 and value <= upper[place - 1]:
            if kept == most:
                return most + 1
            pair_item[kept] = j
            pair_value[kept] = value
            kept += 1
    return kept


@_compiled
def count_tile(
    begin: int,
    end: int,
    product: np.ndarray,
    factor: float,
    squares: np.ndarray,
    query_squares: np.ndarray,
    error: np.ndarray,
    first: int,
    class_start: np.ndarray,
    class_stop: np.ndarray,
    by_group: bool,
    query_groups: np.ndarray,
    item_groups: np.ndarray,
    offset: np.ndarray,
    count: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    below: np.ndarray,
    equal: np.ndarray,
    doubtful: np.ndarray,
    accept: float,
    most: int,
    pair_item: np.ndarray,
    pair_value: np.ndarray,
    pairs: np.ndarray,
) -> None:
    """Counts the items of other classes below each threshold of queries begin..end, in one tile of the gallery.

    An item's squared distance is query_squares + squares + factor x product, and wrong by at most `error` of its query.
    Where that decides, `below` is raised. Where it does not, the item goes on the query's list of pairs, up to `most`
    of them. More than that are ties and raise `equal` if the error is at most the share `accept` of the distance;
    otherwise the query is marked doubtful.
    """
    values = np.empty(product.shape[1], dtype=product.dtype)
    lower = np.empty(int(count[begin:end].max()), dtype=product.dtype)
    upper = np.empty(lower.shape[0], dtype=product.dtype)
    unsettled = np.empty(lower.shape[0], dtype=np.int64)
    for i in range(begin, end):
        p, base = count[i], offset[i]
        if doubtful[i] or p == 0:
            continue
        start, stop = class_start[i] - first, class_stop[i] - first
        _fill(values, i, product, factor, squares, start, stop, by_group, query_groups[i], item_groups)
        for k in range(p):
            lower[k] = low[base + k] - query_squares[i] - error[i]
            upper[k] = high[base + k] - query_squares[i] + error[i]
            unsettled[k] = 0
        if p <= _FEW:
            _compare_with_each(values, lower, upper, p, below[base : base + p], unsettled)
        else:
            _search_among(values, lower, upper, p, below[base : base + p], unsettled)
        nearest = 0
        while nearest < p and unsettled[nearest] == 0:
            nearest += 1
        if nearest == p:
            continue
        kept = _list_unsettled(values, lower, upper, nearest, p, most, pair_item[i], pair_value[i])
        if kept > most and error[i] <= max(accept * low[base + nearest], 0.0):
            kept = 0
            for k in range(p):
                equal[base + k] += unsettled[k]
        elif kept > most:
            doubtful[i] = True
        pairs[i] = kept


@_compiled
def transpose(begin: int, end: int, product: np.ndarray, out: np.ndarray) -> None:
    """out[j] = column j of the product, j in begin..end, in squares that stay in the cache."""
    side = 16
    for j in range(begin, end, side):
        for i in range(0, product.shape[0], side):
            for row in range(i, min(i + side, product.shape[0])):
                for column in range(j, min(j + side, end)):
                    out[column, row] = product[row, column]


@_compiled
def exact_tile(
    begin: int,
    end: int,
    queries: np.ndarray,
    query_scale: np.ndarray,
    items: np.ndarray,
    item_scale: np.ndarray,
    out: np.ndarray,
) -> None:
    """out[i, j] = exact squared distance of query i, begin..end, and item j."""
    for i in range(begin, end):
        for j in range(items.shape[0]):
            out[i, j] = _exact(queries[i], query_scale[i], items[j], item_scale[j])


@_compiled
def settle(
    begin: int,
    end: int,
    queries: np.ndarray,
    query_scale: np.ndarray,
    items: np.ndarray,
    item_scale: np.ndarray,
    query_squares: np.ndarray,
    error: np.ndarray,
    offset: np.ndarray,
    count: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    below: np.ndarray,
    equal: np.ndarray,
    doubtful: np.ndarray,
    pair_item: np.ndarray,
    pair_value: np.ndarray,
    pairs: np.ndarray,
) -> None:
    """Works out the pairs of queries begin..end exactly, counts them, and empties the lists."""
    for i in range(begin, end):
        if not doubtful[i]:
            for n in range(pairs[i]):
                j, value = pair_item[i, n], pair_value[i, n]
                exact = _exact(queries[i], query_scale[i], items[j], item_scale[j])
                for k in range(offset[i], offset[i] + count[i]):
                    lower = pair_value.dtype.type(low[k] - query_squares[i] - error[i])
                    upper = pair_value.dtype.type(high[k] - query_squares[i] + error[i])
                    if value < lower:
                        break
                    if value <= upper:
                        if exact < low[k]:
                            below[k] += 1
                        elif exact <= high[k]:
                            equal[k] += 1
        pairs[i] = 0
