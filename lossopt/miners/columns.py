"""What tiles give, joined to whole columns without holes in memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from lossopt.losses.tiles import Comparison, Tile


class Columns:
    """Columns of one length that parts are added to, in memory that doubles when it is full.

    A list of small parts would do, but for the heap: each is kept where a tile's large tensors have just been, and the
    next tile's do not fit in between, so that on some runs hundreds of MiB are never used again.

    Args:
        length: how many rows there will be, where that is known.
    """

    def __init__(self, length: int = 0) -> None:
        self._expected = length
        self._held: list[Tensor] = []
        self._length = 0

    def add(self, *parts: Tensor) -> None:
        """Append (t, ...) to each column."""
        if not self._held:
            self._held = [part.new_empty(self._expected, *part.shape[1:]) for part in parts]
        end = self._length + len(parts[0])
        if end > len(self._held[0]):
            more = max(end - self._length, len(self._held[0]))
            self._held = [torch.cat((held, held.new_empty(more, *held.shape[1:]))) for held in self._held]
        for held, part in zip(self._held, parts, strict=True):
            held[self._length : end] = part
        self._length = end

    def all(self) -> list[Tensor]:
        """The columns so far."""
        return [held[: self._length] for held in self._held]


def by_rows(comparison: Comparison, of: Callable[[Tile], tuple[Tensor, ...]]) -> list[Tensor]:
    """What `of` tells of each tile's rows, (b, ...) tensors, joined to those of all rows, (n, ...)."""
    columns = Columns(len(comparison.x))
    for tile in comparison.tiles():
        columns.add(*of(tile))
    return columns.all()
