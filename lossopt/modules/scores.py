"""Figures of a whole split that say how good predictions are; where one is not defined, it is `undefined`.

Letters: n images, c classes, t targets.
"""

import math

import torch
from torch import Tensor


def accuracy(predicted: Tensor, labels: Tensor, undefined: float = math.nan) -> float:
    """Share of the (n,) predictions that are right; `undefined` without an image."""
    return float((predicted == labels).double().mean()) if len(labels) else undefined


def balanced_accuracy(predicted: Tensor, labels: Tensor, undefined: float = math.nan) -> float:
    """Mean over the classes of the share of their images that are found; a class without an image does not count.

    Args:
        predicted, labels: (n,) whole numbers.
        undefined: the answer without an image.

    Source: Brodersen et al. 2010, The Balanced Accuracy and Its Posterior Distribution; scikit-learn's, not adjusted.
    """
    recalls = [(predicted[labels == label] == label).double().mean() for label in labels.unique()]
    return float(torch.stack(recalls).mean()) if recalls else undefined


def r_squared(predicted: Tensor, targets: Tensor, undefined: float = math.nan) -> Tensor:
    """1 - squared error / squared deviation from the mean, for each target: 1 is perfect, 0 as good as their mean.

    Args:
        predicted, targets: (n, t).
        undefined: the answer where all n targets are equal, and with none (scikit-learn answers 0 or 1 there).

    Returns:
        (t,) float64.
    """
    predicted, targets = predicted.double(), targets.double()
    error = (predicted - targets).square().sum(dim=0)
    spread = (targets - targets.mean(dim=0)).square().sum(dim=0)
    constant = (targets == targets[:1]).all(dim=0)
    return torch.where(constant, torch.full_like(error, undefined), 1 - error / spread)
