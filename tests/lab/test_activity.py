"""Dead, saturated and mean against networks whose units are known, and on the lab's own trained ones."""

import numpy as np
import pytest
import torch
from torch import nn

from lossopt.lab.activity import ELEMENTWISE, activities, measure

GRADIENTS = {  # typed from the formulas: the derivative, and the largest that it gets
    nn.Sigmoid: (lambda x: np.exp(-x) / (1 + np.exp(-x)) ** 2, 0.25),
    nn.Tanh: (lambda x: 1 / np.cosh(x) ** 2, 1.0),
    nn.ReLU: (lambda x: (x > 0).astype(float), 1.0),
    nn.LeakyReLU: (lambda x: np.where(x > 0, 1, 0.01), 1.0),
    nn.ELU: (lambda x: np.where(x > 0, 1, np.exp(np.minimum(x, 0))), 1.0),
    nn.Softplus: (lambda x: 1 / (1 + np.exp(-x)), 1.0),
}


def shifted(activation, shift, slope=1.0):
    """A linear layer whose unit u gets slope times the one input plus shift[u], and an activation."""
    linear = nn.Linear(1, len(shift)).double()
    linear.weight.data.fill_(slope)
    linear.bias.data.copy_(torch.tensor(shift))
    return nn.Sequential(linear, activation)


INPUTS = torch.linspace(-1, 1, 41, dtype=torch.float64)[:, None]


def test_a_unit_that_is_never_above_zero_is_dead_and_one_that_is_once_is_not():
    found = measure(shifted(nn.ReLU(), [-9.0, -1.0, -0.99, 0.0, 9.0]), INPUTS)
    assert found.layers == ["1"]
    assert found.dead.tolist() == [0.4]  # the second is 0 at its largest, where torch's gradient is 0 too
    assert found.saturated[0] == pytest.approx((41 + 41 + 40 + 21 + 0) / (5 * 41))
    kept = np.maximum(INPUTS.numpy() + np.array([-9, -1, -0.99, 0, 9]), 0)
    assert found.mean[0] == pytest.approx(kept.mean())


def test_an_output_of_zero_with_a_gradient_is_not_dead_and_a_constant_one_is_saturated():
    centred = measure(shifted(nn.Tanh(), [0.0, 50.0], slope=0.0), INPUTS)
    assert (centred.dead.tolist(), centred.saturated.tolist()) == ([0.0], [0.5])
    assert centred.mean[0] == pytest.approx(0.5)
    assert measure(shifted(nn.LeakyReLU(), [-9.0]), INPUTS).dead.tolist() == [0.0]


@pytest.mark.parametrize("activation", GRADIENTS, ids=lambda one: one.__name__)
def test_saturated_is_a_gradient_below_a_hundredth_of_the_largest(activation):
    inputs = torch.linspace(-12, 12, 997, dtype=torch.float64)[:, None]
    found = measure(shifted(activation(), [0.0, 3.0]), inputs)
    slope, largest = GRADIENTS[activation]
    expected = (slope(inputs.numpy() + np.array([0.0, 3.0])) < 0.01 * largest).mean()
    assert found.saturated[0] == pytest.approx(expected)
    with torch.no_grad():
        assert found.mean[0] == pytest.approx(float(activation()(inputs + torch.tensor([0.0, 3.0])).mean()))


def test_a_wholly_saturated_layer_is_measured_by_its_function_not_by_itself():
    assert measure(shifted(nn.Sigmoid(), [30.0, -30.0]), INPUTS).saturated.tolist() == [1.0]


def test_channels_of_maps_in_place_activations_shared_modules_and_batches():
    relu = nn.ReLU(inplace=True)
    conv, second = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 1)
    for layer, bias in ((conv, [-5.0, 5.0, 0.0]), (second, [-1.0, 1.0])):
        layer.weight.data.fill_(1.0)
        layer.bias.data.copy_(torch.tensor(bias))
    second.weight.data.zero_()
    model = nn.Sequential(conv, relu, second, relu, nn.PReLU(2))
    images = torch.zeros(5, 1, 2, 2)
    images[2, 0, 1, 1] = 3.0  # in the second of three batches: the third channel is alive at this one place
    found = measure(model.train(), images, batch_size=2)
    assert found.layers == ["1", "1 (2)", "4"]
    np.testing.assert_allclose(found.dead, [1 / 3, 1 / 2, 0])
    np.testing.assert_allclose(found.saturated[:2], [(20 + 0 + 19) / 60, 1 / 2])
    np.testing.assert_allclose(found.mean, [(0 + 5 * 19 + 8 + 3) / 60, 0.5, 0.5])
    assert model.training and not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_measured_is_refused_and_leaves_no_hook():
    model = nn.Sequential(nn.Linear(1, 2), nn.Softmax(dim=1))
    with pytest.raises(ValueError, match=r"Sequential called no activation module .*make them modules"):
        measure(model, torch.ones(2, 1))
    with pytest.raises(ValueError, match="no images"):
        measure(model, torch.ones(0, 1))
    broken = nn.Sequential(nn.ReLU(), nn.Linear(3, 1))
    with pytest.raises(RuntimeError, match="shapes"):
        measure(broken, torch.ones(2, 1))
    assert not broken[0]._forward_pre_hooks and broken.training


def test_every_listed_kind_works_on_each_number_by_itself():
    x = torch.linspace(-4, 4, 30).view(5, 2, 3)
    for kind in ELEMENTWISE:
        found = measure(kind(), x)
        with torch.no_grad():
            alone = torch.stack([kind()(row[None])[0] for row in x])
        assert found.mean[0] == pytest.approx(float(alone.mean()), abs=1e-6), kind


def test_the_labs_networks_learn_and_the_far_too_high_rate_kills_units():
    found = activities()
    by_name = {one.network: one for one in found}
    assert len(by_name) == 7
    good = [one for one in found if "good" in one.network]
    assert min(one.accuracy for one in good) > 0.92
    killed = by_name["ReLU, learning rate 0.25 (far too high)"]
    healthy = by_name["ReLU, learning rate 0.1 (good)"]
    assert killed.dead[0] > 0.8 > 0.3 > healthy.dead[0] and killed.accuracy < healthy.accuracy - 0.2
    for one in good:
        assert list(one.layers) == ["hidden 1", "hidden 2"]
        assert ("ReLU, l" in one.network and "Leaky" not in one.network) or not one.dead.any()
    means = {one.network.split(",")[0]: np.abs(one.mean).max() for one in good}
    assert means["Tanh"] < 0.1 < min(means[name] for name in ("Sigmoid", "ReLU", "Softplus"))
