"""Digits on a canvas: their place and size are what the targets say, and no digit is in two splits."""

import math

import numpy as np
import pytest
import torch

from lossopt.data import MNIST, CanvasDigits
from lossopt.data.canvas import place_digits
from lossopt.errors import ConfigError


def by_definition(digit, x, y, scale, side):
    """Each pixel of the canvas looks where its middle lies in the digit, and mixes the four pixels round that place."""
    canvas = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            u = (column + 0.5 - x) / scale + 14 - 0.5
            v = (row + 0.5 - y) / scale + 14 - 0.5
            left, top = math.floor(u), math.floor(v)
            for j, across in ((left, left + 1 - u), (left + 1, u - left)):
                for i, down in ((top, top + 1 - v), (top + 1, v - top)):
                    if 0 <= i < 28 and 0 <= j < 28:
                        canvas[row, column] += across * down * digit[i, j]
    return canvas


@pytest.mark.parametrize(("x", "y", "scale"), [(20.0, 30.0, 1.0), (23.3, 19.8, 1.37), (13.0, 35.25, 0.6)])
def test_a_digit_is_drawn_where_it_is_said_to_be(x, y, scale):
    digit = torch.randint(0, 256, (1, 1, 28, 28), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    placed = place_digits(digit, torch.tensor([[x, y, scale]]), 48)
    assert placed.shape == (1, 1, 48, 48) and placed.dtype == torch.uint8
    expected = by_definition(digit[0, 0].double().numpy(), x, y, scale, 48)
    np.testing.assert_allclose(placed[0, 0].double().numpy(), expected, atol=0.52)


def test_a_digit_at_its_own_size_on_its_own_canvas_is_the_digit():
    digits = torch.randint(0, 256, (3, 1, 28, 28)).to(torch.uint8)
    assert torch.equal(place_digits(digits, torch.tensor([[14.0, 14.0, 1.0]]).expand(3, 3), 28), digits)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"scale": (0.5, 2.5)}, "28 x most pixels fit the canvas of 64; got"),
        ({"scale": (0.0, 1.0)}, "0 < least <= most"),
        ({"scale": (1.5, 1.0)}, "0 < least <= most"),
        ({"image_size": 40}, "fit the canvas of 40"),
        ({"holdout": 0}, "holdout is 1 or more"),
        ({"holdout": 60_000}, "holdout is a number of training images"),
    ],
)
def test_what_cannot_be_drawn_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        CanvasDigits(**settings)


def test_every_digit_is_used_once_and_stays_on_the_canvas(data_root, monkeypatch):
    drawn = {}

    def instead(digits, targets, side):  # the drawing itself is tested above, and takes seconds
        drawn.setdefault("targets", []).append(targets)
        return torch.zeros(len(digits), 1, side, side, dtype=torch.uint8)

    monkeypatch.setattr("lossopt.data.canvas.place_digits", instead)
    digits = MNIST(str(data_root), "standard").splits()
    monkeypatch.setattr(MNIST, "splits", lambda self: digits)
    splits = CanvasDigits(image_size=44).splits()
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [55_000, 5_000, 10_000]
    assert len({name for part in parts for name in part.names}) == 70_000
    assert torch.equal(splits.test.labels, digits.test.labels) and torch.equal(splits.train.labels, digits.train.labels)
    assert splits.train.target_names == ("x", "y", "scale")
    assert torch.equal(torch.cat(drawn["targets"]), torch.cat([part.targets for part in parts]))
    for part in parts:
        x, y, scale = part.targets.unbind(1)
        for middle in (x, y):
            assert (middle - 14 * scale).min() > -1e-4 and (middle + 14 * scale).max() < 44 + 1e-4
            assert abs(float(middle.mean()) - 22) < 0.1
        assert 0.75 <= scale.min() < 0.76 and 1.49 < scale.max() <= 1.5
        assert abs(float(np.corrcoef(x, y)[0, 1])) < 0.06
    other = CanvasDigits(image_size=44, seed=3).splits()
    assert not torch.equal(other.train.targets, splits.train.targets)
    assert torch.equal(other.validation.targets, splits.validation.targets)
    assert torch.equal(other.test.targets, splits.test.targets)
    assert not torch.equal(splits.validation.targets, splits.test.targets[:5_000])
