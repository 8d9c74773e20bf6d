"""Statistics of paired runs: every function takes plain arrays, the seed is the unit, and randomness is seeded.

Letters: m comparisons, s seeds, c units (classes or groups of queries), f sign flips.
"""

import itertools
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from scipy import optimize, stats

from lossopt.retrieval.intervals import RESAMPLES, Interval, resampled_sums

Correction = Literal["holm", "max-t"]

LEAST_SEEDS = 8
FLIPS = 2**16  # at most; mirror images apart, this is all of them up to 17 seeds
_TIE = 1e-9  # of differences scaled to unit length: flips nearer than this are equal but for rounding
_EXPERIMENTS = 1_000  # simulated for the power: its standard error is at most 0.016


class Improvement(NamedTuple):
    """P(A > B) and its 95 % interval; None with fewer than two seeds."""

    value: float
    interval: Interval | None


def sign_flip_test(differences: np.ndarray) -> np.ndarray:
    """Exact two-sided p of each mean difference, under flips of the signs of the seeds.

    Args:
        differences: (m, s) one row per comparison, finite.

    Returns:
        (m,) share of the 2**s flips whose mean is at least as far from 0, ties and the unflipped one included: never
        below 2 / 2**s. 1 for a row of zeros, or a single seed. With more than 17 seeds, of 65,535 flips drawn with a
        fixed seed and the unflipped one.

    Raises:
        ValueError: not a table, no seed, or a difference is not finite.

    Source: Fisher 1935, The Design of Experiments, section 21.
    """
    observed, flipped = _flips(differences)
    return (flipped >= observed - _TIE).mean(axis=0)


def step_down_max_t(differences: np.ndarray) -> np.ndarray:
    """Adjusted p of each mean difference, corrected for all m comparisons by the flips of all rows together.

    The largest |t| is compared with the largest of all rows in every flip, the next with the largest of the rest, and
    so on. It counts how alike the comparisons are, so that its smallest p stays 2 / 2**s for any m; that of Holm is m
    times as large. The chance of any false verdict is at most alpha, whichever of the hypotheses are true (strong
    control), if the differences of those that are true are symmetric about 0 as a whole and not only one by one.

    Args:
        differences: (m, s) as for `sign_flip_test`; column by column the same seed.

    Returns:
        (m,) never below the p of `sign_flip_test`, and never smaller for a smaller |t|.

    Raises:
        ValueError: as `sign_flip_test`.

    Source: Westfall & Young 1993, Resampling-Based Multiple Testing, algorithm 4.1, with sign flips. Rows are divided
    by the root of their sum of squares, which no flip changes and of which |t| is a function.
    """
    observed, flipped = _flips(differences)
    order = np.argsort(-observed, kind="stable")
    rest = np.maximum.accumulate(flipped[:, order[::-1]], axis=1)[:, ::-1]  # the largest of this row and all after it
    adjusted = np.empty(len(observed))
    adjusted[order] = np.maximum.accumulate((rest >= observed[order] - _TIE).mean(axis=0))
    return adjusted


