"""The guard in front of the weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lossopt.data.dataset import Batch
from lossopt.durable import write_text
from lossopt.errors import NonFiniteError
from lossopt.health import Sign
from lossopt.modules.embedding import EmbeddingNetwork, StepRecord
from lossopt.modules.gather import all_rows
from lossopt.modules.network import ImageNetwork, Step

if TYPE_CHECKING:
    from lossopt.callbacks.health import TrainingHealth


def network_of(pl_module: LightningModule) -> EmbeddingNetwork | ImageNetwork:
    """A network that keeps its last step. Raises: TypeError: it is none of lossopt.modules."""
    if not isinstance(pl_module, EmbeddingNetwork | ImageNetwork):
        raise TypeError(f"These callbacks watch networks of lossopt.modules, not {type(pl_module).__name__}.")
    return pl_module


def finite_rows(values: Tensor) -> Tensor:
    """(n,) bool, of (n, ...)."""
    return torch.isfinite(values.flatten(1)).all(dim=1)


class FiniteGuard(Callback):
    """Looks at loss and gradient before the optimiser steps: a NaN or an infinity never reaches a weight.

    The batch's image names go to `nonfinite_batch.txt` in the run folder. The look costs one read from the device per
    step, the price of stopping in time. With a gradient scaler ("16-mixed"), whose job is to skip overflowing steps,
    only the embeddings are looked at. So they are where a miner leaves the loss nothing, as it may for NaN embeddings.

    Args:
        folder: where the batch's names are written.
        health: keeps the finding.
    """

    def __init__(self, folder: Path, health: "TrainingHealth | None" = None) -> None:
        self.folder, self.health = folder, health
        self.gradient_norm: Tensor | None = None
        self._loss: Tensor | None = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keeps the loss: it may be NaN with a gradient that is finite."""
        self._loss = loss.detach()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Raises NonFiniteError instead of letting the step happen."""
        groups = optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        self.gradient_norm = torch.nn.utils.get_total_norm(gradients)
        record = network_of(pl_module).last_step
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        watched = self.gradient_norm if not scaled or record is None else record.outputs.sum()
        if self._loss is not None and not scaled:  # one read from the device for both
            watched = watched + self._loss * 0
        if record is not None and not bool(torch.isfinite(watched)):
            self._stop(trainer, pl_module, record)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Looks at a batch that made no step."""
        record = network_of(pl_module).last_step
        if not outputs and record is not None and not bool(torch.isfinite(record.outputs.sum())):
            self._stop(trainer, pl_module, record)

    def _stop(self, trainer: Trainer, pl_module: LightningModule, record: StepRecord | Step) -> None:
        ids = record.ids.tolist()
        names = trainer.datamodule.training_table().names  # type: ignore[attr-defined]
        path = self.folder / "nonfinite_batch.txt"
        if trainer.is_global_zero:
            write_text(path, "\n".join(f"{row}\t{names[row]}" for row in ids) + "\n")
        # The images first, for batch norm spreads one bad image over all embeddings.
        images = all_rows(finite_rows(record.batch.images).int())
        where, bad = "what the loss saw is finite, so the loss or its gradient overflowed", []
        for finite, verb in ((images, "hold a NaN or an infinity"), (finite_rows(record.outputs), "become NaN")):
            bad = [names[row] for row, fine in zip(ids, finite.flatten().tolist(), strict=True) if not fine]
            if bad:
                where = f"{len(bad)} of {len(ids)} images {verb}, first {', '.join(bad[:5])}"
                break
        if self.health is not None:
            sign = Sign({"images": float(len(bad))}, f"the gradient is not finite ({where})")
            self.health.history.add(
                "non-finite", sign, self.health.steps + 1
            )  # said by the error; written as it passes
        raise NonFiniteError(
            f"Step {trainer.global_step + 1}: the gradient is not finite ({where}). The optimiser did not step; the "
            f"weights are intact. The batch is listed in {path}. Look at those images, or lower the learning rate."
        )
