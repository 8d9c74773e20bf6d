"""Verdicts on all pairs: numbers from the statistics, order by rank, words that say what was found."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lossopt.comparison.assess import assess_pairs, interval_of, verdict_words
from lossopt.comparison.result import PairComparison
from lossopt.comparison.statistics import holm, minimum_detectable_effect, step_down_max_t, two_level_interval

WEIGHTS = np.array([20.0, 1.0, 7.0, 12.0, 20.0])


def runs(means, seeds, seed=0, noise=0.004):
    """(v, s) scores and (v, s, 5) of units that average to them."""
    rng = np.random.default_rng(seed)
    units = (
        np.array(means)[:, None, None] + rng.normal(0, 0.05, (1, 1, 5)) + rng.normal(0, noise, (len(means), seeds, 1))
    )
    units = units + rng.normal(0, noise, units.shape)
    return units @ WEIGHTS / WEIGHTS.sum(), units


def assessed(names, scores, units, correction="max-t"):
    return assess_pairs(names, scores, units, WEIGHTS, "MAP@R", correction)


@pytest.mark.parametrize("correction", ["holm", "max-t"])
def test_every_pair_has_the_numbers_of_the_statistics(correction):
    scores, units = runs([0.3, 0.5, 0.497, 0.41], 9)
    found = assessed(["low", "high", "near", "mid"], scores, units, correction)
    ranked = [1, 2, 3, 0]
    names = ["high", "near", "mid", "low"]
    assert [(pair.a, pair.b) for pair in found] == list(itertools.combinations(names, 2))
    rows = np.array([scores[a] - scores[b] for a, b in itertools.combinations(ranked, 2)])
    single = np.array([stats.permutation_test((row,), np.mean, permutation_type="samples").pvalue for row in rows])
    adjusted = holm(single) if correction == "holm" else step_down_max_t(rows)
    for pair, row, p, corrected, (a, b) in zip(
        found, rows, single, adjusted, itertools.combinations(ranked, 2), strict=True
    ):
        assert (
            pair.differences.tolist() == row.tolist()
            and pair.difference == pytest.approx(row.mean())
            and row.mean() > 0
        )
        assert (pair.p, pair.adjusted) == pytest.approx((p, corrected))
        assert pair.improvement == pytest.approx(stats.mannwhitneyu(scores[a], scores[b]).statistic / 81)
        assert pair.interval == two_level_interval(units[a] - units[b], WEIGHTS)
        assert pair.detectable == minimum_detectable_effect(row.std(ddof=1), 9, 6, correction)
        assert pair.verdict == ("better" if corrected <= 0.05 else "open")
    assert {pair.verdict for pair in found} == {"better", "open"}


def test_a_p_below_alpha_is_not_enough_among_many_pairs():
    scores, units = runs([0.5, 0.497, 0.496, 0.498], 8, seed=1)
    found = assessed(list("abcd"), scores, units)
    undecided = [pair for pair in found if pair.p <= 0.05 < pair.adjusted]
    assert undecided and {pair.verdict for pair in undecided} == {"open"}


def test_the_words_round_with_care():
    plain = PairComparison(
        *("a", "b", 0.0312, np.array([0.05, 0.0, 0.04, -0.01]), (-0.0001, 0.0561), 0.00001, 0.0623, 0.8, None, 0.071),
        *("open", ""),
    )
    assert verdict_words(plain, "recall@1", 8) == (
        "No difference shown between a and b: a is ahead of b by 3.1 points of recall@1 (95 % interval 0.0 to 5.6; "
        "p below 0.0001, corrected 0.062; better in 2 of 4 seeds). A true difference of 7.1 points or more would have "
        "been found with probability 0.8."
    )
    small = replace(plain, difference=0.0042, interval=(0.0011, 0.0099), verdict="better")
    assert verdict_words(small, "MAP", 4).startswith("a beats b by 0.42 points of MAP (95 % interval 0.11 to 0.99; p ")


def test_the_words_of_a_difference():
    scores, units = runs([0.5, 0.4], 8)
    (pair,) = assessed(["semi-hard", "random"], scores, units)
    low, high = pair.interval
    assert pair.words == (
        f"semi-hard beats random by {100 * pair.difference:.1f} points of MAP@R (95 % interval {100 * low:.1f} to "
        f"{100 * high:.1f}; p 0.0078, corrected 0.0078; better in 8 of 8 seeds)."
    )


def test_the_words_say_when_other_data_might_turn_it_round():
    scores, units = runs([0.5, 0.495], 8, noise=1e-5)
    units[0] += np.array([0.3, 0, -0.3, -0.3, 0]) - (np.array([0.3, 0, -0.3, -0.3, 0]) @ WEIGHTS) / WEIGHTS.sum()
    (pair,) = assessed(["a", "b"], scores, units)
    assert pair.verdict == "better" and pair.interval[0] < 0
    assert pair.words.endswith(
        "Shown for this test data; with other data of its kind it is open, as the interval holds 0."
    )


def test_the_words_of_no_difference():
    scores, units = runs([0.5, 0.5005], 8, seed=3)
    (pair,) = assessed(["x", "y"], scores, units)
    assert pair.verdict == "open"
    ahead = f"No difference shown between {pair.a} and {pair.b}: {pair.a} is ahead of {pair.b} by "
    assert pair.words.startswith(ahead)
    decimals = 1 if max(map(abs, (*pair.interval, pair.difference))) >= 0.01 else 2
    told = f"A true difference of {100 * pair.detectable:.{decimals}f} points or more would have been found with"
    assert pair.words.endswith(f" {told} probability 0.8.")
    assert f"corrected {pair.adjusted:.2g}" in pair.words


def test_equal_variants_keep_their_order_and_are_open():
    scores, units = runs([0.5], 8)
    found = assessed(["b", "a", "c"], np.repeat(scores, 3, axis=0), np.repeat(units, 3, axis=0))
    assert [(pair.a, pair.b) for pair in found] == [("b", "a"), ("b", "c"), ("a", "c")]
    for pair in found:
        assert (pair.difference, pair.p, pair.adjusted, pair.improvement, pair.detectable) == (0, 1, 1, 0.5, 0)
        assert pair.interval == (0, 0) and pair.verdict == "open"
    assert found[0].words == (
        "No difference shown between b and a: b and a are equal (95 % interval 0.00 to 0.00; p 1, corrected 1; "
        "better in 0 of 8 seeds)."
    )


def test_too_few_seeds_give_no_verdict():
    scores, units = runs([0.5, 0.3], 3)
    (pair,) = assessed(["x", "y"], scores, units)
    assert (pair.verdict, pair.detectable, pair.p) == ("too few seeds", None, 2 / 2**3)
    assert pair.words.startswith("Not enough seeds for a verdict: 3 of at least 8. x is ahead of y by ")
    assert pair.words.endswith("; better in 3 of 3 seeds).") and "95 % interval" in pair.words
    scores, units = runs(np.linspace(0.1, 0.9, 9), 8)
    names = list("abcdefghi")
    assert {pair.verdict for pair in assessed(names, scores, units, "holm")} == {"too few seeds"}
    assert {pair.verdict for pair in assessed(names, scores, units, "max-t")} == {"better"}
    assert "8 of at least 11" in assessed(names, scores, units, "holm")[0].words


def test_one_seed_and_one_variant():
    scores, units = runs([0.3, 0.5], 1)
    (pair,) = assessed(["x", "y"], scores, units)
    assert (pair.a, pair.interval, pair.improvement_interval, pair.p) == ("y", None, None, 1)
    assert pair.words.startswith("Not enough seeds for a verdict: 1 of at least 8. y is ahead of x by ")
    assert pair.words.endswith(" points of MAP@R (better in 1 of 1 seed).")
    assert assessed(["x"], scores[:1], units[:1]) == []


def test_an_interval_of_a_score_stays_within_0_and_1():
    high = np.array([[0.99, 1.0], [0.9, 1.0], [1.0, 1.0]])
    low, top = interval_of(high, np.ones(2))
    assert 0 < low < high.mean() < top == 1
    low, top = interval_of(1 - high, np.ones(2))
    assert low == 0 < top < 1
    assert interval_of(high[:1], np.ones(2)) is None


def test_scores_that_do_not_belong_together_are_refused():
    scores, units = runs([0.3, 0.5], 8)
    with pytest.raises(ValueError, match=r"2 variants and 5 units need scores of shape \(2, seeds\).*\(2, 8, 4\)"):
        assessed(["x", "y"], scores, units[..., :4])
    with pytest.raises(ValueError, match="3 variants"):
        assessed(["x", "y", "z"], scores, units)
    other = scores.copy()
    other[1, 2] += 0.001
    with pytest.raises(ValueError, match=r"The units of y average to 0\.\d+ for seed number 2"):
        assessed(["x", "y"], other, units)
    other[1, 2] = np.nan
    with pytest.raises(ValueError, match="its score is nan"):
        assessed(["x", "y"], other, units)
