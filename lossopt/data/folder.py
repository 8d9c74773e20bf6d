"""A folder of class folders: every visible image below a class folder is of that class; nothing else is guessed."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lossopt.data.dataset import LabelledImages, Splits
from lossopt.data.files import LabelledFile, tabulate
from lossopt.data.locate import leaves, listing, shown, user_folder
from lossopt.data.split import Shares, hold_out_validation, share_out, training_only
from lossopt.errors import ConfigError, DataError

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
_PARTS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_SYSTEM = frozenset(("__macosx", "thumbs.db", "desktop.ini", "@eadir"))
_ACCEPTED = (
    "one folder per class with its images in it, or the folders train, validation (or val) and test, each with one "
    "folder per class"
)


class Folder:
    """Images sorted into one folder per class.

    Hidden files and folders (a name starting with a dot, __MACOSX, Thumbs.db) and files that are not images by
    their ending are left out and counted in the description.

    Args:
        path: the folder; if relative and not there, it is looked for below LOSSOPT_DATA (else ./data).
        image_size: side of the square in pixels.
        channels: 1 (grey) or 3 (RGB).
        split: "folders": the folders train, validation (or val) and test are taken as they are; with only one of
            the last two, that one is the test and validation is held out of train. "shares": the class folders are
            shared out. "auto": "folders" when there is a folder train beside val, validation or test.
        class_disjoint: no class is in training and in evaluation: refused when the folders say otherwise, and whole
            classes are shared out. False: images of each class are shared out.
        shares: of train, validation and test.
        seed: of the sharing-out, which depends on names only.
        allow_empty: leave class folders without an image out, instead of refusing.
        allow_outside: follow links that lead out of the folder, instead of refusing.
        check: open the header of every image first.

    Raises:
        ConfigError: an unknown split.
    """

    inverted = False
    area = False

    def __init__(
        self,
        path: str,
        image_size: int = 64,
        channels: Literal[1, 3] = 3,
        split: Literal["auto", "folders", "shares"] = "auto",
        class_disjoint: bool = True,
        shares: tuple[float, float, float] = (0.7, 0.15, 0.15),
        seed: int = 0,
        allow_empty: bool = False,
        allow_outside: bool = False,
        check: bool = True,
    ) -> None:
        if split not in ("auto", "folders", "shares"):
            raise ConfigError(f"Folder has split auto, folders or shares, not {split!r}.")
        self.path, self.image_size, self.channels, self.split = path, image_size, channels, split
        self.class_disjoint, self.shares, self.seed = class_disjoint, shares, seed
        self.allow_empty, self.allow_outside, self.check = allow_empty, allow_outside, check

    def splits(self) -> Splits:
        """The three tables; pixels stay on disk.

        Raises:
            DataError: missing or empty folders, links that lead out, unreadable images, a class on both sides.
        """
        root = user_folder(self.path, "Folder", _ACCEPTED)
        parts = {_PARTS[name.lower()]: root / name for name in _folders(root) if name.lower() in _PARTS}
        by_folders = self.split == "folders" or (self.split == "auto" and "train" in parts and len(parts) > 1)
        if by_folders and ("train" not in parts or len(parts) < 2):
            raise DataError(f"{shown(root)} has no folder train beside validation or test. Accepted: {_ACCEPTED}")
        scan = _Scan(root, self.allow_outside)
        if by_folders:
            train, validation, test, rule = arrange(
                {part: self._table(scan, folder) for part, folder in parts.items()},
                self.shares,
                self.seed,
                self.class_disjoint,
            )
        else:
            table = self._table(scan, root)
            train, validation, test = share_out(table, self.shares, self.seed, self.class_disjoint)
            rule = sharing_rule(self.shares, self.seed, self.class_disjoint)
        description = f"Folder {shown(root)}: {rule}{scan.left_out()}."
        return Splits(train, validation, test, description, self.class_disjoint)

    def _table(self, scan: "_Scan", folder: Path) -> LabelledImages:
        files = scan.class_folders(folder, self.allow_empty)
        return tabulate(files, self.image_size, self.channels, self.check)


def read_images(
    path: Path,
    image_size: int,
    channels: int,
    inverted: bool = False,
    allow_outside: bool = False,
    area: bool = False,
) -> tuple[LabelledImages, str]:
    """Images to be embedded: one file, or every visible image below a folder, of the class of its class folder.

    An image that lies in no class folder has the class "": nobody knows what it shows.

    Args:
        path: the file or the folder.
        image_size, channels, inverted, area: see `OnDisk`.
        allow_outside: follow links that lead out of the folder, instead of refusing.

    Returns:
        The table, and in words where it is from and what was left out.

    Raises:
        DataError: no such file or folder, no image in it, a split folder's parent, links that lead out, unreadable
            images.
    """
    if not path.exists():
        raise DataError(f"There is no file or folder {shown(path)}. Give an image, or a folder of images.")
    if path.is_file():
        files, left_out = [LabelledFile(path, shown(path.name), "")], ""
    else:
        parts = [name for name in _folders(path) if name.lower() in _PARTS]
        if len(parts) > 1 and "train" in map(str.lower, parts):
            raise DataError(
                f"{shown(path)} holds the parts of a split ({', '.join(parts)}): give one of these folders."
            )
        scan = _Scan(path, allow_outside)
        files = scan.everything()
        left_out = scan.left_out()
    table = tabulate(files, image_size, channels, check=True, inverted=inverted, area=area)
    return table, f"{len(files):,} images of {shown(path.absolute().name)}{left_out}"


def sharing_rule(shares: Shares, seed: int, class_disjoint: bool) -> str:
    """What `share_out` does, in words."""
    proportion = ":".join(f"{share:g}" for share in shares)
    what = "classes shared out (class-disjoint)" if class_disjoint else "images of each class shared out (closed set)"
    return f"{what} {proportion} to train, validation and test by name and seed {seed}"


def arrange(
    parts: dict[str, LabelledImages], shares: Shares, seed: int, class_disjoint: bool
) -> tuple[LabelledImages, LabelledImages, LabelledImages, str]:
    """Train, validation and test from the parts that the user made ("train" and one or both others), and the rule.

    With only one evaluation part, that is the test, and validation is held out of train in the proportion of
    `shares`, so that the choice of a model never looks at the test.
    """
    kind = "class-disjoint" if class_disjoint else "classes may be in train and test"
    if len(parts) == 3:
        return training_only(parts["train"]), parts["validation"], parts["test"], f"split as given ({kind})"
    (name,) = set(parts) - {"train"}
    share = shares[1] / (shares[0] + shares[1])
    train, validation = hold_out_validation(parts["train"], share, seed, class_disjoint)
    what = "classes" if class_disjoint else "images of each class"
    rule = f"test is the part {name} as given; validation is {share:.0%} of the training {what}, held out ({kind})"
    return train, validation, parts[name], rule


@dataclass
class _Scan:
    """Walks the folders, refusing links that lead out, and counts what it leaves out."""

    root: Path
    allow_outside: bool
    hidden: int = 0
    others: int = 0
    empty: int = 0
    outside: list[str] = field(default_factory=list)

    def class_folders(self, folder: Path, allow_empty: bool) -> list[LabelledFile]:
        """All images of all classes below `folder`, sorted by class and path."""
        files: list[LabelledFile] = []
        empty, loose = [], 0
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if _hidden(entry.name):
                self.hidden += 1
            elif entry.is_dir():
                found = self._images(Path(entry.path), entry.name)
                files += found
                if not found:
                    empty.append(entry.name)
            else:
                loose += 1
        self.others += loose
        self.empty += len(empty)
        self._refuse_outside()
        if not files and loose:
            raise DataError(
                f"{shown(folder)} has {loose} files, but no class folder with images. Accepted: {_ACCEPTED}"
            )
        if not files or (empty and not allow_empty):
            named = listing([shown(name) for name in empty]) or "there is none"
            raise DataError(
                f"{len(empty)} class folders of {shown(folder)} hold no image: {named}. Remove them, put images in "
                "(allow_empty: true leaves them out, if others have images)."
            )
        return files

    def everything(self) -> list[LabelledFile]:
        """All images below the root, sorted by path; the class of those outside of class folders is ""."""
        files: list[LabelledFile] = []
        for entry in sorted(os.scandir(self.root), key=lambda entry: entry.name):
            if _hidden(entry.name):
                self.hidden += 1
            elif entry.is_dir():
                files += self._images(Path(entry.path), entry.name)
            else:
                files += self._taken(Path(entry.path), "")
        self._refuse_outside()
        if not files:
            raise DataError(f"There is no image in {shown(self.root)} (by its ending: {', '.join(sorted(SUFFIXES))}).")
        return files

    def left_out(self) -> str:
        """The counts, for the description."""
        counts = {"hidden files or folders": self.hidden, "files that are no images": self.others}
        counts |= {"empty class folders": self.empty}
        told = [f"{count} {what}" for what, count in counts.items() if count]
        return f"; left out: {', '.join(told)}" if told else ""

    def _images(self, folder: Path, class_name: str) -> list[LabelledFile]:
        if folder.is_symlink():
            self._follow(folder)
            if self.root.resolve().is_relative_to(folder.resolve()):
                raise DataError(f"The link {shown(folder)} leads back to a folder that contains it; remove it.")
        found = []
        for place, folders, names in os.walk(folder):
            for name in folders:
                if (Path(place) / name).is_symlink():
                    raise DataError(f"{shown(Path(place) / name)} is a link to a folder; put the images there instead.")
            self.hidden += sum(_hidden(name) for name in folders)
            folders[:] = sorted(name for name in folders if not _hidden(name))
            for name in sorted(names):
                found += self._taken(Path(place) / name, class_name)
        return found

    def _taken(self, path: Path, class_name: str) -> list[LabelledFile]:
        """The file, if it is a visible image; else it is counted."""
        if _hidden(path.name):
            self.hidden += 1
        elif path.suffix.lower() not in SUFFIXES:
            self.others += 1
        else:
            if path.is_symlink():
                self._follow(path)
            return [LabelledFile(path, shown(path.relative_to(self.root)), shown(class_name))]
        return []

    def _follow(self, link: Path) -> None:
        if not self.allow_outside and leaves(self.root, link):
            self.outside.append(f"{shown(link)} -> {shown(os.path.realpath(link))}")

    def _refuse_outside(self) -> None:
        if self.outside:
            raise DataError(
                f"{len(self.outside)} links lead out of {shown(self.root)}: {listing(self.outside)}. Copy the files "
                "in, or pass allow_outside: true if you trust them."
            )


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not _hidden(entry.name))
