"""Pairs against every pair of rows, tried one by one."""

import itertools
import tracemalloc

import numpy as np
import pytest

from lossopt.errors import EvaluationError
from lossopt.retrieval.pairs import draw_pairs
from lossopt.retrieval.task import make_task


def powers(n):
    """Every difference of two of these is another number, so that a distance says which pair it belongs to."""
    return 2.0 ** np.arange(n)[:, None]


def by_definition(n, labels, query, gallery, groups, exclude):
    """Distance to whether of one class, for every unordered pair that may be asked for in one order at least."""
    found = {}
    for q, g in itertools.product(np.flatnonzero(query), np.flatnonzero(gallery)):
        shared = groups[q] == groups[g]
        same = labels[q] == labels[g]
        if q == g or (exclude == "all" and shared) or (exclude == "same class" and shared and same):
            continue
        found[abs(2.0**q - 2.0**g)] = same
    return found


def untidy(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(6, 14))
    query, gallery = (rng.random((2, n)) < 0.8) if seed % 3 else np.ones((2, n), dtype=bool)
    return n, rng.integers(0, 4, n) * 3, query, gallery, rng.integers(0, 3, n)


@pytest.mark.parametrize("exclude", ["none", "same class", "all"])
@pytest.mark.parametrize("seed", range(15))
def test_all_pairs_are_those_of_the_definition(seed, exclude):
    n, labels, query, gallery, groups = untidy(seed)
    expected = by_definition(n, labels, query, gallery, groups, exclude)
    task = make_task(n, labels, query, gallery, groups, exclude)
    if len(set(expected.values())) < 2:
        with pytest.raises(EvaluationError, match="pairs of one class with pairs of two"):
            draw_pairs(powers(n), task)
        return
    pairs = draw_pairs(powers(n), task)
    assert len(pairs.distances) == len(expected)
    assert dict(zip(pairs.distances.tolist(), pairs.same.tolist(), strict=True)) == expected
    assert (pairs.classes[:, 0] == pairs.classes[:, 1]).tolist() == pairs.same.tolist()
    assert (pairs.all_positives, pairs.all_negatives) == (pairs.positives, pairs.negatives)
    assert pairs.positives == sum(expected.values())


@pytest.mark.parametrize("exclude", ["none", "all"])
def test_a_sample_favours_no_pair_and_says_how_many_there_are(exclude):
    labels, groups = np.repeat([0, 1, 2], [6, 4, 2]), np.arange(12) % 5
    query, gallery = np.arange(12) != 3, np.arange(12) != 7  # one row asks only, one is searched only
    task = make_task(12, labels, query, gallery, groups, exclude)
    expected = by_definition(12, labels, query, gallery, groups, exclude)
    seen = dict.fromkeys(expected, 0)
    for seed in range(600):
        pairs = draw_pairs(powers(12), task, most_positives=6, most_negatives=10, seed=seed)
        assert (pairs.all_positives, pairs.all_negatives) == (
            sum(expected.values()),
            len(expected) - sum(expected.values()),
        )
        for distance in pairs.distances.tolist():
            seen[distance] += 1
    for same, most in ((True, 6), (False, 10)):
        times = np.array([seen[distance] for distance, kind in expected.items() if kind == same])
        share = most / len(times)
        assert abs(times - 600 * share).max() < 4.5 * np.sqrt(600 * share * (1 - share))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_distances_are_float64_and_equal_for_equal_vectors(distance, dtype, monkeypatch):
    monkeypatch.setattr("lossopt.retrieval.pairs._CHUNK", 37)
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.integers(-120, 120, (8, 5)), 2, axis=0) / (1 if dtype == np.int8 else 7)
    vectors = vectors.astype(dtype)
    labels = np.arange(16) // 4
    pairs = draw_pairs(vectors, make_task(16, labels), distance)
    wide = vectors.astype(np.float64)
    if distance == "cosine":
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    every = [
        (labels[i] == labels[j], 1 - wide[i] @ wide[j] if distance == "cosine" else np.linalg.norm(wide[i] - wide[j]))
        for i, j in itertools.combinations(range(16), 2)
    ]
    for same in (True, False):
        expected = sorted(value for kind, value in every if kind == same)
        np.testing.assert_allclose(np.sort(pairs.distances[pairs.same == same]), expected, atol=1e-14)
    assert (pairs.distances == 0).sum() == 8  # the twins, exactly


def test_says_whether_vectors_have_length_one():
    vectors = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    task = make_task(50, np.arange(50) // 5)
    assert not draw_pairs(vectors, task).normalised
    assert draw_pairs(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), task).normalised


def test_nan_and_single_kinds_are_refused():
    vectors, labels = np.random.default_rng(0).normal(size=(10, 3)), np.arange(10) // 2
    for wrong in (np.zeros(10, dtype=np.int64), np.arange(10)):
        with pytest.raises(EvaluationError, match=r"this task has (45|0) and (0|45) such pairs"):
            draw_pairs(vectors, make_task(10, wrong))
    vectors[3] = np.nan
    with pytest.raises(EvaluationError, match="NaN or infinite"):
        draw_pairs(vectors, make_task(10, labels))


def test_memory_does_not_grow_with_all_pairs():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30_000, 4)).astype(np.float32)
    task = make_task(30_000, np.arange(30_000) // 300)
    tracemalloc.start()
    pairs = draw_pairs(vectors, task, most_positives=2**14, most_negatives=2**14)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pairs.all_negatives == (30_000**2 - 100 * 300**2) // 2
    assert abs(pairs.negatives - 2**14) < 1_000 and abs(pairs.positives - 2**14) < 1_000
    assert peak < 150e6
