"""What the units of a trained network do on real images: which are dead, which saturated, and around what they centre.

Measured from outside, on any network whose activations are modules. Letters: n images, u units, l layers.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossopt.data.dataset import LabelledImages
from lossopt.data.digits import Digits
from lossopt.data.module import to_float
from lossopt.lab.pieces import Activity

ELEMENTWISE: tuple[type[nn.Module], ...] = (
    *(nn.Sigmoid, nn.Tanh, nn.Softsign, nn.Hardsigmoid, nn.Hardtanh, nn.LogSigmoid),
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU),
    *(nn.Softplus, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
)
_SATURATED = 0.01  # of the largest gradient of the activation
_PROBE = torch.linspace(-20, 20, 4001)  # where the largest gradient is looked for; 0 is one of the places


class Units(NamedTuple):
    """What the units of each layer do. A unit is a channel of a convolution, or a number of a linear layer.

    layers: names of the activation modules, in the order of their calls; a module that is called again is numbered.
    dead: (l,) share of units that are 0, with gradient 0, for every image, everywhere in it. saturated: (l,) share of
    single activations with a gradient below 1 % of the largest that the function has. mean: (l,) of all activations.
    """

    layers: list[str]
    dead: np.ndarray
    saturated: np.ndarray
    mean: np.ndarray


class _Count:
    """Of one layer, over batches."""

    def __init__(self, units: int, steepest: float) -> None:
        self.alive, self.steepest = torch.zeros(units, dtype=torch.bool), steepest
        self.saturated, self.sum, self.values = 0, 0.0, 0

    def add(self, output: Tensor, gradient: Tensor) -> None:
        """(b, u, ...) each."""
        others = [axis for axis in range(output.ndim) if axis != 1]
        self.alive |= ((output != 0) | (gradient != 0)).sum(others).cpu() > 0
        self.saturated += int((gradient.abs() < _SATURATED * self.steepest).sum())
        self.sum += float(output.double().sum())
        self.values += output.numel()


def measure(
    model: nn.Module, images: Tensor, kinds: tuple[type[nn.Module], ...] = ELEMENTWISE, batch_size: int = 256
) -> Units:
    """Runs a network over images and looks at its activation modules.

    Args:
        model: called with images; it is in evaluation mode meanwhile. Activations that it calls as functions (F.relu)
            cannot be seen.
        images: (n, ...), of the kind and on the device that the model wants.
        kinds: the modules that are looked at: functions of each number by itself, (b, u, ...) to the same shape.
        batch_size: images at once.

    Raises:
        ValueError: no images, or no module of these kinds was called.
    """
    if not len(images):
        raise ValueError("measure was given no images; give it one or more.")
    counts: dict[str, _Count] = {}
    calls: dict[str, int] = {}
    hooks = [
        module.register_forward_pre_hook(partial(_look, counts, calls, name))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    was_training = model.training
    try:
        model.eval()
        with torch.no_grad():
            for batch in images.split(batch_size):
                calls.clear()
                model(batch)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    if not counts:
        raise ValueError(
            f"{type(model).__name__} called no activation module ({', '.join(kind.__name__ for kind in kinds)}). "
            "Activations that are called as functions cannot be seen: make them modules, or name yours in kinds."
        )
    found = counts.values()
    return Units(
        list(counts),
        np.array([1 - float(count.alive.double().mean()) for count in found]),
        np.array([count.saturated / count.values for count in found]),
        np.array([count.sum / count.values for count in found]),
    )


def _look(
    counts: dict[str, _Count], calls: dict[str, int], name: str, module: nn.Module, given: tuple[Tensor, ...]
) -> None:
    """Before the module runs, for one that works in place overwrites what it is given."""
    calls[name] = calls.get(name, 0) + 1
    layer = name if calls[name] == 1 else f"{name} ({calls[name]})"
    output, gradient = _output_and_gradient(module, given[0])
    if layer not in counts:
        shape = (len(_PROBE), output.shape[1], *[1] * (output.ndim - 2))  # a PReLU has a slope for each channel
        probe = _PROBE.to(output).view(-1, *[1] * (output.ndim - 1)).expand(shape)
        counts[layer] = _Count(output.shape[1], float(_output_and_gradient(module, probe)[1].abs().max()))
    counts[layer].add(output, gradient)


def _output_and_gradient(module: nn.Module, given: Tensor) -> tuple[Tensor, Tensor]:
    """Of a function of each number by itself, the derivative is that of the sum."""
    with torch.enable_grad():
        at = given.detach().clone().requires_grad_()
        output = module.forward(at * 1)  # not the leaf itself, for modules that work in place; forward calls no hook
        (gradient,) = torch.autograd.grad(output.sum(), at)
    return output.detach(), gradient


# ------------------------------------------------------------------------------------------------- the lab's networks


class _Trained(NamedTuple):
    """activation: makes one. rate: of the learning; how: it is, in words."""

    activation: Callable[[], nn.Module]
    rate: float
    how: str


_WIDTH, _HIDDEN, _EPOCHS, _BATCH, _MOMENTUM = 64, 2, 30, 32, 0.9
# Good is the best of 0.01, 0.03, 0.1 and 0.3 by accuracy on the validation images, mean of seeds 0, 1 and 2.
_NETWORKS = (
    _Trained(nn.Sigmoid, 0.3, "good"),
    _Trained(nn.Tanh, 0.1, "good"),
    _Trained(nn.ReLU, 0.1, "good"),
    _Trained(nn.LeakyReLU, 0.1, "good"),
    _Trained(nn.ELU, 0.1, "good"),
    _Trained(nn.Softplus, 0.1, "good"),
    _Trained(nn.ReLU, 0.25, "far too high"),
)


def activities(seed: int = 0) -> list[Activity]:
    """One network with each activation, and ReLU at a far too high learning rate, trained and measured.

    64 pixels, two hidden layers of 64 units, 10 digits; SGD with momentum 0.9, batches of 32, 30 epochs, on
    scikit-learn's digits (`Digits`, closed split); measured, and scored, on the test images.

    Args:
        seed: of weights and batches.
    """
    splits = Digits(split="closed").splits()
    test, labels = _tensors(splits.test)
    found = []
    for made in _NETWORKS:
        model = train_digits(made.activation, made.rate, splits.train, seed)
        units = measure(model, test)
        with torch.no_grad():
            accuracy = float((model(test).argmax(1) == labels).double().mean())
        name = f"{type(made.activation()).__name__}, learning rate {made.rate:g} ({made.how})"
        found.append(Activity(name, units.layers, units.dead, units.saturated, units.mean, accuracy))
    return found


def train_digits(activation: Callable[[], nn.Module], rate: float, table: LabelledImages, seed: int) -> nn.Module:
    """The network of `activities`, trained on a table of 8 x 8 images of ten classes."""
    images, labels = _tensors(table)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(seed)
        model = _network(activation)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=_MOMENTUM)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(labels), generator=generator).split(_BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model


def _network(activation: Callable[[], nn.Module]) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number in range(1, _HIDDEN + 1):
        layers[f"linear {number}"] = nn.Linear(64 if number == 1 else _WIDTH, _WIDTH)
        layers[f"hidden {number}"] = activation()
    layers["digits"] = nn.Linear(_WIDTH, 10)
    return nn.Sequential(layers)


def _tensors(table: LabelledImages) -> tuple[Tensor, Tensor]:
    batch = table.batch(range(len(table)))
    return to_float(batch.images), batch.labels
