"""What watches a run: retrieval at every validation, the health of each step, and the guard in front of the weights."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from torch import Tensor

from lossopt.data.dataset import Batch, LabelledImages
from lossopt.durable import write_text
from lossopt.errors import DataError, LossoptError, NonFiniteError
from lossopt.health import HEALTH, Bounds, Finding, HealthLog, Kind, Reading, Sign
from lossopt.modules.embedding import EmbeddingNetwork, StepRecord
from lossopt.modules.gather import all_rows
from lossopt.modules.network import ImageNetwork, Step
from lossopt.retrieval.collapse import measure_shape
from lossopt.retrieval.evaluation import KS, RetrievalResult, evaluate_vectors
from lossopt.retrieval.index import Distance
from lossopt.retrieval.task import Exclusion
from lossopt.retrieval.text import as_line
from lossopt.retrieval.vectors import Rows
from lossopt.tracking import log_table

_LOOKED_AT = 512  # rows of a batch that distances, spread and rank are measured on: a collapse shows in any


class RetrievalAtValidation(Callback):
    """Embeds the validation classes and ranks each among the others; logs `val/recall@k`, `val/map@r` and their kin.

    Args:
        ks: cut-offs of recall@k.
        distance: "euclidean" or "cosine".
        exclude: what a query may not find because it shares its group.
        say: told a line of figures after every validation.
        health: told when the embeddings of a trained network have collapsed.
    """

    def __init__(
        self,
        ks: Sequence[int] = KS,
        distance: Distance = "euclidean",
        exclude: Exclusion = "none",
        say: Callable[[str], None] = lambda line: None,
        health: "TrainingHealth | None" = None,
    ) -> None:
        self.ks, self.distance, self.exclude, self.say = tuple(ks), distance, exclude, say
        self.health = health
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
        """Measures, and logs under the keys that reports and checkpoints use.

        With several processes the first one measures for all: their batch norms differ, and a schedule or an early stop
        that looks at a figure must see the same one everywhere.
        """
        parts, self._parts = self._parts, []
        if trainer.sanity_checking or not parts:
            return
        logged = trainer.strategy.broadcast(self._measured(trainer, parts) if trainer.is_global_zero else {})
        epoch = epochs_done(trainer)
        self.say(f"{f'epoch {epoch}' if epoch else 'untrained':<11}{as_line(logged)}")
        pl_module.log_dict(logged, logger=False, sync_dist=False)  # for checkpoints and other callbacks
        for logger in trainer.loggers:
            so_far = {} if self.health is None else self.health.progress()
            logger.log_metrics({**logged, **so_far, "epoch": float(epoch)}, step=trainer.global_step)

    def _measured(self, trainer: Trainer, parts: list[Tensor]) -> dict[str, float]:
        table: LabelledImages = trainer.datamodule.splits.validation  # type: ignore[attr-defined]
        embeddings = torch.cat(parts).float().cpu().numpy()
        if len(embeddings) < len(table):  # limit_val_batches, fast_dev_run: a part of the table
            table = table.select(torch.arange(len(embeddings)))
        found = evaluate_table(embeddings, table, self.ks, self.distance, self.exclude)
        if epochs_done(trainer) and self.health is not None and found.collapse.collapsed:
            numbers = {"spread": found.collapse.spread, "effective_rank": found.collapse.effective_rank}
            reasons = "; ".join(found.collapse.reasons)
            words = f"the embeddings of the validation split have collapsed: {reasons}"
            self.health.note(trainer, "collapse", Sign(numbers, words))
        logged = {f"val/{name}": value for name, value in found.metrics.items()}
        return logged | {"val/effective_rank": found.collapse.effective_rank, "val/spread": found.collapse.spread}


class ScoresAtValidation(Callback):
    """Passes on what a network that scores itself logged as `val/...`: to the loggers, and in words.

    Args:
        say: told a line of figures after every validation.
        health: knows how far the run is.
    """

    def __init__(self, say: Callable[[str], None], health: "TrainingHealth") -> None:
        self.say, self.health = say, health

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """By now the means over the split are known."""
        if trainer.sanity_checking or not isinstance(pl_module, ImageNetwork):
            return
        scores = scores_of(trainer, "val/", pl_module.metrics)
        epoch = epochs_done(trainer)
        self.say(f"{f'epoch {epoch}' if epoch else 'untrained':<11}{scores_line(scores)}")
        for logger in trainer.loggers:
            logger.log_metrics({**scores, **self.health.progress(), "epoch": float(epoch)}, step=trainer.global_step)


def scores_of(trainer: Trainer, prefix: str, metrics: Sequence[str]) -> dict[str, float]:
    """What a network logged under its own metrics, in their order."""
    logged = trainer.callback_metrics
    return {prefix + name: float(logged[prefix + name]) for name in metrics if prefix + name in logged}


def scores_line(scores: Mapping[str, float]) -> str:
    """The figures of a network that scores itself, in a line."""
    return "  ".join(f"{key.partition('/')[2]} {value:.4g}" for key, value in scores.items())


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
        network = _network(pl_module)
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
        rows = rows[_finite_rows(rows)]  # the guard names the others when the optimiser steps
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


def _network(pl_module: LightningModule) -> EmbeddingNetwork | ImageNetwork:
    if not isinstance(pl_module, EmbeddingNetwork | ImageNetwork):
        raise TypeError(f"These callbacks watch networks of lossopt.modules, not {type(pl_module).__name__}.")
    return pl_module


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


def _finite_rows(values: Tensor) -> Tensor:
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

    def __init__(self, folder: Path, health: TrainingHealth | None = None) -> None:
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
        record = _network(pl_module).last_step
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
        record = _network(pl_module).last_step
        if not outputs and record is not None and not bool(torch.isfinite(record.outputs.sum())):
            self._stop(trainer, pl_module, record)

    def _stop(self, trainer: Trainer, pl_module: LightningModule, record: StepRecord | Step) -> None:
        ids = record.ids.tolist()
        names = trainer.datamodule.training_table().names  # type: ignore[attr-defined]
        path = self.folder / "nonfinite_batch.txt"
        if trainer.is_global_zero:
            write_text(path, "\n".join(f"{row}\t{names[row]}" for row in ids) + "\n")
        # The images first, for batch norm spreads one bad image over all embeddings.
        images = all_rows(_finite_rows(record.batch.images).int())
        where, bad = "what the loss saw is finite, so the loss or its gradient overflowed", []
        for finite, verb in ((images, "hold a NaN or an infinity"), (_finite_rows(record.outputs), "become NaN")):
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
