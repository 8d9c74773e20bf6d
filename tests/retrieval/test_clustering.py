"""Agreement of clusters with classes where the clusters are known, from the formulas of information theory."""

import json
import math

import numpy as np
import pytest

from lossopt.retrieval.clustering import measure_clustering
from lossopt.retrieval.task import make_task


def clustered(n=300, classes=10, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return (rng.normal(size=(classes, 8))[labels] + noise * rng.normal(size=(n, 8))).astype(np.float32), labels


def nmi_by_definition(table):
    """2 I / (H of rows + H of columns) of a table of counts."""
    total = sum(map(sum, table))
    rows, columns = [sum(row) / total for row in table], [sum(column) / total for column in zip(*table, strict=True)]
    information = sum(
        cell / total * math.log(cell / total / (rows[i] * columns[j]))
        for i, row in enumerate(table)
        for j, cell in enumerate(row)
        if cell
    )
    entropy = [-sum(share * math.log(share) for share in side if share) for side in (rows, columns)]
    return 2 * information / sum(entropy)


def test_nmi_of_clusters_that_are_plain_to_see():
    vectors = np.repeat([[0.0, 0.0], [100.0, 0.0]], [9, 6], axis=0) + np.linspace(0, 1, 15)[:, None]
    labels = np.array([0] * 7 + [1] * 2 + [1] * 5 + [0])
    found = measure_clustering(vectors, make_task(15, labels))
    assert found.nmi == pytest.approx(nmi_by_definition([[7, 2], [1, 5]]))
    assert found.ami < found.nmi
    assert (found.clusters, found.rows) == (2, 15)


def test_classes_apart_score_one_and_labels_drawn_at_random_about_nothing():
    vectors, labels = clustered(noise=0.01)
    found = measure_clustering(vectors, make_task(300, labels))
    assert (found.nmi, found.ami) == pytest.approx((1.0, 1.0))
    assert "NMI 100.00 %, AMI 100.00 %: k-means of 300 images into 10 clusters, as many as classes" in found.as_text()
    by_chance = measure_clustering(vectors, make_task(300, np.random.default_rng(0).permutation(labels)))
    assert abs(by_chance.ami) < 0.05 < by_chance.nmi


def test_near_a_collapse_the_clusters_are_still_found():
    vectors, labels = clustered(noise=0.01)
    found = measure_clustering(1.0 + 1e-9 * vectors.astype(np.float64), make_task(300, labels))
    assert found.nmi == pytest.approx(1.0)


def test_cosine_ignores_lengths():
    vectors, labels = clustered(noise=0.01)
    stretched = vectors * np.random.default_rng(0).uniform(1, 1e4, (300, 1))
    assert measure_clustering(stretched, make_task(300, labels), "cosine").nmi == pytest.approx(1.0)
    assert measure_clustering(stretched, make_task(300, labels)).nmi < 0.8


def test_a_constant_model_scores_nothing():
    found = measure_clustering(np.ones((60, 4), dtype=np.float32), make_task(60, np.arange(60) % 6))
    assert (found.nmi, found.ami) == pytest.approx((0.0, 0.0))


@pytest.mark.parametrize(("labels", "why"), [(np.zeros(9, int), "only one class"), (np.arange(9), "no class has two")])
def test_what_cannot_be_clustered_says_why(labels, why):
    found = measure_clustering(np.random.default_rng(0).normal(size=(9, 3)), make_task(9, labels))
    assert found.nmi is None and found.ami is None
    assert why in found.reason and f"NMI and AMI are not given: {found.reason}" == found.as_text()
    assert json.loads(json.dumps(found.as_json()))["nmi"] is None


def test_only_rows_of_the_task_count():
    vectors, labels = clustered(noise=0.01)
    outside = labels >= 7
    task = make_task(300, np.where(outside, np.arange(300) + 100, labels), ~outside, ~outside)
    found = measure_clustering(vectors, task)
    assert (found.rows, found.all_rows, found.clusters, found.all_classes) == (210, 210, 7, 7)


def test_bounded_work_takes_some_classes_and_says_so():
    vectors, labels = clustered(noise=0.01)
    some = measure_clustering(vectors, make_task(300, labels), most_work=300 * 10 * 8 * 0.3**2)
    assert (some.clusters, some.rows, some.all_rows, some.all_classes) == (3, 90, 300, 10)
    assert some.nmi == pytest.approx(1.0)
    assert "90 images into 3 clusters, as many as classes drawn from 10" in some.as_text()


def test_bounded_memory_takes_some_rows(monkeypatch):
    monkeypatch.setattr("lossopt.retrieval.clustering._MOST_CELLS", 8 * 100)
    vectors, labels = clustered(noise=0.01)
    found = measure_clustering(vectors, make_task(300, labels))
    assert (found.rows, found.all_rows) == (100, 300)


def test_one_seed_one_figure():
    vectors, labels = clustered(noise=1.5)
    task = make_task(300, labels)
    assert measure_clustering(vectors, task) == measure_clustering(vectors, task)
    assert measure_clustering(vectors, task, seed=1) != measure_clustering(vectors, task)
