"""Losses on distances between rows of a batch: pure functions of distances first, modules in the field's call below.

Any NaN or infinite row makes the loss NaN, also when no tuple touches that row. Letters: n rows, m reference rows (the
batch itself, or a memory), d embedding, p pairs, t triplets.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossopt.losses.all_tuples import (
    TupleKind,
    graded_triplets,
    label_pair,
    read_tuples,
    same_and_different,
    shared_levels,
)
from lossopt.losses.distances import Distance, distances_at, float32_or_wider, one_of

Reduction = Literal["mean", "mean_active"]


def positive_number(name: str, given: float, why: str) -> None:
    """Raise ValueError unless 0 < given < infinity."""
    if not 0 < given < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, got {given}: {why}.")


def contrastive_loss(distance: Tensor, same: Tensor, margin: float) -> Tensor:
    """Pull same-class pairs together; push other pairs apart, but only up to `margin`.

        d²/2                     same class
        max(0, margin - d)²/2    different class

    Args:
        distance: (p,) distance of each pair, plain rather than squared, >= 0.
        same: (p,) bool, whether the two rows of the pair share a class.
        margin: in the units of `distance`; unit-length embeddings give distances in [0, 2].

    Returns:
        (p,) one loss per pair. The caller reduces, so that it can also count the active ones.

    Source: Hadsell, Chopra & LeCun 2006, CVPR, eq. 4, whose Y is 1 for *different* classes.
    """
    return torch.where(same, distance, F.relu(margin - distance)).square() / 2


def hinge_embedding_loss(distance: Tensor, same: Tensor, margin: float) -> Tensor:
    """d for the same class, max(0, margin - d) for different ones: distance (p,), same (p,) bool -> (p,).

    Source: torch.nn.HingeEmbeddingLoss, with its y = 1 where `same`.
    """
    return torch.where(same, distance, F.relu(margin - distance))


def cosine_embedding_loss(distance: Tensor, same: Tensor, margin: float) -> Tensor:
    """1 - cos for the same class, max(0, cos - margin) for different ones, of `distance` = 1 - cos: (p,), (p,) -> (p,).

    Source: torch.nn.CosineEmbeddingLoss, with its y = 1 where `same`.
    """
    return torch.where(same, distance, F.relu(1 - distance - margin))


def triplet_loss(to_positive: Tensor, to_negative: Tensor, margin: float) -> Tensor:
    """max(0, d(a,p) - d(a,n) + margin): (t,), (t,) -> (t,), margin in the units of the distances.

    Source: Schroff, Kalenichenko & Philbin 2015, CVPR, eq. 3 (squared distances there); with graded relevance instead
    of classes it is the hinge of Wang et al. 2014, CVPR, eq. 3, whose gap g is the margin.
    """
    return F.relu(to_positive - to_negative + margin)


def soft_margin_triplet_loss(to_positive: Tensor, to_negative: Tensor) -> Tensor:
    """log(1 + exp(d(a,p) - d(a,n))), a hinge without a margin to tune: (t,), (t,) -> (t,); ln 2 when both are equal.

    Source: Hermans, Beyer & Leibe 2017, arXiv:1703.07737, section 2.
    """
    return F.softplus(to_positive - to_negative)


class EmbeddingLoss(nn.Module, ABC):
    """Interface of the losses below: `loss_fn(embeddings, labels, indices_tuple)` gives a scalar, float32 or wider.

    After a call `tuple_count` is the number of tuples compared and `share_active` (0-dim, detached, on the device of
    the embeddings) the share of them whose loss is not 0; NaN counts as active.
    """

    tuples: ClassVar[TupleKind]
    share_active: Tensor
    tuple_count: int

    def __init__(self, distance: Distance, reduction: Reduction) -> None:
        super().__init__()
        one_of("distance", distance, Distance)
        one_of("reduction", reduction, Reduction)
        self.distance: Distance = distance
        self.reduction: Reduction = reduction
        self.share_active = torch.zeros(())
        self.tuple_count = 0

    @abstractmethod
    def every_tuple(
        self, embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor | None, ref_labels: Tensor | None
    ) -> tuple[Tensor, ...]:
        """All valid tuples of the batch."""

    @abstractmethod
    def per_tuple(self, x: Tensor, y: Tensor, indices: tuple[Tensor, ...]) -> Tensor:
        """One loss per tuple; anchors are rows of x (n, d), partners rows of y (m, d)."""

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Mean loss of the tuples, 0-dim; 0 with zero gradient where there are none.

        Args:
            embeddings: (n, d), any floating dtype.
            labels: (n,) class of each row; may be None if indices are given.
            indices_tuple: what a miner returned; None compares all valid tuples.
            ref_emb: (m, d) rows that positives and negatives are taken from; None: the batch itself, no self-pairs.
            ref_labels: (m,) their classes.

        Raises:
            ValueError: indices of the wrong kind, or labels that are missing or not one per row.
        """
        x, y = float32_or_wider(embeddings, ref_emb)
        if indices_tuple is None:
            indices = self.every_tuple(embeddings, labels, ref_emb, ref_labels)
        else:
            indices = read_tuples(indices_tuple, self.tuples, type(self).__name__, embeddings.device)
        losses = self.per_tuple(x, y, indices)
        active = (losses.detach() != 0).sum()
        self.tuple_count = losses.numel()
        self.share_active = active / max(self.tuple_count, 1)
        mean = losses.sum() / (active.clamp(min=1) if self.reduction == "mean_active" else max(self.tuple_count, 1))
        # Zero for finite rows, NaN for others: no bad row goes unseen, and an empty batch keeps its graph.
        return mean + (x * 0).sum() + (0 if y is x else (y * 0).sum())


