"""Image files with a class name each become one table; labels are positions among the sorted class names."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from lossopt.data.dataset import LabelledImages, OnDisk
from lossopt.data.decode import Box, check_headers


class LabelledFile(NamedTuple):
    """An image file: where it is, its unique name for people, and its class.

    group: alphabet, camera, shelf. query, gallery: its parts in an evaluation. crop: see `decode_image`.
    None in any of these means that it is not stated; a table states it for all of its files or for none.
    """

    path: Path
    name: str
    class_name: str
    group: str | None = None
    query: bool | None = None
    gallery: bool | None = None
    crop: Box | None = None


def tabulate(
    files: Sequence[LabelledFile],
    image_size: int,
    channels: int,
    check: bool = False,
    inverted: bool = False,
    area: bool = False,
) -> LabelledImages:
    """The table of these files, in their order.

    Args:
        files: n files.
        image_size, channels: see `decode_image`.
        check: open every header first.
        inverted, area: see `OnDisk`.

    Raises:
        DataError: `check`, and a header cannot be read.
    """
    if check:
        check_headers([file.path for file in files])
    class_names, labels = _numbered([file.class_name for file in files])
    grouped = bool(files) and files[0].group is not None
    group_names, groups = _numbered([file.group or "" for file in files]) if grouped else ((), None)
    crops = [file.crop for file in files]
    return LabelledImages(
        pixels=OnDisk(
            [file.path for file in files],
            image_size,
            channels,
            crops if any(crop is not None for crop in crops) else None,
            inverted,
            area,
        ),
        labels=labels,
        class_names=class_names,
        names=[file.name for file in files],
        groups=groups,
        group_names=group_names,
        query=_marks([file.query for file in files]),
        gallery=_marks([file.gallery for file in files]),
    )


def _numbered(names: list[str]) -> tuple[tuple[str, ...], torch.Tensor]:
    """The distinct names, sorted, and the position of each."""
    distinct = sorted(set(names))
    position = {name: number for number, name in enumerate(distinct)}
    return tuple(distinct), torch.tensor([position[name] for name in names], dtype=torch.int64)


def _marks(values: list[bool | None]) -> torch.Tensor | None:
    if all(value is None for value in values):
        return None
    return torch.tensor([bool(value) for value in values], dtype=torch.bool)
