"""A batch against its reference, a tile of rows at a time: no loss and no miner ever holds n x m numbers at once.

A tile is made, looked at and dropped. A loss sees the distances of some anchors to all reference rows as a leaf of the
graph, and what it does with them is differentiated there and then; the gradient goes straight to the embeddings.
Letters: n rows (anchors), m reference rows, d embedding, b rows of a tile, p positives.
"""

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lossopt.losses.classes import Relation
from lossopt.losses.distances import Distance, unit_rows, wide

_CELLS_CPU = 2**19  # numbers of a tile: a few of them stay in the cache of a core
_CELLS_DEVICE = 2**24  # ... and here they keep an accelerator busy
_SQUARE = 2**22  # numbers up to which a batch with itself is held whole, for each serves two rows
_SIDE = 256  # rows of such a square that are measured at once
_ALIKE = 100  # times longer, at most, is the square of a row than that of another if one noise serves all
_NOISE = 64  # last bits of |x|² + |y|² by which the square of a distance may be wrong


def _square(rows: Tensor) -> Tensor:
    """|row|² of each row, without a copy of them all."""
    return torch.einsum("nd,nd->n", rows, rows)


class Tile(NamedTuple):
    """Anchors start..stop with all reference rows.

    distances: (b, m). relation: who is whose positive and negative, asked with the tile's rows.
    """

    start: int
    stop: int
    distances: Tensor
    relation: Relation

    @property
    def same(self) -> Tensor:
        """(b, m) bool: positives, an anchor itself not among them."""
        return self.relation.same(self.start, self.stop)

    @property
    def different(self) -> Tensor:
        """(b, m) bool: negatives."""
        return self.relation.different(self.start, self.stop)

    @property
    def positives(self) -> tuple[Tensor, Tensor]:
        """(b, p) int64 columns of the positives of each anchor, and (b, p) bool: which of these places are filled."""
        return self.relation.positives(self.start, self.stop)


