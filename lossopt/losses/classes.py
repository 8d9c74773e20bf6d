"""Who is whose positive and negative, known from labels or from a list of pairs, and told a few rows at a time.

Letters: n rows, m reference rows, b rows asked for, p most positives of a row, l levels.
"""

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


class Relation(Protocol):
    """What a tile asks."""

    def same(self, start: int, stop: int) -> Tensor:
        """(b, m) bool: which reference rows are positives of rows start..stop; a row is none of its own."""
        ...

    def different(self, start: int, stop: int) -> Tensor:
        """(b, m) bool: which are negatives."""
        ...

    def positives(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(b, p) int64 columns of the positives, and (b, p) bool: which of these places are filled."""
        ...


class Classes:
    """Positives share the label, negatives do not.

    Args:
        labels: (n,) any exact integers.
        ref_labels: (m,).
        own: column at which the rows themselves begin among the reference rows; None: they are not among them.
    """

    def __init__(self, labels: Tensor, ref_labels: Tensor, own: int | None) -> None:
        self.own = own
        if labels is ref_labels:
            _, self.ids = torch.unique(labels, return_inverse=True)
            self.ref_ids = self.ids
        else:
            _, both = torch.unique(torch.cat((labels, ref_labels)), return_inverse=True)
            self.ids, self.ref_ids = both.split((len(labels), len(ref_labels)))
        self._narrow = [ids.to(torch.int32) for ids in (self.ids, self.ref_ids)]  # compared n x m times

    @cached_property
    def _by_class(self) -> tuple[Tensor, Tensor, Tensor]:
        """Columns in the order of their class; where that of each row begins, and how many it has (n,)."""
        order = self.ref_ids.argsort(stable=True)
        size = torch.bincount(self.ref_ids, minlength=int(self.ids.max()) + 1 if len(self.ids) else 0)
        return order, (size.cumsum(0) - size)[self.ids], size[self.ids]

    @property
    def positive_count(self) -> Tensor:
        """(n,) int64: positives of each row."""
        return self._by_class[2] - (0 if self.own is None else 1)

    @property
    def negative_count(self) -> Tensor:
        """(n,) int64: negatives of each row."""
        return len(self.ref_ids) - self._by_class[2]

    @cached_property
    def _most(self) -> int:
        return int(self._by_class[2].max()) if len(self.ids) and len(self.ref_ids) else 0

    def same(self, start: int, stop: int) -> Tensor:
        """See `Relation`."""
        ids, ref_ids = self._narrow
        found = ids[start:stop, None] == ref_ids
        if self.own is not None:
            found[:, self.own + start : self.own + stop].fill_diagonal_(False)
        return found

    def different(self, start: int, stop: int) -> Tensor:
        """See `Relation`."""
        ids, ref_ids = self._narrow
        return ids[start:stop, None] != ref_ids

    def positives(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See `Relation`; by class, without a look at the m columns."""
        order, first, count = self._by_class
        place = torch.arange(self._most, device=order.device)
        filled = place < count[start:stop, None]
        columns = order[(first[start:stop, None] + place).clamp(max=max(len(order) - 1, 0))]
        if self.own is not None:
            filled &= columns != torch.arange(self.own + start, self.own + stop, device=order.device)[:, None]
        return columns, filled


class ListedPairs:
    """Positives and negatives are those a miner listed.

    Args:
        pairs: (anchor1, positive, anchor2, negative), int64.
        columns: m.
    """

    def __init__(self, pairs: tuple[Tensor, ...], columns: int) -> None:
        self.columns = columns
        self._lists = [_by_anchor(*pairs[:2]), _by_anchor(*pairs[2:])]

    def _mask(self, which: int, start: int, stop: int) -> Tensor:
        anchors, partners = self._lists[which]
        first, last = torch.searchsorted(anchors, torch.tensor([start, stop], device=anchors.device)).tolist()
        found = torch.zeros(stop - start, self.columns, dtype=torch.bool, device=anchors.device)
        found[anchors[first:last] - start, partners[first:last]] = True
        return found

    def same(self, start: int, stop: int) -> Tensor:
        """See `Relation`."""
        return self._mask(0, start, stop)

    def different(self, start: int, stop: int) -> Tensor:
        """See `Relation`."""
        return self._mask(1, start, stop)

    def positives(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See `Relation`."""
        same = self.same(start, stop)
        most = int(same.sum(1).max()) if len(same) else 0
        filled, columns = same.to(torch.uint8).topk(most, dim=1)
        return columns, filled.bool()


def _by_anchor(anchor: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    anchor, order = anchor.sort(stable=True)
    return anchor, partner[order]
