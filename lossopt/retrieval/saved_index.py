"""An index as a folder: index.faiss, rows.json and, written last, the manifest that both must agree with.

A row of the index is a gallery row of the embeddings that it was built from; rows.json holds names, classes and paths
in the same order.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lossopt import __version__
from lossopt.durable import digest_of, folder_lock, replaced_together
from lossopt.errors import ConfigError, DataError
from lossopt.retrieval.factory import FLAT, keeps_vectors
from lossopt.retrieval.index import Distance, NeighbourIndex, threads
from lossopt.retrieval.store import decode_rows, encode_rows
from lossopt.retrieval.tuning import Measured, draw_sample, measure
from lossopt.retrieval.vectors import LabelledVectors, Rows

INDEX, ROWS, MANIFEST = "index.faiss", "rows.json", "manifest.json"
KIND, FORMAT = "lossopt index", 1
_LARGEST_MANIFEST = 2**20
_UNIT = 1e-3  # lengths this near to 1 count as 1
_REPLACEABLE = ("run", "sha256")  # entries that the manifest's own sha256 leaves out: a run may have been moved


@dataclass(frozen=True)
class SavedIndex:
    """An index with what its rows are.

    Args:
        index: over n rows.
        rows: their names, classes and paths; row r of the index is row r of these.
        provenance: of the vectors, as in `LabelledVectors`; "threshold", if there, says up to which "value" of
            which "distance" two images count as the same.
        notes: what was changed or is to be doubted, in words.
        k, queries: of the measurement: recall of the k nearest over so many queries.
        measured: of the index against exact search on its own vectors.
        build_seconds: how long it took.
        run: the folder of the run that made the vectors, as remembered; None: not known.
    """

    index: NeighbourIndex
    rows: Rows
    provenance: Mapping[str, Any]
    notes: tuple[str, ...]
    k: int
    queries: int
    measured: Measured
    build_seconds: float
    run: Path | None = None

    @property
    def exact(self) -> bool:
        """Whether its distances are those between the vectors, not estimates from codes."""
        return keeps_vectors(self.index.factory)


def build_index(
    table: LabelledVectors,
    distance: Distance | None = None,
    factory: str = FLAT,
    parameters: str = "",
    k: int = 10,
    seed: int = 0,
) -> SavedIndex:
    """An index over the gallery of a table, measured against exact search on a sample of its queries.

    Args:
        table: vectors, in memory or mapped; rows that are not in its gallery are left out.
        distance: None: as the vectors were made for, else "euclidean".
        factory, parameters: see `NeighbourIndex`.
        k: neighbours of the measurement.
        seed: of the sample, and of the rows that the index is trained on.

    Raises:
        ConfigError, EvaluationError: as `NeighbourIndex` and `draw_sample`.
    """
    own: Distance = "cosine" if table.provenance.get("distance") == "cosine" else "euclidean"
    distance = distance or own
    gallery_rows = table.task().gallery_rows
    began = time.perf_counter()
    index = NeighbourIndex(table.vectors, distance, factory, parameters, seed=seed, rows=gallery_rows)
    seconds = time.perf_counter() - began
    sample = draw_sample(table, distance, k, seed=seed)
    notes = [*index.notes]
    if "distance" in table.provenance and distance != own:
        notes.append(f"the vectors were made for {own} distance; this index uses {distance}.")
    if index.lengths and max(abs(length - 1) for length in index.lengths) > _UNIT:
        notes.append(
            f"vectors were scaled to length 1 for cosine; their lengths were {index.lengths[0]:.3g} to "
            f"{index.lengths[1]:.3g}."
        )
    if len(gallery_rows) < len(table):
        notes.append(f"{len(table) - len(gallery_rows):,} rows that are not in the gallery are left out.")
    return SavedIndex(
        index=index,
        rows=_taken(table.rows(), gallery_rows),
        provenance=table.provenance,
        notes=tuple(notes),
        k=k,
        queries=len(sample.asked),
        measured=measure(index, table, sample),
        build_seconds=seconds,
    )


def save_index(folder: Path, saved: SavedIndex, run: Path | None = None) -> None:
    """Writes an index folder; an earlier one there counts until this one is whole.

    Args:
        folder: made if it is not there.
        saved: the index.
        run: the folder of the run that made the vectors; kept relative to `folder`, so that both may be moved together.

    Raises:
        ConfigError: the folder holds files of another kind, or another process is writing to it.
        LossoptError: the disk is full or the folder cannot be written to.
    """
    with folder_lock(folder):
        _refuse_others(folder)
        unfinished = json.dumps({"kind": KIND, "format": FORMAT, "unfinished": True}).encode()
        with replaced_together(folder, (INDEX, ROWS, MANIFEST), unfinished) as (index_file, rows_file, manifest):
            digest, size = hashlib.sha256(), 0

            def written(part: bytes) -> None:
                nonlocal size
                index_file.write(part)
                digest.update(part)
                size += len(part)

            saved.index.write(written)
            rows = encode_rows(saved.rows)
            rows_file.write(rows)
            files = {
                INDEX: {"bytes": size, "sha256": digest.hexdigest()},
                ROWS: {"bytes": len(rows), "sha256": hashlib.sha256(rows).hexdigest()},
            }
            content = _described(saved, files)
            content["sha256"] = digest_of(content, _REPLACEABLE)
            content["run"] = None if run is None else os.path.relpath(run, folder)
            manifest.write(json.dumps(content, indent=1, allow_nan=False).encode())


def load_index(folder: Path) -> SavedIndex:
    """An index folder, after everything in it has been compared with its manifest.

    Raises:
        DataError: the folder is none, is unfinished or of a newer format; a file was changed; the index, its rows and
            the manifest disagree.
    """
    content = _manifest(folder)
    try:
        distance, n, d, files = content["distance"], content["rows"], content["dimensions"], content["files"]
        if content["sha256"] != digest_of(content, _REPLACEABLE) or distance not in ("euclidean", "cosine"):
            raise _damaged(folder / MANIFEST, "its entries are not those that were written")
        rows = _rows(folder / ROWS, files[ROWS])
        if (len(rows), _names_digest(rows)) != (n, content["names_sha256"]):
            raise _damaged(folder / ROWS, f"it names {len(rows):,} other rows than the {n:,} of the manifest")
        index = _index(folder / INDEX, files[INDEX], n, d, distance)
        index.factory = str(content["factory"])
        index.set_parameters(content["parameters"])
        run = content["run"]
        return SavedIndex(
            index=index,
            rows=rows,
            provenance=dict(content["provenance"]),
            notes=tuple(content["notes"]),
            k=content["k"],
            queries=content["queries"],
            measured=Measured(**content["measured"]),
            build_seconds=content["build_seconds"],
            run=None if run is None else Path(os.path.normpath(folder / run)),
        )
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as damage:
        raise _damaged(folder / MANIFEST, f"an entry is missing or of the wrong type ({damage})") from damage


def as_text(saved: SavedIndex) -> str:
    """What was built, what it finds of the exact answer, and what it costs."""
    index, found = saved.index, saved.measured
    lines = [
        f"{index.factory} {index.parameters}".rstrip()
        + f": {len(index):,} x {index.dimensions} vectors, {index.distance} distance",
        f"recall@{saved.k} against exact search {100 * found.recall:.2f} % ({saved.queries:,} queries of its own "
        "data; equally near ones count)",
        f"one query {1e3 * found.seconds:.3f} ms, in a batch {1 / found.batch_seconds:,.0f} per second, "
        f"{threads()} thread{'s' if threads() > 1 else ''}",
        f"{found.nbytes / 1e6:.1f} MB, built in {saved.build_seconds:.1f} s"
        + (f", trained on {index.trained_on:,} rows" if index.trained_on else ""),
    ]
    return "\n".join([*lines, *(f"note       {note}" for note in saved.notes)])


def _described(saved: SavedIndex, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    index = saved.index
    return {
        "kind": KIND,
        "format": FORMAT,
        "lossopt": __version__,
        "rows": len(index),
        "dimensions": index.dimensions,
        "distance": index.distance,
        "factory": index.factory,
        "parameters": index.parameters,
        "trained_on": index.trained_on,
        "files": files,
        "names_sha256": _names_digest(saved.rows),
        "provenance": dict(saved.provenance),
        "notes": saved.notes,
        "k": saved.k,
        "queries": saved.queries,
        "measured": saved.measured._asdict(),
        "build_seconds": saved.build_seconds,
    }


def _taken(rows: Rows, numbers: np.ndarray) -> Rows:
    """The columns of some rows; who asks and who is searched no longer matters."""
    return Rows(
        labels=rows.labels[numbers],
        class_names=rows.class_names,
        names=[rows.names[row] for row in numbers.tolist()],
        paths=None if rows.paths is None else [rows.paths[row] for row in numbers.tolist()],
        groups=None if rows.groups is None else rows.groups[numbers],
        group_names=rows.group_names,
    )


def _rows(path: Path, expected: Mapping[str, Any]) -> Rows:
    with _checked(path, expected) as file:
        content = file.read()
    try:
        return decode_rows(content)
    except (KeyError, TypeError, ValueError, RecursionError, DataError) as damage:
        raise _damaged(path, str(damage)) from damage


def _index(path: Path, expected: Mapping[str, Any], n: int, d: int, distance: Distance) -> NeighbourIndex:
    with _checked(path, expected) as file:
        try:
            return NeighbourIndex.read(file, int(expected["bytes"]), n, d, distance)
        except DataError as damage:
            raise _damaged(path, str(damage)) from damage


def _checked(path: Path, expected: Mapping[str, Any]) -> BinaryIO:
    """The file, opened at its beginning, after its size and its sha256 were compared."""
    if not path.is_file():
        raise DataError(f"{path} is missing, though the manifest names it. Restore it, or build the index again.")
    file = path.open("rb")
    try:
        size = os.fstat(file.fileno()).st_size
        if size != int(expected["bytes"]):
            raise _damaged(path, f"it has {size:,} bytes instead of {int(expected['bytes']):,}")
        if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
            raise _damaged(path, "its sha256 is not that of the manifest: the file was changed, or is another index's")
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder} is no index: it has no {MANIFEST}, which is written last. Make one with `lossopt index build "
            "EMBEDDINGS`; if that was interrupted, run it again."
        )
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_LARGEST_MANIFEST))
    except (OSError, ValueError, RecursionError) as damage:
        raise _damaged(path, str(damage)) from damage
    if not isinstance(content, dict) or content.get("kind") != KIND:
        hint = "; these are embeddings: build their index first" if (folder / "vectors.npy").is_file() else ""
        raise DataError(f"{path} is not the manifest of an index{hint} (lossopt index build EMBEDDINGS).")
    if (version := content.get("format")) != FORMAT:
        raise DataError(
            f"{path} has format {str(version)[:40]}; this lossopt ({__version__}) reads format {FORMAT}. Build the "
            "index again from its embeddings."
        )
    if content.get("unfinished"):
        raise DataError(f"The writing of {folder} was interrupted in its last moment. Build the index again.")
    return content


def _refuse_others(folder: Path) -> None:
    """Never replaces files that this module has not written."""
    there = [name for name in (INDEX, ROWS, MANIFEST) if (folder / name).exists()]
    if not there:
        return
    try:
        with (folder / MANIFEST).open("rb") as file:
            ours = json.loads(file.read(_LARGEST_MANIFEST)).get("kind") == KIND
    except (OSError, ValueError, AttributeError, RecursionError):
        ours = False
    if not ours:
        raise ConfigError(
            f"{folder} holds {' and '.join(there)} that `lossopt index build` has not written; they would be replaced. "
            "Choose another folder (--output)."
        )


def _names_digest(rows: Rows) -> str:
    return hashlib.sha256(json.dumps(list(rows.names)).encode()).hexdigest()


def _damaged(path: Path, cause: str) -> DataError:
    return DataError(f"{path} cannot be used: {cause}. Restore it from a copy, or build the index again.")
