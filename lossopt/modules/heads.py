"""What a multitask network is asked: each head is a task, with its loss, its figures, and what it asks of the data.

Letters: b images, f features of the trunk, c classes, t targets, d embedding.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossopt.data.dataset import Batch, LabelledImages, Splits
from lossopt.data.locate import listing
from lossopt.errors import ConfigError, DataError, EvaluationError
from lossopt.losses.balancing import Task
from lossopt.losses.classification import HingeLoss, SquaredHingeLoss
from lossopt.losses.preconditions import check_first_batch
from lossopt.losses.regression import MSLELoss
from lossopt.modules.scores import accuracy, balanced_accuracy, r_squared
from lossopt.retrieval.evaluation import evaluate_retrieval

_KS = (1,)
_IN_OWN_UNITS = (MSLELoss, HingeLoss, SquaredHingeLoss, nn.SoftMarginLoss, nn.BCELoss, nn.BCEWithLogitsLoss)


class Head(nn.Module, ABC):
    """One task on top of the shared features.

    Args:
        size: numbers that it gives for an image.
        loss_fn: called as loss_fn(outputs, wanted).
    """

    task: ClassVar[Task]

    def __init__(self, size: int, loss_fn: nn.Module) -> None:
        super().__init__()
        self.size, self.loss_fn = size, loss_fn
        self.layer: nn.Module = nn.Identity()

    def attach(self, features: int) -> None:
        """Makes the weights, for a trunk that gives so many numbers."""
        self.layer = nn.Linear(features, self.size)

    def forward(self, features: Tensor) -> Tensor:
        """features: (b, f). Returns (b, size) float32, whatever precision the trunk ran in."""
        outputs: Tensor = self.layer(F.relu(features))
        return outputs.float()

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures in `scores`."""

    @abstractmethod
    def wanted(self, batch: Batch) -> Tensor:
        """(b, ...) what the outputs are compared with."""

    @abstractmethod
    def scores(self, outputs: Tensor, wanted: Tensor) -> dict[str, float]:
        """The metrics of a whole split."""

    def loss(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """0-dim, over a batch."""
        loss: Tensor = self.loss_fn(outputs, wanted)
        return loss

    def check(self, splits: Splits) -> None:
        """What the task asks of the data, before any training. Raises: ConfigError, DataError."""

    @property
    def can_tell_hard(self) -> bool:
        """Whether the loss of each example can be had."""
        return getattr(self.loss_fn, "reduction", None) in ("mean", "sum")

    def loss_of_each(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """(b,) the loss of each example, the mean over its numbers."""
        each: Any = copy.copy(self.loss_fn)  # shares the weights
        each.reduction = "none"
        losses: Tensor = each(outputs, wanted)
        return losses.flatten(1).mean(dim=1) if losses.ndim > 1 else losses


class Classification(Head):
    """Which class? accuracy; balanced_accuracy: the mean over classes of the share that is found.

    Args:
        classes: c, those of the training images.
        loss_fn: of (b, c) scores and (b,) labels; None: `nn.CrossEntropyLoss`.
        class_weights: "equal": every image counts the same. "balanced": every class does, whatever its number of
            images (n / (c n_k), as scikit-learn's); the loss must take a `weight`.
        deviation: of the normal distribution, cut at two of them, that the weights begin with; the biases begin at it.
            None: torch's own beginning. DeepOBS's networks begin with 0.05.

    Raises:
        ConfigError: fewer than two classes; a loss that takes no weights.
    """

    task = "classification"
    metrics = ("accuracy", "balanced_accuracy")

    def __init__(
        self,
        classes: int,
        loss_fn: nn.Module | None = None,
        class_weights: Literal["equal", "balanced"] = "equal",
        deviation: float | None = None,
    ) -> None:
        super().__init__(classes, nn.CrossEntropyLoss() if loss_fn is None else loss_fn)
        self.deviation = deviation
        if isinstance(self.loss_fn, nn.NLLLoss):
            raise ConfigError(
                "NLLLoss wants the logarithms of probabilities, but the classification gives scores. Take "
                "torch.nn.CrossEntropyLoss: it is NLLLoss after a log-softmax."
            )
        if classes < 2:
            raise ConfigError(f"A classification needs 2 or more classes, got {classes}.")
        self.class_weights = class_weights
        if class_weights == "balanced":
            if not isinstance(self.loss_fn, nn.CrossEntropyLoss | nn.MultiMarginLoss):
                raise ConfigError(
                    f"{type(self.loss_fn).__name__} takes no weights of classes. Set class_weights to equal, or the "
                    "loss to torch.nn.CrossEntropyLoss or MultiMarginLoss."
                )
            self.loss_fn.weight = torch.ones(classes)  # there from the beginning, so that a checkpoint can fill it

    def attach(self, features: int) -> None:
        """See `Head`."""
        layer = nn.Linear(features, self.size)
        if self.deviation is not None:
            nn.init.trunc_normal_(layer.weight, std=self.deviation, a=-2 * self.deviation, b=2 * self.deviation)
            nn.init.constant_(layer.bias, self.deviation)
        self.layer = layer

    def wanted(self, batch: Batch) -> Tensor:
        """(b,) labels."""
        return batch.labels

    def scores(self, outputs: Tensor, wanted: Tensor) -> dict[str, float]:
        """See `Head`."""
        predicted = outputs.argmax(dim=1)
        return {
            "accuracy": accuracy(predicted, wanted),
            "balanced_accuracy": balanced_accuracy(predicted, wanted),
        }

    def check(self, splits: Splits) -> None:
        """Counts the classes, and weighs them if that was asked for.

        Raises:
            ConfigError: another number of classes. DataError: a class that training never sees.
        """
        table = splits.train
        counts = torch.bincount(table.labels, minlength=self.size)
        self._refuse_unseen(splits, {table.class_names[label] for label in counts.nonzero().flatten().tolist()})
        if len(table.class_names) != self.size:
            raise ConfigError(
                f"The classification has {self.size} classes, but the training images have {len(table.class_names)}: "
                f"{listing(table.class_names)}. Set model.init_args.classification.init_args.classes to "
                f"{len(table.class_names)}."
            )
        if self.class_weights == "balanced":
            self.loss_fn.weight = len(table) / (self.size * counts.clamp(min=1)).float()

    def _refuse_unseen(self, splits: Splits, seen: set[str]) -> None:
        for name, part in (("validation", splits.validation), ("test", splits.test)):
            there = [part.class_names[label] for label in part.labels.unique().tolist()]
            if new := [one for one in there if one not in seen]:
                raise DataError(
                    f"{len(new)} classes of the {name} split have no training image, so they can never be named: "
                    f"{listing(new)}. Train on them, or leave them out; to search for unseen classes, train a "
                    "SiameseNetwork or a TripletNetwork."
                )


class Regression(Head):
    """How much? For each target its r2 (see `r_squared`) and mae, the mean absolute error in the target's own unit.

    Inside, targets are standardised by their mean and deviation over the training images, so that a loss and its
    weight mean the same for millimetres and kilometres; both travel with the weights.

    Args:
        targets: t names, as the data has them.
        loss_fn: of (b, t) standardised predictions and targets; None: `nn.SmoothL1Loss`.
        points: name to the targets that are the coordinates of a point: its mean Euclidean distance is a figure, too.
        standardize: whether the loss sees standardised targets. A loss that means something only in a target's own
            unit (MSLE, or a hinge on -1 and 1) needs false.

    Raises:
        ConfigError: no target, one twice, a point of unknown targets, or a loss that standardised targets do not suit.
    """

    task = "regression"

    def __init__(
        self,
        targets: list[str],
        loss_fn: nn.Module | None = None,
        points: dict[str, list[str]] | None = None,
        standardize: bool = True,
    ) -> None:
        super().__init__(len(targets), nn.SmoothL1Loss() if loss_fn is None else loss_fn)
        if standardize and isinstance(self.loss_fn, _IN_OWN_UNITS):
            raise ConfigError(
                f"{type(self.loss_fn).__name__} means nothing on standardised targets. Set "
                "model.init_args.regression.init_args.standardize to false."
            )
        self.standardize = standardize
        if not targets or len(set(targets)) < len(targets):
            raise ConfigError(f"A regression needs one or more different targets, got {targets}.")
        self.targets, self.points = tuple(targets), points or {}
        for name, coordinates in self.points.items():
            if not coordinates or not set(coordinates) <= set(targets):
                raise ConfigError(f"The point {name!r} has the targets {coordinates}, but there are {targets}.")
        self.mean: Tensor
        self.std: Tensor
        self.columns: Tensor
        self.register_buffer("mean", torch.zeros(len(targets)))
        self.register_buffer("std", torch.ones(len(targets)))
        self.register_buffer("columns", torch.arange(len(targets)))

    @property
    def metrics(self) -> tuple[str, ...]:
        """r2 and mae of each target, then the distance of each point."""
        return (
            *(f"r2/{name}" for name in self.targets),
            *(f"mae/{name}" for name in self.targets),
            *(f"distance/{name}" for name in self.points),
        )

    def wanted(self, batch: Batch) -> Tensor:
        """(b, t) standardised targets."""
        if batch.targets is None:
            raise DataError("These images have no targets, which a regression needs.")
        return (batch.targets[:, self.columns] - self.mean) / self.std

    def in_own_units(self, outputs: Tensor) -> Tensor:
        """(b, t) standardised numbers, as the data has them."""
        return outputs * self.std + self.mean

    def scores(self, outputs: Tensor, wanted: Tensor) -> dict[str, float]:
        """See `Head`."""
        predicted, true = self.in_own_units(outputs).double(), self.in_own_units(wanted).double()
        r2, mae = r_squared(predicted, true).tolist(), (predicted - true).abs().mean(dim=0).tolist()
        found = {f"r2/{name}": value for name, value in zip(self.targets, r2, strict=True)}
        found |= {f"mae/{name}": value for name, value in zip(self.targets, mae, strict=True)}
        for name, coordinates in self.points.items():
            chosen = [self.targets.index(one) for one in coordinates]
            apart = torch.linalg.vector_norm(predicted[:, chosen] - true[:, chosen], dim=1)
            found[f"distance/{name}"] = float(apart.mean())
        return found

    def check(self, splits: Splits) -> None:
        """Finds the targets, and keeps their mean and deviation.

        Raises:
            ConfigError: the data has no such target. DataError: no targets at all, one that is no number (its row is
                named), or one that is the same for all training images.
        """
        parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        names = {table.target_names for table in parts.values()}
        if len(names) > 1:
            raise DataError(f"The three splits have different targets: {'; '.join(map(listing, sorted(names)))}.")
        columns = self._columns(splits.train.target_names)
        chosen = {name: _targets_of(table)[:, columns] for name, table in parts.items()}
        for name, table in parts.items():
            self._refuse_gaps(chosen[name], table, name)
        std, mean = torch.std_mean(chosen["train"].double(), dim=0, correction=0)
        if constant := [name for name, spread in zip(self.targets, std.tolist(), strict=True) if not spread]:
            raise DataError(
                f"All training images have the same {', '.join(constant)}: there is nothing to learn. Leave it out of "
                "model.init_args.regression.init_args.targets."
            )
        if self.standardize:
            self.mean.copy_(mean)
            self.std.copy_(std)
        for name, own in chosen.items():
            self._check_targets((own - self.mean) / self.std, name)
        self.columns.copy_(torch.tensor(columns))

    def _check_targets(self, wanted: Tensor, part: str) -> None:
        """Every target of a split, not those of a first batch alone."""
        try:
            check_first_batch(self.loss_fn, torch.zeros_like(wanted), wanted)
        except ValueError as unfit:
            raise ConfigError(
                f"The loss of the regression does not fit the targets of the {part} split. {unfit}"
            ) from unfit

    def _columns(self, target_names: Sequence[str]) -> list[int]:
        if not target_names:
            raise DataError(
                "The images have no targets, which a regression needs. Take a data set that has them (BCCD, "
                "CanvasDigits), or set model.init_args.regression to null."
            )
        if unknown := [name for name in self.targets if name not in target_names]:
            raise ConfigError(
                f"The images have no target {listing(unknown)}; they have {listing(target_names)}. Set "
                "model.init_args.regression.init_args.targets to some of these."
            )
        return [target_names.index(name) for name in self.targets]

    def _refuse_gaps(self, targets: Tensor, table: LabelledImages, part: str) -> None:
        """targets: (n, t) those that are asked for."""
        if bad := (~targets.isfinite()).nonzero().tolist():
            row, column = bad[0]
            raise DataError(
                f"{len(bad)} targets of the {part} split are NaN or infinite, the first: {self.targets[column]} of "
                f"row {row}, {table.names[row]}. Fill them in, or leave these images out."
            )


def _targets_of(table: LabelledImages) -> Tensor:
    """(n, t)."""
    return torch.empty(len(table), 0) if table.targets is None else table.targets


class Embedding(Head):
    """Who is alike? Vectors of length 1, trained with any metric loss; recall@1 and map@r of each image among the rest.

    Args:
        embedding_size: d.
        loss_fn: called as loss_fn(embeddings, labels, indices), of lossopt.losses or pytorch-metric-learning.
        miner: called as miner(embeddings, labels); None: the loss compares everything in the batch.

    Raises:
        ConfigError: a size below 1; in `check`, a loss with fewer classes than there are.
    """

    task = "embedding"
    metrics = ("recall@1", "map@r")
    can_tell_hard = False

    def __init__(self, embedding_size: int, loss_fn: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__(embedding_size, loss_fn)
        if embedding_size < 1:
            raise ConfigError(f"embedding_size is {embedding_size}; it must be 1 or more.")
        self.miner = miner

    def forward(self, features: Tensor) -> Tensor:
        """features: (b, f). Returns (b, d), each of length 1."""
        return F.normalize(super().forward(features))

    def wanted(self, batch: Batch) -> Tensor:
        """(b,) labels."""
        return batch.labels

    def loss(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """0-dim, with its gradient 0 where the miner found nothing to compare."""
        indices = None if self.miner is None else self.miner(outputs, wanted)
        if indices is not None and not max(len(column) for column in indices):
            return outputs.sum() * 0
        loss: Tensor = self.loss_fn(outputs, wanted, indices)
        return loss

    def check(self, splits: Splits) -> None:
        """See `Head`."""
        room, classes = getattr(self.loss_fn, "num_classes", None), len(splits.train.class_names)
        if isinstance(room, int) and room < classes:
            raise ConfigError(
                f"{type(self.loss_fn).__name__} has num_classes {room}, but training has {classes} classes. Set "
                f"model.init_args.embedding.init_args.loss_fn.init_args.num_classes to {classes}."
            )

    def scores(self, outputs: Tensor, wanted: Tensor) -> dict[str, float]:
        """See `Head`; NaN where no image has another of its class."""
        try:
            found: Mapping[str, float] = evaluate_retrieval(outputs.cpu().numpy(), wanted.cpu().numpy(), ks=_KS).metrics
        except EvaluationError:
            found = {}
        return {name: found.get(name, float("nan")) for name in self.metrics}
