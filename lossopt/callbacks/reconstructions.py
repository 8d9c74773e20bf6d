"""A strip of pictures that an autoencoder leaves behind: the same images as rebuilt at every validation."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lossopt.callbacks.validation import epochs_done
from lossopt.data.dataset import Batch
from lossopt.durable import write_whole
from lossopt.errors import DataError

RECONSTRUCTIONS = "reconstructions.png"


class KeepReconstructions(Callback):
    """Writes reconstructions.png into the run's folder: a row of images, below it a row for every validation.

    The images are the first of the validation split; the first row of reconstructions is the untrained network's. For
    `trainer.callbacks` of an `Autoencoder`. A run that goes on after an interruption goes on with the file.

    Args:
        images: how many stand in a row.

    Raises:
        ValueError: `images` is below 1.
    """

    def __init__(self, images: int = 8) -> None:
        if images < 1:
            raise ValueError(f"images must be 1 or more, got {images}.")
        self.images = images

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a row, from the first batch of a validation."""
        if batch_idx or trainer.sanity_checking or not trainer.is_global_zero:
            return
        shown = batch.images[: self.images]
        path = Path(trainer.default_root_dir) / RECONSTRUCTIONS
        row = 1 + epochs_done(trainer) // (trainer.check_val_every_n_epoch or 1)
        rows = _rows(path, shown.shape[-2])[:row] or [_row(shown)]
        rows += [np.zeros_like(rows[0])] * (row - len(rows))  # validations that were left out
        rows.append(_row(pl_module(shown)))
        buffer = BytesIO()
        Image.fromarray(np.concatenate(rows)).save(buffer, format="PNG", optimize=True)
        write_whole(path, lambda file: file.write(buffer.getvalue()))


def read_reconstructions(folder: Path, height: int) -> np.ndarray:
    """What `KeepReconstructions` left in a run's folder.

    Args:
        folder: of the run.
        height: of an image in pixels.

    Returns:
        uint8 (1 + validations, height, width of a row) or, in colour, (..., 3): the images, then their reconstructions,
        the untrained network's first.

    Raises:
        DataError: there is no such file, or it cannot be read, or its rows have another height.
    """
    path = folder / RECONSTRUCTIONS
    try:
        rows = _rows(path, height)
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {path} ({error}). Train with lossopt.callbacks.KeepReconstructions.") from error
    if not rows:
        raise DataError(f"There is no {path}. Train with lossopt.callbacks.KeepReconstructions in trainer.callbacks.")
    return np.stack(rows)


def _rows(path: Path, height: int) -> list[np.ndarray]:
    """Of the file, from the top; none if it is not there."""
    if not path.is_file():
        return []
    with Image.open(path) as image:
        pixels = np.asarray(image)
    if len(pixels) % height:
        raise ValueError(f"{len(pixels)} lines are no rows of {height}")
    return list(pixels.reshape(-1, height, *pixels.shape[1:]))


def _row(images: Tensor) -> np.ndarray:
    """(b, c, h, w) float, 0 black and 1 white, beside each other: (h, b w) uint8, or (h, b w, 3) in colour."""
    beside = torch.cat(list(images.detach().float().cpu()), dim=-1).nan_to_num(0).clamp(0, 1)
    pixels = (255 * beside).round().to(torch.uint8).numpy()
    return pixels[0] if len(pixels) == 1 else np.moveaxis(pixels[:3], 0, -1)
