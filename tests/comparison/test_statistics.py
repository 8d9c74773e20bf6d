"""Each statistic against its definition by brute force, and the whole against simulated comparisons."""

import itertools
import math
import time

import numpy as np
import pytest
from scipy import stats

from lossopt.comparison.statistics import (
    adjusted_p,
    holm,
    minimum_detectable_effect,
    power,
    probability_of_improvement,
    seeds_needed,
    sign_flip_test,
    step_down_max_t,
    two_level_interval,
)

NEAR = 1e-9


def all_flips(s):
    return list(itertools.product([1, -1], repeat=s))


def sign_flip_by_definition(row):
    """Share of the flips whose |sum| is at least as large, up to rounding."""
    observed = abs(math.fsum(row))
    tie = NEAR * sum(map(abs, row))
    count = sum(
        abs(math.fsum(x * y for x, y in zip(row, flip, strict=True))) >= observed - tie for flip in all_flips(len(row))
    )
    return count / 2 ** len(row)


def max_t_by_definition(rows):
    """Remove the largest |t|, compare with the largest of what is left, step by step."""

    def t(row, flip):
        length = math.sqrt(math.fsum(x * x for x in row))
        return abs(math.fsum(x * y for x, y in zip(row, flip, strict=True))) / length if length else 0.0

    s = len(rows[0])
    observed = [t(row, (1,) * s) for row in rows]
    left, largest, adjusted = set(range(len(rows))), 0.0, [0.0] * len(rows)
    while left:
        first = max(left, key=lambda i: observed[i])
        beaten = sum(max(t(rows[i], flip) for i in left) >= observed[first] - NEAR for flip in all_flips(s))
        largest = max(largest, beaten / 2**s)
        adjusted[first] = largest
        left.remove(first)
    return adjusted


