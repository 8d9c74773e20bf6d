"""k-reciprocal re-ranking against the paper's formulas on dense matrices; and the metrics of what it leaves behind."""

from dataclasses import replace

import numpy as np
import pytest

from lossopt.errors import EvaluationError
from lossopt.retrieval import after, reranking
from lossopt.retrieval.after import after_search, after_text
from lossopt.retrieval.counting import rank_relevant
from lossopt.retrieval.evaluation import evaluate_task
from lossopt.retrieval.index import Neighbours
from lossopt.retrieval.neighbours import nearest
from lossopt.retrieval.reranking import Reciprocal, rerank, reranked_groups
from lossopt.retrieval.task import make_task
from lossopt.retrieval.vectors import Rows


def clouds(n=90, classes=9, d=5, noise=0.7, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    return rng.normal(size=(classes, d))[labels] + noise * rng.normal(size=(n, d)), labels


def far(a, b, distance):
    return 1 - a @ b / np.sqrt((a @ a) * (b @ b)) if distance == "cosine" else np.sqrt(((a - b) ** 2).sum())


def by_definition(asked, searched, k1, k2, original, distance, apart=None):
    """All-pairs re-ranked distances of u items: asked (u, d) when they ask, searched (u, d) when they are found.

    apart: (u,) groups whose members are no neighbours of each other.
    """
    u = len(asked)
    d = np.array([[far(asked[p], searched[g], distance) if p != g else 0.0 for g in range(u)] for p in range(u)])

    def others(p):
        able = [g for g in range(u) if g != p and (apart is None or apart[g] != apart[p])]
        return sorted(able, key=lambda g: (d[p, g], g))

    order = [others(p) for p in range(u)]
    scale = np.mean([max((d[p, g] for g in order[p][:k1]), default=0.0) for p in range(u)]) or 1.0
    near = {(p, k): {p, *order[p][:k]} for p in range(u) for k in (k1, k1 // 2)}
    reciprocal = {(p, k): {g for g in near[p, k] if p in near[g, k]} for p, k in near}
    v = np.zeros((u, u))
    for p in range(u):
        extended = set(reciprocal[p, k1])
        for q in reciprocal[p, k1]:
            half = reciprocal[q, k1 // 2]
            if len(half & reciprocal[p, k1]) >= 2 / 3 * len(half):
                extended |= half
        for g in extended:
            v[p, g] = np.exp(-d[p, g] / scale)
    smooth = np.stack([np.mean([v[g] for g in [p, *order[p][: k2 - 1]]], axis=0) for p in range(u)])
    jaccard = np.zeros((u, u))
    for p in range(u):
        for g in range(u):
            jaccard[p, g] = 1 - np.minimum(smooth[p], smooth[g]).sum() / np.maximum(smooth[p], smooth[g]).sum()
    return (1 - original) * jaccard + original * d / scale


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize(
    ("k1", "k2", "original"), [(10, 4, 0.3), (7, 1, 0.0), (1, 2, 0.5), (20, 6, 0.1), (200, 3, 0.3), (5, 6, 1.0)]
)
def test_lists_that_hold_everything_are_those_of_the_dense_method(distance, k1, k2, original, monkeypatch):
    monkeypatch.setattr(reranking, "_CELLS", 3_000)
    vectors, labels = clouds()
    task = make_task(90, labels)
    found = rerank(vectors, task, task.query_rows, 89, Reciprocal(k1, k2, original), distance)
    dense = by_definition(vectors, vectors, k1, k2, original, distance)
    compare(found, dense, task)


def compare(found, dense, task):
    """dense: (n, n) over all rows. Equal distances, the right items, ascending."""
    for row, distances, rows in zip(task.query_rows, found.distances, found.rows, strict=True):
        allowed = task.gallery_rows[~task.left_out(np.array([row]), task.gallery_rows)[0]]
        there = rows >= 0
        assert sorted(rows[there]) == list(allowed[: len(rows)]) if there.sum() == len(allowed) else there.all()
        np.testing.assert_allclose(distances[there], dense[row, rows[there]], atol=1e-9)
        assert np.isinf(distances[~there]).all()
        assert (np.diff(distances[there]) >= 0).all()


@pytest.mark.parametrize("k", [6, 10, 12])
def test_short_lists_hold_the_same_pairs_at_the_same_distance(k):
    vectors, labels = clouds()
    task = make_task(90, labels)
    found = rerank(vectors, task, task.query_rows, k, Reciprocal(10, 4, 0.3))
    compare(found, by_definition(vectors, vectors, 10, 4, 0.3, "euclidean"), task)
    before = nearest(vectors, task, task.query_rows, k)
    np.testing.assert_array_equal(np.sort(found.rows, axis=1), np.sort(before.rows, axis=1))
    assert (found.rows != before.rows).any()


@pytest.mark.parametrize("exclude", ["none", "same class", "all"])
def test_queries_apart_from_the_gallery_and_what_they_may_not_find(exclude):
    vectors, labels = clouds()
    query, gallery = np.arange(90) % 3 == 0, np.arange(90) % 3 != 0
    query[1] = True  # one row is both
    gallery[5] = False  # one is neither
    groups = np.arange(90) % 4
    task = make_task(90, labels, query, gallery, groups, exclude)
    found = rerank(vectors, task, task.query_rows, 40, Reciprocal(8, 3, 0.2))
    items = np.delete(np.arange(90), 5)
    apart = groups[items] if exclude == "all" else None
    dense = np.full((90, 90), np.nan)
    dense[np.ix_(items, items)] = by_definition(vectors[items], vectors[items], 8, 3, 0.2, "euclidean", apart)
    compare(found, dense, task)
    assert not task.left_out(task.query_rows, found.rows)[found.rows >= 0].any()


def test_all_ask_and_some_are_searched():
    vectors, labels = clouds()
    task = make_task(90, labels, gallery=np.arange(90) % 3 != 0)
    found = rerank(vectors, task, task.query_rows, 40, Reciprocal(8, 3, 0.2))
    compare(found, by_definition(vectors, vectors, 8, 3, 0.2, "euclidean"), task)


@pytest.mark.parametrize("original", [0.0, 0.4])
def test_items_with_fewer_neighbours_than_asked_for(original):
    vectors, labels = clouds()
    groups = (np.arange(90) > 60).astype(int)  # those of the large group have 29 neighbours, fewer than k1
    task = make_task(90, labels, groups=groups, exclude="all")
    found = rerank(vectors, task, task.query_rows, 50, Reciprocal(40, 3, original))
    assert (found.rows < 0).any()
    compare(found, by_definition(vectors, vectors, 40, 3, original, "euclidean", groups), task)


def test_labels_play_no_part_in_the_neighbourhoods():
    vectors, labels = clouds()
    groups = np.arange(90) % 4
    settings = Reciprocal(8, 3, 0.2)
    tasks = [make_task(90, one, groups=groups, exclude="same class") for one in (labels, np.arange(90))]
    first, second = (rerank(vectors, task, np.arange(90), 89, settings) for task in tasks)
    for row in range(90):
        known = dict(zip(second.rows[row], second.distances[row], strict=True))
        for item, distance in zip(first.rows[row], first.distances[row], strict=True):
            assert item < 0 or distance == pytest.approx(known[item], abs=1e-12)


def test_queries_may_ask_with_other_embeddings():
    vectors, labels = clouds()
    other = vectors + 0.3 * np.random.default_rng(1).normal(size=vectors.shape)
    task = make_task(90, labels)
    queries = np.arange(0, 90, 2)
    found = rerank(vectors, task, queries, 89, Reciprocal(8, 3, 0.2), query_embeddings=other[queries])
    asked = vectors.copy()
    asked[queries] = other[queries]
    dense = by_definition(asked, vectors, 8, 3, 0.2, "euclidean")
    for row, distances, rows in zip(queries, found.distances, found.rows, strict=True):
        there = rows >= 0
        np.testing.assert_allclose(distances[there], dense[row, rows[there]], atol=1e-9)


def test_the_scale_of_the_embeddings_does_not_matter():
    vectors, labels = clouds()
    task = make_task(90, labels)
    one, thousand = (rerank(vectors * factor, task, task.query_rows, 30) for factor in (1, 1000))
    np.testing.assert_array_equal(one.rows, thousand.rows)
    np.testing.assert_allclose(one.distances, thousand.distances, atol=1e-9)


@pytest.mark.parametrize("vectors", [np.zeros((12, 3)), np.ones((12, 3))], ids=["zero", "equal"])
def test_equal_embeddings_are_all_tied(vectors):
    task = make_task(12, np.arange(12) // 4)
    found = rerank(vectors, task, task.query_rows, 11, Reciprocal(20, 1, 0.3))
    np.testing.assert_array_equal(found.distances, np.zeros((12, 11)))


def test_exact_duplicates_stay_tied():
    vectors, labels = clouds(40, 4)
    vectors, labels = np.repeat(vectors, 2, axis=0), np.repeat(labels, 2)
    found = rerank(vectors, make_task(80, labels), np.array([0]), 79, Reciprocal(79, 1, 0.3))
    distance = dict(zip(found.rows[0], found.distances[0], strict=True))
    assert all(distance[row] == distance[row + 1] for row in range(2, 80, 2))


def test_what_differs_by_rounding_only_stays_tied():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(30, 4))
    mirrored = np.concatenate([half, half * [-1, 1, 1, 1], [[0, 0.1, 0.2, 0.3]]])
    order = rng.permutation(61)
    place = np.argsort(order)
    found = rerank(mirrored[order], make_task(61, np.zeros(61, int)), place[60:], 60, Reciprocal(60, 1, 0.3))
    distance = dict(zip(found.rows[0], found.distances[0], strict=True))
    assert all(distance[place[row]] == distance[place[row + 30]] for row in range(30))


@pytest.mark.parametrize("settings", [(0, 1, 0.3), (5, 0, 0.3), (5, 7, 0.3), (5, 2, -0.1), (5, 2, 1.1), (5, 2, np.nan)])
def test_settings_without_a_meaning_are_refused(settings):
    with pytest.raises(ValueError, match="k1 >= 1, 1 <= k2 <= k1"):
        Reciprocal(*settings)


def ranking_by_definition(vectors, task, lists):
    """Per query: the relevance of its ranking, as [(distance-or-place, relevant)], the lists first."""
    rankings = []
    for number, row in enumerate(task.query_rows):
        allowed = [g for g in task.gallery_rows if g != row]
        rest = [g for g in allowed if g not in set(lists.rows[number])]
        far = {g: np.sqrt(((vectors[row] - vectors[g]) ** 2).sum()) for g in rest}
        there = [
            (0, d, task.labels[g] == task.labels[row])
            for g, d in zip(lists.rows[number], lists.distances[number], strict=True)
            if g >= 0
        ]
        rankings.append(there + sorted((1, far[g], task.labels[g] == task.labels[row]) for g in rest))
    return rankings


@pytest.mark.parametrize("kind", ["spread", "quantised", "short", "long"])
def test_places_after_re_ranking_are_those_of_the_whole_ranking(kind):
    vectors, labels = clouds(60, 6)
    if kind == "quantised":
        vectors = np.round(vectors)
    labels[7] = 99  # nothing to find
    query = np.arange(60) % 5 != 0
    task = make_task(60, labels, query)
    k = {"short": 3, "long": 80}.get(kind, 15)
    lists = rerank(vectors, task, task.query_rows, k, Reciprocal(6, 2, 0.3))
    rankings = ranking_by_definition(vectors, task, lists)
    seen = 0
    for queries, groups in rank_relevant(vectors, task):
        some = Neighbours(lists.distances[queries], lists.rows[queries])
        relevant = (task.labels[some.rows] == task.labels[task.query_rows[queries], None]) & (some.rows >= 0)
        found = reranked_groups(groups, some, relevant)
        assert (np.diff(found.query) >= 0).all()
        for number, position in enumerate(queries):
            mine = found.query == number
            columns = [found.start, found.size, found.hits, found.hits_before]
            assert [tuple(c[mine][i] for c in columns) for i in range(mine.sum())] == groups_by_definition(
                rankings[position]
            )
            seen += 1
    assert seen == sum(any(hit for *_, hit in ranking) for ranking in rankings)


def groups_by_definition(ranking):
    found, at, before = [], 0, 0
    keys = [(place, round(distance, 9)) for place, distance, _ in ranking]
    while at < len(ranking):
        size = keys.count(keys[at])
        hits = sum(hit for *_, hit in ranking[at : at + size])
        if hits:
            found.append((at, size, hits, before))
        at, before = at + size, before + hits
    return found


def test_lists_of_other_rankings_are_refused():
    vectors, labels = clouds(60, 6)
    task = make_task(60, labels)
    chunk = next(iter(rank_relevant(vectors, task)))
    lists = nearest(-vectors[::-1], task, task.query_rows[chunk.queries], 10)
    relevant = task.labels[lists.rows] == task.labels[task.query_rows[chunk.queries], None]
    with pytest.raises(EvaluationError, match="disagree"):
        reranked_groups(chunk.groups, lists, relevant)


def table(vectors, labels, prefix="", **columns):
    classes = tuple(f"class{label}" for label in range(int(labels.max()) + 1))
    return Rows(labels, classes, [f"{prefix}{row}" for row in range(len(labels))], **columns).with_vectors(vectors, {})


@pytest.fixture(scope="module")
def split():
    vectors, labels = clouds(400, 40, 16, 0.9)
    held = labels >= 20
    names = [np.unique(part, return_inverse=True)[1] for part in (labels[~held], labels[held])]
    train = table(vectors[~held].astype(np.float32), names[0], "train")
    return train, table(vectors[held].astype(np.float32), names[1], "test")


def test_each_step_is_told_before_and_after(split):
    train, test = split
    stages = after_search(test, train, ("rerank", "whiten", "expand"), (1, 5))
    assert [stage.name for stage in stages] == ["as embedded", "whiten", "expand", "rerank"]
    before = evaluate_task(test.vectors, test.task(), (1, 5)).metrics
    for stage in stages:
        names = ["recall@1", "recall@5", "precision@1", "precision@5", "r_precision", "map@r"]
        assert list(stage.metrics) == names
        assert all(0 < value <= 1 for value in stage.metrics.values())
    assert stages[0].metrics == {name: before[name] for name in names}
    assert len({stage.metrics["map@r"] for stage in stages}) == 4
    alone = after_search(test, None, ("rerank",), (1, 5))
    assert alone[1].metrics["map@r"] > before["map@r"] + 0.05
    text = after_text(stages)
    assert f"{100 * before['map@r']:.2f}" in text
    change = 100 * (stages[3].metrics["map@r"] - stages[2].metrics["map@r"])
    assert f"({change:+.2f})" in text.splitlines()[4]
    assert text.splitlines()[4].startswith("+ rerank")


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("lists", [1, 7, 500])
def test_re_ranking_by_the_original_distance_alone_changes_nothing(split, distance, lists):
    settings = after.AfterSettings(lists=lists, reciprocal=Reciprocal(5, 2, 1.0))
    for steps in (("rerank",), ("expand", "rerank")):
        *_, before, same = after_search(split[1], None, steps, (1, 3, 10), distance, settings=settings)
        assert same.metrics == pytest.approx(before.metrics, abs=1e-12)


def test_steps_build_on_each_other(split):
    train, test = split
    task = test.task()
    whitening = after.learn_whitening(train.vectors)
    white = whitening.apply(test.vectors)
    asked = after.expand_queries(white, task, task.query_rows)
    stages = after_search(test, train, ("whiten", "expand", "rerank"), (1,))
    assert stages[1].metrics["map@r"] == evaluate_task(white, task, (1,)).metrics["map@r"]
    found = evaluate_task(white, task, (1,), query_embeddings=asked).metrics
    assert stages[2].metrics["map@r"] == found["map@r"]
    lists = rerank(white, task, task.query_rows, 100, query_embeddings=asked)
    first = task.labels[lists.rows[:, 0]] == task.labels[task.query_rows]
    has = np.bincount(task.labels)[task.labels[task.query_rows]] > 1
    assert stages[3].metrics["recall@1"] == pytest.approx(first[has].mean())


def test_what_cannot_be_done_after_search_is_refused(split):
    train, test = split
    with pytest.raises(ValueError, match="whiten, expand, rerank; got 'witen'"):
        after_search(test, train, ("witen",))
    with pytest.raises(EvaluationError, match="none were given"):
        after_search(test, None, ("whiten",))
    with pytest.raises(EvaluationError, match=r"\d+ of the training embeddings are evaluated, too, first test0"):
        after_search(test, test, ("whiten",))
    narrow = table(train.vectors[:, :3], train.labels)
    with pytest.raises(EvaluationError, match="have 3 dimensions, the evaluated ones 16"):
        after_search(test, narrow, ("whiten",))
    assert len(after_search(test, test, ())) == 1
    with pytest.raises(EvaluationError, match="have no label"):
        after_search(replace(test, class_names=("", *test.class_names[1:])))
