"""One-shot runs: what is drawn, and how a trial is scored."""

import numpy as np
import pytest

from lossopt.errors import EvaluationError
from lossopt.retrieval.oneshot import draw_runs, score_runs

LABELS = np.repeat(np.arange(30), 5)  # 30 characters, 5 drawers
GROUPS = LABELS // 10  # three alphabets of 10
PLACE = np.stack([LABELS, np.tile(np.arange(5), 30)], axis=1).astype(float)  # (character, drawer) of every row


def test_a_drawn_run_is_one_alphabet_two_drawers_and_different_characters():
    for test, support, answers in draw_runs(PLACE, LABELS, GROUPS, runs=200, ways=6, seed=1):
        assert len({int(c) // 10 for c in test[:, 0]}) == 1
        assert len(set(test[:, 0])) == 6
        assert len(set(test[:, 1])) == len(set(support[:, 1])) == 1
        assert test[0, 1] != support[0, 1]
        assert (support[answers, 0] == test[:, 0]).all()


def test_drawing_depends_on_the_seed_only_and_uses_every_alphabet_and_drawer():
    first, again, other = (draw_runs(PLACE, LABELS, GROUPS, 100, 6, seed) for seed in (1, 1, 2))
    assert all((a[0] == b[0]).all() for a, b in zip(first, again, strict=True))
    assert not all((a[0] == b[0]).all() for a, b in zip(first, other, strict=True))
    assert {int(run[0][0, 0]) // 10 for run in first} == {0, 1, 2}
    assert {int(run[0][0, 1]) for run in first} == {0, 1, 2, 3, 4}


def test_the_nearest_support_image_is_the_answer_and_a_tie_is_a_guess():
    support = np.array([[0.0], [1.0], [2.0], [2.0]])
    test = np.array([[0.1], [1.9], [0.5], [5.0]])
    answers = np.array([0, 2, 1, 0])
    result = score_runs([(test, support, answers)])
    assert result.accuracy == pytest.approx((1 + 1 / 2 + 1 / 2 + 0) / 4)
    assert result.trials == 4
    assert result.standard_error == pytest.approx(np.sqrt(0.5 * 0.5 / 4))


def test_the_accuracy_is_over_trials_and_kept_per_run():
    one = np.array([[0.0], [1.0]])
    result = score_runs([(one, one, np.array([0, 1])), (one, one, np.array([1, 0]))])
    assert (result.accuracy, result.per_run.tolist()) == (0.5, [1.0, 0.0])


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(EvaluationError, match="No alphabet has 11 characters"):
        draw_runs(PLACE, LABELS, GROUPS, ways=11)
    with pytest.raises(EvaluationError, match=r"Characters have \[4, 5\] images each"):
        draw_runs(PLACE[1:], LABELS[1:], GROUPS[1:], ways=5)
