"""A CSV that names images and their classes: every cell is text and stays exactly as written."""

import csv
import os
import warnings
from pathlib import Path
from typing import Literal

from lossopt.data.dataset import Splits
from lossopt.data.files import LabelledFile, tabulate
from lossopt.data.folder import arrange, sharing_rule
from lossopt.data.locate import data_root, listing, shown
from lossopt.data.split import share_out
from lossopt.errors import DataError

COLUMNS = ("path", "label", "split", "query", "gallery", "group")
_REQUIRED = ("path", "label")
_SPLITS = ("train", "validation", "test")
_TRUTH = {"1": True, "true": True, "0": False, "false": False}
_HELP = f"Required columns: path, label; optional: {', '.join(COLUMNS[2:])}."


class Manifest:
    """Images listed in a CSV with the columns `path,label` and, where wanted, `split,query,gallery,group`.

    UTF-8 with or without BOM; commas, semicolons or tabs. Labels are text: "NA", "001" and " cat" are what they are;
    labels that differ only by case or surrounding blanks stay apart and are warned about.

        split     train, validation (or val), test. Without it, classes are shared out. With only one of validation
                  and test, that one is the test and validation is held out of train.
        query     1 or true: asks in an evaluation.  gallery: 1 or true: is searched. Training rows may be blank.
        group     alphabet, camera, shelf: any text.

    Args:
        path: the CSV; if relative and not there, it is looked for below LOSSOPT_DATA (else ./data).
        root: the folder that the paths in it start from; None: the CSV's own folder.
        image_size: side of the square in pixels.
        channels: 1 (grey) or 3 (RGB).
        class_disjoint: no class is in training and in evaluation: refused when the split column says otherwise.
        shares: of train, validation and test, where there is no split column.
        seed: of the sharing-out, which depends on names only.
        allow_outside: accept absolute paths, `..` and links that lead out of `root`, instead of refusing.
        check: open the header of every image first.
    """

    inverted = False
    area = False

    def __init__(
        self,
        path: str,
        root: str | None = None,
        image_size: int = 64,
        channels: Literal[1, 3] = 3,
        class_disjoint: bool = True,
        shares: tuple[float, float, float] = (0.7, 0.15, 0.15),
        seed: int = 0,
        allow_outside: bool = False,
        check: bool = True,
    ) -> None:
        self.path, self.root, self.image_size, self.channels = path, root, image_size, channels
        self.class_disjoint, self.shares, self.seed = class_disjoint, shares, seed
        self.allow_outside, self.check = allow_outside, check

    def splits(self) -> Splits:
        """The three tables; pixels stay on disk.

        Raises:
            DataError: the CSV is missing or malformed, names a file twice, a missing file, or one outside `root`;
                an image cannot be read; a class is on both sides.
        """
        path = _find(self.path)
        rows = read_rows(path)
        root = Path(self.root).expanduser() if self.root else path.parent
        paths = [root / row["path"] for row in rows]
        self._refuse_outside(path, root, rows, paths)
        _refuse_missing(path, paths)
        _refuse_twice(path, rows, paths)
        _warn_of_near_equals(path, [row["label"] for row in rows])
        parts = _parts(path, rows, [_labelled(path, row, file) for row, file in zip(rows, paths, strict=True)])
        tables = {part: tabulate(files, self.image_size, self.channels, self.check) for part, files in parts.items()}
        if "all" in tables:
            train, validation, test = share_out(tables["all"], self.shares, self.seed, self.class_disjoint)
            rule = sharing_rule(self.shares, self.seed, self.class_disjoint)
        else:
            train, validation, test, rule = arrange(tables, self.shares, self.seed, self.class_disjoint)
        return Splits(train, validation, test, f"Manifest {shown(path)}: {rule}.", self.class_disjoint)

    def _refuse_outside(self, path: Path, root: Path, rows: list[dict[str, str]], paths: list[Path]) -> None:
        if self.allow_outside:
            return
        real_root = os.path.realpath(root)
        real_folders: dict[Path, str] = {}  # one realpath per folder, not per file
        outside = []
        for row, file in zip(rows, paths, strict=True):
            if file.parent not in real_folders:
                real_folders[file.parent] = os.path.realpath(file.parent)
            real = os.path.realpath(file) if file.is_symlink() else os.path.join(real_folders[file.parent], file.name)
            if Path(row["path"]).is_absolute() or not Path(os.path.normpath(real)).is_relative_to(real_root):
                outside.append(f"line {row['line']}: {row['path']!r}")
        if outside:
            raise DataError(
                f"{shown(path)}: {len(outside)} paths are absolute or lead out of {shown(root)}: {listing(outside)}. "
                "Make them relative to that folder (argument root), or pass allow_outside: true if you trust the file."
            )


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a manifest as text, exactly as written, each with its line number under "line".

    Raises:
        DataError: not UTF-8, malformed CSV, columns missing, a cell too few or too many, an empty path or label.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=header.count)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            table = [(reader.line_num, cells) for cells in reader if cells]
    except (UnicodeDecodeError, csv.Error, OSError) as failure:
        raise DataError(f"{shown(path)} cannot be read as a CSV in UTF-8: {failure}. {_HELP}") from failure
    columns = [name.strip() for name in table[0][1]] if table else []
    missing = [name for name in _REQUIRED if name not in columns]
    if missing or len(set(columns)) < len(columns):
        problem = f"lacks the column {', '.join(missing)}" if missing else "has a column twice"
        raise DataError(f"{shown(path)} {problem}; its columns are {columns}. {_HELP}")
    ragged = [f"line {line} has {len(cells)} cells" for line, cells in table[1:] if len(cells) != len(columns)]
    if ragged:
        raise DataError(f"{shown(path)}: {listing(ragged)}; the header has {len(columns)}. Quote cells with commas.")
    rows = [dict(zip(columns, cells, strict=True)) | {"line": str(line)} for line, cells in table[1:]]
    blank = [f"line {row['line']}" for row in rows if not row["path"].strip() or not row["label"].strip()]
    if blank or not rows:
        where = f"an empty path or label in {listing(blank)}" if blank else "no row below the header"
        raise DataError(f"{shown(path)}: {where}. Every row names an image and its class.")
    return rows


