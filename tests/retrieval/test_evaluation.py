"""Retrieval metrics against their definitions, averaged over every order of tied items, in exact fractions."""

import itertools

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from lossopt.errors import EvaluationError
from lossopt.retrieval.evaluation import evaluate_retrieval
from lossopt.retrieval.index import NeighbourIndex


def by_definition(vectors, labels, query, gallery, ks):
    """Every metric as metrics are defined: for each query, average over all orders of equally distant items."""
    rows = {f"recall@{k}": [] for k in ks} | {"map@r": []}
    for q in np.flatnonzero(query):
        others = [g for g in np.flatnonzero(gallery) if g != q]
        r = sum(labels[g] == labels[q] for g in others)
        if r == 0:
            continue
        distance = {
            g: sum((float(a) - float(b)) ** 2 for a, b in zip(vectors[q], vectors[g], strict=True)) for g in others
        }
        levels = sorted(set(distance.values()))
        runs = [list(itertools.permutations([g for g in others if distance[g] == level])) for level in levels]
        totals = {name: [] for name in rows}
        for order in itertools.product(*runs):
            hits = [labels[g] == labels[q] for g in itertools.chain(*order)]
            for k in ks:
                totals[f"recall@{k}"].append(any(hits[:k]))
            precisions = [sum(hits[: i + 1]) / (i + 1) if hits[i] else 0 for i in range(r)]
            totals["map@r"].append(sum(precisions) / r)
        for name, values in totals.items():
            rows[name].append(np.mean(values))
    return {name: np.array(values) for name, values in rows.items()}


