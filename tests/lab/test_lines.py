"""Each line against its definition typed out: difference quotients, averages, schedules, the example by hand."""

import numpy as np
import pytest
import scipy.optimize
import scipy.signal

from lossopt.lab.lines import averages, by_hand, gradient_error, optimisation_lines, schedules


def test_the_error_of_a_numerical_gradient_has_its_valley_where_theory_says():
    drawn = gradient_error()
    place, h = np.array([-1.23, 0.87]), drawn.x
    right = scipy.optimize.rosen_der(place)
    errors = {name: line[0] for name, line in drawn.lines.items()}
    for i in (0, 4, 9, 16):  # 1 down to 1e-4, before round-off
        ahead, behind = (np.array([scipy.optimize.rosen(place + s * h[i] * one) for one in np.eye(2)]) for s in (1, -1))
        forward = (ahead - scipy.optimize.rosen(place)) / h[i]
        for name, found in (("forward, float64", forward), ("central, float64", (ahead - behind) / (2 * h[i]))):
            expected = np.linalg.norm(found - right) / np.linalg.norm(right)
            assert errors[name][i] == pytest.approx(expected, rel=1e-3)
    best = {name: h[error.argmin()] for name, error in errors.items()}
    assert 1e-7 < best["central, float64"] < 1e-4 and 1e-9 < best["forward, float64"] < 1e-6
    assert best["central, float32"] > 1e-4 > best["central, float64"]
    lowest = {name: error.min() for name, error in errors.items()}
    assert lowest["central, float64"] < lowest["forward, float64"] < lowest["central, float32"] < 1e-3
    assert all(error[-1] > 1e3 * error.min() for error in errors.values())  # drowned in round-off
    assert all((error > 0).all() for error in errors.values())  # a logarithmic axis has no 0


def test_averages_are_those_of_the_drawn_series_at_every_beta():
    drawn = averages()
    series = drawn.lines["series"][0]
    for row, beta in enumerate(drawn.slider.values):
        plain = scipy.signal.lfilter([1 - beta], [1, -beta], series)
        np.testing.assert_allclose(drawn.lines["not corrected"][row], plain, rtol=1e-10)
        np.testing.assert_allclose(drawn.lines["corrected"][row], plain / (1 - beta**drawn.x), rtol=1e-9)
    assert drawn.x[0] == 1 and drawn.slider.values[drawn.slider.start] == 0.9
    assert drawn.lines["not corrected"][-1, 0] < 0.1 < drawn.lines["corrected"][-1, 0]
    assert (averages().lines["series"] == drawn.lines["series"]).all()
    assert (averages(seed=1).lines["series"] != drawn.lines["series"]).all()


def plateau_by_definition(losses, patience):
    rate, best, bad, rates = 0.1, np.inf, 0, []
    for loss in losses:
        rates.append(rate)
        if loss < best * (1 - 1e-4):
            best, bad = loss, 0
        else:
            bad += 1
        if bad > patience:
            rate, bad = rate * 0.5, 0
    return rates


def test_schedules_are_their_definitions():
    step, exponential, plateau = schedules()
    assert step.x.tolist() == list(range(1, 61))  # epochs are counted from 1
    epochs = np.arange(60)
    for row, gamma in enumerate(step.slider.values):
        np.testing.assert_allclose(step.lines["rate"][row], 0.1 * gamma ** (epochs // 15), rtol=1e-10)
    for row, gamma in enumerate(exponential.slider.values):
        np.testing.assert_allclose(exponential.lines["rate"][row], 0.1 * gamma**epochs, rtol=1e-10)
    for row, patience in enumerate(plateau.slider.values):
        expected = plateau_by_definition(plateau.lines["loss"][0], patience)
        np.testing.assert_allclose(plateau.lines["rate"][row], expected, rtol=1e-10)
    assert len({tuple(row) for row in plateau.lines["rate"]}) == len(plateau.slider.values)  # patience matters
    assert plateau.lines["rate"][0, -1] < plateau.lines["rate"][-1, -1]
    assert [drawn.where.split(".")[-1] for drawn in schedules()] == ["StepLR", "ExponentialLR", "ReduceLROnPlateau"]


def test_the_example_by_hand():
    drawn = by_hand()
    np.testing.assert_allclose(drawn.lines["W"][0], [4, 1.6, 0.64, 0.256, 0.1024])
    np.testing.assert_allclose(drawn.lines["L(W)"][0], [16, 2.56, 0.4096, 0.065536, 0.01048576])


def test_every_line_fits_its_axis_and_its_slider():
    drawn = optimisation_lines()
    assert len({lines.name for lines in drawn}) == len(drawn) == 6
    for lines in drawn:
        places = len(lines.slider.values) if lines.slider else 1
        assert lines.formula and lines.says and lines.where and lines.x_label and lines.y_label
        for line in lines.lines.values():
            assert line.shape in ((places, len(lines.x)), (1, len(lines.x)))
            assert np.isfinite(line).all() and (not lines.log[1] or (line > 0).all())
        assert not lines.log[0] or (lines.x > 0).all()
        assert lines.slider is None or 0 <= lines.slider.start < places
