"""Losses that ask which row is the positive: the softmax of similarities over an anchor's rows.

With s = cos / temperature, or minus another distance. Letters: b rows of a tile, m reference rows, d embedding, p
positives of a row, k rows of a class.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lossopt.losses.all_tuples import TupleKind
from lossopt.losses.classes import NEVER, Classes, Relation, classes_of
from lossopt.losses.distances import Distance
from lossopt.losses.embedding import EmbeddingLoss, RowLoss, positive_number
from lossopt.losses.tiles import Comparison, Terms, Tile, total_over_tiles

_IGNORED = -100  # a target that torch's cross-entropy passes over


class _LogSumExp(torch.autograd.Function):
    """Keeps the softmax, which is the derivative: a third of the time of torch.logsumexp there and back."""

    @staticmethod
    def forward(ctx: Any, distances: Tensor, scores: Tensor, slope: Tensor | float) -> Tensor:
        if not scores.shape[1]:
            return scores.new_full((len(scores), 1), NEVER)
        ctx.slope, shares = slope, scores.softmax(1)
        ctx.save_for_backward(shares)
        return scores.amax(1, keepdim=True) - shares.amax(1, keepdim=True).log_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sum: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.saved_tensors:
            return of_sum[:, :0], None, None
        (shares,) = ctx.saved_tensors
        if isinstance(ctx.slope, Tensor):
            return (shares * of_sum).mul_(ctx.slope), None, None
        return shares * (of_sum * ctx.slope), None, None


def log_sum_exp(distances: Tensor, scores: Tensor, slope: Tensor | float) -> Tensor:
    """(b, 1) log of the sum of exp of each row of the scores, with the gradient of the distances; once differentiable.

    Args:
        distances: (b, m).
        scores: (b, m), without gradient; `NEVER` where a column does not count.
        slope: derivative of the scores with respect to the distances, (b, m) or one number.

    Returns:
        About `NEVER` where no column counts; compare with `anything`.
    """
    found: Tensor = _LogSumExp.apply(distances, scores, slope)
    return found


def anything(log_sum: Tensor) -> Tensor:
    """Whether some column counted, bool of the same shape; NaN counts."""
    return ~(log_sum.detach() < NEVER / 2)


def over_negatives(tile: Tile, scale: float) -> Tensor:
    """(b, 1) log of the sum of exp(scale * distance) over the negatives of each anchor."""
    scores = tile.relation.keep_different(tile.distances.detach() * scale, tile.start, tile.stop)
    return log_sum_exp(tile.distances, scores, scale)


class _SoftmaxLoss(RowLoss):
    def __init__(self, temperature: float, distance: Distance) -> None:
        super().__init__(distance)
        positive_number(f"{type(self).__name__} temperature", temperature, "similarities are divided by it")
        self.temperature = temperature


class NTXentLoss(_SoftmaxLoss):
    """-log exp(s_p) / (exp(s_p) + sum over negatives of exp(s_n)), the mean over all positive pairs: InfoNCE.

    Other positives of the anchor are in nobody's way. With one positive per anchor this is the cross-entropy of
    InfoNCE, SimCLR and CLIP; give the other view as `ref_emb` for the one-sided forms. Pairs of an anchor without
    negatives do not count.

    Source: van den Oord, Li & Vinyals 2018, arXiv:1807.03748, eq. 4; Chen et al. 2020, ICML, eq. 1.
    """

    def __init__(self, temperature: float = 0.07, distance: Distance = "cosine") -> None:
        super().__init__(temperature, distance)

    def per_anchor(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """See `RowLoss`; what counts is each positive pair."""
        columns, filled = tile.positives
        of_positives = tile.distances.gather(1, columns) / -self.temperature
        of_negatives = over_negatives(tile, -1 / self.temperature)
        counted = filled & anything(of_negatives)
        return torch.where(counted, F.softplus(of_negatives - of_positives), 0).flatten(), counted.flatten()


class SupConLoss(_SoftmaxLoss):
    """-log exp(s_p) / (sum over all other rows of exp(s)), the mean over an anchor's positives, then over anchors.

    Anchors without positives do not count.

    Source: Khosla et al. 2020, NeurIPS, "Supervised contrastive learning", eq. 2 (L_out).
    """

    def __init__(self, temperature: float = 0.1, distance: Distance = "cosine") -> None:
        super().__init__(temperature, distance)

    def per_anchor(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """See `RowLoss`."""
        columns, filled = tile.positives
        scores = tile.relation.keep_compared(tile.distances.detach() / -self.temperature, tile.start, tile.stop)
        of_all = log_sum_exp(tile.distances, scores, -1 / self.temperature)[:, 0]
        positives = filled.sum(1)
        of_positives = torch.where(filled, tile.distances.gather(1, columns), 0).sum(1) / -self.temperature
        counted = positives > 0
        return torch.where(counted, of_all - of_positives / positives.clamp(min=1), 0), counted


class NPairsLoss(EmbeddingLoss):
    """-log exp(a·p) / (sum over classes of exp(a·p_c)): each positive of an anchor against one row of every class.

    The paper's batch is one pair per class: its first row is an anchor a, its second the positive p, and the p_c of
    the other classes are the negatives. Of k rows per class every pair of places i < j is such a batch: anchors the
    i-th rows, positives the j-th rows of all classes that have one, in the order of the rows; the mean over all
    anchors and positives. For k = 2 that is the paper's loss. pytorch-metric-learning uses the first two rows of a
    class only, scaled to unit length unless told not to, which the paper advises against. The order of rows of one
    class matters; miners, which know no places, are refused.

    Of a reference that the batch is not part of, all places are compared with every anchor.

    Args:
        l2_weight: times the mean squared length of the rows is added, for inner products grow with it.
        distance: "inner", as in the paper, or another whose negative is the similarity.

    Source: Sohn 2016, NeurIPS, "Improved deep metric learning with multi-class N-pair loss objective", section 3.2.
    """

    tuples: ClassVar[TupleKind] = "batch"

    def __init__(self, l2_weight: float = 0.0, distance: Distance = "inner") -> None:
        super().__init__(distance)
        if l2_weight:
            positive_number("NPairsLoss l2_weight", l2_weight, "it shortens long embeddings; 0 leaves them alone")
        self.l2_weight = l2_weight

    def compare(self, x: Tensor, y: Tensor, relation: Relation) -> Terms:
        """All pairs of places."""
        relation = classes_of(relation, type(self).__name__)
        own = relation.own
        first = torch.arange(len(y), device=y.device).roll(-(own or 0))  # the batch's own rows have the first places
        place = _places(relation.ref_labels[first])
        order = place.argsort(stable=True)  # columns of one place side by side: each such block is an N-pair batch
        sizes = torch.bincount(place)
        nth = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        column_in_block = nth - (sizes.cumsum(0) - sizes)[place]
        block_sizes: list[int] = sizes.tolist()
        placed = Classes(relation.labels, relation.ref_labels[first], None if own is None else 0)

        def terms(tile: Tile) -> Terms:
            columns, filled = placed.of_class(tile.start, tile.stop)  # the j-th has place j
            if own is not None:
                places = torch.arange(columns.shape[1], device=place.device)
                filled = filled & (places > place[tile.start : tile.stop, None])
            targets = torch.where(filled, column_in_block[columns], _IGNORED)
            blocks = zip(tile.distances.split(block_sizes, dim=1), targets.unbind(1), strict=False)
            parts = [
                (F.cross_entropy(block.neg(), target, ignore_index=_IGNORED, reduction="none"), target != _IGNORED)
                for block, target in blocks
                if block.shape[1] > 1  # or there is no negative
            ]
            losses = torch.stack([part for part, _ in parts]) if parts else tile.distances[:, :0]
            counted = torch.stack([part for _, part in parts]) if parts else filled[:, :0]
            count = counted.sum()
            return Terms(losses.sum(), count, count, losses.detach().count_nonzero())

        found = total_over_tiles(Comparison(x, y[first[order]], self.distance, placed), terms)
        if not self.l2_weight:
            return found
        length = x.square().sum() / max(len(x), 1)
        return found._replace(total=found.total + self.l2_weight * length * found.divisor)

    def compare_listed(self, x: Tensor, y: Tensor, indices: tuple[Tensor, ...]) -> Terms:
        """Never called: indices are refused before."""
        raise NotImplementedError


def _places(labels: Tensor) -> Tensor:
    """(m,) int64: how many earlier rows have the same label."""
    ascending, order = labels.sort(stable=True)
    place = torch.arange(len(labels), device=labels.device)
    return torch.empty_like(place).scatter_(0, order, place - torch.searchsorted(ascending, ascending))
