"""The index against a search by definition: every pair of vectors, plain Python, whatever FAISS makes of them."""

import io
import math

import faiss
import numpy as np
import pytest

from lossopt.errors import ConfigError, DataError, EvaluationError
from lossopt.retrieval import index as index_module
from lossopt.retrieval.factory import components, fit_to_rows, keeps_vectors
from lossopt.retrieval.index import NeighbourIndex

FACTORIES = [
    *("Flat", "SQ8", "HNSW16,Flat", "IVF16,Flat", "IVF16,SQ8", "IVF16,PQ4np", "PQ4x4fs", "PCA6,Flat", "NSG16,Flat"),
    *("OPQ4_8,IVF8,PQ4np", "IVF16,PQ4x4fs,Refine(Flat)", "IVF16_HNSW8,Flat", "RR8,SQ8", "LSHrt,Refine(Flat)"),
]


def by_definition(gallery, query, distance):
    """The distance to every vector of the gallery."""
    found = []
    for vector in gallery.tolist():
        if distance == "euclidean":
            found.append(math.sqrt(sum((a - b) ** 2 for a, b in zip(vector, query, strict=True))))
        else:
            product = sum(a * b for a, b in zip(vector, query, strict=True))
            found.append(1 - product / math.hypot(*vector) / math.hypot(*query))
    return found


def clustered(n, d=8, classes=12, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, d))
    return (centres[rng.integers(classes, size=n)] + 0.4 * rng.normal(size=(n, d))).astype(np.float32)


# ------------------------------------------------------------------------------------------------------ exact search


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_exact_search_is_search_by_definition_among_ties_and_duplicates(distance):
    rng = np.random.default_rng(1)
    gallery = rng.integers(-2, 3, (60, 3)).astype(np.float32)
    gallery = gallery[np.abs(gallery).sum(axis=1) > 0]
    queries = gallery[:10]
    found = NeighbourIndex(gallery, distance).search(queries, 7)
    for query, distances, rows in zip(queries, found.distances, found.rows, strict=True):
        expected = by_definition(gallery, query.tolist(), distance)
        np.testing.assert_allclose(distances, sorted(expected)[:7], atol=1e-6)
        np.testing.assert_allclose([expected[row] for row in rows], sorted(expected)[:7], atol=1e-6)
        assert len(set(rows.tolist())) == 7


@pytest.mark.parametrize("kind", ["float64", "float16", "int8", "fortran", "strided", "read-only map"])
def test_any_numbers_in_any_layout_are_the_same_numbers(kind, tmp_path):
    whole = np.round(8 * clustered(50))
    plain = NeighbourIndex(whole).search(whole[:5], 5)
    vectors = whole.astype(kind) if kind in ("float64", "float16", "int8") else whole
    if kind == "fortran":
        vectors = np.asfortranarray(whole)
    if kind == "strided":
        vectors = np.repeat(whole, 2, axis=1)[:, ::2]
    if kind == "read-only map":
        np.save(tmp_path / "vectors.npy", whole)
        vectors = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    found = NeighbourIndex(vectors).search(vectors[:5], 5)
    np.testing.assert_array_equal(found.distances, plain.distances)


def test_k_beyond_the_gallery_is_cut_to_it():
    gallery = clustered(4)
    found = NeighbourIndex(gallery).search(gallery[:2], 100)
    assert found.rows.shape == (2, 4) and sorted(found.rows[0].tolist()) == [0, 1, 2, 3]


def test_cosine_scales_once_and_says_what_the_lengths_were():
    gallery = clustered(40)
    scales = np.linspace(0.5, 4, 40, dtype=np.float32)[:, None]
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    scaled = NeighbourIndex(scales * unit, "cosine")
    np.testing.assert_allclose(scaled.lengths, (0.5, 4), rtol=1e-6)
    found, expected = scaled.search(3 * gallery[:5], 6), NeighbourIndex(unit, "cosine").search(gallery[:5], 6)
    np.testing.assert_allclose(found.distances, expected.distances, atol=1e-6)
    assert NeighbourIndex(gallery).lengths is None


def test_some_rows_of_a_gallery_are_the_gallery():
    vectors = clustered(100)
    rows = np.array([3, 50, 7, 99, 20])
    found = NeighbourIndex(vectors, rows=rows).search(vectors[[99]], 5)
    assert found.rows[0, 0] == 3 and sorted(found.rows[0].tolist()) == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(found.distances[0, 1:], sorted(np.linalg.norm(vectors[rows] - vectors[99], axis=1))[1:])


