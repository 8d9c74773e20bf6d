"""PCA whitening against scikit-learn's, and what it refuses to learn from."""

import io
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from lossopt.errors import DataError, EvaluationError
from lossopt.retrieval import whitening
from lossopt.retrieval.whitening import learn_whitening, load_whitening


def correlated(n=400, d=6, seed=0, offset=3.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * rng.uniform(0.01, 5, d) + offset


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("dimensions", [None, 1, 4])
def test_without_regularisation_it_is_scikit_learns_pca(dimensions):
    train, other = correlated(), correlated(50, seed=1)
    mine = learn_whitening(train, dimensions, regularisation=0).apply(other, out=np.empty((50, dimensions or 6)))
    theirs = unit(PCA(dimensions, whiten=True).fit(train).transform(other))
    np.testing.assert_allclose(mine @ mine.T, theirs @ theirs.T, atol=1e-9)


def test_a_far_away_mean_costs_no_precision():
    near, far = (learn_whitening(correlated(offset=offset), regularisation=0) for offset in (0, 1e6))
    turned = [one.projection @ one.projection.T for one in (near, far)]
    np.testing.assert_allclose(turned[1], turned[0], rtol=1e-5)


def test_directions_of_training_have_the_variance_that_the_regularisation_leaves():
    train = correlated()
    found = learn_whitening(train, regularisation=0.25)
    spread = np.cov(((train - found.mean) @ found.projection).T, bias=True)
    variance = np.sort(np.linalg.eigvalsh(np.cov(train.T, bias=True)))[::-1]
    np.testing.assert_allclose(spread, np.diag(variance / (variance + 0.25 * variance.mean())), atol=1e-9)


def test_the_default_regularisation_does_not_blow_up_noise():
    rng = np.random.default_rng(0)
    train = np.hstack([rng.normal(size=(500, 3)), 1e-6 * rng.normal(size=(500, 1))])
    noise = learn_whitening(train).projection[3]
    assert np.abs(noise).max() < 1 / np.sqrt(0.1 * 0.7)
    assert np.abs(learn_whitening(train, regularisation=0).projection[3]).max() > 1e5


def test_chunks_and_memory_maps_and_dtypes_give_the_same(tmp_path, monkeypatch):
    train, other = correlated().astype(np.float32), correlated(37, seed=1).astype(np.float32)
    whole = learn_whitening(train).apply(other)
    np.save(tmp_path / "train.npy", train)
    monkeypatch.setattr(whitening, "_CELLS", 60)  # 10 rows at a time
    mapped = np.load(tmp_path / "train.npy", mmap_mode="r")
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.float32, (37, 6))
    found = learn_whitening(mapped).apply(other, out)
    assert found is out
    np.testing.assert_allclose(found, whole, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert whole.dtype == np.float32
    integers = np.random.default_rng(0).integers(0, 255, (40, 5)).astype(np.uint8)
    same = learn_whitening(integers.astype(float)).apply(integers.astype(float))
    np.testing.assert_array_equal(learn_whitening(integers).apply(integers), same)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e8])
def test_a_constant_dimension_is_left_out(constant):
    train = np.hstack([correlated(), np.full((400, 1), constant)])
    found = learn_whitening(train)
    assert found.dimensions == 6
    moved = np.hstack([correlated(20, seed=1), np.full((20, 1), constant + 100)])
    still = np.hstack([correlated(20, seed=1), np.full((20, 1), constant)])
    np.testing.assert_allclose(found.apply(moved), found.apply(still), atol=1e-5)


def test_unit_input_forgets_lengths():
    train, other = correlated(), correlated(20, seed=1)
    lengths = np.random.default_rng(2).uniform(0.1, 10, (20, 1))
    found = learn_whitening(train, unit_input=True)
    np.testing.assert_allclose(found.apply(other * lengths), found.apply(other), atol=1e-6)
    plain = learn_whitening(unit(train))
    np.testing.assert_allclose(found.apply(other), plain.apply(unit(other)), atol=1e-6)
    assert np.abs(learn_whitening(train).apply(other * lengths) - learn_whitening(train).apply(other)).max() > 0.01


