"""The scores of every validation: retrieval for embeddings, their own for networks that score themselves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lossopt.callbacks.health import TrainingHealth
from lossopt.data.dataset import Batch, LabelledImages
from lossopt.health import Sign
from lossopt.modules.network import ImageNetwork
from lossopt.retrieval.evaluation import KS
from lossopt.retrieval.index import Distance
from lossopt.retrieval.task import Exclusion
from lossopt.retrieval.text import as_line
from lossopt.tables import evaluate_table


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
        health: TrainingHealth | None = None,
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

    def __init__(self, say: Callable[[str], None], health: TrainingHealth) -> None:
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


def epochs_done(trainer: Trainer) -> int:
    """0 before training, 1 after the first epoch (also while its validation runs)."""
    return trainer.current_epoch + 1 if trainer.state.fn == "fit" else trainer.current_epoch
