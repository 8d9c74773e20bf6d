"""The health of each step: what the miner found, how embeddings and gradients are, and what is wrong with them."""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lossopt.callbacks.guard import FiniteGuard, finite_rows, network_of
from lossopt.data.dataset import Batch
from lossopt.durable import write_text
from lossopt.errors import DataError, LossoptError
from lossopt.health import HEALTH, Bounds, Finding, HealthLog, Kind, Reading, Sign
from lossopt.modules.embedding import EmbeddingNetwork, StepRecord
from lossopt.modules.network import Step
from lossopt.retrieval.collapse import measure_shape
from lossopt.tracking import log_table

_LOOKED_AT = 512  # rows of a batch that distances, spread and rank are measured on: a collapse shows in any


class TrainingHealth(Callback):
    """Logs, every `trainer.log_every_n_steps` steps, what the miner found and how embeddings and gradients are.

    miner/tuples, miner/share_active (share with a loss above zero, where the loss tells), train/positive_distance and
    train/negative_distance (mean Euclidean distance over the batch's pairs), train/embedding_norm, train/spread,
    train/effective_rank, train/gradient_norm, train/images_per_second, train/images (seen so far), train/seconds (of
    training and its validations so far), train/learning_rate, train/loss; health/<kind>: 1 where a rule of
    `lossopt.health` speaks, else 0. Between those
    steps nothing is read from the device.

    Args:
        folder: where health.json is written; None: nowhere.
        say: told each finding, once, when it begins.
        bounds: of the rules; None: the usual ones.
    """

    def __init__(
        self,
        folder: Path | None = None,
        say: Callable[[str], None] = lambda line: None,
        bounds: Bounds | None = None,
    ) -> None:
        self.folder, self.say = folder, say
        self.history = HealthLog(bounds or Bounds())
        self.images = 0
        self.steps_without_tuples = 0
        self.steps = 0
        self._since, self._images_then = time.perf_counter(), 0
        self._seconds_before = 0.0
        self._began: float | None = None

    @property
    def seconds(self) -> float:
        """Spent in training and its validations so far; a run that was interrupted goes on from its checkpoint."""
        return self._seconds_before + (0.0 if self._began is None else time.perf_counter() - self._began)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock begins with training: the untrained network's validation is before it."""
        self._began = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Counters and findings that go on after a resume."""
        counts = {"images": self.images, "steps": self.steps, "steps_without_tuples": self.steps_without_tuples}
        return {**counts, "seconds": self.seconds, "log": self.history.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.images, self.steps = state_dict["images"], state_dict["steps"]
        self.steps_without_tuples = state_dict["steps_without_tuples"]
        self._seconds_before = state_dict.get("seconds", 0.0)
        if "log" in state_dict:  # not in checkpoints of earlier versions
            self.history.load_state_dict(state_dict["log"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock runs while training runs, not while validating."""
        self._since, self._images_then = time.perf_counter(), self.images

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Counts every step; measures, judges and logs at the logging steps."""
        network = network_of(pl_module)
        record = network.last_step
        if record is None:
            return
        self.steps += 1
        self.images += len(record.batch.ids) * trainer.world_size
        self.steps_without_tuples += isinstance(record, StepRecord) and record.tuples == 0
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.steps % every and self.steps > 1:
            return
        loss = outputs["loss"] if outputs else None
        if isinstance(record, StepRecord) and isinstance(network, EmbeddingNetwork):
            reading = self._reading(trainer, network, record, loss)
        else:
            reading = self._plain_reading(trainer, len(record.outputs), loss)
        begun, up = self.history.read(reading, None if isinstance(network, EmbeddingNetwork) else network.faults())
        flags = {f"health/{kind.replace(' ', '_')}": float(raised) for kind, raised in up.items()}
        values = self._figures(record, reading) | flags
        values["train/learning_rate"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        for logger in trainer.loggers:
            logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=trainer.global_step)
        self._tell(trainer, begun)

    def _reading(self, trainer: Trainer, network: EmbeddingNetwork, record: StepRecord, loss: Any) -> Reading:
        """Everything that is read from the device at a logging step."""
        loss_fn = network.loss_fn
        tuples = record.tuples if record.tuples is not None else getattr(loss_fn, "tuple_count", None)
        share = None if record.tuples == 0 else getattr(loss_fn, "share_active", None)
        rows = record.embeddings[:_LOOKED_AT]
        rows = rows[finite_rows(rows)]  # the guard names the others when the optimiser steps
        shape = measure_shape(rows.double().cpu().numpy(), len(record.labels[:_LOOKED_AT].unique()))
        return Reading(
            step=self.steps,
            idle_steps=self.steps_without_tuples,
            images=len(record.embeddings),
            loss=None if loss is None or record.tuples == 0 else float(loss),
            collapsed_loss=getattr(loss_fn, "collapsed_value", None),
            alike=shape.reasons,
            spread=shape.spread,
            effective_rank=shape.effective_rank,
            embedding_norm=float(torch.linalg.vector_norm(record.embeddings, dim=1).mean()),
            gradient_norm=_gradient_norm(trainer),
            tuples=None if tuples is None else float(tuples),
            mined=record.tuples is not None,
            share_active=None if share is None else float(share),
        )

    def _plain_reading(self, trainer: Trainer, images: int, loss: Any) -> Reading:
        """Of a network without embeddings to compare: its loss and gradient."""
        nothing: dict[str, Any] = {"spread": math.nan, "effective_rank": math.nan, "embedding_norm": None}
        return Reading(
            step=self.steps,
            idle_steps=0,
            images=images,
            loss=None if loss is None else float(loss),
            collapsed_loss=None,
            alike=(),
            gradient_norm=_gradient_norm(trainer),
            tuples=None,
            mined=False,
            share_active=None,
            **nothing,
        )

    def _figures(self, record: StepRecord | Step, reading: Reading) -> dict[str, float]:
        """The figures of a logging step by the keys they are logged under; those that are not known are left out."""
        now = time.perf_counter()
        rate = (self.images - self._images_then) / max(now - self._since, 1e-9)
        self._since, self._images_then = now, self.images
        known = {
            "train/loss": reading.loss,
            "train/gradient_norm": reading.gradient_norm,
            "miner/tuples": reading.tuples,
            "miner/share_active": reading.share_active,
        }
        if isinstance(record, StepRecord):
            positive, negative = mean_distances(record.embeddings[:_LOOKED_AT], record.labels[:_LOOKED_AT])
            known |= {"train/positive_distance": float(positive), "train/negative_distance": float(negative)}
            known |= {"train/embedding_norm": reading.embedding_norm, "train/spread": reading.spread}
            known["train/effective_rank"] = reading.effective_rank
        figures = {name: value for name, value in known.items() if value is not None}
        return {**figures, **self.progress(), "train/images_per_second": rate}

    def progress(self) -> dict[str, float]:
        """How far the run is, as it is logged with every figure that is to be drawn over images or seconds."""
        return {"train/images": float(self.images), "train/seconds": self.seconds}

    def note(self, trainer: Trainer, kind: Kind, sign: Sign) -> None:
        """Adds what somebody else has seen."""
        self._tell(trainer, self.history.add(kind, sign, self.steps))

    def _tell(self, trainer: Trainer, begun: Sequence[Finding]) -> None:
        for finding in begun:
            self.say(f"{'health':<11}{finding.text}")
        if begun:
            self.close(trainer)

    def close(self, trainer: Trainer) -> list[str]:
        """Writes health.json and the table of W&B; the findings in words."""
        if trainer.is_global_zero:
            if self.folder is not None:
                write_text(self.folder / HEALTH, json.dumps(self.history.as_json(), indent=2) + "\n")
            found = self.history.findings.values()
            columns = ("kind", "first step", "last step", "logged steps", "what", "try first")
            rows = [(f.kind, f.first_step, f.last_step, f.steps, f.what, f.try_first) for f in found]
            log_table(trainer.loggers, "health/findings", columns, rows, trainer.global_step)
        return [finding.text for finding in self.history.findings.values()]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch in which no batch gave the loss anything is no training."""
        self._tell(trainer, self.history.after_epoch(self.steps, self.steps_without_tuples))
        if self.steps and self.steps_without_tuples == self.steps:
            raise DataError(
                f"In all {self.steps} steps the miner found nothing to compare, so nothing was learned. Batches need "
                "two images of a class and a second class: raise images_per_class and classes_per_batch, or take "
                "another miner or a larger margin."
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A run that stops leaves its findings, too; what stopped it is not hidden by a failure to write them."""
        with suppress(LossoptError):
            self.close(trainer)


def _gradient_norm(trainer: Trainer) -> float | None:
    """Of the last optimiser step, as the guard measured it."""
    guard = next((c for c in trainer.callbacks if isinstance(c, FiniteGuard)), None)  # type: ignore[attr-defined]
    return None if guard is None or guard.gradient_norm is None else float(guard.gradient_norm)


def mean_distances(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean Euclidean distance of the (n, d) embeddings over pairs of one class, and over pairs of two; NaN if none."""
    distances = torch.cdist(embeddings, embeddings)
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return distances[same & ~itself].mean(), distances[~same].mean()
