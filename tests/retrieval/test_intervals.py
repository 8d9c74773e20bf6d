"""Bootstrap over classes against scipy's, against every possible draw, and against repeated experiments."""

import itertools
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from lossopt.retrieval.intervals import (
    bootstrap_over_classes,
    expanded_tail,
    intervals_over_classes,
    paired_interval,
)


def uneven(c, seed=0):
    """Classes of 1 to 30 queries, the large ones harder; each class succeeds or fails much as one."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30, c)
    chance = rng.beta(0.5 + 20 / sizes, 1.0)
    classes = rng.permutation(np.repeat(np.arange(c) * 7 - 3, sizes))
    return (rng.random(len(classes)) < chance[(classes + 3) // 7]).astype(float), classes


@pytest.mark.parametrize("c", [6, 40])
def test_agrees_with_scipy_on_sums_of_classes(c):
    values, classes = uneven(c)
    kept = np.unique(classes)
    sums = np.array([values[classes == one].sum() for one in kept])
    counts = np.array([(classes == one).sum() for one in kept])
    theirs = stats.bootstrap(
        (sums, counts),
        lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        n_resamples=40_000,
        batch=10_000,
        confidence_level=1 - 2 * expanded_tail(len(kept)),
        method="BCa",
        rng=1,
    ).confidence_interval
    found = bootstrap_over_classes(values, classes, resamples=40_000)
    assert found == pytest.approx(tuple(theirs), abs=0.02 * (theirs.high - theirs.low) + 0.002)


def test_few_classes_give_the_range_of_every_possible_draw():
    values, classes = np.array([0.1, 0.9, 0.4, 0.4, 0.8]), np.array([5, 5, 2, 2, 9])
    groups = [values[classes == one] for one in (2, 5, 9)]
    means = [np.concatenate(draw).mean() for draw in itertools.product(groups, repeat=3)]
    found = bootstrap_over_classes(values, classes)
    assert found == pytest.approx((min(means), max(means)), abs=1e-5)  # tails of 7e-8, between the last two draws


def test_the_expanded_tail_is_that_of_a_t_interval():
    for c in (2, 5, 30):
        z = stats.norm.ppf(expanded_tail(c))
        assert z * np.sqrt((c - 1) / c) == pytest.approx(stats.t.ppf(0.025, c - 1))
    assert expanded_tail(10**6) == pytest.approx(0.025, abs=1e-5)


def test_the_truth_is_inside_about_as_often_as_promised():
    rng = np.random.default_rng(0)
    inside = []
    for seed in range(300):
        chance = rng.beta(2, 1, 15)
        values = (rng.random((15, 10)) < chance[:, None]).astype(float)
        low, high = bootstrap_over_classes(values.ravel(), np.repeat(np.arange(15), 10), 500, seed)
        inside.append(low <= 2 / 3 <= high)
    assert 0.90 < np.mean(inside) < 0.98  # drawing queries instead of classes: about 0.75


def test_several_metrics_share_their_draws():
    values, classes = uneven(30)
    both = intervals_over_classes({"a": values, "b": 1 - values}, classes)
    assert both["a"] == bootstrap_over_classes(values, classes)
    assert both["b"] == pytest.approx((1 - both["a"][1], 1 - both["a"][0]), abs=1e-9)
    assert bootstrap_over_classes(values, classes, seed=1) != both["a"]


def test_a_paired_difference_is_narrower_than_two_means():
    values, classes = uneven(60)
    better = np.clip(values + 0.05, 0, None)
    low, high = paired_interval(values, better, classes)
    assert low == pytest.approx(0.05) and high == pytest.approx(0.05)
    with pytest.raises(ValueError, match="same queries twice"):
        paired_interval(values, better[:-1], classes)


def test_what_has_no_interval():
    assert bootstrap_over_classes(np.array([0.0, 1.0]), np.array([3, 3])) is None
    assert bootstrap_over_classes(np.array([]), np.array([], dtype=np.int64)) is None
    assert bootstrap_over_classes(np.ones(6), np.arange(6) // 2) == (1.0, 1.0)
    with pytest.raises(ValueError, match=r"mean: an interval needs one finite value and one class per query"):
        bootstrap_over_classes(np.array([0.0, np.nan]), np.array([1, 2]))
    with pytest.raises(ValueError, match=r"shape \(3,\) and classes of shape \(2,\)"):
        bootstrap_over_classes(np.zeros(3), np.array([1, 2]))


def test_many_classes_take_little_memory():
    rng = np.random.default_rng(0)
    classes = rng.permutation(np.arange(60_000) % 11_316)
    tracemalloc.start()
    bootstrap_over_classes(rng.random(60_000), classes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
