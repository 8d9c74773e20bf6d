"""Retrieval metrics against their definitions, averaged over every order of tied items."""

import itertools
import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from scipy.stats import rankdata

from lossopt.errors import EvaluationError
from lossopt.retrieval import counting
from lossopt.retrieval import metrics as formulas
from lossopt.retrieval.evaluation import evaluate_retrieval, measure_task
from lossopt.retrieval.neighbours import nearest
from lossopt.retrieval.task import make_task

KS = (1, 2, 3)


def gain(q, g, labels, levels):
    """One point for the class, one for each coarser level that two rows share."""
    return int(labels[q] == labels[g]) + sum(int(column[q] == column[g]) for column in levels)


def of_one_order(order, q, r, labels, levels):
    """Every metric of one ranked list, as metrics are defined."""
    hits = [labels[g] == labels[q] for g in order]
    precisions = [sum(hits[: i + 1]) / (i + 1) if hits[i] else 0 for i in range(len(hits))]
    found = {"r_precision": sum(hits[:r]) / r, "map@r": sum(precisions[:r]) / r, "map": sum(precisions) / r}
    found["mrr"] = 1 / (hits.index(True) + 1)
    gains = [gain(q, g, labels, levels) for g in order]
    for k in KS:
        found[f"recall@{k}"] = float(any(hits[:k]))
        found[f"precision@{k}"] = sum(hits[:k]) / k
        found[f"found@{k}"] = sum(hits[:k]) / r
        dcg, ideal = (
            sum(value / math.log2(i + 2) for i, value in enumerate(some[:k]))
            for some in (gains, sorted(gains, reverse=True))
        )
        found[f"ndcg@{k}"] = dcg / ideal
    return found


def by_definition(vectors, labels, query, gallery, groups, exclude, levels=()):
    """For each query, every metric averaged over all orders of equally distant items."""
    rows = {}
    for q in np.flatnonzero(query):
        others = []
        for g in np.flatnonzero(gallery):
            junk = groups[g] == groups[q] and (exclude == "all" or (exclude == "same class" and labels[g] == labels[q]))
            if g != q and not junk:
                others.append(g)
        r = sum(labels[g] == labels[q] for g in others)
        if r == 0:
            continue
        distance = {
            g: sum((float(a) - float(b)) ** 2 for a, b in zip(vectors[q], vectors[g], strict=True)) for g in others
        }
        runs = [
            list(itertools.permutations([g for g in others if distance[g] == level]))
            for level in sorted(set(distance.values()))
        ]
        found = [
            of_one_order(list(itertools.chain(*order)), q, r, labels, levels) for order in itertools.product(*runs)
        ]
        rows[q] = {name: np.mean([one[name] for one in found]) for name in found[0]}
    return rows


