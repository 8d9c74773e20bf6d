"""Miners of pairs, chosen by how far the anchor's other positives and negatives are.

Letters: n anchors, m reference rows, b rows of a tile, p most positives of a row.
"""

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from lossopt.losses.all_tuples import TupleKind
from lossopt.losses.distances import Distance
from lossopt.losses.tiles import Comparison
from lossopt.miners.candidates import Candidates, GroupRule
from lossopt.miners.draws import RandomStream
from lossopt.miners.hardest import hardest_of_each
from lossopt.miners.in_batch import BUDGET, InBatchMiner, at_least_one
from lossopt.miners.qualifying import Block, listed, sides
from lossopt.miners.tuples import Pairs


class HardPairMiner(InBatchMiner):
    """For each anchor the pair with its farthest positive and that with its nearest negative; ties to the lowest row.

    An anchor with positives only, or negatives only, gives that pair.
    """

    tuples: ClassVar[TupleKind] = "pairs"

    def __init__(self, distance: Distance = "euclidean", group_rule: GroupRule = "any") -> None:
        super().__init__(group_rule, distance)

    def mine(self, x: Tensor, y: Tensor, candidates: Candidates) -> Pairs:
        """At most n pairs of each kind, by anchor."""
        positive, negative = hardest_of_each(Comparison(x, y, self.distance, candidates))
        (anchor1,) = (candidates.positive_count > 0).nonzero(as_tuple=True)
        (anchor2,) = (candidates.negative_count > 0).nonzero(as_tuple=True)
        return Pairs(anchor1, positive[anchor1], anchor2, negative[anchor2])


class MultiSimilarityMiner(InBatchMiner):
    """Negatives not much farther than the farthest positive, positives not much nearer than the nearest negative.

        d(a,n) < max over positives of d(a,p) + epsilon
        d(a,p) > min over negatives of d(a,n) - epsilon

    Args:
        epsilon: >= 0, in the units of `distance`.
        distance: the paper compares cosines; with "cosine" (1 - cos) the inequalities are the paper's.
        seed: of the sample.
        budget: at most so many pairs, a uniform sample of both kinds together; `dropped` says how many more there are.
        group_rule: see `InBatchMiner`.

    Source: Wang, Han, Huang, Dong & Scott 2019, CVPR, "Multi-similarity loss with general pair weighting", eq. 6-7.
    """

    tuples: ClassVar[TupleKind] = "pairs"

    def __init__(
        self,
        epsilon: float = 0.1,
        distance: Distance = "cosine",
        seed: int = 0,
        budget: int = BUDGET,
        group_rule: GroupRule = "any",
    ) -> None:
        super().__init__(group_rule, distance)
        if not 0 <= epsilon < math.inf:
            raise ValueError(f"MultiSimilarityMiner epsilon must be a finite number >= 0, got {epsilon}.")
        at_least_one("budget", budget)
        self.epsilon, self.budget = epsilon, budget
        self.stream = RandomStream(seed)

    def mine(self, x: Tensor, y: Tensor, candidates: Candidates) -> Pairs:
        """By anchor, then column."""
        comparison = Comparison(x, y, self.distance, candidates)
        (anchor, _, column), dropped = listed(lambda: self._blocks(comparison), self.budget, self.stream)
        self.dropped = self.dropped + dropped
        same = candidates.labels[anchor] == candidates.ref_labels[column]
        return Pairs(anchor[same], column[same], anchor[~same], column[~same])

    def _blocks(self, comparison: Comparison) -> Iterator[Block]:
        """Pairs of both kinds, in the form of triplets whose second column says nothing."""
        for tile in comparison.tiles():
            columns, to_positive, to_negative = sides(tile)
            farthest = to_positive.nan_to_num(-math.inf, math.inf, -math.inf).amax(1, keepdim=True)
            nearest = to_negative.nan_to_num(math.inf, math.inf, -math.inf).amin(1, keepdim=True)
            chosen = (to_negative < farthest + self.epsilon).to(torch.uint8)
            hard = (to_positive > nearest - self.epsilon).to(torch.uint8)
            chosen.scatter_reduce_(1, columns, hard, "amax")  # columns without a positive are those of some other row
            yield Block(tile.start, columns[:, :1], chosen.bool()[:, None])