def untidy(m, s, seed):
    """Rows of very different sizes: few distinct values, zeros, equal rows, opposite rows, an outlier."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-3, 6, (m, s)) / 10.0
    rows *= 10.0 ** rng.integers(-3, 4, (m, 1))
    rows[0] = 0.0
    if m > 3:
        rows[1], rows[2] = rows[3], -rows[3]
    rows[-1, 0] = 100.0
    return rows


@pytest.mark.parametrize("s", [2, 3, 5, 8])
def test_sign_flips_are_those_of_the_definition(s):
    rows = untidy(7, s, s)
    assert sign_flip_test(rows) == pytest.approx([sign_flip_by_definition(row) for row in rows.tolist()], abs=1e-12)


def test_sign_flips_agree_with_scipy_without_ties():
    row = np.random.default_rng(3).normal(0.4, 1, 10)
    theirs = stats.permutation_test((row,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_test(row[None]) == pytest.approx(theirs)


def test_the_smallest_p_of_sign_flips():
    for s in (2, 6, 8, 10, 16):
        assert sign_flip_test(np.full((1, s), 0.1)) == 2 / 2**s
    assert sign_flip_test(np.array([[0.7], [0.0]])).tolist() == [1.0, 1.0]
    assert sign_flip_test(np.zeros((2, 5))).tolist() == [1.0, 1.0]
    assert sign_flip_test(np.zeros((0, 5))).shape == step_down_max_t(np.zeros((0, 5))).shape == (0,)


def test_flips_that_differ_by_rounding_are_ties():
    # 0.1 + 0.2 - 0.3 is 5.6e-17 rather than 0, and every flip is at least as far from 0 as 0
    assert sign_flip_test(np.array([[0.1, 0.2, -0.3]])) == 1
    # sums of tenths that are equal on paper come in several floating-point versions
    row = np.array([0.3, 0.1, 0.2, 0.7, -0.1, 0.6, 0.4, 0.9])
    whole = sign_flip_by_definition((row * 10).round().astype(int).tolist())
    assert sign_flip_test(np.stack([row, row / 3, 1e6 * row])).tolist() == [whole] * 3
    # 1e4 - 1e4 + ... : rounding goes with the size of the row, not with that of its mean
    far = np.array([[1e4, -1e4, 0.1, 0.2, -0.3, 1.1]])
    assert sign_flip_test(far) == sign_flip_by_definition([100_000, -100_000, 1, 2, -3, 11])


def test_many_seeds_are_sampled_with_a_fixed_seed():
    row = np.random.default_rng(0).normal(0.3, 1, (2, 24))
    p = sign_flip_test(row)
    assert p.tolist() == sign_flip_test(row).tolist()
    assert p == pytest.approx(stats.ttest_1samp(row, 0, axis=1).pvalue, abs=0.01)
    assert sign_flip_test(np.ones((1, 40))) == 1 / 2**16  # the unflipped one counts


def test_what_the_test_refuses():
    with pytest.raises(ValueError, match=r"1 that are not finite\. Failed runs need a score too"):
        sign_flip_test(np.array([[0.1, np.nan]]))
    with pytest.raises(ValueError, match="not finite"):
        step_down_max_t(np.array([[0.1, np.inf]]))
    for wrong in (np.zeros(3), np.zeros((2, 0))):
        with pytest.raises(ValueError, match=r"one finite difference per comparison and seed, got shape"):
            sign_flip_test(wrong)


def holm_by_closed_testing(p):
    """The largest Bonferroni p of all sets of hypotheses that hold this one."""
    m = len(p)
    sets = [one for size in range(1, m + 1) for one in itertools.combinations(range(m), size)]
    return [max(min(1, len(one) * min(p[j] for j in one)) for one in sets if i in one) for i in range(m)]


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03], [0.5, 0.02, 0.02, 0.9, 0.011], [0.0, 1.0, 1.0], [0.03], []])
def test_holm_is_closed_testing_with_bonferroni(p):
    assert holm(np.array(p)) == pytest.approx(holm_by_closed_testing(p))


def test_holm_refuses_what_is_no_p():
    for wrong in ([0.1, np.nan], [-0.1], [1.1], [[0.1]]):
        with pytest.raises(ValueError, match="a list of p from 0 to 1"):
            holm(np.array(wrong))


@pytest.mark.parametrize(("m", "s"), [(1, 5), (2, 2), (6, 4), (6, 7), (10, 6)])
def test_max_t_is_the_explicit_loop(m, s):
    for seed in range(4):
        rows = untidy(m, s, seed) if seed else np.random.default_rng(m).normal(0.5, 1, (m, s))
        assert step_down_max_t(rows) == pytest.approx(max_t_by_definition(rows.tolist()), abs=1e-12)


def test_max_t_keeps_its_smallest_p_and_never_undercuts_the_single_test():
    rng = np.random.default_rng(5)
    rows = rng.normal(0, 1, (36, 8))
    rows[7] = 2 + 0.01 * rng.normal(size=8)
    rows[8] = rows[7] / 1_000  # the scale of a row says nothing
    adjusted = step_down_max_t(rows)
    assert adjusted[7] == adjusted[8] == 2 / 2**8
    assert holm(sign_flip_test(rows))[7] == 36 * 2 / 2**8
    assert (adjusted >= sign_flip_test(rows)).all()
    assert step_down_max_t(rows[:1]) == sign_flip_test(rows[:1])
    assert step_down_max_t(rng.normal(size=(3, 1))).tolist() == [1.0] * 3


def test_the_correction_is_chosen_by_name():
    rows = untidy(6, 6, 1)
    assert adjusted_p(rows, "holm").tolist() == holm(sign_flip_test(rows)).tolist()
    assert adjusted_p(rows, "max-t").tolist() == step_down_max_t(rows).tolist()
    with pytest.raises(ValueError, match="'bonferroni'; it can be 'holm' or 'max-t'"):
        adjusted_p(rows, "bonferroni")


def test_seeds_needed_are_the_fewest():
    for comparisons, alpha in itertools.product((1, 2, 3, 6, 10, 28, 36, 105), (0.05, 0.01, 0.5)):
        for correction, factor in (("holm", comparisons), ("max-t", 1)):
            n = seeds_needed(comparisons, correction, alpha)
            assert n >= 8 and factor * 2 / 2**n <= alpha
            assert n == 8 or factor * 2 / 2 ** (n - 1) > alpha
    assert (seeds_needed(4, "holm", least=2), seeds_needed(1, "max-t", least=2)) == (8, 6)  # "6 seeds can never win"
    assert (seeds_needed(36, "holm"), seeds_needed(36, "max-t"), seeds_needed(0, "holm")) == (11, 8, 8)
    with pytest.raises(ValueError, match="alpha is a probability"):
        seeds_needed(3, "holm", alpha=5)


def test_so_many_seeds_do_reach_alpha_and_one_fewer_do_not():
    for n, reached in ((seeds_needed(15, "holm", least=2), True), (seeds_needed(15, "holm", least=2) - 1, False)):
        rows = np.ones((15, n))
        rows[1:, 0] = -1
        assert (holm(sign_flip_test(rows))[0] <= 0.05) == reached


def interval_by_definition(scores, weights, resamples, seed):
    """Two loops over the same draws; then the distance from the mean is scaled to that of a t interval."""
    s, c = scores.shape
    rng = np.random.default_rng(seed)
    units = rng.integers(c, size=(resamples, c))
    seeds = rng.integers(s, size=(resamples, s))
    means = []
    for one, other in zip(seeds.tolist(), units.tolist(), strict=True):
        queries = sum(weights[j] for j in other)
        means.append(sum(weights[j] * scores[i][j] for i in one for j in other) / (s * queries))
    total = weights.sum()
    rows = [sum(weights[j] * scores[i, j] for j in range(c)) / total for i in range(s)]
    columns = [sum(scores[i, j] for i in range(s)) / s for j in range(c)]
    mean = sum(rows) / s
    over_seeds = sum((row - mean) ** 2 for row in rows) / (s - 1) / s
    few = c / (c - 1)
    over_units = few * sum((weights[j] / total * (columns[j] - mean)) ** 2 for j in range(c))
    cells = ((i, j) for i in range(s) for j in range(c))
    noise = few * sum((weights[j] / total * (scores[i, j] - rows[i] - columns[j] + mean)) ** 2 for i, j in cells)
    noise /= s * (s - 1)
    variance = max(over_seeds + over_units - noise, over_seeds, over_units)
    freedom = max(variance**2 / (over_seeds**2 / (s - 1) + over_units**2 / (c - 1)), min(s, c) - 1)
    factor = math.sqrt(variance) * stats.t.ppf(0.975, freedom) / (stats.norm.ppf(0.975) * np.std(means))
    return tuple(mean + factor * (np.quantile(means, q) - mean) for q in (0.025, 0.975))


@pytest.mark.parametrize(("s", "c"), [(2, 2), (3, 9), (8, 4), (5, 30)])
def test_the_interval_is_that_of_two_loops(s, c):
    rng = np.random.default_rng(10 * s + c)
    scores = rng.integers(0, 5, (s, c)) / 4 + rng.normal(size=(s, 1)) + rng.exponential(size=c)
    weights = rng.integers(1, 30, c).astype(float)
    noise = rng.normal(size=(s, c))  # neither seeds nor units differ
    assert two_level_interval(noise, np.ones(c), 300, 4) == pytest.approx(
        interval_by_definition(noise, np.ones(c), 300, 4)
    )
    found = two_level_interval(scores, weights, resamples=300, seed=4)
    assert found == pytest.approx(interval_by_definition(scores, weights, 300, 4))
    with_empty = np.column_stack([np.full(s, np.nan), scores])  # a unit without queries has no score
    assert two_level_interval(with_empty, np.append(0, weights), resamples=300, seed=4) == found


def test_with_one_unit_the_interval_is_about_the_t_interval_of_the_seeds():
    scores = np.random.default_rng(1).normal(0.4, 0.1, 10)
    theirs = stats.ttest_1samp(scores, 0).confidence_interval()
    width = theirs.high - theirs.low
    one = two_level_interval(scores[:, None], np.array([7.0]))
    assert one == pytest.approx((theirs.low, theirs.high), abs=0.1 * width)
    alike = two_level_interval(np.tile(scores[:, None], 40), np.arange(1.0, 41))
    assert alike == pytest.approx((theirs.low, theirs.high), abs=0.1 * width)


def test_units_that_differ_widen_the_interval_of_a_mean_and_not_of_a_paired_difference():
    rng = np.random.default_rng(2)
    a = rng.normal(0, 0.01, (8, 1)) + rng.normal(0, 1, (1, 30))
    b = a - 0.1 + rng.normal(0, 0.01, (8, 1))
    low, high = two_level_interval(a, np.ones(30))
    assert high - low == pytest.approx(
        2 * stats.t.ppf(0.975, 29) * a.mean(axis=0).std(ddof=1) / math.sqrt(30), rel=0.15
    )
    low, high = two_level_interval(a - b, np.ones(30))
    assert 0.08 < low < 0.1 < high < 0.12
    mirrored = two_level_interval(b - a, np.ones(30))
    assert mirrored == pytest.approx((-high, -low))


def test_what_has_no_interval_and_what_no_width():
    assert two_level_interval(np.ones((1, 5)), np.ones(5)) is None
    assert two_level_interval(np.full((4, 3), 0.3), np.array([1, 2, 3])) == pytest.approx((0.3, 0.3))
    with pytest.raises(ValueError, match=r"got shapes \(3, 4\) and \(3,\)"):
        two_level_interval(np.zeros((3, 4)), np.ones(3))
    for scores, weights in (
        (np.zeros((3, 2)), [0.0, 0.0]),
        (np.zeros((3, 0)), []),
        (np.zeros((3, 2)), [1.0, -1.0]),
        (np.zeros((3, 2)), [1.0, np.nan]),
        (np.full((3, 2), np.nan), [1.0, 0.0]),
    ):
        with pytest.raises(ValueError, match="An interval needs queries"):
            two_level_interval(scores, np.array(weights))


def test_intervals_are_repeatable_and_quick():
    rng = np.random.default_rng(0)
    scores, weights = rng.random((10, 700)), rng.integers(1, 21, 700)
    start = time.process_time()
    found = [two_level_interval(scores, weights, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert time.process_time() - start < 1.5  # about 0.1
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(("s", "c"), [(3, 20), (8, 20), (8, 100)])
@pytest.mark.parametrize("of_seeds", [0.0, 0.5, 1.0])
def test_the_interval_holds_the_truth_about_as_often_as_promised(s, c, of_seeds):
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        scores = math.sqrt(of_seeds * s) * rng.normal(size=(s, 1)) + math.sqrt((1 - of_seeds) * c) * rng.normal(size=c)
        low, high = two_level_interval(scores, np.ones(c), 400, seed)
        held += low <= 0 <= high
    assert 0.90 < held / 300 <= 0.985  # plain percentiles: 0.75 with 3 seeds, 0.87 with 8


@pytest.mark.parametrize("s", [2, 5, 9])
def test_improvement_counts_all_pairs(s):
    rng = np.random.default_rng(s)
    a, b = rng.integers(0, 6, s) / 5, rng.integers(0, 5, s) / 5
    wins = sum(1.0 if x > y else 0.5 if x == y else 0.0 for x in a for y in b)
    value, (low, high) = probability_of_improvement(a, b)
    assert value == pytest.approx(wins / s**2)
    assert value == pytest.approx(stats.mannwhitneyu(a, b).statistic / s**2)
    assert 0 <= low <= value <= high <= 1
    mirrored = probability_of_improvement(b, a)
    assert mirrored.value == pytest.approx(1 - value) and mirrored.interval == pytest.approx((1 - high, 1 - low))


def test_the_interval_of_improvement_is_wilsons():
    for won in range(9):  # of 8 seeds; a constant b makes the share won / 8
        a = np.where(np.arange(8) < won, 1.0, -1.0)
        theirs = stats.binomtest(won, 8).proportion_ci(method="wilson")
        assert probability_of_improvement(a, np.zeros(8)).interval == pytest.approx((theirs.low, theirs.high))
    assert probability_of_improvement(np.array([0.5]), np.array([0.5])) == (0.5, None)
    for a, b in ((np.zeros(3), np.zeros(2)), (np.zeros(0), np.zeros(0)), (np.array([np.nan]), np.zeros(1))):
        with pytest.raises(ValueError, match="a finite score of A and of B for every seed"):
            probability_of_improvement(a, b)


@pytest.mark.parametrize("distance", [0.0, 0.7, 1.8])
def test_the_interval_of_improvement_holds_the_truth(distance):
    rng = np.random.default_rng(0)
    truth = stats.norm.cdf(distance / math.sqrt(2))
    held = 0
    for _ in range(500):
        low, high = probability_of_improvement(rng.normal(distance, 1, 8), rng.normal(0, 1, 8)).interval
        held += low <= truth <= high
    assert held / 500 > 0.94


def test_power_is_that_of_the_test_on_simulated_seeds():
    rng = np.random.default_rng(11)
    rows = rng.normal(0.9, 0.6, (2_000, 8))
    found = (sign_flip_test(rows) <= 0.05 / 3).mean()
    assert power(0.9, 0.6, 8, 3, "holm") == pytest.approx(found, abs=0.05)
    assert power(-0.9, 0.6, 8, 3, "holm") == power(0.9, 0.6, 8, 3, "holm")
    assert power(0.9, 0.6, 8, 1, "holm") == power(0.9, 0.6, 8, 1, "max-t")


def test_power_of_max_t_is_that_of_its_first_step():
    rng = np.random.default_rng(12)
    found = []
    for _ in range(400):
        runs = rng.normal(0, math.sqrt(0.5), (4, 8))
        rows = np.array([runs[a] - runs[b] for a, b in itertools.combinations(range(4), 2)])
        rows[0] += 1.7
        found.append(step_down_max_t(rows)[0] <= 0.05)
    assert power(1.7, 1.0, 8, 6, "max-t") == pytest.approx(np.mean(found), abs=0.06)


@pytest.mark.parametrize(("effect", "comparisons"), [(0.35, 1), (0.6, 1), (0.6, 10)])
def test_with_many_seeds_power_is_that_of_the_normal_test(effect, comparisons):
    s = 40
    freedom, limit = s - 1, stats.t.ppf(1 - 0.025 / comparisons, s - 1)
    expected = stats.nct.sf(limit, freedom, effect * math.sqrt(s))
    assert power(2 * effect, 2.0, s, comparisons, "holm") == pytest.approx(expected, abs=0.04)


def test_without_effect_power_is_at_most_alpha():
    for seeds, comparisons, correction in ((8, 1, "holm"), (10, 6, "holm"), (8, 6, "max-t"), (20, 6, "max-t")):
        assert power(0.0, 1.0, seeds, comparisons, correction) <= 0.07
    assert power(1e9, 1.0, 7, 6, "holm") == 0  # 6 * 2 / 2**7 is above 0.05
    for deviation, seeds, comparisons in ((0.0, 8, 1), (np.nan, 8, 1), (1.0, 0, 1), (1.0, 8, 0)):
        with pytest.raises(ValueError, match="a deviation above 0, at least one seed and one comparison"):
            power(1.0, deviation, seeds, comparisons, "holm")


@pytest.mark.parametrize(("seeds", "comparisons", "correction"), [(8, 3, "holm"), (10, 10, "max-t"), (20, 10, "holm")])
def test_the_detectable_effect_has_the_power_asked_for(seeds, comparisons, correction):
    effect = minimum_detectable_effect(0.02, seeds, comparisons, correction)
    assert power(effect, 0.02, seeds, comparisons, correction) == pytest.approx(0.8, abs=0.01)
    assert effect == pytest.approx(2 * minimum_detectable_effect(0.01, seeds, comparisons, correction))
    assert minimum_detectable_effect(0.02, seeds, comparisons, correction, power=0.95) > effect
    assert minimum_detectable_effect(0.0, seeds, comparisons, correction) == 0


def test_too_few_seeds_detect_nothing():
    assert minimum_detectable_effect(0.02, 7, 1, "max-t") is None  # fewer than 8 never give a verdict
    assert minimum_detectable_effect(0.02, 10, 36, "holm") is None
    assert minimum_detectable_effect(0.02, 8, 36, "max-t") is not None
    with pytest.raises(ValueError, match="power is between alpha"):
        minimum_detectable_effect(0.02, 8, 1, "holm", power=1.0)


def simulated(variants, seeds, shift, collapsing, times, seed):
    """For each simulated comparison of all pairs: whether Holm and max-t call each of them different."""
    rng = np.random.default_rng(seed)
    a, b = np.array(list(itertools.combinations(range(variants), 2))).T
    for _ in range(times):
        runs = shift[:, None] + rng.normal(size=seeds) + rng.normal(size=(variants, seeds))
        runs -= 20 * (rng.random(runs.shape) < 0.1) * collapsing
        differences = runs[a] - runs[b]
        single = sign_flip_test(differences)
        yield holm(single) <= 0.05, step_down_max_t(differences) <= 0.05


@pytest.mark.parametrize(
    ("variants", "seeds", "different", "collapsing"),
    [(8, 8, 0, False), (4, 8, 0, True), (5, 10, 0, False), (6, 8, 3, False)],
)
def test_under_a_true_null_a_false_verdict_is_as_rare_as_promised(variants, seeds, different, collapsing):
    shift = np.where(np.arange(variants) < different, 4.0 * np.arange(1, variants + 1), 0.0)
    true_null = [shift[a] == shift[b] for a, b in itertools.combinations(range(variants), 2)]
    times = 1_000
    wrong = np.zeros(2)
    for verdicts in simulated(variants, seeds, shift, collapsing, times, seed=variants):
        wrong += [one[true_null].any() for one in verdicts]
    for count in wrong.astype(int).tolist():
        assert stats.binomtest(count, times, 0.05, alternative="greater").pvalue > 0.01, wrong
    if not collapsing and not different:
        assert wrong[1] / times > 0.03  # and max-t spends what it may


def test_the_power_for_a_stated_effect_and_max_t_is_no_weaker_than_holm():
    """4 variants, 8 seeds, one ahead by two standard deviations of a difference: found in about 9 of 10."""
    shift = np.array([2 * math.sqrt(2), 0.0, 0.0, 0.0])
    found = np.array([verdicts for verdicts in simulated(4, 8, shift, False, 300, seed=0)])[
        :, :, :3
    ]  # pairs of the first
    by_holm, by_max_t = found.mean(axis=(0, 2))
    assert 0.8 < by_holm <= by_max_t < 0.99
    assert by_max_t >= power(2.0, 1.0, 8, 6, "max-t") - 0.05
