"""Where files are: an explicit folder, else LOSSOPT_DATA, else ./data; nothing is downloaded unless asked for."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

from lossopt.errors import DataError

ENVIRONMENT = "LOSSOPT_DATA"


class Remote(NamedTuple):
    """A file that can be downloaded: its name, the addresses to try in turn, and the MD5 it must have."""

    name: str
    urls: tuple[str, ...]
    md5: str


def shown(path: Path | str) -> str:
    """A path as text that can be printed anywhere: bytes that are no UTF-8 appear as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def data_root(root: str | None) -> Path:
    """The data folder: `root` if given, else the environment variable LOSSOPT_DATA, else ./data."""
    return Path(root or os.environ.get(ENVIRONMENT) or "data").expanduser()


def find_folder(
    what: str,
    root: str | None,
    layouts: Sequence[str],
    files: Sequence[str],
    remotes: Sequence[Remote] = (),
    download: bool = False,
) -> Path:
    """The first of `layouts` below the data folder that holds all of `files`, each as it is or with `.gz` added.

    Args:
        what: the data set's name, for people.
        root: the data folder, or None (see `data_root`).
        layouts: folders below it to look in, in this order; downloads go to the first.
        files: names that must all be there.
        remotes: the same files on the net, each with its checksum.
        download: fetch from `remotes` what is in none of the layouts.

    Raises:
        DataError: not found and not downloaded; names every folder looked in.
    """
    base = data_root(root)
    for layout in layouts:
        if all(present(base / layout, name) is not None for name in files):
            return base / layout
    if download and remotes:
        target = base / layouts[0]
        for remote in remotes:
            if present(target, remote.name.removesuffix(".gz")) is None:
                fetch(remote, target)
        return target
    raise DataError(_not_found(what, root, base, layouts, files, bool(remotes)))


def present(folder: Path, name: str) -> Path | None:
    """The file `name`, or `name`.gz, in `folder`; None if neither is there."""
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    return None


def user_folder(path: str, what: str, accepted: str) -> Path:
    """A folder that the user named: as given, or below the data folder if it is relative and not there.

    Raises:
        DataError: no such folder, or nothing in it; says where it was looked for and what is accepted.
    """
    given = Path(path).expanduser()
    tried = [given] if given.is_absolute() else [given, data_root(None) / given]
    for folder in tried:
        if folder.is_dir():
            if any(folder.iterdir()):
                return folder
            raise DataError(f"{what}: the folder {shown(folder)} is empty. Accepted: {accepted}")
    looked = " and ".join(shown(folder.absolute()) for folder in tried)
    raise DataError(f"{what}: there is no folder at {looked}. Accepted: {accepted}")


def leaves(root: Path, path: Path) -> bool:
    """Whether `path`, with every link followed, lies outside `root`."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def listing(items: Sequence[str], limit: int = 10) -> str:
    """The first items, and how many there are in all; for messages."""
    more = "" if len(items) <= limit else f" ... and {len(items) - limit} more ({len(items)} in total)"
    return ", ".join(items[:limit]) + more


def fetch(remote: Remote, folder: Path) -> Path:
    """Downloads a file into `folder`; what does not have the right checksum never gets the file's name.

    Raises:
        DataError: no address answered with the right bytes.
    """
    from torchvision.datasets.utils import download_url  # imports torchvision: only when something is downloaded

    failures = []
    partial, target = folder / f"{remote.name}.part", folder / remote.name
    for url in remote.urls:
        try:
            download_url(url, str(folder), filename=partial.name, md5=remote.md5)
            os.replace(partial, target)
            return target
        except (URLError, OSError, RuntimeError, ValueError) as failure:
            failures.append(f"{url}: {failure}")
        finally:
            partial.unlink(missing_ok=True)
    raise DataError(
        f"{remote.name} could not be downloaded to {shown(folder)} ({'; '.join(failures)}). "
        f"Check the network, or put the file there yourself (MD5 {remote.md5})."
    )


def _not_found(
    what: str, root: str | None, base: Path, layouts: Sequence[str], files: Sequence[str], downloadable: bool
) -> str:
    if not base.is_dir():
        state = f"the data folder {shown(base.absolute())} does not exist"
    elif not any(base.iterdir()):
        state = f"the data folder {shown(base.absolute())} is empty"
    else:
        state = f"the data folder {shown(base.absolute())} does not hold it"
    origin = "from the argument root" if root else f"from {ENVIRONMENT}"
    if not root and not os.environ.get(ENVIRONMENT):
        origin = f"the default, as neither the argument root nor {ENVIRONMENT} is set"
    folders = ", ".join(shown(base / layout) for layout in layouts)
    remedy = f"Put the files in one of these folders, or point the argument root or {ENVIRONMENT} at your data"
    remedy += ", or pass download: true to fetch them." if downloadable else "."
    return f"{what} was not found: {state} ({origin}). Looked for {listing(files)} in {folders}. {remedy}"