def _find(given: str) -> Path:
    path = Path(given).expanduser()
    tried = [path] if path.is_absolute() else [path, data_root(None) / path]
    for candidate in tried:
        if candidate.is_file():
            return candidate
    looked = " and ".join(shown(candidate.absolute()) for candidate in tried)
    raise DataError(f"There is no manifest at {looked}. It is a CSV file. {_HELP}")


def _refuse_missing(path: Path, paths: list[Path]) -> None:
    missing = [shown(file) for file in paths if "\0" in str(file) or not file.exists()]
    if missing:
        raise DataError(
            f"{shown(path)} names {len(missing)} files (of {len(paths)}) that do not exist: {listing(missing)}. "
            "Correct the paths, or set the folder that they start from (argument root)."
        )


def _refuse_twice(path: Path, rows: list[dict[str, str]], paths: list[Path]) -> None:
    first: dict[str, str] = {}
    twice = []
    for row, file in zip(rows, paths, strict=True):
        place = os.path.normpath(file)
        if place in first:
            twice.append(f"{row['path']} (lines {first[place]} and {row['line']})")
        first.setdefault(place, row["line"])
    if twice:
        raise DataError(f"{shown(path)} names {len(twice)} files more than once: {listing(twice)}. Keep one row each.")


def _warn_of_near_equals(path: Path, labels: list[str]) -> None:
    spellings: dict[str, set[str]] = {}
    for label in labels:
        spellings.setdefault(label.strip().casefold(), set()).add(label)
    near = [" / ".join(repr(label) for label in sorted(group)) for group in spellings.values() if len(group) > 1]
    if near:
        warnings.warn(
            f"{shown(path)}: labels that differ only by case or blanks are different classes: {listing(near)}. "
            "If they mean one class, spell them alike.",
            UserWarning,
            stacklevel=3,
        )


def _labelled(path: Path, row: dict[str, str], file: Path) -> LabelledFile:
    marks = {name: _mark(path, row, name) for name in ("query", "gallery")}
    return LabelledFile(file, row["path"], row["label"], row.get("group"), marks["query"], marks["gallery"])


def _mark(path: Path, row: dict[str, str], column: str) -> bool | None:
    """A cell of the column query or gallery; None: there is no such column, or it is blank in a training row."""
    if column not in row:
        return None
    text = row[column].strip().lower()
    if not text and row.get("split", "").strip() == "train":
        return None
    if text not in _TRUTH:
        raise DataError(
            f"{shown(path)}, line {row['line']}: {column} is {row[column]!r}; allowed: {', '.join(_TRUTH)} "
            "(blank in training rows only)."
        )
    return _TRUTH[text]


def _parts(path: Path, rows: list[dict[str, str]], files: list[LabelledFile]) -> dict[str, list[LabelledFile]]:
    """The files of each split; all under "all" where there is no split column."""
    if "split" not in rows[0]:
        return {"all": files}
    parts: dict[str, list[LabelledFile]] = {}
    wrong = []
    for row, file in zip(rows, files, strict=True):
        name = row["split"].strip()
        name = "validation" if name == "val" else name
        if name in _SPLITS:
            parts.setdefault(name, []).append(file)
        else:
            wrong.append(f"line {row['line']}: {row['split']!r}")
    if wrong:
        raise DataError(f"{shown(path)}: unknown split in {listing(wrong)}. Allowed: train, validation (or val), test.")
    if "train" not in parts or len(parts) < 2:
        raise DataError(f"{shown(path)}: the split column has only {', '.join(parts)}; train and test are needed.")
    return parts
