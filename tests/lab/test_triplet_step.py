"""The step on the triplet loss against the loss and its gradient typed out, triplet by triplet."""

import itertools

import numpy as np
import pytest

from lossopt.lab.triplet_step import MARGINS, RATE, embedding, triplet_step


def by_definition(points, classes, margin):
    """Mean of max(0, |a - p| - |a - n| + margin) over all triplets, its gradient, and how many are above 0."""
    losses, gradient = [], np.zeros_like(points)
    for a, p, n in itertools.permutations(range(len(points)), 3):
        if classes[a] != classes[p] or classes[a] == classes[n]:
            continue
        to_p, to_n = points[a] - points[p], points[a] - points[n]
        d_ap, d_an = np.hypot(*to_p), np.hypot(*to_n)
        losses.append(max(0.0, d_ap - d_an + margin))
        if losses[-1] > 0:
            gradient[a] += to_p / d_ap - to_n / d_an
            gradient[p] -= to_p / d_ap
            gradient[n] += to_n / d_an
    return np.mean(losses), gradient / len(losses), sum(loss > 0 for loss in losses), len(losses)


@pytest.fixture(scope="module")
def step():
    return triplet_step()


@pytest.mark.parametrize("place", range(len(MARGINS)))
def test_it_is_one_step_down_the_gradient_of_the_definition(step, place):
    loss, gradient, active, triplets = by_definition(step.points, step.classes, MARGINS[place])
    np.testing.assert_allclose(step.moved[place], step.points - RATE * gradient, atol=1e-12)
    np.testing.assert_allclose(step.loss_before[place], loss, atol=1e-12)
    after = by_definition(step.moved[place], step.classes, MARGINS[place])
    np.testing.assert_allclose(step.loss_after[place], after[0], atol=1e-12)
    assert (step.active[place], step.triplets) == (active, triplets)


def test_the_points_are_real_and_the_slider_fits(step):
    assert step.points.shape == (15, 2) and step.triplets == 15 * 4 * 10
    np.testing.assert_allclose(step.points.mean(axis=0), 0, atol=1e-12)
    assert np.square(step.points).sum(axis=1).mean() == pytest.approx(1)
    assert np.bincount(step.classes)[[3, 5, 8]].tolist() == [5, 5, 5]
    assert list(step.margin.values) == sorted(step.margin.values) and len(step.margin.values) == len(step.moved)
    assert (step.loss_after < step.loss_before).all()
    assert (np.diff(step.active) >= 0).all() and step.active[0] < step.active[-1]
    np.testing.assert_array_equal(embedding()[0], step.points)
