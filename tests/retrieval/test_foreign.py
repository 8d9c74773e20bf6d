"""Somebody else's vectors: all formats give one table, text and whole numbers stay exact, nothing is unpickled."""

import io
import json
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from lossopt.errors import ConfigError, DataError, EvaluationError
from lossopt.retrieval.evaluation import evaluate_task
from lossopt.retrieval.foreign import read_vectors
from lossopt.retrieval.store import save_vectors
from lossopt.retrieval.vectors import LabelledVectors

N, D = 40, 6
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(N, D)).astype(np.float32)
LABELS = [["NA", "001", "1", " cat", "ü", "<b>"][i] for i in RNG.integers(0, 6, N)]
NAMES = [f"b\udcff/{row}.png" if row % 2 else f"日/{row}" for row in range(N)]
GROUPS = RNG.integers(0, 3, N)
QUERY, GALLERY = RNG.random(N) < 0.6, RNG.random(N) < 0.8


def text_of(table: LabelledVectors) -> list[str]:
    return [table.class_names[label] for label in table.labels]


def lists(kind: str = "list", vectors: np.ndarray = VECTORS) -> pa.Array:
    value = pa.from_numpy_dtype(vectors.dtype)
    types = {"list": pa.list_(value), "large": pa.large_list(value), "fixed": pa.list_(value, vectors.shape[1])}
    return pa.array(vectors.tolist(), type=types[kind])


# ------------------------------------------------------------------------------------------------------- formats


def write_npy(folder, labels):
    np.save(folder / "v.npy", VECTORS)
    (folder / "l.json").write_text(json.dumps(labels))
    return {"path": folder / "v.npy", "labels": folder / "l.json"}


def write_npz(folder, labels):
    np.savez(folder / "v.npz", vectors=VECTORS, labels=np.array(labels))
    return {"path": folder / "v.npz"}


def write_npz_compressed(folder, labels):
    np.savez_compressed(folder / "v.npz", X=VECTORS, Y=np.array(labels))
    return {"path": folder / "v.npz"}


def write_npy_txt(folder, labels):
    np.save(folder / "v.npy", VECTORS)
    (folder / "l.txt").write_text("\n".join(map(str, labels)) + "\n", encoding="utf-8")
    return {"path": folder / "v.npy", "labels": str(folder / "l.txt")}


def write_npy_npy(folder, labels):
    np.save(folder / "v.npy", VECTORS)
    np.save(folder / "l.npy", np.array(labels))
    return {"path": str(folder / "v.npy"), "labels": folder / "l.npy"}


def write_npy_csv(folder, labels, delimiter=";"):
    np.save(folder / "v.npy", VECTORS)
    lines = [f"Label{delimiter}id", *(f'"{label}"{delimiter}{row}' for row, label in enumerate(labels))]
    (folder / "l.csv").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    return {"path": folder / "v.npy", "labels": folder / "l.csv"}


def write_parquet(folder, labels, kind="list"):
    pq.write_table(pa.table({"embedding": lists(kind=kind), "label": labels}), folder / "v.parquet", row_group_size=7)
    return {"path": folder / "v.parquet"}


def write_parquet_fixed(folder, labels):
    return write_parquet(folder, labels, "fixed")


def write_parquet_large(folder, labels):
    return write_parquet(folder, labels, "large")


def write_parquet_columns(folder, labels):
    columns = {f"e{number}": VECTORS[:, number] for number in (3, 1, 0, 2, 5, 4)}  # any order, alphabetical or not
    pq.write_table(pa.table({"size9": [1] * N, "day1": [1] * N, **columns, "y": labels}), folder / "v.parquet")
    return {"path": folder / "v.parquet"}


def write_parquet_pandas(folder, labels):
    columns = {str(number): VECTORS[:, number] for number in range(D)}
    columns |= {"label": pa.array(labels).dictionary_encode(), "__index_level_0__": np.arange(N)}
    pq.write_table(pa.table(columns), folder / "v.parquet")
    return {"path": folder / "v.parquet"}


def write_folder(folder, labels):
    save_vectors(folder / "v", read_vectors(**write_npz(folder, labels)))
    return {"path": folder / "v"}


