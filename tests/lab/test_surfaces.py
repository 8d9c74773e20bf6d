"""Every ground against its formula typed out, scipy's Rosenbrock and derivatives by hand."""

import numpy as np
import pytest
import scipy.optimize
import torch

from lossopt.lab.descent import gradient_is_right
from lossopt.lab.surfaces import GROUNDS, surfaces

BY_NAME = {ground.name: ground for ground in GROUNDS}


def beale(x, y):
    return sum((number - x * (1 - y**power)) ** 2 for number, power in ((1.5, 1), (2.25, 2), (2.625, 3)))


def beale_slope(x, y):
    over_x = over_y = 0.0
    for number, power in ((1.5, 1), (2.25, 2), (2.625, 3)):
        left = number - x * (1 - y**power)
        over_x += 2 * left * -(1 - y**power)
        over_y += 2 * left * x * power * y ** (power - 1)
    return over_x, over_y


DEFINED = {
    "bowl": (lambda x, y: x * x + y * y, lambda x, y: (2 * x, 2 * y)),
    "ravine": (lambda x, y: 0.5 * x * x + 9 * y * y, lambda x, y: (x, 18 * y)),
    "saddle": (lambda x, y: (x - y) * (x + y), lambda x, y: (2 * x, -2 * y)),
    "Rosenbrock": (lambda x, y: scipy.optimize.rosen([x, y]), lambda x, y: scipy.optimize.rosen_der([x, y])),
    "Beale": (beale, beale_slope),
}
PLACES = [(0.0, 0.0), (1.0, 1.0), (-1.2, 1.0), (3.0, 0.5), (0.3, -7.1), (-1e3, 2e2)]


@pytest.mark.parametrize("name", BY_NAME)
def test_heights_and_gradients_are_the_definition(name):
    height, slope = DEFINED[name]
    ground, places = BY_NAME[name], torch.tensor(PLACES, dtype=torch.float64)
    np.testing.assert_allclose(ground.height(places), [height(*place) for place in PLACES], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ground.gradient(places), [slope(*place) for place in PLACES], rtol=1e-12, atol=1e-12)
    assert gradient_is_right(ground.height, places[2:5])
    assert ground.gradient(places.reshape(2, 3, 2)).shape == (2, 3, 2)


@pytest.mark.parametrize("drawn", surfaces(), ids=lambda drawn: drawn.name)
def test_a_drawn_surface_has_a_row_per_y_and_its_minimum_where_it_says(drawn):
    ground, (height, slope) = BY_NAME[drawn.name], DEFINED[drawn.name]
    assert drawn.height.shape == (61, 61) and (drawn.says, drawn.formula) == (ground.says, ground.formula)
    assert (drawn.x[[0, -1]] == ground.x).all() and (drawn.y[[0, -1]] == ground.y).all()
    assert (np.diff(drawn.x) > 0).all() and (np.diff(drawn.y) > 0).all()
    for row, column in ((0, 0), (60, 0), (0, 60), (17, 42)):
        assert drawn.height[row, column] == pytest.approx(height(drawn.x[column], drawn.y[row]), abs=1e-12)
    assert drawn.x[0] < drawn.start[0] < drawn.x[-1] and drawn.y[0] < drawn.start[1] < drawn.y[-1]
    if drawn.minimum is None:
        assert drawn.name == "saddle" and height(0, 1e9) < -1e17
        return
    lowest = height(*drawn.minimum)
    assert lowest == 0 and tuple(slope(*drawn.minimum)) == (0, 0)
    assert (drawn.height >= lowest).all()
    row, column = np.unravel_index(drawn.height.argmin(), drawn.height.shape)
    assert abs(drawn.x[column] - drawn.minimum[0]) < 0.3 and abs(drawn.y[row] - drawn.minimum[1]) < 0.3


def test_known_heights_and_the_number_of_points():
    assert BY_NAME["Beale"].height(torch.zeros(2)).item() == 1.5**2 + 2.25**2 + 2.625**2
    assert BY_NAME["Rosenbrock"].height(torch.tensor([-1.2, 1.0], dtype=torch.float64)).item() == pytest.approx(24.2)
    drawn = BY_NAME["bowl"].drawn(points=5)
    assert drawn.height.shape == (5, 5) and len(drawn.x) == len(drawn.y) == 5
    assert list(BY_NAME) == list(DEFINED) == [drawn.name for drawn in surfaces()]