class Comparison:
    """n rows with m reference rows: their distances by tiles, and the way back from a tile's gradient to the rows.

    Distances are rounded from one product in float64, so that near rows keep their distance and equal rows are at 0
    (|x|² - 2xy + |y|² in float32 would lose both). Devices without float64 use float32.

    Args:
        x: (n, d) float32 or wider.
        y: (m, d) of the same dtype; x itself if the batch is its own reference.
        distance: how far apart two rows are; see `Distance`.
        relation: who is compared with whom.
    """

    def __init__(self, x: Tensor, y: Tensor, distance: Distance, relation: Relation) -> None:
        self.own_reference = y is x
        leaves = (x, y) if torch.is_grad_enabled() else (x.detach(), y.detach())
        self.leaves = (leaves[0], None if y is x else leaves[1])  # what a gradient is asked for
        self.x = unit_rows(x.detach()) if distance == "cosine" else x.detach()
        self.y = self.x if y is x else unit_rows(y.detach()) if distance == "cosine" else y.detach()
        self.distance, self.relation = distance, relation

    @property
    def rows_per_tile(self) -> int:
        """b."""
        cells = _CELLS_CPU if self.x.device.type == "cpu" else _CELLS_DEVICE
        return max(1, cells // max(1, len(self.y)))

    @cached_property
    def _wide_y(self) -> Tensor:
        return wide(self.y)

    @cached_property
    def _squares(self) -> tuple[Tensor, Tensor]:
        """|x|², |y|²."""
        y = _square(self._wide_y)
        return (y if self.own_reference else _square(wide(self.x))), y

    @cached_property
    def _zero_rows(self) -> tuple[Tensor, Tensor]:
        """What the cosine distance of a zero row lacks: 1/2, and 0 for others; of x and of y."""
        of_x, of_y = (((part < 0.5) / 2).to(self.x.dtype) for part in self._squares)
        return of_x, of_y

    @cached_property
    def _noise(self) -> float | tuple[Tensor, Tensor]:
        """What a squared distance must exceed: one number, or the two parts of it where lengths differ a lot."""
        of_x, of_y = (squares * _NOISE * torch.finfo(squares.dtype).eps for squares in self._squares)
        both = torch.cat((of_x, of_y))
        if not len(both):
            return 0.0
        least, most = torch.stack(both.aminmax()).tolist()
        return 2 * most if most <= _ALIKE * least else (of_x.to(self.x.dtype), of_y.to(self.x.dtype))

    @cached_property
    def square(self) -> Tensor | None:
        """(n, n) distances of a small batch to itself, of which half are measured; None where there are too many."""
        n = len(self.x)
        if not self.own_reference or self.distance == "manhattan" or not _SIDE < n <= _SQUARE**0.5:
            return None
        whole = self.x.new_empty(n, n)
        for start in range(0, n, _SIDE):
            stop = min(start + _SIDE, n)
            whole[start:stop, start:] = self._measured(start, stop, start)
        turned = whole.T.contiguous()
        for start in range(0, n, _SIDE):
            stop = min(start + _SIDE, n)
            whole[stop:, start:stop] = turned[stop:, start:stop]
        return whole

    def distances(self, start: int, stop: int) -> Tensor:
        """(b, m) distances of rows start..stop, without gradient; not to be written to."""
        return self._measured(start, stop, 0) if self.square is None else self.square[start:stop]

    def _measured(self, start: int, stop: int, first: int) -> Tensor:
        """Distances of rows start..stop to reference rows from the first on."""
        x, y = self.x[start:stop], self._wide_y[first:]
        if self.distance == "manhattan":
            return torch.cdist(x, self.y[first:], p=1.0)
        if self.distance == "inner":
            return torch.mm(wide(x), y.T).neg_().to(x.dtype)
        of_x, of_y = self._squares
        squared = torch.addmm(of_y[first:], wide(x), y.T, alpha=-2).add_(of_x[start:stop, None]).to(x.dtype)
        if isinstance(self._noise, float):
            torch.threshold_(squared, self._noise, 0)  # a NaN stays one
        else:
            noise_of_x, noise_of_y = self._noise
            squared.mul_(squared > noise_of_x[start:stop, None] + noise_of_y[first:])
        if self.distance == "cosine":
            of_x, of_y = self._zero_rows
            return squared.div_(2).add_(of_x[start:stop, None]).add_(of_y[first:])
        return squared if self.distance == "squared" else squared.sqrt_()

    def tiles(self) -> Iterator[Tile]:
        """All rows, in order."""
        for start in range(0, len(self.x), self.rows_per_tile):
            stop = min(start + self.rows_per_tile, len(self.x))
            yield Tile(start, stop, self.distances(start, stop), self.relation)


class _Gradient:
    """Adds up the gradient of the rows, tile by tile; that of reference rows goes to `of_x` where they are the rows."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.x, self.y = comparison.x, comparison.y
        self.of_x = torch.zeros_like(self.x)
        self.of_y = self.of_x if comparison.own_reference else torch.zeros_like(self.y)
        self.weight_of_y = self.y.new_zeros(len(self.y), 1)
        self.square = None if comparison.square is None else torch.empty_like(comparison.square)

    def add(self, tile: Tile, weight: Tensor) -> None:
        """weight: (b, m) derivative of the loss with respect to the tile's distances; it is overwritten."""
        rows, distance = slice(tile.start, tile.stop), self.comparison.distance
        x = self.x[rows]
        if distance == "manhattan":
            self._add_manhattan(rows, weight)
            return
        if distance == "euclidean":
            weight = weight.div_(torch.threshold(tile.distances.detach(), 0, math.inf))  # no direction at distance 0
        elif distance == "squared":
            weight = weight.mul_(2)
        if self.square is not None:
            self.square[rows] = weight
            return
        self.of_x[rows].addmm_(weight, self.y, alpha=-1)
        self.of_y.addmm_(weight.T, x, alpha=-1)
        if distance not in ("inner", "cosine"):  # there the rows' own direction has no part in it
            self.of_x[rows].addcmul_(x, weight.sum(1, keepdim=True))
            self.weight_of_y.add_(weight.sum(0)[:, None])

    def _add_manhattan(self, rows: slice, weight: Tensor) -> None:
        with torch.enable_grad():
            x, y = self.x[rows].clone().requires_grad_(), self.y.clone().requires_grad_()
            of_x, of_y = torch.autograd.grad(torch.cdist(x, y, p=1.0), (x, y), weight)
        self.of_x[rows].add_(of_x)
        self.of_y.add_(of_y)

    def finish(self) -> tuple[Tensor, Tensor | None]:
        """(n, d), and (m, d) or None where the rows are their own reference."""
        if self.square is not None:  # one product for a row as an anchor and as a partner
            both = self.square.T.contiguous().add_(self.square)  # a sum that reads columns is many times slower
            self.of_x.addmm_(both, self.x, alpha=-1)
            if self.comparison.distance not in ("inner", "cosine"):
                self.of_x.addcmul_(self.x, both.sum(1, keepdim=True))
        self.of_y.addcmul_(self.y, self.weight_of_y)
        of_y = None if self.comparison.own_reference else self.of_y
        if self.comparison.distance == "cosine":
            x, y = self.comparison.leaves
            _through_unit_rows(self.of_x, self.x, x)
            if y is not None and of_y is not None:
                _through_unit_rows(of_y, self.y, y)
        return self.of_x, of_y


def _through_unit_rows(gradient: Tensor, unit: Tensor, x: Tensor) -> None:
    """Turns, in place, a gradient with respect to `unit_rows(x)` into one with respect to x."""
    gradient.addcmul_(unit, torch.einsum("nd,nd->n", gradient, unit)[:, None], value=-1)
    norm = torch.linalg.vector_norm(x.detach(), dim=1, keepdim=True)
    gradient.div_(norm.masked_fill_(norm == 0, 1))


class Terms(NamedTuple):
    """What a tile adds to a loss, 0-dim each: the total is divided by the divisor when all tiles are in.

    total: differentiable. tuples: how many were compared. active: how many of them do not have a loss of 0.
    """

    total: Tensor
    divisor: Tensor
    tuples: Tensor
    active: Tensor


class _Total(torch.autograd.Function):
    """Sum of a tile-wise loss; its gradient is worked out on the way, so that a tile is visited once."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, comparison: Comparison, terms: Callable[[Tile], Terms]
    ) -> tuple[Tensor, ...]:
        sums: list[Tensor] = []
        gradient = _Gradient(comparison) if any(ctx.needs_input_grad) else None
        for tile in comparison.tiles():
            if gradient is None:
                found = terms(tile)
            else:
                with torch.enable_grad():
                    tile.distances.requires_grad_()
                    found = terms(tile)
                    weight = _gradient_of(found.total, tile.distances)
                gradient.add(tile, weight)
            parts = [wide(found.total.detach()), *found[1:]]
            sums = [one + other for one, other in zip(sums, parts, strict=True)] if sums else parts
        if gradient is not None:
            ctx.save_for_backward(*gradient.finish())
        total, divisor, tuples, active = sums or x.new_zeros(4).unbind()
        ctx.mark_non_differentiable(divisor, tuples, active)
        return total.to(x.dtype), divisor, tuples, active

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_y = ctx.saved_tensors
        return of_x * of_total, None if of_y is None else of_y * of_total, None, None


def _gradient_of(total: Tensor, distances: Tensor) -> Tensor:
    if not total.requires_grad:  # a tile without anything to compare
        return torch.zeros_like(distances)
    (weight,) = torch.autograd.grad(total, distances)
    return weight


def total_over_tiles(comparison: Comparison, terms: Callable[[Tile], Terms]) -> Terms:
    """`terms` of every tile, added up; `total` has its gradient with respect to the comparison's rows.

    Differentiable once. Time is that of three matrix products and of `terms`; memory is the gradient and a few tiles.
    """
    with torch.autocast(comparison.x.device.type, enabled=False):
        return Terms(*_Total.apply(*comparison.leaves, comparison, terms))


class _PerRow(torch.autograd.Function):
    """One or more numbers per row; tiles are visited again on the way back, when the numbers' gradients are known."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, comparison: Comparison, values: Callable[[Tile], Tensor]
    ) -> Tensor:
        ctx.comparison, ctx.values = comparison, values
        parts = [values(tile) for tile in comparison.tiles()]
        return torch.cat(parts) if parts else x.new_zeros(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_values: Tensor) -> tuple[Tensor | None, ...]:
        gradient = _Gradient(ctx.comparison)
        for tile in ctx.comparison.tiles():
            with torch.enable_grad():
                tile.distances.requires_grad_()
                found = (ctx.values(tile) * of_values[tile.start : tile.stop]).sum()
                weight = _gradient_of(found, tile.distances)
            gradient.add(tile, weight)
        return (*gradient.finish(), None, None)


def per_row(comparison: Comparison, values: Callable[[Tile], Tensor]) -> Tensor:
    """`values` of every tile, (b,) or (b, s), joined to (n,) or (n, s); for losses that combine rows with each other.

    Differentiable once, at the price of a second visit to the tiles.
    """
    with torch.autocast(comparison.x.device.type, enabled=False):
        found: Tensor = _PerRow.apply(*comparison.leaves, comparison, values)
    return found
