"""Losses on triplets: all of a batch's are counted, not listed.

For an anchor with positives at distances d_k and negatives at d_n, with t_k = d_k + margin,

    sum over k, n of max(0, t_k - d_n) = sum_k c_k t_k - sum_n w_n d_n,   c_k = #{n: d_n < t_k},  w_n = #{k: t_k > d_n}

and c_k, -w_n are the gradient with respect to the distances: nothing of size n x n x n is needed. Letters: n rows, m
reference rows, b rows of a tile, p positives of a row, t triplets.
"""

import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lossopt.losses.all_tuples import TupleKind
from lossopt.losses.classes import Classes, Relation, classes_of
from lossopt.losses.distances import Distance, distances_at, one_of
from lossopt.losses.embedding import EmbeddingLoss, Reduction, positive_number, reduced
from lossopt.losses.tiles import Comparison, Terms, Tile, total_over_tiles

Select = Literal["all", "semi-hard", "hard"]
_FEW = 32  # up to so many positives, comparing with each is faster than searching among them


def triplet_loss(to_positive: Tensor, to_negative: Tensor, margin: float) -> Tensor:
    """max(0, d(a,p) - d(a,n) + margin): (t,), (t,) -> (t,), margin in the units of the distances.

    A negative that is farther than the positive by the margin or more costs nothing and has no gradient; a collapsed
    network, whose distances are all equal, pays the margin.

    Source: Schroff, Kalenichenko & Philbin 2015, CVPR, eq. 3 (squared distances there); with graded relevance instead
    of classes it is the hinge of Wang et al. 2014, CVPR, eq. 3, whose gap g is the margin.
    """
    return F.relu(to_positive - to_negative + margin)


def soft_margin_triplet_loss(to_positive: Tensor, to_negative: Tensor) -> Tensor:
    """log(1 + exp(d(a,p) - d(a,n))), a hinge without a margin to tune: (t,), (t,) -> (t,); ln 2 when both are equal.

    Source: Hermans, Beyer & Leibe 2017, arXiv:1703.07737, section 2.
    """
    return F.softplus(to_positive - to_negative)


class Counted(NamedTuple):
    """The hinge of a tile: total (0-dim, float64), its derivative (b, m), and how many triplets are active (0-dim)."""

    total: Tensor
    weight: Tensor
    active: Tensor


def count_hinge(
    distances: Tensor, columns: Tensor, filled: Tensor, own_class: Tensor, margin: float, select: Select
) -> Counted:
    """Sum of max(0, d_k + margin - d_n) over the selected triplets of each row.

    Args:
        distances: (b, m).
        columns: (b, p) int64, positives of each row; filled: (b, p) bool, which of these places are.
        own_class: (b, q) int64, what is no negative of a row that has positives.
        margin: > 0.
        select: "all" triplets, the "semi-hard" (d_k < d_n < d_k + margin) or the "hard" ones (d_n <= d_k).
    """
    to_positive = distances.gather(1, columns).masked_fill(~filled, -math.inf)
    to_negative = distances.scatter(1, own_class, math.inf)
    count = _compare_with_each if columns.shape[1] <= _FEW else _search_among
    total, nearer, weight = count(to_positive, to_negative, margin, select)
    weight.scatter_add_(1, columns, nearer.to(weight.dtype))
    return Counted(total, weight, nearer.sum(dtype=torch.int64))  # float32 would not count beyond 2^24


def _compare_with_each(
    to_positive: Tensor, to_negative: Tensor, margin: float, select: Select
) -> tuple[Tensor, Tensor, Tensor]:
    """Total, (b, p) active negatives of each positive, (b, m) minus the active positives of each negative; p passes."""
    weight, scratch = torch.zeros_like(to_negative), torch.empty_like(to_negative)
    nearer = torch.zeros_like(to_positive)
    total = to_negative.new_zeros((), dtype=torch.float64)
    for k in range(to_positive.shape[1]):
        own = to_positive[:, k : k + 1]
        excess = torch.sub(own + margin, to_negative, out=scratch).clamp_(min=0)
        if select == "semi-hard":
            excess *= to_negative > own
        elif select == "hard":
            excess *= to_negative <= own
        total += excess.sum()
        active = excess.sign_()
        weight -= active
        nearer[:, k] = active.sum(1)
    return total, nearer, weight


def _search_among(
    to_positive: Tensor, to_negative: Tensor, margin: float, select: Select
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_compare_with_each`, by one search per negative among the sorted positives and a histogram of the places."""
    p = to_positive.shape[1]
    ascending, order = to_positive.sort(dim=1)  # places that are not filled come first, at minus infinity
    # A negative is active with positives number first..last-1 in this order; one that is masked with none.
    if select == "hard":
        first = torch.searchsorted(ascending, to_negative)
    else:
        first = torch.searchsorted(ascending + margin, to_negative, right=True)
    last = torch.searchsorted(ascending, to_negative) if select == "semi-hard" else torch.full_like(first, p)
    one = torch.ones_like(first)
    begins, ends = (torch.zeros_like(first[:, :1]).repeat(1, p + 1).scatter_add_(1, at, one) for at in (first, last))
    in_order = (begins - ends).cumsum(1)[:, :p]
    nearer = torch.zeros_like(in_order).scatter_(1, order, in_order)
    active = last - first
    edges = torch.where(nearer > 0, to_positive.double() + margin, 0) * nearer
    taken = torch.where(active > 0, to_negative.double(), 0) * active
    return edges.sum() - taken.sum(), nearer, active.neg().to(to_negative.dtype)


class _Prepared(torch.autograd.Function):
    """A total whose derivative with respect to the distances is known already."""

    @staticmethod
    def forward(ctx: Any, distances: Tensor, total: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return weight * of_total.to(weight.dtype), None, None


class TripletwiseLoss(EmbeddingLoss):
    """Interface of losses over triplets."""

    tuples: ClassVar[TupleKind] = "triplets"

    def __init__(self, distance: Distance, reduction: Reduction) -> None:
        super().__init__(distance)
        one_of("reduction", reduction, Reduction)
        self.reduction: Reduction = reduction

    @abstractmethod
    def per_triplet(self, to_positive: Tensor, to_negative: Tensor) -> Tensor:
        """One loss per triplet from its two distances: (t,), (t,) -> (t,)."""

    def compare_listed(self, x: Tensor, y: Tensor, indices: tuple[Tensor, ...]) -> Terms:
        """Triplets (anchor, positive, negative)."""
        anchor, positive, negative = indices
        both = distances_at(x, y, anchor.repeat(2), torch.cat((positive, negative)), self.distance)
        return reduced(self.per_triplet(*both.chunk(2)), self.reduction)

    def hinge(
        self, tile: Tile, classes: Classes, positives: tuple[Tensor, Tensor], margin: float, select: Select
    ) -> Terms:
        """Terms of the tile's hinges.

        `positives`: columns and which are filled, (b, p) each. Negatives are the rows of other classes.
        """
        columns, filled = positives
        own_class, _ = classes.of_class(tile.start, tile.stop)
        with torch.no_grad():
            found = count_hinge(tile.distances, columns, filled, own_class, margin, select)
        selected = found.active
        if select == "all":
            selected = (filled.sum(1) * classes.negative_count[tile.start : tile.stop]).sum()
        total = found.total
        if tile.distances.requires_grad:
            total = _Prepared.apply(tile.distances, total, found.weight)
        return Terms(total, found.active if self.reduction == "mean_active" else selected, selected, found.active)


class TripletLoss(TripletwiseLoss):
    """`triplet_loss`, over every triplet of the batch unless a miner lists some.

    Args:
        margin: > 0, in the units of `distance` (Euclidean between unit-length rows: 0 to 2).
        distance: how far apart two rows are.
        reduction: "mean" over the compared triplets, or "mean_active" over those with a loss above 0.
        select: without a miner, compare "all" triplets, the "semi-hard" (the negative is beyond the positive, by less
            than the margin) or the "hard" ones (it is not beyond). Counted, never listed, at any batch size.
    """

    def __init__(
        self,
        margin: float = 0.2,
        distance: Distance = "euclidean",
        reduction: Reduction = "mean",
        select: Select = "all",
    ) -> None:
        super().__init__(distance, reduction)
        positive_number(
            "TripletLoss margin", margin, "equal distances, as in a collapsed network, would be good enough"
        )
        one_of("select", select, Select)
        self.margin, self.select = margin, select

    @property
    def collapsed_value(self) -> float:
        """The margin: all distances are equal."""
        return self.margin

    def per_triplet(self, to_positive: Tensor, to_negative: Tensor) -> Tensor:
        """See `TripletwiseLoss`."""
        return triplet_loss(to_positive, to_negative, self.margin)

    def compare(self, x: Tensor, y: Tensor, relation: Relation) -> Terms:
        """The selected triplets."""
        classes = classes_of(relation, type(self).__name__)

        def terms(tile: Tile) -> Terms:
            return self.hinge(tile, classes, tile.positives, self.margin, self.select)

        return total_over_tiles(Comparison(x, y, self.distance, relation), terms)


class SoftMarginTripletLoss(TripletwiseLoss):
    """`soft_margin_triplet_loss`; every triplet is active, so its `share_active` says nothing.

    Its time grows with positives x negatives of each row, for the logarithm of a sum cannot be counted.
    """

    def __init__(self, distance: Distance = "euclidean") -> None:
        super().__init__(distance, "mean")

    @property
    def collapsed_value(self) -> float:
        """ln 2: all distances are equal."""
        return math.log(2)

    def per_triplet(self, to_positive: Tensor, to_negative: Tensor) -> Tensor:
        """See `TripletwiseLoss`."""
        return soft_margin_triplet_loss(to_positive, to_negative)

    def compare(self, x: Tensor, y: Tensor, relation: Relation) -> Terms:
        """All triplets."""
        classes = classes_of(relation, type(self).__name__)

        def terms(tile: Tile) -> Terms:
            columns, filled = tile.positives
            own_class, _ = classes.of_class(tile.start, tile.stop)
            with torch.no_grad():
                total, weight = _soft_margin(tile.distances, columns, filled, own_class)
            tuples = (filled.sum(1) * classes.negative_count[tile.start : tile.stop]).sum()
            if tile.distances.requires_grad:
                total = _Prepared.apply(tile.distances, total, weight)
            return Terms(total, tuples, tuples, tuples)

        return total_over_tiles(Comparison(x, y, self.distance, relation), terms)


def _soft_margin(distances: Tensor, columns: Tensor, filled: Tensor, own_class: Tensor) -> tuple[Tensor, Tensor]:
    """Total of the tile, and its derivative (b, m); arguments as of `count_hinge`."""
    to_positive = distances.gather(1, columns).masked_fill(~filled, -math.inf)
    to_negative = distances.scatter(1, own_class, math.inf)
    weight, of_positive = torch.zeros_like(distances), torch.zeros_like(to_positive)
    total = distances.new_zeros((), dtype=torch.float64)
    for k in range(columns.shape[1]):
        gap = to_positive[:, k : k + 1] - to_negative
        # softplus(z) = max(0, z) - log sigmoid |z|: torch's own softplus is many times slower
        total += gap.relu().sum() - gap.abs().sigmoid_().log_().sum()
        slope = gap.sigmoid_()
        weight -= slope
        of_positive[:, k] = slope.sum(1)
    return total, weight.scatter_add_(1, columns, of_positive)


class RankingHingeLoss(TripletwiseLoss):
    """Deep ranking: rows of higher relevance to the anchor must be nearer, by `gap`, than rows of lower relevance.

        max(0, gap + D(p, p+) - D(p, p-))    for every query p with r(p, p+) > r(p, p-)

    Labels are (n,) or (n, levels), coarse level first (alphabet, character); relevance is `shared_levels`, and every
    (a, i, j) with r(a, i) > r(a, j) is compared. For relevance from elsewhere give
    `graded_triplets(relevance, own=True)` as the indices.

    Source: Wang et al. 2014, CVPR, "Learning fine-grained image similarity with deep ranking", eq. 3.
    """

    def __init__(self, gap: float = 1.0, distance: Distance = "squared", reduction: Reduction = "mean") -> None:
        super().__init__(distance, reduction)
        positive_number("RankingHingeLoss gap", gap, "equal distances, as in a collapsed network, would be good enough")
        self.gap = gap

    @property
    def collapsed_value(self) -> float:
        """The gap: all distances are equal."""
        return self.gap

    def per_triplet(self, to_positive: Tensor, to_negative: Tensor) -> Tensor:
        """See `TripletwiseLoss`."""
        return triplet_loss(to_positive, to_negative, self.gap)

    def relation(self, labels: Tensor, ref_labels: Tensor, own: int | None) -> "Levels":
        """One relation per level."""
        return Levels(labels, ref_labels, own)

    def compare(self, x: Tensor, y: Tensor, relation: Relation) -> Terms:
        """All (anchor, more relevant, less relevant)."""
        levels = relation.levels if isinstance(relation, Levels) else [classes_of(relation, type(self).__name__)]

        def terms(tile: Tile) -> Terms:
            parts = []
            for level, finer in zip(levels, [*levels[1:], None], strict=True):
                columns, filled = level.positives(tile.start, tile.stop)
                if finer is not None:  # those that agree further are the positives of a finer level
                    filled &= finer.ref_labels[columns] != finer.labels[tile.start : tile.stop, None]
                parts.append(self.hinge(tile, level, (columns, filled), self.gap, "all"))
            return Terms(*(torch.stack(part).sum() for part in zip(*parts, strict=True)))

        return total_over_tiles(Comparison(x, y, self.distance, relation), terms)


class Levels(Classes):
    """Hierarchical labels, (n, l) and (m, l), or (n,) and (m,): rows are related as far as they share leading levels.

    `levels[v]` relates rows that share the first v + 1 levels; the whole relates those that share all.
    """

    def __init__(self, labels: Tensor, ref_labels: Tensor, own: int | None) -> None:
        rows, columns = (given[:, None] if given.ndim == 1 else given for given in (labels, ref_labels))
        if rows.shape[1] != columns.shape[1]:
            raise ValueError(
                f"labels have {rows.shape[1]} levels but ref_labels have {columns.shape[1]}; give the same."
            )
        both = torch.cat((rows, columns))
        self.levels: list[Classes] = []
        for depth in range(1, both.shape[1] + 1):
            _, ids = torch.unique(both[:, :depth], dim=0, return_inverse=True)
            self.levels.append(Classes(ids[: len(rows)], ids[len(rows) :], own))
        finest = self.levels[-1]
        super().__init__(finest.labels, finest.ref_labels, own)
