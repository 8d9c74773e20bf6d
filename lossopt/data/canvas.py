"""MNIST digits at a random place and size on a larger canvas: what is it, where, and how large?

Letters: n digits, s side of the canvas in pixels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lossopt.data.dataset import InMemory, LabelledImages, Splits
from lossopt.data.mnist import MNIST
from lossopt.errors import ConfigError

_SIDE = 28
_CHUNK = 2048
_EVALUATION_SEED = 1


class CanvasDigits:
    """Each digit of MNIST once, enlarged or shrunk, on an empty canvas that holds all of its 28 x 28 pixels.

    Scale and place are uniform, the place over all that leave these on the canvas. No digit is in two splits. Targets:

        x, y     middle of the digit's 28 x 28 pixels on the canvas, in pixels from its left and its upper edge; the
                 digit's centre of mass lies half a pixel of MNIST right of it and below
        scale    of the digit; 1: 28 pixels wide

    Args:
        root: the data folder with MNIST; None: LOSSOPT_DATA, else ./data.
        image_size: s.
        scale: (least, most) scale.
        holdout: how many of the 60,000 training digits, the last ones, are for validation; test are the 10,000 others.
        seed: of scales and places in training; those of validation and test are always the same.
        download: fetch MNIST (with checksums) when it is not there.

    Raises:
        ConfigError: the largest digit does not fit the canvas, or an impossible holdout.
    """

    channels = 1
    inverted = False
    area = True
    target_names = ("x", "y", "scale")

    def __init__(
        self,
        root: str | None = None,
        image_size: int = 64,
        scale: tuple[float, float] = (0.75, 1.5),
        holdout: int = 5000,
        seed: int = 0,
        download: bool = False,
    ) -> None:
        if not 0 < scale[0] <= scale[1] or scale[1] * _SIDE > image_size:
            raise ConfigError(
                f"scale is (least, most) with 0 < least <= most, and {_SIDE} x most pixels fit the canvas of "
                f"{image_size}; got {tuple(scale)}."
            )
        if holdout < 1:
            raise ConfigError(f"holdout is 1 or more digits, got {holdout}; without validation nothing can be chosen.")
        self.image_size, self.scale, self.seed = image_size, (scale[0], scale[1]), seed
        self.digits = MNIST(root=root, split="standard", download=download, holdout=holdout)

    def splits(self) -> Splits:
        """The three tables, in memory. Raises: DataError: MNIST is missing or damaged."""
        digits = self.digits.splits()
        train, validation, test = (
            self._drawn(table, np.random.default_rng((seed, part)))
            for part, (table, seed) in enumerate(
                ((digits.train, self.seed), (digits.validation, _EVALUATION_SEED), (digits.test, _EVALUATION_SEED))
            )
        )
        least, most = self.scale
        return Splits(
            train,
            validation,
            test,
            f"MNIST's digits, {least:g} to {most:g} times their size, on a canvas of {self.image_size} pixels, each in "
            f"one split: the last {len(validation):,} training digits validate.",
            class_disjoint=False,
        )

    def _drawn(self, table: LabelledImages, generator: np.random.Generator) -> LabelledImages:
        n, s = len(table), self.image_size
        scale = generator.uniform(*self.scale, n)
        room = s - _SIDE * scale
        centres = _SIDE * scale[:, None] / 2 + room[:, None] * generator.uniform(size=(n, 2))
        targets = torch.from_numpy(np.column_stack([centres, scale]).astype(np.float32))
        canvas = torch.empty((n, 1, s, s), dtype=torch.uint8)
        for rows in torch.arange(n).split(_CHUNK):
            canvas[rows] = place_digits(table.pixels.read(rows), targets[rows], s)
        return LabelledImages(
            pixels=InMemory(canvas),
            labels=table.labels,
            class_names=table.class_names,
            names=table.names,
            targets=targets,
            target_names=self.target_names,
        )


def place_digits(digits: Tensor, targets: Tensor, side: int) -> Tensor:
    """Draws each digit on its own empty canvas, bilinear.

    Args:
        digits: (n, 1, 28, 28) uint8.
        targets: (n, 3) x and y of the middle in pixels of the canvas, and scale.
        side: s.

    Returns:
        (n, 1, s, s) uint8.
    """
    # A place on the canvas, -1 to 1, to the place in the digit: u = (side v - 2 c + side) / (28 scale).
    x, y, scale = (column.double() for column in targets.unbind(dim=1))
    zoom, none = side / (_SIDE * scale), torch.zeros_like(scale)
    shift = [(side - 2 * middle) / (_SIDE * scale) for middle in (x, y)]
    maps = torch.stack([zoom, none, shift[0], none, zoom, shift[1]], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(maps.float(), [len(digits), 1, side, side], align_corners=False)
    placed = F.grid_sample(digits.float(), grid, align_corners=False)
    return placed.round().clamp(0, 255).to(torch.uint8)
