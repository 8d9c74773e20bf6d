"""Omniglot straight from its zips, official or repacked: what counts is the PNG files inside, not the zip round them.

Ink is 255 on 0: the files' black on white, inverted. Letters: n images, s side in pixels.
"""

import hashlib
import io
import re
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lossopt.data.dataset import InMemory, LabelledImages, Splits
from lossopt.data.locate import Remote, find_folder, shown
from lossopt.data.scale import scale_images
from lossopt.data.split import by_class, hold_out
from lossopt.errors import ConfigError, DataError

_SIDE = 105
_SEED = 0
_CHUNK = 4096
_SMALL = {
    "small1": ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"),
    "small2": ("Greek", "Japanese_(katakana)", "Latin", "Sanskrit", "Tagalog"),
}
# The alphabet of each two runs, found by matching all 800 images of the runs with the evaluation set, pixel by pixel.
_RUN_ALPHABETS = (
    *("Atlantean", "Ge_ez", "Glagolitic", "Gurmukhi", "Kannada", "Malayalam", "Manipuri"),
    *("Old_Church_Slavonic_(Cyrillic)", "Tengwar", "Tibetan"),
)
_RUNS, _WAYS = 20, 20
_OWNER = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
_LISTS = "https://raw.githubusercontent.com/jakesnell/prototypical-networks/master/data/omniglot/splits/vinyals/"


class _Archive(NamedTuple):
    """A zip of the data set: the members that count, how many, and the SHA-256 over their names, CRC-32s and sizes."""

    remote: Remote
    layouts: tuple[str, ...]
    member: str
    number: int
    content: str


_IMAGE_LAYOUTS = ("omniglot/omniglot-py", "omniglot-py", "omniglot", "")
_PART = r"{}/[^/.][^/]*/character\d\d/\d{{4}}_\d\d\.png"
_BACKGROUND = _Archive(
    Remote("images_background.zip", (f"{_OWNER}images_background.zip",), "68d2efa1b9178cc56df9314c21c6e718"),
    _IMAGE_LAYOUTS,
    _PART.format("images_background"),
    19_280,
    "26ff5aaebac5176fa62dab21327c8a69ea87738dc43ff59ec568a6423916945a",
)
_EVALUATION = _Archive(
    Remote("images_evaluation.zip", (f"{_OWNER}images_evaluation.zip",), "6b91aef0f799c5bb55b94e3f2daec811"),
    _IMAGE_LAYOUTS,
    _PART.format("images_evaluation"),
    13_180,
    "50b3123b3895fab692fefafd970ae5ff437d5ec014f68ef6dda227786a664291",
)
_ALL_RUNS = _Archive(
    Remote("all_runs.zip", (f"{_OWNER}one-shot-classification/all_runs.zip",), "e8996daecdf12afeeb4a53a179f06b19"),
    ("omniglot/one-shot-classification", "one-shot-classification", *_IMAGE_LAYOUTS),
    r"run\d\d/(test/item\d\d\.png|training/class\d\d\.png|class_labels\.txt)",
    820,
    "f4dd7c6c60812f93609605e1b946ea7cff2d4af38fc3c99ba59de6e0e20d7a9f",
)
_VINYALS = {
    "train": Remote("train.txt", (f"{_LISTS}train.txt",), "433d1fcc2b20dcee2983ceb524586f7f"),
    "val": Remote("val.txt", (f"{_LISTS}val.txt",), "78c535fa427b12b6596908376a0b3f34"),
    "test": Remote("test.txt", (f"{_LISTS}test.txt",), "43534e6d5f9e74acbb7de1b4874abad8"),
}


class OneShotRun(NamedTuple):
    """One of the 20 official 20-way one-shot trials, all within one alphabet of the evaluation set.

    name: "run01" ... "run20".   alphabet: its alphabet.
    query: (20, 1, s, s) uint8.   support: (20, 1, s, s) uint8, one image per character.
    answers: (20,) int64, for each query the position of its character in `support`.
    """

    name: str
    alphabet: str
    query: Tensor
    support: Tensor
    answers: Tensor


