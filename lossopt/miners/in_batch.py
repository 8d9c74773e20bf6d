"""Miners that choose within one batch: what is compared is decided on the (n, m) distances, without gradient.

`miner(embeddings, labels, ref_emb=None, ref_labels=None)`: anchors are rows of the embeddings; positives and negatives
are rows of the reference, which is the batch itself, without self-pairs, unless given. Anchors that lack a positive or
a negative are left out; if none is left, the tuples are empty.

A NaN distance counts as the hardest of all where one is picked (batch-hard, hard pairs, easy-positive), and fails every
inequality (semi-hard). Either way the losses of lossopt are NaN for a NaN row, so that mining cannot hide one.
Letters: n anchors, m reference rows, d embedding, p pairs, t triplets.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lossopt.losses.all_tuples import TupleKind, join_ranges, same_and_different
from lossopt.losses.distances import Distance, distance_matrix, float32_or_wider, one_of
from lossopt.miners.tuples import Pairs, Triplets

SemiHardNegatives = Literal["all", "hardest", "random"]
EasyPositiveNegatives = Literal["semi-hard", "hard"]


def farthest(distances: Tensor, allowed: Tensor) -> Tensor:
    """(n,) column of the largest allowed distance, NaN above all, ties to the lowest column; 0 if none is allowed."""
    return distances.masked_fill(~allowed, -math.inf).argmax(1)


def nearest(distances: Tensor, allowed: Tensor) -> Tensor:
    """(n,) column of the smallest allowed distance, NaN below all, ties to the lowest column; 0 if none is allowed."""
    # Clamped, for an allowed infinity must still beat what is not allowed.
    finite = distances.clamp(max=torch.finfo(distances.dtype).max)
    return finite.masked_fill(~allowed, math.inf).argmin(1)


class RandomStream(nn.Module):
    """Random numbers of its own, on the CPU so that every device sees the same; its place is kept in the state dict."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        if seed < 0:
            raise ValueError(f"seed must be >= 0, got {seed}.")
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Float32 numbers in [0, 1), of any shape."""
        return torch.rand(shape, generator=self.generator, dtype=torch.float32).to(device)

    def shuffled(self, allowed: Tensor) -> Tensor:
        """Columns of `allowed` (n, m), the allowed ones of each row first and in random order: (n, m) int64."""
        return self.uniform(tuple(allowed.shape), allowed.device).masked_fill(~allowed, 2.0).argsort(dim=1)

    def get_extra_state(self) -> Tensor:
        """The generator's state, uint8."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Continue where `get_extra_state` was taken."""
        self.generator.set_state(state.cpu())


