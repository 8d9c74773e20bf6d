"""Blood cells (BCCD) straight from the zip: a window round each cell, with its class, its place and its size.

Letters: n windows, s side in pixels.
"""

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lossopt.data.dataset import InMemory, LabelledImages, Splits
from lossopt.data.locate import find_folder, shown
from lossopt.errors import ConfigError, DataError

_ZIP = "BCCD.zip"
_LAYOUTS = ("bccd", "BCCD", "")
# Everything but the ImageSets of other tasks; a folder may stand in front, as in the zip that GitHub makes.
_MEMBER = re.compile(r"(?:[^/]+/)?(BCCD/(?:Annotations/[^/]+\.xml|JPEGImages/[^/]+\.jpg|ImageSets/Main/[^/]+\.txt))")
_NUMBER = 732
_CONTENT = "71b8b9627d476ae4f7c40ada5781cc96ebfc8f0ac840fbc77b4e42057867f807"
_EVALUATION_SEED = 1
_BORDERS: dict[str, Literal["constant", "reflect"]] = {"black": "constant", "mirror": "reflect"}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Cells(NamedTuple):
    """The cells of one micrograph. labels: (k,). centres, sizes: (k, 2) x and y in pixels of the micrograph."""

    labels: np.ndarray
    centres: np.ndarray
    sizes: np.ndarray


