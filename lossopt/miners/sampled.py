"""Miners that take all tuples, or draw some, from labels alone: by arithmetic on class sizes, none is listed in vain.

Letters: n anchors, m reference rows, d embedding, b rows of a tile, p most positives of a row, t tuples.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from lossopt.losses.all_tuples import TupleKind
from lossopt.losses.distances import Distance, unit_rows
from lossopt.losses.tiles import Comparison, Tile
from lossopt.miners.candidates import Candidates, GroupRule
from lossopt.miners.columns import by_rows
from lossopt.miners.draws import RandomStream, products
from lossopt.miners.in_batch import BUDGET, InBatchMiner, TripletMiner, at_least_one
from lossopt.miners.qualifying import listed, one_each, qualifying
from lossopt.miners.tuples import Pairs, Triplets

_NEVER = 1e30
_LEAST = -80.0  # of a logarithm relative to the row's largest: exp is slow, and rounds, below the normal numbers


class RandomTripletMiner(TripletMiner):
    """For each anchor up to `triplets_per_anchor` different triplets, every one equally likely.

    Its positives and its negatives are each gone round in a random order, so both are used as evenly as can be.

    Args:
        triplets_per_anchor: >= 1.
        seed: of the draws.
        margin: see `TripletMiner`; triplets are drawn first and left out then.
        distance: of the margin.
        group_rule: see `InBatchMiner`.
    """

    def __init__(
        self,
        triplets_per_anchor: int = 1,
        seed: int = 0,
        margin: float | None = None,
        distance: Distance = "euclidean",
        group_rule: GroupRule = "any",
    ) -> None:
        super().__init__(margin, group_rule, distance)
        at_least_one("triplets_per_anchor", triplets_per_anchor)
        self.triplets_per_anchor = triplets_per_anchor
        self.stream = RandomStream(seed)

    def mine(self, x: Tensor, y: Tensor, candidates: Candidates) -> Triplets:
        """Draw j of an anchor: positive j mod P and negative (j + j div lcm(P, N)) mod N, all different for j < P N."""
        of_same, of_different = candidates.positive_count, candidates.negative_count
        draws = (of_same * of_different).clamp(max=self.triplets_per_anchor)
        anchor = torch.repeat_interleave(draws)
        draw = torch.arange(len(anchor), device=x.device) - (draws.cumsum(0) - draws)[anchor]
        positives, negatives = (self.stream.distinct(of, self.triplets_per_anchor) for of in (of_same, of_different))
        of_same, of_different = of_same[anchor], of_different[anchor]
        lap = draw // torch.lcm(of_same, of_different)
        positive = candidates.positive(anchor, positives[anchor, draw % of_same])
        negative = candidates.negative(anchor, negatives[anchor, (draw + lap) % of_different])
        return self.active(x, y, Triplets(anchor, positive, negative))


class RandomPairMiner(InBatchMiner):
    """For each anchor up to so many different positives and negatives, every one equally likely.

    Args:
        positives_per_anchor: >= 1; negatives_per_anchor: likewise.
        seed: of the draws.
        group_rule: see `InBatchMiner`.
    """

    tuples: ClassVar[TupleKind] = "pairs"

    def __init__(
        self,
        positives_per_anchor: int = 1,
        negatives_per_anchor: int = 1,
        seed: int = 0,
        group_rule: GroupRule = "any",
    ) -> None:
        super().__init__(group_rule)
        at_least_one("positives_per_anchor", positives_per_anchor)
        at_least_one("negatives_per_anchor", negatives_per_anchor)
        self.positives_per_anchor = positives_per_anchor
        self.negatives_per_anchor = negatives_per_anchor
        self.stream = RandomStream(seed)

    def mine(self, x: Tensor, y: Tensor, candidates: Candidates) -> Pairs:
        """An anchor with positives only, or negatives only, gives those."""
        anchor1, number1 = self._drawn(candidates.positive_count, self.positives_per_anchor)
        anchor2, number2 = self._drawn(candidates.negative_count, self.negatives_per_anchor)
        return Pairs(anchor1, candidates.positive(anchor1, number1), anchor2, candidates.negative(anchor2, number2))

    def _drawn(self, count: Tensor, most: int) -> tuple[Tensor, Tensor]:
        numbers = self.stream.distinct(count, most)
        anchor, place = (numbers >= 0).nonzero(as_tuple=True)
        return anchor, numbers[anchor, place]


class AllTripletsMiner(TripletMiner):
    """Every triplet, or a uniform sample of `budget` of them; `dropped` says how many were left out.

    A loss without a miner compares all of them at once, exactly and much faster; this is for losses that cannot, and
    for looking at them.

    Args:
        budget: >= 1.
        seed: of the sample.
        margin: see `TripletMiner`; only triplets that it keeps are counted and sampled.
        distance: of the margin.
        group_rule: see `InBatchMiner`.
    """

    def __init__(
        self,
        budget: int = BUDGET,
        seed: int = 0,
        margin: float | None = None,
        distance: Distance = "euclidean",
        group_rule: GroupRule = "any",
    ) -> None:
        super().__init__(margin, group_rule, distance)
        at_least_one("budget", budget)
        self.budget = budget
        self.stream = RandomStream(seed)

    def mine(self, x: Tensor, y: Tensor, candidates: Candidates) -> Triplets:
        """By anchor, then positive."""
        if self.margin is None:
            counts = candidates.positive_count, candidates.negative_count
            (anchor, place, number), dropped = products(*counts, self.budget, self.stream)
            found = Triplets(anchor, candidates.positive(anchor, place), candidates.negative(anchor, number))
        else:
            margin, comparison = self.margin, Comparison(x, y, self.distance, candidates)
            blocks = lambda: qualifying(comparison, lambda own, other: other < own + margin)  # noqa: E731
            found, dropped = listed(blocks, self.budget, self.stream)
        self.dropped = self.dropped + dropped
        return found


class AllPairsMiner(InBatchMiner):
    """Every pair, or a uniform sample of `budget` of them; `dropped` says how many were left out.

    Positive and negative pairs are one pool, so that a sample holds as large a share of positives as the batch: with
    few images of many classes very few. A loss without a miner compares all of them at once.

    Args:
        budget: >= 1.
        seed: of the sample.
        group_rule: see `InBatchMiner`.
    """

    tuples: ClassVar[TupleKind] = "pairs"

    def __init__(self, budget: int = BUDGET, seed: int = 0, group_rule: GroupRule = "any") -> None:
        super().__init__(group_rule)
        at_least_one("budget", budget)
        self.budget = budget
        self.stream = RandomStream(seed)

    def mine(self, x: Tensor, y: Tensor, candidates: Candidates) -> Pairs:
        """By anchor."""
        of_same = candidates.positive_count
        counts = of_same + candidates.negative_count
        (anchor, _, number), dropped = products(torch.ones_like(counts), counts, self.budget, self.stream)
        self.dropped = self.dropped + dropped
        same = number < of_same[anchor]
        anchor1, anchor2 = anchor[same], anchor[~same]
        negative = candidates.negative(anchor2, number[~same] - of_same[anchor2])
        return Pairs(anchor1, candidates.positive(anchor1, number[same]), anchor2, negative)


class DistanceWeightedMiner(TripletMiner):
    """Of each (anchor, positive) one negative, drawn so that near and far ones are seen equally often.

    Between random points of the unit sphere in d dimensions the distance r has density

        q(r) = r^(d - 2) (1 - r²/4)^((d - 3)/2)

    and a negative at distance r is drawn with a probability proportional to 1/q(max(r, cutoff)), rows scaled to unit
    length. Anchors without a negative nearer than `nonzero_loss_cutoff` are left out. The weights of a row are taken
    relative to its largest: of the whole batch, as in pytorch-metric-learning, those of most rows would all be 0 in
    float32 from some hundred dimensions up.

    Args:
        cutoff: > 0; nearer negatives are no more likely than one at this distance, lest noise decides.
        nonzero_loss_cutoff: above `cutoff`, at most 2; a negative must be nearer than this.
        seed: of the draws.
        margin: see `TripletMiner`; triplets are drawn first and left out then.
        group_rule: see `InBatchMiner`.

    Source: Wu, Manmatha, Smola & Krähenbühl 2017, ICCV, "Sampling matters in deep embedding learning", section 4.
    """

    def __init__(
        self,
        cutoff: float = 0.5,
        nonzero_loss_cutoff: float = 1.4,
        seed: int = 0,
        margin: float | None = None,
        group_rule: GroupRule = "any",
    ) -> None:
        super().__init__(margin, group_rule, "euclidean")
        if not 0 < cutoff < nonzero_loss_cutoff <= 2:
            raise ValueError(
                "DistanceWeightedMiner needs 0 < cutoff < nonzero_loss_cutoff <= 2, the distances between rows of "
                f"length 1, got {cutoff} and {nonzero_loss_cutoff}; the paper has 0.5 and 1.4."
            )
        self.cutoff, self.nonzero_loss_cutoff = cutoff, nonzero_loss_cutoff
        self.stream = RandomStream(seed)

    def mine(self, x: Tensor, y: Tensor, candidates: Candidates) -> Triplets:
        """By anchor, then positive."""
        x, y = (unit_rows(x), unit_rows(y)) if y is not x else (unit_rows(x),) * 2
        comparison = Comparison(x, y, "squared", candidates)
        return self.active(x, y, one_each(*by_rows(comparison, lambda tile: self._of(tile, x.shape[1]))))

    def _of(self, tile: Tile, dimensions: int) -> tuple[Tensor, Tensor, Tensor]:
        """Positive, negative, and whether there is such a triplet, (b, p) each."""
        columns, filled = tile.positives
        weights = self._weights(tile.distances.masked_fill(~tile.different, math.inf), dimensions)
        so_far = weights.cumsum(1)
        target = self.stream.uniform(tuple(columns.shape), columns.device) * so_far[:, -1:]
        negative = torch.searchsorted(so_far, target.to(so_far.dtype), right=True).clamp_(max=so_far.shape[1] - 1)
        return columns, negative, filled & (weights.gather(1, negative) > 0)

    def _weights(self, squared: Tensor, dimensions: int) -> Tensor:
        """(b, m) 1/q, up to a factor of the row; 0 from the outer cutoff on. squared: (b, m); it is overwritten."""
        # Zeros and ones in floats: filling a mask that changes from cell to cell is many times slower.
        allowed = squared.clone().lt_(self.nonzero_loss_cutoff**2)
        squared.nan_to_num_(4).clamp_(self.cutoff**2, self.nonzero_loss_cutoff**2)
        # 1/q = (r² (1 - r²/4))^(-(d - 3)/2) / r
        logarithm = squared.mul(0.25).neg_().add_(1).mul_(squared).log_().mul_(-(dimensions - 3) / 2)
        logarithm.add_((allowed - 1).mul_(_NEVER))
        logarithm.sub_(logarithm.amax(1, keepdim=True)).clamp_(min=_LEAST)
        return logarithm.exp_().mul_(squared.rsqrt_()).mul_(allowed)
