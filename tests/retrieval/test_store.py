"""The embeddings folder: what goes in comes out, a kill leaves the old or the new, and damage is refused."""

import hashlib
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lossopt.durable import digest_of, folder_lock
from lossopt.errors import ConfigError, DataError, EvaluationError, LossoptError
from lossopt.retrieval import store
from lossopt.retrieval.store import read_embeddings, save_vectors, write_embeddings
from lossopt.retrieval.vectors import LabelledVectors, Rows

HOSTILE = [
    *("NA", "001", "1", "null", " cat", "", "ü/日本", "b\udcff.png", "a\nb", "<script>alert(1)</script>"),
    *('"quoted"', "=1+1", "\\udcff", "../x", "x" * 300, "\u2028", "\x00", "{{7*7}}"),
]


def columns(n, seed=0):
    rng = np.random.default_rng(seed)
    return Rows(
        labels=rng.integers(0, len(HOSTILE), n),
        class_names=tuple(HOSTILE),
        names=[f"{HOSTILE[row % len(HOSTILE)]}{row}" for row in range(n)],
        paths=["" if row % 3 else f"/images/{HOSTILE[row % len(HOSTILE)]}" for row in range(n)],
        groups=rng.integers(0, 2, n),
        group_names=("shelf\udc80", "NA"),
        query=rng.random(n) < 0.5,
        gallery=rng.random(n) < 0.9,
    )


def vectors(n=50, d=7, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def written(folder, n=50, d=7, seed=0, provenance=None):
    return write_embeddings(folder, np.array_split(vectors(n, d, seed), 3), columns(n, seed), provenance or {})


def same(one: LabelledVectors, other: LabelledVectors | None) -> bool:
    if other is None or one.rows().names != other.rows().names or not np.array_equal(one.vectors, other.vectors):
        return False
    for name, mine in vars(one.rows()).items():
        theirs = getattr(other, name)
        if type(mine) is not type(theirs) or not np.array_equal(np.asarray(mine), np.asarray(theirs)):
            return False
    return dict(one.provenance) == dict(other.provenance)


# --------------------------------------------------------------------------------------------------- round trip


def test_what_goes_in_comes_out_exactly(tmp_path):
    provenance = {"checkpoint": "best.ckpt", "split": "test", "data": "ü \udcff", "threads": 1}
    written(tmp_path / "a", provenance=provenance)
    found, expected = read_embeddings(tmp_path / "a"), columns(50)
    assert isinstance(found.vectors, np.memmap) and not found.vectors.flags.writeable
    np.testing.assert_array_equal(np.load(tmp_path / "a" / "vectors.npy", mmap_mode="r"), vectors())
    assert (found.names, found.paths, found.class_names) == (expected.names, expected.paths, tuple(HOSTILE))
    assert found.group_names == expected.group_names
    for name in ("labels", "groups", "query", "gallery"):
        column = getattr(found, name)
        np.testing.assert_array_equal(column, getattr(expected, name))
        assert column.dtype == (bool if name in ("query", "gallery") else np.int64)
    assert found.provenance == {**provenance, "normalised": False, "lossopt": "0.1.0"}


def test_columns_that_are_not_there_stay_away(tmp_path):
    rows = Rows(np.zeros(4, dtype=np.int64), ("a",), list("wxyz"))
    write_embeddings(tmp_path, [vectors(4)], rows, {})
    found = read_embeddings(tmp_path)
    assert (found.paths, found.groups, found.query, found.gallery, found.group_names) == (None, None, None, None, ())


@pytest.mark.parametrize("kind", ["float16", "float64", "int8", ">f4", "fortran", "strided", "read-only"])
def test_batches_of_any_type_and_layout_become_float32(kind, tmp_path):
    given = np.round(3 * vectors(20, 6))
    batch = {
        "fortran": np.asfortranarray(given),
        "strided": np.repeat(given, 2, axis=1)[:, ::2],
        "read-only": np.frombuffer(given.tobytes(), np.float32).reshape(given.shape),
    }.get(kind)
    batch = given.astype(kind) if batch is None else batch
    write_embeddings(tmp_path, [batch[:9], batch[9:]], columns(20), {})
    found = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    np.testing.assert_array_equal(found, given)
    assert found.dtype == np.dtype("<f4") and found.flags.c_contiguous


def test_normalised_is_measured(tmp_path):
    unit = vectors(20) / np.linalg.norm(vectors(20), axis=1, keepdims=True)
    assert write_embeddings(tmp_path / "a", [unit], columns(20), {}).provenance["normalised"] is True
    unit[3] *= 1.01
    assert write_embeddings(tmp_path / "b", [unit[:9], unit[9:]], columns(20), {}).provenance["normalised"] is False


def test_a_table_is_saved_and_may_be_saved_over_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_BLOCK", 8)
    table = written(tmp_path / "a")
    assert same(table, save_vectors(tmp_path / "b", table))
    doubled = np.asarray(table.vectors) * 2
    save_vectors(tmp_path / "a", read_embeddings(tmp_path / "a"))
    again = save_vectors(tmp_path / "a", replace(table, vectors=doubled))
    np.testing.assert_array_equal(again.vectors, doubled)
    np.testing.assert_array_equal(table.vectors, doubled / 2)  # the old map still shows the old file


def test_only_one_batch_is_held(tmp_path):
    earlier: list[weakref.ref] = []

    def batches():
        for number in range(20):
            batch = vectors(4, 3, number)
            assert not any(reference() is not None for reference in earlier[:-1])  # the last one is the caller's
            earlier.append(weakref.ref(batch))
            yield batch
            del batch

    write_embeddings(tmp_path, batches(), columns(80), {})
    assert len(earlier) == 20


# ----------------------------------------------------------------------------------------------- what is refused


def test_bad_rows_are_named_and_the_earlier_folder_stays(tmp_path):
    before = written(tmp_path)
    spoilt = vectors(40).astype(np.float64)
    spoilt[3, 0], spoilt[20:30, 2], spoilt[39, 1] = np.nan, np.inf, 1e300  # the last is too large for float32
    rows = replace(columns(40), names=[f"row{row}" for row in range(40)])
    expected = r"12 of 40 embeddings are NaN or infinite: row3, row20, .*, row28 and 2 more\. Nothing was written"
    with pytest.raises(EvaluationError, match=expected):
        write_embeddings(tmp_path, np.array_split(spoilt, 4), rows, {})
    assert same(read_embeddings(tmp_path), before)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "batches",
    [
        *([vectors(5, 3), vectors(5, 4)], [vectors(9, 3)], [vectors(11, 3)], itertools.repeat(np.full((9, 3), np.nan))),
        *([], [vectors(10, 0)], [np.zeros(10)]),
    ],
    ids=["dimensions", "few", "many", "endless", "none", "empty", "flat"],
)
def test_batches_that_do_not_fit_are_refused(batches, tmp_path):
    with pytest.raises(ValueError, match="10 rows"):
        write_embeddings(tmp_path, batches, columns(10), {})
    with pytest.raises(DataError, match="is no embeddings folder"):
        read_embeddings(tmp_path)