class BCCD:
    """4,886 blood cells of 364 micrographs: what is the cell nearest the middle of the window, where, and how large?

    A window is cut round every cell, its middle up to `jitter` pixels off the cell's. Neighbours may come nearer to
    the middle than the cell itself: then they are what is asked for. Classes: "RBC" (85 %), "WBC" and "Platelets";
    report balanced accuracy. Groups: the micrographs. Targets:

        dx, dy          from the middle of the window to that of the cell's box, right and down, in half windows
        width, height   of the box, in windows

    The splits are the owner's, by micrograph. Validation and test windows are one for each cell, and always the same.

    Args:
        root: the data folder; None: LOSSOPT_DATA, else ./data.
        image_size: side of the images in pixels (bilinear, smoothed when it shrinks).
        window: side of the windows in pixels of the micrograph, which is 640 x 480.
        jitter: the middle of a window is off by so many pixels at most, across and down, uniform.
        windows_per_cell: in training, each with a jitter of its own.
        border: what lies beyond the micrograph. "black", or "mirror": there a box that ends at the edge looks like a
            whole cell, with half of the box.
        train: "train" (205 micrographs; the 87 of "val" validate), or "trainval": both, for a last fit. Validation
            then says nothing, for it is trained on.
        seed: of the training windows.

    Raises:
        ConfigError: a number that is not positive, a negative jitter or one that a window does not reach.

    Source: https://github.com/Shenggan/BCCD_Dataset, from data and annotations of cosmicad and akshaylamba; the zip
    that GitHub makes of it is read, too, if it is called BCCD.zip. Licence: MIT. Two boxes without area are left out.
    """

    channels = 3
    inverted = False
    area = False
    class_names = ("RBC", "WBC", "Platelets")
    target_names = ("dx", "dy", "width", "height")

    def __init__(
        self,
        root: str | None = None,
        image_size: int = 80,
        window: int = 240,
        jitter: int = 24,
        windows_per_cell: int = 1,
        border: Literal["black", "mirror"] = "black",
        train: Literal["train", "trainval"] = "train",
        seed: int = 0,
    ) -> None:
        for name, given in (("image_size", image_size), ("window", window), ("windows_per_cell", windows_per_cell)):
            if given < 1:
                raise ConfigError(f"BCCD's {name} is {given}; it must be 1 or more.")
        if not 0 <= 2 * jitter < window:
            raise ConfigError(f"BCCD's jitter is 0 or more and less than half the window of {window}, got {jitter}.")
        if border not in _BORDERS:
            raise ConfigError(f"BCCD's border is {' or '.join(_BORDERS)}, not {border!r}.")
        if train not in ("train", "trainval"):
            raise ConfigError(f"BCCD trains on train or trainval, not {train!r}.")
        self.root, self.image_size, self.window, self.jitter = root, image_size, window, jitter
        self.windows_per_cell, self.border, self.train, self.seed = windows_per_cell, border, train, seed

    def splits(self) -> Splits:
        """The three tables, in memory. Raises: DataError: the zip is missing, or is not the owner's."""
        path = find_folder("BCCD", self.root, _LAYOUTS, [_ZIP]) / _ZIP
        try:
            with zipfile.ZipFile(path) as archive:
                members = _members(archive, path)
                tables = (
                    self._table(archive, members, self.train, self.windows_per_cell, self.seed),
                    self._table(archive, members, "val", 1, _EVALUATION_SEED),
                    self._table(archive, members, "test", 1, _EVALUATION_SEED),
                )
        except (zipfile.BadZipFile, OSError) as failure:
            raise DataError(f"{shown(path)} is damaged ({failure}). Delete it and fetch it again.") from failure
        within = "; it is trained on, so its figures say nothing" if self.train == "trainval" else ""
        return Splits(
            *tables,
            f"BCCD, the owner's split by micrograph: train on {self.train}, {self.windows_per_cell} windows a cell; "
            f"validate on val{within}; test on test, one window a cell (the same classes everywhere).",
            class_disjoint=False,
        )

    def _table(
        self, archive: zipfile.ZipFile, members: dict[str, str], part: str, windows: int, seed: int
    ) -> LabelledImages:
        generator = np.random.default_rng(seed)
        images: list[np.ndarray] = []
        labels: list[int] = []
        targets: list[np.ndarray] = []
        names: list[str] = []
        groups: list[int] = []
        micrographs = archive.read(members[f"BCCD/ImageSets/Main/{part}.txt"]).decode().split()
        for group, micrograph in enumerate(micrographs):
            cells = self._cells(archive.read(members[f"BCCD/Annotations/{micrograph}.xml"]))
            picture = self._picture(archive.read(members[f"BCCD/JPEGImages/{micrograph}.jpg"]))
            for row, middle in enumerate(self._middles(cells, windows, generator)):
                nearest = ((cells.centres - middle) ** 2).sum(axis=1).argmin()
                images.append(self._cut(picture, middle))
                labels.append(cells.labels[nearest])
                offset = (cells.centres[nearest] - middle) / (self.window / 2)
                targets.append(np.concatenate([offset, cells.sizes[nearest] / self.window]))
                names.append(f"{part}/{micrograph}/{row:03d}")
                groups.append(group)
        return LabelledImages(
            pixels=InMemory(_channels_first(images)),
            labels=torch.tensor(labels),
            class_names=self.class_names,
            names=names,
            groups=torch.tensor(groups),
            group_names=tuple(micrographs),
            targets=torch.from_numpy(np.stack(targets).astype(np.float32)),
            target_names=self.target_names,
        )

    def _cells(self, annotation: bytes) -> _Cells:
        """The boxes that have an area, in the order of the file."""
        objects = list(ElementTree.fromstring(annotation).iter("object"))
        corners = [[float(item.findtext(f"bndbox/{corner}", "nan")) for corner in _CORNERS] for item in objects]
        box = np.array(corners)
        labels = np.array([self.class_names.index(item.findtext("name", "")) for item in objects])
        first, last = box[:, :2], box[:, 2:]
        kept = (last > first).all(axis=1)
        return _Cells(labels[kept], ((first + last) / 2)[kept], (last - first)[kept])

    def _middles(self, cells: _Cells, windows: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
        """The middle (x, y) of each window, in whole pixels of the micrograph."""
        for centre in cells.centres:
            for _ in range(windows):
                yield np.round(centre + generator.uniform(-self.jitter, self.jitter, 2)).astype(int)

    def _picture(self, content: bytes) -> np.ndarray:
        """(h + 2 window, w + 2 window, 3) uint8: a micrograph with a margin for the windows at its edge."""
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            picture = np.asarray(image.convert("RGB"))
        margin = ((self.window, self.window), (self.window, self.window), (0, 0))
        return np.pad(picture, margin, mode=_BORDERS[self.border])

    def _cut(self, picture: np.ndarray, middle: np.ndarray) -> np.ndarray:
        """(s, s, 3) window of a micrograph that has a margin of one window all round."""
        x, y = middle + self.window - self.window // 2
        window = Image.fromarray(picture[y : y + self.window, x : x + self.window])
        return np.asarray(window.resize((self.image_size, self.image_size), Image.Resampling.BILINEAR))


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, str]:
    """From a file's name below the owner's folder to its name in the zip; whose content must be the owner's."""
    found = {match[1]: entry for entry in archive.infolist() if (match := _MEMBER.fullmatch(entry.filename))}
    lines = sorted(f"{name} {entry.CRC:08x} {entry.file_size}\n" for name, entry in found.items())
    if len(lines) != _NUMBER or hashlib.sha256("".join(lines).encode()).hexdigest() != _CONTENT:
        raise DataError(
            f"{shown(path)} does not hold the BCCD folder of https://github.com/Shenggan/BCCD_Dataset: {len(lines):,} "
            f"of its kind of files, expected {_NUMBER:,} with the owner's content. Fetch it again from there."
        )
    return {name: entry.filename for name, entry in found.items()}


def _channels_first(images: list[np.ndarray]) -> Tensor:
    """(n, 3, s, s) uint8; filled one by one, so that the windows are not in memory three times at once."""
    stacked = np.empty((len(images), 3, *images[0].shape[:2]), np.uint8)
    for image, place in zip(images, stacked, strict=True):
        place[:] = image.transpose(2, 0, 1)
    return torch.from_numpy(stacked)
