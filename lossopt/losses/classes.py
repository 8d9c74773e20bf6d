"""Who is whose positive and negative, known from labels or from a list of pairs, and told a few rows at a time.

Letters: n rows, m reference rows, b rows asked for, p most positives of a row, l levels.
"""

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

NEVER = -1e30  # a score that no comparison reaches: finite, so that a row without any has finite gradients


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

    def keep_different(self, scores: Tensor, start: int, stop: int) -> Tensor:
        """Scores (b, m), changed in place: `NEVER`, or so, wherever there is no negative."""
        ...

    def keep_compared(self, scores: Tensor, start: int, stop: int) -> Tensor:
        """Scores (b, m), changed in place: `NEVER` where there is neither a positive nor a negative."""
        ...


class Classes:
    """Positives share the label, negatives do not.

    Args:
        labels: (n,) any exact integers.
        ref_labels: (m,).
        own: column at which the rows themselves begin among the reference rows; None: they are not among them.
    """

    def __init__(self, labels: Tensor, ref_labels: Tensor, own: int | None) -> None:
        self.labels, self.ref_labels, self.own = labels, ref_labels, own

    @cached_property
    def _by_class(self) -> tuple[Tensor, Tensor, Tensor]:
        """Columns in the order of their labels; where those of each row's class begin, and how many they are (n,)."""
        ascending, order = self.ref_labels.sort(stable=True)
        labels = self.labels.contiguous()
        first = torch.searchsorted(ascending, labels)
        return order, first, torch.searchsorted(ascending, labels, right=True) - first

    @cached_property
    def _dense(self) -> tuple[Tensor, Tensor]:
        _, both = torch.unique(torch.cat((self.labels, self.ref_labels)), return_inverse=True)
        ids, ref_ids = both.split((len(self.labels), len(self.ref_labels)))
        return ids, ref_ids

    @property
    def ids(self) -> Tensor:
        """(n,) labels as 0, 1, 2, ... in their order."""
        return self._dense[0]

    @property
    def ref_ids(self) -> Tensor:
        """(m,) likewise."""
        return self._dense[1]

    @property
    def positive_count(self) -> Tensor:
        """(n,) int64: positives of each row."""
        return self._by_class[2] - (0 if self.own is None else 1)

    @property
    def negative_count(self) -> Tensor:
        """(n,) int64: negatives of each row."""
        return len(self.ref_labels) - self._by_class[2]

    @cached_property
    def _most(self) -> int:
        return int(self._by_class[2].max()) if len(self.labels) and len(self.ref_labels) else 0

    @cached_property
    def _own_place(self) -> Tensor:
        """(n,) int64: which of its class's columns, counted from 0, a row itself is; for rows among the reference."""
        order, first, _ = self._by_class
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        return place.narrow(0, self.own or 0, len(self.labels)) - first

    def same(self, start: int, stop: int) -> Tensor:
        """See `Relation`."""
        found = self.labels[start:stop, None] == self.ref_labels
        if self.own is not None:
            found[:, self.own + start : self.own + stop].fill_diagonal_(False)
        return found

    def different(self, start: int, stop: int) -> Tensor:
        """See `Relation`."""
        return self.labels[start:stop, None] != self.ref_labels

    def positives(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See `Relation`; by class, without a look at the m columns."""
        order, first, count = self._by_class
        place = torch.arange(max(0, self._most - (self.own is not None)), device=order.device).expand(stop - start, -1)
        if self.own is not None:
            place = place + (place >= self._own_place[start:stop, None])
        columns = order[(first[start:stop, None] + place).clamp(max=max(len(order) - 1, 0))]
        return columns, place < count[start:stop, None]

    def of_class(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(b, p) int64 columns of each row's class, itself among them, and (b, p) bool: those that are filled.

        Places that are not repeat a column of the class, if there is any.
        """
        order, first, count = self._by_class
        last = count[start:stop, None] - 1
        place = torch.arange(self._most, device=order.device)
        columns = first[start:stop, None] + place.minimum(last.clamp(min=0))
        return order[columns.clamp(max=max(len(order) - 1, 0))], place <= last

    def keep_different(self, scores: Tensor, start: int, stop: int) -> Tensor:
        """See `Relation`; few columns are touched, where a mask would go through all."""
        columns, filled = self.of_class(start, stop)
        return scores.scatter_add_(1, columns, filled.to(scores.dtype).mul_(NEVER))

    def keep_compared(self, scores: Tensor, start: int, stop: int) -> Tensor:
        """See `Relation`."""
        if self.own is not None:
            scores[:, self.own + start : self.own + stop].fill_diagonal_(NEVER)
        return scores


def classes_of(relation: Relation, loss: str) -> Classes:
    """The relation, which has to be one of classes.

    Raises:
        TypeError: it is another, which the loss named cannot compare.
    """
    if not isinstance(relation, Classes):
        raise TypeError(f"{loss} compares Classes, got {type(relation).__name__}.")
    return relation


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

    def keep_different(self, scores: Tensor, start: int, stop: int) -> Tensor:
        """See `Relation`."""
        return scores.masked_fill_(~self.different(start, stop), NEVER)

    def keep_compared(self, scores: Tensor, start: int, stop: int) -> Tensor:
        """See `Relation`."""
        return scores.masked_fill_(~(self.same(start, stop) | self.different(start, stop)), NEVER)


def _by_anchor(anchor: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    anchor, order = anchor.sort(stable=True)
    return anchor, partner[order]