def holm(p: np.ndarray) -> np.ndarray:
    """(m,) adjusted p, to be compared with alpha itself; whatever the dependence between the (m,) given ones.

    Raises:
        ValueError: a p outside [0, 1], or NaN.

    Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"Holm's correction needs a list of p from 0 to 1, got {p}.")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def adjusted_p(differences: np.ndarray, correction: Correction) -> np.ndarray:
    """(m,) p of the (m, s) differences, corrected for all m of them."""
    return step_down_max_t(differences) if _is_max_t(correction) else holm(sign_flip_test(differences))


def seeds_needed(comparisons: int, correction: Correction, alpha: float = 0.05, least: int = LEAST_SEEDS) -> int:
    """The fewest seeds with which the smallest possible corrected p reaches `alpha`; never below `least`.

    2 / 2**s for max-t and m times that for Holm: 36 comparisons (9 variants) take 8 and 11 seeds.
    """
    factor = 1 if _is_max_t(correction) else max(comparisons, 1)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a probability between 0 and 1, got {alpha}. Usual is 0.05.")
    return next(s for s in itertools.count(least) if 2 * factor <= alpha * 2**s)


def two_level_interval(
    scores: np.ndarray, weights: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """95 % interval of the mean over queries, should training have other seeds and the data other units.

    Seeds are drawn anew and units are drawn anew, independently, because every seed was evaluated on the same units.
    The 2.5 % and 97.5 % points of the means of such draws are then moved away from the mean by one factor, so that
    their distance is right for so few seeds: plain percentiles are too near by sqrt((s - 1) / s), ignore that the
    spread is only estimated, and count noise of single (seed, unit) cells three times.

    Args:
        scores: (s, c) mean score of each seed over the queries of each unit; for a paired difference, differences.
        weights: (c,) queries of each unit. Units without queries are left out.
        resamples: how many draws.
        seed: of the draws.

    Returns:
        (low, high); None with fewer than two seeds. With one unit, or none that differ, only seeds matter.

    Raises:
        ValueError: shapes that do not belong together, no queries, or a score that is not finite.

    Source: Owen 2007, Annals of Applied Statistics 1 (pigeonhole bootstrap); Hesterberg 2015, The American Statistician
    69 (why few samples need wider tails); Satterthwaite 1946 for the degrees of freedom.

    Measured in 400 simulations each of 3, 5, 8 and 10 seeds with 20 and 200 units, the variance from all of seeds to
    all of units: it holds the truth in 92 to 97 % of cases when scores are normal, 88 to 97 % when they are skewed
    (exponential), least where all is of few seeds. Plain percentiles of normal scores, all of seeds: 73 to 77 % with 3
    seeds, 83 to 85 % with 5, 88 to 92 % with 8 and 10. Repeat with `scripts/simulate_comparisons.py`.
    """
    scores, weights = _scored_units(scores, weights)
    s = len(scores)
    if s < 2:
        return None
    rng = np.random.default_rng(seed)
    sums = resampled_sums(np.column_stack([(weights * scores).T, weights]), resamples, rng)
    per_seed = sums[:, :-1] / sums[:, -1:]
    means = np.take_along_axis(per_seed, rng.integers(s, size=(resamples, s)), axis=1).mean(axis=1)
    mean = float((scores @ weights).mean() / weights.sum())
    spread = float(means.std())
    factor = _t_width(scores, weights) / (stats.norm.ppf(0.975) * spread) if spread > 0 else 1.0
    low, high = mean + factor * (np.quantile(means, [0.025, 0.975]) - mean)
    return float(low), float(high)


def probability_of_improvement(a: np.ndarray, b: np.ndarray) -> Improvement:
    """P(A > B) for a new run of each, ties counted half.

    Args:
        a, b: (s,) scores, the same seeds in the same order.

    Returns:
        The share of all s * s pairs, and Wilson's score interval of a share of s: the variance of the share is at most
        value * (1 - value) / s, and smaller where seeds help or harm both alike. It has a width when every run of A
        beats every run of B. There a bootstrap has none, and in simulation held 0.98 in 14, 47 and 59 % of cases with
        3, 8 and 10 seeds, and 0.9 in 41, 79 and 87 %; this interval held 0.5 to 0.98 in 95 to 100 %.

    Raises:
        ValueError: not the same number of scores, none, or one that is not finite.

    Source: Agarwal et al. 2021, NeurIPS (rliable), section 4.3; Mann & Whitney 1947; the bound of the variance is that
    of Birnbaum & Klose 1957, Annals of Mathematical Statistics 28; Wilson 1927, JASA 22.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or not len(a) or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(
            f"P(A > B) needs a finite score of A and of B for every seed, got shapes {a.shape} and {b.shape}."
        )
    s = len(a)
    value = float(((a[:, None] > b) + 0.5 * (a[:, None] == b)).mean())
    if s < 2:
        return Improvement(value, None)
    z = float(stats.norm.ppf(0.975))
    centre, half = value + z * z / (2 * s), z * np.sqrt(value * (1 - value) / s + (z / (2 * s)) ** 2)
    low, high = (centre + np.array([-half, half])) / (1 + z * z / s)
    return Improvement(value, (max(0.0, float(low)), min(1.0, float(high))))


