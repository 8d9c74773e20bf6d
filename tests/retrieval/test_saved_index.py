"""An index as a folder: it comes back as it was, and whatever has changed in it is refused before FAISS reads it."""

import json
import os
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest

from lossopt.durable import digest_of
from lossopt.errors import ConfigError, DataError, LossoptError
from lossopt.retrieval import saved_index as module
from lossopt.retrieval.index import NeighbourIndex
from lossopt.retrieval.saved_index import as_text, build_index, load_index, save_index
from lossopt.retrieval.store import save_vectors
from lossopt.retrieval.vectors import LabelledVectors

HOSTILE = "x&<img src=q onerror=alert(1)>/\udce9\u202e"


def table(n=200, d=8, **columns):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 7
    vectors = (rng.normal(size=(7, d))[labels] + 0.3 * rng.normal(size=(n, d))).astype(np.float32)
    given = {
        "vectors": vectors,
        "labels": labels,
        "class_names": (HOSTILE, *(f"group/class{label}" for label in range(1, 7))),
        "names": [f"{HOSTILE}/{row}" for row in range(n)],
        "provenance": {"checkpoint": "best.ckpt", "checkpoint_sha256": "ab" * 32, "split": "test", "threshold": 0.5},
    }
    return LabelledVectors(**given | columns)


@pytest.fixture(scope="module")
def built():
    return build_index(
        table(paths=[f"/images/{row}.png" for row in range(200)]), factory="IVF5,SQ8", parameters="nprobe=3"
    )


@pytest.fixture
def folder(built, tmp_path):
    place = tmp_path / "index"
    save_index(place, built)
    return place


def test_an_index_comes_back_as_it_was(built, folder):
    again = load_index(folder)
    queries = table().vectors[:20]
    found, expected = again.index.search(queries, 9), built.index.search(queries, 9)
    assert np.array_equal(found.rows, expected.rows) and np.array_equal(found.distances, expected.distances)
    assert again.index.parameters == "nprobe=3" and again.index.factory == "IVF5,SQ8"
    assert again.rows.names == built.rows.names and again.rows.paths == built.rows.paths
    assert np.array_equal(again.rows.labels, built.rows.labels) and again.rows.class_names == built.rows.class_names
    for field in ("provenance", "notes", "k", "queries", "measured", "build_seconds"):
        assert getattr(again, field) == getattr(built, field)
    assert again.run is None and not again.exact
    assert {path.name for path in folder.iterdir()} == {"index.faiss", "rows.json", "manifest.json", ".lock"}


def test_the_manifest_says_what_the_index_is(built, folder):
    content = json.loads((folder / "manifest.json").read_text())
    assert (content["rows"], content["dimensions"], content["distance"]) == (200, 8, "euclidean")
    assert (content["factory"], content["parameters"], content["trained_on"]) == ("IVF5,SQ8", "nprobe=3", 200)
    assert content["provenance"]["checkpoint_sha256"] == "ab" * 32
    assert content["files"]["index.faiss"]["bytes"] == (folder / "index.faiss").stat().st_size == built.index.nbytes
    assert 0.5 < content["measured"]["recall"] <= 1 and content["queries"] == 200


def test_only_the_gallery_is_searched_under_its_own_names():
    gallery = np.arange(200) % 3 == 0
    data = table(gallery=gallery, query=~gallery, groups=np.arange(200) % 2, group_names=("a", "b"))
    built = build_index(data)
    assert built.rows.names == [name for name, kept in zip(data.names, gallery, strict=True) if kept]
    assert np.array_equal(built.rows.groups, data.groups[gallery])
    found = built.index.search(data.vectors[[3]], 1)
    assert built.rows.names[found.rows[0, 0]] == data.names[3] and found.distances[0, 0] < 1e-6
    assert built.queries == 133 and "133 rows that are not in the gallery are left out." in built.notes


def test_the_distance_is_that_of_the_vectors_unless_another_is_asked_for():
    cosine = table(provenance={"distance": "cosine"})
    own, other = build_index(cosine), build_index(cosine, "euclidean")
    assert own.index.distance == "cosine" and other.index.distance == "euclidean"
    assert any("made for cosine distance; this index uses euclidean" in note for note in other.notes)
    assert any(note.startswith("vectors were scaled to length 1 for cosine; their lengths were") for note in own.notes)
    unit = cosine.vectors / np.linalg.norm(cosine.vectors, axis=1, keepdims=True)
    assert build_index(table(vectors=unit), "cosine").notes == ()


def test_what_was_built_is_said_in_words(built):
    text = as_text(built)
    assert text.startswith("IVF5,SQ8 nprobe=3: 200 x 8 vectors, euclidean distance\nrecall@10 against exact search ")
    assert "(200 queries of its own data; equally near ones count)" in text and "trained on 200 rows" in text
    few = as_text(build_index(table(60), factory="IVF64,Flat"))
    assert "recall@10 against exact search 100.00 %" in few and "note       no lists instead of 64" in few


def test_the_run_is_remembered_where_it_lies_from_the_index(built, tmp_path):
    run = tmp_path / "work" / "run"
    folder = run / "indexes" / "one"
    save_index(folder, built, run)
    assert json.loads((folder / "manifest.json").read_text())["run"] == "../.."
    assert load_index(folder).run == run
    shutil.move(tmp_path / "work", tmp_path / "moved")
    assert load_index(tmp_path / "moved" / "run" / "indexes" / "one").run == tmp_path / "moved" / "run"


# -------------------------------------------------------------------------------------------------------- refused