def untidy(seed):
    """Small whole-number vectors (ties, duplicates), lone labels, some rows only query or only gallery, groups."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 8))
    vectors = rng.integers(0, 3, (n, 2)).astype((np.float32, np.float64, np.int8, np.float16)[seed % 4])
    if seed % 5 == 0:
        vectors = vectors * np.array([1, 0], dtype=vectors.dtype)  # on a line
    labels = rng.integers(-1, 3, n) + (2**24 if seed % 2 else 0)
    query, gallery = (rng.random((2, n)) < 0.8) if seed % 3 else np.ones((2, n), dtype=bool)
    return vectors, labels, query, gallery, rng.integers(0, 2, n)


@pytest.fixture(params=["usual", "small tiles", "small tiles and chunks", "float64", "exact", "exact and small tiles"])
def engine(request, monkeypatch):
    """Each way in which the counts can come about."""
    if "chunks" in request.param:
        monkeypatch.setattr(counting, "_THRESHOLDS", 1)
    if "small" in request.param:
        monkeypatch.setattr(counting, "_SQUARE", 2)
        monkeypatch.setattr(counting, "_TILE", (2, 3))
        monkeypatch.setattr(counting, "_CHUNK_BYTES", 24)
    if request.param.startswith(("float64", "exact")):
        monkeypatch.setattr(counting, "_PAIRS", 0)
    if "exact" in request.param:
        monkeypatch.setattr(counting, "_ACCEPT", -1.0)
    return request.param


def check(seed, exclude, levels):
    vectors, labels, query, gallery, groups = untidy(seed)
    coarse = [labels % 2 * 0 + (labels > labels.min())] if levels else []
    expected = by_definition(vectors, labels, query, gallery, groups, exclude, coarse)
    call = {"groups": groups, "exclude": exclude, "levels": np.stack(coarse, axis=1) if coarse else None}
    if not expected:
        with pytest.raises(EvaluationError):
            evaluate_retrieval(vectors, labels, query, gallery, KS, **call)
        return False
    task = make_task(len(labels), labels, query, gallery, groups, exclude)
    relevant, candidates = counting.relevant_and_candidates(task)
    if candidates[relevant > 0].max() < max(KS):
        with pytest.raises(EvaluationError, match="was asked for, but a query searches"):
            evaluate_retrieval(vectors, labels, query, gallery, KS, **call)
        return False
    found = measure_task(vectors, task, KS, levels=call["levels"])
    assert task.query_rows[relevant > 0].tolist() == list(expected)
    for name, values in found.items():
        np.testing.assert_allclose(values, [row[name] for row in expected.values()], atol=1e-12, rtol=0, err_msg=name)
        assert 0 <= values.min() <= values.max() <= 1
    return True


@pytest.mark.parametrize("exclude", ["none", "same class", "all"])
def test_equal_to_the_definition_on_untidy_input(engine, exclude):
    many = 400 if engine == "usual" else 100
    kept = sum(check(seed, exclude, levels=False) for seed in range(many))
    kept += sum(check(seed, exclude, levels=True) for seed in range(many // 2) if exclude != "same class")
    assert kept > many * (0.6 if exclude == "none" else 0.2)


def clustered(n=700, classes=30, d=16, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    vectors = rng.normal(size=(classes, d))[labels] + 0.7 * rng.normal(size=(n, d))
    return vectors.astype(np.float32), labels


def spoil(vectors, kind):
    """The same vectors in a form that float32 or a row order could stumble over."""
    if kind == "quantised":
        return np.round(vectors)
    if kind == "duplicates":
        return np.repeat(vectors[::3], 3, axis=0)[: len(vectors)]
    if kind == "constant":
        return np.ones_like(vectors)
    if kind == "cone":
        return (1 + 1e-4 * vectors).astype(np.float32)
    if kind == "far outlier":
        return np.concatenate([vectors[:-1] * 1e-3, vectors[-1:] + 1e4])
    if kind == "hash codes":
        return np.sign(vectors)
    return vectors


def by_ranking(vectors, labels, query, gallery, distance):
    """Recall@1, MRR and found@8 of untied rankings, from float64 distances of all pairs."""
    wide = vectors.astype(np.float64)
    if distance == "cosine":
        wide = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    result = {"recall@1": [], "mrr": [], "found@8": []}
    for q in np.flatnonzero(query):
        others = np.flatnonzero(gallery)
        others = others[others != q]
        right = labels[others] == labels[q]
        if not right.any():
            continue
        d = ((wide[others] - wide[q]) ** 2).sum(axis=1)
        ranks = rankdata(d, method="ordinal")[right]
        assert len(np.unique(d)) == len(d)
        result["recall@1"].append(float(ranks.min() == 1))
        result["mrr"].append(1 / ranks.min())
        result["found@8"].append((ranks <= 8).mean())
    return {name: np.array(values) for name, values in result.items()}


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", ["spread", "cone", "far outlier"])
def test_equal_to_float64_where_float32_is_not_enough(engine, kind, distance):
    vectors, labels = clustered(300, 3, 8)  # about 100 relevant items: thresholds are searched, not compared one by one
    vectors = spoil(vectors, kind)
    query, gallery = np.arange(300) % 4 > 0, np.arange(300) % 5 > 0
    expected = by_ranking(vectors, labels, query, gallery, distance)
    found = evaluate_retrieval(vectors, labels, query, gallery, distance=distance)
    for name, values in expected.items():
        np.testing.assert_allclose(found.per_query[name], values, atol=1e-12, rtol=0)


@pytest.mark.parametrize("classes", [3, 200])
@pytest.mark.parametrize("kind", ["spread", "quantised", "duplicates", "constant", "cone", "hash codes"])
def test_every_engine_gives_the_same(kind, classes, monkeypatch):
    vectors, labels = clustered(400, classes, 6)
    vectors = spoil(vectors, kind)
    task = make_task(400, labels)
    first = measure_task(vectors, task)
    monkeypatch.setattr(counting, "_TILE", (64, 50))
    monkeypatch.setattr(counting, "_SQUARE", 60)
    second = measure_task(vectors, task)
    for name, values in first.items():
        np.testing.assert_allclose(second[name], values, atol=1e-12, rtol=0, err_msg=name)
    monkeypatch.setattr(counting, "_THRESHOLDS", 3000)
    monkeypatch.setattr(counting, "_PAIRS", 1)
    second = measure_task(vectors, task)
    for name, values in first.items():
        np.testing.assert_allclose(second[name], values, atol=1e-12, rtol=0, err_msg=name)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("classes", [30, 3])
def test_agrees_with_pytorch_metric_learning_where_that_is_right(distance, classes):
    vectors, labels = clustered(classes=classes)
    if distance == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    peers = {
        "precision_at_1": "recall@1",
        "r_precision": "r_precision",
        "mean_average_precision_at_r": "map@r",
        "mean_average_precision": "map",
        "mean_reciprocal_rank": "mrr",
    }
    peer = AccuracyCalculator(include=tuple(peers), k=len(labels) - 1).get_accuracy(
        torch.from_numpy(vectors), torch.from_numpy(labels)
    )
    found = evaluate_retrieval(vectors, labels, distance=distance)
    for theirs, ours in peers.items():
        assert found.metrics[ours] == pytest.approx(peer[theirs], abs=1e-6), ours


@pytest.mark.parametrize("kind", ["spread", "constant", "quantised", "duplicates", "hash codes"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_row_order_cannot_change_a_number(kind, distance):
    vectors, labels = clustered(150, 8, 4)
    vectors = spoil(vectors, kind)
    vectors[~vectors.any(axis=1)] += 1  # the cosine distance needs a direction
    groups = labels % 3
    first = measure_task(vectors, make_task(150, labels), distance=distance, levels=groups)
    for seed in range(100):
        order = np.random.default_rng(seed).permutation(len(labels))
        again = measure_task(vectors[order], make_task(150, labels[order]), distance=distance, levels=groups[order])
        for name, values in first.items():
            np.testing.assert_allclose(again[name], values[order], atol=1e-12, rtol=0, err_msg=name)


@pytest.mark.parametrize("n", [60, 600])
@pytest.mark.parametrize("gap", [1e-7, 1e-9, 1e-11])
def test_differences_that_float32_cannot_see_decide(n, gap):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(n, 8))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    vectors = directions * (1 + gap * rng.permutation(n))[:, None]  # a shell around the query
    vectors[0] = 0
    labels, query = rng.integers(0, 2, n), np.arange(n) == 0
    expected = by_ranking(vectors, labels, query, np.ones(n, dtype=bool), "euclidean")
    found = measure_task(vectors, make_task(n, labels, query))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-12, rtol=0)


def test_many_thresholds_with_ties_at_each(engine):
    rng = np.random.default_rng(0)
    places, labels = rng.integers(0, 60, 240), rng.integers(0, 2, 240)  # some 60 distances, shared by both classes
    found = measure_task(places[:, None].astype(np.float32), make_task(240, labels), (1, 5, 50))
    distances = np.abs(places[:, None] - places).astype(float)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")
    right = np.take_along_axis(labels[:, None] == labels, order, axis=1)
    right[:, -1] = False  # itself, at infinity
    lists = formulas.groups_of_lists(np.take_along_axis(distances, order, axis=1), right)
    expected = {
        "recall@1": formulas.recall_at_k(lists, 1),
        "found@5": formulas.hits_at_k(lists, 5) / lists.relevant,
        "recall@50": formulas.recall_at_k(lists, 50),
        "map@r": formulas.average_precision(lists, lists.relevant),
        "map": formulas.average_precision(lists),
        "mrr": formulas.reciprocal_rank(lists),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-12, rtol=0, err_msg=name)


def test_distances_that_agree_to_twelve_digits_are_ties():
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(40, 16))
    lengths = np.tile([1, 3, 7], 40)[:, None]  # of one direction, so equally far by cosine, but for the last digit
    vectors = np.concatenate([np.repeat(directions, 3, axis=0) * lengths, rng.normal(size=(50, 16))])
    labels, query = np.append(np.tile([0, 1, 2], 40), np.zeros(50, dtype=np.int64)), np.arange(170) >= 120
    found = measure_task(vectors, make_task(170, labels, query, ~query), (1, 2, 3), "cosine")
    for k in (1, 2, 3):
        np.testing.assert_allclose(found[f"recall@{k}"], k / 3, atol=1e-12, rtol=0)
    labels[:120] = np.tile([0, 0, 1], 40)  # the first asks; both others are at distance 0, but for a digit
    gallery = np.arange(170) < 120
    found = measure_task(vectors, make_task(170, labels, gallery & (np.arange(170) % 3 == 0), gallery), (1,), "cosine")
    np.testing.assert_allclose(found["recall@1"], 0.5, atol=1e-12, rtol=0)


@pytest.mark.parametrize("exclude", ["none", "same class", "all"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", ["spread", "quantised", "duplicates", "cone"])
def test_the_faiss_lists_agree_with_the_counts(kind, distance, exclude):
    vectors, labels = clustered(300, 20, 6)
    vectors = spoil(vectors, kind)
    vectors[~vectors.any(axis=1)] += 1
    query, gallery, groups = np.arange(300) % 3 > 0, np.arange(300) % 4 > 0, np.arange(300) % 7
    task = make_task(300, labels, query, gallery, groups, exclude)
    found = evaluate_retrieval(vectors, labels, query, gallery, (1, 5), distance, groups=groups, exclude=exclude)
    lists = nearest(vectors, task, found.query_rows, 300, distance)
    assert (lists.distances[:, 1:] >= lists.distances[:, :-1]).all()
    right = (task.labels[lists.rows] == task.labels[found.query_rows][:, None]) & (lists.rows >= 0)
    assert (right.sum(axis=1) == found.relevant).all()
    assert (np.isfinite(lists.distances).sum(axis=1) == found.candidates).all()
    if kind in ("spread", "cone"):  # without ties a list has one order
        np.testing.assert_array_equal(right[:, :1].any(axis=1), found.per_query["recall@1"])
        np.testing.assert_array_equal(right[:, :5].any(axis=1), found.per_query["recall@5"])


def test_neighbours_beyond_a_crowd_that_is_left_out():
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(size=(200, 4)) * 1e-3, 5 + rng.normal(size=(30, 4))])
    groups = (np.arange(230) >= 200).astype(np.int64)
    task = make_task(230, np.arange(230) % 5, groups=groups, exclude="all")
    found = nearest(vectors, task, np.array([0, 7]), 3)
    for query, rows in zip((0, 7), found.rows, strict=True):
        others = np.arange(200, 230)
        assert rows.tolist() == others[np.argsort(((vectors[others] - vectors[query]) ** 2).sum(axis=1))][:3].tolist()


def test_what_has_no_answer_is_refused():
    vectors, labels = clustered(50, 5, 4)
    spoilt = vectors.copy()
    spoilt[3, 1], spoilt[7, 0] = np.nan, np.inf
    with pytest.raises(EvaluationError, match=r"2 of 50 embeddings are NaN or infinite, first rows: \[3, 7\]"):
        evaluate_retrieval(spoilt, labels)
    with pytest.raises(EvaluationError, match="None of the 50 queries has another image of its class"):
        evaluate_retrieval(vectors, np.arange(50))
    with pytest.raises(EvaluationError, match="0 gallery images"):
        evaluate_retrieval(vectors, labels, gallery=np.zeros(50, dtype=bool))
    with pytest.raises(EvaluationError, match=r"recall@50 was asked for, but a query searches 49 items"):
        evaluate_retrieval(vectors, labels, ks=(50,))
    with pytest.raises(EvaluationError, match="0 queries"):
        evaluate_retrieval(np.empty((0, 4), dtype=np.float32), np.empty(0, dtype=np.int64))
    with pytest.raises(EvaluationError, match=r"Every match of the 50 queries .* group, 5 groups, 50 gallery .* 50 q"):
        evaluate_retrieval(vectors, labels, groups=labels, exclude="same class")
    with pytest.raises(EvaluationError, match=r"2 of 50 embeddings are all zeros .* first rows: \[1, 2\]"):
        evaluate_retrieval(np.where(np.isin(np.arange(50), [1, 2])[:, None], 0, vectors), labels, distance="cosine")
    with pytest.raises(EvaluationError, match="overflow float64"):
        evaluate_retrieval(vectors.astype(np.float64) * 1e160, labels)


def test_rows_outside_the_task_may_be_anything():
    vectors, labels = clustered(50, 5, 4)
    vectors[3] = np.nan
    used = np.arange(50) != 3
    with_bad = evaluate_retrieval(vectors, labels, used, used).metrics
    assert with_bad == pytest.approx(evaluate_retrieval(vectors[used], labels[used]).metrics, abs=1e-12)


def test_arguments_of_the_wrong_kind_are_refused():
    vectors, labels = clustered(50, 5, 4)
    for changes, message in (
        ({"ks": (0,)}, "at least 1"),
        ({"ks": ()}, "one or more"),
        ({"distance": "cos"}, "'euclidean' or 'cosine', got 'cos'"),
        ({"query": np.arange(10)}, r"query must be \(50,\) booleans, one per row, got int64"),
        ({"gallery": np.ones(49, dtype=bool)}, r"gallery must be \(50,\)"),
        ({"exclude": "all"}, "there are no groups"),
        ({"exclude": "camera"}, "exclude must be one of"),
        ({"levels": np.arange(50)}, "more than one of its groups"),
        ({"levels": np.arange(49)}, r"levels must be \(50,\)"),
        ({"levels": labels, "groups": labels, "exclude": "same class"}, "cannot be combined"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_retrieval(vectors, labels, **changes)
    with pytest.raises(ValueError, match=r"One of labels per embedding: got \(49,\)"):
        evaluate_retrieval(vectors, labels[:-1])
    with pytest.raises(ValueError, match="floating-point numbers merge large ids"):
        evaluate_retrieval(vectors, labels.astype(np.float32))


def test_labels_are_exact():
    vectors = np.array([[0.0], [0.1], [5.0], [5.1]])
    for labels in (np.array([2**24, 2**24 + 1] * 2), np.array([2**53, 2**53 + 1] * 2), np.array(["001", "1"] * 2)):
        assert evaluate_retrieval(vectors, labels, ks=(1,)).metrics["recall@1"] == 0


@pytest.mark.parametrize("kind", ["float16", "float64", "int8", "fortran", "strided", "read-only map"])
def test_any_kind_of_array_gives_the_same(kind, tmp_path):
    vectors, labels = clustered(120, 10, 6)
    vectors = np.round(vectors * 8)
    expected = evaluate_retrieval(vectors, labels).metrics
    given = {
        "float16": lambda: vectors.astype(np.float16),
        "float64": lambda: vectors.astype(np.float64),
        "int8": lambda: vectors.astype(np.int8),
        "fortran": lambda: np.asfortranarray(vectors),
        "strided": lambda: np.repeat(vectors, 2, axis=1)[:, ::2],
        "read-only map": lambda: (np.save(tmp_path / "v.npy", vectors), np.load(tmp_path / "v.npy", mmap_mode="r"))[1],
    }[kind]()
    assert evaluate_retrieval(given, labels).metrics == expected


def test_tensors_and_lists_are_taken_as_arrays():
    vectors, labels = clustered(50, 5, 4)
    expected = evaluate_retrieval(vectors, labels).metrics
    assert evaluate_retrieval(torch.from_numpy(vectors), torch.from_numpy(labels)).metrics == expected
    assert evaluate_retrieval(vectors.tolist(), labels.tolist()).metrics == pytest.approx(expected, abs=1e-3)


def test_scale_and_shift_change_nothing():
    vectors, labels = clustered(200, 20, 6)
    expected = evaluate_retrieval(vectors, labels).metrics
    for scale, shift in ((2.0**100, 0), (2.0**-100, 0), (1, 64)):
        moved = vectors.astype(np.float64) * scale + shift
        assert evaluate_retrieval(moved, labels).metrics == pytest.approx(expected, abs=1e-12)


def test_lone_queries_are_counted_and_both_means_given():
    vectors = np.array([[0.0], [0.1], [9.0]], dtype=np.float32)
    found = evaluate_retrieval(vectors, np.array([0, 0, 1]), ks=(1,))
    assert (found.queries, found.excluded) == (2, 1)
    assert found.metrics["recall@1"] == 1 and found.metrics_all_queries["recall@1"] == pytest.approx(2 / 3)


def test_distractors_are_counted():
    vectors, labels = clustered(60, 5, 4)
    query = np.isin(labels, [0, 1]) & (np.arange(60) % 2 == 0)
    found = evaluate_retrieval(vectors, labels, query)
    assert found.distractors == (~np.isin(labels, np.unique(labels[query]))).sum()