def untidy(seed):
    """Small whole-number vectors (many ties and duplicates), lone labels, some rows only query or only gallery."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 8))
    vectors = rng.integers(0, 3, (n, 2)).astype(np.float32)
    labels = rng.integers(-1, 3, n) + (2**24 if seed % 2 else 0)
    query, gallery = (rng.random((2, n)) < 0.8) if seed % 3 else np.ones((2, n), dtype=bool)
    return vectors, labels, query, gallery


@pytest.mark.parametrize("long_list", [512, 0], ids=["faiss", "product"])
@pytest.mark.parametrize("seed", range(60))
def test_equal_to_the_definition_on_untidy_input(seed, long_list, monkeypatch):
    monkeypatch.setattr("lossopt.retrieval.evaluation._LONG_LIST", long_list)
    vectors, labels, query, gallery = untidy(seed)
    expected = by_definition(vectors, labels, query, gallery, (1, 2, 3))
    if not len(expected["map@r"]):
        with pytest.raises(EvaluationError):
            evaluate_retrieval(vectors, labels, query, gallery, (1, 2, 3))
        return
    shared = (query & gallery).any()
    if gallery.sum() - shared < 3:
        return
    found = evaluate_retrieval(vectors, labels, query, gallery, (1, 2, 3))
    for name, values in expected.items():
        np.testing.assert_allclose(found.per_query[name], values, atol=1e-12, rtol=0)
    assert found.queries + found.excluded == query.sum()


def test_every_seed_is_not_skipped():
    kept = sum(len(by_definition(*untidy(seed), (1,))["map@r"]) > 0 for seed in range(60))
    assert kept > 40


def clustered(n=700, classes=30, d=16, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    vectors = rng.normal(size=(classes, d))[labels] + 0.7 * rng.normal(size=(n, d))
    return vectors.astype(np.float32), labels


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_agrees_with_pytorch_metric_learning_where_that_is_right(distance):
    vectors, labels = clustered()
    if distance == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = ("precision_at_1", "mean_average_precision_at_r")
    peer = AccuracyCalculator(include=names, k="max_bin_count").get_accuracy(
        torch.from_numpy(vectors), torch.from_numpy(labels)
    )
    found = evaluate_retrieval(vectors, labels, distance=distance)
    assert found.metrics["recall@1"] == pytest.approx(peer["precision_at_1"], abs=1e-6)
    assert found.metrics["map@r"] == pytest.approx(peer["mean_average_precision_at_r"], abs=1e-6)


@pytest.mark.parametrize("kind", ["spread", "quantised", "duplicates", "split"])
def test_long_lists_by_one_product_agree_with_short_ones_by_faiss(kind, monkeypatch):
    vectors, labels = clustered(300, 6, 4)
    query = gallery = None
    if kind == "quantised":
        vectors = np.round(vectors)
    if kind == "duplicates":
        vectors = np.repeat(vectors[::3], 3, axis=0)
    if kind == "split":
        query = np.arange(300) % 5 == 0
        gallery = np.arange(300) % 5 != 1
    by_faiss = evaluate_retrieval(vectors, labels, query, gallery)
    monkeypatch.setattr("lossopt.retrieval.evaluation._LONG_LIST", 20)
    monkeypatch.setattr("lossopt.retrieval.evaluation._LIST_CELLS", 2_000)
    by_product = evaluate_retrieval(vectors, labels, query, gallery)
    for name, values in by_faiss.per_query.items():
        np.testing.assert_allclose(by_product.per_query[name], values, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["spread", "constant", "quantised"])
def test_row_order_cannot_change_a_number(kind):
    vectors, labels = clustered(200, 8, 4)
    if kind == "constant":
        vectors[:] = 1
    if kind == "quantised":
        vectors = np.round(vectors)
    first = evaluate_retrieval(vectors, labels).metrics
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(labels))
        again = evaluate_retrieval(vectors[order], labels[order]).metrics
        assert again == pytest.approx(first, abs=1e-12)


def test_a_collapsed_model_scores_what_chance_scores_and_is_named():
    labels = np.repeat([0, 1], [90, 10])
    found = evaluate_retrieval(np.ones((100, 8), dtype=np.float32), labels, ks=(1,))
    assert found.metrics["recall@1"] == pytest.approx((90 * 89 + 10 * 9) / (100 * 99))
    assert found.collapse.collapsed


@pytest.mark.parametrize("width", [1e-3, 1e-4, 1e-5])
def test_a_cone_is_named_a_collapse(width):
    rng = np.random.default_rng(0)
    cone = np.ones((300, 16)) / 4 + width * rng.normal(size=(300, 16))
    found = evaluate_retrieval(cone.astype(np.float32), np.arange(300) // 10)
    assert found.collapse.collapsed


def test_healthy_embeddings_are_not_named_a_collapse():
    for seed in range(10):
        assert not evaluate_retrieval(*clustered(seed=seed)).collapse.collapsed


def test_an_image_never_finds_itself_even_among_duplicates():
    vectors = np.array([[0, 0], [0, 0], [5, 5], [5, 5]], dtype=np.float32)
    found = evaluate_retrieval(vectors, np.array([0, 1, 2, 2]), ks=(1,))
    assert found.per_query["recall@1"].tolist() == [1.0, 1.0]  # only rows 2 and 3 have anything to find
    assert found.neighbours[0][0] == 3


def test_the_faiss_lists_agree_with_the_evaluation():
    vectors, labels = clustered()
    found = evaluate_retrieval(vectors, labels)
    listed = NeighbourIndex(vectors).search(vectors, 11)
    for row in range(len(labels)):
        assert [g for g in listed.rows[row] if g != row][:5] == found.neighbours[row][:5].tolist()


def test_what_has_no_answer_is_refused():
    vectors, labels = clustered(50, 5, 4)
    spoilt = vectors.copy()
    spoilt[[3, 7], 1] = np.nan
    with pytest.raises(EvaluationError, match=r"2 of 50 embeddings are NaN or infinite, first rows: \[3, 7\]"):
        evaluate_retrieval(spoilt, labels)
    with pytest.raises(EvaluationError, match="None of the 50 queries has another image of its class"):
        evaluate_retrieval(vectors, np.arange(50))
    with pytest.raises(EvaluationError, match="0 gallery images"):
        evaluate_retrieval(vectors, labels, gallery=np.zeros(50, dtype=bool))
    with pytest.raises(EvaluationError, match=r"recall@50 was asked for, but a query has 49 items"):
        evaluate_retrieval(vectors, labels, ks=(50,))
    with pytest.raises(EvaluationError, match="0 queries"):
        evaluate_retrieval(np.empty((0, 4), dtype=np.float32), np.empty(0, dtype=np.int64))


def test_arguments_of_the_wrong_kind_are_refused():
    vectors, labels = clustered(50, 5, 4)
    for changes, message in (
        ({"ks": (0,)}, "at least 1"),
        ({"ks": ()}, "one or more"),
        ({"distance": "cos"}, "'euclidean' or 'cosine', got 'cos'"),
        ({"query": np.arange(10)}, r"query must be \(50,\) booleans, one per row, got int64"),
        ({"gallery": np.ones(49, dtype=bool)}, r"gallery must be \(50,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_retrieval(vectors, labels, **changes)
    with pytest.raises(ValueError, match="One label per embedding"):
        evaluate_retrieval(vectors, labels[:-1])


def test_tensors_and_lists_are_taken_as_arrays():
    vectors, labels = clustered(50, 5, 4)
    expected = evaluate_retrieval(vectors, labels).metrics
    assert evaluate_retrieval(torch.from_numpy(vectors), torch.from_numpy(labels)).metrics == expected
    assert evaluate_retrieval(vectors.tolist(), labels.tolist()).metrics == pytest.approx(expected, abs=1e-3)


def test_lone_queries_are_counted_and_both_means_given():
    vectors = np.array([[0.0], [0.1], [9.0]], dtype=np.float32)
    found = evaluate_retrieval(vectors, np.array([0, 0, 1]), ks=(1,))
    assert (found.queries, found.excluded) == (2, 1)
    assert found.metrics["recall@1"] == 1 and found.metrics_all_queries["recall@1"] == pytest.approx(2 / 3)
