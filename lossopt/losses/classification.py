"""Losses on class scores that torch.nn lacks, or has in a form that hides a NaN; y is -1 or 1, or the index of a class.

torch.nn has the others: BCELoss, BCEWithLogitsLoss, NLLLoss, CrossEntropyLoss, KLDivLoss, SoftMarginLoss.
Letters: n rows, c classes. Targets are not looked at in every step: `preconditions.check_first_batch` does it once.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossopt.losses.distances import one_of
from lossopt.losses.embedding import positive_number
from lossopt.losses.regression import Reduce, same_shape


def _reduced(losses: Tensor, reduction: Reduce) -> Tensor:
    one_of("reduction", reduction, Reduce)
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def hinge_loss(score: Tensor, target: Tensor, margin: float = 1.0, reduction: Reduce = "mean") -> Tensor:
    """The margin loss of two classes: a score on the right side by less than the margin costs what is missing.

        max(0, margin - y s)

    Args:
        score: any shape, unbounded; its sign is the class.
        target: the same shape, -1 or 1, of any dtype.
        margin: in the units of the score. At y s = margin, the corner, the gradient is 0.
        reduction: "mean" or "sum" (0-dim), or "none" (the shape of `score`). The mean of no numbers is NaN.

    Raises:
        ValueError: the shapes differ.

    Source: Cortes & Vapnik 1995, Machine Learning 20, "Support-vector networks"; Hastie, Tibshirani & Friedman 2009,
    The Elements of Statistical Learning, section 12.3.2.
    """
    same_shape("hinge_loss", score, target)
    return _reduced(F.relu(margin - target * score), reduction)


def squared_hinge_loss(score: Tensor, target: Tensor, margin: float = 1.0, reduction: Reduce = "mean") -> Tensor:
    """max(0, margin - y s)²: as `hinge_loss`, but far mistakes cost much more, and there is no corner.

    Arguments, shapes and errors as of `hinge_loss`.

    Source: Tang 2013, arXiv:1306.0239, "Deep learning using linear support vector machines" (L2-SVM).
    """
    same_shape("squared_hinge_loss", score, target)
    return _reduced(F.relu(margin - target * score).square(), reduction)


def multi_class_hinge_loss(scores: Tensor, target: Tensor, margin: float = 1.0, reduction: Reduce = "mean") -> Tensor:
    """Every wrong class whose score is not below that of the right one by the margin costs what is missing.

        sum over j other than y of max(0, s_j - s_y + margin)

    torch.nn.MultiMarginLoss(margin=margin) is this divided by c. It is not called here: it answers 0 for a NaN
    score, and a number from nowhere for an empty batch.

    Args:
        scores: (n, c).
        target: (n,) int64, the right class, 0 to c - 1.
        margin: the Delta of courses. Equal scores cost margin * (c - 1).
        reduction: over rows: "mean" or "sum" (0-dim), or "none" (n,). The mean of no rows is NaN.

    Raises:
        ValueError: the shapes are others.

    Source: Weston & Watkins 1999, ESANN, "Support vector machines for multi-class pattern recognition"; the course
    notes of Stanford's CS231n, "Linear classification", whose form this is.
    """
    if scores.ndim != 2 or target.shape != scores.shape[:1]:
        raise ValueError(
            "multi_class_hinge_loss needs scores (rows, classes) and one class index per row, got shapes "
            f"{tuple(scores.shape)} and {tuple(target.shape)}; for targets of -1 and 1 use HingeLoss."
        )
    right = scores.gather(1, target[:, None])
    missing = F.relu(scores - right + margin)
    return _reduced(missing.scatter(1, target[:, None], 0).sum(1), reduction)


class _Hinge(nn.Module):
    """What the hinges share: a margin above 0 and torch's reductions."""

    def __init__(self, margin: float = 1.0, reduction: Reduce = "mean") -> None:
        super().__init__()
        name = type(self).__name__
        positive_number(f"{name} margin", margin, "scores that are all 0 would be good enough")
        one_of("reduction", reduction, Reduce)
        self.margin, self.reduction = margin, reduction


class HingeLoss(_Hinge):
    """`hinge_loss` as a module: score and target (-1 or 1) of one shape -> 0-dim."""

    def forward(self, score: Tensor, target: Tensor) -> Tensor:
        """The loss; see `hinge_loss`."""
        return hinge_loss(score, target, self.margin, self.reduction)


class SquaredHingeLoss(_Hinge):
    """`squared_hinge_loss` as a module: score and target (-1 or 1) of one shape -> 0-dim."""

    def forward(self, score: Tensor, target: Tensor) -> Tensor:
        """The loss; see `squared_hinge_loss`."""
        return squared_hinge_loss(score, target, self.margin, self.reduction)


class MultiClassHingeLoss(_Hinge):
    """`multi_class_hinge_loss` as a module, with CS231n's penalty on the weights, weight_penalty * sum of W².

    Args:
        margin: > 0, the Delta of courses.
        weight_penalty: >= 0, the lambda of courses; above 0 the call takes the weights. For a whole network leave it 0
            and give torch.optim.SGD a weight_decay of 2 * weight_penalty: the same steps. (Adam divides that decay by
            its own scale, and AdamW's decay is none of the loss.)
        reduction: of the hinge over rows; the penalty is added once, so "none" leaves no room for it.

    Raises:
        ValueError: an argument outside these; a penalty without weights, or weights without a penalty.
    """

    def __init__(self, margin: float = 1.0, weight_penalty: float = 0.0, reduction: Reduce = "mean") -> None:
        super().__init__(margin, reduction)
        if not 0 <= weight_penalty < math.inf:
            raise ValueError(f"MultiClassHingeLoss weight_penalty must be a finite number >= 0, got {weight_penalty}.")
        if weight_penalty and reduction == "none":
            raise ValueError(
                'MultiClassHingeLoss adds its weight_penalty once, not to every row: reduction "none" leaves no room '
                'for it. Use "mean" or "sum", or weight_penalty 0.'
            )
        self.weight_penalty = weight_penalty

    def forward(self, scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss of scores (n, c) and classes (n,); `weight`: what is penalised, any shape, usually (c, d)."""
        if (weight is None) != (self.weight_penalty == 0):
            raise ValueError(
                f"MultiClassHingeLoss has weight_penalty {self.weight_penalty} and was called "
                f"{'without' if weight is None else 'with'} weights; give both or neither. For a whole network "
                "give the optimizer a weight_decay of 2 * weight_penalty instead."
            )
        loss = multi_class_hinge_loss(scores, target, self.margin, self.reduction)
        return loss if weight is None else loss + self.weight_penalty * torch.sum(weight.square())
