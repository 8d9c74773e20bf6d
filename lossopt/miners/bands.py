"""Miners of the triplets whose negative lies in a certain place beside the positive: semi-hard, hard, angular.

Letters: n anchors, m reference rows, d embedding, b rows of a tile, p most positives of a row.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from lossopt.losses.distances import Distance, one_of, unit_rows, wide
from lossopt.losses.tiles import Comparison, Tile
from lossopt.miners.candidates import Candidates, GroupRule
from lossopt.miners.columns import by_rows
from lossopt.miners.draws import RandomStream
from lossopt.miners.in_batch import BUDGET, TripletMiner, at_least_one
from lossopt.miners.qualifying import Block, listed, one_at_random, one_each, pieces, qualifying, sides
from lossopt.miners.tuples import Triplets

Negatives = Literal["all", "hardest", "random"]


class BandMiner(TripletMiner):
    """Interface of miners that keep the negatives of one band of distances around that of the positive."""

    def __init__(
        self,
        negatives: Negatives,
        distance: Distance,
        seed: int,
        budget: int,
        margin: float | None,
        group_rule: GroupRule,
    ) -> None:
        super().__init__(margin, group_rule, distance)
        one_of("negatives", negatives, Negatives)
        at_least_one("budget", budget)
        self.negatives: Negatives = negatives
        self.budget = budget
        self.stream = RandomStream(seed)

    @abstractmethod
    def within(self, to_positive: Tensor, to_negative: Tensor) -> Tensor:
        """Whether d(a,n) is in the band of d(a,p); bool of the shape they broadcast to; false where either is NaN."""

    @abstractmethod
    def hardest(self, to_positive: Tensor, to_negative: Tensor) -> Tensor:
        """(b, p) column of the nearest negative in the band, where there is one.

        to_positive: (b, p), NaN where there is none. to_negative: (b, m), infinite where there is none.
        """

    def mine(self, x: Tensor, y: Tensor, candidates: Candidates) -> Triplets:
        """By anchor, positive, negative."""
        comparison = Comparison(x, y, self.distance, candidates)
        if self.negatives == "hardest":
            return one_each(*by_rows(comparison, self._hardest_of))
        if self.negatives == "random":
            return one_at_random(qualifying(comparison, self.within), self.stream)
        found, dropped = listed(lambda: qualifying(comparison, self.within), self.budget, self.stream)
        self.dropped = self.dropped + dropped
        return found

    def _hardest_of(self, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
        """Positive, negative, and whether they are in the band, (b, p) each."""
        columns, to_positive, to_negative = sides(tile)
        largest = torch.finfo(to_negative.dtype).max
        # An infinite distance must still beat what is no negative.
        negative = self.hardest(to_positive, to_negative.nan_to_num(math.inf, largest, -largest))
        return columns, negative, self.within(to_positive, to_negative.gather(1, negative))


class SemiHardMiner(BandMiner):
    """Triplets whose negative is beyond the positive by less than `margin`: d(a,p) < d(a,n) < d(a,p) + margin.

    Args:
        margin: > 0, in the units of `distance`.
        negatives: of each (anchor, positive) "all" such, the "hardest" (nearest, ties to the lowest row), or one at
            "random".
        distance: as in the losses; the paper's is "squared", between unit-length rows.
        seed: of the random choice and of the sample.
        budget: of "all" at most so many triplets, a uniform sample; `dropped` says how many more there are.
        group_rule: see `InBatchMiner`.

    Source: Schroff, Kalenichenko & Philbin 2015, CVPR, eq. 4 with the margin of section 3.2.
    """

    def __init__(
        self,
        margin: float = 0.2,
        negatives: Negatives = "all",
        distance: Distance = "euclidean",
        seed: int = 0,
        budget: int = BUDGET,
        group_rule: GroupRule = "any",
    ) -> None:
        if not 0 < margin < math.inf:
            raise ValueError(
                f"SemiHardMiner needs a finite margin > 0, got {margin}. A zero-width band keeps no triplets; for "
                "negatives that are nearer than the positive use HardMiner."
            )
        super().__init__(negatives, distance, seed, budget, margin, group_rule)
        self.width = margin

    def within(self, to_positive: Tensor, to_negative: Tensor) -> Tensor:
        """See `BandMiner`."""
        return (to_negative > to_positive).logical_and_(to_negative < to_positive + self.width)

    def hardest(self, to_positive: Tensor, to_negative: Tensor) -> Tensor:
        """See `BandMiner`; the nearest negative beyond each positive, in the band or not."""
        largest = torch.finfo(to_negative.dtype).max
        found = []
        for own in to_positive.split(1, dim=1):
            # Raised out of reach by arithmetic: filling a mask that changes from cell to cell is five times slower.
            found.append(to_negative.clone().le_(own).mul_(largest).add_(to_negative).argmin(1))
        return torch.stack(found, 1)


class HardMiner(BandMiner):
    """Triplets whose negative is not beyond the positive: d(a,n) <= d(a,p).

    Their hinge is at least the margin of any loss, so there is none here to keep the active ones by.

    Args:
        negatives: of each (anchor, positive) "all" such, the "hardest" (nearest, ties to the lowest row), or one at
            "random".
        distance: how far apart two rows are.
        seed: of the random choice and of the sample.
        budget: of "all" at most so many triplets, a uniform sample; `dropped` says how many more there are.
        group_rule: see `InBatchMiner`.

    Source: pytorch-metric-learning's TripletMarginMiner, type "hard".
    """

    def __init__(
        self,
        negatives: Negatives = "all",
        distance: Distance = "euclidean",
        seed: int = 0,
        budget: int = BUDGET,
        group_rule: GroupRule = "any",
    ) -> None:
        super().__init__(negatives, distance, seed, budget, None, group_rule)

    def within(self, to_positive: Tensor, to_negative: Tensor) -> Tensor:
        """See `BandMiner`."""
        return to_negative <= to_positive

    def hardest(self, to_positive: Tensor, to_negative: Tensor) -> Tensor:
        """See `BandMiner`; the anchor's nearest negative."""
        return to_negative.argmin(1, keepdim=True).expand_as(to_positive)


