"""Means of per-query metrics for each class, each group, or any other way to part the queries; the worst first.

Letters: q queries.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lossopt.retrieval.intervals import Interval, intervals_over_classes


class Part(NamedTuple):
    """Some of the queries.

    name: of the class or group. key: its number. queries: how many. metrics: name to mean over them. intervals: 95 %,
    over the classes of the part; empty where none were asked for, or the part has one class.
    """

    name: str
    key: int
    queries: int
    metrics: dict[str, float]
    intervals: dict[str, Interval]


def breakdown(
    per_query: Mapping[str, np.ndarray],
    keys: np.ndarray,
    names: Sequence[str],
    by: str = "map@r",
    classes: np.ndarray | None = None,
    resamples: int = 1_000,
) -> list[Part]:
    """A part per key that a query has, sorted by its mean of one metric, ascending; equals by more queries, then name.

    Args:
        per_query: metric to (q,) values, as a retrieval result has them.
        keys: (q,) position of each query's part in `names`: its class, its group, or whether its class was seen.
        names: one per key.
        by: metric to sort by.
        classes: (q,) class of each query, for intervals; None: none.
        resamples: of the classes, for the intervals.

    Raises:
        ValueError: columns of different lengths, a key without a name, or no such metric.
    """
    keys = np.asarray(keys)
    if by not in per_query:
        raise ValueError(f"There is no metric {by!r} to sort by; there are {', '.join(per_query)}.")
    if any(np.shape(values) != keys.shape for values in per_query.values()):
        raise ValueError(f"One key per query: got keys of shape {keys.shape} and {per_query[by].shape} values.")
    if len(keys) and not 0 <= keys.min() <= keys.max() < len(names):
        raise ValueError(f"Keys run from {keys.min()} to {keys.max()}, but there are {len(names)} names.")
    queries = np.bincount(keys, minlength=len(names))
    there = np.flatnonzero(queries)
    means = {name: np.bincount(keys, values, len(names))[there] / queries[there] for name, values in per_query.items()}
    parts = [
        Part(
            name=str(names[key]),
            key=key,
            queries=int(queries[key]),
            metrics={name: float(mean[position]) for name, mean in means.items()},
            intervals={} if classes is None else _intervals(per_query, classes, keys == key, resamples),
        )
        for position, key in enumerate(there.tolist())
    ]
    return sorted(parts, key=lambda part: (part.metrics[by], -part.queries, part.name))


def _intervals(
    per_query: Mapping[str, np.ndarray], classes: np.ndarray, chosen: np.ndarray, resamples: int
) -> dict[str, Interval]:
    return intervals_over_classes(
        {name: values[chosen] for name, values in per_query.items()}, classes[chosen], resamples
    )
