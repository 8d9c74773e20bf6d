"""Files that a kill or a full disk cannot spoil, and folders that two runs cannot share."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import filelock
from pytorch_lightning.utilities import rank_zero_only

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
            "Make room or check the permissions, then start again with --resume."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_whole` for text in UTF-8."""
    write_whole(path, lambda file: file.write(text.encode("utf-8")))


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

    Other ranks of a distributed run share the folder of rank 0 and take no lock.

    Raises:
        ConfigError: another process is at work in the folder.
        LossoptError: the folder cannot be written to.
    """
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        yield
        return
    folder = Path(run_folder)
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise ConfigError(
            f"Another run is at work in {folder}. Wait for it or stop it, or choose another run folder."
        ) from error
    except OSError as error:
        raise LossoptError(f"Cannot write into {folder} ({error}). Choose another run folder.") from error
    try:
        yield
    finally:
        lock.release()
