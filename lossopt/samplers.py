"""Which images make a batch: a pure function of (seed, epoch, rank, world size) and of what was mined.

Letters: n images, c classes, P classes per batch, K images per class, a anchors, w mined negatives of each.
"""

from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

SmallClasses = Literal["refuse", "drop", "repeat"]
AHEAD = 16  # batches that loader processes may have asked for already: two for each of eight, as torch has it


class Lookalikes(NamedTuple):
    """Which rows a network takes for which.

    anchor: (a,) int64, ascending. negative: (a, w) int64 rows of other classes, nearest first; -1 stands for none.
    since: the first batch that is made of them, counted from the start of training (epoch * batches_per_epoch + step).
    """

    anchor: np.ndarray
    negative: np.ndarray
    since: int


class PKSampler(Sampler[list[int]]):
    """Batches of P classes with K images each, as lists of row numbers; use it as a DataLoader's `batch_sampler`.

    Classes are dealt like cards: a shuffled pile of all classes is used up before any class comes again, and so are the
    images within a class. Everything follows from the arguments and `set_epoch`; two samplers built alike deal alike.
    With several processes the batch stays P x K as a whole: each rank takes P / world_size of its *classes*.

    Once there are `Lookalikes` (`use`), a batch holds seed classes from the pile, each followed by the classes of the
    negatives mined for its images, nearest first, the mined image before others of its class; the rest is dealt as
    before. Every process must be given the same ones.

    Args:
        labels: (n,) class of each row; any exact integers.
        classes_per_batch: P.
        images_per_class: K.
        batches_per_epoch: batches that make an epoch; None: as many as it takes to deal about n images.
        seed: of the whole stream.
        groups: (n,) group of each row (an alphabet, a category); needed if `group_classes` is not 0.
        group_classes: how many of the P classes come from `groups_per_batch` randomly chosen groups (hard negatives:
            letters of one alphabet look alike); the others come from all classes.
        groups_per_batch: how many groups share those classes.
        confusable_classes: how many of the P classes are those of mined negatives, as soon as there are any.
        classes_per_seed: how many of them belong to one seed class.
        small_classes: what to do with classes of 2 to K-1 images: "refuse", "drop" them, or "repeat" their images.
            Classes with a single image are always left out: an image must not be its own positive.
        rank, world_size: this process and how many there are.

    Raises:
        ValueError: the labels cannot fill such a batch; the message gives the counts.

    Source: Hermans et al. 2017, In Defense of the Triplet Loss, section 2.
    """

    def __init__(
        self,
        labels: Tensor,
        classes_per_batch: int,
        images_per_class: int,
        batches_per_epoch: int | None = None,
        seed: int = 0,
        groups: Tensor | None = None,
        group_classes: int = 0,
        groups_per_batch: int = 1,
        small_classes: SmallClasses = "refuse",
        confusable_classes: int = 0,
        classes_per_seed: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.classes_per_batch, self.images_per_class = classes_per_batch, images_per_class
        self.seed, self.rank, self.world_size, self.epoch = seed, rank, world_size, 0
        self.group_classes, self.groups_per_batch = group_classes, groups_per_batch
        self.confusable_classes, self.classes_per_seed = confusable_classes, classes_per_seed
        self.lookalikes: list[Lookalikes] = []
        self._check_shape()
        self.rows_of_class, self.left_out = _usable_classes(labels.numpy(), images_per_class, small_classes)
        if len(self.rows_of_class) < classes_per_batch:
            raise ValueError(
                f"classes_per_batch is {classes_per_batch}, but the training data has {len(self.rows_of_class)} "
                f"classes that can be used ({self.left_out} left out as too small). Lower classes_per_batch."
            )
        self.class_of_row = np.full(len(labels), -1)
        for one, rows in enumerate(self.rows_of_class):
            self.class_of_row[rows] = one
        self.classes_of_group = self._group_classes(groups)
        batch = classes_per_batch * images_per_class
        dealt = sum(len(rows) for rows in self.rows_of_class)
        self.batches_per_epoch = batches_per_epoch or max(1, round(dealt / batch))

    def _check_shape(self) -> None:
        for name, given, least in (
            ("classes_per_batch", self.classes_per_batch, 1),
            ("images_per_class", self.images_per_class, 1),
            ("groups_per_batch", self.groups_per_batch, 1),
            ("group_classes", self.group_classes, 0),
            ("confusable_classes", self.confusable_classes, 0),
            ("classes_per_seed", self.classes_per_seed, 1),
        ):
            if given < least:
                raise ValueError(f"{name} must be at least {least}, got {given}.")
        if self.group_classes > self.classes_per_batch:
            raise ValueError(
                f"group_classes ({self.group_classes}) are part of the batch's classes_per_batch "
                f"({self.classes_per_batch}) and cannot be more."
            )
        seeds = self._seeds()
        if self.group_classes + seeds + self.confusable_classes > self.classes_per_batch:
            raise ValueError(
                f"confusable_classes ({self.confusable_classes}) come with {seeds} seed classes (one for each "
                f"{self.classes_per_seed}) beside {self.group_classes} group_classes, but classes_per_batch is "
                f"{self.classes_per_batch}. Lower confusable_classes or group_classes, or raise classes_per_seed."
            )
        if self.classes_per_batch % self.world_size:
            raise ValueError(
                f"classes_per_batch ({self.classes_per_batch}) is shared by {self.world_size} processes; make it a "
                f"multiple of {self.world_size}."
            )

    def _group_classes(self, groups: Tensor | None) -> list[np.ndarray]:
        """The classes (as positions in `rows_of_class`) of each group that has any."""
        if not self.group_classes:
            return []
        if groups is None:
            raise ValueError("group_classes needs groups, but this data set has none. Set group_classes to 0.")
        group_of_class = np.array([groups.numpy()[rows[0]] for rows in self.rows_of_class])
        found = [np.flatnonzero(group_of_class == group) for group in np.unique(group_of_class)]
        if len(found) < self.groups_per_batch:
            raise ValueError(f"groups_per_batch is {self.groups_per_batch}, but there are {len(found)} groups.")
        return found

    def __len__(self) -> int:
        return self.batches_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration deals."""
        self.epoch = epoch

    def use(self, lookalikes: Lookalikes) -> None:
        """Batches from `lookalikes.since` on are made of these; earlier ones stay as they are."""
        dealt = lookalikes.since - AHEAD
        in_use = [older for older in self.lookalikes if older.since <= dealt][-1:]
        waiting = [older for older in self.lookalikes if dealt < older.since < lookalikes.since]
        self.lookalikes = [*in_use, *waiting, lookalikes]

    def takes_effect(self, epoch: int, step: int) -> int:
        """The first batch that what is mined after a step (from 0) can still reach, however batches are loaded."""
        return epoch * self.batches_per_epoch + min(step + 1 + AHEAD, self.batches_per_epoch)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        pile = _Pile(np.arange(len(self.rows_of_class)), rng)
        group_pile = _Pile(np.arange(len(self.classes_of_group)), rng)
        images = [_Pile(rows, rng) for rows in self.rows_of_class]
        share = self.classes_per_batch // self.world_size
        for step in range(self.batches_per_epoch):
            chosen: dict[int, list[int]] = {one: [] for one in self._from_groups(group_pile, rng)}  # and images of them
            self._add_lookalikes(chosen, pile, images, self.epoch * self.batches_per_epoch + step)
            chosen |= {one: [] for one in pile.deal(self.classes_per_batch - len(chosen), but=chosen.keys())}
            batch = [
                rows + images[one].deal(self.images_per_class - len(rows), but=set(rows))
                for one, rows in chosen.items()
            ]
            yield [row for rows in batch[self.rank * share : (self.rank + 1) * share] for row in rows]

    def _seeds(self) -> int:
        return -(-self.confusable_classes // self.classes_per_seed)

    def _add_lookalikes(
        self, chosen: dict[int, list[int]], pile: "_Pile", images: list["_Pile"], position: int
    ) -> None:
        """Seed classes with all their images, and the classes they are taken for with the mined one."""
        known = [some for some in self.lookalikes if some.since <= position]
        if not known:
            return
        left = self.confusable_classes
        for _ in range(self._seeds()):
            (seed,) = pile.deal(1, but=chosen.keys())
            chosen[seed] = images[seed].deal(self.images_per_class)
            wanted = min(left, self.classes_per_seed)
            left -= wanted
            for row in self._mined(known[-1], chosen[seed]):
                one = int(self.class_of_row[row])
                if wanted and one >= 0 and one not in chosen:
                    chosen[one] = [row]
                    wanted -= 1

    @staticmethod
    def _mined(lookalikes: Lookalikes, rows: list[int]) -> list[int]:
        """The negatives of the first of these rows that has any, then those of the next."""
        if not len(lookalikes.anchor):
            return []
        places = np.searchsorted(lookalikes.anchor, rows).clip(max=len(lookalikes.anchor) - 1)
        places = places[lookalikes.anchor[places] == rows]
        found: list[int] = lookalikes.negative[places].ravel().tolist()
        return [row for row in found if row >= 0]

    def _from_groups(self, group_pile: "_Pile", rng: np.random.Generator) -> list[int]:
        """`group_classes` classes out of a few groups; fewer if those groups have fewer."""
        if not self.group_classes:
            return []
        groups = group_pile.deal(self.groups_per_batch)
        candidates = np.concatenate([self.classes_of_group[group] for group in groups])
        chosen: list[int] = rng.permutation(candidates)[: self.group_classes].tolist()
        return chosen


class ShuffledSampler(Sampler[list[int]]):
    """Every row once an epoch, in an order drawn anew, as lists of row numbers; what fills no batch waits for its turn.

    With several processes each rank takes every world_size-th row of the same batch.

    Args:
        rows: n, how many there are.
        batch_size: rows of a batch, over all processes together.
        seed: of the whole stream.
        rank, world_size: this process and how many there are.

    Raises:
        ValueError: n rows fill no batch, or the processes cannot share one evenly.
    """

    def __init__(self, rows: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        if not 1 <= batch_size <= rows:
            raise ValueError(f"batch_size is {batch_size}; with {rows:,} images it must be 1 to {rows:,}.")
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} cannot be shared by {world_size} processes; take a multiple.")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.world_size, self.epoch = rank, world_size, 0

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """The next iteration deals the batches of this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.rows)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start + self.rank : start + self.batch_size : self.world_size].tolist()


