"""What a miner returns: row numbers of a batch, as pairs or as triplets, in the field's calling convention.

pytorch-metric-learning reads the kind off the number of columns (3: triplets, 4: pairs). Named tuples satisfy that and
say what they are. Letters: p positive pairs, q negative pairs, t triplets.
"""

from typing import NamedTuple

from torch import Tensor


class Pairs(NamedTuple):
    """anchor1 (p,) with positive (p,) share a class; anchor2 (q,) with negative (q,) do not. All int64."""

    anchor1: Tensor
    positive: Tensor
    anchor2: Tensor
    negative: Tensor


class Triplets(NamedTuple):
    """anchor, positive, negative: (t,) int64 each; the first two share a class, the third is of another."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor
