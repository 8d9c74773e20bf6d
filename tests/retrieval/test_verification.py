"""ROC, EER, TAR@FAR and thresholds against scikit-learn, scipy and the definitions, on distances full of ties."""

import itertools
import json

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve

from lossopt.errors import EvaluationError
from lossopt.retrieval.intervals import expanded_tail
from lossopt.retrieval.pairs import Pairs, draw_pairs
from lossopt.retrieval.task import make_task
from lossopt.retrieval.verification import Threshold, apply_threshold, distance_histograms, verify


def tied(seed, n=60):
    """Small whole-number vectors of overlapping classes: about 40 distinct distances among 1,770 pairs."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 8, n)
    centres = rng.integers(0, 5, (8, 2))
    vectors = (centres[labels] + rng.integers(0, 3, (n, 2))).astype(np.float32)
    return draw_pairs(vectors, make_task(n, labels))


def pairs_of(positive, negative, classes=None):
    distances = np.array([*positive, *negative], dtype=np.float64)
    same = np.arange(len(distances)) < len(positive)
    classes = np.zeros((len(distances), 2), dtype=np.int64) if classes is None else classes
    return Pairs(distances, same, classes, len(positive), len(negative), "euclidean", False)


@pytest.mark.parametrize("seed", range(10))
def test_agrees_with_scikit_learn_and_the_definitions(seed):
    pairs = tied(seed)
    found = verify(pairs, fars=(0.3, 0.1, 0.05, 0.02), resamples=0)
    assert found.auc == pytest.approx(roc_auc_score(pairs.same, -pairs.distances), abs=1e-12)
    far, tar, _ = roc_curve(pairs.same, -pairs.distances, drop_intermediate=False)
    eer = brentq(lambda x: 1 - x - np.interp(x, far, tar), 0, 1, xtol=1e-14)
    assert found.eer == pytest.approx(eer, abs=1e-9)
    positive, negative = pairs.distances[pairs.same], pairs.distances[~pairs.same]
    steps = [((negative <= t).mean(), (positive <= t).mean(), t) for t in sorted(set(pairs.distances.tolist()))]
    for aim, point in found.at_far.items():
        allowed = [step for step in steps if step[0] <= aim]
        assert point == (max(allowed, key=lambda step: step[2]) if allowed else (0, 0, None))
    assert found.at_eer == min(steps, key=lambda step: abs(step[0] - 1 + step[1]))
    curve = found.curve
    assert curve[0].tolist() == [0, 0] and curve[-1].tolist() == [1, 1] and len(curve) <= 501
    assert {tuple(point) for point in curve[1:].tolist()} <= {step[:2] for step in steps}


def test_a_constant_model_is_no_better_than_chance():
    found = verify(pairs_of([2.0] * 30, [2.0] * 5_000))
    assert (found.auc, found.eer) == (0.5, 0.5)
    assert found.at_far[0.01] == (0.0, 0.0, None)
    assert found.threshold is None
    assert "TAR@0.01     0.00 %, no distance is so strict" in found.as_text()


def test_a_perfect_model():
    found = verify(pairs_of(np.linspace(0, 1, 50), np.linspace(2, 3, 5_000)))
    assert (found.auc, found.eer) == (1.0, 0.0)
    assert found.at_eer == (0.0, 1.0, 1.0)
    assert found.at_far[0.1].tar == 1


def test_row_order_cannot_change_a_number():
    pairs = tied(3)
    first = verify(pairs, resamples=20)
    order = np.random.default_rng(0).permutation(len(pairs.distances))
    shuffled = pairs._replace(distances=pairs.distances[order], same=pairs.same[order], classes=pairs.classes[order])
    assert verify(shuffled, resamples=20).as_json() == first.as_json()


@pytest.mark.parametrize(("negatives", "given"), [(999, False), (1_000, True)])
def test_a_far_that_ten_pairs_cannot_carry_is_not_given(negatives, given):
    found = verify(pairs_of([0.5] * 20, np.linspace(0, 1, negatives)), fars=(0.01,))
    assert (found.at_far[0.01] is not None) == given
    assert (found.threshold is not None) == given
    assert not given or found.threshold.far == 0.01  # a FAR that is met exactly is met
    words = "TAR@0.01   not given: 1,000 pairs of two classes are needed, there are 999"
    assert (words in found.as_text()) != given


def test_the_threshold_is_the_operating_point_of_its_far():
    pairs = tied(1)
    at_far = verify(pairs, fars=(0.05,), target_far=0.05, resamples=0)
    chosen = at_far.threshold
    assert (chosen.far, chosen.tar, chosen.value) == at_far.at_far[0.05]
    assert (chosen.low, chosen.high, chosen.pairs) == (None, None, len(pairs.distances))
    at_eer = verify(pairs, target_far=None, resamples=0)
    assert (at_eer.threshold.far, at_eer.threshold.tar, at_eer.threshold.value) == at_eer.at_eer


def by_hand(pairs, times, aim):
    """Every class listed as often as it was drawn, each copy a class of its own: all distances of the resample."""
    positive, negative = [], []
    for distance, same, (a, b) in zip(pairs.distances, pairs.same, pairs.classes.tolist(), strict=True):
        for copy_a, copy_b in itertools.product(range(times[a]), range(times[b])):
            if not same:
                negative.append(distance)
            elif copy_a == copy_b:
                positive.append(distance)
    plain = verify(pairs_of(positive, negative), fars=(0.2,), target_far=aim, resamples=0)
    strict = pairs.distances.min() if plain.threshold is None else plain.threshold.value  # even the least is too much
    return plain.auc, plain.eer, strict, plain.at_far[0.2].tar


@pytest.mark.parametrize("aim", [0.06, 0.2, None])
@pytest.mark.parametrize("untied", [0.0, 0.1], ids=["tied", "untied"])
def test_intervals_are_those_of_classes_drawn_anew(aim, untied):
    pairs = tied(1)
    jitter = untied * np.random.default_rng(0).random(len(pairs.distances))
    pairs = pairs._replace(distances=pairs.distances + jitter)
    found = verify(pairs, fars=(0.2,), target_far=aim, resamples=30, seed=4)
    rng = np.random.default_rng(4)
    drawn = [by_hand(pairs, np.bincount(rng.integers(8, size=8), minlength=8), aim) for _ in range(30)]
    tail = expanded_tail(8)
    expected = np.quantile(np.array(drawn), [tail, 1 - tail], axis=0).T
    assert found.intervals["auc"] == pytest.approx(tuple(expected[0]), abs=1e-12)
    assert found.intervals["eer"] == pytest.approx(tuple(expected[1]), abs=1e-12)
    between = 0.01 if untied else 1e-12  # a step of pairs that were not drawn may lie between two of those that were
    assert (found.threshold.low, found.threshold.high) == pytest.approx(tuple(expected[2]), abs=between)
    assert found.intervals["tar@0.2"] == pytest.approx(tuple(expected[3]), abs=1e-12)


def test_reading_a_resample_at_some_steps_changes_little(monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 30
    vectors = rng.normal(size=(30, 8))[labels] + 0.8 * rng.normal(size=(600, 8))
    pairs = draw_pairs(vectors, make_task(600, labels))
    coarse = verify(pairs, resamples=50)
    monkeypatch.setattr("lossopt.retrieval.verification._READINGS", 10**6)
    fine = verify(pairs, resamples=50)
    for name, (low, high) in fine.intervals.items():
        assert coarse.intervals[name] == pytest.approx((low, high), abs=0.05 * (high - low))
    assert (coarse.threshold.low, coarse.threshold.high) == pytest.approx(
        (fine.threshold.low, fine.threshold.high), abs=0.05 * (fine.threshold.high - fine.threshold.low)
    )


def test_few_classes_have_no_interval():
    vectors, labels = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 3
    found = verify(draw_pairs(vectors, make_task(60, labels)))
    assert found.intervals == {} and found.threshold.low is None


def test_a_kept_threshold_is_applied_to_other_pairs():
    chosen = verify(tied(0), target_far=0.05).threshold
    again = Threshold(**json.loads(json.dumps(chosen.as_json())))
    assert again == chosen
    same_pairs = apply_threshold(again, tied(0))
    assert (same_pairs.far, same_pairs.tar) == (chosen.far, chosen.tar)
    other = tied(5)
    applied = apply_threshold(again, other)
    assert applied.far == (other.distances[~other.same] <= chosen.value).mean()
    assert (applied.positives, applied.negatives) == (other.positives, other.negatives)


def test_a_threshold_of_other_vectors_is_refused():
    chosen = verify(tied(0), target_far=0.05).threshold
    with pytest.raises(EvaluationError, match=r"chosen for euclidean distance, vectors not of length 1; .* cosine"):
        apply_threshold(chosen, tied(0)._replace(distance="cosine"))
    with pytest.raises(EvaluationError, match="these pairs have euclidean distance, vectors of length 1"):
        apply_threshold(chosen, tied(0)._replace(normalised=True))


def test_everything_goes_into_json_and_text():
    pairs = tied(0)._replace(all_negatives=10**6)
    found = verify(pairs, fars=(0.1, 1e-4), target_far=0.05, resamples=50)
    content = json.loads(json.dumps(found.as_json()))
    assert content["at_far"]["0.1"]["tar"] == found.at_far[0.1].tar
    assert content["at_far"]["0.0001"] is None
    assert content["at_eer"]["threshold"] == found.at_eer.threshold
    assert content["threshold"]["target_far"] == 0.05
    text = found.as_text()
    low, high = found.intervals["auc"]
    assert f"ROC AUC    {100 * found.auc:6.2f} % ({100 * low:.2f} to {100 * high:.2f})" in text
    assert f"{found.negatives:,} of 1,000,000 of two; 8 classes, euclidean distance" in text
    assert "TAR@0.1" in text and "threshold for FAR 0.05: distance <= " in text


@pytest.mark.parametrize("fars", [(0.0,), (1.0,), (0.1, -0.1)])
def test_a_far_is_a_share(fars):
    with pytest.raises(ValueError, match="between 0 and 1"):
        verify(tied(0), fars=fars)


def test_histograms_share_their_bins_and_hold_everything():
    pairs = tied(4)
    edges, positive, negative = distance_histograms(pairs, bins=17)
    width = np.diff(edges)
    assert len(edges) == 18 and width == pytest.approx(np.full(17, width[0]))
    assert (positive * width).sum() == pytest.approx(1) and (negative * width).sum() == pytest.approx(1)
    inside = pairs.same & (pairs.distances >= edges[3]) & (pairs.distances < edges[4])
    assert positive[3] * width[3] == pytest.approx(inside.sum() / pairs.positives)
    far_off = pairs_of([1.0] * 5_000, [*np.linspace(1, 2, 9_999), 1e9])
    assert distance_histograms(far_off).edges[-1] < 3
    assert np.isfinite(distance_histograms(pairs_of([1.0] * 5, [1.0] * 5)).positive).all()