class _Pile:
    """Deals its items in random order, none twice before all were dealt once."""

    def __init__(self, items: np.ndarray, rng: np.random.Generator) -> None:
        self.items, self.rng = items, rng
        self.left: list[int] = []

    def deal(self, count: int, but: Collection[int] = frozenset()) -> list[int]:
        """`count` items, different from each other and from `but` as long as there are that many."""
        dealt: list[int] = []
        kept_back: list[int] = []
        refills = 0
        while len(dealt) < count:
            if not self.left:
                self.left = self.rng.permutation(self.items).tolist()
                refills += 1
            item = self.left.pop()
            if item in but or (item in dealt and refills <= 1 + count // len(self.items)):
                kept_back.append(item)
            else:
                dealt.append(item)
        self.left += dict.fromkeys(kept_back)  # each once, or a class with few images would keep back more and more
        return dealt


def _usable_classes(labels: np.ndarray, k: int, small_classes: SmallClasses) -> tuple[list[np.ndarray], int]:
    """Rows of each class that can be dealt, in label order, and how many classes were left out."""
    order = np.argsort(labels, kind="stable")
    _, counts = np.unique(labels, return_counts=True)
    rows_of_class = np.split(order, np.cumsum(counts)[:-1]) if len(labels) else []
    small = [len(rows) for rows in rows_of_class if 1 < len(rows) < k]
    if small and small_classes == "refuse":
        raise ValueError(
            f"images_per_class is {k}, but {len(small)} of {len(rows_of_class)} classes have fewer images (the "
            f"smallest has {min(small)}). Lower images_per_class, or set small_classes to 'drop' (leave those classes "
            "out) or 'repeat' (take their images more than once)."
        )
    least = max(2, k if small_classes == "drop" else 2) if k > 1 else 1
    usable = [rows for rows in rows_of_class if len(rows) >= least]
    return usable, len(rows_of_class) - len(usable)
