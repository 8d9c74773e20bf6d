"""What Siamese and triplet networks share: encoder -> embeddings -> miner -> indices -> loss. Wiring only."""

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from lossopt.data.dataset import Batch
from lossopt.miners.agreement import check_agreement, needs_positives
from lossopt.schedules import WarmupDecay


class StepRecord(NamedTuple):
    """What the last training step compared, kept for those who watch it (see callbacks.py).

    embeddings: (b, d), detached. tuples: how many the miner found; None without a miner.
    """

    batch: Batch
    embeddings: Tensor
    tuples: int | None


class EmbeddingNetwork(LightningModule):
    """One encoder with shared weights for every image of a batch; the loss compares its embeddings.

    Args:
        encoder: (b, c, h, w) float images in [0, 1] to (b, d) embeddings.
        loss_fn: called as loss_fn(embeddings, labels, indices); its own weights, if any, are trained along.
        miner: called as miner(embeddings, labels); None: the loss compares everything in the batch.
        optimizer: made from the parameters.
        lr_scheduler: made from the optimiser; None: a constant learning rate.
        channels_last: memory layout of the convolutions; faster on CPUs and on tensor cores, same numbers.

    Raises:
        ConfigError: the miner or the loss returns or needs the other kind of tuples; the valid ones are named.
    """

    compares: ClassVar[Literal["pairs", "triplets"]]

    def __init__(
        self,
        encoder: nn.Module,
        loss_fn: nn.Module,
        miner: nn.Module | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        check_agreement(type(self).__name__, self.compares, loss_fn, miner)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.encoder = encoder.to(memory_format=layout)
        self.layout = layout
        self.loss_fn, self.miner = loss_fn, miner
        self.make_optimizer, self.make_schedule = optimizer, lr_scheduler
        self.last_step: StepRecord | None = None

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, c, h, w) float in [0, 1]. Returns (b, d) float32."""
        return self.encoder(images.to(self.dtype, memory_format=self.layout)).float()

    @property
    def needs_positives(self) -> bool:
        """Whether training is idle on batches in which no class has two images."""
        return needs_positives(self.loss_fn)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """One batch to one loss; None, which makes no step, when the miner found nothing to compare."""
        embeddings = self(batch.images)
        with torch.autocast(embeddings.device.type, enabled=False):  # distances and losses stay in float32
            indices = None if self.miner is None else self.miner(embeddings, batch.labels)
            tuples = None if indices is None else max(len(column) for column in indices)
            loss = None if tuples == 0 else self.loss_fn(embeddings, batch.labels, indices)
        self.last_step = StepRecord(batch, embeddings.detach(), tuples)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(b, d) embeddings, in float32 also under mixed precision: `lossopt evaluate` finds the same numbers."""
        with torch.autocast(batch.images.device.type, enabled=False):
            return self(batch.images)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(b, d) embeddings, as in validation."""
        return self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        """The optimiser, and the schedule stepped as its kind wants it: per step or per epoch."""
        optimizer = self.make_optimizer(self.parameters())
        if self.make_schedule is None:
            return optimizer
        scheduler = self.make_schedule(optimizer)
        if isinstance(scheduler, WarmupDecay):
            scheduler.total_steps = self.trainer.estimated_stepping_batches
        per_step = isinstance(scheduler, WarmupDecay | OneCycleLR | CyclicLR)
        settings = {"scheduler": scheduler, "interval": "step" if per_step else "epoch"}
        if isinstance(scheduler, ReduceLROnPlateau):
            settings["monitor"] = getattr(scheduler, "monitor", "val/map@r")
        return {"optimizer": optimizer, "lr_scheduler": settings}
