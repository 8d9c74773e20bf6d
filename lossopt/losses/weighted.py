"""Losses that weigh a pair by the anchor's other pairs: most the nearest negatives and the farthest positives.

Letters: n rows, m reference rows, b rows of a tile, p positives of a row.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lossopt.losses.all_tuples import TupleKind
from lossopt.losses.classes import NEVER, Classes, ListedPairs, Relation, classes_of
from lossopt.losses.distances import Distance, distances_at
from lossopt.losses.embedding import EmbeddingLoss, RowLoss, positive_number
from lossopt.losses.softmax import anything, log_sum_exp, over_negatives
from lossopt.losses.tiles import Comparison, Terms, Tile, per_row, total_over_tiles


def _finite_number(name: str, given: float) -> None:
    if not math.isfinite(given):
        raise ValueError(f"{name} must be a finite number, got {given}.")


def _over_positives(scores: Tensor, filled: Tensor) -> Tensor:
    """(b, 1) log of the sum of exp of (b, p) scores where filled; about `NEVER` where none is."""
    return torch.where(filled, scores, NEVER).logsumexp(1, keepdim=True)


class _WholeBatchMean(RowLoss):
    """The mean is over all rows of the batch; those without a pair to compare have loss 0."""

    def compare(self, x: Tensor, y: Tensor, relation: Relation) -> Terms:
        found = super().compare(x, y, relation)
        return found._replace(divisor=torch.full_like(found.divisor, len(x)))


class MultiSimilarityLoss(_WholeBatchMean):
    """Soft thresholds at the similarity `base`, sharper for negatives (`beta`) than for positives (`alpha`).

        log(1 + sum over positives of exp(-alpha (s - base))) / alpha
        + log(1 + sum over negatives of exp(beta (s - base))) / beta,        s = cos

    The mean over all anchors of the batch, as in the paper, where those without pairs have loss 0. The paper's first
    step, which leaves out easy pairs, is `MultiSimilarityMiner`.

    Source: Wang, Han, Huang, Dong & Scott 2019, CVPR, "Multi-similarity loss with general pair weighting", eq. 15.
    """

    def __init__(self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5) -> None:
        super().__init__("cosine")
        positive_number("MultiSimilarityLoss alpha", alpha, "it is the sharpness of the threshold for positives")
        positive_number("MultiSimilarityLoss beta", beta, "it is the sharpness of the threshold for negatives")
        _finite_number("MultiSimilarityLoss base", base)
        self.alpha, self.beta, self.base = alpha, beta, base

    def per_anchor(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """See `RowLoss`."""
        columns, filled = tile.positives
        beyond = tile.distances.gather(1, columns) - (1 - self.base)
        positive = _over_positives(self.alpha * beyond, filled)
        negative = over_negatives(tile, -self.beta)
        losses = F.softplus(positive) / self.alpha + F.softplus(negative + self.beta * (1 - self.base)) / self.beta
        return losses[:, 0], (anything(positive) | anything(negative))[:, 0]


class CircleLoss(RowLoss):
    """Each similarity is weighed by how far it is from its optimum, 1 + m for positives and -m for negatives.

        log(1 + sum over negatives of exp(gamma a_n (s_n - m)) * sum over positives of exp(-gamma a_p (s_p - 1 + m)))
        a_n = max(0, s_n + m),  a_p = max(0, 1 + m - s_p),  s = cos

    The weights a are constants to the gradient, as in the paper. The mean over anchors with a positive and a negative
    (pytorch-metric-learning: over those whose loss is not rounded to 0).

    Source: Sun et al. 2020, CVPR, "Circle loss: a unified perspective of pair similarity optimization".
    """

    def __init__(self, m: float = 0.4, gamma: float = 80.0) -> None:
        super().__init__("cosine")
        _finite_number("CircleLoss m", m)
        positive_number("CircleLoss gamma", gamma, "similarities are multiplied by it")
        self.m, self.gamma = m, gamma

    def per_anchor(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """See `RowLoss`; s_p - 1 + m is m - d, and 1 + m - s_p is m + d."""
        columns, filled = tile.positives
        to_positive = tile.distances.gather(1, columns)
        weights = F.relu(self.m + to_positive.detach())
        positive = _over_positives(self.gamma * weights * (to_positive - self.m), filled)
        similarity = 1 - tile.distances.detach()
        slope = (similarity + self.m).relu_().mul_(self.gamma)
        scores = tile.relation.keep_different(similarity.sub_(self.m).mul_(slope), tile.start, tile.stop)
        negative = log_sum_exp(tile.distances, scores, slope.neg_())
        counted = anything(positive) & anything(negative)
        return torch.where(counted, F.softplus(positive + negative), 0)[:, 0], counted[:, 0]


class GeneralizedLiftedStructureLoss(RowLoss):
    """max(0, log of the sum over positives of exp(d) + log of the sum over negatives of exp(margin - d)).

    The mean over anchors with a positive and a negative.

    Source: Hermans, Beyer & Leibe 2017, arXiv:1703.07737, section 2 ("generalized lifted structure").
    """

    def __init__(self, margin: float = 1.0, distance: Distance = "euclidean") -> None:
        super().__init__(distance)
        _finite_number("GeneralizedLiftedStructureLoss margin", margin)
        self.margin = margin

    def per_anchor(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """See `RowLoss`."""
        columns, filled = tile.positives
        positive = _over_positives(tile.distances.gather(1, columns), filled)
        negative = over_negatives(tile, -1.0)
        counted = anything(positive) & anything(negative)
        return torch.where(counted, F.relu(positive + negative + self.margin), 0)[:, 0], counted[:, 0]


class LiftedStructureLoss(EmbeddingLoss):
    """Each positive pair against the negatives of both its rows:

        J(i, j) = d(i, j) + log(sum over negatives k of i of exp(margin - d(i, k))
                                + sum over negatives l of j of exp(margin - d(j, l)))

    and the mean over positive pairs of max(0, J)²/2; pairs whose rows have no negatives do not count.

    Where the reference is not the batch itself, a reference row j has its negatives among the batch. Of listed pairs
    those count that have i or j as their anchor.

    Source: Song, Xiang, Jegelka & Savarese 2016, CVPR, "Deep metric learning via lifted structured feature embedding",
    eq. 4.
    """

    tuples: ClassVar[TupleKind] = "pairs"

    def __init__(self, margin: float = 1.0, distance: Distance = "euclidean") -> None:
        super().__init__(distance)
        _finite_number("LiftedStructureLoss margin", margin)
        self.margin = margin

    def _negatives(self, tile: Tile) -> Tensor:
        return over_negatives(tile, -1.0)[:, 0]

    def _pairs(self, of_rows: Tensor, of_partners: Tensor, distances: Tensor, filled: Tensor) -> Terms:
        """Terms of positive pairs, all of one shape: log-sums of the negatives of both rows, and their distance."""
        of_both = torch.logaddexp(of_rows, of_partners)
        counted = filled & anything(of_both)
        losses = torch.where(counted, F.relu(of_both + distances + self.margin).square() / 2, 0)
        count = counted.sum()
        return Terms(losses.sum(), count, count, losses.detach().count_nonzero())

    def compare(self, x: Tensor, y: Tensor, relation: Relation) -> Terms:
        """All positive pairs. The negatives of all rows are summed first, so the tiles are visited twice."""
        comparison = Comparison(x, y, self.distance, relation)
        if y is not x:
            return self._compare_with_reference(x, y, relation)
        with torch.no_grad():
            of_partners = per_row(comparison, self._negatives)

        def terms(tile: Tile) -> Terms:
            columns, filled = tile.positives
            of_rows = self._negatives(tile)[:, None].expand(columns.shape)
            # The pair (i, j) comes again as (j, i): what both ask of the negatives of i is asked here, twice.
            twice = 2 * of_rows - of_rows.detach()
            return self._pairs(twice, of_partners[columns], tile.distances.gather(1, columns), filled)

        return total_over_tiles(comparison, terms)

    def _compare_with_reference(self, x: Tensor, y: Tensor, relation: Relation) -> Terms:
        """A reference row is the partner of several anchors: what they ask of its negatives is passed on as one sum."""
        relation = classes_of(relation, type(self).__name__)
        turned = Classes(relation.ref_labels, relation.labels, None)
        of_columns = per_row(Comparison(y, x, self.distance, turned), self._negatives)
        leaf = of_columns.detach().requires_grad_(of_columns.requires_grad)
        asked = torch.zeros_like(leaf)

        def terms(tile: Tile) -> Terms:
            columns, filled = tile.positives
            of_rows = self._negatives(tile)[:, None].expand(columns.shape)
            found = self._pairs(of_rows, leaf[columns], tile.distances.gather(1, columns), filled)
            if leaf.requires_grad:
                asked.add_(torch.autograd.grad(found.total, leaf, retain_graph=True)[0])
            return found

        found = total_over_tiles(Comparison(x, y, self.distance, relation), terms)
        return found._replace(total=found.total + (asked * (of_columns - leaf.detach())).sum())

    def compare_listed(self, x: Tensor, y: Tensor, indices: tuple[Tensor, ...]) -> Terms:
        """The listed positive pairs; the negatives of a reference row are the anchors it is listed with."""
        anchor1, positive, anchor2, negative = indices
        of_rows = per_row(Comparison(x, y, self.distance, ListedPairs(indices, len(y))), self._negatives)
        of_columns = of_rows
        if y is not x:
            turned = ListedPairs((positive, anchor1, negative, anchor2), len(x))
            of_columns = per_row(Comparison(y, x, self.distance, turned), self._negatives)
        distances = distances_at(x, y, anchor1, positive, self.distance)
        return self._pairs(
            of_rows[anchor1], of_columns[positive], distances, torch.ones_like(anchor1, dtype=torch.bool)
        )


class RankedListLoss(_WholeBatchMean):
    """Positives farther than alpha - margin come nearer, negatives nearer than alpha go away, each set by its own mean.

        (1 - imbalance) * mean of d - (alpha - margin) over the positives with d > alpha - margin
        + imbalance * mean of alpha - d over the negatives with d < alpha

    The means are weighted, by exp(Tp (d - (alpha - margin))) and exp(Tn (alpha - d)). The weights are constants to the
    gradient: the paper lets them alone set the length of a pair's gradient (pytorch-metric-learning differentiates
    them, adds 1e-5 per row to their sum, and passes over negatives at distance 0). The mean over all anchors of the
    batch; those without such pairs have loss 0.

    Args:
        margin: between positives and negatives, > 0, at most alpha.
        alpha: distance that negatives are pushed to; for unit-length rows, whose distances are at most 2.
        Tn: temperature of the weights of negatives, 0 (all alike) or more.
        Tp: likewise of positives.
        imbalance: share of the negatives in the loss, in [0, 1].

    Source: Wang et al. 2019, CVPR, "Ranked list loss for deep metric learning"; the shares are those of its
    journal version, arXiv:1903.03238.
    """

    def __init__(
        self,
        margin: float = 0.4,
        alpha: float = 1.2,
        Tn: float = 10.0,
        Tp: float = 0.0,
        imbalance: float = 0.5,
        distance: Distance = "euclidean",
    ) -> None:
        super().__init__(distance)
        positive_number("RankedListLoss margin", margin, "positives could stay as far away as negatives")
        if not margin <= alpha < math.inf:
            raise ValueError(
                f"RankedListLoss alpha must be finite and at least the margin, {margin}, got {alpha}: positives are "
                "pulled to distance alpha - margin."
            )
        for name, given in (("Tn", Tn), ("Tp", Tp)):
            if not 0 <= given < math.inf:
                raise ValueError(f"RankedListLoss {name} must be a finite number >= 0, got {given}.")
        if not 0 <= imbalance <= 1:
            raise ValueError(f"RankedListLoss imbalance is a share in [0, 1], got {imbalance}.")
        self.margin, self.alpha, self.Tn, self.Tp, self.imbalance = margin, alpha, Tn, Tp, imbalance

    @property
    def collapsed_value(self) -> float:
        """imbalance * alpha, where every row has a negative: all of them are at distance 0."""
        return self.imbalance * self.alpha

    def per_anchor(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """See `RowLoss`."""
        columns, filled = tile.positives
        beyond = tile.distances.gather(1, columns) - (self.alpha - self.margin)
        chosen = filled & (beyond.detach() > 0)
        positive = _weighted_mean(beyond, torch.where(chosen, beyond.detach() * self.Tp, NEVER))
        missing = self.alpha - tile.distances.detach()
        scores = tile.relation.keep_different(missing * self.Tn, tile.start, tile.stop)
        compared = (filled.any(1, keepdim=True) | (scores > NEVER / 2).any(1, keepdim=True))[:, 0]
        negative = _weighted_mean(self.alpha - tile.distances, scores.masked_fill_(missing <= 0, NEVER))
        return (1 - self.imbalance) * positive + self.imbalance * negative, compared


def _weighted_mean(values: Tensor, scores: Tensor) -> Tensor:
    """(b,) mean of each row of values (b, c) with weights exp(scores), constants; 0 where all scores are `NEVER`."""
    if not values.shape[1]:
        return values.sum(1)
    some = scores.amax(1, keepdim=True) > NEVER / 2
    return (scores.softmax(1) * some * values).sum(1)
