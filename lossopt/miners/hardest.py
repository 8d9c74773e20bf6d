"""Miners that pick the nearest or the farthest: at most a few tuples per anchor, ties to the lowest row.

Letters: n anchors, m reference rows, b rows of a tile, p most positives of a row, w negatives of a window.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from lossopt.losses.distances import Distance, one_of
from lossopt.losses.tiles import Comparison, Tile
from lossopt.miners.candidates import Candidates, GroupRule
from lossopt.miners.columns import by_rows
from lossopt.miners.draws import RandomStream, products
from lossopt.miners.in_batch import BUDGET, TripletMiner, at_least_one
from lossopt.miners.tuples import Triplets

EasyPositiveNegatives = Literal["semi-hard", "hard"]
WindowPositives = Literal["all", "hardest", "easiest", "random"]


def farthest(distances: Tensor, allowed: Tensor) -> Tensor:
    """(b,) column of the largest allowed distance, NaN above all, ties to the lowest column; any if none is allowed."""
    # Clamped, for an allowed infinity must still beat what is not allowed.
    finite = distances.clamp(min=torch.finfo(distances.dtype).min)
    return finite.masked_fill_(~allowed, -math.inf).argmax(1)


def nearest(distances: Tensor, allowed: Tensor) -> Tensor:
    """(b,) column of the smallest allowed distance, NaN below all, ties to the lowest column; any if none is."""
    finite = distances.clamp(max=torch.finfo(distances.dtype).max)
    return finite.masked_fill_(~allowed, math.inf).argmin(1)


def farthest_positive(tile: Tile) -> Tensor:
    """(b,) column; of no meaning where there is none."""
    columns, filled = tile.positives
    return _at(columns, farthest(tile.distances.gather(1, columns), filled))


def nearest_positive(tile: Tile) -> Tensor:
    """(b,) column; of no meaning where there is none."""
    columns, filled = tile.positives
    return _at(columns, nearest(tile.distances.gather(1, columns), filled))


def _at(columns: Tensor, place: Tensor) -> Tensor:
    return columns.gather(1, place[:, None])[:, 0]


class BatchHardMiner(TripletMiner):
    """For each anchor its farthest positive and its nearest negative; ties go to the lowest row.

    Source: Hermans, Beyer & Leibe 2017, arXiv:1703.07737, eq. 5.
    """

    def __init__(
        self, distance: Distance = "euclidean", margin: float | None = None, group_rule: GroupRule = "any"
    ) -> None:
        super().__init__(margin, group_rule, distance)

    def mine(self, x: Tensor, y: Tensor, candidates: Candidates) -> Triplets:
        """At most n triplets, by anchor."""
        positive, negative = hardest_of_each(Comparison(x, y, self.distance, candidates))
        (anchor,) = ((candidates.positive_count > 0) & (candidates.negative_count > 0)).nonzero(as_tuple=True)
        return self.active(x, y, Triplets(anchor, positive[anchor], negative[anchor]))


def hardest_of_each(comparison: Comparison) -> tuple[Tensor, Tensor]:
    """Columns of the farthest positive and of the nearest negative, (n,) each."""
    positive, negative = by_rows(
        comparison, lambda tile: (farthest_positive(tile), nearest(tile.distances, tile.different))
    )
    return positive, negative


class EasyPositiveMiner(TripletMiner):
    """For each anchor its nearest positive and its nearest negative ("hard"), or the nearest beyond it ("semi-hard").

    Anchors with no negative beyond the positive are left out of "semi-hard": a collapsed network, whose distances are
    all equal, gives no triplets at all.

    Source: Xuan, Stylianou & Pless 2020, WACV, "Improved embeddings with easy positive triplet mining".
    """

    def __init__(
        self,
        negatives: EasyPositiveNegatives = "semi-hard",
        distance: Distance = "euclidean",
        margin: float | None = None,
        group_rule: GroupRule = "any",
    ) -> None:
        super().__init__(margin, group_rule, distance)
        one_of("negatives", negatives, EasyPositiveNegatives)
        self.negatives: EasyPositiveNegatives = negatives

    def mine(self, x: Tensor, y: Tensor, candidates: Candidates) -> Triplets:
        """At most n triplets, by anchor; ties to the lowest row."""
        positive, negative, valid = by_rows(Comparison(x, y, self.distance, candidates), self._of)
        (anchor,) = (valid & (candidates.positive_count > 0)).nonzero(as_tuple=True)
        return self.active(x, y, Triplets(anchor, positive[anchor], negative[anchor]))

    def _of(self, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
        """Of the tile's rows: positive, negative, and whether there is such a negative, (b,) each."""
        positive, allowed = nearest_positive(tile), tile.different
        if self.negatives == "semi-hard":
            # Not "d > d_ap": a NaN distance stays in, as the hardest.
            allowed &= ~(tile.distances <= tile.distances.gather(1, positive[:, None]))
        negative = nearest(tile.distances, allowed)
        return positive, negative, allowed.gather(1, negative[:, None])[:, 0]


