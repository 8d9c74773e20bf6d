"""The embeddings folder: vectors.npy, rows.json and, written last, the manifest that vouches for both.

Letters: n rows, d dimensions, b rows of a batch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from lossopt import __version__
from lossopt.durable import digest_of, folder_lock, replaced_together, sha256
from lossopt.errors import ConfigError, DataError, EvaluationError
from lossopt.retrieval.vectors import LabelledVectors, Rows, listed

VECTORS, ROWS, MANIFEST = "vectors.npy", "rows.json", "manifest.json"
KIND, FORMAT = "lossopt embeddings", 1
_DTYPE = "<f4"
_BLOCK = 4_096  # rows of a table in memory that are checked and written at once
_LARGEST_MANIFEST = 2**20
_UNIT = 1e-3  # norms this near to 1 count as normalised


class _Sizes(NamedTuple):
    """What went through the writer: n rows, d dimensions, and whether all have length 1."""

    n: int
    d: int
    normalised: bool


def write_embeddings(
    folder: Path, batches: Iterable[np.ndarray], rows: Rows, provenance: Mapping[str, Any]
) -> LabelledVectors:
    """Writes an embeddings folder batch by batch; never more than one batch is in memory.

    Files: `vectors.npy`, (n, d) float32 for `np.load(..., mmap_mode="r")`; `rows.json`, the columns; `manifest.json`,
    sizes, sha256 and provenance. An earlier embeddings folder there stays readable until this one is whole.

    Args:
        folder: where to; made if it is not there.
        batches: (b, d) numbers, n rows in all, in the order of `rows`.
        rows: the columns.
        provenance: see `LabelledVectors`; JSON types. "normalised" (measured) and "lossopt" (version) are added.

    Returns:
        The table as it lies on disk, mapped.

    Raises:
        EvaluationError: NaN or infinite vectors, named; nothing is written.
        ConfigError: the folder holds files of another kind, or another process is writing to it.
        LossoptError: the disk is full or the folder cannot be written to; an earlier one there is untouched.
        ValueError: as many vectors as rows are needed, all of one length.
    """
    with folder_lock(folder):
        _refuse_others(folder)
        unfinished = json.dumps({"kind": KIND, "format": FORMAT, "unfinished": True}).encode()
        with replaced_together(folder, (VECTORS, ROWS, MANIFEST), unfinished) as (vectors_file, rows_file, manifest):
            sizes = _append(vectors_file, batches, rows.names)
            rows_file.write(encode_rows(rows))
            files = {name: _fingerprint(file) for name, file in ((VECTORS, vectors_file), (ROWS, rows_file))}
            told = {**provenance, "normalised": sizes.normalised, "lossopt": __version__}
            content = {"kind": KIND, "format": FORMAT, "n": sizes.n, "d": sizes.d, "dtype": "float32"}
            content |= {"files": files, "provenance": told}
            text = json.dumps(content | {"sha256": digest_of(content)}, indent=1, allow_nan=False)
            manifest.write(text.encode())
    return read_embeddings(folder, verify=False)


def save_vectors(folder: Path, table: LabelledVectors) -> LabelledVectors:
    """Writes a table that exists already (mapped or in memory) as an embeddings folder; see `write_embeddings`."""
    blocks = (table.vectors[start : start + _BLOCK] for start in range(0, len(table), _BLOCK))
    return write_embeddings(folder, blocks, table.rows(), table.provenance)


def read_embeddings(folder: Path, verify: bool = True) -> LabelledVectors:
    """The table of an embeddings folder, its vectors mapped from disk, read-only.

    Args:
        folder: as `write_embeddings` leaves it.
        verify: compare the sha256 of both files (a second per gigabyte); sizes and shapes are compared anyway.

    Raises:
        DataError: the folder is none, is unfinished or of a newer format, or its files are not those of the manifest.
    """
    manifest = _manifest(folder)
    if manifest.get("sha256") != digest_of(manifest):
        raise _damaged(folder / MANIFEST, "its entries are not those that were written")
    try:
        n, d, dtype, files = manifest["n"], manifest["d"], manifest["dtype"], manifest["files"]
        provenance = dict(manifest["provenance"])
        for name in (VECTORS, ROWS):
            _compare(folder / name, int(files[name]["bytes"]), str(files[name]["sha256"]), verify)
    except (KeyError, TypeError, ValueError) as damage:
        raise _damaged(folder / MANIFEST, f"an entry is missing or of the wrong type ({damage})") from damage
    vectors = _mapped(folder / VECTORS)
    if (vectors.shape, vectors.dtype.name) != ((n, d), dtype) or not vectors.flags.c_contiguous:
        raise _damaged(
            folder / VECTORS, f"it holds {vectors.shape} {vectors.dtype}, but the manifest says {(n, d)} {dtype}"
        )
    try:
        return decode_rows((folder / ROWS).read_bytes()).with_vectors(vectors, provenance)
    except (OSError, DataError) as damage:
        raise _damaged(folder / ROWS, str(damage)) from damage


def is_embeddings(folder: Path) -> bool:
    """Whether there is an embeddings folder, finished or not."""
    try:
        _manifest(folder, finished=False)
    except DataError:
        return False
    return True


def _append(file: BinaryIO, batches: Iterable[np.ndarray], names: Sequence[str]) -> _Sizes:
    """The .npy file of all batches. Raises EvaluationError after the last, so that all bad rows are counted."""
    n, d, normalised, bad = 0, 0, True, []
    for batch in batches:
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is refused below
            batch = np.ascontiguousarray(batch, dtype=_DTYPE)
        if batch.ndim != 2 or not batch.shape[1] or (n and batch.shape[1] != d) or n + len(batch) > len(names):
            before = f" after {n:,} rows of {d} dimensions" if n else ""
            raise ValueError(f"A batch of shape {batch.shape}{before}; {len(names):,} rows of one length are wanted.")
        if not n:
            d = batch.shape[1]
            header = {"descr": _DTYPE, "fortran_order": False, "shape": (len(names), d)}
            np.lib.format.write_array_header_1_0(file, header)
        lengths = np.linalg.norm(batch.astype(np.float64), axis=1)  # no float32 overflows when squared here
        bad += [names[n + row] for row in np.flatnonzero(~np.isfinite(lengths)).tolist()]
        normalised = normalised and bool((np.abs(lengths - 1) < _UNIT).all())
        file.write(batch.data)
        n += len(batch)
    if n != len(names) or not n:
        raise ValueError(f"{n:,} vectors for {len(names):,} rows; at least one, and as many as rows, are wanted.")
    if bad:
        raise EvaluationError(
            f"{len(bad):,} of {n:,} embeddings are NaN or infinite: {listed(bad)}. Nothing was written. Look at those "
            "images and at the checkpoint."
        )
    return _Sizes(n, d, normalised)


def encode_rows(rows: Rows) -> bytes:
    """JSON in ASCII: any text comes back exactly, even a file name that is no Unicode."""
    columns = {name: _plain(column) for name, column in vars(rows).items() if column is not None}
    return json.dumps(columns, indent=None, separators=(",", ":")).encode("ascii")


def _plain(column: Any) -> list[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else list(column)


def decode_rows(content: bytes) -> Rows:
    """What `encode_rows` made, checked.

    Raises:
        DataError: anything else.
    """
    try:
        return _rows_of(json.loads(content))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as damage:
        raise DataError(f"not the rows of a table ({type(damage).__name__}: {damage})") from damage


def _rows_of(columns: dict[str, Any]) -> Rows:
    return Rows(
        labels=_numbers("labels", columns["labels"]),
        class_names=tuple(_texts("class_names", columns["class_names"])),
        names=_texts("names", columns["names"]),
        paths=_texts("paths", columns["paths"]) if "paths" in columns else None,
        groups=_numbers("groups", columns["groups"]) if "groups" in columns else None,
        group_names=tuple(_texts("group_names", columns["group_names"])),
        query=_booleans("query", columns["query"]) if "query" in columns else None,
        gallery=_booleans("gallery", columns["gallery"]) if "gallery" in columns else None,
    )


def _numbers(name: str, values: Any) -> np.ndarray:
    _refuse_other_types(name, values, int)
    return np.array(values, dtype=np.int64)


def _booleans(name: str, values: Any) -> np.ndarray:
    _refuse_other_types(name, values, bool)
    return np.array(values, dtype=bool)


def _texts(name: str, values: Any) -> list[str]:
    _refuse_other_types(name, values, str)
    found: list[str] = values
    return found


def _refuse_other_types(name: str, values: Any, wanted: type) -> None:
    if not isinstance(values, list) or any(type(value) is not wanted for value in values):
        raise TypeError(f"{name} must be a list of {wanted.__name__}")


def _manifest(folder: Path, finished: bool = True) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder} is no embeddings folder: it has no {MANIFEST}, which is written last. Make one with `lossopt "
            "embed RUN`; if that was interrupted, run it again."
        )
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_LARGEST_MANIFEST))
    except (OSError, ValueError, RecursionError) as damage:
        raise _damaged(path, str(damage)) from damage
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise DataError(f"{path} is not the manifest of embeddings. Make some with `lossopt embed RUN`.")
    if (version := content.get("format")) != FORMAT:
        raise DataError(
            f"{path} has format {str(version)[:40]}; this lossopt ({__version__}) reads format {FORMAT}. Read it with "
            "the lossopt that wrote it, or embed again into another folder."
        )
    if finished and content.get("unfinished"):
        raise DataError(f"The writing of {folder} was interrupted in its last moment. Embed again.")
    return content


def _refuse_others(folder: Path) -> None:
    """Never replaces files that this module has not written."""
    there = [name for name in (VECTORS, ROWS, MANIFEST) if (folder / name).exists()]
    if there and not is_embeddings(folder):
        raise ConfigError(
            f"{folder} holds {' and '.join(there)} that `lossopt embed` has not written; they would be replaced. "
            "Choose another folder (--output)."
        )


def _fingerprint(file: BinaryIO) -> dict[str, Any]:
    """Size and sha256 of a file that is still being written to."""
    file.flush()
    path = Path(file.name)
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _compare(path: Path, size: int, digest: str, verify: bool) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing, though the manifest names it. Restore it, or embed again.")
    if path.stat().st_size != size:
        raise _damaged(path, f"it has {path.stat().st_size:,} bytes instead of {size:,}")
    if verify and sha256(path) != digest:
        raise _damaged(
            path, "its sha256 is not that of the manifest: the file was changed, or belongs to another folder"
        )


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as damage:
        raise _damaged(path, str(damage)) from damage


def _damaged(path: Path, cause: str) -> DataError:
    return DataError(f"{path} cannot be used: {cause}. Restore it from a copy, or remove its folder and embed again.")
