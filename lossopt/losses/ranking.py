"""Losses that smooth a retrieval metric: the rank of a row, 1 + how many are nearer, counted with sigmoids.

Letters: b rows of a tile, m reference rows, p positives of a row.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lossopt.losses.all_tuples import TupleKind
from lossopt.losses.classes import Classes, Relation, classes_of
from lossopt.losses.embedding import EmbeddingLoss, positive_number
from lossopt.losses.tiles import Comparison, Terms, Tile, total_over_tiles

_FAR = 1e30  # times the temperature: a distance beyond which nothing is counted


class _SoftRanks(torch.autograd.Function):
    """See `soft_ranks`; each pass is repeated on the way back, for p tiles would be kept otherwise."""

    @staticmethod
    def forward(ctx: Any, distances: Tensor, columns: Tensor, temperature: float) -> Tensor:
        scores = distances / -temperature
        ranks, pass_of = scores.new_empty(columns.shape), torch.empty_like(scores)
        for k, own in enumerate(scores.gather(1, columns)[:, :, None].unbind(1)):
            ranks[:, k] = torch.sub(scores, own, out=pass_of).sigmoid_().sum(1)
        ctx.temperature = temperature
        ctx.save_for_backward(scores, columns)
        return ranks.add_(0.5)  # a row is level with itself, which was counted as a half of the 1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_ranks: Tensor) -> tuple[Tensor | None, ...]:
        scores, columns = ctx.saved_tensors
        weight, of_own, pass_of = torch.zeros_like(scores), torch.empty_like(of_ranks), torch.empty_like(scores)
        for k, own in enumerate(scores.gather(1, columns)[:, :, None].unbind(1)):
            nearer = torch.sub(scores, own, out=pass_of).sigmoid_()
            slope = nearer.addcmul_(nearer, nearer, value=-1).mul_(of_ranks[:, k : k + 1])
            weight.add_(slope)
            torch.sum(slope, 1, out=of_own[:, k])
        return weight.scatter_add_(1, columns, of_own.neg_()).div_(-ctx.temperature), None, None


def soft_ranks(distances: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """1 + the sum over the other columns j of sigmoid((d_k - d_j) / temperature), for each listed column k.

    Args:
        distances: (b, m).
        columns: (b, p) int64.
        temperature: of the sigmoid, in the units of the distances; towards 0 the ranks become whole numbers.

    Returns:
        (b, p) ranks from 1 to m; m is 1 + the others. Time is p passes over the distances, memory a few times theirs.
    """
    found: Tensor = _SoftRanks.apply(distances, columns, temperature)
    return found


class _RankingLoss(EmbeddingLoss):
    """The mean over anchors with a positive and a negative; the whole reference is ranked, so no miner is taken."""

    tuples: ClassVar[TupleKind] = "batch"

    @abstractmethod
    def per_anchor(self, tile: Tile, relation: Classes) -> Tensor:
        """(b,) loss of each anchor of the tile, finite also for those that do not count."""

    def compare(self, x: Tensor, y: Tensor, relation: Relation) -> Terms:
        relation = classes_of(relation, type(self).__name__)
        counted = (relation.positive_count > 0) & (relation.negative_count > 0)

        def terms(tile: Tile) -> Terms:
            these = counted[tile.start : tile.stop]
            losses = torch.where(these, self.per_anchor(tile, relation), 0)
            count = these.sum()
            return Terms(losses.sum(), count, count, losses.detach().count_nonzero())

        return total_over_tiles(Comparison(x, y, self.distance, relation), terms)

    def compare_listed(self, x: Tensor, y: Tensor, indices: tuple[Tensor, ...]) -> Terms:
        """Never called: indices are refused before."""
        raise NotImplementedError


class SmoothAPLoss(_RankingLoss):
    """1 - the average precision of the ranked reference, for each anchor:

        AP = mean over its positives k of (rank of k among the positives) / (rank of k among all rows)

    with `soft_ranks` of cosine distance. Where the batch is among the reference, an anchor is its own first positive,
    as in the authors' code. Classes may be of any size and rows in any order (pytorch-metric-learning 2.9 groups the
    rows rightly only where there are as many classes as rows per class, and the rows of a class are side by side).

    Source: Brown, Xie, Kalogeiton & Zisserman 2020, ECCV, "Smooth-AP: smoothing the path towards large-scale image
    retrieval".
    """

    def __init__(self, temperature: float = 0.01) -> None:
        super().__init__("cosine")
        positive_number("SmoothAPLoss temperature", temperature, "differences of cosine are divided by it")
        self.temperature = temperature

    def per_anchor(self, tile: Tile, relation: Classes) -> Tensor:
        """See `_RankingLoss`."""
        columns, filled = relation.of_class(tile.start, tile.stop)
        places = torch.arange(columns.shape[1], device=columns.device).expand(columns.shape)
        to_positive = torch.where(filled, tile.distances.gather(1, columns), _FAR * self.temperature)
        among_positives = soft_ranks(to_positive, places, self.temperature)
        precision = among_positives / soft_ranks(tile.distances, columns, self.temperature)
        return 1 - torch.where(filled, precision, 0).sum(1) / filled.sum(1).clamp(min=1)


class RecallAtKLoss(_RankingLoss):
    """1 - recall@k of the ranked reference, the mean over several k:

        recall@k = min(k, sum over positives of sigmoid((k - rank) / k_temperature)) / min(k, positives)

    with `soft_ranks` of cosine distance among the other rows. Recall as such divides by the number of positives; the
    two `min` are those of the authors' code, without which a small k could never be satisfied. That code also ranks
    the anchor itself, always first, so that its ranks are larger by 1, and lowers every k to the batch size; neither
    is done here. Their similarity mixup is not part of this loss.

    Args:
        ks: whole numbers, 1 or more.
        k_temperature: of the step at rank k, in ranks.
        rank_temperature: of the steps of a rank, in differences of cosine.

    Source: Patel, Tolias & Matas 2022, CVPR, "Recall@k surrogate loss with large batches and similarity mixup";
    code: github.com/yash0307/RecallatK_surrogate.
    """

    def __init__(
        self, ks: tuple[int, ...] = (1, 2, 4, 8, 16), k_temperature: float = 1.0, rank_temperature: float = 0.01
    ) -> None:
        super().__init__("cosine")
        if not ks or any(k < 1 for k in ks):
            raise ValueError(
                f"RecallAtKLoss ks must be whole numbers of 1 or more, got {ks}; for example (1, 2, 4, 8)."
            )
        positive_number("RecallAtKLoss k_temperature", k_temperature, "differences of rank are divided by it")
        positive_number("RecallAtKLoss rank_temperature", rank_temperature, "differences of cosine are divided by it")
        self.ks, self.k_temperature, self.rank_temperature = tuple(ks), k_temperature, rank_temperature

    def per_anchor(self, tile: Tile, relation: Classes) -> Tensor:
        """See `_RankingLoss`."""
        columns, filled = tile.positives
        of_own: Tensor | float = 0.0
        if relation.own is not None:  # the anchor itself is not ranked
            first = relation.own + tile.start
            own = tile.distances[:, first : first + len(columns)].diagonal()[:, None]
            of_own = ((tile.distances.gather(1, columns) - own) / self.rank_temperature).sigmoid()
        ranks = soft_ranks(tile.distances, columns, self.rank_temperature) - of_own
        positives, recall = filled.sum(1), tile.distances.new_zeros(len(columns))
        for k in self.ks:
            found = torch.where(filled, ((k - ranks) / self.k_temperature).sigmoid(), 0).sum(1)
            recall = recall + found.clamp(max=k) / positives.clamp(min=1, max=k)
        return 1 - recall / len(self.ks)