class Omniglot:
    """1,623 handwritten characters of 50 alphabets, each drawn by 20 people; grey, ink bright on black.

    Rows are sorted by alphabet, character and drawer. A class is a character ("Angelic/character01"), a group an
    alphabet.

    Args:
        root: the data folder; None: LOSSOPT_DATA, else ./data.
        split: "lake": train on the 30 background alphabets, test on all 659 characters of the 20 evaluation
            alphabets. "small1", "small2": as "lake", with Lake's five background alphabets. "vinyals": the lists of
            Vinyals et al., characters of all alphabets mixed, each quarter turn a class of its own.
        image_size: side in pixels; 105 is the original, smaller is the exact area mean.
        validation: what is held out of the background alphabets (not in "vinyals", which has a list): whole
            "alphabets", or "characters" of every alphabet. Classes are disjoint either way. The choice is by the
            SHA-256 of the names, so it is always the same.
        validation_share: how much of them: 1/6 of 30 alphabets is five.
        download: fetch files (with checksums) that are not there.

    Raises:
        ConfigError: an unknown split or validation, or a share outside (0, 1).

    Source: Lake, Salakhutdinov & Tenenbaum 2015, Science 350(6266). Licence: MIT.
    """

    channels = 1
    inverted = True
    area = True

    def __init__(
        self,
        root: str | None = None,
        split: Literal["lake", "vinyals", "small1", "small2"] = "lake",
        image_size: int = 28,
        validation: Literal["alphabets", "characters"] = "alphabets",
        validation_share: float = 1 / 6,
        download: bool = False,
    ) -> None:
        if split not in ("lake", "vinyals", "small1", "small2"):
            raise ConfigError(f"Omniglot has split lake, vinyals, small1 or small2, not {split!r}.")
        if validation not in ("alphabets", "characters"):
            raise ConfigError(f"Omniglot's validation is alphabets or characters, not {validation!r}.")
        if not 0 < validation_share < 1:
            raise ConfigError(f"validation_share lies between 0 and 1, got {validation_share}.")
        self.root, self.split, self.image_size, self.download = root, split, image_size, download
        self.validation, self.validation_share = validation, validation_share

    def splits(self) -> Splits:
        """The three tables, in memory. Raises: DataError: files missing, or not Omniglot's."""
        return self._vinyals() if self.split == "vinyals" else self._lake()

    def _lake(self) -> Splits:
        background = self._table(_BACKGROUND, _SMALL.get(self.split))
        names, share = background.class_names, self.validation_share
        alphabets = {_alphabet(name) for name in names}
        if self.validation == "alphabets":
            chosen = hold_out(alphabets, share, _SEED)
            held = {name for name in names if _alphabet(name) in chosen}
            what = f"{len(chosen)} of the {len(alphabets)} alphabets ({', '.join(sorted(chosen))})"
        else:
            held = set()
            for alphabet in alphabets:
                held |= hold_out((name for name in names if _alphabet(name) == alphabet), share, _SEED)
            what = f"{len(held)} of the {len(names)} characters, a share of each of the {len(alphabets)} alphabets"
        kind = "background" if self.split == "lake" else f"{self.split} background"
        return Splits(
            by_class(background, held, keep=False),
            by_class(background, held),
            self._table(_EVALUATION),
            f"Omniglot, Lake's split ({kind}): train on {len(names) - len(held)} background characters, validate on "
            f"{what}, test on the 659 characters of the 20 evaluation alphabets (class-disjoint).",
            class_disjoint=True,
        )

    def _vinyals(self) -> Splits:
        folder = find_folder(
            "Omniglot's split by Vinyals",
            self.root,
            ("omniglot/splits/vinyals", "splits/vinyals", "omniglot-py/splits/vinyals"),
            [remote.name for remote in _VINYALS.values()],
            list(_VINYALS.values()),
            self.download,
        )
        turned = _joined(self._table(_BACKGROUND), self._table(_EVALUATION)).with_rotations()
        train, validation, test = (_listed(turned, folder / remote.name) for remote in _VINYALS.values())
        return Splits(
            train,
            validation,
            test,
            f"Omniglot, the lists of Vinyals et al.: characters of all 50 alphabets mixed, a quarter turn is a class; "
            f"{len(train.class_names)} train, {len(validation.class_names)} validation and {len(test.class_names)} "
            "test classes (class-disjoint). Not comparable with Lake's split: it trains on evaluation alphabets.",
            class_disjoint=True,
        )

    def _table(self, archive: _Archive, alphabets: tuple[str, ...] | None = None) -> LabelledImages:
        return _read_table(_find(archive, self.root, self.download), archive, self.image_size, alphabets)


