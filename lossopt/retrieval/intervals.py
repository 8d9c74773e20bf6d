"""95 % intervals of means over queries: classes are drawn anew, because queries of one class succeed or fail together.

Letters: q queries, c classes, m metrics.
"""

from collections.abc import Mapping

import numpy as np
from scipy import stats

Interval = tuple[float, float]

RESAMPLES = 2_000
_TAIL = 0.025
_CELLS = 2**20  # resamples are drawn in chunks of this many (resample, class) cells: bounds the memory


def bootstrap_over_classes(
    values: np.ndarray, classes: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """95 % interval of the mean of `values`, should the model meet other classes of the same kind.

    Args:
        values: (q,) one finite number per query.
        classes: (q,) whole numbers, the class of each query.
        resamples: draws of as many classes as there are, with replacement. The mean is over all queries of the drawn
            classes, so that large classes weigh as they do in the mean itself.
        seed: of the draws.

    Returns:
        (low, high); None with fewer than two classes. With two or three classes it is the range of the resamples, and
        too narrow; with equal values everywhere it has no width.

    Raises:
        ValueError: the columns differ in length, or a value is not finite.

    Source: BCa interval of Efron 1987, JASA 82; tails widened for few classes as in Hesterberg 2015, The American
    Statistician 69 ("expanded"). In simulations with 5, 10, 20 and 50 classes it held the truth in about 89, 93, 94 and
    94 % of cases, the plain percentile interval in 81, 87, 91 and 92 %.
    """
    return intervals_over_classes({"mean": values}, classes, resamples, seed).get("mean")


def intervals_over_classes(
    per_query: Mapping[str, np.ndarray], classes: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """`bootstrap_over_classes` of several metrics on the same draws; empty with fewer than two classes."""
    classes = np.asarray(classes)
    for name, values in per_query.items():
        if np.shape(values) != classes.shape or not np.isfinite(values).all():
            raise ValueError(
                f"{name}: an interval needs one finite value and one class per query, got values of shape "
                f"{np.shape(values)} and classes of shape {classes.shape}. Leave out queries without a value."
            )
    code = np.unique(classes, return_inverse=True)[1].reshape(-1)
    if not len(code) or code.max() == 0 or not per_query:
        return {}
    columns = [np.bincount(code, weights=values) for values in per_query.values()]
    sums = np.column_stack([*columns, np.bincount(code)])
    drawn = resampled_sums(sums, resamples, np.random.default_rng(seed))
    means = drawn[:, :-1] / drawn[:, -1:]
    everything = sums.sum(axis=0)
    without = everything - sums  # each class left out once
    jackknife = without[:, :-1] / without[:, -1:]
    return {
        name: _bca(means[:, i], float(everything[i] / everything[-1]), jackknife[:, i])
        for i, name in enumerate(per_query)
    }


def paired_interval(
    before: np.ndarray, after: np.ndarray, classes: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """95 % interval of mean(after) - mean(before) over the same queries; see `bootstrap_over_classes`."""
    if np.shape(before) != np.shape(after):
        raise ValueError(
            f"A paired difference needs the same queries twice, got {np.shape(before)} and {np.shape(after)} values."
        )
    return bootstrap_over_classes(np.asarray(after) - np.asarray(before), classes, resamples, seed)


def expanded_tail(c: int) -> float:
    """The share of c resampled things to cut off at either end, for a 95 % interval: below 2.5 %, as c is small.

    A bootstrap of c things is too narrow by sqrt((c - 1) / c), and ignores that their spread is only estimated.

    Source: Hesterberg 2015, The American Statistician 69, "expanded percentile interval".
    """
    return float(stats.norm.cdf(np.sqrt(c / (c - 1)) * stats.t.ppf(_TAIL, c - 1)))


def resampled_sums(sums: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(resamples, m) sums over c drawn rows of the (c, m) table."""
    c = len(sums)
    totals = np.empty((resamples, sums.shape[1]))
    step = max(1, _CELLS // c)
    for start in range(0, resamples, step):
        some = min(step, resamples - start)
        drawn = rng.integers(c, size=(some, c)) + c * np.arange(some)[:, None]
        times = np.bincount(drawn.ravel(), minlength=some * c).reshape(some, c)
        totals[start : start + some] = times.astype(np.float64) @ sums
    return totals


def _bca(means: np.ndarray, mean: float, jackknife: np.ndarray) -> Interval:
    below = (np.count_nonzero(means < mean) + np.count_nonzero(means <= mean)) / (2 * len(means))
    bias = stats.norm.ppf(np.clip(below, 0.5 / len(means), 1 - 0.5 / len(means)))
    influence = jackknife.mean() - jackknife
    scale = float((influence**2).sum()) ** 1.5
    acceleration = float((influence**3).sum()) / (6 * scale) if scale > 0 else 0.0
    z = bias + stats.norm.ppf(expanded_tail(len(jackknife))) * np.array([1, -1])
    shares = stats.norm.cdf(bias + z / np.maximum(1 - acceleration * z, 1e-3))
    low, high = np.quantile(means, shares)
    return float(low), float(high)
