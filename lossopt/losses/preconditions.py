"""What a loss asks of what it is given, and says nothing about: checked once, on the first batch or before it.

Most losses answer bad input with a number: a NaN, a value below 0, or one that looks right. Every rule stands here
once, for the losses of torch.nn and for ours. Letters: n rows, c classes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lossopt.losses.classification import HingeLoss, MultiClassHingeLoss, SquaredHingeLoss
from lossopt.losses.distances import wide
from lossopt.losses.regression import MSLELoss, same_shape

Rule = Callable[[nn.Module, Tensor, Tensor], None]
_NEXT_PROBABILITIES = "End the network in torch.nn.Sigmoid, or use torch.nn.BCEWithLogitsLoss on its scores."
_NEXT_LOG_PROBABILITIES = "End the network in torch.nn.LogSoftmax(dim=1), or apply log_softmax to its scores."


def check_first_batch(loss: nn.Module, prediction: Tensor, target: Tensor) -> None:
    """Refuse a batch that the loss is not defined for; a loss that is not known here is not checked.

    Looks at every number, so it costs about as much as the loss: call it once, on the first batch. A subclass of a
    known loss is checked like it. An empty batch breaks no rule of values.

    Args:
        loss: of torch.nn or of lossopt.losses, called as loss(prediction, target).
        prediction: what the network gives.
        target: what it is compared with.

    Raises:
        ValueError: a rule is broken; names the loss, what was given, the rule and the next step.
    """
    for rule in next((_RULES[kind] for kind in type(loss).__mro__ if kind in _RULES), ()):
        rule(loss, prediction.detach(), target.detach())


def _refuse(loss: nn.Module, what: str, bad: Tensor, values: Tensor, rule: str, then: str) -> None:
    """Raise where `bad`, bool, is true anywhere; `values`, of the same shape, says what stands at the first place."""
    if bad.any():
        first = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{type(loss).__name__}: {what}: {int(bad.sum())} of {bad.numel()}, the first, at {first}, is "
            f"{float(values[tuple(first)]):.6g}. {rule} {then}"
        )


def _same_shape(loss: nn.Module, prediction: Tensor, target: Tensor) -> None:
    same_shape(type(loss).__name__, prediction, target)


def _finite_prediction(loss: nn.Module, prediction: Tensor, target: Tensor) -> None:
    bad = ~prediction.isfinite()
    if isinstance(loss, nn.CrossEntropyLoss):
        bad &= prediction != -math.inf  # a class that is ruled out
    then = "Look at the images and at the first weights: nothing has been trained yet."
    _refuse(loss, "predictions that are NaN or infinite", bad, prediction, "The loss would be too.", then)


def _finite_target(loss: nn.Module, prediction: Tensor, target: Tensor) -> None:
    then = "Fill these targets in, or leave their rows out of the training data."
    _refuse(
        loss, "targets that are NaN or infinite", ~target.isfinite(), target, "The network would learn nothing.", then
    )


def _above_minus_one(loss: nn.Module, prediction: Tensor, target: Tensor) -> None:
    rule = "log(1 + x) needs x above -1."
    then = "Shift or scale the targets to 0 and above, or use torch.nn.MSELoss."
    _refuse(loss, "targets of -1 or less", target <= -1, target, rule, then)
    then = "End the network in torch.nn.Softplus, or use torch.nn.MSELoss."
    _refuse(loss, "predictions of -1 or less", prediction <= -1, prediction, rule, then)


def _share_prediction(loss: nn.Module, prediction: Tensor, target: Tensor) -> None:
    outside = ~((prediction >= 0) & (prediction <= 1))
    _refuse(loss, "predictions outside [0, 1]", outside, prediction, "It takes probabilities.", _NEXT_PROBABILITIES)


def _share_target(loss: nn.Module, prediction: Tensor, target: Tensor) -> None:
    outside = ~((target >= 0) & (target <= 1))
    then = "Scale the targets to [0, 1] (labels of -1 and 1: (y + 1) / 2), or take a loss on any numbers."
    _refuse(loss, "targets outside [0, 1]", outside, target, "It takes probabilities.", then)


def _sign_target(loss: nn.Module, prediction: Tensor, target: Tensor) -> None:
    then = "Turn labels of 0 and 1 into 2 * y - 1, or use torch.nn.BCEWithLogitsLoss, which takes 0 and 1."
    neither = (target != -1) & (target != 1)
    _refuse(loss, "targets that are neither -1 nor 1", neither, target, "It multiplies the score by them.", then)


def _class_axis(prediction: Tensor) -> int:
    return 1 if prediction.ndim > 1 else 0


def _class_target(loss: nn.Module, prediction: Tensor, target: Tensor) -> None:
    """Indices (n, ...) below c, of predictions (n, c, ...) or (c,); those to be ignored are."""
    name, axis = type(loss).__name__, _class_axis(prediction)
    classes, wanted = prediction.shape[axis], prediction.shape[:axis] + prediction.shape[axis + 1 :]
    if target.is_floating_point() or target.shape != wanted:
        raise ValueError(
            f"{name}: scores of shape {tuple(prediction.shape)} need class indices of shape {tuple(wanted)}, whole "
            f"numbers; got {target.dtype} of shape {tuple(target.shape)}. Give each row the number of its class: "
            "target.argmax(1) of one-hot rows, target.long().squeeze(1) of a column."
        )
    bad = (target < 0) | (target >= classes)
    if isinstance(loss, nn.NLLLoss | nn.CrossEntropyLoss):
        bad &= target != loss.ignore_index
    then = f"Number the classes from 0, or give the network as many outputs as there are classes (now {classes})."
    _refuse(loss, "targets that are no class", bad, target, f"Classes are 0 to {classes - 1}, one per score.", then)


def _class_or_dense_target(loss: nn.Module, prediction: Tensor, target: Tensor) -> None:
    """Indices, or as many shares as scores: (n, c) that add to 1 in every row."""
    if not target.is_floating_point() or target.shape != prediction.shape:
        _class_target(loss, prediction, target)
        return
    _share_target(loss, prediction, target)
    _adds_to_one(loss, "sums of target rows that are not 1", target.log(), "Divide each row by its sum.")


def _adds_to_one(loss: nn.Module, what: str, log_probabilities: Tensor, then: str, last_axis: bool = False) -> None:
    """Refuse rows whose probabilities, given as logarithms, do not add to 1: along axis 1, or if allowed the last."""
    narrow = torch.finfo(log_probabilities.dtype).bits < 32
    axes = {_class_axis(log_probabilities)} | ({log_probabilities.ndim - 1} if last_axis else set())
    sums = [wide(log_probabilities).logsumexp(axis).exp() for axis in sorted(axes)]
    wrong = [~((total - 1).abs() <= (0.05 if narrow else 1e-3)) for total in sums]  # 5 %: rounding of bfloat16
    _, best = min((int(bad.sum()), place) for place, bad in enumerate(wrong))
    rule = "The probabilities of a row add to 1."
    _refuse(loss, what, wrong[best].reshape(-1), sums[best].reshape(-1), rule, then)


def _log_probabilities(loss: nn.Module, prediction: Tensor, target: Tensor) -> None:
    last_axis = isinstance(loss, nn.KLDivLoss)
    what = "sums of prediction rows, read as logarithms of probabilities, that are not 1"
    _adds_to_one(loss, what, prediction, _NEXT_LOG_PROBABILITIES, last_axis)


def _distribution_target(loss: nn.Module, prediction: Tensor, target: Tensor) -> None:
    if isinstance(loss, nn.KLDivLoss) and loss.log_target:
        what = "sums of target rows, read as logarithms of probabilities, that are not 1"
        _adds_to_one(loss, what, target, "Set log_target=False, or apply log_softmax to the targets.", last_axis=True)
        return
    _share_target(loss, prediction, target)
    then = "Divide each row by its sum, or set log_target=True if these are logarithms."
    _adds_to_one(loss, "sums of target rows that are not 1", target.log(), then, last_axis=True)


_NUMBERS: tuple[Rule, ...] = (_same_shape, _finite_target, _finite_prediction)
_SIGNS: tuple[Rule, ...] = (_same_shape, _sign_target, _finite_prediction)
_SCORES: tuple[Rule, ...] = (_class_target, _finite_prediction)
_RULES: dict[type, tuple[Rule, ...]] = {
    nn.MSELoss: _NUMBERS,
    nn.L1Loss: _NUMBERS,
    nn.SmoothL1Loss: _NUMBERS,
    nn.HuberLoss: _NUMBERS,
    MSLELoss: (*_NUMBERS, _above_minus_one),
    nn.BCELoss: (_same_shape, _share_target, _share_prediction),
    nn.BCEWithLogitsLoss: (_same_shape, _share_target, _finite_prediction),
    nn.NLLLoss: (_class_target, _log_probabilities),
    nn.CrossEntropyLoss: (_class_or_dense_target, _finite_prediction),
    nn.KLDivLoss: (_same_shape, _distribution_target, _log_probabilities),
    nn.SoftMarginLoss: _SIGNS,
    HingeLoss: _SIGNS,
    SquaredHingeLoss: _SIGNS,
    nn.MultiMarginLoss: _SCORES,
    MultiClassHingeLoss: _SCORES,
}


class Interval(NamedTuple):
    """Numbers from `low` to `high`; without `low` itself if it is open."""

    low: float
    high: float
    open: bool = False

    def holds(self, other: "Interval") -> bool:
        """Whether all of `other` lies inside."""
        return (self.low < other.low if self.open else self.low <= other.low) and other.high <= self.high

    def __str__(self) -> str:
        if self == _ANY:
            return "any number"
        if math.isinf(self.low):
            return f"{self.high:g} and below"
        if math.isinf(self.high):
            return f"above {self.low:g}" if self.open else f"{self.low:g} and above"
        return f"[{self.low:g}, {self.high:g}]"


_ANY = Interval(-math.inf, math.inf)
_COMPARED = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, MSLELoss, nn.BCELoss)  # number with number
_SHARE, _POSITIVE, _NEGATIVE = Interval(0, 1), Interval(0, math.inf), Interval(-math.inf, 0)
_TAKES: dict[type, Interval] = {
    MSLELoss: Interval(-1, math.inf, open=True),
    nn.BCELoss: _SHARE,
    nn.NLLLoss: _NEGATIVE,
    nn.KLDivLoss: _NEGATIVE,
}
# Rounding reaches the ends: float32 gives tanh(10) = 1, so ends count as values.
_GIVES: dict[type, Interval] = {
    nn.Identity: _ANY,
    nn.PReLU: _ANY,
    nn.Sigmoid: _SHARE,
    nn.Hardsigmoid: _SHARE,
    nn.Softmax: _SHARE,
    nn.Tanh: Interval(-1, 1),
    nn.Softsign: Interval(-1, 1),
    nn.ReLU: _POSITIVE,
    nn.ReLU6: Interval(0, 6),
    nn.Softplus: _POSITIVE,
    nn.LogSigmoid: _NEGATIVE,  # and SoftMinus
    nn.LogSoftmax: _NEGATIVE,
    nn.GELU: Interval(-0.17, math.inf),
    nn.SiLU: Interval(-0.2785, math.inf),
}


def output_range(loss: nn.Module) -> Interval:
    """The predictions that a loss is defined for; any number for a loss that is not known here."""
    return next((_TAKES[kind] for kind in type(loss).__mro__ if kind in _TAKES), _ANY)


def _last(activation: nn.Module) -> nn.Module:
    while isinstance(activation, nn.Sequential):
        activation = activation[-1] if len(activation) else nn.Identity()
    return activation


def activation_range(activation: nn.Module) -> Interval | None:
    """The values that an activation can take, rounding included; None for one that is not known here.

    Of a Sequential its last module counts.
    """
    activation = _last(activation)
    if isinstance(activation, nn.ELU):
        return Interval(-activation.alpha, math.inf)
    if isinstance(activation, nn.LeakyReLU):
        return _ANY if activation.negative_slope > 0 else _POSITIVE
    if isinstance(activation, nn.Hardtanh) and not isinstance(activation, nn.ReLU6):
        return Interval(activation.min_val, activation.max_val)
    return next((_GIVES[kind] for kind in type(activation).__mro__ if kind in _GIVES), None)


def check_output_range(loss: nn.Module, activation: nn.Module, targets: tuple[float, float] = (0.0, 1.0)) -> None:
    """Refuse a reconstruction loss that the output activation of a decoder cannot serve, before any training.

    Args:
        loss: compares a reconstruction with an image.
        activation: the decoder's last; one that is not known is not checked.
        targets: lowest and highest number of an image.

    Raises:
        ValueError: the loss compares distributions over classes; or the activation gives values that the loss is not
            defined for, cannot give the scores that the loss turns into probabilities, or cannot reach the targets.
    """
    gives, takes = activation_range(activation), output_range(loss)
    name, last = type(loss).__name__, type(_last(activation)).__name__
    if takes == _NEGATIVE:
        raise ValueError(
            f"{name} compares distributions over classes, and the pixels of an image are none. Use torch.nn.MSELoss, "
            "or torch.nn.BCELoss after torch.nn.Sigmoid."
        )
    if gives is None:
        return
    if not takes.holds(gives):
        fitting = "torch.nn.Softplus or torch.nn.Sigmoid" if takes.open else "torch.nn.Sigmoid"
        raise ValueError(
            f"{name} takes {takes}, but an output through {last} is {gives}. End the decoder in {fitting}, or use "
            "torch.nn.MSELoss."
        )
    if isinstance(loss, nn.BCEWithLogitsLoss) and gives != _ANY:
        raise ValueError(
            f"{name} applies the sigmoid itself and needs scores of any size, but an output through {last} is {gives}. "
            "End the decoder in torch.nn.Identity, or use torch.nn.BCELoss after torch.nn.Sigmoid."
        )
    if isinstance(loss, _COMPARED) and not gives.holds(Interval(*targets)):
        raise ValueError(
            f"{name}: the targets lie in {Interval(*targets)}, but an output through {last} is {gives} and cannot "
            "reach all of them. End the decoder in torch.nn.Sigmoid for [0, 1], or in torch.nn.Identity for any range."
        )
