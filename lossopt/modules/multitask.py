"""The multitask network: one trunk, a head for each task, and one loss out of theirs.

Letters: b images, c channels, h height, w width, f features of the trunk.
"""

import copy
from typing import Literal

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lossopt.data.dataset import Batch, Splits
from lossopt.data.module import to_float
from lossopt.errors import ConfigError
from lossopt.losses.balancing import FixedWeights, Task, hardest_rows
from lossopt.losses.preconditions import check_first_batch
from lossopt.modules.heads import Classification, Embedding, Head, Regression
from lossopt.modules.network import ImageNetwork

_LOOKED_AT = 64  # training images that the check before training puts through the network


class MultitaskNetwork(ImageNetwork):
    """Learns several things about an image at once, from features that the tasks share. With one head: a plain CNN.

    Figures are those of the heads (see there), over the whole split; loss is that of training, but over all examples
    and without the embedding's, which depends on who is in the batch.

    Args:
        trunk: (b, c, h, w) float images in [0, 1] to (b, f); any encoder with normalize: false. The heads begin with a
            ReLU.
        features: f.
        classification, regression, embedding: the heads; None: not asked. One of the first two must be there.
        balancing: makes one loss of those of the tasks; its own weights, if any, are trained along. None:
            `FixedWeights`.
        hard_example_fraction: only this share of a batch, that with the largest loss over the tasks, is learnt from
            (see `hardest_rows`); the embedding sees all of it. 1: all.
        optimizer, lr_scheduler: as for `ImageNetwork`.
        channels_last: memory layout of the convolutions; faster on CPUs and on tensor cores, same numbers.

    Raises:
        ConfigError: no head to train; a hard_example_fraction outside (0, 1], or with a loss that cannot be had for
            each example.

    Source: Caruana 1997, Multitask Learning, Machine Learning 28.
    """

    def __init__(
        self,
        trunk: nn.Module,
        features: int,
        classification: Classification | None = None,
        regression: Regression | None = None,
        embedding: Embedding | None = None,
        balancing: nn.Module | None = None,
        hard_example_fraction: float = 1.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        if classification is None and regression is None:
            raise ConfigError(
                "A MultitaskNetwork needs a classification or a regression. For an embedding alone train a "
                "SiameseNetwork or a TripletNetwork."
            )
        self.heads: list[Head] = [head for head in (classification, regression, embedding) if head is not None]
        self.hard_example_fraction = hard_example_fraction
        self._check_hard_examples()
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.trunk = trunk.to(memory_format=self.layout)
        for head in self.heads:
            head.attach(features)
        self.features = features
        self.classification, self.regression, self.embedding = classification, regression, embedding
        self.balancing: nn.Module = FixedWeights() if balancing is None else balancing
        self._seen: dict[Task, list[tuple[Tensor, Tensor]]] = {}

    def _check_hard_examples(self) -> None:
        if not 0 < self.hard_example_fraction <= 1:
            raise ConfigError(
                f"hard_example_fraction is a share in (0, 1], got {self.hard_example_fraction}; 1 learns from all."
            )
        unable = [head for head in self.heads if head.task != "embedding" and not head.can_tell_hard]
        if self.hard_example_fraction < 1 and unable:
            raise ConfigError(
                f"hard_example_fraction {self.hard_example_fraction} needs the loss of each example, which "
                f"{type(unable[0].loss_fn).__name__} does not give: it has no reduction. Take one of torch.nn, or 1."
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of the heads, then the loss."""
        return (*(name for head in self.heads for name in head.metrics), "loss")

    @property
    def embedder(self) -> nn.Module:
        """Trunk and embedding head. Raises: ConfigError: there is no such head."""
        return super().embedder if self.embedding is None else nn.Sequential(self.trunk, self.embedding)

    def forward(self, images: Tensor) -> dict[Task, Tensor]:
        """images: (b, c, h, w) float in [0, 1]. Returns the outputs of each head: scores, standardised targets, ..."""
        features = self.trunk(images.to(self.dtype, memory_format=self.layout))
        return {head.task: head(features) for head in self.heads}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch to one loss."""
        outputs = self(batch.images)
        self.keep(batch, torch.cat(list(outputs.values()), dim=1))
        with torch.autocast(batch.images.device.type, enabled=False):  # losses stay in float32
            return self.loss_of(outputs, {head.task: head.wanted(batch) for head in self.heads})

    def loss_of(self, outputs: dict[Task, Tensor], wanted: dict[Task, Tensor]) -> Tensor:
        """0-dim, of the hardest examples.

        Args:
            outputs, wanted: task to (b, ...).
        """
        scored = [head for head in self.heads if head.task != "embedding"]
        rows: Tensor | slice = slice(None)
        if self.hard_example_fraction < 1:
            with torch.no_grad():
                each = {head.task: head.loss_of_each(outputs[head.task], wanted[head.task]) for head in scored}
                rows = hardest_rows(self.balancing(each), self.hard_example_fraction)
        losses = {head.task: head.loss(outputs[head.task][rows], wanted[head.task][rows]) for head in scored}
        if self.embedding is not None:
            losses["embedding"] = self.embedding.loss(outputs["embedding"], wanted["embedding"])
        loss: Tensor = self.balancing(losses)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forgets what an earlier pass saw."""
        self._seen = {}

    def on_test_epoch_start(self) -> None:
        """As for validation."""
        self._seen = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keeps what the heads say, for figures are those of the whole split."""
        with torch.autocast(batch.images.device.type, enabled=False):
            outputs = self(batch.images)
        for head in self.heads:
            self._seen.setdefault(head.task, []).append((outputs[head.task], head.wanted(batch)))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Scores the validation split."""
        self._score("val")

    def on_test_epoch_end(self) -> None:
        """Scores the test split."""
        self._score("test")

    def _score(self, part: Literal["val", "test"]) -> None:
        seen = {task: [torch.cat(column) for column in zip(*pairs, strict=True)] for task, pairs in self._seen.items()}
        self._seen = {}
        if not seen:
            return
        figures: dict[str, Tensor | float] = {}
        losses: dict[Task, Tensor] = {}
        for head in self.heads:
            outputs, wanted = seen[head.task]
            figures.update(head.scores(outputs, wanted))
            if head.task != "embedding":
                losses[head.task] = head.loss(outputs, wanted)
        self.log_scores(part, {**figures, "loss": self.balancing(losses)}, 1)

    def check_data(self, splits: Splits) -> None:
        """Asks every head, and puts some training images through the network, untrained.

        Raises:
            ConfigError: the images do not fit the trunk, its features are not as many as was said, a loss is not
                defined for what its head gives, or a head does not fit the data. DataError: see the heads.
        """
        for head in self.heads:
            head.check(splits)
        batch = splits.train.batch(range(min(_LOOKED_AT, len(splits.train))))
        images = to_float(batch.images)
        shape, was = " x ".join(map(str, images.shape[1:])), self.training
        try:
            with torch.no_grad():
                features = self.eval().trunk(images.to(memory_format=self.layout))
        except RuntimeError as unfit:
            raise ConfigError(
                f"The images are {shape}, which does not fit the trunk ({' '.join(str(unfit).split())}). Set its "
                "channels and image_size to those of the images."
            ) from unfit
        finally:
            self.train(was)
        if features.shape[1:] != (self.features,):
            raise ConfigError(
                f"The trunk gives {' x '.join(map(str, features.shape[1:]))} numbers for an image, but "
                f"model.init_args.features is {self.features}. Set it to what the trunk gives."
            )
        for head in self.heads:
            self._check_loss(head, features, batch)

    def _check_loss(self, head: Head, features: Tensor, batch: Batch) -> None:
        """The loss of some training images, by a copy of the head: a memory in it must not keep them."""
        probe, name = copy.deepcopy(head), type(head.loss_fn).__name__
        each = torch.empty(len(features))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                outputs, wanted = probe(features), probe.wanted(batch)
                check_first_batch(probe.loss_fn, outputs, wanted)
                loss = probe.loss(outputs, wanted)
                if self.hard_example_fraction < 1 and head.task != "embedding":
                    each = probe.loss_of_each(outputs, wanted)
        except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as unfit:
            call = "(embeddings, labels, indices)" if head.task == "embedding" else "(outputs, wanted)"
            raise ConfigError(
                f"The loss of the {head.task} does not fit: {' '.join(str(unfit).split())} (called as {name}{call})"
            ) from unfit
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ConfigError(
                f"{name} gives no single number for a batch of the {head.task}. Set its reduction to mean."
            )
        if each.shape != (len(features),):
            raise ConfigError(
                f"hard_example_fraction needs the loss of each example, but with reduction none {name} gives "
                f"{tuple(each.shape)} for {len(features)}. Take a loss of torch.nn, or set hard_example_fraction to 1."
            )
