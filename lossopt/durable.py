"""Files that a kill or a full disk cannot spoil, and folders that two runs cannot share."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from lossopt.errors import ConfigError, LossoptError

PART = ".part"
LOCK = ".lock"


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that a kill or a full disk leaves either the old content or the new, never a mixture.

    Only one process may write into a folder at a time (`run_lock`); what dead writers left there (`*.part`) is removed.

    Raises:
        LossoptError: the file could not be written; the old one is untouched. The text has the path and the free bytes.
    """
    part = path.with_name(f".{path.name}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".*{PART}"):
            stale.unlink()
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        there = next(folder for folder in path.absolute().parents if folder.is_dir())
        kept = "; the previous file is untouched" if path.exists() else ""
        raise LossoptError(
            f"Cannot save {path} ({error}; {shutil.disk_usage(there).free} bytes free there){kept}. "
            "Make room, check the permissions or choose another place; a training goes on with --resume."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_whole` for text in UTF-8."""
    write_whole(path, lambda file: file.write(text.encode("utf-8")))


@contextmanager
def replaced_together(folder: Path, names: Sequence[str], meanwhile: bytes) -> Iterator[list[BinaryIO]]:
    """Write files that count together beside the old ones, and exchange them once all the new ones are on disk.

    A kill leaves the old files or the new ones; in the moment between, the last file, which vouches for the others (a
    manifest), holds `meanwhile`. Only one process may write into a folder at a time (`folder_lock`).

    Args:
        folder: made if it is not there.
        names: of the files.
        meanwhile: content of the last file while the others are exchanged: says that they do not count.

    Yields:
        One open file per name, to be written within the block; an exception there leaves the old files.

    Raises:
        LossoptError: a file could not be written. The text has the path and the free bytes.
    """
    parts = [folder / f"{name}{PART}" for name in names]  # no dot in front: `write_whole` removes those
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            files: list[BinaryIO] = [stack.enter_context(part.open("wb")) for part in parts]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        write_whole(folder / names[-1], lambda file: file.write(meanwhile))
        for part, name in zip(parts, names, strict=True):
            part.replace(folder / name)
        _sync_folder(folder)
    except OSError as error:
        there = next(place for place in folder.absolute().parents if place.is_dir())
        raise LossoptError(
            f"Cannot save {' and '.join(names)} in {folder} ({error}; {shutil.disk_usage(there).free} bytes free "
            "there). Make room, check the permissions, or choose another folder."
        ) from error
    finally:
        for part in parts:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def digest_of(content: Mapping[str, Any], without: Sequence[str] = ("sha256",)) -> str:
    """sha256 of JSON content, but for some of its entries; a file that holds it vouches for itself."""
    kept = {name: value for name, value in content.items() if name not in without}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; Windows cannot open folders and needs no such thing."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def run_lock(run_folder: Path | str) -> Iterator[None]:
    """Keep a second run out of the folder. The operating system holds the lock and drops it when the process dies.

    Raises:
        ConfigError: another process is at work in the folder.
        LossoptError: the folder cannot be written to.
    """
    with folder_lock(run_folder, "run"):
        yield


@contextmanager
def folder_lock(folder: Path | str, what: str = "process") -> Iterator[None]:
    """Keep a second writer out of the folder, until the block ends or the process dies.

    Raises:
        ConfigError: another writer (`what`, for its text) is at work in the folder.
        LossoptError: the folder cannot be written to.
    """
    folder = Path(folder)
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise ConfigError(
            f"Another {what} is at work in {folder}. Wait for it or stop it, or choose another folder."
        ) from error
    except OSError as error:
        raise LossoptError(f"Cannot write into {folder} ({error}). Choose another folder.") from error
    try:
        yield
    finally:
        lock.release()