def test_rows_that_are_not_in_the_gallery_do_not_matter():
    vectors = clustered(300)
    rows = np.flatnonzero(np.arange(300) % 2)
    expected = NeighbourIndex(vectors[rows], factory="IVF3,SQ8").search(vectors[:5], 4)
    vectors[::2] = np.nan
    found = NeighbourIndex(vectors, factory="IVF3,SQ8", rows=rows).search(clustered(300)[:5], 4)
    assert np.array_equal(found.rows, expected.rows) and np.array_equal(found.distances, expected.distances)


# ------------------------------------------------------------------------------------------------- what is no vector


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_what_has_no_distance_is_refused_with_its_rows(bad):
    vectors = clustered(60).astype(np.float64)
    index = NeighbourIndex(vectors)
    spoilt = vectors.copy()
    spoilt[[3, 41], 2] = bad
    with pytest.raises(EvaluationError, match=r"2 of 60 gallery vectors are NaN or infinite .*\[3, 41\]"):
        NeighbourIndex(spoilt)
    with pytest.raises(EvaluationError, match=r"1 of 30 gallery vectors .*\[41\]"):
        NeighbourIndex(spoilt, rows=np.arange(30, 60))
    with pytest.raises(EvaluationError, match=r"2 of 60 queries .*\[3, 41\]"):
        index.search(spoilt, 3)


def test_a_zero_vector_has_no_cosine_distance_but_a_euclidean_one():
    vectors = clustered(20)
    vectors[[5, 6]] = 0
    with pytest.raises(EvaluationError, match=r"2 of 20 gallery vectors are zero .*\[5, 6\]"):
        NeighbourIndex(vectors, "cosine")
    with pytest.raises(EvaluationError, match=r"1 of 1 queries are zero"):
        NeighbourIndex(vectors[:5], "cosine").search(vectors[[5]], 1)
    assert NeighbourIndex(vectors).search(vectors[[5]], 2).distances.tolist() == [[0, 0]]


def test_arguments_that_are_no_gallery_or_query_are_refused():
    gallery = clustered(10)
    for wrong in (gallery[:0], gallery[0], gallery[:, :0]):
        with pytest.raises(ValueError, match="needs a gallery"):
            NeighbourIndex(wrong)
    with pytest.raises(ValueError, match="'euclidean' or 'cosine', got 'dot'"):
        NeighbourIndex(gallery, "dot")
    index = NeighbourIndex(gallery)
    for queries, k in ((gallery[:, :5], 3), (gallery[0], 3), (gallery, 0)):
        with pytest.raises(ValueError, match=r"\(q, 8\) queries and k >= 1"):
            index.search(queries, k)


# -------------------------------------------------------------------------------------------- indexes of other kinds


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("factory", FACTORIES)
def test_any_factory_string_finds_most_of_the_exact_neighbours(factory, distance):
    gallery = clustered(700)
    queries = clustered(30, seed=0)
    exact = NeighbourIndex(gallery, distance).search(queries, 10)
    index = NeighbourIndex(gallery, distance, factory)
    for part, wide in (("IVF", "nprobe=16"), ("Refine", "k_factor_rf=20")):
        if part in factory:
            index.set_parameters(wide)
    found = index.search(queries, 10)
    shared = np.mean([len(set(a) & set(b)) for a, b in zip(exact.rows.tolist(), found.rows.tolist(), strict=True)])
    assert shared > 3.5
    assert len(index) == 700
    if keeps_vectors(factory):  # then distances are those between the vectors
        expected = [
            by_definition(gallery[rows], query, distance) for query, rows in zip(queries, found.rows, strict=True)
        ]
        np.testing.assert_allclose(found.distances, expected, atol=1e-5)
    assert (np.diff(found.distances, axis=1) >= 0).all() and (found.distances >= 0).all()


def test_all_lists_searched_are_exact_and_few_may_leave_places_empty():
    gallery = clustered(400)
    index = NeighbourIndex(gallery, factory="IVF8,Flat", parameters="nprobe=8")
    exact = NeighbourIndex(gallery).search(gallery[:20], 200)
    np.testing.assert_allclose(index.search(gallery[:20], 200).distances, exact.distances, atol=1e-5)
    index.set_parameters("nprobe=1")
    found = index.search(gallery[:20], 300)
    missing = found.rows < 0
    assert missing.any() and np.isinf(found.distances[missing]).all() and np.isfinite(found.distances[~missing]).all()


