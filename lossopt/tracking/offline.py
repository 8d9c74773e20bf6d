"""Reads what an offline W&B run really wrote, checksums checked: W&B has no reader of its own for these files."""

import json
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lossopt.errors import DataError, LossoptError
from lossopt.tracking.record import Json

if TYPE_CHECKING:
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]


_FILE_HEADER = b":W&B"
_FILE_HEADER_BYTES = 7
_BLOCK = 32768
_CHUNK_HEADER = struct.Struct("<IHB")  # crc32 of (type + data), length of data, type
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class OfflineRun(NamedTuple):
    """What an offline W&B run holds.

    `exit_code` is None and `complete` False where the process was killed. Summaries that follow a rule are nested, as
    W&B keeps them: {"val/map@r": {"max": 0.9}}. `files` maps W&B's name of a file to where it lies; the whole of a
    table with images is its "<key>.table.json".
    """

    path: Path
    name: str
    group: str
    tags: tuple[str, ...]
    config: dict[str, Json]
    history: list[dict[str, Json]]
    summary: dict[str, Json]
    files: dict[str, Path]
    exit_code: int | None
    complete: bool


def read_offline_run(path: Path | str) -> OfflineRun:
    """Read a `.wandb` file, or the newest one below a run folder.

    A tail cut off in the middle of a record is what a killed process leaves: the records before it are returned.

    Raises:
        DataError: no such file, not a W&B file, or a record whose checksum is wrong.
        LossoptError: wandb is not installed (it defines the records).
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.rglob("*.wandb"), key=lambda file: file.parent.name)
        if not found:
            raise DataError(f"There is no .wandb file below {path}. Was the run made with WANDB_MODE=disabled?")
        path = found[-1]
    try:
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]
    except ImportError as error:
        raise LossoptError(f"Reading {path} needs wandb ({error}). Install it: pip install wandb") from error

    content = path.read_bytes() if path.is_file() else b""
    if content[: len(_FILE_HEADER)] != _FILE_HEADER:
        raise DataError(f"{path} is not a W&B offline run: it does not begin with {_FILE_HEADER.decode()}.")
    run = OfflineRun(path, "", "", (), {}, [], {}, {}, None, False)
    for payload in _payloads(content, path):
        run = _with_record(run, Record.FromString(payload))
    for own in (run.config, run.summary):
        own.pop("_wandb", None)  # its notes to itself
    return run


def is_complete(path: Path, wait_s: float) -> bool:
    """Whether the run's last record is on disk; W&B's helper writes it only after `finish` has returned."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        with suppress(DataError):
            if read_offline_run(path).complete:
                return True
        time.sleep(0.02)
    return False


def _payloads(content: bytes, path: Path) -> Iterator[bytes]:
    """The records of a LevelDB log: chunks within blocks of 32 KiB, a long record spread over several chunks."""
    position, record = _FILE_HEADER_BYTES, b""
    while position + _CHUNK_HEADER.size <= len(content):
        left_in_block = _BLOCK - position % _BLOCK
        if left_in_block < _CHUNK_HEADER.size:  # too small for a header: padding
            position += left_in_block
            continue
        checksum, size, kind = _CHUNK_HEADER.unpack_from(content, position)
        start = position + _CHUNK_HEADER.size
        data = content[start : start + size]
        if len(data) < size or not content[position:].strip(b"\0"):  # cut off, or zeros after a power failure
            return
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or zlib.crc32(bytes([kind]) + data) != checksum:
            raise DataError(
                f"{path} is damaged at byte {position}: the checksum is wrong. Copy it again from its source."
            )
        record = data if kind in (_FULL, _FIRST) else record + data
        if kind in (_FULL, _LAST):
            yield record
        position = start + size


def _with_record(run: OfflineRun, record: "Record") -> OfflineRun:
    """Fold one record into what is known so far."""
    kind = record.WhichOneof("record_type")
    if kind == "run":
        _update(run.config, record.run.config.update)
        started = record.run
        return run._replace(name=started.display_name, group=started.run_group, tags=tuple(started.tags))
    if kind == "config":
        _update(run.config, record.config.update)
    elif kind == "history":
        run.history.append(_update({}, record.history.item))
    elif kind == "summary":
        _update(run.summary, record.summary.update)
    elif kind == "files":
        run.files.update({file.path: run.path.parent / "files" / file.path for file in record.files.files})
    elif kind == "artifact":
        staged = run.path.parents[1] / "artifacts" / "staging"  # beside the run, also where the folder was moved
        for content in record.artifact.manifest.contents:
            beside = staged / Path(content.local_path).name
            run.files[content.path] = beside if beside.is_file() else Path(content.local_path)
    elif kind == "exit":
        return run._replace(exit_code=record.exit.exit_code, complete=True)
    return run


def _update(into: dict[str, Json], items: Iterable[Any]) -> dict[str, Json]:
    for item in items:
        *parents, last = list(item.nested_key) or [item.key]
        place = into
        for key in parents:
            inner = place.get(key)
            if not isinstance(inner, dict):
                inner = place[key] = {}
            place = inner
        place[last] = json.loads(item.value_json)  # also reads NaN and Infinity
    return into