FORMATS = [
    *(write_npy, write_npy_txt, write_npy_npy, write_npy_csv, write_npz, write_npz_compressed, write_folder),
    *(write_parquet, write_parquet_fixed, write_parquet_large, write_parquet_columns, write_parquet_pandas),
]


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("kind", ["text", "numbers", "large numbers"])
def test_every_format_gives_the_same_table(write, kind, tmp_path):
    numbers = [{"NA": 3, "001": -1, "1": 10, " cat": 2**53, "ü": 2**53 + 1, "<b>": 2**24 + 1}[name] for name in LABELS]
    labels = {"text": LABELS, "numbers": [n % 7 for n in numbers], "large numbers": numbers}[kind]
    found = read_vectors(**write(tmp_path, labels))
    np.testing.assert_array_equal(found.vectors, VECTORS)
    assert found.vectors.dtype == np.float32
    assert text_of(found) == [str(label) for label in labels]
    assert found.class_names == tuple(map(str, sorted(set(labels)))) or write is write_npy_csv or write is write_npy_txt
    assert found.names == [str(row) for row in range(N)]
    assert found.labels.dtype == np.int64
    assert len(found) == N
    relabelled = np.unique(np.array([str(label) for label in labels]), return_inverse=True)[1]
    assert np.array_equal(relabelled[:, None] == relabelled, found.labels[:, None] == found.labels)


