"""Labelled images as one table, whether their pixels are in memory or on disk; it knows nothing of any data set.

Letters: n images, c channels, h height, w width, b batch.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lossopt.data.decode import decode_image
from lossopt.data.scale import scale_images
from lossopt.errors import DataError


class Pixels(Protocol):
    """Where the pixels of n images are; asked for several at a time."""

    def __len__(self) -> int: ...

    def read(self, rows: Tensor) -> Tensor:
        """rows: (b,) int64 row numbers. Returns (b, c, h, w) uint8, all of one size."""
        ...

    def path(self, row: int) -> Path | None:
        """The file of the image alone; None if it lies in memory or in an archive."""
        ...


@dataclass(frozen=True)
class InMemory:
    """(n, c, h, w) uint8 images held in memory."""

    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Tensor) -> Tensor:
        """See `Pixels`."""
        return self.images[rows]

    def path(self, row: int) -> None:
        """There is none."""
        return None


@dataclass(frozen=True)
class OnDisk:
    """Image files, decoded when asked for: scaled so that the short side is `image_size`, then centre-cropped square.

    Args:
        paths: n files.
        image_size: side of the square in pixels.
        channels: 1 (grey) or 3 (RGB).
        crops: one (left, top, right, bottom) box in pixels of the file per image, cut out before scaling; None: whole.
        inverted: the network sees light on dark where the files are dark on light.
        area: scaled by `scale_images`, as the data sets that are held in memory are; else by Lanczos.
    """

    paths: Sequence[Path]
    image_size: int
    channels: int = 3
    crops: Sequence[tuple[int, int, int, int] | None] | None = None
    inverted: bool = False
    area: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, rows: Tensor) -> Tensor:
        """See `Pixels`; raises DataError naming a file that cannot be decoded."""
        return torch.stack([self._read_one(row) for row in rows.tolist()])

    def path(self, row: int) -> Path:
        """See `Pixels`."""
        return self.paths[row]

    def _read_one(self, row: int) -> Tensor:
        crop = self.crops[row] if self.crops is not None else None
        image = decode_image(self.paths[row], None if self.area else self.image_size, self.channels, crop)
        image = 255 - image if self.inverted else image
        return scale_images(image[None], self.image_size)[0] if self.area else image


@dataclass(frozen=True)
class _Rows:
    """Some rows of other pixels."""

    pixels: Pixels
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Tensor) -> Tensor:
        return self.pixels.read(self.rows[rows])

    def path(self, row: int) -> Path | None:
        return self.pixels.path(int(self.rows[row]))


@dataclass(frozen=True)
class _Rotated:
    """Four copies of other pixels, turned by 0, 90, 180 and 270 degrees: row r is image r % n, turned r // n times."""

    pixels: Pixels

    def __len__(self) -> int:
        return 4 * len(self.pixels)

    def read(self, rows: Tensor) -> Tensor:
        n = len(self.pixels)
        images = self.pixels.read(rows % n)
        turns = rows // n
        for turn in (1, 2, 3):
            chosen = turns == turn
            if chosen.any():
                images[chosen] = torch.rot90(images[chosen], turn, dims=(2, 3))
        return images

    def path(self, row: int) -> Path | None:
        return self.pixels.path(row % len(self.pixels))