def one_shot_runs(root: str | None = None, image_size: int = 28, download: bool = False) -> list[OneShotRun]:
    """The 20 official one-shot runs; images treated as in `Omniglot`.

    Raises:
        DataError: all_runs.zip is missing, or is not the owner's.

    Source: Lake, Salakhutdinov & Tenenbaum 2015; all_runs.zip of the authors' repository.
    """
    path = _find(_ALL_RUNS, root, download)
    runs = []
    with _open(path) as archive:
        _members(archive, path, _ALL_RUNS)
        for number in range(1, _RUNS + 1):
            name = f"run{number:02d}"
            lines = archive.read(f"{name}/class_labels.txt").decode().splitlines()
            query, answers = zip(*(line.split() for line in lines if line.strip()), strict=True)
            support = [f"{name}/training/class{way:02d}.png" for way in range(1, _WAYS + 1)]
            runs.append(
                OneShotRun(
                    name,
                    _RUN_ALPHABETS[(number - 1) // 2],
                    _decode(archive, list(query), image_size),
                    _decode(archive, support, image_size),
                    torch.tensor([support.index(answer) for answer in answers]),
                )
            )
    return runs


def _find(archive: _Archive, root: str | None, download: bool) -> Path:
    name = archive.remote.name
    return find_folder("Omniglot", root, archive.layouts, [name], [archive.remote], download) / name


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as failure:
        raise DataError(f"{shown(path)} is not a readable zip ({failure}). Delete it and fetch it again.") from failure


def _members(archive: zipfile.ZipFile, path: Path, expected: _Archive) -> list[str]:
    """The names that count, sorted; the directory of the zip alone tells whether they are the right files."""
    members = [entry for entry in archive.infolist() if re.fullmatch(expected.member, entry.filename)]
    lines = sorted(f"{entry.filename} {entry.CRC:08x} {entry.file_size}\n" for entry in members)
    if len(lines) != expected.number or hashlib.sha256("".join(lines).encode()).hexdigest() != expected.content:
        raise DataError(
            f"{shown(path)} is not Omniglot's {expected.remote.name}: it holds {len(lines):,} of its kind of files, "
            f"expected {expected.number:,} with the owner's content. Delete it and fetch it again."
        )
    return sorted(entry.filename for entry in members)


def _read_table(
    path: Path, expected: _Archive, image_size: int, alphabets: tuple[str, ...] | None = None
) -> LabelledImages:
    """The images of the named alphabets, or of all."""
    with _open(path) as archive:
        members = _members(archive, path, expected)
        if alphabets is not None:
            members = [member for member in members if member.split("/")[1] in alphabets]
        images = _decode(archive, members, image_size)
    names = [member.partition("/")[2].removesuffix(".png") for member in members]
    characters = [name.rpartition("/")[0] for name in names]
    class_names = tuple(sorted(set(characters)))
    group_names = tuple(sorted({_alphabet(name) for name in class_names}))
    labels = {name: label for label, name in enumerate(class_names)}
    groups = {name: group for group, name in enumerate(group_names)}
    return LabelledImages(
        pixels=InMemory(images),
        labels=torch.tensor([labels[name] for name in characters]),
        class_names=class_names,
        names=names,
        groups=torch.tensor([groups[_alphabet(name)] for name in characters]),
        group_names=group_names,
    )


def _decode(archive: zipfile.ZipFile, members: list[str], image_size: int) -> Tensor:
    """(n, 1, s, s) uint8, inverted; scaled by chunks, so that the originals are never all in memory."""
    parts = []
    for start in range(0, len(members), _CHUNK):
        chunk = members[start : start + _CHUNK]
        ink = np.empty((len(chunk), 1, _SIDE, _SIDE), np.uint8)
        for row, member in enumerate(chunk):
            try:
                with Image.open(io.BytesIO(archive.read(member)), formats=("PNG",)) as image:
                    np.logical_not(np.asarray(image), out=ink[row, 0], casting="unsafe")
            except (OSError, SyntaxError, ValueError, zipfile.BadZipFile) as failure:
                where = f"{shown(archive.filename or 'the zip')}: {member}"
                raise DataError(f"{where} is damaged ({failure}). Delete the zip and fetch it again.") from failure
        parts.append(scale_images(torch.from_numpy(ink).mul_(255), image_size))
    return torch.cat(parts)


def _joined(first: LabelledImages, second: LabelledImages) -> LabelledImages:
    """Two tables in memory as one; their classes and groups have nothing in common."""
    return LabelledImages(
        pixels=InMemory(torch.cat([table.pixels.read(torch.arange(len(table))) for table in (first, second)])),
        labels=torch.cat([first.labels, second.labels + len(first.class_names)]),
        class_names=first.class_names + second.class_names,
        names=[*first.names, *second.names],
        groups=torch.cat([_groups(first), _groups(second) + len(first.group_names)]),
        group_names=first.group_names + second.group_names,
    )


def _groups(table: LabelledImages) -> Tensor:
    """(n,) the alphabet of each row, which every table of this file has."""
    return table.groups if table.groups is not None else torch.zeros_like(table.labels)


def _listed(turned: LabelledImages, path: Path) -> LabelledImages:
    """The rows of the classes that a list of Vinyals names; `rot000` is the class as it is drawn."""
    classes = {line.strip().removesuffix("/rot000") for line in path.read_text("utf-8").splitlines() if line.strip()}
    unknown = sorted(classes - set(turned.class_names))
    if unknown or not classes:
        raise DataError(f"{shown(path)} names {len(unknown)} unknown classes {unknown[:10]} of {len(classes)} in all.")
    return by_class(turned, classes)


def _alphabet(class_name: str) -> str:
    return class_name.partition("/")[0]