def test_files_of_others_are_never_replaced(tmp_path):
    np.save(tmp_path / "vectors.npy", vectors())
    (tmp_path / "manifest.json").write_text('{"checkpoints": []}')
    with pytest.raises(ConfigError, match=r"holds vectors.npy and manifest.json that `lossopt embed` has not written"):
        written(tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), vectors())


def test_two_writers_are_kept_apart(tmp_path):
    with folder_lock(tmp_path), pytest.raises(ConfigError, match="Another process is at work in"):
        written(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(9, dtype=np.int64)}, "10 names but 9 labels"),
        ({"query": np.ones(11, dtype=bool)}, "10 names but 11 query"),
        ({"paths": ["a"]}, "10 names but 1 paths"),
        ({"labels": np.full(10, len(HOSTILE))}, "labels run from 18 to 18"),
        ({"labels": np.full(10, -1)}, "labels run from -1"),
        ({"group_names": ("a",), "groups": np.arange(10) % 2}, "groups run from 0 to 1"),
        ({"names": [*"abcdefgh", "a", "b"]}, "2 names of rows are there more than once: a, b"),
        ({"class_names": (*HOSTILE, "NA")}, "1 names of classes are there more than once: NA"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        replace(columns(10), **changes)


def test_vectors_that_do_not_fit_their_rows_are_refused():
    for given in (vectors(9), np.zeros(10)):
        with pytest.raises(DataError, match="there are 10 rows"):
            columns(10).with_vectors(given, {})


# -------------------------------------------------------------------------------------------------------- kills


def child(folder, dies):
    """Writes a second version and is killed at a moment: "batch", a number, or "exchange", a number of renames."""
    script = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import numpy as np
        from lossopt.retrieval.store import write_embeddings
        from test_store import columns, vectors
        moment, number = {dies!r}
        def die(): os.kill(os.getpid(), signal.SIGKILL)
        def batches():
            for count, batch in enumerate(np.array_split(vectors(60, 5, 1), 3)):
                if (moment, number) == ("batch", count): die()
                yield batch
            if (moment, number) == ("batch", 3): die()
        original, renames = Path.replace, []
        def replace(self, target):
            if (moment, number) == ("exchange", len(renames)): die()
            renames.append(target)
            return original(self, target)
        Path.replace = replace
        write_embeddings(Path({str(folder)!r}), batches(), columns(60, 1), {{}})
        if (moment, number) == ("exchange", len(renames)): die()
    """
    code = f"{textwrap.dedent(script)}\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("earlier", [True, False], ids=["over an earlier one", "first"])
@pytest.mark.parametrize(
    "dies", [("batch", 0), ("batch", 2), ("batch", 3), *(("exchange", number) for number in range(5))]
)
def test_a_kill_leaves_the_old_or_the_new_or_a_clear_refusal(dies, earlier, tmp_path):
    folder = tmp_path / "it"
    before = written(folder) if earlier else None
    child(folder, dies)
    after = written(tmp_path / "expected", 60, 5, 1)
    if dies in (("exchange", 1), ("exchange", 2), ("exchange", 3)):
        expected, message = None, "was interrupted in its last moment"
    elif dies == ("exchange", 4):
        expected, message = after, ""
    else:
        expected, message = before, "is no embeddings folder: it has no manifest.json"
    for verify in (True, False):
        if expected is None:
            with pytest.raises(DataError, match=message):
                read_embeddings(folder, verify)
        else:
            assert same(read_embeddings(folder, verify), expected)
    assert same(written(folder, 60, 5, 1), after)  # and it can be written again
    assert {path.name for path in folder.iterdir()} == {"vectors.npy", "rows.json", "manifest.json", ".lock"}


def test_a_full_disk_leaves_the_earlier_folder(tmp_path):
    before = written(tmp_path)
    script = f"""
        import resource, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from lossopt.errors import LossoptError
        from test_store import written
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            written(Path({str(tmp_path)!r}), 5_000, 20)
        except LossoptError as refused:
            print(refused)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert "Cannot save vectors.npy and rows.json and manifest.json in" in done.stdout, done.stderr
    assert "bytes free there" in done.stdout
    assert same(read_embeddings(tmp_path), before)
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_that_cannot_be_made_is_an_answer(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LossoptError, match=r"file/below"):
        written(tmp_path / "file" / "below")


# ------------------------------------------------------------------------------------------------------- damage


def manifest(folder, **changes):
    path = folder / "manifest.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content | {"sha256": digest_of(content)}))


def vouch(folder, name):
    """Makes the manifest vouch for a file that was changed."""
    content = (folder / name).read_bytes()
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest(folder, files=files)


def change(folder, name, position, flip=1):
    content = bytearray((folder / name).read_bytes())
    content[position] ^= flip
    (folder / name).write_bytes(content)


def cut(folder, name, length):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:length] if length < len(content) else content + b"\0" * 4)


