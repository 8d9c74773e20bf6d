"""What watches a run: retrieval at every validation, the health of each step, and the guard in front of the weights."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from torch import Tensor

from lossopt.data.dataset import Batch, LabelledImages
from lossopt.errors import DataError, NonFiniteError
from lossopt.modules.embedding import EmbeddingNetwork
from lossopt.retrieval.evaluation import KS, RetrievalResult, evaluate_vectors
from lossopt.retrieval.index import Distance
from lossopt.retrieval.task import Exclusion
from lossopt.retrieval.text import as_line
from lossopt.retrieval.vectors import Rows


class RetrievalAtValidation(Callback):
    """Embeds the validation classes and ranks each among the others; logs `val/recall@k`, `val/map@r` and their kin.

    Args:
        ks: cut-offs of recall@k.
        distance: "euclidean" or "cosine".
        exclude: what a query may not find because it shares its group.
        say: told a line of figures after every validation.
    """

    def __init__(
        self,
        ks: Sequence[int] = KS,
        distance: Distance = "euclidean",
        exclude: Exclusion = "none",
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.ks, self.distance, self.exclude, self.say = tuple(ks), distance, exclude, say
        self._parts: list[Tensor] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the embeddings of an earlier validation."""
        self._parts = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the embeddings where they are; they move to the CPU once, at the end."""
        self._parts.append(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures, and logs under the keys that reports and checkpoints use."""
        if trainer.sanity_checking or not self._parts:
            return
        table: LabelledImages = trainer.datamodule.splits.validation  # type: ignore[attr-defined]
        embeddings = torch.cat(self._parts).float().cpu().numpy()
        self._parts = []
        if len(embeddings) < len(table):  # limit_val_batches, fast_dev_run: a part of the table
            table = table.select(torch.arange(len(embeddings)))
        found = evaluate_table(embeddings, table, self.ks, self.distance, self.exclude)
        logged = {f"val/{name}": value for name, value in found.metrics.items()}
        logged |= {"val/effective_rank": found.collapse.effective_rank, "val/spread": found.collapse.spread}
        epoch = epochs_done(trainer)
        self.say(f"{f'epoch {epoch}' if epoch else 'untrained':<11}{as_line(logged)}")
        pl_module.log_dict(logged, logger=False, sync_dist=False)  # for checkpoints and other callbacks
        for logger in trainer.loggers:
            logger.log_metrics({**logged, "epoch": float(epoch)}, step=trainer.global_step)


def evaluate_table(
    embeddings: np.ndarray,
    table: LabelledImages,
    ks: Sequence[int] = KS,
    distance: Distance = "euclidean",
    exclude: Exclusion = "none",
) -> RetrievalResult:
    """`evaluate_vectors` of a table's embeddings: the numbers that its embeddings folder gives."""
    return evaluate_vectors(rows_of(table).with_vectors(embeddings, {}), ks, distance, exclude)


def rows_of(table: LabelledImages) -> Rows:
    """All that is known of a table's images besides their pixels."""
    return Rows(
        labels=table.labels.numpy(),
        class_names=table.class_names,
        names=table.names,
        paths=table.paths(),
        groups=None if table.groups is None else table.groups.numpy(),
        group_names=table.group_names,
        query=None if table.query is None else table.query.numpy(),
        gallery=None if table.gallery is None else table.gallery.numpy(),
    )


