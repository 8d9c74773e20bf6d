"""From the scores of paired runs to the verdict on each pair of variants, in numbers and in words.

Letters: v variants, s seeds, c units (classes or groups of queries).
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lossopt.comparison.result import PairComparison
from lossopt.comparison.statistics import (
    Correction,
    adjusted_p,
    minimum_detectable_effect,
    probability_of_improvement,
    seeds_needed,
    sign_flip_test,
    two_level_interval,
)
from lossopt.retrieval.intervals import Interval

_POWER = 0.8
_ROUNDING = 1e-4  # of a score against the mean of its units


def assess_pairs(
    names: Sequence[str],
    scores: np.ndarray,
    unit_scores: np.ndarray,
    weights: np.ndarray,
    metric_words: str,
    correction: Correction,
    alpha: float = 0.05,
) -> list[PairComparison]:
    """Every pair of variants, paired by seed.

    Args:
        names: of the variants.
        scores: (v, s) the primary metric of each run, in [0, 1]; column by column the same seed.
        unit_scores: (v, s, c) its mean over the queries of each unit.
        weights: (c,) queries of each unit: the weighted mean over units is the score.
        metric_words: the metric as people write it.
        correction: for all pairs together.
        alpha: bound of the probability of any wrong "better".

    Returns:
        By the rank of a, then of b; `a` has the higher mean, and of equal ones is named first. Empty with one variant.

    Raises:
        ValueError: shapes that do not belong together, a score that is not finite, units that average to another score.
    """
    scores, unit_scores, weights = np.asarray(scores), np.asarray(unit_scores), np.asarray(weights)
    _refuse_unmatched(names, scores, unit_scores, weights)
    ranked = sorted(range(len(names)), key=lambda i: -float(scores[i].mean()))  # stable
    pairs = list(itertools.combinations(ranked, 2))
    if not pairs:
        return []
    differences = np.stack([scores[a] - scores[b] for a, b in pairs])
    p, adjusted = sign_flip_test(differences), adjusted_p(differences, correction)
    needed = seeds_needed(len(pairs), correction, alpha)
    found = []
    for i, (a, b) in enumerate(pairs):
        seeds = len(differences[i])
        improvement = probability_of_improvement(scores[a], scores[b])
        deviation = float(differences[i].std(ddof=1)) if seeds > 1 else 0.0
        pair = PairComparison(
            a=names[a],
            b=names[b],
            difference=float(differences[i].mean()),
            differences=differences[i],
            interval=two_level_interval(unit_scores[a] - unit_scores[b], weights),
            p=float(p[i]),
            adjusted=float(adjusted[i]),
            improvement=improvement.value,
            improvement_interval=improvement.interval,
            detectable=minimum_detectable_effect(deviation, seeds, len(pairs), correction, alpha, _POWER),
            verdict="too few seeds" if seeds < needed else "better" if adjusted[i] <= alpha else "open",
            words="",
        )
        found.append(replace(pair, words=verdict_words(pair, metric_words, needed)))
    return found


def interval_of(unit_scores: np.ndarray, weights: np.ndarray) -> Interval | None:
    """95 % interval of the mean score of one variant, cut to [0, 1]; None with fewer than two seeds.

    Args:
        unit_scores: (s, c) in [0, 1].
        weights: (c,) queries of each unit.
    """
    found = two_level_interval(unit_scores, weights)
    return None if found is None else (max(0.0, found[0]), min(1.0, found[1]))


def verdict_words(pair: PairComparison, metric_words: str, needed: int) -> str:
    """The verdict in one or two sentences; points are per cent.

    Args:
        pair: its other fields are filled in.
        metric_words: the metric as people write it.
        needed: seeds for a verdict.
    """
    seeds = len(pair.differences)
    largest = max(map(abs, (pair.difference, *(pair.interval or ()))))
    decimals = 1 if largest >= 0.01 else 2

    def points(share: float) -> str:
        return f"{100 * share:z.{decimals}f}"  # z: no "-0.0"

    lead = f"by {points(pair.difference)} points of {metric_words}"
    facts = [] if pair.interval is None else [f"95 % interval {points(pair.interval[0])} to {points(pair.interval[1])}"]
    won = f"better in {np.count_nonzero(pair.differences > 0)} of {seeds} seed{'s' if seeds > 1 else ''}"
    tested = f"p {_p_text(pair.p)}, corrected {_p_text(pair.adjusted)}"
    if pair.verdict == "better":
        words = f"{pair.a} beats {pair.b} {lead} ({'; '.join([*facts, tested, won])})."
        if pair.interval is not None and pair.interval[0] <= 0:  # the test asks about other seeds only
            words += " Shown for this test data; with other data of its kind it is open, as the interval holds 0."
        return words
    ahead = f"{pair.a} is ahead of {pair.b} {lead}" if pair.difference > 0 else f"{pair.a} and {pair.b} are equal"
    if pair.verdict == "too few seeds":
        return f"Not enough seeds for a verdict: {seeds} of at least {needed}. {ahead} ({'; '.join([*facts, won])})."
    words = f"No difference shown between {pair.a} and {pair.b}: {ahead} ({'; '.join([*facts, tested, won])})."
    if not pair.detectable:
        return words
    return f"{words} A true difference of {points(pair.detectable)} points or more would have been found with " + (
        f"probability {_POWER}."
    )


def _p_text(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else "below 0.0001"


def _refuse_unmatched(names: Sequence[str], scores: np.ndarray, unit_scores: np.ndarray, weights: np.ndarray) -> None:
    v, c = len(names), len(weights)
    if scores.ndim != 2 or scores.shape[0] != v or unit_scores.shape != (*scores.shape, c):
        raise ValueError(
            f"{v} variants and {c} units need scores of shape ({v}, seeds) and scores of units of shape ({v}, seeds, "
            f"{c}), got {scores.shape} and {unit_scores.shape}."
        )
    there = weights > 0
    means = unit_scores[..., there] @ weights[there] / weights[there].sum()
    apart = ~(np.abs(means - scores) <= _ROUNDING)  # also where one is NaN
    if apart.any():
        variant, seed = np.argwhere(apart)[0]
        raise ValueError(
            f"The units of {names[variant]} average to {means[variant, seed]:.6f} for seed number {seed}, its score is "
            f"{scores[variant, seed]:.6f}. Give the scores of units and their numbers of queries from the same run."
        )