class PairLoss(EmbeddingLoss):
    """Interface of losses over pairs: the mean over all pairs, positive and negative alike."""

    tuples: ClassVar[TupleKind] = "pairs"

    def __init__(self, distance: Distance) -> None:
        super().__init__(distance, "mean")

    @abstractmethod
    def per_pair(self, distance: Tensor, same: Tensor) -> Tensor:
        """One loss per pair: distance (p,), same (p,) bool -> (p,)."""

    def every_tuple(
        self, embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor | None, ref_labels: Tensor | None
    ) -> tuple[Tensor, ...]:
        """All ordered pairs (anchor1, positive, anchor2, negative)."""
        same, different = same_and_different(embeddings, labels, ref_emb, ref_labels)
        return (*same.nonzero(as_tuple=True), *different.nonzero(as_tuple=True))

    def per_tuple(self, x: Tensor, y: Tensor, indices: tuple[Tensor, ...]) -> Tensor:
        """Positive pairs first, then negative ones."""
        anchor1, positive, anchor2, negative = indices
        rows, columns = torch.cat((anchor1, anchor2)), torch.cat((positive, negative))
        same = torch.arange(len(rows), device=rows.device) < len(anchor1)
        return self.per_pair(distances_at(x, y, rows, columns, self.distance), same)


class ContrastiveLoss(PairLoss):
    """`contrastive_loss` on Euclidean distance; margin > 0 is how far apart different classes are pushed."""

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__("euclidean")
        positive_number("ContrastiveLoss margin", margin, "no pair of different classes would ever be pushed apart")
        self.margin = margin

    def per_pair(self, distance: Tensor, same: Tensor) -> Tensor:
        """(p,), (p,) -> (p,)."""
        return contrastive_loss(distance, same, self.margin)


class HingeEmbeddingLoss(PairLoss):
    """`hinge_embedding_loss` on Manhattan (L1) distance; scale the margin with the number of features."""

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__("manhattan")
        positive_number("HingeEmbeddingLoss margin", margin, "no pair of different classes would ever be pushed apart")
        self.margin = margin

    def per_pair(self, distance: Tensor, same: Tensor) -> Tensor:
        """(p,), (p,) -> (p,)."""
        return hinge_embedding_loss(distance, same, self.margin)


