"""Means per class and per group against a plain loop."""

import numpy as np
import pytest

from lossopt.retrieval.breakdown import breakdown
from lossopt.retrieval.intervals import bootstrap_over_classes


def some(q=80, seed=0):
    rng = np.random.default_rng(seed)
    keys = rng.choice([0, 1, 3, 4, 6], q, p=[0.5, 0.2, 0.1, 0.1, 0.1])  # 2 and 5 have no query
    return {"recall@1": rng.integers(0, 2, q).astype(float), "map@r": rng.random(q)}, keys


NAMES = ("fig", "elm", "oak", "ash", "yew", "box", "may")


def test_each_part_has_the_mean_of_its_queries_the_worst_first():
    per_query, keys = some()
    parts = breakdown(per_query, keys, NAMES)
    for part in parts:
        chosen = [i for i, key in enumerate(keys) if NAMES[key] == part.name]
        assert part.key == NAMES.index(part.name) and part.queries == len(chosen) and part.intervals == {}
        for name, values in per_query.items():
            assert part.metrics[name] == pytest.approx(sum(values[i] for i in chosen) / len(chosen))
    assert {part.name for part in parts} == {"fig", "elm", "ash", "yew", "may"}
    figures = [part.metrics["map@r"] for part in parts]
    assert figures == sorted(figures) and len(set(figures)) == 5


def test_sorted_by_another_metric_and_equals_by_size_then_name():
    per_query = {"recall@1": np.array([1.0, 0, 0, 0, 0, 1, 1]), "map@r": np.zeros(7)}
    keys = np.array([0, 4, 3, 3, 1, 6, 6])
    parts = breakdown(per_query, keys, ("fig", "yew", "oak", "ash", "elm", "box", "may"), by="recall@1")
    assert [part.name for part in parts] == ["ash", "elm", "yew", "may", "fig"]


def test_a_group_has_an_interval_over_its_own_classes():
    per_query, _ = some(90)
    groups, classes = np.arange(90) % 2, np.arange(90) // 10
    for part in breakdown(per_query, groups, ("seen", "unseen"), classes=classes):
        chosen = groups == part.key
        expected = bootstrap_over_classes(per_query["map@r"][chosen], classes[chosen], resamples=1_000)
        assert part.intervals["map@r"] == expected
        assert set(part.intervals) == {"recall@1", "map@r"}
    assert all(part.intervals == {} for part in breakdown(per_query, classes, NAMES + NAMES, classes=classes))


def test_no_queries_no_parts():
    assert breakdown({"map@r": np.array([])}, np.array([], dtype=np.int64), NAMES) == []


def test_columns_that_do_not_fit_are_refused():
    per_query, keys = some()
    with pytest.raises(ValueError, match="no metric 'mrr' to sort by; there are recall@1, map@r"):
        breakdown(per_query, keys, NAMES, by="mrr")
    with pytest.raises(ValueError, match=r"got keys of shape \(79,\) and \(80,\) values"):
        breakdown(per_query, keys[1:], NAMES)
    with pytest.raises(ValueError, match="Keys run from 0 to 6, but there are 4 names"):
        breakdown(per_query, keys, NAMES[:4])