@pytest.fixture
def untouched(monkeypatch):
    """FAISS must not see what the manifest does not vouch for."""
    monkeypatch.setattr(faiss, "read_index", lambda *_: pytest.fail("FAISS was given the file"))


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "one bit": (flipped, "its sha256 is not that of the manifest"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size - 1), "it has .* bytes instead of"),
    "empty": (lambda path: path.write_bytes(b""), "it has 0 bytes instead of"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "it has .* bytes instead of"),
    "gone": (lambda path: path.unlink(), "is missing, though the manifest names it"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["index.faiss", "rows.json"])
def test_a_file_that_was_changed_is_refused_before_faiss_sees_it(folder, name, kind, untouched):
    damage, words = DAMAGE[kind]
    damage(folder / name)
    with pytest.raises(DataError, match=f"{name}.*{words}"):
        load_index(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"distance": "cosine"},
        {"dimensions": 9},
        {"rows": 199},
        {"factory": "Flat"},
        {"parameters": "nprobe=1"},
        {"provenance": {}},
        {"files": {}},
        {"names_sha256": None},
        {"notes": ["new"]},
    ],
    ids=str,
)
def test_a_manifest_that_was_edited_is_refused(folder, changes, untouched):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError, match=r"manifest\.json cannot be used"):
        load_index(folder)


def forged(folder, changes):
    """A manifest with these changes that vouches for itself."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        content[key] = value
    content["sha256"] = digest_of(content, module._REPLACEABLE)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dimensions": 9}, "index.faiss cannot be used: the index has 200 rows of 8 dimensions; 200 rows of 9"),
        ({"rows": 201}, "rows.json cannot be used: it names 200 other rows than the 201"),
        ({"names_sha256": "00"}, "rows.json cannot be used"),
        ({"distance": "dot"}, "not those that were written"),
        ({"parameters": "efSearch=3"}, "no search parameter 'efSearch'"),
        ({"parameters": 7}, "wrong type"),
        ({"measured": {"recall": 1}}, "wrong type"),
        ({"files": {"index.faiss": {}}}, "missing or of the wrong type"),
        ({"provenance": 3}, "wrong type"),
    ],
    ids=str,
)
def test_what_the_files_do_not_bear_out_is_refused(folder, changes, words):
    forged(folder, changes)
    with pytest.raises(DataError, match=words):
        load_index(folder)


def test_rows_of_another_index_are_refused(folder, built, tmp_path):
    other = table(names=[f"other/{row}" for row in range(200)])
    save_index(tmp_path / "other", build_index(other))
    shutil.copy(tmp_path / "other" / "rows.json", folder / "rows.json")
    with pytest.raises(DataError, match=r"rows\.json cannot be used"):
        load_index(folder)


def test_a_hostile_index_file_with_a_manifest_of_its_own_allocates_nothing(folder):
    content = bytearray((folder / "index.faiss").read_bytes())
    content[4:8] = (2**30).to_bytes(4, "little")  # dimensions
    (folder / "index.faiss").write_bytes(content)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files["index.faiss"]["sha256"] = module.hashlib.sha256(content).hexdigest()
    forged(folder, {"files": files})
    with pytest.raises(DataError, match=r"index\.faiss cannot be used"):
        load_index(folder)


def manifest_of(folder, text):
    (folder / "manifest.json").write_text(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"manifest\.json cannot be used"),
        ("{", r"manifest\.json cannot be used"),
        ("[" * 100_000, r"manifest\.json cannot be used"),
        ("[]", "is not the manifest of an index"),
        ('{"kind": "lossopt embeddings"}', "is not the manifest of an index"),
        ('{"kind": "lossopt index", "format": 2}', "has format 2; this lossopt .* reads format 1"),
        ('{"kind": "lossopt index", "format": 1, "unfinished": true}', "was interrupted in its last moment"),
        ('{"kind": "lossopt index", "format": 1}', "an entry is missing"),
    ],
    ids=range(8),
)
def test_a_manifest_that_is_none_is_refused(folder, text, words, untouched):
    manifest_of(folder, text)
    with pytest.raises(DataError, match=words):
        load_index(folder)


def test_a_folder_that_is_no_index_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no index: it has no manifest"):
        load_index(tmp_path / "nowhere")
    save_vectors(tmp_path / "embeddings", table())
    with pytest.raises(DataError, match="these are embeddings: build their index first"):
        load_index(tmp_path / "embeddings")


# ------------------------------------------------------------------------------------------------------- writing


def test_files_of_another_kind_are_never_replaced(built, tmp_path):
    embeddings = tmp_path / "embeddings"
    save_vectors(embeddings, table())
    with pytest.raises(ConfigError, match=r"holds rows\.json and manifest\.json that .* has not written"):
        save_index(embeddings, built)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.faiss").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"index\.faiss"):
        save_index(tmp_path / "mine", built)
    assert (tmp_path / "mine" / "index.faiss").read_bytes() == b"mine"


def test_an_index_replaces_an_index_and_a_failed_writing_leaves_the_old_one(built, folder, monkeypatch):
    save_index(folder, build_index(table(names=[f"new/{row}" for row in range(200)])))
    assert load_index(folder).rows.names[0] == "new/0"

    def full(self, sink):
        sink(b"the beginning")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(NeighbourIndex, "write", full)
    with pytest.raises(LossoptError, match="No space left on device"):
        save_index(folder, built)
    assert load_index(folder).rows.names[0] == "new/0"
    assert not list(Path(folder).glob("*.part"))