def test_the_training_mean_itself_becomes_zero():
    found = learn_whitening(np.array([[1.0, 0], [-1, 0], [0, 2], [0, -2]]))
    np.testing.assert_array_equal(found.apply(np.zeros((1, 2))), np.zeros((1, 2)))


def test_too_little_to_learn_from_is_refused():
    with pytest.raises(EvaluationError, match="more than 6 training embeddings, got 6"):
        learn_whitening(correlated(6))
    assert learn_whitening(correlated(6), 3).dimensions == 3
    with pytest.raises(EvaluationError, match="more than 1 training embeddings, got 1"):
        learn_whitening(correlated(1), 1)
    with pytest.raises(EvaluationError, match="All 50 training embeddings are equal"):
        learn_whitening(np.full((50, 3), 0.1))
    line = np.outer(np.arange(50.0), [1, 2, 3])
    assert learn_whitening(line).dimensions == 1
    with pytest.raises(EvaluationError, match="1 directions only, fewer than the 2"):
        learn_whitening(line, 2)


def test_arguments_without_a_meaning_are_refused():
    for dimensions in (0, 7):
        with pytest.raises(ValueError, match="dimensions must be from 1 to 6"):
            learn_whitening(correlated(), dimensions)
    for regularisation in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match="regularisation must be 0 or more"):
            learn_whitening(correlated(), regularisation=regularisation)
    with pytest.raises(ValueError, match=r"shape \(6,\)"):
        learn_whitening(np.ones(6))
    found = learn_whitening(correlated(), 4)
    with pytest.raises(ValueError, match=r"takes \(n, 6\) embeddings"):
        found.apply(np.ones((2, 5)))
    with pytest.raises(ValueError, match=r"out must have shape \(2, 4\)"):
        found.apply(np.ones((2, 6)), np.empty((2, 6)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_without_a_number_are_named(bad, monkeypatch):
    monkeypatch.setattr(whitening, "_CELLS", 60)
    train = correlated()
    found = learn_whitening(train)
    train[[33, 35], 2] = bad
    for refuse in (found.apply, learn_whitening):
        with pytest.raises(EvaluationError, match=r"2 embeddings .* first rows: \[33, 35\]"):
            refuse(train)


def test_it_is_saved_and_read_without_pickles(tmp_path):
    found = learn_whitening(correlated(), 4, unit_input=True)
    found.save(tmp_path / "new" / "whitening.npz")
    read = load_whitening(tmp_path / "new" / "whitening.npz")
    np.testing.assert_array_equal(read.mean, found.mean)
    np.testing.assert_array_equal(read.projection, found.projection)
    assert read.unit_input is True


class Payload:
    """What a pickle can do when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.mkdir, (self.marker,)


def test_no_code_is_run_from_a_file(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, mean=np.array([Payload(tmp_path / "ran")] * 2), projection=np.eye(2), unit_input=np.array(False))
    with pytest.raises(DataError, match="Object arrays cannot be loaded"):
        load_whitening(path)
    assert not (tmp_path / "ran").exists()


def archive(**columns):
    written = io.BytesIO()
    np.savez(written, **columns)
    return written.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 cut off",
        archive(mean=np.zeros(2)),
        archive(mean=np.zeros(2), projection=np.zeros((3, 1)), unit_input=np.array(False)),
        archive(mean=np.zeros(2), projection=np.full((2, 1), np.nan), unit_input=np.array(False)),
        archive(mean=np.array(["a", "b"]), projection=np.zeros((2, 1)), unit_input=np.array(False)),
    ],
    ids=["empty", "cut", "keys", "shapes", "nan", "text"],
)
def test_a_file_that_is_no_whitening_is_refused(tmp_path, content):
    path = tmp_path / "w.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"w\.npz is not a saved whitening"):
        load_whitening(path)
    with pytest.raises(DataError, match="is not a saved whitening"):
        load_whitening(tmp_path / "none.npz")
    np.save(tmp_path / "plain.npy", np.zeros(3))
    with pytest.raises(DataError, match="is not a saved whitening"):
        load_whitening(tmp_path / "plain.npy")
