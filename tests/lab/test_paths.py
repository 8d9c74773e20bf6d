"""Paths against torch.optim stepping one weight vector at a time; the pictures show what their sentences say."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler

from lossopt.lab import optimizers
from lossopt.lab.descent import batch_descent
from lossopt.lab.optimizers import SGD
from lossopt.lab.paths import (
    EPOCHS,
    MOMENTA,
    STEPS,
    WALKERS,
    WAYS,
    batch_against_stochastic,
    diabetes,
    optimizer_paths,
    rates_from,
    squared_error,
    while_in_sight,
)
from lossopt.lab.surfaces import GROUNDS

GROUND = {ground.name: ground for ground in GROUNDS}
OPTIM = {
    "gradient descent": lambda w, rate, _: torch.optim.SGD(w, lr=rate),
    "momentum": lambda w, rate, m: torch.optim.SGD(w, lr=rate, momentum=m),
    "Nesterov": lambda w, rate, m: torch.optim.SGD(w, lr=rate, momentum=m, nesterov=m > 0),
    "Adagrad": lambda w, rate, _: torch.optim.Adagrad(w, lr=rate),
    "Adadelta": lambda w, rate, _: torch.optim.Adadelta(w, lr=rate),
    "RMSProp": lambda w, rate, _: torch.optim.RMSprop(w, lr=rate, alpha=0.9),
    "Adam": lambda w, rate, m: torch.optim.Adam(w, lr=rate, betas=(m, 0.999)),
}
RULES = {  # what torch lacks
    "Adagrad, full matrix": lambda rate, _: optimizers.FullMatrixAdagrad(rate),
    "Adam, not corrected": lambda rate, m: optimizers.Adam(rate, m, corrected=False),
}


@pytest.fixture(scope="module")
def paths():
    return {(drawn.optimizer, drawn.surface): drawn for drawn in optimizer_paths()}


def torch_path(optimizer, ground, rate, momentum):
    weights = torch.nn.Parameter(torch.tensor(ground.start, dtype=torch.float64))
    stepper, path = optimizer([weights], rate, momentum), [weights.detach().clone()]
    for _ in range(STEPS):
        stepper.zero_grad()
        ground.height(weights).backward()
        stepper.step()
        path.append(weights.detach().clone())
    return torch.stack(path).numpy()


def rule_path(rule, ground, rate, momentum):
    weights = torch.tensor(ground.start, dtype=torch.float64)
    stepper = rule(rate, momentum)
    memory, path = stepper.begin(weights), [weights]
    for _ in range(STEPS):
        weights, memory = stepper.step(weights, ground.gradient(weights), memory)
        path.append(weights)
    return torch.stack(path).numpy()


def reach(ground):
    """(2,) centre and (2,) half of three times the drawn range."""
    ends = np.array([ground.x, ground.y])
    return ends.mean(axis=1), 1.5 * (ends[:, 1] - ends[:, 0])


def sights(points, ground):
    """How many points from the start lie within three times the drawn range."""
    centre, half = reach(ground)
    inside = (np.abs(points - centre) <= half).all(axis=1)
    return len(inside) if inside.all() else int(inside.argmin())


@pytest.mark.parametrize("surface", GROUND)
@pytest.mark.parametrize("name", [*OPTIM, *RULES])
def test_a_path_is_the_optimisers_until_it_leaves(paths, name, surface):
    drawn, ground = paths[name, surface], GROUND[surface]
    walk = partial(torch_path, OPTIM[name]) if name in OPTIM else partial(rule_path, RULES[name])
    places = [(drawn.rate.start, drawn.momentum.start if drawn.momentum else 0), (12, 0)]
    places += [(6, 6), (0, 1)] if drawn.momentum else [(0, 0)]
    for i, j in places:
        expected = walk(ground, drawn.rate.values[i], drawn.momentum.values[j] if drawn.momentum else 0.0)
        followed = sights(expected, ground)
        given = drawn.points[i, j]
        # rounding grows along chaotic paths: compared closely at first, and loosely later
        np.testing.assert_allclose(given[: min(followed, 20)], expected[: min(followed, 20)], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(given[:followed], expected[:followed], rtol=0.02, atol=1e-3)
        assert np.isnan(given[followed + 1 :]).all()
        if followed <= STEPS:  # it ends on the edge, on the way to where the step would have gone
            centre, half = reach(ground)
            assert np.abs((given[followed] - centre) / half).max() == pytest.approx(1)
            way, step = given[followed] - expected[followed - 1], expected[followed] - expected[followed - 1]
            share = np.linalg.norm(way) / np.linalg.norm(step)
            assert 0 <= share <= 1
            np.testing.assert_allclose(way, share * step, rtol=1e-6, atol=1e-6)


def test_there_is_a_path_for_every_place_of_every_slider(paths):
    assert list(paths) == [(walker.name, surface) for walker in WALKERS for surface in GROUND]
    assert {name for name, _ in paths} == {*OPTIM, *RULES}
    for (_, surface), drawn in paths.items():
        momenta = len(drawn.momentum.values) if drawn.momentum else 1
        assert drawn.points.shape == (13, momenta, STEPS + 1, 2) and drawn.height.shape == drawn.points.shape[:-1]
        assert list(drawn.rate.values) == sorted(set(drawn.rate.values)) and len(drawn.rate.values) == 13
        assert (drawn.points[:, :, 0] == GROUND[surface].start).all()
        heights = GROUND[surface].height(torch.from_numpy(drawn.points)).numpy()
        np.testing.assert_array_equal(drawn.height, heights)
        assert (np.isnan(drawn.height) == np.isnan(drawn.points[..., 0])).all()
        assert (np.diff(np.isnan(drawn.height).astype(int), axis=-1) >= 0).all()  # never comes back
        assert drawn.formula and drawn.says and drawn.source and drawn.where
        assert drawn.momentum is None or (momenta == len(MOMENTA) and drawn.momentum.values[4] == 0.9)


def test_rates_are_round_numbers():
    assert rates_from(-2) == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]


def points_of(*places):
    return torch.tensor(places, dtype=torch.float64)


def test_a_path_is_followed_up_to_the_edge_of_sight():
    bowl = GROUND["bowl"]  # drawn over [-2, 2], in sight over [-6, 6]
    inside = points_of((0, 0), (6, -6), (-6, 0.5))
    assert torch.equal(while_in_sight(inside, bowl), inside)
    leaves = while_in_sight(points_of((0, 0), (3, 0), (9, 2), (0, 0), (1, 1), (math.nan, 0)), bowl)
    np.testing.assert_allclose(leaves, [[0, 0], [3, 0], [6, 1], *[[math.nan] * 2] * 3])  # and it does not come back
    at_once = while_in_sight(points_of((1, 1), (1, -1e30)), bowl)
    np.testing.assert_allclose(at_once, [[1, 1], [1, -6]])
    stands = while_in_sight(points_of((6, 0), (6, 0), (6, 6), (8, 8)), bowl)
    np.testing.assert_allclose(stands, [[6, 0], [6, 0], [6, 6], [6, 6]])
    both = while_in_sight(torch.stack([inside, 9 * inside]), bowl)
    np.testing.assert_allclose(both[1], [[0, 0], [6, -6], [math.nan] * 2])
    shifted = while_in_sight(points_of((3, 0.5), (3, 100)), GROUND["Beale"])  # y over [-2.25, 2]
    np.testing.assert_allclose(shifted, [[3, 0.5], [3, -0.125 + 3 * 2.125]])


def shown(paths, name, surface):
    drawn = paths[name, surface]
    place = (drawn.rate.start, drawn.momentum.start if drawn.momentum else 0)
    followed = np.isfinite(drawn.height[place])
    return drawn.points[place][followed], drawn.height[place][followed]


def test_each_optimiser_looks_like_itself_where_its_sliders_start(paths):
    ravine = {name: shown(paths, name, "ravine")[0] for name in (*OPTIM, *RULES)}
    plain = ravine["gradient descent"]
    assert (np.sign(plain[:20, 1]) == np.sign(plain[0, 1]) * (-1.0) ** np.arange(20)).all()  # zigzags across
    assert (plain[:, 0] < 0).all()  # and never passes the bottom along
    assert ravine["momentum"][:, 0].max() > ravine["Nesterov"][:, 0].max() > 0.1  # overshoots; the other brakes
    assert (ravine["Nesterov"][:, 1] < -0.05).sum() < (ravine["momentum"][:, 1] < -0.05).sum()
    lengths = {name: np.linalg.norm(np.diff(points, axis=0), axis=1) for name, points in ravine.items()}
    assert (np.diff(lengths["Adagrad"]) < 0).all()  # rates only fall
    assert lengths["Adam, not corrected"][0] == pytest.approx(math.sqrt(10) * lengths["Adam"][0])
    assert ravine["Adam, not corrected"][:, 0].max() > 3 * ravine["Adam"][:, 0].max() > 0
    assert (
        shown(paths, "momentum", "Rosenbrock")[1][-1] < 0.5 < 3 < shown(paths, "gradient descent", "Rosenbrock")[1][-1]
    )
    for name in (*OPTIM, *RULES):
        assert shown(paths, name, "bowl")[1][-1] < 0.02
        assert len(shown(paths, name, "saddle")[0]) < STEPS and shown(paths, name, "saddle")[1][-1] < -15  # got away
        assert (np.abs(shown(paths, name, "Beale")[0] - (3, 0.5))[-1] < 1.1).all()


def test_what_the_texts_say_of_slow_and_settled(paths):
    adadelta = paths["Adadelta", "bowl"]
    lengths = np.linalg.norm(np.diff(adadelta.points[adadelta.rate.values.index(1), 0], axis=0), axis=1)
    assert lengths[0] < 0.005 and (np.diff(lengths[:60]) > 0).all() and lengths.max() < 1.2 * lengths[0]
    rmsprop = paths["RMSProp", "ravine"]
    settled = [np.linalg.norm(np.diff(points[0, -20:], axis=0), axis=1).max() < 1e-6 for points in rmsprop.points]
    assert not any(settled)


def test_the_problem_is_sklearns_standardised():
    inputs, targets = diabetes()
    table = load_diabetes(scaled=False)
    columns = [table.data[:, table.feature_names.index(name)] for name in ("bmi", "s5")]
    expected = StandardScaler().fit_transform(np.column_stack([*columns, table.target]))
    np.testing.assert_allclose(torch.column_stack([inputs, targets]), expected, atol=1e-12)


def test_batch_against_stochastic_is_one_problem_looked_at_equally_often():
    drawn, (inputs, targets) = batch_against_stochastic(), diabetes()
    fitted = LinearRegression(fit_intercept=False).fit(inputs.numpy(), targets.numpy())
    np.testing.assert_allclose(drawn.surface.minimum, fitted.coef_, rtol=1e-9)
    lowest = 1 - fitted.score(inputs.numpy(), targets.numpy())
    assert lowest == pytest.approx(1 - 0.46, abs=0.005)
    assert list(drawn.paths) == list(drawn.losses) == list(drawn.seen)
    for name, path in drawn.paths.items():
        losses, seen = drawn.losses[name], drawn.seen[name]
        assert path.shape == (len(losses), 2) and len(seen) == len(losses) and seen[-1] == 5 * 442
        assert (path[0] == drawn.surface.start).all() and (np.diff(seen) > 0).all()
        for step in (0, 1, -1):
            residual = targets.numpy() - inputs.numpy() @ path[step]
            assert losses[step] == pytest.approx((residual**2).mean(), rel=1e-10)
        assert (losses >= lowest - 1e-12).all() and np.isfinite(path).all()
        assert (path.min(axis=0) > (drawn.surface.x[0], drawn.surface.y[0])).all()
        assert (path.max(axis=0) < (drawn.surface.x[-1], drawn.surface.y[-1])).all()
    full, mini, single, search = drawn.losses.values()
    assert [len(losses) for losses in (full, mini, single, search)] == [6, 5 * 14 + 1, 2211, 5]
    assert full[-1] < lowest + 0.001 and mini[-1] < lowest + 0.03 and single[-1] < lowest + 0.05
    assert single[442] < full[1] and mini[14] < full[1] < search[-1]  # after one look at each example
    assert (np.diff(full) < 0).all() and (np.diff(single) > 0).mean() > 0.3  # one example may also lead uphill
    again, other = batch_against_stochastic(), batch_against_stochastic(seed=1)
    assert all((again.paths[name] == path).all() for name, path in drawn.paths.items())
    assert not np.array_equal(other.paths[WAYS[2].name], drawn.paths[WAYS[2].name])


@pytest.mark.parametrize("way", WAYS[:2], ids=lambda way: way.name)
def test_a_ways_rate_is_the_best_of_its_neighbours(way):
    inputs, targets = diabetes()
    start = torch.tensor([-0.6, 1.2], dtype=torch.float64)

    def mean_loss(rate):
        runs = [
            batch_descent(
                *(squared_error, inputs, targets, start, SGD(rate), way.batch_size, EPOCHS),
                torch.Generator().manual_seed(seed),
            )[0]
            for seed in range(4)
        ]
        return squared_error(torch.stack(runs)[:, 1:], inputs, targets).mean().item()

    series = [rate for decade in (-3, -2, -1) for rate in rates_from(decade)[:4]]
    lower = max(rate for rate in series if rate < way.rate)
    upper = min(rate for rate in series if rate > way.rate)
    assert mean_loss(way.rate) < min(mean_loss(lower), mean_loss(upper))
