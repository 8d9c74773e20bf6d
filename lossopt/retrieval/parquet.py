"""Vectors and their columns from Parquet, a few thousand rows at a time; pyarrow is an extra.

Letters: n rows, d dimensions, b rows of a batch.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from lossopt.errors import ConfigError, DataError
from lossopt.retrieval.columns import Column, recognised, spellings
from lossopt.retrieval.vectors import listed, repeated

_BATCH = 4_096
_NUMBERED = re.compile(r"(.*?)(\d+)")


def read_parquet(path: Path) -> tuple[np.ndarray, dict[str, Column]]:
    """The vectors, and the columns that are known by name.

    The vectors are one column of lists, all of one length, or columns of numbers that share a prefix and count from 0
    or 1 (e0, e1, ..., or plain 0, 1, ... as pandas names them). Only one batch is held besides the result.

    Returns:
        (n, d) numbers of the file's own type, and the columns for `lossopt.retrieval.columns.as_rows`.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: no vectors, missing cells, or vectors of unequally many numbers. Whatever else: not Parquet.
    """
    try:
        import pyarrow.parquet
    except ImportError as missing:
        raise ConfigError(f'Reading {path} needs pyarrow: pip install "lossopt[parquet]"') from missing
    with pyarrow.parquet.ParquetFile(path) as file:
        schema, n = file.schema_arrow, file.metadata.num_rows
        if twice := repeated(schema.names):
            raise DataError(f"{path} has the columns {listed(twice)} more than once.")
        found = recognised(schema.names, str(path))
        columns = {
            column: _column(file.read(columns=[name]).column(0), name, path)
            for column, name in found.items()
            if column != "vectors"
        }
        return _vectors(file, schema, found.get("vectors"), n, path), columns


def _column(column: Any, name: str, path: Path) -> Column:
    if column.null_count:
        raise DataError(f"{path}: {column.null_count:,} of {len(column):,} cells of {name} are empty. Fill them.")
    values: list[Any] = column.to_pylist()
    return values


def _vectors(file: Any, schema: Any, name: str | None, n: int, path: Path) -> np.ndarray:
    wanted = [name] if name else _numbered_columns(schema, path)
    vectors: np.ndarray | None = None
    done = 0
    for batch in file.iter_batches(batch_size=_BATCH, columns=wanted):
        part = _lists(batch.column(0), path) if name else _side_by_side(batch, wanted, path)
        if vectors is None:
            vectors = np.empty((n, part.shape[1]), dtype=part.dtype)
        if part.shape[1] != vectors.shape[1]:
            raise DataError(
                f"{path} has vectors of {vectors.shape[1]} and of {part.shape[1]} numbers; {name} must be even."
            )
        vectors[done : done + len(part)] = part
        done += len(part)
    if vectors is None or done != n:
        raise DataError(f"{path} holds {done:,} of the {n:,} rows that it announces, at least one of which is needed.")
    return vectors


def _lists(column: Any, path: Path) -> np.ndarray:
    """(b, d) from a column of lists."""
    import pyarrow as pa
    import pyarrow.compute

    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise DataError(f"{path}: the column of vectors holds {kind}; lists of numbers are wanted.")
    if column.null_count:
        raise DataError(f"{path}: {column.null_count:,} vectors are missing (null). Leave those rows out.")
    lengths = pa.compute.list_value_length(column).unique().to_pylist()
    if len(lengths) > 1:
        raise DataError(
            f"{path} has vectors of {min(lengths)} and of {max(lengths)} numbers; all must be of one length."
        )
    return _numbers(column.flatten(), path).reshape(len(column), -1)


def _side_by_side(batch: Any, names: list[str], path: Path) -> np.ndarray:
    """(b, d) from d columns."""
    return np.stack([_numbers(batch.column(name), path) for name in names], axis=1)


def _numbers(column: Any, path: Path) -> np.ndarray:
    if column.null_count:
        raise DataError(f"{path}: {column.null_count:,} numbers of vectors are missing (null). Leave those rows out.")
    values: np.ndarray = column.to_numpy(zero_copy_only=False)
    return values


def _numbered_columns(schema: Any, path: Path) -> list[str]:
    """The columns of numbers that are numbered from 0 or 1, in the order of their numbers."""
    import pyarrow as pa

    families: dict[str, dict[int, str]] = {}
    for field in schema:
        parts = _NUMBERED.fullmatch(field.name)
        if parts and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type)):
            families.setdefault(parts[1], {})[int(parts[2])] = field.name
    whole = {
        prefix: [members[number] for number in sorted(members)]
        for prefix, members in families.items()
        if len(members) > 1 and min(members) in (0, 1) and max(members) - min(members) == len(members) - 1
    }
    if len(whole) != 1:
        several = f"several families of numbered columns ({listed(sorted(whole))})" if whole else "no vectors"
        raise DataError(
            f"{path} has {several}. Name a column of lists one of {spellings('vectors')}, or have numbered columns of "
            f"one prefix (e0, e1, ...). Its columns are {listed(schema.names, 20)}."
        )
    return next(iter(whole.values()))
