"""Doubtful labels, near-duplicates and confused classes against loops over the lists, and against planted ones."""

from collections import Counter

import numpy as np
import pytest

from lossopt.retrieval.doubts import confusions, label_doubts, near_duplicates
from lossopt.retrieval.index import Neighbours
from lossopt.retrieval.neighbours import nearest
from lossopt.retrieval.task import make_task


def untidy(seed, q=60, n=80, k=6):
    """Random lists of different lengths, some empty; queries are some of the rows; tied distances."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, n)
    query_rows = np.sort(rng.choice(n, q, replace=False))
    rows = np.array([rng.choice(np.delete(np.arange(n), row), k, replace=False) for row in query_rows])
    distances = np.sort(rng.integers(0, 20, (q, k)) / 4.0, axis=1)
    past_end = np.arange(k) >= rng.integers(0, k + 3, q)[:, None]
    near = Neighbours(np.where(past_end, np.inf, distances), np.where(past_end, -1, rows))
    return near, query_rows, labels, rng.integers(0, 8, q)


def lists(near):
    for rows, distances in zip(near.rows.tolist(), near.distances.tolist(), strict=True):
        yield [(row, distance) for row, distance in zip(rows, distances, strict=True) if row >= 0]


@pytest.mark.parametrize("seed", range(20))
def test_doubted_labels_are_those_of_the_definition(seed, monkeypatch):
    monkeypatch.setattr("lossopt.retrieval.doubts._CELLS", 100)
    near, query_rows, labels, relevant = untidy(seed)
    expected = {}
    for row, found, r in zip(query_rows.tolist(), lists(near), relevant.tolist(), strict=True):
        votes = Counter(labels[item] for item, _ in found)
        own = votes.pop(labels[row], 0)
        if not votes or r == 0:
            continue
        first_at = {label: next(i for i, (item, _) in enumerate(found) if labels[item] == label) for label in votes}
        rival = min(votes, key=lambda label: (-votes[label], first_at[label]))
        score = votes[rival] / len(found) - own / min(len(found), r)
        if votes[rival] * 2 > len(found) and score > 0:
            own_at = min([d for item, d in found if labels[item] == labels[row]], default=found[-1][1])
            near_rivals = [(item, d) for item, d in found if labels[item] == rival]
            examples = tuple(item for item, _ in near_rivals[:3])
            expected[row] = (rival, pytest.approx(score), pytest.approx(own_at - near_rivals[0][1]), examples)
    doubts, total = label_doubts(near, query_rows, labels, relevant, most=1_000)
    assert total == len(expected) > 3
    assert {one.row: (one.rival, one.score, one.margin, one.examples) for one in doubts} == expected
    assert all(one.label == labels[one.row] for one in doubts)
    order = [(-round(one.score, 12), -one.margin, one.row) for one in doubts]
    assert order == sorted(order)
    assert label_doubts(near, query_rows, labels, relevant, most=3) == (doubts[:3], total)


def test_planted_wrong_labels_come_first():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 20)
    vectors = rng.normal(size=(30, 16))[labels] + 0.5 * rng.normal(size=(600, 16))
    wrong = rng.choice(600, 18, replace=False)
    spoilt = labels.copy()
    spoilt[wrong] = (labels[wrong] + rng.integers(1, 30, 18)) % 30
    task = make_task(600, spoilt)
    near = nearest(vectors, task, task.query_rows, 10)
    relevant = np.bincount(spoilt)[spoilt] - 1
    doubts, total = label_doubts(near, task.query_rows, spoilt, relevant)
    assert {one.row for one in doubts[:18]} == set(wrong.tolist()) and total < 25
    assert all(one.rival == labels[one.row] for one in doubts[:18])


@pytest.mark.parametrize("seed", range(20))
def test_near_duplicates_are_those_of_the_definition(seed):
    near, query_rows, labels, _ = untidy(seed)
    firsts = [min((d for _, d in found if d > 0), default=None) for found in lists(near)]
    threshold = 0.5 * np.median([d for d in firsts if d is not None])
    close = sorted(
        (d, max(row, item), min(row, item))
        for row, found in zip(query_rows.tolist(), lists(near), strict=True)
        for item, d in found
        if d == 0 or d < threshold
    )
    expected = {}
    for d, second, first in close:
        expected.setdefault(second, (first, second, d, labels[first] == labels[second], d == 0))
    found = near_duplicates(near, query_rows, labels, most=1_000, closer=0.5)
    assert found.threshold == threshold
    assert found.pairs == list(expected.values())
    exact = sum(one[-1] for one in expected.values())
    assert (found.exact, found.close) == (exact, len(expected) - exact)
    assert near_duplicates(near, query_rows, labels, most=2, closer=0.5).pairs == found.pairs[:2]


def test_planted_copies_are_found_once_each_and_others_left_alone():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 32))
    vectors[[50, 60, 70]] = vectors[10]
    vectors[150] = vectors[20] + 1e-3
    labels = np.arange(200) // 40
    task = make_task(200, labels)
    found = near_duplicates(nearest(vectors, task, task.query_rows, 10), task.query_rows, labels)
    assert [(one.first, one.second, one.same_class, one.exact) for one in found.pairs] == [
        *((10, 50, False, True), (10, 60, False, True), (10, 70, False, True)),
        (20, 150, False, False),
    ]
    assert (found.exact, found.close) == (3, 1)
    alone = near_duplicates(nearest(rng.normal(size=(200, 32)), task, task.query_rows, 10), task.query_rows, labels)
    assert alone.pairs == []


def test_a_constant_model_has_exact_pairs_only():
    task = make_task(30, np.arange(30) % 3)
    found = near_duplicates(nearest(np.ones((30, 4)), task, task.query_rows, 5), task.query_rows, task.labels)
    assert found.threshold == 0 and found.close == 0 and found.exact > 20


@pytest.mark.parametrize("seed", range(20))
def test_confused_classes_are_those_of_the_definition(seed):
    near, query_rows, labels, relevant = untidy(seed)
    directed, where = Counter(), {}
    for row, found, r in zip(query_rows.tolist(), lists(near), relevant.tolist(), strict=True):
        for place, (item, d) in enumerate(found[:r]):
            if labels[item] != labels[row]:
                directed[labels[row], labels[item]] += 1
                where.setdefault(frozenset((labels[row], labels[item])), []).append((d, place, row, item))
                break
    found = confusions(near, query_rows, labels, relevant, most=1_000, shown=2)
    assert len(found.pairs) == len(where)
    for pair in found.pairs:
        assert pair.first_as_second == directed[pair.first, pair.second]
        assert pair.second_as_first == directed[pair.second, pair.first] <= pair.first_as_second
        assert pair.queries == np.isin(labels[query_rows], [pair.first, pair.second]).sum()
        met = where[frozenset((pair.first, pair.second))]
        closest = []
        for _, _, row, item in sorted(met, key=lambda e: e[0]):
            if (item, row) not in closest:
                closest.append((row, item))
        assert pair.examples == tuple(closest[:2])
    order = [
        (-one.first_as_second - one.second_as_first, sum(e[1] for e in where[frozenset((one.first, one.second))]))
        for one in found.pairs
    ]
    assert order == sorted(order)
    for label in range(5):
        times = {met: count for (asked, met), count in directed.items() if asked == label}
        best = max(times.values(), default=0)
        assert found.times[label] == best
        assert found.taken_for[label] == min((met for met, count in times.items() if count == best), default=-1)
    assert confusions(near, query_rows, labels, relevant, most=2, shown=2).pairs == found.pairs[:2]


def test_an_example_is_shown_once_not_in_both_directions():
    vectors = np.array([[0.0], [0.1], [5.0], [5.1], [5.3], [0.3]])
    labels = np.array([0, 1, 0, 1, 0, 1])
    task = make_task(6, labels)
    found = confusions(nearest(vectors, task, task.query_rows, 4), task.query_rows, labels, np.full(6, 2))
    assert found.pairs[0].queries == 6
    assert found.pairs[0].examples == ((2, 3), (0, 1), (4, 3))
    assert found.pairs[0][2:4] == (3, 3)


def test_perfect_lists_leave_nothing_to_look_at():
    labels = np.repeat(np.arange(4), 6)
    vectors = np.eye(4)[labels] + 0.01 * np.random.default_rng(0).normal(size=(24, 4))
    task = make_task(24, labels)
    near = nearest(vectors, task, task.query_rows, 8)
    assert label_doubts(near, task.query_rows, labels, np.full(24, 5)) == ([], 0)
    found = confusions(near, task.query_rows, labels, np.full(24, 5))
    assert found.pairs == [] and found.taken_for.tolist() == [-1] * 4 and found.times.tolist() == [0] * 4
