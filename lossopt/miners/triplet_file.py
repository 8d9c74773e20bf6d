"""Mined triplets for other programs: a file of names and distances, and in words how hard they are.

Letters: t triplets, n rows.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lossopt.durable import write_whole
from lossopt.errors import ConfigError, DataError
from lossopt.miners.whole_set import HardNegatives

COLUMNS = ("anchor", "positive", "negative", "positive_distance", "negative_distance")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run
_BLOCK = 100_000  # triplets that are turned into text at a time


def write_triplets(path: Path, found: HardNegatives, names: Sequence[str]) -> int:
    """Writes one triplet per line, the columns `COLUMNS`; returns how many.

    Args:
        path: .csv (names that a spreadsheet would take for a formula get an apostrophe in front) or .npz (arrays, the
            names as they are; `np.load` needs no pickle).
        found: what was mined.
        names: of the n rows.

    Raises:
        ConfigError: another suffix. DataError: there is no triplet. LossoptError: the file cannot be written.
    """
    anchor, positive, negative = (column.numpy() for column in found.triplets())
    if not len(anchor):
        raise DataError(
            "Nothing was mined: no row has both a positive and a negative that the guards leave. Give labels with two "
            "rows or more of a class, a wider window, or smaller margins."
        )
    kept = found.negative >= 0
    distances = np.repeat(found.positive_distance, kept.sum(axis=1)), found.negative_distance[kept]
    if path.suffix == ".csv":
        write_whole(path, lambda file: _write_csv(file, (anchor, positive, negative), distances, names))
    elif path.suffix == ".npz":
        known = np.array(names)
        columns = dict(zip(COLUMNS, (known[anchor], known[positive], known[negative], *distances), strict=True))
        write_whole(path, lambda file: np.savez_compressed(file, **columns))
    else:
        raise ConfigError(f"{path}: triplets are written as .csv or .npz; name a file that ends so.")
    return len(anchor)


def _write_csv(
    file: BinaryIO, rows: tuple[np.ndarray, ...], distances: tuple[np.ndarray, ...], names: Sequence[str]
) -> None:
    for text in _csv_blocks(rows, distances, names):
        file.write(text.encode("utf-8", "surrogateescape"))


def _csv_blocks(rows: tuple[np.ndarray, ...], distances: tuple[np.ndarray, ...], names: Sequence[str]) -> Iterator[str]:
    yield ",".join(COLUMNS) + "\n"
    for start in range(0, len(rows[0]), _BLOCK):
        part = slice(start, start + _BLOCK)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        named = ([_inert(names[row]) for row in column[part].tolist()] for column in rows)
        measured = ([f"{distance:.6g}" for distance in column[part].tolist()] for column in distances)
        writer.writerows(zip(*named, *measured, strict=True))
        yield text.getvalue()


def _inert(name: str) -> str:
    return f"'{name}" if name.startswith(_FORMULA) else name


def as_text(found: HardNegatives, asked: int) -> str:
    """How far positives and negatives are, what each guard left out, and how many windows are not full.

    Args:
        found: what was mined.
        asked: the rows that it was mined for.
    """
    anchors, window = found.negative.shape
    kept = found.negative >= 0
    columns = (found.positive_distance, found.negative_distance[kept])
    lines = [f"{anchors:,} anchors of {asked:,} rows, {int(kept.sum()):,} negatives", "", f"{'':<8}positive  negative"]
    figures = {}
    if kept.any():
        figures = {"mean": [column.mean() for column in columns], "std": [column.std() for column in columns]}
        figures |= {
            f"{share} %": [np.percentile(column, share) for column in columns] for share in (0, 25, 50, 75, 100)
        }
    lines += [f"{name:<8}" + "  ".join(f"{figure:8.4f}" for figure in pair) for name, pair in figures.items()]
    lines.append("")
    dropped = found.dropped
    for guard, count in (
        ("distance range", dropped.out_of_range),
        ("absolute margin", dropped.absolute),
        ("relative margin", dropped.relative),
    ):
        if count:
            part = f"{count / dropped.candidates:.1%}"
            lines.append(f"{count:,} of {dropped.candidates:,} candidates ({part}) left out by the {guard}")
    short = int((kept.sum(axis=1) < window).sum())
    if short:
        lines.append(f"{short:,} anchors ({short / anchors:.1%}) have fewer than {window} negatives")
    return "\n".join(lines).rstrip()