class RankWindowMiner(TripletMiner):
    """For each anchor the negatives of rank skip + 1 to skip + window by distance: the `skip` hardest are left out.

    The very nearest "negatives" are where wrong labels show, and two names for one thing. Ties to the lowest row.

    Args:
        skip: >= 0; an anchor with no more negatives than this gives no triplets.
        window: >= 1.
        positives: of each anchor "all", the "hardest" (farthest), the "easiest" (nearest), or one at "random".
        negatives_per_positive: so many of the window, drawn for each (anchor, positive); None: the whole window.
        distance: how far apart two rows are.
        seed: of the random choices and of the sample.
        budget: at most so many triplets, a uniform sample; `dropped` says how many more there are.
        margin: see `TripletMiner`; looked at last.
        group_rule: see `InBatchMiner`.
    """

    def __init__(
        self,
        skip: int = 0,
        window: int = 16,
        positives: WindowPositives = "all",
        negatives_per_positive: int | None = None,
        distance: Distance = "euclidean",
        seed: int = 0,
        budget: int = BUDGET,
        margin: float | None = None,
        group_rule: GroupRule = "any",
    ) -> None:
        super().__init__(margin, group_rule, distance)
        if skip < 0:
            raise ValueError(f"skip must be >= 0, got {skip}.")
        one_of("positives", positives, WindowPositives)
        for name, given in (("window", window), ("budget", budget)):
            at_least_one(name, given)
        at_least_one("negatives_per_positive", 1 if negatives_per_positive is None else negatives_per_positive)
        self.skip, self.window, self.budget = skip, window, budget
        self.positives: WindowPositives = positives
        self.negatives_per_positive = negatives_per_positive
        self.stream = RandomStream(seed)

    def mine(self, x: Tensor, y: Tensor, candidates: Candidates) -> Triplets:
        """By anchor, positive, rank of the negative."""
        positive, ranked = by_rows(Comparison(x, y, self.distance, candidates), self._of)
        in_window = (candidates.negative_count - self.skip).clamp(0, ranked.shape[1])
        of_positives = candidates.positive_count
        used = of_positives if self.positives == "all" else of_positives.clamp(max=1)
        taken = in_window.clamp(max=self.negatives_per_positive or self.window)
        (anchor, place, number), dropped = products(used, taken, self.budget, self.stream)
        self.dropped = self.dropped + dropped
        if self.positives == "all":
            chosen = candidates.positive(anchor, place)
        elif self.positives == "random":
            chosen = candidates.positive(anchor, self.stream.below(of_positives)[anchor])
        else:
            chosen = positive[anchor]
        if self.negatives_per_positive is not None:  # different numbers of the window for each (anchor, positive)
            drawn = self.stream.distinct(in_window.repeat_interleave(used), self.negatives_per_positive)
            number = drawn[(used.cumsum(0) - used)[anchor] + place, number]
        return self.active(x, y, Triplets(anchor, chosen, ranked[anchor, number]))

    def _of(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """(b,) the hardest or easiest positive; (b, w) columns of the window, by rank, of no meaning beyond its end."""
        pick = nearest_positive if self.positives == "easiest" else farthest_positive
        return pick(tile), self._window(tile.distances, tile.different)

    def _window(self, distances: Tensor, allowed: Tensor) -> Tensor:
        """(b, w) columns of ranks skip + 1 to skip + window, w less where there are not so many columns."""
        rows, m = distances.shape
        most = min(self.skip + self.window, m)
        largest = torch.finfo(distances.dtype).max
        distances = distances.nan_to_num(-math.inf, largest, -largest).masked_fill_(~allowed, math.inf)
        limit = distances.topk(most, dim=1, largest=False, sorted=False).values.amax(1, keepdim=True)
        limit.clamp_(max=largest)  # what is not allowed is beyond it
        # Which of several at the limit belong to it, topk does not say: all are sorted, and the lowest rows are first.
        row, column = (distances <= limit).nonzero(as_tuple=True)
        order = distances[row, column].argsort(stable=True)
        order = order[row[order].argsort(stable=True)]
        count = torch.bincount(row, minlength=rows)
        place = (count.cumsum(0) - count)[:, None] + torch.arange(min(self.skip, most), most, device=row.device)
        ranked = torch.cat((column[order], column.new_zeros(1)))
        return ranked[place.clamp_(max=len(column))]