@pytest.mark.parametrize("kind", ["npz", "parquet", "csv", "folder"])
def test_all_columns_are_read(kind, tmp_path):
    columns = {"names": NAMES, "labels": LABELS, "groups": GROUPS, "query": QUERY, "gallery": GALLERY}
    if kind == "parquet":
        safe = [name.replace("\udcff", "?") for name in NAMES]  # Parquet holds Unicode only
        pq.write_table(pa.table({"vectors": lists(), **columns, "names": safe}), tmp_path / "v.parquet")
        found, names = read_vectors(tmp_path / "v.parquet"), safe
    elif kind == "csv":
        np.save(tmp_path / "v.npy", VECTORS)
        rows = zip(NAMES, LABELS, GROUPS, QUERY.astype(int), GALLERY, strict=True)
        text = "name,label,group,query,gallery\n" + "".join(f"{a},{b},{c},{d},{e}\n" for a, b, c, d, e in rows)
        (tmp_path / "l.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
        found, names = read_vectors(tmp_path / "v.npy", tmp_path / "l.csv"), NAMES
    else:
        np.savez(tmp_path / "v.npz", embeddings=VECTORS, **{name: np.array(value) for name, value in columns.items()})
        found, names = read_vectors(tmp_path / "v.npz"), NAMES
    if kind == "folder":
        found = save_vectors(tmp_path / "v", found)
    assert found.names == names and text_of(found) == LABELS
    assert [found.group_names[group] for group in found.groups] == [str(group) for group in GROUPS]
    np.testing.assert_array_equal(found.query, QUERY)
    np.testing.assert_array_equal(found.gallery, GALLERY)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8", ">f4", "<f4"])
def test_numbers_keep_their_type_and_npy_stays_on_disk(dtype, tmp_path):
    given = np.round(5 * VECTORS).astype(np.int8).astype(dtype)
    np.save(tmp_path / "v.npy", np.asfortranarray(given))
    np.savez(tmp_path / "v.npz", x=given[::-1][::-1])
    found = [read_vectors(tmp_path / "v.npy"), read_vectors(tmp_path / "v.npz")]
    if dtype[0] not in "<>":
        pq.write_table(pa.table({"x": lists(vectors=given)}), tmp_path / "v.parquet")
        found.append(read_vectors(tmp_path / "v.parquet"))
    for table in found:
        np.testing.assert_array_equal(table.vectors, given)
        assert table.vectors.dtype == np.dtype(dtype)
    assert isinstance(found[0].vectors, np.memmap) and not found[0].vectors.flags.writeable


def test_paths_are_names_where_there_are_no_others(tmp_path):
    np.savez(tmp_path / "v.npz", features=VECTORS, paths=np.array([f"/a/{row}" for row in range(N)]))
    found = read_vectors(tmp_path / "v.npz")
    assert found.names == found.paths == [f"/a/{row}" for row in range(N)]


def test_a_file_of_labels_holds_instead_of_the_labels_within(tmp_path):
    arguments = write_npz(tmp_path, ["wrong"] * N)
    (tmp_path / "l.json").write_text(json.dumps(LABELS))
    assert text_of(read_vectors(**arguments, labels=tmp_path / "l.json")) == LABELS
    table = replace(read_vectors(**arguments), query=QUERY, gallery=GALLERY, groups=GROUPS, group_names=("a", "b", "c"))
    save_vectors(tmp_path / "it", table)
    found = read_vectors(tmp_path / "it", tmp_path / "l.json")
    assert text_of(found) == LABELS
    np.testing.assert_array_equal(found.groups, GROUPS)
    np.testing.assert_array_equal(found.query, QUERY)


def test_without_labels_there_is_search_but_no_evaluation(tmp_path):
    np.save(tmp_path / "v.npy", VECTORS)
    found = read_vectors(tmp_path / "v.npy")
    assert found.class_names == ("",) and len(found.task().query_rows) == N
    with pytest.raises(EvaluationError, match=r"40 of 40 vectors have no label.*--labels FILE"):
        found.require_labels()
    some = replace(found, class_names=("", "a"), labels=np.arange(N) % 4 // 3)
    with pytest.raises(EvaluationError, match="30 of 40 vectors"):
        some.require_labels()
    idle = np.arange(N) % 4 == 3
    replace(some, query=idle, gallery=idle).require_labels()
    with pytest.raises(EvaluationError, match="30 of 40 vectors"):
        replace(some, query=idle).require_labels()


# ------------------------------------------------------------------------------------------------------- refusals


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("where", ["npy", "npz", "npz labels", "labels npy", "pickle as npy", "pickle as npz"])
def test_python_objects_are_never_loaded(where, tmp_path):
    marker = tmp_path / "marker"
    hostile = np.array([[Payload(marker)] * D] * N, dtype=object)
    path, labels = tmp_path / f"v.{where.split()[0][:3]}", None
    if where == "npy":
        np.save(path, hostile, allow_pickle=True)
    elif where == "npz":
        np.savez(path, vectors=hostile)
    elif where == "npz labels":
        np.savez(path, vectors=VECTORS, labels=hostile[:, 0])
    elif where == "labels npy":
        path, labels = tmp_path / "v.npy", tmp_path / "l.npy"
        np.save(path, VECTORS)
        np.save(labels, hostile[:, 0], allow_pickle=True)
    else:
        path = tmp_path / f"v.{where[-3:]}"
        path.write_bytes(__import__("pickle").dumps(Payload(marker)))
    with pytest.raises(DataError, match=r"cannot be read"):
        read_vectors(path, labels)
    assert not marker.exists()
    if "pickle" not in where:
        with pytest.raises(DataError, match=r"holds Python objects .* could run code and are never loaded"):
            read_vectors(path, labels)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet"])
def test_damaged_files_are_answers_not_tracebacks(suffix, tmp_path):
    path = tmp_path / f"v.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"x": lists(), "label": LABELS}), path)
    elif suffix == "npz":
        np.savez_compressed(path, x=VECTORS, y=np.array(LABELS))
    else:
        np.save(path, VECTORS)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = []
    for number in range(200):
        spoilt = bytearray(whole)
        if number % 2:
            spoilt = spoilt[: rng.integers(0, len(whole))]
        else:
            where = rng.integers(0, min(130, len(whole)), 3) if number % 4 else rng.integers(0, len(whole), 20)
            spoilt[int(where[0])] ^= 1 << int(rng.integers(0, 8))
            for position in where[1:]:
                spoilt[int(position)] = int(rng.integers(0, 256))
        path.write_bytes(spoilt)
        try:
            read_vectors(path)
        except DataError as error:
            refused.append(str(error))
    assert len(refused) >= 100
    assert all(str(path) in text for text in refused)


@pytest.mark.parametrize("name", ["v.npy", "v.npz", "v.parquet", "l.npy", "l.json", "l.csv", "l.txt"])
def test_missing_files_are_named(name, tmp_path):
    np.save(tmp_path / "there.npy", VECTORS)
    words = [tmp_path / name] if name[0] == "v" else [tmp_path / "there.npy", tmp_path / name]
    with pytest.raises(DataError, match=rf"[Tt]here is no .*file|{name} cannot be read: there is no such file"):
        read_vectors(*words)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"vectors": VECTORS, "labels": np.arange(N, dtype=np.float64)},
            "labels are floating-point .* merge large ids",
        ),
        ({"vectors": VECTORS, "labels": np.arange(39)}, "40 vectors, but 39 labels"),
        ({"vectors": VECTORS, "labels": np.zeros((N, 1), dtype=int)}, r"labels have shape \(40, 1\)"),
        ({"vectors": VECTORS, "labels": np.zeros(N, dtype=bool)}, "all whole numbers or all text, got bool"),
        ({"vectors": VECTORS, "labels": np.zeros(N, dtype="M8[s]")}, "all whole numbers or all text, got datetime"),
        ({"vectors": VECTORS, "names": np.arange(N) // 2}, "20 names of rows are there more than once: 0, 1"),
        ({"vectors": VECTORS, "query": np.arange(N)}, "query has 38 cells that are not 1, true, 0, false: 2, 3"),
        ({"vectors": VECTORS, "gallery": np.ones(N)}, "gallery has 40 cells"),
        ({"vectors": VECTORS, "groups": VECTORS[:, 0]}, "groups are floating-point"),
        ({"vectors": VECTORS[0]}, r"holds float32 of shape \(6,\); \(n, d\) numbers are wanted"),
        ({"vectors": VECTORS[:0]}, r"of shape \(0, 6\)"),
        ({"vectors": VECTORS.astype(complex)}, "holds complex128"),
        ({"vectors": VECTORS.astype(str)}, "holds <U"),
        ({"vecs": VECTORS, "labels": np.arange(N)}, "holds vecs, labels; vectors are looked for under vectors, vector"),
        ({"x": VECTORS, "features": VECTORS}, "has features and x, which both mean vectors|has x and features"),
    ],
)
def test_columns_that_do_not_fit_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "v.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_vectors(tmp_path / "v.npz")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": LABELS}, r"has no vectors\. Name a column of lists one of vectors, .*Its columns are label"),
        ({"a0": [1.0], "a1": [2.0], "b0": [1.0], "b1": [2.0]}, "several families of numbered columns .a, b"),
        ({"a0": [1.0], "a2": [2.0]}, "has no vectors"),
        ({"a0": ["x"], "a1": ["y"]}, "has no vectors"),
        ({"a0": [1.0, None], "a1": [2.0, 3.0]}, "1 numbers of vectors are missing"),
        ({"vector": [[1.0, 2.0], None]}, "1 vectors are missing"),
        ({"vector": [[1.0, 2.0], [1.0, None]]}, "1 numbers of vectors are missing"),
        ({"vector": [[1.0, 2.0], [1.0]]}, "vectors of 1 and of 2 numbers"),
        ({"vector": [1.0, 2.0]}, "the column of vectors holds double; lists of numbers are wanted"),
        ({"vector": [["a"], ["b"]]}, "holds object of shape"),
        ({"vector": [[1.0], [2.0]], "label": ["a", None]}, "1 of 2 cells of label are empty"),
        ({"vector": [[1.0], [2.0]], "label": [0.5, 1.0]}, "labels are floating-point"),
        ({"vector": pa.array([], pa.list_(pa.float32()))}, "holds 0 of the 0 rows"),
    ],
)
def test_parquet_that_does_not_fit_is_refused(columns, message, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(DataError, match=message):
        read_vectors(tmp_path / "v.parquet")


def test_lengths_that_change_between_batches_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lossopt.retrieval.parquet._BATCH", 2)
    pq.write_table(pa.table({"vector": [[1.0, 2.0]] * 4 + [[1.0]] * 4}), tmp_path / "v.parquet")
    with pytest.raises(DataError, match="vectors of 2 and of 1 numbers"):
        read_vectors(tmp_path / "v.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.json", '{"a": 1}', "it holds a dict, but a list"),
        ("l.json", "[1, 2", "cannot be read"),
        ("l.json", "[" * 100_000, "cannot be read"),
        ("l.json", json.dumps([1] * 39 + ["1"]), "all whole numbers or all text, got int, str"),
        ("l.json", json.dumps([1] * 39 + [None]), "got NoneType, int"),
        ("l.json", json.dumps([1] * 39 + [1.5]), "floating-point"),
        ("l.json", json.dumps([1] * 39), "40 vectors, but 39 labels"),
        ("l.txt", "a\n\nb\n" * 14, "14 lines are empty .line 2, 5,"),
        ("l.txt", "a\n" * 41, "40 vectors, but 41 labels"),
        ("l.csv", "a\n" * 41, "first line must name a column of labels .labels, label, .* but names a"),
        ("l.csv", "", "but names none"),
        ("l.csv", "label,name\n" + "a,b\n" * 39 + "a\n", r"1 rows do not have 2 cells .row 41"),
        ("l.csv", 'label\n"a', "cannot be read"),
        ("l.dat", "a", r"Labels are read from \.npy, \.json, \.txt and \.csv"),
    ],
)
def test_labels_that_do_not_fit_are_refused(name, content, message, tmp_path):
    np.save(tmp_path / "v.npy", VECTORS)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_vectors(tmp_path / "v.npy", tmp_path / name)


