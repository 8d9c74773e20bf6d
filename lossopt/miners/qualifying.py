"""Every triplet that meets a condition, found by tiles; of them a budget, or of each pair the hardest or a random one.

A budget is kept in two passes: the first counts, and lists as long as everything fits; where it does not, places are
drawn, and a second pass over the tiles looks them up. Nothing is held that is not returned, but one block of a tile.
Letters: m reference rows, b rows of a block, p positives of a row in it, t triplets.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lossopt.losses.tiles import Comparison, Tile
from lossopt.miners.columns import Columns
from lossopt.miners.draws import RandomStream
from lossopt.miners.tuples import Triplets

Condition = Callable[[Tensor, Tensor], Tensor]
_TILES = 4  # of triplets in a block


class Block(NamedTuple):
    """Triplets (start + i, columns[i, k], j) where mask[i, k, j]: columns (b, p) int64, mask (b, p, m) bool."""

    start: int
    columns: Tensor
    mask: Tensor

    def triplets(self, places: Tensor) -> Triplets:
        """Those at places (t,) of the flattened mask."""
        _, p, m = self.mask.shape
        pair = places // m
        return Triplets(self.start + pair // p, self.columns.flatten()[pair], places - pair * m)


def pieces(shape: torch.Size, positives: int) -> Iterator[tuple[slice, slice]]:
    """Rows and positives of a tile (b, m) such that its triplets come by in order, a few tiles of them at a time.

    Several rows with all their positives, or one row with some of them.
    """
    rows = shape[0]
    b, p = max(1, _TILES * rows // positives), min(_TILES * rows, positives)
    for first in range(0, rows, b):
        for slot in range(0, positives, p):
            yield slice(first, min(first + b, rows)), slice(slot, min(slot + p, positives))


def sides(tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
    """(b, p) columns of the positives, (b, p) distances to them and (b, m) to the negatives, NaN where there is none.

    The tile's distances are overwritten.
    """
    columns, filled = tile.positives
    to_positive = tile.distances.gather(1, columns).masked_fill_(~filled, math.nan)
    return columns, to_positive, tile.distances.masked_fill(~tile.different, math.nan)


def qualifying(comparison: Comparison, condition: Condition) -> Iterator[Block]:
    """All triplets by anchor, positive, negative, with those marked that meet the condition.

    condition: d(a,p) as (b, p, 1) and d(a,n) as (b, 1, m) to (b, p, m) bool; false where either is NaN.
    """
    for tile in comparison.tiles():
        columns, to_positive, to_negative = sides(tile)
        for rows, slots in pieces(to_negative.shape, columns.shape[1]):
            mask = condition(to_positive[rows, slots, None], to_negative[rows, None])
            yield Block(tile.start + rows.start, columns[rows, slots], mask)


def listed(blocks: Callable[[], Iterator[Block]], budget: int, stream: RandomStream) -> tuple[Triplets, int]:
    """What is marked, by anchor, positive, negative, and how many of them were left out to keep to the budget.

    Those kept are a uniform sample without replacement. `blocks` gives the blocks in order, whenever it is called.
    """
    counts: list[int] = []
    found = Columns()
    total = 0
    for block in blocks():
        counts.append(int(block.mask.count_nonzero()))
        total += counts[-1]
        if total <= budget:
            found.add(*block.triplets(block.mask.flatten().nonzero()[:, 0]))
        else:
            found = Columns()
    if total > budget:
        found = Columns(budget)
        for part in _looked_up(blocks(), counts, stream.sample(total, budget)):
            found.add(*part)
    return Triplets(*found.all()), max(0, total - budget)


def _looked_up(blocks: Iterator[Block], counts: list[int], chosen: Tensor) -> Iterator[Triplets]:
    """The marked triplets number chosen[0], chosen[1], ... (ascending) of all blocks together."""
    ends = torch.tensor([0, *counts]).cumsum(0)
    edges = torch.searchsorted(chosen, ends).tolist()
    for block, before, first, last in zip(blocks, ends.tolist(), edges, edges[1:], strict=False):
        if first < last:
            wanted = (chosen[first:last] - before).to(block.mask.device)
            yield block.triplets(block.mask.flatten().nonzero()[:, 0][wanted])


def one_at_random(blocks: Iterator[Block], stream: RandomStream) -> Triplets:
    """Of each (anchor, positive) with marked negatives one of these, every one equally likely."""
    found = Columns()
    for block in blocks:
        so_far = block.mask.cumsum(2, dtype=torch.int32)
        count = so_far[:, :, -1].long()
        wanted = (stream.below(count) + 1).to(torch.int32)
        negative = torch.searchsorted(so_far, wanted[:, :, None])[:, :, 0]
        anchor = torch.arange(block.start, block.start + len(count), device=count.device)[:, None].expand_as(count)
        found.add(*(part.flatten() for part in (anchor, block.columns, negative, count > 0)))
    anchor, positive, negative, kept = found.all()
    (place,) = kept.nonzero(as_tuple=True)
    return Triplets(anchor[place], positive[place], negative[place])


def one_each(positive: Tensor, negative: Tensor, kept: Tensor) -> Triplets:
    """Row a with positive[a, k] and negative[a, k] where kept[a, k]; (n, p) each."""
    anchor, place = kept.nonzero(as_tuple=True)
    return Triplets(anchor, positive[anchor, place], negative[anchor, place])
