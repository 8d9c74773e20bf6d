"""What every loss on embeddings is, and the losses on pairs: pure functions of distances first, modules below.

Any NaN or infinite row makes the loss NaN, also when no tuple touches that row. Letters: n rows, m reference rows (the
batch itself, or a memory), d embedding, b rows of a tile, p pairs.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossopt.losses.all_tuples import TupleKind, label_pair, read_tuples
from lossopt.losses.classes import Classes, ListedPairs, Relation
from lossopt.losses.distances import Distance, distances_at, float32_or_wider, one_of
from lossopt.losses.tiles import Comparison, Terms, Tile, total_over_tiles

Reduction = Literal["mean", "mean_active"]


def positive_number(name: str, given: float, why: str) -> None:
    """Raise ValueError unless 0 < given < infinity."""
    if not 0 < given < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, got {given}: {why}.")


class EmbeddingLoss(nn.Module, ABC):
    """Interface of the losses: `loss_fn(embeddings, labels, indices_tuple)` gives a scalar, float32 or wider.

    Without indices everything in the batch is compared, exactly, and nothing larger than a tile of rows is held. After
    a call `tuple_count` is the number of tuples compared and `share_active` the share of them whose loss is not 0, both
    0-dim, detached, on the device of the embeddings; NaN counts as active.
    """

    tuples: ClassVar[TupleKind]
    share_active: Tensor
    tuple_count: Tensor

    def __init__(self, distance: Distance) -> None:
        super().__init__()
        one_of("distance", distance, Distance)
        self.distance: Distance = distance
        self.share_active = self.tuple_count = torch.zeros(())

    @property
    def collapsed_value(self) -> float | None:
        """The loss of a network whose embeddings are all equal, where that is one known value."""
        return None

    @abstractmethod
    def compare(self, x: Tensor, y: Tensor, relation: Relation) -> Terms:
        """Everything with everything: x (n, d), y (m, d)."""

    @abstractmethod
    def compare_listed(self, x: Tensor, y: Tensor, indices: tuple[Tensor, ...]) -> Terms:
        """What a miner listed: anchors are rows of x, partners rows of y."""

    def relation(self, labels: Tensor, ref_labels: Tensor, own: int | None) -> Relation:
        """Who is whose positive and negative."""
        for given in (labels, ref_labels):
            if given.ndim != 1:
                raise ValueError(
                    f"labels must be (rows,), got {tuple(given.shape)}; for levels of labels use RankingHingeLoss."
                )
        return Classes(labels, ref_labels, own)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        own: int | None = None,
    ) -> Tensor:
        """Mean loss, 0-dim; 0 with zero gradient where there is nothing to compare. Differentiable once.

        Args:
            embeddings: (n, d), any floating dtype.
            labels: (n,) class of each row; may be None if indices are given.
            indices_tuple: what a miner returned; None compares everything.
            ref_emb: (m, d) rows that positives and negatives are taken from; None: the batch itself, no self-pairs.
            ref_labels: (m,) their classes.
            own: column of `ref_emb` at which the batch's own rows begin, so that no row is its own positive; None: they
                are not in it. Of no meaning without `ref_emb`.

        Raises:
            ValueError: indices of the wrong kind, or labels that are missing or not one per row.
        """
        x, y = float32_or_wider(embeddings, ref_emb)
        if indices_tuple is None:
            labels, ref_labels, own = label_pair(embeddings, labels, ref_emb, ref_labels, own)
            found = self.compare(x, y, self.relation(labels, ref_labels, own))
        else:
            indices = read_tuples(indices_tuple, self.tuples, type(self).__name__, embeddings.device)
            found = self.compare_listed(x, y, indices)
        self.tuple_count = found.tuples
        self.share_active = (found.active / found.tuples.clamp(min=1)).float()
        mean = found.total / found.divisor.clamp(min=1)
        # Zero for finite rows, NaN for others: no bad row goes unseen.
        bad = x.detach().sum() * 0
        return mean + (bad if y is x else bad + y.detach().sum() * 0)


def reduced(losses: Tensor, reduction: Reduction) -> Terms:
    """Terms of one loss per tuple, (t,)."""
    active = (losses.detach() != 0).sum()
    tuples = torch.full_like(active, losses.numel())
    return Terms(losses.sum(), active if reduction == "mean_active" else tuples, tuples, active)


class PairLoss(EmbeddingLoss):
    """Interface of losses over pairs: the mean over all pairs, positive and negative alike."""

    tuples: ClassVar[TupleKind] = "pairs"

    @abstractmethod
    def per_pair(self, distance: Tensor, same: Tensor) -> Tensor:
        """One loss per pair: distance and same (bool) of one shape; so is the answer."""

    def compare(self, x: Tensor, y: Tensor, relation: Relation) -> Terms:
        """All ordered pairs."""

        def terms(tile: Tile) -> Terms:
            same = tile.same
            compared = same | tile.different
            losses = torch.where(compared, self.per_pair(tile.distances, same), 0)
            count = compared.sum()
            return Terms(losses.sum(), count, count, losses.detach().count_nonzero())

        return total_over_tiles(Comparison(x, y, self.distance, relation), terms)

    def compare_listed(self, x: Tensor, y: Tensor, indices: tuple[Tensor, ...]) -> Terms:
        """Pairs (anchor1, positive) and (anchor2, negative)."""
        anchor1, positive, anchor2, negative = indices
        rows, columns = torch.cat((anchor1, anchor2)), torch.cat((positive, negative))
        same = torch.arange(len(rows), device=rows.device) < len(anchor1)
        return reduced(self.per_pair(distances_at(x, y, rows, columns, self.distance), same), "mean")


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

    A pair of different classes at the margin or beyond costs nothing and is not pushed; nor are two equal rows, which
    cost margin²/2, for there is no direction to push them in.

    Source: Hadsell, Chopra & LeCun 2006, CVPR, eq. 4, whose Y is 0 for similar pairs (`same`), 1 for different ones.
    """
    return torch.where(same, distance, F.relu(margin - distance)).square() / 2


def hinge_embedding_loss(distance: Tensor, same: Tensor, margin: float) -> Tensor:
    """The L1 hinge of courses: d for the same class, max(0, margin - d) for different ones.

    distance (p,) >= 0, same (p,) bool -> (p,). Same-class pairs are pulled with one strength, however near; different
    ones at the margin or beyond cost nothing.

    Source: torch.nn.HingeEmbeddingLoss, with its y = 1 where `same`.
    """
    return torch.where(same, distance, F.relu(margin - distance))


def cosine_embedding_loss(distance: Tensor, same: Tensor, margin: float) -> Tensor:
    """1 - cos for the same class, max(0, cos - margin) for different ones, of `distance` = 1 - cos: (p,), (p,) -> (p,).

    Lengths do not count, and a zero row has cosine 0 with every row. Equal and opposite rows have no gradient: the
    cosine is flat there.

    Source: torch.nn.CosineEmbeddingLoss, with its y = 1 where `same`.
    """
    return torch.where(same, distance, F.relu(1 - distance - margin))


class ContrastiveLoss(PairLoss):
    """`contrastive_loss` on Euclidean distance; margin > 0 is how far apart different classes are pushed."""

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__("euclidean")
        positive_number("ContrastiveLoss margin", margin, "no pair of different classes would ever be pushed apart")
        self.margin = margin

    def per_pair(self, distance: Tensor, same: Tensor) -> Tensor:
        """See `PairLoss`."""
        return contrastive_loss(distance, same, self.margin)


class HingeEmbeddingLoss(PairLoss):
    """`hinge_embedding_loss` on Manhattan (L1) distance; scale the margin with the number of features."""

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__("manhattan")
        positive_number("HingeEmbeddingLoss margin", margin, "no pair of different classes would ever be pushed apart")
        self.margin = margin

    def per_pair(self, distance: Tensor, same: Tensor) -> Tensor:
        """See `PairLoss`."""
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
        """See `PairLoss`."""
        return cosine_embedding_loss(distance, same, self.margin)


class RowLoss(EmbeddingLoss):
    """Interface of losses that weigh an anchor's positives against its negatives: the mean over anchors.

    A miner's pairs say which positives and negatives an anchor has; without one it has all of them.
    """

    tuples: ClassVar[TupleKind] = "pairs"

    @abstractmethod
    def per_anchor(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """(b,) loss of each anchor of the tile, 0 for those that do not count; (b,) bool: which do."""

    def compare(self, x: Tensor, y: Tensor, relation: Relation) -> Terms:
        """All anchors."""

        def terms(tile: Tile) -> Terms:
            losses, counted = self.per_anchor(tile)
            count = counted.sum()
            return Terms(losses.sum(), count, count, losses.detach().count_nonzero())

        return total_over_tiles(Comparison(x, y, self.distance, relation), terms)

    def compare_listed(self, x: Tensor, y: Tensor, indices: tuple[Tensor, ...]) -> Terms:
        """The anchors of the listed pairs."""
        return self.compare(x, y, ListedPairs(indices, len(y)))
