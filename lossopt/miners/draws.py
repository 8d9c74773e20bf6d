"""Random choices that continue from a checkpoint: numbers, sets of numbers, and those that a budget leaves.

Letters: r rows, k numbers of each.
"""

import math

import torch
from torch import Tensor, nn

_FEW = 2**12  # so many numbers are shuffled rather than skipped through


class RandomStream(nn.Module):
    """Random numbers of its own, on the CPU so that every device sees the same; its place is kept in the state dict."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        if seed < 0:
            raise ValueError(f"seed must be >= 0, got {seed}.")
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Numbers in [0, 1), float64 (rounded to float32 on devices that have none)."""
        drawn = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return (drawn.float() if device.type == "mps" else drawn).to(device)

    def below(self, count: Tensor) -> Tensor:
        """A whole number >= 0 and < count for each count > 0, int64; 0 where the count is 0."""
        drawn = (self.uniform(tuple(count.shape), count.device) * count).long()
        return drawn.minimum(count - 1).clamp_(min=0)  # the product may round up to `count`

    def distinct(self, count: Tensor, most: int) -> Tensor:
        """Of each row up to `most` different whole numbers below its count (r,), in random order: (r, k) int64.

        k is the most that any row has; -1 fills the others. Every ordered choice is equally likely. O(r k²).

        Source: R. Floyd's sampling, in Bentley & Floyd 1987, Communications of the ACM 30(9).
        """
        most = min(most, int(count.max())) if len(count) else 0
        taken = count.clamp(max=most)
        picked = torch.full((len(count), most), -1, device=count.device)
        for place in range(most):
            last = count - taken + place
            number = self.below(last + 1)
            again = (picked[:, :place] == number[:, None]).any(1)
            picked[:, place] = torch.where(place < taken, torch.where(again, last, number), -1)
        order = self.uniform((len(count), most), count.device).masked_fill_(picked < 0, 2).argsort(1)
        return picked.gather(1, order)

    def sample(self, total: int, size: int) -> Tensor:
        """`size` different whole numbers below `total`, ascending: int64 on the CPU. Every set is equally likely.

        Time and memory grow with `size`, not with `total`: ordered uniform numbers are sums of exponential gaps, and
        the different whole numbers that they fall on, with some left out at random, are such a set.
        """
        if total <= _FEW:
            return torch.randperm(total, generator=self.generator)[:size].sort().values
        if 2 * size > total:
            return _without(total, self.sample(total, total - size))
        draws = int(-total * math.log1p(-size / total) + 6 * math.sqrt(size)) + 8
        gaps = torch.rand(draws + 1, generator=self.generator, dtype=torch.float64).neg_().add_(1).log_().neg_()
        place = gaps.cumsum_(0)
        found = (place[:-1] * (total / place[-1])).long().clamp_(max=total - 1).unique_consecutive()
        if len(found) < size:
            return self.sample(total, size)
        return found[_without(len(found), self.sample(len(found), len(found) - size))]

    def get_extra_state(self) -> Tensor:
        """The generator's state, uint8."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Continue where `get_extra_state` was taken."""
        self.generator.set_state(state.cpu())


def products(
    first: Tensor, second: Tensor, budget: int, stream: RandomStream
) -> tuple[tuple[Tensor, Tensor, Tensor], int]:
    """Every (row, i, j) with i < first[row], j < second[row], three (t,) int64 in that order; how many are left out.

    Of more than `budget` they are a `sample` of so many. first, second: (r,) int64.
    """
    ends = (first * second).cumsum(0)
    total = int(ends[-1])
    place = torch.arange(total) if total <= budget else stream.sample(total, budget)
    place = place.to(ends.device)
    row = torch.searchsorted(ends, place, right=True)
    within = place - (ends - first * second)[row]
    return (row, within // second[row], within % second[row]), max(0, total - budget)


def _without(total: int, left_out: Tensor) -> Tensor:
    kept = torch.ones(total, dtype=torch.bool)
    kept[left_out] = False
    return kept.nonzero()[:, 0]
