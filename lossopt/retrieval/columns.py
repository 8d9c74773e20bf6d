"""Columns of somebody else's files become the rows of a table: text stays exact, and nothing is guessed.

Letters: n rows.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lossopt.errors import DataError
from lossopt.retrieval.vectors import UNLABELLED, Rows, listed

Column = np.ndarray | Sequence[Any]
SPELLINGS = {  # column of a table: the names that it has in files
    "vectors": ("vectors", "vector", "embeddings", "embedding", "features", "feature", "x"),
    "labels": ("labels", "label", "targets", "target", "y", "class"),
    "names": ("names", "name", "ids", "id"),
    "paths": ("paths", "path"),
    "groups": ("groups", "group"),
    "query": ("query",),
    "gallery": ("gallery",),
}
_TRUTH = {"1": True, "true": True, "0": False, "false": False}


def recognised(names: Sequence[str], what: str) -> dict[str, str]:
    """Which name in a file stands for which column; capitals do not count, other names are left alone.

    Raises:
        DataError: two names stand for one column.
    """
    found: dict[str, str] = {}
    for column, spellings in SPELLINGS.items():
        fitting = [name for name in names if name.lower() in spellings]
        if len(fitting) > 1:
            raise DataError(f"{what} has {' and '.join(fitting)}, which both mean {column}. Leave one of them out.")
        if fitting:
            found[column] = fitting[0]
    return found


def spellings(column: str) -> str:
    """The accepted names of a column, for messages."""
    return ", ".join(SPELLINGS[column])


def as_rows(columns: Mapping[str, Column], n: int, what: str) -> Rows:
    """The columns of n rows, checked. Rows without names are named by their number, without paths too.

    Args:
        columns: "labels", "names", "paths", "groups", "query", "gallery"; all may be missing.
        n: vectors.
        what: the file, for messages.

    Raises:
        DataError: another length, a name twice, floating-point or mixed labels, marks that are not yes or no.
    """
    for name, column in columns.items():
        if len(column) != n:
            raise DataError(f"{what}: {n:,} vectors, but {len(column):,} {name}; each vector needs one.")
    given = columns["labels"] if "labels" in columns else [UNLABELLED] * n
    class_names, labels = _numbered(given, f"{what}: labels")
    group_names, groups = _numbered(columns["groups"], f"{what}: groups") if "groups" in columns else ((), None)
    paths = _texts(columns["paths"], f"{what}: paths") if "paths" in columns else None
    names = _texts(columns["names"], f"{what}: names") if "names" in columns else paths
    try:
        return Rows(
            labels=labels,
            class_names=class_names,
            names=[str(row) for row in range(n)] if names is None else names,
            paths=paths,
            groups=groups,
            group_names=group_names,
            query=_marks(columns["query"], f"{what}: query") if "query" in columns else None,
            gallery=_marks(columns["gallery"], f"{what}: gallery") if "gallery" in columns else None,
        )
    except DataError as unfit:
        raise DataError(f"{what}: {unfit}") from unfit


def read_columns(path: Path) -> dict[str, Column]:
    """Labels, and what else is known of rows, from a file without vectors.

    Args:
        path: .npy (labels), .json (a list of labels), .txt (a label per line), or .csv with a header that names at
            least a column of labels. Text stays as written: "NA" and "001" are labels like others.

    Raises:
        DataError: the file cannot be read as what its ending says.
    """
    reader = {".npy": _from_npy, ".json": _from_json, ".txt": _from_txt, ".csv": _from_csv}.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"Labels are read from .npy, .json, .txt and .csv, not from {path}. Save them as one of these.")
    try:
        return reader(path)
    except DataError:
        raise
    except Exception as failure:  # readers raise whatever a broken file leads them into
        raise DataError(f"The labels in {path} cannot be read: {reason(failure)}.") from failure


def reason(failure: Exception) -> str:
    """Why a file cannot be read; Python objects in it are never loaded, because loading them runs code."""
    text = str(failure).rstrip(".") or type(failure).__name__
    if "pickle" in text or "Python objects" in text or "Object arrays" in text:
        return (
            "it holds Python objects (dtype object, a pickle), which could run code and are never loaded. Save plain "
            "arrays: numbers, or text with .astype(str)"
        )
    if isinstance(failure, FileNotFoundError):
        return "there is no such file"
    return text


def _from_npy(path: Path) -> dict[str, Column]:
    with path.open("rb") as file:
        return {"labels": np.lib.format.read_array(file, allow_pickle=False)}


def _from_json(path: Path) -> dict[str, Column]:
    content = json.loads(path.read_bytes())
    if not isinstance(content, list):
        raise ValueError(f"it holds a {type(content).__name__}, but a list of labels is wanted")
    return {"labels": content}


def _from_txt(path: Path) -> dict[str, Column]:
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    if empty := [str(number) for number, line in enumerate(lines, start=1) if not line]:
        raise ValueError(f"{len(empty):,} lines are empty (line {listed(empty)}), but each is a label")
    return {"labels": lines}


def _from_csv(path: Path) -> dict[str, Column]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        delimiter = max(",;\t", key=file.readline().count)
        file.seek(0)
        rows = [cells for cells in csv.reader(file, delimiter=delimiter, strict=True) if cells]
    header = [name.strip() for name in rows[0]] if rows else []
    found = recognised(header, str(path))
    if "labels" not in found:
        raise ValueError(
            f"its first line must name a column of labels ({spellings('labels')}), but names {listed(header) or 'none'}"
        )
    if ragged := [str(number) for number, cells in enumerate(rows, start=1) if len(cells) != len(header)]:
        raise ValueError(f"{len(ragged):,} rows do not have {len(header)} cells (row {listed(ragged)})")
    return {
        column: [cells[header.index(name)] for cells in rows[1:]]
        for column, name in found.items()
        if column != "vectors"
    }


def _numbered(column: Column, what: str) -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct values, sorted, as text, and (n,) the position of each."""
    if isinstance(column, np.ndarray) and column.ndim == 1 and column.dtype.kind in "iu":
        distinct, positions = np.unique(column, return_inverse=True)
        return tuple(str(value) for value in distinct.tolist()), positions.astype(np.int64)
    values = _plain(column, what)
    ordered = sorted(set(values))
    position = {value: number for number, value in enumerate(ordered)}
    return tuple(str(value) for value in ordered), np.array([position[value] for value in values], dtype=np.int64)


