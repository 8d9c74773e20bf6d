"""What every in-batch miner is: it chooses on distances, a tile of rows at a time, without gradient.

`miner(embeddings, labels, ref_emb=None, ref_labels=None, own=None, groups=None, ref_groups=None)`: anchors are rows of
the embeddings; positives and negatives are rows of the reference, which is the batch itself, without self-pairs, unless
given. Anchors that lack a positive or a negative are left out; if none is left, the tuples are empty. Memory is a few
tiles and the tuples returned.

A NaN distance counts as the hardest of all where one is picked (batch-hard, hard pairs, easy-positive, rank window),
and fails every inequality (the others). Either way the losses of lossopt are NaN for a NaN row, so that mining cannot
hide one. Letters: n anchors, m reference rows, d embedding, p pairs, t triplets.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from lossopt.losses.all_tuples import TupleKind, label_pair
from lossopt.losses.distances import Distance, distances_at, float32_or_wider, one_of
from lossopt.losses.embedding import positive_number
from lossopt.miners.candidates import Candidates, GroupRule
from lossopt.miners.tuples import Pairs, Triplets

BUDGET = 1_000_000  # tuples: as indices 24 or 32 MB, and some seconds of a loss


def at_least_one(name: str, given: int) -> None:
    """Raise ValueError unless `given` is 1 or more."""
    if given < 1:
        raise ValueError(f"{name} must be >= 1, got {given}: the miner would return nothing.")


class InBatchMiner(nn.Module, ABC):
    """Interface of the miners; `tuples` says what they return.

    After a call `dropped` is how many tuples a budget left out, 0-dim int64 on the device of the embeddings; those kept
    are a uniform sample of all. It is 0 for miners without a budget.

    Args:
        group_rule: negatives come from "any" group, only from an "other" group than the anchor's (shelf, alphabet,
            camera), or from the "same".
        distance: how far apart two rows are.
    """

    tuples: ClassVar[TupleKind]
    dropped: Tensor

    def __init__(self, group_rule: GroupRule = "any", distance: Distance = "euclidean") -> None:
        super().__init__()
        one_of("group_rule", group_rule, GroupRule)
        one_of("distance", distance, Distance)
        self.group_rule: GroupRule = group_rule
        self.distance: Distance = distance
        self.dropped = torch.zeros((), dtype=torch.int64)

    @property
    def needs_groups(self) -> bool:
        """Whether a call must give `groups`: under any rule but "any"."""
        return self.group_rule != "any"

    @abstractmethod
    def mine(self, x: Tensor, y: Tensor, candidates: Candidates) -> Pairs | Triplets:
        """Choose among n > 0 rows of x (n, d) and m > 0 rows of y (m, d), float32 or wider."""

    @torch.no_grad()
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        own: int | None = None,
        groups: Tensor | None = None,
        ref_groups: Tensor | None = None,
    ) -> Pairs | Triplets:
        """Row numbers (int64, on the device of the embeddings) of the tuples to compare, in the order of the anchors.

        Args:
            embeddings: (n, d), any floating dtype; distances are taken in float32 or wider.
            labels: (n,) class of each row, exact integers.
            ref_emb: (m, d) rows that positives and negatives are taken from; None: the batch itself, no self-pairs.
            ref_labels: (m,) their classes.
            own: column of `ref_emb` at which the batch's own rows begin, so that no row is its own positive; None: they
                are not in it. Of no meaning without `ref_emb`.
            groups: (n,) group of each row, exact integers; only looked at under a group rule.
            ref_groups: (m,) those of the reference.

        Raises:
            ValueError: labels, or groups that a rule asks for, are missing or not one per row.
        """
        x, y = float32_or_wider(embeddings, ref_emb)
        labels, ref_labels, own = label_pair(embeddings, labels, ref_emb, ref_labels, own)
        if labels.ndim != 1 or ref_labels.ndim != 1:
            raise ValueError(f"labels must be (rows,), got {tuple(labels.shape)}; mine by one level at a time.")
        both = self._groups_of(x, y, groups, ref_groups) if self.needs_groups else None
        self.dropped = torch.zeros((), dtype=torch.int64, device=x.device)
        if len(x) == 0 or len(y) == 0:
            none = torch.empty(0, dtype=torch.int64, device=x.device)
            return Pairs(none, none, none, none) if self.tuples == "pairs" else Triplets(none, none, none)
        with torch.autocast(x.device.type, enabled=False):
            return self.mine(x, y, Candidates(labels, ref_labels, own, self.group_rule, both))

    def _groups_of(
        self, x: Tensor, y: Tensor, groups: Tensor | None, ref_groups: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if y is x and ref_groups is None:
            ref_groups = groups
        checked = []
        for name, given, rows in (("groups", groups, x), ("ref_groups", ref_groups, y)):
            if given is None or given.shape != (len(rows),):
                raise ValueError(
                    f"{type(self).__name__}(group_rule={self.group_rule!r}) needs {name}, one integer for each of "
                    f"{len(rows)} rows, got {'none' if given is None else tuple(given.shape)}; call it with {name}=, "
                    'or build it with group_rule="any".'
                )
            checked.append(given.to(x.device))
        return checked[0], checked[1]


class TripletMiner(InBatchMiner):
    """Interface of miners of triplets.

    Args:
        margin: > 0, in the units of `distance`: triplets whose hinge max(0, d(a,p) - d(a,n) + margin) is 0 are left
            out. None: they stay.
        group_rule: see `InBatchMiner`; so is distance.
    """

    tuples: ClassVar[TupleKind] = "triplets"

    def __init__(
        self, margin: float | None = None, group_rule: GroupRule = "any", distance: Distance = "euclidean"
    ) -> None:
        super().__init__(group_rule, distance)
        if margin is not None:
            positive_number(f"{type(self).__name__} margin", margin, "None keeps every triplet")
        self.margin = margin

    def active(self, x: Tensor, y: Tensor, found: Triplets) -> Triplets:
        """Those of them that the margin keeps, by the distances that a loss on listed triplets sees."""
        if self.margin is None:
            return found
        anchor, positive, negative = found
        both = distances_at(x, y, anchor.repeat(2), torch.cat((positive, negative)), self.distance)
        to_positive, to_negative = both.reshape(2, len(anchor))
        kept = to_positive - to_negative + self.margin > 0
        return Triplets(anchor[kept], positive[kept], negative[kept])