class InBatchMiner(nn.Module, ABC):
    """Interface of the miners below; `tuples` says what they return."""

    tuples: ClassVar[TupleKind]

    @abstractmethod
    def mine(self, x: Tensor, y: Tensor, same: Tensor, different: Tensor) -> Pairs | Triplets:
        """Choose among n > 0 rows of x (n, d) and m > 0 rows of y (m, d); same and different are (n, m) bool."""

    @torch.no_grad()
    def forward(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> Pairs | Triplets:
        """Row numbers (int64, on the device of the embeddings) of the tuples to compare.

        Args:
            embeddings: (n, d), any floating dtype; distances are taken in float32 or wider.
            labels: (n,) class of each row.
            ref_emb: (m, d) rows that positives and negatives are taken from; None: the batch itself, no self-pairs.
            ref_labels: (m,) their classes.

        Raises:
            ValueError: labels that are missing or not one per row.
        """
        x, y = float32_or_wider(embeddings, ref_emb)
        same, different = same_and_different(embeddings, labels, ref_emb, ref_labels)
        if same.numel() == 0:
            none = torch.empty(0, dtype=torch.int64, device=embeddings.device)
            return Pairs(none, none, none, none) if self.tuples == "pairs" else Triplets(none, none, none)
        return self.mine(x, y, same, different)


def _at_least_one(name: str, given: int) -> None:
    if given < 1:
        raise ValueError(f"{name} must be >= 1, got {given}: the miner would return nothing.")


class RandomTripletMiner(InBatchMiner):
    """For each anchor up to `triplets_per_anchor` different triplets, every one equally likely.

    Its positives and its negatives are each gone round in a random order, so both are used as evenly as can be.
    """

    tuples: ClassVar[TupleKind] = "triplets"

    def __init__(self, triplets_per_anchor: int = 1, seed: int = 0) -> None:
        super().__init__()
        _at_least_one("triplets_per_anchor", triplets_per_anchor)
        self.triplets_per_anchor = triplets_per_anchor
        self.stream = RandomStream(seed)

    def mine(self, x: Tensor, y: Tensor, same: Tensor, different: Tensor) -> Triplets:
        """Draw j of an anchor: positive j mod P and negative (j + j div lcm(P, N)) mod N, all different for j < P N."""
        positives, negatives = self.stream.shuffled(same), self.stream.shuffled(different)
        of_same, of_different = same.sum(1), different.sum(1)
        draws = (of_same * of_different).clamp(max=self.triplets_per_anchor)
        anchor = torch.repeat_interleave(draws)
        draw = torch.arange(len(anchor), device=x.device) - (draws.cumsum(0) - draws)[anchor]
        of_same, of_different = of_same[anchor], of_different[anchor]
        lap = draw // torch.lcm(of_same, of_different)
        positive = positives[anchor, draw % of_same]
        negative = negatives[anchor, (draw + lap) % of_different]
        return Triplets(anchor, positive, negative)


class RandomPairMiner(InBatchMiner):
    """For each anchor up to so many different positives and negatives, every one equally likely."""

    tuples: ClassVar[TupleKind] = "pairs"

    def __init__(self, positives_per_anchor: int = 1, negatives_per_anchor: int = 1, seed: int = 0) -> None:
        super().__init__()
        _at_least_one("positives_per_anchor", positives_per_anchor)
        _at_least_one("negatives_per_anchor", negatives_per_anchor)
        self.positives_per_anchor = positives_per_anchor
        self.negatives_per_anchor = negatives_per_anchor
        self.stream = RandomStream(seed)

    def mine(self, x: Tensor, y: Tensor, same: Tensor, different: Tensor) -> Pairs:
        """An anchor with positives only, or negatives only, gives those."""
        return Pairs(*self._drawn(same, self.positives_per_anchor), *self._drawn(different, self.negatives_per_anchor))

    def _drawn(self, allowed: Tensor, per_anchor: int) -> tuple[Tensor, ...]:
        chosen = self.stream.shuffled(allowed)[:, :per_anchor]
        anchor, place = allowed.gather(1, chosen).nonzero(as_tuple=True)
        return anchor, chosen[anchor, place]


class BatchHardMiner(InBatchMiner):
    """For each anchor its farthest positive and its nearest negative; ties go to the lowest row.

    Source: Hermans, Beyer & Leibe 2017, arXiv:1703.07737, eq. 5.
    """

    tuples: ClassVar[TupleKind] = "triplets"

    def __init__(self, distance: Distance = "euclidean") -> None:
        super().__init__()
        one_of("distance", distance, Distance)
        self.distance: Distance = distance

    def mine(self, x: Tensor, y: Tensor, same: Tensor, different: Tensor) -> Triplets:
        """At most n triplets, by anchor."""
        distances = distance_matrix(x, y, self.distance)
        (anchor,) = (same.any(1) & different.any(1)).nonzero(as_tuple=True)
        return Triplets(anchor, farthest(distances, same)[anchor], nearest(distances, different)[anchor])


class HardPairMiner(InBatchMiner):
    """For each anchor the pair with its farthest positive and that with its nearest negative; ties to the lowest row.

    An anchor with positives only, or negatives only, gives that pair.
    """

    tuples: ClassVar[TupleKind] = "pairs"

    def __init__(self, distance: Distance = "euclidean") -> None:
        super().__init__()
        one_of("distance", distance, Distance)
        self.distance: Distance = distance

    def mine(self, x: Tensor, y: Tensor, same: Tensor, different: Tensor) -> Pairs:
        """At most n pairs of each kind, by anchor."""
        distances = distance_matrix(x, y, self.distance)
        (anchor1,), (anchor2,) = same.any(1).nonzero(as_tuple=True), different.any(1).nonzero(as_tuple=True)
        return Pairs(anchor1, farthest(distances, same)[anchor1], anchor2, nearest(distances, different)[anchor2])


class SemiHardMiner(InBatchMiner):
    """Triplets whose negative is beyond the positive by less than `margin`: d(a,p) < d(a,n) < d(a,p) + margin.

    Args:
        margin: > 0, in the units of `distance`.
        negatives: of each (anchor, positive) "all" such, the "hardest" (nearest, ties to the lowest row), or one at
            "random".
        distance: as in the losses; the paper's is "squared", between unit-length rows.
        seed: of the random choice.

    Source: Schroff, Kalenichenko & Philbin 2015, CVPR, eq. 4 with the margin of section 3.2.
    """

    tuples: ClassVar[TupleKind] = "triplets"

    def __init__(
        self,
        margin: float = 0.2,
        negatives: SemiHardNegatives = "all",
        distance: Distance = "euclidean",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < margin < math.inf:
            raise ValueError(
                f"SemiHardMiner needs a finite margin > 0, got {margin}. A zero-width band keeps no triplets; for "
                "negatives that are nearer than the positive use BatchHardMiner."
            )
        one_of("negatives", negatives, SemiHardNegatives)
        one_of("distance", distance, Distance)
        self.margin = margin
        self.negatives: SemiHardNegatives = negatives
        self.distance: Distance = distance
        self.stream = RandomStream(seed)

    def mine(self, x: Tensor, y: Tensor, same: Tensor, different: Tensor) -> Triplets:
        """By anchor, then positive, then distance of the negative: each band is a run of the sorted negatives."""
        distances = distance_matrix(x, y, self.distance)
        ascending, order = distances.masked_fill(~different | distances.isnan(), math.inf).sort(dim=1, stable=True)
        ascending, distances = ascending.contiguous(), distances.contiguous()
        first = torch.searchsorted(ascending, distances, right=True)
        count = torch.searchsorted(ascending, distances + self.margin) - first
        anchor, positive = (same & ~distances.isnan() & (count > 0)).nonzero(as_tuple=True)
        first, count = first[anchor, positive], count[anchor, positive]
        if self.negatives == "random":
            # The product may round up to `count`, one past the band.
            first = first + (self.stream.uniform((len(count),), x.device) * count).long().minimum(count - 1)
        if self.negatives != "all":
            count = torch.ones_like(count)
        return Triplets(*join_ranges(order, anchor, positive, first, count))


class EasyPositiveMiner(InBatchMiner):
    """For each anchor its nearest positive and its nearest negative ("hard"), or the nearest beyond it ("semi-hard").

    Anchors with no negative beyond the positive are left out of "semi-hard": a collapsed network, whose distances are
    all equal, gives no triplets at all.

    Source: Xuan, Stylianou & Pless 2020, WACV, "Improved embeddings with easy positive triplet mining".
    """

    tuples: ClassVar[TupleKind] = "triplets"

    def __init__(self, negatives: EasyPositiveNegatives = "semi-hard", distance: Distance = "euclidean") -> None:
        super().__init__()
        one_of("negatives", negatives, EasyPositiveNegatives)
        one_of("distance", distance, Distance)
        self.negatives: EasyPositiveNegatives = negatives
        self.distance: Distance = distance

    def mine(self, x: Tensor, y: Tensor, same: Tensor, different: Tensor) -> Triplets:
        """At most n triplets, by anchor; ties to the lowest row."""
        distances = distance_matrix(x, y, self.distance)
        positive = nearest(distances, same)
        if self.negatives == "semi-hard":
            # Not "d > d_ap": a NaN distance stays in, as the hardest.
            different = different & ~(distances <= distances.gather(1, positive[:, None]))
        (anchor,) = (same.any(1) & different.any(1)).nonzero(as_tuple=True)
        return Triplets(anchor, positive[anchor], nearest(distances, different)[anchor])