def _texts(column: Column, what: str) -> list[str]:
    return [str(value) for value in _plain(column, what)]


def _plain(column: Column, what: str) -> list[Any]:
    """All whole numbers, or all text."""
    if isinstance(column, np.ndarray) and column.ndim != 1:
        raise DataError(f"{what} have shape {column.shape}; one column is wanted.")
    values = column.tolist() if isinstance(column, np.ndarray) else list(column)
    values = [value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value for value in values]
    kinds = {type(value) for value in values}
    if kinds <= {int} or kinds <= {str}:
        return values
    if float in kinds:
        raise DataError(
            f"{what} are floating-point numbers, which merge large ids (2^53 + 1 becomes 2^53) and lose what stood "
            "there before. Save whole numbers (.astype(np.int64)) or text."
        )
    raise DataError(f"{what} must be all whole numbers or all text, got {listed(sorted(k.__name__ for k in kinds))}.")


def _marks(column: Column, what: str) -> np.ndarray:
    values = column.tolist() if isinstance(column, np.ndarray) else list(column)
    texts = [str(value).strip().lower() for value in values]
    if wrong := [text for text in texts if text not in _TRUTH]:
        raise DataError(f"{what} has {len(wrong):,} cells that are not {', '.join(_TRUTH)}: {listed(wrong)}.")
    return np.array([_TRUTH[text] for text in texts], dtype=bool)
