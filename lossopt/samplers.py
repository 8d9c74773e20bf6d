"""P classes x K images per batch: a pure function of (seed, epoch, rank, world size), with no state to lose.

Letters: n images, c classes, P classes per batch, K images per class.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

SmallClasses = Literal["refuse", "drop", "repeat"]


class PKSampler(Sampler[list[int]]):
    """Batches of P classes with K images each, as lists of row numbers; use it as a DataLoader's `batch_sampler`.

    Classes are dealt like cards: a shuffled pile of all classes is used up before any class comes again, and so are the
    images within a class. Everything follows from the arguments and `set_epoch`; two samplers built alike deal alike.
    With several processes the batch stays P x K as a whole: each rank takes P / world_size of its *classes*.

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
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.classes_per_batch, self.images_per_class = classes_per_batch, images_per_class
        self.seed, self.rank, self.world_size, self.epoch = seed, rank, world_size, 0
        self.group_classes, self.groups_per_batch = group_classes, groups_per_batch
        self._check_shape()
        self.rows_of_class, self.left_out = _usable_classes(labels.numpy(), images_per_class, small_classes)
        if len(self.rows_of_class) < classes_per_batch:
            raise ValueError(
                f"classes_per_batch is {classes_per_batch}, but the training data has {len(self.rows_of_class)} "
                f"classes that can be used ({self.left_out} left out as too small). Lower classes_per_batch."
            )
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
        ):
            if given < least:
                raise ValueError(f"{name} must be at least {least}, got {given}.")
        if self.group_classes > self.classes_per_batch:
            raise ValueError(
                f"group_classes ({self.group_classes}) are part of the batch's classes_per_batch "
                f"({self.classes_per_batch}) and cannot be more."
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

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        pile = _Pile(np.arange(len(self.rows_of_class)), rng)
        group_pile = _Pile(np.arange(len(self.classes_of_group)), rng)
        images = [_Pile(rows, rng) for rows in self.rows_of_class]
        share = self.classes_per_batch // self.world_size
        for _ in range(self.batches_per_epoch):
            chosen = self._from_groups(group_pile, rng)
            chosen += pile.deal(self.classes_per_batch - len(chosen), but=set(chosen))
            batch = [images[one].deal(self.images_per_class) for one in chosen]
            yield [row for rows in batch[self.rank * share : (self.rank + 1) * share] for row in rows]

    def _from_groups(self, group_pile: "_Pile", rng: np.random.Generator) -> list[int]:
        """`group_classes` classes out of a few groups; fewer if those groups have fewer."""
        if not self.group_classes:
            return []
        groups = group_pile.deal(self.groups_per_batch)
        candidates = np.concatenate([self.classes_of_group[group] for group in groups])
        chosen: list[int] = rng.permutation(candidates)[: self.group_classes].tolist()
        return chosen


class _Pile:
    """Deals its items in random order, none twice before all were dealt once."""

    def __init__(self, items: np.ndarray, rng: np.random.Generator) -> None:
        self.items, self.rng = items, rng
        self.left: list[int] = []

    def deal(self, count: int, but: frozenset[int] | set[int] = frozenset()) -> list[int]:
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
        self.left += kept_back
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