def epochs_done(trainer: Trainer) -> int:
    """0 before training, 1 after the first epoch (also while its validation runs)."""
    return trainer.current_epoch + 1 if trainer.state.fn == "fit" else trainer.current_epoch


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, redrawn every tenth step and without the loggers' version number."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class TrainingHealth(Callback):
    """Logs, every `trainer.log_every_n_steps` steps, what the miner found and how the embeddings and gradients are.

    miner/tuples, miner/share_active (share with a loss above zero, where the loss tells), train/positive_distance and
    train/negative_distance (mean Euclidean distance over the batch's pairs), train/embedding_norm, train/gradient_norm,
    train/images_per_second, train/images (seen so far), train/learning_rate, train/loss. Between those steps nothing is
    read from the device.
    """

    def __init__(self) -> None:
        self.images = 0
        self.steps_without_tuples = 0
        self.steps = 0
        self._since, self._images_then = time.perf_counter(), 0

    def state_dict(self) -> dict[str, Any]:
        """Counters that go on after a resume."""
        return {"images": self.images, "steps": self.steps, "steps_without_tuples": self.steps_without_tuples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.images, self.steps = state_dict["images"], state_dict["steps"]
        self.steps_without_tuples = state_dict["steps_without_tuples"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock runs while training runs, not while validating."""
        self._since, self._images_then = time.perf_counter(), self.images

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Counts every step; measures and logs at the logging steps."""
        network = _network(pl_module)
        record = network.last_step
        if record is None:
            return
        self.steps += 1
        self.images += len(record.batch.ids) * trainer.world_size
        self.steps_without_tuples += record.tuples == 0
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not outputs or (self.steps % every and self.steps > 1):
            return
        now = time.perf_counter()
        positive, negative = mean_distances(record.embeddings, record.batch.labels)
        logged: dict[str, Any] = {
            "train/loss": outputs["loss"],
            "train/positive_distance": positive,
            "train/negative_distance": negative,
            "train/embedding_norm": torch.linalg.vector_norm(record.embeddings, dim=1).mean(),
            "train/images": float(self.images),
            "train/images_per_second": (self.images - self._images_then) / max(now - self._since, 1e-9),
            "train/learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
        }
        if (guard := next((c for c in trainer.callbacks if isinstance(c, FiniteGuard)), None)) is not None:  # type: ignore[attr-defined]
            logged["train/gradient_norm"] = guard.gradient_norm
        tuples = record.tuples if record.tuples is not None else getattr(network.loss_fn, "tuple_count", None)
        if tuples is not None:
            logged["miner/tuples"] = float(tuples)
        if (share := getattr(network.loss_fn, "share_active", None)) is not None:
            logged["miner/share_active"] = share
        self._since, self._images_then = now, self.images
        values = {name: float(value) for name, value in logged.items()}
        for logger in trainer.loggers:
            logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch in which no batch gave the loss anything is no training."""
        if self.steps and self.steps_without_tuples == self.steps:
            raise DataError(
                f"In all {self.steps} steps the miner found nothing to compare, so nothing was learned. Batches need "
                "two images of a class and a second class: raise images_per_class and classes_per_batch, or take "
                "another miner or a larger margin."
            )

    def summary(self) -> str | None:
        """One line if more than a tenth of the steps had nothing to compare."""
        share = self.steps_without_tuples / max(1, self.steps)
        if share <= 0.1:
            return None
        return (
            f"{share:.0%} of the steps had nothing to compare ({self.steps_without_tuples} of {self.steps}): the miner "
            "is dead much of the time. Try a larger margin, more classes per batch, or an easier miner."
        )


def _network(pl_module: LightningModule) -> EmbeddingNetwork:
    if not isinstance(pl_module, EmbeddingNetwork):
        raise TypeError(f"These callbacks watch a SiameseNetwork or a TripletNetwork, not {type(pl_module).__name__}.")
    return pl_module


def mean_distances(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean Euclidean distance of the (n, d) embeddings over pairs of one class, and over pairs of two; NaN if none."""
    distances = torch.cdist(embeddings, embeddings)
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return distances[same & ~itself].mean(), distances[~same].mean()


def _first_bad(images: Tensor, embeddings: Tensor, ids: list[int]) -> list[int]:
    """Ids of the rows where it begins: the images, for batch norm spreads one bad image over all embeddings."""
    for stage in (images, embeddings):
        finite = torch.isfinite(stage.flatten(1)).all(dim=1).tolist()
        if not all(finite):
            return [row for row, fine in zip(ids, finite, strict=True) if not fine]
    return []


class FiniteGuard(Callback):
    """Looks at loss and gradient before the optimiser steps: a NaN or an infinity never reaches a weight.

    The batch's image names go to `nonfinite_batch.txt` in the run folder. The look costs one read from the device per
    step, the price of stopping in time. With a gradient scaler ("16-mixed"), whose job is to skip overflowing steps,
    only the embeddings are looked at.

    Args:
        folder: where the batch's names are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gradient_norm: Tensor | float = 0.0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Raises NonFiniteError instead of letting the step happen."""
        groups = optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        self.gradient_norm = torch.nn.utils.get_total_norm(gradients)
        record = _network(pl_module).last_step
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        watched = self.gradient_norm if not scaled or record is None else record.embeddings.sum()
        if bool(torch.isfinite(watched)) or record is None:
            return
        ids = record.batch.ids.tolist()
        names = trainer.datamodule.training_table().names  # type: ignore[attr-defined]
        path = self.folder / "nonfinite_batch.txt"
        path.write_text("\n".join(f"{row}\t{names[row]}" for row in ids) + "\n", encoding="utf-8")
        bad = [names[row] for row in _first_bad(record.batch.images, record.embeddings, ids)]
        where = "the embeddings are finite, so the loss or its gradient overflowed"
        if bad:
            where = f"{len(bad)} images of the batch are or become NaN or infinite, first {', '.join(bad[:5])}"
        raise NonFiniteError(
            f"Step {trainer.global_step + 1}: the gradient is not finite ({where}). The optimiser did not step; the "
            f"weights are intact. The batch is listed in {path}. Look at those images, or lower the learning rate."
        )