def test_integers_beyond_64_bit_stay_apart(tmp_path):
    np.save(tmp_path / "v.npy", VECTORS)
    labels = [2**80 + row // 2 for row in range(N)]
    (tmp_path / "l.json").write_text(json.dumps(labels))
    assert text_of(read_vectors(tmp_path / "v.npy", tmp_path / "l.json")) == [str(label) for label in labels]


def test_other_files_are_answered_with_what_is_read(tmp_path):
    (tmp_path / "v.pkl").touch()
    with pytest.raises(DataError, match=r"embeddings folders \(lossopt embed\), \.npy, \.npz, \.parquet"):
        read_vectors(tmp_path / "v.pkl")
    with pytest.raises(DataError, match="is no embeddings folder"):
        read_vectors(tmp_path)
    with pytest.raises(DataError, match="no file or folder"):
        read_vectors(tmp_path / "nowhere")


def test_a_zip_bomb_is_refused_without_the_memory(tmp_path):
    header = npy(np.zeros((1, 1), np.float32))[:128].replace(b"(1, 1)", b"(900000000000, 1)").replace(b" " * 11, b"", 1)
    with zipfile.ZipFile(tmp_path / "v.npz", "w") as archive:
        archive.writestr("vectors.npy", header + b"\0" * 100)
    with pytest.raises(DataError, match="cannot be read"):
        read_vectors(tmp_path / "v.npz")
    (tmp_path / "v.npy").write_bytes(header + b"\0" * 100)
    with pytest.raises(DataError, match="cannot be read"):
        read_vectors(tmp_path / "v.npy")


def test_without_pyarrow_the_line_that_installs_it_is_said(tmp_path, monkeypatch):
    pq.write_table(pa.table({"x": lists()}), tmp_path / "v.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r'pip install "lossopt\[parquet\]"'):
        read_vectors(tmp_path / "v.parquet")


# --------------------------------------------------------------------------------------------------------- joins


def table(n, labels, seed=1, names=None, **columns):
    classes = tuple(dict.fromkeys(labels))
    return LabelledVectors(
        np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32),
        np.array([classes.index(label) for label in labels]),
        classes,
        names or [str(row) for row in range(n)],
        **columns,
    )


def saved(folder, name, of):
    save_vectors(folder / name, of)
    return folder / name


def test_queries_and_gallery_meet_by_class_name(tmp_path):
    query = table(5, ["b", "001", "NA", "b", "new"])
    gallery = table(7, ["001", "1", "b", "b", "NA", "x", "x"], seed=2, groups=np.zeros(7, int), group_names=("g",))
    found = read_vectors(saved(tmp_path, "g", gallery), query=saved(tmp_path, "q", query))
    assert text_of(found) == text_of(query) + text_of(gallery)
    assert len(set(found.class_names)) == len(found.class_names) == 6
    assert found.names == [f"query/{row}" for row in range(5)] + [f"gallery/{row}" for row in range(7)]
    assert found.query.tolist() == [True] * 5 + [False] * 7 and found.gallery.tolist() == [False] * 5 + [True] * 7
    assert found.groups is None and found.paths is None
    np.testing.assert_array_equal(found.vectors, np.concatenate([query.vectors, gallery.vectors]))
    result = evaluate_task(found.vectors, found.task(), ks=(1, 7))
    assert (result.queries, result.excluded, result.gallery) == (4, 1, 7)
    assert result.metrics["recall@7"] == 1


def test_groups_marks_and_paths_survive_a_join(tmp_path):
    marks = np.array([True, False, True])
    one = table(
        3, list("aab"), groups=np.array([1, 0, 1]), group_names=("left", "right"), query=marks, paths=list("xyz")
    )
    two = table(3, list("bca"), seed=2, groups=np.array([0, 0, 1]), group_names=("right", "up"), gallery=marks)
    found = read_vectors(saved(tmp_path, "g", two), query=saved(tmp_path, "q", one))
    groups = [found.group_names[group] for group in found.groups]
    assert groups == ["right", "left", "right", "right", "right", "up"]
    assert found.query.tolist() == [True, False, True, False, False, False]
    assert found.gallery.tolist() == [False, False, False, True, False, True]
    assert found.paths == ["x", "y", "z", "", "", ""]


def test_a_join_from_files_with_labels_of_their_own(tmp_path):
    np.save(tmp_path / "g.npy", VECTORS)
    np.save(tmp_path / "q.npy", VECTORS[:3] + 1)
    (tmp_path / "g.txt").write_text("".join(f"{row % 5}\n" for row in range(N)))
    np.save(tmp_path / "ql.npy", np.array([4, 0, 7]))
    found = read_vectors(
        tmp_path / "g.npy", tmp_path / "g.txt", query=tmp_path / "q.npy", query_labels=tmp_path / "ql.npy"
    )
    assert text_of(found)[:4] == ["4", "0", "7", "0"]


def test_what_cannot_be_joined_is_refused(tmp_path):
    gallery = saved(tmp_path, "g", table(6, list("aabbcc"), names=[f"g{row}" for row in range(6)]))
    np.save(tmp_path / "q.npy", VECTORS[:, :4])
    with pytest.raises(DataError, match="query vectors have 4 dimensions, those of the gallery 6"):
        read_vectors(gallery, query=tmp_path / "q.npy")
    with pytest.raises(ConfigError, match="is both query and gallery"):
        read_vectors(gallery, query=tmp_path / "." / "g")
    with pytest.raises(ConfigError, match=r"but there are none \(--query\)"):
        read_vectors(gallery, query_labels=tmp_path / "l.npy")


def test_images_in_both_tables_would_find_themselves_and_are_refused(tmp_path):
    names = [f"image{row}" for row in range(8)]
    gallery = table(8, list("aabbccdd"), names=names)
    part = replace(gallery, vectors=gallery.vectors[:3], labels=gallery.labels[:3], names=names[:3])
    g = saved(tmp_path, "g", gallery)
    with pytest.raises(DataError, match=r"3 of the 3 queries are in the gallery too.*: image0, image1, image2\."):
        read_vectors(g, query=saved(tmp_path, "q", part))
    other = np.array(part.vectors)
    other[1:] += 1  # the same names, other images
    with pytest.raises(DataError, match="1 of the 3 queries"):
        read_vectors(g, query=saved(tmp_path, "q", replace(part, vectors=other)))
    other[0] += 1
    assert len(read_vectors(g, query=saved(tmp_path, "q", replace(part, vectors=other)))) == 11


def test_numbers_instead_of_names_are_no_sign_of_one_image_unless_all_are_equal(tmp_path):
    np.save(tmp_path / "g.npy", VECTORS)
    np.save(tmp_path / "q.npy", VECTORS[:5])
    with pytest.raises(DataError, match="5 of the 5 queries"):
        read_vectors(tmp_path / "g.npy", query=tmp_path / "q.npy")
    np.save(tmp_path / "q.npy", np.concatenate([VECTORS[:1], VECTORS[:4] + 1]))
    assert len(read_vectors(tmp_path / "g.npy", query=tmp_path / "q.npy")) == N + 5


# -------------------------------------------------------------------------------------------------- safetensors


def header_and_data(path):
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + size]), whole[8 + size :]