def test_cosine_is_said_once():
    gallery = clustered(50)
    with pytest.raises(ConfigError, match="say cosine once"):
        NeighbourIndex(gallery, "cosine", "L2norm,Flat")
    index = NeighbourIndex(gallery, "euclidean", "L2norm,Flat")
    assert "distances are those between such vectors" in index.notes[0]
    cosine = NeighbourIndex(gallery, "cosine").search(gallery[:5], 4)
    np.testing.assert_allclose(index.search(gallery[:5], 4).distances ** 2 / 2, cosine.distances, atol=1e-6)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("bogus", "does not know the index 'bogus' for 8 dimensions: could not parse index string bogus.*IVF256,Flat"),
        ("", "could not parse"),
        ("Flat,", "could not parse"),
        ("PQ3", "should be a multiple of the number of subquantizers"),
        ("PCA99,Flat", "PCA matrix cannot output 99 dimensions from 8"),
        ("IDMap,Flat", "leave IDMap out"),
        ("LSH", r"no distance.*'LSH,Refine\(Flat\)'"),
        ("PQ99999999999", "stoi"),
        # each of these ends the process, or never ends, if FAISS sees it
        *((each, "number 0") for each in ("PQ4x0", "RQ0x8", "NSG0,Flat", "HNSW0", "IVF0,Flat", "RR0,Flat", "PQ00")),
        *((each, "2 to 1,024 links") for each in ("HNSW1", "NSG1,Flat", "HNSW99999,Flat")),
    ],
)
def test_a_string_that_is_no_index_is_answered_in_words(factory, words):
    with pytest.raises(ConfigError, match=words) as refused:
        NeighbourIndex(clustered(1200), factory=factory)
    assert "/project/" not in str(refused.value) and "Error in" not in str(refused.value)


def test_ten_and_forty_are_not_zero():
    assert NeighbourIndex(clustered(1000), factory="IVF10,Flat").factory == "IVF10,Flat"
    assert NeighbourIndex(clustered(1000, d=40), factory="PQ10x4np,Refine(Flat)").factory == "PQ10x4np,Refine(Flat)"


# ---------------------------------------------------------------------------------------------------------- few rows


@pytest.mark.parametrize(
    ("factory", "n", "built", "words"),
    [
        ("IVF256,Flat", 400, "IVF10,Flat", "10 lists instead of 256"),
        ("IVF256_HNSW32,SQ8", 400, "IVF10_HNSW32,SQ8", "10 lists"),
        ("IVF64(IVF8,Flat),Flat", 400, "IVF10,Flat", "10 lists"),
        ("IVF256,Flat", 60, "Flat", "no lists instead of 256"),
        ("PCA4,IVF256,SQ8", 60, "PCA4,SQ8", "no lists"),
        ("IVF8,PQ4", 200, "Flat", "exact search instead of IVF8,PQ4: 200 rows are too few"),
        ("OPQ4_8,PQ4", 100, "Flat", "too few"),
        ("NSG16,Flat", 50, "Flat", "too few"),
        ("PQ4x12np", 1200, "Flat", "1,200 rows are too few for it (Number of training points (1200)"),
        ("PQ4np", 300, "PQ4np", "learnt from 300 rows, FAISS advises 9,984"),
        ("IVF4,Flat", 1, "Flat", "no lists"),
    ],
)
def test_few_rows_get_a_smaller_index_and_are_told_so(factory, n, built, words, capfd):
    gallery = clustered(n)
    index = NeighbourIndex(gallery, factory=factory)
    assert index.factory == built and any(words in note for note in index.notes)
    assert index.search(gallery[:1], 1).rows.shape == (1, 1)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_enough_rows_change_nothing():
    assert fit_to_rows("IVF256,Flat", 256 * 39) == ("IVF256,Flat", ())
    assert fit_to_rows("IVF256,Flat", 256 * 39 - 1).factory == "IVF255,Flat"
    assert components("IVF64(IVF8,PQ4x4fs,RFlat),PQ4,Refine(PQ8,Flat)") == [
        *("IVF64(IVF8,PQ4x4fs,RFlat)", "PQ4", "Refine(PQ8,Flat)")
    ]


