"""Balancing against the paper's formulas typed out, and hard examples against their definition."""

import math
from fractions import Fraction

import pytest
import torch

from lossopt.losses.balancing import FixedWeights, UncertaintyWeighting, hardest_rows

TASKS = ("classification", "regression", "embedding")


def of(*values, dtype=torch.float64):
    return {task: torch.tensor(value, dtype=dtype) for task, value in zip(TASKS, values, strict=False)}


def test_fixed_weights_are_a_weighted_sum_of_the_tasks_there_are():
    weights = FixedWeights(classification=2, regression=0.5, embedding=0)
    assert float(weights(of(3.0, 4.0, 1e30))) == 8
    assert float(weights({"regression": torch.tensor(4.0)})) == 2
    assert float(FixedWeights()(of(3.0, 4.0, 0.5))) == 7.5
    assert weights(of([1.0, 2.0], [10.0, 20.0])).tolist() == [7, 14]
    assert not list(weights.parameters())


@pytest.mark.parametrize("given", [(-1, 1, 1), (0, 0, 0), (math.nan, 1, 1), (1, math.inf, 1)])
def test_weights_that_mean_nothing_are_refused(given):
    with pytest.raises(ValueError, match="weights of 0 or more, one of them above 0; got"):
        FixedWeights(*given)


def test_uncertainty_weighting_is_the_formula_of_the_paper_and_so_is_its_gradient():
    weighting, noise, losses = UncertaintyWeighting().double(), (0.3, 1.7, 2.5), (0.9, 4.0, 0.0)
    for task, s in zip(TASKS, noise, strict=True):
        weighting.log_variances[task].data = torch.tensor(math.log(s * s), dtype=torch.float64)
    s1, s2, s3 = noise
    l1, l2, l3 = losses
    by_hand = l1 / s1**2 + math.log(s1) + l2 / (2 * s2**2) + math.log(s2) + l3 / s3**2 + math.log(s3)
    given = {task: loss.requires_grad_() for task, loss in of(*losses).items()}
    total = weighting(given)
    assert float(total.detach()) == pytest.approx(by_hand, rel=1e-12)
    total.backward()
    slopes = {"classification": 1 / s1**2, "regression": 1 / (2 * s2**2), "embedding": 1 / s3**2}
    # by hand, of exp(-v) L + v / 2 with v = log s²: 1/2 - L / s², and half of the L for the regression
    learnt = {"classification": 0.5 - l1 / s1**2, "regression": 0.5 - l2 / (2 * s2**2), "embedding": 0.5 - l3 / s3**2}
    for task in TASKS:
        assert float(given[task].grad) == pytest.approx(slopes[task], rel=1e-12)
        assert float(weighting.log_variances[task].grad) == pytest.approx(learnt[task], rel=1e-12)
    two = tuple(given[task] for task in TASKS[:2])
    assert torch.autograd.gradcheck(lambda a, b: weighting({"classification": a, "regression": b}), two)


def test_it_starts_without_noise_and_leaves_absent_tasks_alone():
    weighting = UncertaintyWeighting()
    assert weighting(of(3.0, 4.0)).item() == 5
    weighting({"regression": torch.tensor(4.0)}).backward()
    assert weighting.log_variances["regression"].grad is not None
    assert weighting.log_variances["classification"].grad is None
    torch.testing.assert_close(weighting(of([1.0, 2.0], [4.0, 6.0])), torch.tensor([3.0, 5.0], dtype=torch.float64))


def test_the_best_noise_lets_every_task_pull_equally():
    weighting, losses = UncertaintyWeighting().double(), of(0.02, 5.0)
    best = {"classification": 2 * 0.02, "regression": 5.0}
    for task, variance in best.items():
        weighting.log_variances[task].data = torch.tensor(math.log(variance), dtype=torch.float64)
    pulls = {task: loss.requires_grad_() for task, loss in losses.items()}
    weighting(pulls).backward()
    for task, loss in pulls.items():
        assert abs(float(weighting.log_variances[task].grad)) < 1e-12
        assert float(loss.grad * loss.detach()) == pytest.approx(0.5)


def hardest_by_definition(losses, share):
    """Rank the rows by loss, the earlier of two equal ones first; keep the least number that is the share or more."""
    kept = next(k for k in range(1, len(losses) + 1) if k >= share * len(losses))
    return sorted(range(len(losses)), key=lambda row: (-losses[row], row))[:kept]


@pytest.mark.parametrize("share", [Fraction(1, 10**9), *(Fraction(n, 20) for n in (2, 5, 6, 10, 14, 20))])
@pytest.mark.parametrize("b", [1, 3, 10, 64])
def test_hard_examples_are_those_of_the_definition(share, b):
    losses = torch.randint(0, 4, (b,), generator=torch.Generator().manual_seed(b)).double()  # full of ties
    assert hardest_rows(losses, float(share)).tolist() == hardest_by_definition(losses.tolist(), share)


def test_a_loss_that_is_no_number_is_not_passed_over():
    losses = torch.tensor([1.0, math.nan, math.inf, 2.0], requires_grad=True)
    rows = hardest_rows(losses, 0.5)
    assert rows.tolist() == [1, 2] and not rows.requires_grad