def put_together(path, header, data, size=None):
    text = json.dumps(header).encode()
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + data)


def test_safetensors_hold_vectors_and_labels(tmp_path):
    path = tmp_path / "v.safetensors"
    save_file({"embeddings": VECTORS, "labels": np.arange(N) % 4 + 2**53}, path)
    table = read_vectors(path)
    np.testing.assert_array_equal(table.vectors, VECTORS)
    assert text_of(table) == [str(row % 4 + 2**53) for row in range(N)]


@pytest.mark.parametrize("fault", ["truncated", "extra bytes", "overlapping", "huge header", "header past the end"])
def test_damaged_safetensors_are_refused(fault, tmp_path):
    path = tmp_path / "v.safetensors"
    save_file({"vectors": VECTORS, "labels": np.arange(N) % 4}, path)
    header, data = header_and_data(path)
    if fault == "truncated":
        put_together(path, header, data[:-8])
    if fault == "extra bytes":
        put_together(path, header, data + b"12345678")
    if fault == "overlapping":
        start = header["labels"]["data_offsets"][0]
        header["vectors"]["data_offsets"] = [start, start + VECTORS.nbytes]
        put_together(path, header, data)
    if fault == "huge header":
        put_together(path, header, data, size=2**62)
    if fault == "header past the end":
        put_together(path, header, b"", size=path.stat().st_size)
    with pytest.raises(DataError, match=r"The vectors in .*v\.safetensors cannot be read"):
        read_vectors(path)


def test_safetensors_without_the_package_name_the_install_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    (tmp_path / "v.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r'pip install "lossopt\[safetensors\]"'):
        read_vectors(tmp_path / "v.safetensors")