def swapped(folder):
    written(folder.with_name("other"), 50, 7, 2)
    (folder / "rows.json").write_bytes((folder.with_name("other") / "rows.json").read_bytes())


def edited(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"normalised": false', '"normalised": true'))


DAMAGE = {
    "provenance edited": (edited, r"manifest\.json cannot be used: its entries are not those that were written"),
    "vectors truncated": (lambda f: cut(f, "vectors.npy", 500), r"vectors\.npy cannot be used: it has 500 bytes inst"),
    "vectors longer": (lambda f: cut(f, "vectors.npy", 10**6), r"it has 1,532 bytes instead of 1,528"),
    "bit flip in a vector": (lambda f: change(f, "vectors.npy", 700), r"its sha256 is not that of the manifest"),
    "bit flip in the header": (lambda f: change(f, "vectors.npy", 8), r"its sha256 is not that of the manifest"),
    "vectors missing": (lambda f: (f / "vectors.npy").unlink(), r"vectors\.npy is missing"),
    "rows missing": (lambda f: (f / "rows.json").unlink(), r"rows\.json is missing"),
    "rows truncated": (lambda f: cut(f, "rows.json", 100), r"rows\.json cannot be used: it has 100 bytes"),
    "bit flip in the rows": (lambda f: change(f, "rows.json", 60), r"rows\.json cannot be used: its sha256"),
    "rows of another folder": (swapped, r"rows\.json cannot be used: it(s sha256 is not| has )"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), r"is no embeddings folder: it has no manifest\.json"),
    "manifest empty": (lambda f: (f / "manifest.json").write_text(""), r"manifest\.json cannot be used"),
    "manifest cut": (lambda f: cut(f, "manifest.json", 90), r"manifest\.json cannot be used"),
    "manifest no UTF-8": (lambda f: (f / "manifest.json").write_bytes(b"\xff{}"), r"manifest\.json cannot be used"),
    "manifest nested": (lambda f: (f / "manifest.json").write_text("[" * 100_000), r"manifest\.json cannot be used"),
    "manifest a list": (lambda f: (f / "manifest.json").write_text("[]"), "is not the manifest of embeddings"),
    "manifest of checkpoints": (lambda f: manifest(f, kind="checkpoints"), "is not the manifest of embeddings"),
    "newer format": (lambda f: manifest(f, format=2), "has format 2; this lossopt .* reads format 1"),
    "unfinished": (lambda f: manifest(f, unfinished=True), "was interrupted in its last moment"),
    "another d": (lambda f: manifest(f, d=8), r"holds \(50, 7\) float32, but the manifest says \(50, 8\) float32"),
    "another n": (lambda f: manifest(f, n=49), r"holds \(50, 7\) float32, but the manifest says \(49, 7\) float32"),
    "another type": (lambda f: manifest(f, dtype="float16"), "the manifest says .* float16"),
    "no files": (lambda f: manifest(f, files=None), r"manifest\.json cannot be used: an entry is missing"),
    "no sizes": (lambda f: manifest(f, files={"vectors.npy": {}}), r"an entry is missing or of the wrong type"),
    "provenance a number": (lambda f: manifest(f, provenance=3), r"an entry is missing or of the wrong type"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused(damage, tmp_path):
    written(tmp_path / "it")
    spoil, message = DAMAGE[damage]
    spoil(tmp_path / "it")
    with pytest.raises(DataError, match=message):
        read_embeddings(tmp_path / "it")


FORGED = {
    "label out of range": lambda rows: rows["labels"].__setitem__(0, 99),
    "label too large for 64 bit": lambda rows: rows["labels"].__setitem__(0, 2**70),
    "label a float": lambda rows: rows["labels"].__setitem__(0, 1.0),
    "label true": lambda rows: rows["labels"].__setitem__(0, True),
    "label text": lambda rows: rows["labels"].__setitem__(0, "1"),
    "labels short": lambda rows: rows["labels"].pop(),
    "all columns short": lambda rows: [column.pop() for name, column in rows.items() if len(column) == 50],
    "labels missing": lambda rows: rows.pop("labels"),
    "names missing": lambda rows: rows.pop("names"),
    "names a text": lambda rows: rows.update(names="x" * 50),
    "name a number": lambda rows: rows["names"].__setitem__(0, 1),
    "name twice": lambda rows: rows["names"].__setitem__(0, rows["names"][1]),
    "class twice": lambda rows: rows["class_names"].__setitem__(0, rows["class_names"][1]),
    "query numbers": lambda rows: rows.update(query=[1] * 50),
    "gallery null": lambda rows: rows.update(gallery=None),
    "group of no name": lambda rows: rows.update(group_names=[]),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_rows_that_the_manifest_vouches_for_are_still_checked(forgery, tmp_path):
    written(tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())
    FORGED[forgery](rows)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    vouch(tmp_path, "rows.json")
    with pytest.raises(DataError, match=r"rows\.json cannot be used"):
        read_embeddings(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "{}", "[" * 100_000, "null"])
def test_rows_of_another_shape_are_refused(content, tmp_path):
    written(tmp_path)
    (tmp_path / "rows.json").write_text(content)
    vouch(tmp_path, "rows.json")
    with pytest.raises(DataError, match=r"rows\.json cannot be used"):
        read_embeddings(tmp_path)


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("kind", ["pickle", "object array", "fortran", "float64", "text"])
def test_vectors_that_the_manifest_vouches_for_are_still_checked(kind, tmp_path):
    written(tmp_path)
    path, marker = tmp_path / "vectors.npy", tmp_path / "marker"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(marker)))
    elif kind == "object array":
        np.save(path, np.array([[Payload(marker)] * 7] * 50, dtype=object), allow_pickle=True)
    elif kind == "fortran":
        np.save(path, np.asfortranarray(vectors()))
    else:
        np.save(path, vectors().astype(np.float64 if kind == "float64" else "U9"))
    vouch(tmp_path, "vectors.npy")
    for verify in (True, False):
        with pytest.raises(DataError, match=r"vectors\.npy cannot be used"):
            read_embeddings(tmp_path, verify)
    assert not marker.exists()


def test_the_payload_of_these_tests_is_live(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker"))).close()
    assert (tmp_path / "marker").exists()
