"""What an entry of the catalogue is, and how its curve is measured: by calling the class that trains, and autograd.

Letters: n points of a curve, v values of a slider.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lossopt.lab.pieces import Curve, Family, Slider


class Entry(NamedTuple):
    """A curve that has not been measured yet; the words are those of `Curve`.

    kind: the class that trains with it. at: (x (n,) float64, place of the slider, 0 without) -> value (n,), each from
    its own x only, by an instance of `kind`.
    """

    name: str
    family: Family
    formula: str
    says: str
    source: str
    kind: type[nn.Module]
    x_label: str
    x: np.ndarray
    at: Callable[[Tensor, float], Tensor]
    slider: Slider | None = None
    edge: str = ""


def slider(name: str, values: Sequence[float], start: float) -> Slider:
    """A slider that begins at one of its values."""
    return Slider(name, values, values.index(start))


def dotted(kind: type[nn.Module]) -> str:
    """The name under which a config finds a class: torch.nn.MSELoss, not the file that torch keeps it in."""
    package = "torch.nn" if kind.__module__.startswith("torch.nn.") else kind.__module__
    if package.startswith("lossopt.losses."):
        package = "lossopt.losses"
    return f"{package}.{kind.__name__}"


def measured(entry: Entry) -> Curve:
    """The curve: value and gradient (v, n) for every place of the slider."""
    values, gradients = [], []
    for place in entry.slider.values if entry.slider else (0.0,):
        x = torch.tensor(entry.x, dtype=torch.float64, requires_grad=True)
        value = entry.at(x, place)
        values.append(value.detach().numpy())
        gradients.append(torch.autograd.grad(value.sum(), x)[0].numpy())
    return Curve(
        name=entry.name,
        family=entry.family,
        formula=entry.formula,
        says=entry.says,
        source=entry.source,
        where=dotted(entry.kind),
        x_label=entry.x_label,
        x=entry.x,
        slider=entry.slider,
        value=np.stack(values),
        gradient=np.stack(gradients),
        edge=entry.edge,
    )