class AngularMiner(TripletMiner):
    """Triplets whose angle at the negative is too wide: atan(|a - p| / (2 |n - c|)) > angle, c between a and p.

    On rows scaled to unit length. With |n - c|² = (|n - a|² + |n - p|²)/2 - |a - p|²/4 that is
    |n - a|² + |n - p|² < |a - p|² / (2 sin² angle), one product of (a + p) with every n.

    Args:
        angle: between 0 and 90 degrees, neither of them.
        seed: of the sample.
        budget: at most so many triplets, a uniform sample; `dropped` says how many more there are.
        margin: see `TripletMiner`; of Euclidean distances.
        group_rule: see `InBatchMiner`.

    Source: Wang, Zhou, Wen, Liu & Lin 2017, ICCV, "Deep metric learning with angular loss", eq. 3 and 4, as read by
    pytorch-metric-learning's AngularMiner.
    """

    def __init__(
        self,
        angle: float = 20.0,
        seed: int = 0,
        budget: int = BUDGET,
        margin: float | None = None,
        group_rule: GroupRule = "any",
    ) -> None:
        super().__init__(margin, group_rule, "euclidean")
        if not 0 < angle < 90:
            raise ValueError(f"AngularMiner angle must be between 0 and 90 degrees, got {angle}; 20 to 45 are usual.")
        at_least_one("budget", budget)
        self.angle, self.budget = angle, budget
        self.stream = RandomStream(seed)

    def mine(self, x: Tensor, y: Tensor, candidates: Candidates) -> Triplets:
        """By anchor, positive, negative."""
        x, y = (unit_rows(x), unit_rows(y)) if y is not x else (unit_rows(x),) * 2
        comparison = Comparison(x, y, "euclidean", candidates)
        found, dropped = listed(lambda: self._blocks(comparison), self.budget, self.stream)
        self.dropped = self.dropped + dropped
        return found

    def _blocks(self, comparison: Comparison) -> Iterator[Block]:
        y = wide(comparison.y)
        squares = y.square().sum(1)
        share = 1 / (2 * math.sin(math.radians(self.angle)) ** 2)
        for start in range(0, len(comparison.x), comparison.rows_per_tile):
            stop = min(start + comparison.rows_per_tile, len(comparison.x))
            x = wide(comparison.x[start:stop])
            columns, filled = comparison.relation.positives(start, stop)
            negatives = comparison.relation.different(start, stop)
            far = None if self.margin is None else comparison.distances(start, stop)
            for rows, slots in pieces(negatives.shape, columns.shape[1]):
                a, p = x[rows, None], y[columns[rows, slots]]
                # |n|² - n·(a + p) < (share |a - p|² - |a|² - |p|²) / 2
                bound = (share * (a - p).square() - a.square() - p.square()).sum(2) / 2
                sums = (a + p).flatten(0, 1)
                mask = torch.addmm(squares, sums, y.T, alpha=-1).view(*bound.shape, -1) < bound[:, :, None]
                mask &= negatives[rows, None]
                mask &= filled[rows, slots, None]
                if far is not None and self.margin is not None:
                    own = far[rows].gather(1, columns[rows, slots])[:, :, None]
                    mask &= far[rows, None] < own + self.margin
                yield Block(start + rows.start, columns[rows, slots], mask)
