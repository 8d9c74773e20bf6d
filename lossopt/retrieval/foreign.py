"""Somebody else's vectors: an embeddings folder, .npy, .npz or Parquet in, one table out; no file is ever unpickled."""

from pathlib import Path

import numpy as np

from lossopt.errors import ConfigError, DataError, LossoptError
from lossopt.retrieval.columns import Column, as_rows, read_columns, reason, recognised, spellings
from lossopt.retrieval.parquet import read_parquet
from lossopt.retrieval.store import read_embeddings
from lossopt.retrieval.vectors import LabelledVectors, listed, query_gallery

SUFFIXES = (".npy", ".npz", ".parquet", ".safetensors")


def read_vectors(
    path: Path | str,
    labels: Path | str | None = None,
    query: Path | str | None = None,
    query_labels: Path | str | None = None,
    verify: bool = True,
) -> LabelledVectors:
    """A table of vectors, whoever made them.

        folder      written by `lossopt embed`; mapped
        .npy        (n, d) numbers of any type; mapped
        .npz        vectors, and where wanted labels, names, paths, groups, query, gallery
        .parquet    the same as columns; the vectors are lists, or numbered columns
        .safetensors  as .npz, but only numbers

    Numbers keep the type that they have in the file. Labels are whole numbers of any size, or text; without labels, all
    rows are of the class "", and can be searched but not evaluated.

    Args:
        path: the vectors, or those of the gallery.
        labels: a file of labels for `path`, in its order (`lossopt.retrieval.columns.read_columns`); it may have other
            columns too. What it has holds instead of what `path` has.
        query: vectors that ask, where `path` is only searched; joining the two copies both into memory.
        query_labels: as `labels`, for `query`.
        verify: compare the sha256 of embeddings folders.

    Raises:
        DataError: a file is missing, damaged, of another kind, holds Python objects, or its columns do not fit.
        ConfigError: `query_labels` without `query`; Parquet without pyarrow; safetensors without safetensors.
    """
    table = _read(Path(path), labels, verify)
    if query is None:
        if query_labels is not None:
            raise ConfigError(f"The query labels {query_labels} belong to query vectors, but there are none (--query).")
        return table
    if Path(query).exists() and Path(query).samefile(path):
        raise ConfigError(
            f"{query} is both query and gallery. Leave the query out: then all rows ask, and none finds itself."
        )
    return query_gallery(_read(Path(query), query_labels, verify), table)


def _read(path: Path, labels: Path | str | None, verify: bool) -> LabelledVectors:
    own = {} if labels is None else read_columns(Path(labels))
    if not path.exists():
        raise DataError(f"There is no file or folder {path}.")
    if path.is_dir():
        return _relabelled(read_embeddings(path, verify), own, path)
    readers = {".npy": _from_npy, ".npz": _from_npz, ".parquet": read_parquet, ".safetensors": _from_safetensors}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: vectors are read from embeddings folders (lossopt embed), {', '.join(SUFFIXES)}. Save them as "
            "one of these, for instance with np.save."
        )
    try:
        vectors, columns = reader(path)
    except LossoptError:
        raise
    except Exception as failure:  # readers raise whatever a broken file leads them into
        raise DataError(f"The vectors in {path} cannot be read: {reason(failure)}.") from failure
    if vectors.ndim != 2 or vectors.dtype.kind not in "iuf" or not vectors.size:
        raise DataError(
            f"{path} holds {vectors.dtype} of shape {vectors.shape}; (n, d) numbers are wanted, n and d >= 1."
        )
    return as_rows({**columns, **own}, len(vectors), str(path)).with_vectors(vectors, {"data": path.name})


def _relabelled(table: LabelledVectors, own: dict[str, Column], path: Path) -> LabelledVectors:
    """The table with some columns from another file."""
    if not own:
        return table
    columns: dict[str, Column | None] = {"names": table.names, "paths": table.paths}
    columns |= {"query": table.query, "gallery": table.gallery}
    if table.groups is not None:
        columns["groups"] = [table.group_names[group] for group in table.groups.tolist()]
    known = {name: column for name, column in columns.items() if column is not None}
    return as_rows({**known, **own}, len(table), str(path)).with_vectors(table.vectors, table.provenance)


def _from_npy(path: Path) -> tuple[np.ndarray, dict[str, Column]]:
    return np.lib.format.open_memmap(path, mode="r"), {}  # refuses Python objects


def _from_npz(path: Path) -> tuple[np.ndarray, dict[str, Column]]:
    with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
        names = set(recognised(archive.files, str(path)).values())
        # what is not read keeps its name, for the error
        return _by_name({name: archive[name] if name in names else np.empty(0) for name in archive.files}, path)


def _from_safetensors(path: Path) -> tuple[np.ndarray, dict[str, Column]]:
    try:
        from safetensors.numpy import load_file
    except ImportError as missing:
        raise ConfigError(f'Reading {path} needs safetensors: pip install "lossopt[safetensors]"') from missing
    return _by_name(load_file(path), path)


def _by_name(arrays: dict[str, np.ndarray], path: Path) -> tuple[np.ndarray, dict[str, Column]]:
    found = recognised(list(arrays), str(path))
    if "vectors" not in found:
        raise DataError(
            f"{path} holds {listed(list(arrays)) or 'nothing'}; vectors are looked for under "
            f"{spellings('vectors')}, labels under {spellings('labels')}. Save them under one of these names."
        )
    columns = {column: arrays[name] for column, name in found.items()}
    return columns.pop("vectors"), dict(columns)
