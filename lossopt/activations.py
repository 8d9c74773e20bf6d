"""Activations that torch.nn lacks, or has under another name; everything else is torch.nn's, named by class path."""

import torch
from torch import Tensor, nn


class SoftMinus(nn.LogSigmoid):
    """x - softplus(x): the smooth min(0, x), by its course name; elementwise, any shape and floating dtype.

        x - log(1 + exp(x)) = -softplus(-x) = log sigmoid(x)

    Its values are below 0, -ln 2 at x = 0; its gradient is sigmoid(-x), 1 far to the left and 0 far to the right. It is
    torch.nn.LogSigmoid, which neither overflows for large |x| nor loses the digits that the difference would.
    """


class CReLU(nn.Module):
    """Concatenated ReLU: the positive part, then the negative part, so that no input is lost and no unit is dead.

        cat(max(0, x), max(0, -x))

    Twice as long along `dim`, so the next layer takes twice the channels. The gradient at 0 is 0 in both halves.

    Args:
        dim: where the channels are: 1 for images (b, c, h, w) and for vectors (b, d); -1 the last.

    Source: Shang, Sohn, Almeida & Lee 2016, ICML, arXiv:1603.05201, "Understanding and improving convolutional neural
    networks via concatenated rectified linear units".
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """(..., c, ...) -> (..., 2c, ...), of the same dtype."""
        return torch.relu(torch.cat((x, -x), self.dim))