def test_opq_and_pq_train_without_a_word_from_faiss(capfd):
    index = NeighbourIndex(clustered(1100), factory="OPQ4_8,IVF8,PQ4np")
    assert index.factory == "OPQ4_8,IVF8,PQ4np" and index.trained_on == 1100
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------- parameters of the search


def test_parameters_change_what_is_found():
    gallery = clustered(900)
    exact = NeighbourIndex(gallery).search(gallery[:50], 10).rows
    index = NeighbourIndex(gallery, factory="PCA6,IVF20,Flat,Refine(Flat)")
    shares = []
    for parameters in ("nprobe=1", "nprobe=20,k_factor_rf=20"):
        index.set_parameters(parameters)
        found = index.search(gallery[:50], 10).rows
        shares.append(np.mean([len(set(a) & set(b)) for a, b in zip(exact.tolist(), found.tolist(), strict=True)]))
    assert shares[0] < 9 and shares[1] > 9.9
    assert index.parameters == "nprobe=20,k_factor_rf=20"
    index.set_parameters("nprobe=3")
    assert index.parameters == "nprobe=3,k_factor_rf=20"


def test_settings_are_those_that_faiss_would_try_without_the_hamming_filter():
    rows = clustered(700)
    assert NeighbourIndex(rows).settings() == [{}]
    assert NeighbourIndex(rows, factory="IVF16,PQ4np").settings() == [{"nprobe": probes} for probes in (1, 2, 4, 8)]
    both = NeighbourIndex(rows, factory="IVF8,SQ8,Refine(Flat)").settings()
    assert both[0] == {"k_factor_rf": 1, "nprobe": 1} and both[-1] == {"k_factor_rf": 64, "nprobe": 4}
    assert all(
        set(each) == {"nprobe", "max_codes"} or set(each) == {"nprobe"}
        for each in NeighbourIndex(rows, factory="IMI2x2,Flat").settings()
    )


@pytest.mark.parametrize("wrong", ["nprobe", "nprobe=", "nprobe=x", "nprobe=0", "nprobe=-1", "nprobe=1.5", "=3", "4"])
def test_parameters_are_names_and_whole_numbers(wrong):
    with pytest.raises(ConfigError, match="names and whole numbers above 0"):
        NeighbourIndex(clustered(400), factory="IVF8,Flat", parameters=wrong)


def test_a_parameter_of_another_index_is_refused_with_what_there_is():
    gallery = clustered(400)
    with pytest.raises(ConfigError, match="'IVF8,Flat' has no search parameter 'efSearch'; what can be set: nprobe"):
        NeighbourIndex(gallery, factory="IVF8,Flat", parameters="efSearch=8")
    with pytest.raises(ConfigError, match="what can be set: nothing"):
        NeighbourIndex(gallery, parameters="nprobe=8")


def test_parameters_of_lists_that_few_rows_did_not_get_are_left_out_in_words():
    index = NeighbourIndex(clustered(60), factory="IVF64,Flat", parameters="nprobe=8")
    assert index.parameters == "" and "nprobe is left out" in index.notes[-1]


# ------------------------------------------------------------------------------------------------- memory and training


class Recording:
    """An array that notes how many rows are taken at a time."""

    def __init__(self, values):
        self.values, self.most = values, 0
        self.shape, self.ndim, self.size = values.shape, values.ndim, values.size

    def __len__(self):
        return len(self.values)

    def __getitem__(self, rows):
        found = self.values[rows]
        self.most = max(self.most, len(found))
        return found


@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
def test_a_gallery_is_never_read_whole(factory, some, monkeypatch):
    monkeypatch.setattr(index_module, "_CELLS", 8 * 50)
    values = clustered(1000)
    recording = Recording(values)
    rows = np.arange(0, 1000, 2) if some else None
    index = NeighbourIndex(recording, "cosine", factory, "nprobe=8" if factory != "Flat" else "", 100, rows=rows)
    assert recording.most <= max(50, 8 * 39 if factory != "Flat" else 0)
    expected = NeighbourIndex(values[::2] if some else values, "cosine").search(values[:9], 5)
    np.testing.assert_allclose(index.search(values[:9], 5).distances, expected.distances, atol=1e-6)


