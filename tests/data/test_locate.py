"""Where data is looked for, and what a download must survive (A1)."""

import hashlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from lossopt.data import MNIST, Omniglot
from lossopt.data.locate import Remote, data_root, fetch, find_folder
from lossopt.errors import DataError


def test_the_argument_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSOPT_DATA", "/a")
    assert data_root("/b") == Path("/b")
    assert data_root(None) == Path("/a")
    monkeypatch.delenv("LOSSOPT_DATA")
    assert data_root(None) == Path("data")


@pytest.mark.parametrize("source", [MNIST, Omniglot])
def test_a_missing_data_set_says_where_it_was_looked_for(source: type, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none does not exist \(from the argument root\).*download: true"):
        source(str(tmp_path / "none")).splits()
    with pytest.raises(DataError, match="is empty"):
        source(str(tmp_path)).splits()
    (tmp_path / "other").touch()
    with pytest.raises(DataError, match="does not hold it") as refusal:
        source(str(tmp_path)).splits()
    for layout in source.layouts if source is MNIST else ("omniglot/omniglot-py", "omniglot-py"):
        assert str(tmp_path / layout) in str(refusal.value)


def test_the_environment_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSOPT_DATA", str(tmp_path))
    with pytest.raises(DataError, match="from LOSSOPT_DATA"):
        MNIST().splits()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a local server that has one file, x.txt."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served/x.txt").write_bytes(b"right")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path / "served")) as serving:
        Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()


def test_downloads_are_checked_and_only_made_when_asked(tmp_path: Path, server: str) -> None:
    addresses = (f"{server}absent.txt", f"{server}x.txt")
    remote = Remote("x.txt", addresses, hashlib.md5(b"right").hexdigest())
    root = str(tmp_path / "data")
    with pytest.raises(DataError, match="download: true"):
        find_folder("X", root, ["x"], ["x.txt"], [remote])
    assert not (tmp_path / "data").exists()
    folder = find_folder("X", root, ["x"], ["x.txt"], [remote], download=True)
    assert (folder / "x.txt").read_bytes() == b"right"
    wrong = remote._replace(name="y.txt", md5="0" * 32)
    with pytest.raises(DataError, match=r"y\.txt could not be downloaded"):
        fetch(wrong, folder)
    assert [path.name for path in folder.iterdir()] == ["x.txt"]
