"""Ill and healthy embeddings of many shapes: every ill one is named, no healthy one is."""

import itertools

import numpy as np
import pytest
import torch
import torchvision
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from lossopt.encoders import Conv4, SmallResNet
from lossopt.errors import EvaluationError
from lossopt.losses import TripletLoss
from lossopt.miners import BatchHardMiner
from lossopt.retrieval.collapse import measure_collapse
from lossopt.retrieval.duplicates import duplicate_share, first_equal_row
from lossopt.retrieval.task import make_task


def measure(vectors, labels, distance="euclidean", sample=2_000):
    return measure_collapse(vectors, make_task(len(labels), labels), distance, sample)


def ill(n, d, seed):
    """(name, embeddings, labels) of models that say nothing; with one dimension only those that can be ill."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) // 5 if seed % 2 else np.arange(n) % 10
    direction = rng.normal(size=d)
    centre = direction / np.linalg.norm(direction)
    amount = rng.normal(size=(n, 1))
    yield "constant", np.tile(direction, (n, 1)), labels
    yield "constant, long", np.tile(1e4 * direction, (n, 1)), labels
    yield "zero", np.zeros((n, d)), labels
    noise = rng.normal(size=(n, d))
    by_class = (rng.normal(size=(labels.max() + 1, d))[labels] + 0.2 * noise) / np.sqrt(d)
    for width in (1e-3, 1e-4, 1e-5):
        yield f"cone of width {width}", centre + width / np.sqrt(d) * noise, labels
        yield f"cone of width {width} in each dimension", centre + width * noise, labels
        yield f"cone of width {width}, classes apart", centre + width * by_class, labels
        unit = centre + width * noise
        yield f"cone of width {width}, unit", unit / np.linalg.norm(unit, axis=1, keepdims=True), labels
    if d > 1:
        yield "rank 1", amount * direction, labels
        yield "rank 1, classes apart", (amount[labels] + 0.1 * amount) * direction, labels
        yield "rank 1, one side", np.abs(amount) * direction, labels
        yield "rank 1, unit", np.sign(amount) * centre, labels
        yield "a line beside the origin", amount * direction + rng.normal(size=d), labels


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("n", "d"), [(701, 1), (701, 2), (701, 3), (200, 2), (200, 16), (200, 64), (200, 512)])
def test_ill_models_are_named_every_time(n, d, seed):
    for name, vectors, labels in ill(n, d, seed):
        for distance in ("euclidean", "cosine"):
            found = measure(vectors.astype(np.float32), labels, distance)
            assert found.collapsed, (name, distance, found)


def test_ill_models_are_named_in_a_large_table():
    for name, vectors, labels in ill(3_000, 64, 0):
        assert measure(vectors.astype(np.float32), labels).collapsed, name


def clustered(n, c, d, noise, seed=0, unit=False):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % c
    vectors = rng.normal(size=(c, d))[labels] + noise * rng.normal(size=(n, d))
    if unit:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), labels


SHAPES = {  # n, classes, d, noise
    "few images, 8-d": (200, 20, 8, 0.5),
    "700 images": (700, 30, 16, 0.7),
    "3,000 images, noisy": (3_000, 300, 64, 1.0),
    "512-d": (1_000, 100, 512, 1.0),
    "2 classes": (300, 2, 64, 0.1),
    "2 classes, far apart": (300, 2, 64, 1e-3),
    "2 classes, perfect": (300, 2, 64, 1e-5),
    "2 classes in the plane": (300, 2, 2, 0.1),
    "3 classes in the plane": (300, 3, 2, 0.1),
    "10 classes in the plane": (500, 10, 2, 0.3),
    "5 classes": (300, 5, 32, 0.1),
    "10 classes": (500, 10, 128, 0.05),
    "10 classes, perfect": (500, 10, 128, 1e-4),
    "1,000 classes": (3_000, 1_000, 256, 0.3),
    "50 classes in space": (200, 50, 3, 0.2),
}


@pytest.mark.parametrize("unit", [False, True], ids=["plain", "unit"])
@pytest.mark.parametrize("shape", SHAPES)
def test_healthy_clusters_are_never_named(shape, unit):
    vectors, labels = clustered(*SHAPES[shape], unit=unit)
    for distance in ("euclidean", "cosine"):
        found = measure(vectors, labels, distance)
        assert not found.reasons


def altered():
    vectors, labels = clustered(500, 50, 64, 0.5)
    yield "int8", np.round(127 * vectors / np.abs(vectors).max()).astype(np.int8), labels
    yield "rectified", np.maximum(vectors, 0), labels
    yield "every row three times", np.repeat(vectors[:200], 3, axis=0), np.repeat(labels[:200], 3)
    yield "one outlier", np.concatenate([vectors[:-1], 1e4 * vectors[-1:]]), labels
    yield "one strong dimension", vectors * np.array([30] + [1] * 63), labels
    yield "off centre", vectors + 3, labels
    yield "one zero row", vectors * (np.arange(500) != 7)[:, None], labels
    yield "as narrow as an untrained network", 1 / 0.034 + vectors / vectors.std(), labels
    coarse = clustered(500, 10, 16, 0)
    yield "each class one point", *coarse
    yield "each of two classes one point", *clustered(500, 2, 16, 0)


def test_healthy_but_odd_models_are_never_named():
    for name, vectors, labels in altered():
        for distance in ("euclidean", "cosine"):
            assert not measure(vectors, labels, distance).reasons, name


def test_one_dimension_is_judged_by_its_ties():
    vectors, labels = clustered(300, 5, 1, 0.05)
    assert not measure(vectors, labels).reasons
    assert not measure(np.abs(vectors) + 0.1, labels).reasons  # all unit vectors are equal, but lengths differ
    assert "equally near items of several classes" in measure(vectors, labels, "cosine").reasons[0]


@pytest.fixture(scope="module")
def digits():
    content = load_digits()
    return content.images.astype(np.float32) / 16, content.target


def test_healthy_features_of_real_images_are_never_named(digits):
    images, labels = digits
    flat = images.reshape(len(images), -1)
    features = {"pixels": flat}
    for k in (2, 8, 32):
        features[f"PCA {k}"] = PCA(k).fit_transform(flat)
        features[f"whitened {k}"] = PCA(k, whiten=True).fit_transform(flat)
    for k in (1, 2, 9):
        features[f"LDA {k}"] = LinearDiscriminantAnalysis(n_components=k).fit_transform(flat, labels)
    for name, vectors in features.items():
        assert not measure(vectors.astype(np.float32), labels).reasons, name
        assert not measure(np.round(127 * vectors / np.abs(vectors).max()), labels).reasons or name == "LDA 1", name


def test_untrained_networks_are_never_named(digits):
    images = torch.nn.functional.interpolate(torch.from_numpy(digits[0][:300, None]), size=28)
    makers = [lambda d=d: Conv4(embedding_size=d) for d in (2, 32)]
    makers += [lambda d=d: SmallResNet(embedding_size=d) for d in (2, 512)]
    makers.append(lambda: torch.nn.Sequential(Widen(), torchvision.models.resnet18(weights=None)))
    for make, seed in itertools.product(makers, (2, 3)):
        torch.manual_seed(seed)
        with torch.inference_mode():
            vectors = make().eval()(images[:200]).numpy()
        for distance in ("euclidean", "cosine"):
            assert not measure(vectors, digits[1][:200], distance).reasons


class Widen(torch.nn.Module):
    """Grey to RGB."""

    def forward(self, images):
        return images.expand(-1, 3, -1, -1)


def test_trained_networks_are_never_named(digits):
    images, labels = (torch.from_numpy(column) for column in digits)
    torch.manual_seed(0)
    for d in (2, 16):
        network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, d))
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        miner, loss_fn = BatchHardMiner(), TripletLoss(margin=1.0)
        for step in range(60):
            some = torch.randperm(len(labels), generator=torch.Generator().manual_seed(step))[:128]
            vectors = network(images[some].flatten(1))
            optimizer.zero_grad()
            loss_fn(vectors, labels[some], miner(vectors, labels[some])).backward()
            optimizer.step()
        with torch.inference_mode():
            trained = network(images.flatten(1)).numpy()
        for distance in ("euclidean", "cosine"):
            assert not measure(trained, digits[1], distance).reasons


def test_the_figures_are_those_of_their_definitions():
    vectors, labels = clustered(60, 6, 5, 0.5)
    vectors[7] = vectors[3]
    found = measure(vectors, labels)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit.astype(np.float64) @ unit.T
    assert found.mean_cosine == pytest.approx(cosines[~np.eye(60, dtype=bool)].mean(), abs=1e-6)
    assert found.spread == pytest.approx(np.sqrt(5) * np.sqrt(unit.var(axis=0).mean()), rel=1e-5)
    values = np.linalg.svd(unit - unit.mean(axis=0), compute_uv=False)
    shares = values / values.sum()
    assert found.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    assert found.duplicates == 2 / 60 and found.zero_rows == 0 and found.precision_gap == 0


def test_ties_within_a_class_are_told_from_ties_between_classes():
    vectors = np.array([[-5.0], [-4.0], [-6.0], [10.0], [11.0], [9.0], [20.0], [20.5]])
    labels = np.array([0, 0, 0, 1, 1, 2, 3, 3])
    found = measure(vectors, labels)
    assert found.tie_share == 2 / 8  # rows 0 and 3 have two nearest
    assert found.mixed_ties == 1 / 8  # those of row 3 are of two classes
    assert found.reasons == ()
    asked = np.isin(np.arange(8), [0, 3, 4])
    assert measure_collapse(vectors, make_task(8, labels, query=asked)).reasons == ()
    asked[[0, 4]] = False
    found = measure_collapse(vectors, make_task(8, labels, query=asked))
    assert found.reasons == ("100.0% of the queries have equally near items of several classes",)


def test_a_gap_between_exact_and_float32_recall_is_a_sign_of_its_own():
    rng = np.random.default_rng(0)
    labels = np.arange(2_000) // 10
    vectors = 1e-5 * (rng.normal(size=(200, 16))[labels] + 0.1 * rng.normal(size=(2_000, 16)))
    vectors[:, 0] += np.where(labels % 2 == 0, 1.0, -1.0)  # two cones: spread out, of high rank, free of ties
    found = measure(vectors, labels)
    assert found.spread > 0.9 and found.mixed_ties == 0
    assert found.precision_gap > 0.5
    assert any("float32 inner products change recall@1 by" in reason for reason in found.reasons)


def test_zero_rows_are_counted_and_named_when_many():
    vectors, labels = clustered(500, 50, 8, 0.5)
    vectors[::12] = 0
    found = measure(vectors, labels)
    assert found.zero_rows == 42 and found.reasons == ()
    vectors[1::18] = 0
    found = measure(vectors, labels)
    assert found.zero_rows == 70 and found.reasons == ("70 vectors are zero",)


def test_who_may_find_whom_counts_for_ties():
    rng = np.random.default_rng(0)
    vectors = np.concatenate([np.repeat(rng.normal(size=(20, 4)), 3, axis=0), rng.normal(size=(60, 4))])
    labels, groups = np.arange(120) % 60, np.arange(120) // 60  # every row of the first group stands there three times
    asked = groups == 0
    found = measure_collapse(vectors, make_task(120, labels, query=asked))
    assert (found.tie_share, found.mixed_ties) == (1, 1)
    other_group = make_task(120, labels, query=asked, groups=groups, exclude="all")
    assert measure_collapse(vectors, other_group).tie_share == 0
    nobody = make_task(120, labels, np.arange(120) == 0, np.arange(120) == 0)
    assert measure_collapse(vectors, nobody).tie_share == 0
    assert measure_collapse(vectors, nobody).precision_gap == 0


def test_a_large_table_is_sampled():
    vectors, labels = clustered(4_000, 40, 16, 0.5)
    vectors[2::2] = vectors[0]
    found = measure(vectors, labels, sample=50)
    assert 0.3 < found.mixed_ties < 0.7  # of the 50 queries; of the rows that were not asked nothing is known
    assert found.duplicates == 0.5


def test_nan_is_refused():
    vectors, labels = clustered(50, 5, 4, 0.5)
    vectors[3] = np.nan
    with pytest.raises(EvaluationError, match="NaN or infinite, which is no collapse"):
        measure(vectors, labels)


def test_equal_rows_are_found_whatever_their_zeros(monkeypatch):
    monkeypatch.setattr("lossopt.retrieval.duplicates._CELLS", 6)
    vectors = np.array([[1, 0.0], [2, 3], [1, -0.0], [5, 5], [2, 3], [1, 0], [3, 2]], dtype=np.float32)
    assert first_equal_row(vectors).tolist() == [0, 1, 0, 3, 1, 0, 6]
    assert duplicate_share(first_equal_row(vectors)) == 5 / 7
    assert first_equal_row(vectors.astype(np.float16)).tolist() == [0, 1, 0, 3, 1, 0, 6]
    assert duplicate_share(first_equal_row(np.empty((0, 2)))) == 0