class CosineEmbeddingLoss(PairLoss):
    """`cosine_embedding_loss`; different classes are pushed until their cosine is `margin`, in [-1, 1)."""

    def __init__(self, margin: float = 0.0) -> None:
        super().__init__("cosine")
        if not -1 <= margin < 1:
            raise ValueError(
                f"CosineEmbeddingLoss margin is a cosine in [-1, 1), got {margin}; torch suggests 0 to 0.5."
            )
        self.margin = margin

    def per_pair(self, distance: Tensor, same: Tensor) -> Tensor:
        """(p,), (p,) -> (p,)."""
        return cosine_embedding_loss(distance, same, self.margin)


class TripletwiseLoss(EmbeddingLoss):
    """Interface of losses over triplets; reduced over all of them, or over those not at 0 (`mean_active`)."""

    tuples: ClassVar[TupleKind] = "triplets"

    @abstractmethod
    def per_triplet(self, to_positive: Tensor, to_negative: Tensor) -> Tensor:
        """One loss per triplet from its two distances: (t,), (t,) -> (t,)."""

    def every_tuple(
        self, embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor | None, ref_labels: Tensor | None
    ) -> tuple[Tensor, ...]:
        """All (anchor, positive, negative)."""
        same, _ = same_and_different(embeddings, labels, ref_emb, ref_labels)
        return graded_triplets(same, own=ref_emb is None or ref_emb is embeddings)

    def per_tuple(self, x: Tensor, y: Tensor, indices: tuple[Tensor, ...]) -> Tensor:
        """(t,), in the order of the indices."""
        anchor, positive, negative = indices
        both = distances_at(x, y, anchor.repeat(2), torch.cat((positive, negative)), self.distance)
        return self.per_triplet(*both.chunk(2))


class TripletLoss(TripletwiseLoss):
    """`triplet_loss`, margin > 0 in the units of `distance` (Euclidean between unit-length rows: 0 to 2)."""

    def __init__(self, margin: float = 0.2, distance: Distance = "euclidean", reduction: Reduction = "mean") -> None:
        super().__init__(distance, reduction)
        positive_number(
            "TripletLoss margin", margin, "equal distances, as in a collapsed network, would be good enough"
        )
        self.margin = margin

    def per_triplet(self, to_positive: Tensor, to_negative: Tensor) -> Tensor:
        """(t,), (t,) -> (t,)."""
        return triplet_loss(to_positive, to_negative, self.margin)


class SoftMarginTripletLoss(TripletwiseLoss):
    """`soft_margin_triplet_loss`; nearly every triplet is active, so its `share_active` says little."""

    def __init__(self, distance: Distance = "euclidean", reduction: Reduction = "mean") -> None:
        super().__init__(distance, reduction)

    def per_triplet(self, to_positive: Tensor, to_negative: Tensor) -> Tensor:
        """(t,), (t,) -> (t,)."""
        return soft_margin_triplet_loss(to_positive, to_negative)


class RankingHingeLoss(TripletwiseLoss):
    """Deep ranking: rows of higher relevance to the anchor must be nearer, by `gap`, than rows of lower relevance.

    Labels are (n,) or (n, levels), coarse level first (alphabet, character); relevance is `shared_levels`, and every
    (a, i, j) with r(a, i) > r(a, j) is compared. For relevance from elsewhere give
    `graded_triplets(relevance, own=True)` as the indices.

    Source: Wang et al. 2014, CVPR, "Learning fine-grained image similarity with deep ranking", eq. 3.
    """

    def __init__(self, gap: float = 1.0, distance: Distance = "squared", reduction: Reduction = "mean") -> None:
        super().__init__(distance, reduction)
        positive_number("RankingHingeLoss gap", gap, "equal distances, as in a collapsed network, would be good enough")
        self.gap = gap

    def every_tuple(
        self, embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor | None, ref_labels: Tensor | None
    ) -> tuple[Tensor, ...]:
        """All (anchor, more relevant, less relevant)."""
        labels, ref_labels, own = label_pair(embeddings, labels, ref_emb, ref_labels)
        return graded_triplets(shared_levels(labels, ref_labels), own)

    def per_triplet(self, to_positive: Tensor, to_negative: Tensor) -> Tensor:
        """(t,), (t,) -> (t,)."""
        return triplet_loss(to_positive, to_negative, self.gap)