def test_training_rows_are_drawn_by_seed_and_as_many_as_the_lists_need():
    gallery = clustered(2000)

    def written(seed, most=100):
        index = NeighbourIndex(gallery, factory="IVF4,SQ8", most_training_rows=most, seed=seed)
        parts = []
        index.write(parts.append)
        return index.trained_on, b"".join(parts)

    assert written(0)[0] == 156  # 4 x 39, more than the 100 that were allowed
    assert written(0, 1500)[0] == 1500
    assert written(0) == written(0) and written(0) != written(1)
    assert NeighbourIndex(gallery).trained_on == 0


# ------------------------------------------------------------------------------------------------------ as bytes


def packed(index):
    parts = []
    index.write(parts.append)
    return b"".join(parts)


@pytest.mark.parametrize("factory", ["Flat", "HNSW16,Flat", "OPQ4_8,IVF8,PQ4np", "PCA6,IVF8,SQ8,Refine(Flat)"])
def test_an_index_comes_back_from_its_bytes(factory):
    gallery = clustered(600)
    index = NeighbourIndex(gallery, "cosine", factory)
    content = packed(index)
    assert index.nbytes == len(content)
    again = NeighbourIndex.read(io.BytesIO(content), len(content), 600, 8, "cosine")
    found, expected = again.search(gallery[:20], 7), index.search(gallery[:20], 7)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.distances, expected.distances)


def test_another_index_than_the_one_expected_is_refused():
    content = packed(NeighbourIndex(clustered(30)))
    for rows, dimensions in ((31, 8), (30, 9)):
        with pytest.raises(DataError, match=f"30 rows of 8 dimensions; {rows} rows of {dimensions}"):
            NeighbourIndex.read(io.BytesIO(content), len(content), rows, dimensions, "euclidean")
    similarity = faiss.IndexFlatIP(8)
    similarity.add(clustered(30))
    content = faiss.serialize_index(similarity).tobytes()
    with pytest.raises(DataError, match="measures similarity"):
        NeighbourIndex.read(io.BytesIO(content), len(content), 30, 8, "cosine")
    untrained = faiss.serialize_index(faiss.index_factory(8, "IVF4,Flat")).tobytes()
    with pytest.raises(DataError, match="is not trained"):
        NeighbourIndex.read(io.BytesIO(untrained), len(untrained), 0, 8, "euclidean")


def limits():
    return (
        faiss.get_deserialization_vector_byte_limit(),
        faiss.get_deserialization_loop_limit(),
        faiss.get_deserialization_lattice_r2_limit(),
    )


def test_what_a_file_claims_is_not_allocated_and_the_limits_are_put_back():
    before = limits()
    content = bytearray(packed(NeighbourIndex(clustered(30))))
    at = content.index((30 * 8).to_bytes(8, "little"))
    content[at : at + 8] = (2**36).to_bytes(8, "little")  # "I hold 256 GiB"
    with pytest.raises(DataError, match=r"FAISS cannot read it .*deserialization_vector_byte_limit"):
        NeighbourIndex.read(io.BytesIO(bytes(content)), len(content), 30, 8, "euclidean")
    assert limits() == before
    with pytest.raises(DataError, match="FAISS cannot read it"):
        NeighbourIndex.read(io.BytesIO(b"<html>"), 6, 30, 8, "euclidean")
    lists = packed(NeighbourIndex(clustered(400), factory="IVF8,Flat"))
    many = lists.replace(
        (8).to_bytes(8, "little") + (1).to_bytes(8, "little"),
        (2**40).to_bytes(8, "little") + (1).to_bytes(8, "little"),
        1,
    )
    assert many != lists
    with pytest.raises(DataError, match="deserialization_loop_limit"):
        NeighbourIndex.read(io.BytesIO(many), len(many), 400, 8, "euclidean")
    assert limits() == before


@pytest.mark.parametrize(
    ("factory", "kept"),
    [
        *(
            (each, True)
            for each in ("Flat", "IVF8,Flat", "HNSW32", "HNSW32,Flat", "PQ4,RFlat", "PCA4,PQ2,Refine(Flat)")
        ),
        *((each, False) for each in ("SQ8", "PCA4,Flat", "IVF8,PQ4", "PQ4,Refine(SQ8)", "L2norm,Flat", "RaBitQ")),
    ],
)
def test_which_indexes_answer_with_distances_between_the_vectors(factory, kept):
    assert keeps_vectors(factory) is kept
