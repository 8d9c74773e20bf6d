"""Losses on numbers that torch.nn lacks; MSELoss, L1Loss, SmoothL1Loss and HuberLoss it has, named by class path.

The summed squared error, called L2 in courses, is torch.nn.MSELoss(reduction="sum").
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossopt.losses.distances import one_of

Reduce = Literal["mean", "sum", "none"]  # torch's own words


def same_shape(loss: str, prediction: Tensor, target: Tensor) -> None:
    """Raise ValueError unless both have one shape: (b, 1) against (b,) would become (b, b) without a word."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"{loss} compares number with number: predictions of shape {tuple(prediction.shape)} do not fit targets of "
            f"shape {tuple(target.shape)}. Give both the same shape, for instance prediction.squeeze(1) for (b, 1)."
        )


def msle_loss(prediction: Tensor, target: Tensor, base: float | None = None, reduction: Reduce = "mean") -> Tensor:
    """Mean squared logarithmic error: ratios count, not differences, and too little costs more than too much.

        (log(1 + prediction) - log(1 + target))²

    Args:
        prediction: any shape, above -1; at -1 the loss is infinite, below it NaN.
        target: the same shape, above -1.
        base: of the logarithm, > 1; None: e. Another base only scales the loss, by 1 / ln(base)².
        reduction: "mean" or "sum" (0-dim), or "none" (the shape of `prediction`). The mean of no numbers is NaN.

    Raises:
        ValueError: the shapes differ.

    Source: scikit-learn's user guide, mean squared logarithmic error (natural logarithm); courses print it with 10.
    """
    same_shape("msle_loss", prediction, target)
    scale = 1.0 if base is None else 1 / math.log(base)
    return F.mse_loss(torch.log1p(prediction) * scale, torch.log1p(target) * scale, reduction=reduction)


class MSLELoss(nn.Module):
    """`msle_loss` as a module: (prediction, target) of one shape -> 0-dim, or that shape with reduction "none".

    Raises:
        ValueError: `base` is no number above 1; `reduction` is another word.
    """

    def __init__(self, base: float | None = None, reduction: Reduce = "mean") -> None:
        super().__init__()
        if base is not None and not 1 < base < math.inf:
            raise ValueError(
                f"MSLELoss base must be a number above 1, got {base}; leave it out for natural logarithms."
            )
        one_of("reduction", reduction, Reduce)
        self.base, self.reduction = base, reduction

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss; see `msle_loss`."""
        return msle_loss(prediction, target, self.base, self.reduction)