def power(
    effect: float, deviation: float, seeds: int, comparisons: int, correction: Correction, alpha: float = 0.05
) -> float:
    """Probability that a true mean difference is found, when it has to pass the hardest step of the correction.

    Simulated 1,000 times with the flips of the test itself. The other comparisons show nothing, so that this one comes
    first: with Holm its p must be alpha / m, with max-t it must beat the largest of all m. Later steps are easier.

    Args:
        effect: true mean difference, of either sign.
        deviation: standard deviation over seeds of the differences, which are taken to be normal; > 0.
        seeds, comparisons: how many. For max-t the comparisons are pairs of variants that vary alike: as many
            variants as have so many pairs.
        correction, alpha: of the comparison.

    Raises:
        ValueError: a deviation of 0 or less, no seed, no comparison.
    """
    if not deviation > 0 or seeds < 1 or comparisons < 1:
        raise ValueError(
            "Power needs a deviation above 0, at least one seed and one comparison, got "
            f"{deviation}, {seeds} and {comparisons}."
        )
    return _standard_power(abs(effect) / deviation, seeds, comparisons, correction, alpha)


def minimum_detectable_effect(
    deviation: float, seeds: int, comparisons: int, correction: Correction, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """The smallest true difference that is found with probability `power`, in the units of `deviation`.

    None below `seeds_needed`, where no difference, however large, is called one. See the function `power`.
    """
    if seeds < seeds_needed(comparisons, correction, alpha):
        return None
    return deviation * _standard_effect(seeds, comparisons, correction, alpha, power)


def _is_max_t(correction: Correction) -> bool:
    if correction not in ("holm", "max-t"):
        raise ValueError(f"The correction is {correction!r}; it can be 'holm' or 'max-t'.")
    return correction == "max-t"


def _flips(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m,) |sum| of the rows scaled to unit length, and (f, m) those of the flips, the same flips for all rows."""
    differences = np.asarray(differences, dtype=np.float64)
    if differences.ndim != 2 or not differences.shape[1] or not np.isfinite(differences).all():
        raise ValueError(
            f"The test needs one finite difference per comparison and seed, got shape {differences.shape} with "
            f"{np.count_nonzero(~np.isfinite(differences))} that are not finite. Failed runs need a score too."
        )
    length = np.sqrt((differences**2).sum(axis=1, keepdims=True))
    scaled = np.divide(differences, length, out=np.zeros_like(differences), where=length > 0)
    flipped = np.abs(_signs(differences.shape[1], FLIPS) @ scaled.T)
    return flipped[0], flipped


def _signs(seeds: int, most: int) -> np.ndarray:
    """(f, s) flips of signs, the first of which flips nothing: all of them, or else `most` drawn ones.

    Mirror images have the same |t|, so that half of all flips stand for all.
    """
    if 2 ** (seeds - 1) <= most:
        return np.array(list(itertools.product([1.0], *[[1.0, -1.0]] * (seeds - 1))))
    drawn = np.random.default_rng(0).choice([1.0, -1.0], (most - 1, seeds))
    return np.vstack([np.ones(seeds), drawn])


def _scored_units(scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(s, c) and (c,) without the units that have no queries."""
    scores, weights = np.asarray(scores, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if scores.ndim != 2 or weights.shape != scores.shape[1:]:
        raise ValueError(
            f"An interval needs a score per seed and unit and a weight per unit, got shapes {scores.shape} and "
            f"{weights.shape}."
        )
    kept = weights != 0
    scores, weights = scores[:, kept], weights[kept]
    if not len(weights) or not (np.isfinite(weights).all() and (weights > 0).all() and np.isfinite(scores).all()):
        raise ValueError(
            "An interval needs queries: weights are 0 or more and some above, and every unit with queries has a finite "
            f"score of every seed. Got {len(weights)} units with queries and "
            f"{np.count_nonzero(~np.isfinite(scores))} scores that are not finite."
        )
    return scores, weights


def _t_width(scores: np.ndarray, weights: np.ndarray) -> float:
    """Half the 95 % interval of the mean over seeds and units if it is about normal: standard error times Student's t.

    Variance of the mean over seeds plus that over units; each also holds the noise of the cells, which goes once.
    """
    s, c = scores.shape
    share = weights / weights.sum()
    per_seed, per_unit = scores @ share, scores.mean(axis=0)
    mean = per_seed.mean()
    few = c / max(c - 1, 1)
    of_seeds = per_seed.var(ddof=1) / s
    of_units = few * ((share * (per_unit - mean)) ** 2).sum()
    of_cells = few * ((share * (scores - per_seed[:, None] - per_unit + mean)) ** 2).sum() / (s * (s - 1))
    variance = max(of_seeds + of_units - of_cells, of_seeds, of_units)
    if variance == 0:
        return 0.0
    freedom = variance**2 / (of_seeds**2 / (s - 1) + of_units**2 / max(c - 1, 1))
    return float(np.sqrt(variance) * stats.t.ppf(0.975, max(freedom, min(s, c) - 1)))


class _Experiments(NamedTuple):
    """Simulated comparisons in which nothing differs: signs (f, s), noise (n, s) of one pair, rivals (n, f) max |t|."""

    signs: np.ndarray
    noise: np.ndarray
    rivals: np.ndarray


@lru_cache(maxsize=2)
def _experiments(seeds: int, comparisons: int, correction: Correction, alpha: float) -> _Experiments:
    rng = np.random.default_rng(0)
    signs = _signs(seeds, 2 ** max(12, int(np.ceil(np.log2(4 * comparisons / alpha)))))
    variants = next(v for v in itertools.count(2) if v * (v - 1) // 2 >= comparisons)
    runs = rng.normal(scale=np.sqrt(0.5), size=(variants, _EXPERIMENTS, seeds))
    pairs = list(itertools.combinations(range(variants), 2))[1:comparisons] if _is_max_t(correction) else []
    rivals = np.zeros((_EXPERIMENTS, len(signs)))
    for a, b in pairs:
        np.maximum(rivals, _flipped_t(runs[a] - runs[b], signs), out=rivals)
    return _Experiments(signs, runs[0] - runs[1], rivals)


def _flipped_t(differences: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """(n, f) |t|, up to a function, of (n, s) differences under (f, s) signs."""
    return np.abs(differences / np.linalg.norm(differences, axis=1, keepdims=True) @ signs.T)


def _standard_power(effect: float, seeds: int, comparisons: int, correction: Correction, alpha: float) -> float:
    """`power` with a deviation of 1."""
    signs, noise, rivals = _experiments(seeds, comparisons, correction, alpha)
    own = _flipped_t(noise + effect, signs)
    p = (np.maximum(own, rivals) >= own[:, :1] - _TIE).mean(axis=1)  # the first flip is none
    return float((p <= (alpha if _is_max_t(correction) else alpha / comparisons)).mean())


@lru_cache(maxsize=64)
def _standard_effect(seeds: int, comparisons: int, correction: Correction, alpha: float, wanted: float) -> float:
    """`minimum_detectable_effect` with a deviation of 1."""
    if not alpha < wanted < 1:
        raise ValueError(f"The power is between alpha ({alpha}) and 1, got {wanted}. Usual is 0.8.")

    def lacking(effect: float) -> float:
        return wanted - _standard_power(effect, seeds, comparisons, correction, alpha)

    enough = next(2.0**i for i in itertools.count() if lacking(2.0**i) < 0)
    return float(optimize.bisect(lacking, 0, enough, xtol=1e-3))
