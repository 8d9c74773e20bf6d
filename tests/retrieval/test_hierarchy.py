"""The hierarchy that class names spell out, and NDCG that counts it."""

import numpy as np
import pytest

from lossopt.retrieval.evaluation import evaluate_retrieval
from lossopt.retrieval.hierarchy import coarser_levels


def test_two_classes_share_a_level_if_their_names_agree_that_far():
    names = ("fruit/apple/braeburn", "fruit/apple/elstar", "fruit/pear/anjou", "milk/whole", "milk/whole/1l", "salt")
    levels = coarser_levels(names)
    shared = [[[a == b for b in column] for a in column] for column in levels.T]
    depth_1 = [name.split("/")[0] for name in names]
    assert shared[0] == [[a == b for b in depth_1] for a in depth_1]
    assert levels[0, 1] == levels[1, 1] and len(set(levels[1:, 1])) == 5  # nothing else shares two levels


@pytest.mark.parametrize("names", [("a", "b"), ("a/x", "b/y"), ("a/x", "a/y"), ()])
def test_no_hierarchy_where_nothing_is_shared(names):
    assert coarser_levels(names) is None


def test_ndcg_rewards_the_right_alphabet():
    labels = np.array([0, 0, 1, 2])  # classes 0 and 1 are of one alphabet
    levels = np.array([0, 0, 1])[labels]
    near = np.array([[0.0], [3.0], [1.0], [2.0]])  # the query finds the sister class first, then the stranger
    far = np.array([[0.0], [3.0], [2.0], [1.0]])  # the stranger first
    query = np.array([True, False, False, False])
    values = [
        evaluate_retrieval(vectors, labels, query, ks=(3,), levels=levels).metrics["ndcg@3"] for vectors in (near, far)
    ]
    discount = 1 / np.log2([2, 3, 4])
    ideal = 2 * discount[0] + discount[1]
    assert values == pytest.approx([(discount[0] + 2 * discount[2]) / ideal, (discount[1] + 2 * discount[2]) / ideal])
