"""The activations of the catalogue; one axis for all, so that they can be laid over one another."""

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from lossopt.activations import CReLU, SoftMinus
from lossopt.lab.entries import Entry, slider

X = np.linspace(-8, 8, 129)  # eighths: 0 and 6, where some have a corner, are among them
_entry = partial(Entry, family="activation", x_label="input x", x=X)


def _beside_two_zeros(x: Tensor, _: float) -> Tensor:
    return nn.Softmax(dim=1)(torch.stack((x, torch.zeros_like(x), torch.zeros_like(x)), 1))[:, 0]


ACTIVATIONS: tuple[Entry, ...] = (
    _entry(
        name="sigmoid",
        formula="1 / (1 + e^(−x))",
        says="Squeezes any number into (0, 1). It saturates on both sides: where it is flat, no gradient comes "
        "through, and the gradient is 1/4 at best. Its outputs are all positive, so they are not centred on 0.",
        source="Goodfellow, Bengio & Courville 2016, Deep learning, section 6.3.2",
        kind=nn.Sigmoid,
        at=lambda x, _: nn.Sigmoid()(x),
        edge="In float32 it is exactly 1 from about x = 17, with gradient 0.",
    ),
    _entry(
        name="softmax",
        formula="e^(x_i) / Σ_j e^(x_j)",
        says="Turns scores into probabilities that add to 1. Only differences count: the same number added to all "
        "scores changes nothing. Shown as one of three, it is a sigmoid moved by ln 2.",
        source="Bridle 1990, Neurocomputing, Probabilistic interpretation of feedforward classification network "
        "outputs",
        kind=nn.Softmax,
        x_label="one score x; the two others stay at 0",
        at=_beside_two_zeros,
        edge="Before torch.nn.CrossEntropyLoss it is one softmax too many: that loss applies its own.",
    ),
    _entry(
        name="tanh",
        formula="(e^x − e^(−x)) / (e^x + e^(−x))",
        says="A sigmoid stretched to (−1, 1): centred on 0, with gradient 1 at 0. It still saturates on both sides.",
        source="LeCun, Bottou, Orr & Müller 1998, Efficient backprop, section 4.4",
        kind=nn.Tanh,
        at=lambda x, _: nn.Tanh()(x),
        edge="In float32 it is exactly 1 from about x = 9, with gradient 0.",
    ),
    _entry(
        name="identity",
        formula="x",
        says="Does nothing. It is the output of a regression; layers with nothing else between them are one linear "
        "layer.",
        source="Goodfellow, Bengio & Courville 2016, Deep learning, section 6.2.2.1",
        kind=nn.Identity,
        at=lambda x, _: nn.Identity()(x),
    ),
    _entry(
        name="softplus",
        formula="ln(1 + e^(β x)) / β",
        says="A ReLU without the corner; its gradient is the sigmoid, so no unit is ever quite dead. Always above 0, "
        "which suits variances and counts.",
        source="Dugas, Bengio, Bélisle, Nadeau & Garcia 2001, NIPS 13",
        kind=nn.Softplus,
        at=lambda x, beta: nn.Softplus(beta)(x),
        slider=slider("beta", (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0), 1.0),
        edge="ln 2 / β at 0. For large β x torch returns x itself, which is the same to rounding.",
    ),
    _entry(
        name="softminus",
        formula="x − softplus(x) = −softplus(−x) = ln sigmoid(x)",
        says="The smooth min(0, x): the softplus turned round. Gradient 1 far to the left, 0 far to the right.",
        source="the definition; torch.nn.LogSigmoid is the same function",
        kind=SoftMinus,
        at=lambda x, _: SoftMinus()(x),
        edge="−ln 2 at 0, never above 0. Computed as a difference it would lose all its digits for large x.",
    ),
    _entry(
        name="ReLU",
        formula="max(0, x)",
        says="Cheap, and it does not saturate to the right. To the left the gradient is 0: a unit that is negative "
        "for every image is dead and learns no more. Its outputs are not centred on 0.",
        source="Nair & Hinton 2010, ICML, Rectified linear units improve restricted Boltzmann machines",
        kind=nn.ReLU,
        at=lambda x, _: nn.ReLU()(x),
        edge="At 0 there are two slopes; torch takes 0.",
    ),
    _entry(
        name="leaky ReLU",
        formula="x if x > 0, else a x",
        says="A ReLU with a small slope to the left, so that no unit dies.",
        source="Maas, Hannun & Ng 2013, ICML workshop, Rectifier nonlinearities improve neural network acoustic models",
        kind=nn.LeakyReLU,
        at=lambda x, slope: nn.LeakyReLU(slope)(x),
        slider=slider("negative_slope", (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0), 0.01),
        edge="At 0 torch takes the left slope, a. Slope 0 is the ReLU, slope 1 the identity.",
    ),
    _entry(
        name="parametric ReLU",
        formula="x if x > 0, else a x, with a learned",
        says="A leaky ReLU whose slope is a weight: the network learns it, one for all channels or one for each.",
        source="He, Zhang, Ren & Sun 2015, ICCV, Delving deep into rectifiers",
        kind=nn.PReLU,
        at=lambda x, slope: nn.PReLU(init=slope, dtype=torch.float64)(x),
        slider=slider("weight", (-0.25, 0.0, 0.05, 0.1, 0.25, 0.4, 0.5, 0.75, 1.0, 1.25), 0.25),
        edge="Starts at 0.25. Leave it out of weight decay, which would pull it back to the ReLU.",
    ),
    _entry(
        name="concatenated ReLU",
        formula="(max(0, x), max(0, −x))",
        says="Two outputs for one input: the positive part and the negative part. Nothing is lost and no unit is "
        "dead, for twice the channels.",
        source="Shang, Sohn, Almeida & Lee 2016, ICML, arXiv:1603.05201",
        kind=CReLU,
        at=lambda x, half: CReLU()(x[:, None])[:, int(half)],
        slider=slider("output", (0, 1), 0),
        edge="At 0 both outputs are 0 and have gradient 0.",
    ),
    _entry(
        name="ReLU6",
        formula="min(6, max(0, x))",
        says="A ReLU that stops at 6, which suits arithmetic of few bits. It saturates on both sides.",
        source="Krizhevsky 2010, Convolutional deep belief networks on CIFAR-10",
        kind=nn.ReLU6,
        at=lambda x, _: nn.ReLU6()(x),
        edge="At 0 and at 6 torch takes slope 0.",
    ),
    _entry(
        name="ELU",
        formula="x if x > 0, else α (e^x − 1)",
        says="Goes smoothly to −α on the left, so that the mean output is nearer to 0 than a ReLU's.",
        source="Clevert, Unterthiner & Hochreiter 2016, ICLR, arXiv:1511.07289",
        kind=nn.ELU,
        at=lambda x, alpha: nn.ELU(alpha)(x),
        slider=slider("alpha", (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0), 1.0),
        edge="Only α = 1 has no corner at 0. It saturates to the left.",
    ),
)
