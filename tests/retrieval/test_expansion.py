"""Query expansion against its definition typed out, query by query."""

import numpy as np
import pytest

from lossopt.retrieval import expansion
from lossopt.retrieval.evaluation import evaluate_task
from lossopt.retrieval.expansion import augment_gallery, expand_queries
from lossopt.retrieval.task import make_task


def untidy(n=60, d=4, seed=0):
    """Lengths that differ, exact duplicates, opposite rows, one row of nearly no length."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, d)) * rng.uniform(0.2, 3, (n, 1))
    vectors[10:14] = vectors[3]
    vectors[20] *= 1e-9
    vectors[30] = -vectors[31]
    return vectors, rng.integers(0, 7, n)


def cosine(a, b):
    lengths = np.sqrt((a * a).sum() * (b * b).sum())
    return (a * b).sum() / lengths if lengths else 0.0


def scaled(a):
    length = np.sqrt((a * a).sum())
    return a / length if length else a


def by_definition(vectors, asked, allowed, k, alpha, distance):
    """allowed: rows that this query may find."""

    def far(row):
        one = (scaled(asked), scaled(vectors[row])) if distance == "cosine" else (asked, vectors[row])
        return ((one[0] - one[1]) ** 2).sum()

    near = sorted(allowed, key=lambda row: (far(row), row))[:k]
    mean, total = scaled(asked) if distance == "cosine" else asked.copy(), 1.0
    for row in near:
        weight = 1.0 if alpha == 0 else max(0.0, cosine(asked, vectors[row])) ** alpha
        mean = mean + weight * (scaled(vectors[row]) if distance == "cosine" else vectors[row])
        total += weight
    return scaled(mean) if distance == "cosine" else mean / total


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("alpha", [0, 1, 3.5])
@pytest.mark.parametrize("k", [1, 4, 100])
def test_it_is_the_weighted_mean_of_the_definition(distance, alpha, k, monkeypatch):
    monkeypatch.setattr(expansion, "_CELLS", 100)
    vectors, labels = untidy()
    query, gallery = np.arange(60) % 3 != 0, np.arange(60) % 4 != 0
    task = make_task(60, labels, query, gallery)
    found = expand_queries(vectors, task, task.query_rows, k, alpha, distance)
    for one, row in zip(found, task.query_rows, strict=True):
        allowed = [g for g in task.gallery_rows if g != row]
        np.testing.assert_allclose(one, by_definition(vectors, vectors[row], allowed, k, alpha, distance), atol=1e-12)


@pytest.mark.parametrize("exclude", ["same class", "all"])
def test_what_the_task_leaves_out_has_no_weight(exclude):
    vectors, labels = untidy()
    groups = np.arange(60) % 3
    task = make_task(60, labels, groups=groups, exclude=exclude)
    found = expand_queries(vectors, task, task.query_rows, 5, 2)
    for row in range(60):
        shared = groups == groups[row]
        if exclude == "same class":
            shared &= labels == labels[row]
        allowed = [g for g in range(60) if g != row and not shared[g]]
        expected = by_definition(vectors, vectors[row], allowed, 5, 2, "euclidean")
        np.testing.assert_allclose(found[row], expected, atol=1e-12)


def test_a_query_never_counts_twice_even_with_twins():
    vectors = np.array([[1.0, 0], [1, 0], [0, 1]])
    found = expand_queries(vectors, make_task(3, np.zeros(3, int)), np.array([0, 2]), 1, 0)
    np.testing.assert_allclose(found, [[1, 0], [0.5, 0.5]])


def test_it_can_start_from_other_embeddings_than_the_rows():
    vectors, labels = untidy()
    task = make_task(60, labels)
    other, _ = untidy(seed=5)
    queries = np.array([5, 2, 40])
    found = expand_queries(vectors, task, queries, 3, 1, query_embeddings=other[queries])
    for one, row in zip(found, queries, strict=True):
        allowed = [g for g in range(60) if g != row]
        expected = by_definition(vectors, other[row], allowed, 3, 1, "euclidean")
        np.testing.assert_allclose(one, expected, atol=1e-12)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_with_nothing_to_find_a_query_stays(distance):
    vectors = np.array([[2.0, 0], [0, 3]])
    task = make_task(2, np.array([0, 1]), groups=np.zeros(2, int), exclude="all")
    stays = vectors / [[2], [3]] if distance == "cosine" else vectors
    np.testing.assert_array_equal(expand_queries(vectors, task, np.arange(2), 3, 1, distance), stays)
    task = make_task(2, np.array([0, 1]))
    np.testing.assert_array_equal(expand_queries(vectors, task, np.arange(2), 0, 1, distance), stays)


def test_an_opposite_neighbour_does_not_pull():
    vectors = np.array([[1.0, 0], [-1, 0]])
    task = make_task(2, np.zeros(2, int))
    np.testing.assert_array_equal(expand_queries(vectors, task, np.arange(2), 1, 1), vectors)
    np.testing.assert_array_equal(expand_queries(vectors, task, np.arange(2), 1, 0), np.zeros((2, 2)))


def test_the_gallery_is_augmented_and_the_others_stay():
    vectors, labels = untidy()
    query, gallery = np.arange(60) % 3 != 0, np.arange(60) % 4 != 0
    task = make_task(60, labels, query, gallery, groups=labels, exclude="same class")
    found = augment_gallery(vectors, task, 4, 2)
    np.testing.assert_array_equal(found[~gallery], vectors[~gallery])
    for row in task.gallery_rows:
        allowed = [g for g in task.gallery_rows if g != row]
        expected = by_definition(vectors, vectors[row], allowed, 4, 2, "euclidean")
        np.testing.assert_allclose(found[row], expected, atol=1e-12)
    groups = np.arange(60) % 5
    apart = augment_gallery(vectors, make_task(60, labels, groups=groups, exclude="all"), 4, 2)
    for row in range(60):
        allowed = [g for g in range(60) if groups[g] != groups[row]]
        expected = by_definition(vectors, vectors[row], allowed, 4, 2, "euclidean")
        np.testing.assert_allclose(apart[row], expected, atol=1e-12)


def test_it_helps_where_classes_are_clouds():
    rng = np.random.default_rng(0)
    labels = np.arange(300) // 10
    vectors = rng.normal(size=(30, 24))[labels] + 0.9 * rng.normal(size=(300, 24))
    task = make_task(300, labels)
    before = evaluate_task(vectors, task).metrics["map@r"]
    asked = expand_queries(vectors, task, task.query_rows)
    assert evaluate_task(vectors, task, query_embeddings=asked).metrics["map@r"] > before + 0.05


@pytest.mark.parametrize(("k", "alpha"), [(-1, 0), (3, -0.1), (3, np.nan), (3, np.inf)])
def test_settings_without_a_meaning_are_refused(k, alpha):
    with pytest.raises(ValueError, match="k >= 0 and alpha >= 0"):
        expand_queries(np.eye(3), make_task(3, np.zeros(3, int)), np.arange(3), k, alpha)
