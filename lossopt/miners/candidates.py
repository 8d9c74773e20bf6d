"""What an anchor may be compared with, counted and found by number: nothing is listed that is not asked for.

Letters: n rows, m reference rows, b rows of a tile, p most positives of a row, t numbers asked for.
"""

from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lossopt.losses.classes import NEVER, Classes

GroupRule = Literal["any", "other", "same"]


class Candidates(Classes):
    """Positives share the label; negatives do not, and are of a group that the rule allows.

    Args:
        labels: (n,) any exact integers; ref_labels: (m,).
        own: column at which the rows themselves begin among the reference rows; None: they are not among them.
        rule: negatives come from "any" group, only from an "other" group than the anchor's, or from the "same".
        groups: (n,) and (m,) exact integers; of no meaning under "any".

    Raises:
        ValueError: a rule other than "any" without groups.
    """

    def __init__(
        self,
        labels: Tensor,
        ref_labels: Tensor,
        own: int | None,
        rule: GroupRule = "any",
        groups: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__(labels, ref_labels, own)
        if rule != "any" and groups is None:
            raise ValueError(f"The group rule {rule!r} asks for groups, but there are none.")
        self.rule = rule
        self._groups = Classes(*(groups or (labels, ref_labels)), None)

    def different(self, start: int, stop: int) -> Tensor:
        """See `Relation`."""
        found = super().different(start, stop)
        if self.rule != "any":
            found &= self._groups.different(start, stop) if self.rule == "other" else self._groups.same(start, stop)
        return found

    def keep_different(self, scores: Tensor, start: int, stop: int) -> Tensor:
        """See `Relation`."""
        if self.rule == "any":
            return super().keep_different(scores, start, stop)
        return scores.masked_fill_(~self.different(start, stop), NEVER)

    def keep_compared(self, scores: Tensor, start: int, stop: int) -> Tensor:
        """See `Relation`."""
        if self.rule == "any":
            return super().keep_compared(scores, start, stop)
        return scores.masked_fill_(~(self.same(start, stop) | self.different(start, stop)), NEVER)

    def positives(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See `Relation`; ascending, without the anchor's own place, and p is at least 1."""
        p = max(1, self._most - (0 if self.own is None else 1))
        anchor = torch.arange(start, stop, device=self.labels.device)[:, None]
        number = torch.arange(p, device=self.labels.device).expand(len(anchor), p)
        return self.positive(anchor, number), number < self.positive_count[anchor]

    def positive(self, anchor: Tensor, number: Tensor) -> Tensor:
        """Column of an anchor's positive number 0, 1, ... in ascending order, int64; of others any column.

        anchor and number: (t,), or of shapes that broadcast.
        """
        order, first, _ = self._by_class
        place = first[anchor] + number
        if self.own is not None:
            place += place >= self._places[self.own + anchor]
        return order[place.clamp_(max=len(order) - 1)]

    @cached_property
    def _places(self) -> Tensor:
        """(m,) where each column is in the order of the classes."""
        return _inverse(self._by_class[0])

    @property
    def negative_count(self) -> Tensor:
        """(n,) int64: negatives of each row."""
        if self.rule == "any":
            return super().negative_count
        group, both = self._runs
        if self.rule == "same":
            return group.size - both.size
        return super().negative_count - (group.size - both.size)

    def negative(self, anchor: Tensor, number: Tensor) -> Tensor:
        """Column of an anchor's negative number 0, 1, ... in some fixed order: (t,), (t,) -> (t,) int64."""
        order, first, size = self._by_class
        if self.rule == "any":  # in the order of the classes, with the anchor's own taken out
            return order[number + size[anchor] * (number >= first[anchor])]
        group, both = (Run(run.first[anchor], run.size[anchor]) for run in self._runs)
        if self.rule == "same":  # in the order of group and class, those of the class are one run of the group's
            place = group.first + number
            return self._by_group[place + both.size * (place >= both.first)]
        # In that order the group's run is taken out, and then those of the class that are left on either side of it.
        before = self._before(anchor, group.first, self._class_places)
        passed = self._passed(anchor, number).minimum(before)
        beyond = self._passed(anchor, number + group.size - both.size) - before - both.size
        place = number + passed + beyond.clamp(min=0)
        return self._by_group[place + group.size * (place >= group.first)]

    @property
    def _stride(self) -> int:
        """More than any class, and than any place or number plus the size of a group."""
        return 2 * (len(self.labels) + len(self.ref_labels)) + 2

    @cached_property
    def _by_group(self) -> Tensor:
        """(m,) columns in the order of group, then class."""
        return (self._groups.ref_ids * self._stride + self.ref_ids).argsort(stable=True)

    @cached_property
    def _runs(self) -> tuple["Run", "Run"]:
        """Of each row its group's run in that order, and the run of its class within that."""
        ascending = (self._groups.ref_ids * self._stride + self.ref_ids)[self._by_group]
        begin = self._groups.ids * self._stride
        edges = torch.stack((begin, begin + self._stride, begin + self.ids, begin + self.ids + 1))
        first, last, class_first, class_last = torch.searchsorted(ascending, edges)
        return Run(first, last - first), Run(class_first, class_last - class_first)

    @cached_property
    def _class_places(self) -> Tensor:
        """(m,) places in that order, ascending within each class, classes told apart by the stride."""
        return (self.ref_ids * self._stride + _inverse(self._by_group)).sort().values

    @cached_property
    def _class_gaps(self) -> Tensor:
        """(m,) the same, less the number of the class's columns before it: how many of the others come before it."""
        index = torch.arange(len(self.ref_ids), device=self.ref_ids.device)
        size = torch.bincount(self.ref_ids)
        return self._class_places - (index - (size.cumsum(0) - size).repeat_interleave(size))

    def _before(self, anchor: Tensor, value: Tensor, ascending: Tensor, right: bool = False) -> Tensor:
        """How many of the anchor's class lie before a value (t,), or not beyond it if `right`."""
        begin = self._by_class[1][anchor]
        return torch.searchsorted(ascending, self.ids[anchor] * self._stride + value, right=right) - begin

    def _passed(self, anchor: Tensor, number: Tensor) -> Tensor:
        """How many columns of the anchor's class come before number so-and-so of the other columns."""
        return self._before(anchor, number, self._class_gaps, right=True)


class Run(NamedTuple):
    """Consecutive places: the first, and how many. (n,) or (t,) int64 each."""

    first: Tensor
    size: Tensor


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