@dataclass(frozen=True)
class _Joined:
    """The images of several pixel sources, one after the other."""

    parts: tuple[Pixels, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def read(self, rows: Tensor) -> Tensor:
        starts = np.cumsum([0, *(len(part) for part in self.parts)])
        which = torch.from_numpy(np.searchsorted(starts, rows.numpy(), side="right") - 1)
        found: Tensor | None = None
        for number, part in enumerate(self.parts):
            chosen = which == number
            if chosen.any():
                images = part.read(rows[chosen] - int(starts[number]))
                if found is None:
                    found = images.new_empty((len(rows), *images.shape[1:]))
                found[chosen] = images
        assert found is not None
        return found

    def path(self, row: int) -> Path | None:
        for part in self.parts:
            if row < len(part):
                return part.path(row)
            row -= len(part)
        raise IndexError(row)


class Batch(NamedTuple):
    """What the loader hands to the network.

    images: (b, c, h, w), uint8 from the loader, float in [0, 1] after the transform.
    labels: (b,) int64.   ids: (b,) int64 row numbers in the table.
    seed: the random stream of this batch's augmentation, a function of (run seed, epoch, rank, step).
    groups: (b,) int64 positions in the table's `group_names`; None where the table has no groups.
    targets: (b, t) float32, columns as in the table's `target_names`; None where the table has no targets.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    seed: int
    groups: Tensor | None = None
    targets: Tensor | None = None


@dataclass(frozen=True)
class LabelledImages:
    """A table of n images. A row number is an image's id: equal rows are the same image.

    Args:
        pixels: where the images are.
        labels: (n,) int64, each the position of the image's class in `class_names`.
        class_names: one name per class; unique.
        names: n names for people (a path, or a place inside an archive); unique.
        groups: (n,) int64 positions in `group_names` (alphabet, camera, shelf), or None.
        group_names: one name per group.
        query: (n,) bool, rows that ask in an evaluation; None: all rows.
        gallery: (n,) bool, rows that are searched; None: all rows. A row in both never finds itself.
        targets: (n, t) float32, what a regression is to predict, or None.
        target_names: one name per column of `targets`, with its unit.
    """

    pixels: Pixels
    labels: Tensor
    class_names: tuple[str, ...]
    names: Sequence[str]
    groups: Tensor | None = None
    group_names: tuple[str, ...] = ()
    query: Tensor | None = None
    gallery: Tensor | None = None
    targets: Tensor | None = None
    target_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.pixels)
        columns = {"labels": self.labels, "names": self.names, "groups": self.groups}
        columns |= {"query": self.query, "gallery": self.gallery, "targets": self.targets}
        for name, column in columns.items():
            if column is not None and len(column) != n:
                raise ValueError(f"{n} images, but {name} has {len(column)} entries; every column needs one per image.")
        if n and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.class_names):
            raise ValueError(
                f"labels run from {int(self.labels.min())} to {int(self.labels.max())}, but there are "
                f"{len(self.class_names)} class names; a label is the position of its class name."
            )
        width = 0 if self.targets is None else self.targets.shape[1]
        if width != len(self.target_names):
            raise ValueError(f"targets have {width} columns, but there are {len(self.target_names)} target_names.")

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, rows: Sequence[int] | Tensor, seed: int = 0) -> Batch:
        """The images of `rows`, as stored: uint8, not augmented."""
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        groups = None if self.groups is None else self.groups[chosen]
        targets = None if self.targets is None else self.targets[chosen]
        return Batch(self.pixels.read(chosen), self.labels[chosen], chosen, seed, groups, targets)

    def paths(self) -> list[str] | None:
        """The absolute path of each image that has a file of its own, "" for the others; None: no image has one."""
        files = [self.pixels.path(row) for row in range(len(self))]
        if all(file is None for file in files):
            return None
        return ["" if file is None else os.path.abspath(file) for file in files]

    def select(self, rows: Tensor) -> "LabelledImages":
        """The table of some rows, in that order. Classes without a row drop out and the others are numbered anew."""
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        used, labels = torch.unique(self.labels[rows], return_inverse=True)
        return replace(
            self,
            pixels=InMemory(self.pixels.images[rows])
            if isinstance(self.pixels, InMemory)
            else _Rows(self.pixels, rows),
            labels=labels,
            class_names=tuple(self.class_names[label] for label in used.tolist()),
            names=[self.names[row] for row in rows.tolist()],
            groups=None if self.groups is None else self.groups[rows],
            query=None if self.query is None else self.query[rows],
            gallery=None if self.gallery is None else self.gallery[rows],
            targets=None if self.targets is None else self.targets[rows],
        )

    def numbered_as(self, class_names: tuple[str, ...]) -> "LabelledImages":
        """The same table with labels that are positions in `class_names`; classes that are not there come after."""
        names = tuple(dict.fromkeys((*class_names, *self.class_names)))
        position = {name: number for number, name in enumerate(names)}
        labels = torch.tensor([position[name] for name in self.class_names], dtype=torch.int64)[self.labels]
        return replace(self, labels=labels, class_names=names)

    def with_rotations(self) -> "LabelledImages":
        """Four times the classes: each class turned by 90, 180 and 270 degrees is a class of its own.

        The groups are turned with them, so that a batch of one group has one rotation. There are no targets then.

        Source: Vinyals et al. 2016, Matching Networks, section 4.1.1 (character classes of Omniglot).
        """
        turned = ("", "/rot090", "/rot180", "/rot270")
        repeat = torch.arange(4).repeat_interleave(len(self))
        return replace(
            self,
            pixels=_Rotated(self.pixels),
            labels=self.labels.repeat(4) + repeat * len(self.class_names),
            class_names=tuple(name + turn for turn in turned for name in self.class_names),
            names=[name + turn for turn in turned for name in self.names],
            groups=None if self.groups is None else self.groups.repeat(4) + repeat * len(self.group_names),
            group_names=tuple(name + turn for turn in turned for name in self.group_names),
            query=None if self.query is None else self.query.repeat(4),
            gallery=None if self.gallery is None else self.gallery.repeat(4),
            targets=None,
            target_names=(),
        )


def query_gallery(query: LabelledImages, gallery: LabelledImages) -> LabelledImages:
    """One table in which the rows of `query` are searched among the rows of `gallery`; classes meet by name."""
    class_names = tuple(dict.fromkeys((*gallery.class_names, *query.class_names)))
    position = {name: number for number, name in enumerate(class_names)}
    parts = (query, gallery)
    labels = [torch.tensor([position[name] for name in part.class_names])[part.labels] for part in parts]
    is_query = torch.arange(len(query) + len(gallery)) < len(query)
    return LabelledImages(
        pixels=_Joined(tuple(part.pixels for part in parts)),
        labels=torch.cat(labels),
        class_names=class_names,
        names=[f"query/{name}" for name in query.names] + [f"gallery/{name}" for name in gallery.names],
        query=is_query,
        gallery=~is_query,
    )


@dataclass(frozen=True)
class Splits:
    """What a source offers. `class_disjoint`: no class of `train` is in `validation` or `test`; checked here.

    Args:
        train, validation, test: the three tables.
        description: one line for people: which classes are where, and by whose rule.
        class_disjoint: whether training and evaluation share no class (by name).

    Raises:
        DataError: `class_disjoint` is claimed, but a class name is on both sides.
    """

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    description: str
    class_disjoint: bool

    def __post_init__(self) -> None:
        if not self.class_disjoint:
            return
        for name, part in (("validation", self.validation), ("test", self.test)):
            both = sorted(set(self.train.class_names) & set(part.class_names))
            if both:
                raise DataError(
                    f"The split is said to be disjoint by class, but {len(both)} classes are in both train and {name}: "
                    f"{', '.join(both[:10])}. Move each to one side, or set class_disjoint: false."
                )


class ImageSource(Protocol):
    """A data set: a class whose typed arguments say where it is and how to split it.

    Constructing one reads nothing; `splits` does the work, or raises DataError saying what was looked for and where.
    """

    def splits(self) -> Splits:
        """Reads what is needed to tell images and classes apart, and splits them."""
        ...


@runtime_checkable
class SquareImages(Protocol):
    """A source that says how its images look, so that other files can be made to look like them without reading it.

    image_size: side in pixels. channels: 1 (grey) or 3 (RGB). inverted: they are light on dark, their files dark on
    light. area: they were scaled by `scale_images`.
    """

    image_size: int
    channels: int
    inverted: bool
    area: bool
