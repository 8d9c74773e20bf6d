"""Scikit-learn's bundled digits: 1,797 real 8 x 8 images that are there without a download."""

from typing import Literal

import numpy as np
import torch

from lossopt.data.dataset import InMemory, LabelledImages, Splits
from lossopt.data.scale import scale_images
from lossopt.errors import ConfigError

_SIDE = 8
_BRIGHTEST = 16


class Digits:
    """Handwritten digits, grey, ink bright on black.

    Args:
        image_size: side in pixels, 8 (as they are) or more (bilinear).
        split: "disjoint": train on digits 0-4; of the unseen digits 5-9, the even images of each class (counted from
            0) are validation, the odd ones test. "closed": all ten digits everywhere; of each five images of a class
            in turn, three train, one validates, one tests.

    Raises:
        ConfigError: `image_size` < 8, or an unknown split.

    Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits (UCI), test part; CC BY 4.0.
    """

    channels = 1
    inverted = False
    area = True

    def __init__(self, image_size: int = 8, split: Literal["disjoint", "closed"] = "disjoint") -> None:
        if image_size < _SIDE:
            raise ConfigError(f"Digits are {_SIDE} x {_SIDE}; image_size is {_SIDE} or more, not {image_size}.")
        if split not in ("disjoint", "closed"):
            raise ConfigError(f"Digits has split disjoint or closed, not {split!r}.")
        self.image_size, self.split = image_size, split

    def splits(self) -> Splits:
        """The three tables."""
        from sklearn.datasets import load_digits  # a second to import: only when digits are wanted

        digits = load_digits()
        grey = np.round(digits.images * (255 / _BRIGHTEST)).astype(np.uint8)
        labels = torch.from_numpy(digits.target.astype(np.int64))
        table = LabelledImages(
            pixels=InMemory(scale_images(torch.from_numpy(grey)[:, None], self.image_size)),
            labels=labels,
            class_names=tuple(str(digit) for digit in range(10)),
            names=[f"digits/{row:04d}" for row in range(len(labels))],
        )
        order = _position_in_class(labels)
        if self.split == "disjoint":
            seen, odd = labels < 5, order % 2 == 1
            parts, rule = (
                (seen, ~seen & ~odd, ~seen & odd),
                "train on digits 0-4, retrieve the unseen digits 5-9 (class-disjoint); of these, even images of "
                "each class are validation, odd ones test",
            )
        else:
            fifth = order % 5
            parts, rule = (
                (fifth < 3, fifth == 3, fifth == 4),
                "closed set: all ten digits in train, validation and test; of every five images of a class three, "
                "one and one",
            )
        train, validation, test = (table.select(rows) for rows in parts)
        return Splits(train, validation, test, f"Digits: {rule}.", self.split == "disjoint")


def _position_in_class(labels: torch.Tensor) -> torch.Tensor:
    """(n,) for each row, how many earlier rows have its label."""
    position = torch.empty_like(labels)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        position[rows] = torch.arange(len(rows))
    return position
