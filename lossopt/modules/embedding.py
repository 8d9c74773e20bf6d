"""What Siamese and triplet networks share: encoder -> embeddings -> miner -> indices -> loss. Wiring only.

Letters: b images of this process's batch, n images of all processes' batches, d embedding.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lossopt.data.dataset import Batch
from lossopt.errors import ConfigError
from lossopt.losses.memory import CrossBatchMemory
from lossopt.miners.agreement import check_agreement, needs_positives
from lossopt.miners.in_batch import InBatchMiner
from lossopt.modules.chunks import embed_in_chunks
from lossopt.modules.gather import WholeBatch, check_equal_batches, gather_batch, process_count
from lossopt.modules.network import TrainedNetwork


class StepRecord(NamedTuple):
    """What the last training step compared, kept for those who watch it (see callbacks.py).

    batch: the images of this process. embeddings: (n, d), detached, with labels and ids, (n,): what the loss saw, the
    batches of all processes in the order of their ranks. own: row at which those of `batch` begin.
    tuples: how many the miner found; None without a miner.
    """

    batch: Batch
    embeddings: Tensor
    labels: Tensor
    ids: Tensor
    own: int
    tuples: int | None

    @property
    def outputs(self) -> Tensor:
        """What the loss saw: the embeddings."""
        return self.embeddings


class EmbeddingNetwork(TrainedNetwork):
    """One encoder with shared weights for every image of a batch; the loss compares its embeddings.

    Args:
        encoder: (b, c, h, w) float images in [0, 1] to (b, d) embeddings.
        loss_fn: called as loss_fn(embeddings, labels, indices); its own weights, if any, are trained along.
        miner: called as miner(embeddings, labels); None: the loss compares everything in the batch.
        optimizer, lr_scheduler: as for `TrainedNetwork`.
        channels_last: memory layout of the convolutions; faster on CPUs and on tensor cores, same numbers.
        chunk_size: training embeds so many images at a time and needs the memory of so many, whatever the batch size
            (see `embed_in_chunks`); a third more work. None: all at once. Gradients are those of the whole batch.
            Batch norm is the exception: it normalises each chunk by itself and updates its running statistics once per
            chunk, as in ghost batch norm, so chunks of 32 or more are wise with it.

    Several processes: miner and loss see the batches of all of them, on each of them, so that loss and gradient are
    those of one process with the whole batch (batch norm stays with each process).

    Raises:
        ConfigError: the miner or the loss returns or needs the other kind of tuples; the valid ones are named. A
            chunk_size below 1. A miner beside a `CrossBatchMemory`, which has its own.
    """

    compares: ClassVar[Literal["pairs", "triplets"]]

    def __init__(
        self,
        encoder: nn.Module,
        loss_fn: nn.Module,
        miner: nn.Module | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        channels_last: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        check_agreement(type(self).__name__, self.compares, loss_fn, miner)
        if chunk_size is not None and chunk_size < 1:
            raise ConfigError(
                f"chunk_size is {chunk_size}; give the number of images, 1 or more, that are embedded at a time, or "
                "leave it out to embed the batch at once."
            )
        if miner is not None and isinstance(loss_fn, CrossBatchMemory):
            raise ConfigError(
                f"CrossBatchMemory compares the batch with itself and its memory, but the miner {type(miner).__name__} "
                "would see the batch alone. Move it to loss_fn.init_args.miner."
            )
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.encoder = encoder.to(memory_format=layout)
        self.layout = layout
        self.loss_fn, self.miner, self.chunk_size = loss_fn, miner, chunk_size
        self.last_step: StepRecord | None = None

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, c, h, w) float in [0, 1]. Returns (b, d) float32, or float64 from a network of that type."""
        embeddings: Tensor = self.encoder(images.to(self.dtype, memory_format=self.layout))
        return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))

    @property
    def embedder(self) -> nn.Module:
        """The network itself."""
        return self

    @property
    def needs_positives(self) -> bool:
        """Whether training is idle on batches in which no class has two images."""
        return needs_positives(self.loss_fn)

    @property
    def needs_groups(self) -> bool:
        """Whether the miner chooses by the images' groups, so that the data must have them."""
        return isinstance(self.miner, InBatchMiner) and self.miner.needs_groups

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """One batch to one loss; None, which makes no step, when the miner found nothing to compare.

        With several processes it is then a loss of 0 with a gradient of 0, for Lightning allows no None there.
        """
        check_equal_batches(len(batch.labels), batch.images.device)
        whole = gather_batch(embed_in_chunks(self, self.encoder, batch.images, self.chunk_size), batch)
        with torch.autocast(whole.embeddings.device.type, enabled=False):  # distances and losses stay in float32
            indices = None if self.miner is None else self._mine(self.miner, whole)
            tuples = None if indices is None else max(len(column) for column in indices)
            loss = None if tuples == 0 else self.loss_fn(whole.embeddings, whole.labels, indices)
        self.last_step = StepRecord(batch, whole.embeddings.detach(), whole.labels, whole.ids, whole.own, tuples)
        return (whole.embeddings * 0).sum() if loss is None and process_count() > 1 else loss

    def _mine(self, miner: nn.Module, whole: WholeBatch) -> Sequence[Tensor]:
        if not self.needs_groups:
            return miner(whole.embeddings, whole.labels)
        if whole.groups is None:
            raise ConfigError(
                f"The miner {type(miner).__name__} chooses by group (shelf, alphabet, camera), but the training data "
                "has no groups. Give the data a group column, or leave out the miner's rule for groups."
            )
        return miner(whole.embeddings, whole.labels, groups=whole.groups)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(b, d) embeddings, in float32 also under mixed precision: `lossopt evaluate` finds the same numbers."""
        with torch.autocast(batch.images.device.type, enabled=False):
            return self(batch.images)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """(b, d) embeddings, as in validation."""
        return self.validation_step(batch, batch_idx)
