"""Whole-set mining while a run trains: its images are embedded again, and later batches follow what is found."""

import time
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from lossopt.callbacks import TrainingHealth
from lossopt.data.dataset import Batch, LabelledImages
from lossopt.data.module import RetrievalData, to_float
from lossopt.errors import NonFiniteError
from lossopt.health import Sign
from lossopt.miners.whole_set import HardNegatives, WholeSetMining
from lossopt.retrieval.embeddings import embed
from lossopt.samplers import Lookalikes


class MiningRefresh(Callback):
    """Mines the training set as `RetrievalData.mining` says, between two steps, and tells the sampler.

    The first process embeds and mines, in evaluation mode and in the trainer's precision, and sends the others what it
    found: their batch norm statistics, and so their embeddings, could differ. Training is not touched: no random number
    is drawn from its generators, no statistic moves. Batches that loaders may have asked for already stay as they are
    (`PKSampler.takes_effect`), so that zero to eight workers give the same bits. What was found last is part of every
    checkpoint: a run that is resumed after an epoch goes on with it.

    Logs mining/seconds, mining/images_embedded (in all; the cost beside train/images), mining/candidates and, of those,
    mining/dropped_out_of_range, mining/dropped_absolute and mining/dropped_relative (`Dropped`),
    mining/mean_negative_distance and mining/mean_positive_distance.

    Args:
        mining: what to mine, and when.
    """

    def __init__(self, mining: WholeSetMining) -> None:
        self.mining = mining
        self.lookalikes: Lookalikes | None = None
        self.images_embedded = 0

    def state_dict(self) -> dict[str, Any]:
        """What was found last, and the cost so far."""
        state: dict[str, Any] = {"images_embedded": self.images_embedded}
        if self.lookalikes is not None:
            anchor, negative, since = self.lookalikes
            state |= {"anchor": torch.from_numpy(anchor), "negative": torch.from_numpy(negative), "since": since}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.images_embedded = state_dict["images_embedded"]
        if "anchor" in state_dict:
            anchor, negative = state_dict["anchor"].numpy(), state_dict["negative"].numpy()
            self.lookalikes = Lookalikes(anchor, negative, state_dict["since"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resume: before a loader asks for the first batch."""
        if self.lookalikes is not None:
            _data(trainer).sampler.use(self.lookalikes)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Mines if it is time."""
        data = _data(trainer)
        done = trainer.current_epoch * len(data.sampler) + batch_idx + 1
        every, warmup = self.mining.every_n_steps, self.mining.warmup_steps
        last = batch_idx + 1 == trainer.num_training_batches
        if done < warmup or (not last if every is None else (done - warmup) % every):
            return
        empty = np.empty(0, dtype=np.int64), np.empty((0, self.mining.window), dtype=np.int64)
        found = self._mine(trainer, pl_module, data, done) if trainer.is_global_zero else empty
        anchor, negative = trainer.strategy.broadcast(found)
        self.lookalikes = Lookalikes(anchor, negative, data.sampler.takes_effect(trainer.current_epoch, batch_idx))
        data.sampler.use(self.lookalikes)

    def _mine(
        self, trainer: Trainer, network: nn.Module, data: RetrievalData, done: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Anchors and negatives, as rows of the training table; logged."""
        began = time.perf_counter()
        table = data.training_table()
        rng = np.random.default_rng([data.seed or 0, done, 0, 0, 1])  # five numbers: no other stream has so many
        sample = len(table) if self.mining.sample is None else min(self.mining.sample, len(table))
        rows = np.sort(rng.choice(len(table), sample, replace=False)) if sample < len(table) else np.arange(len(table))
        with trainer.precision_plugin.forward_context():
            vectors = _embedded(network, data, table, rows)
        labels = table.labels.numpy()[rows]
        groups = None if table.groups is None else table.groups.numpy()[rows]
        found = self.mining.mine(vectors, labels, groups, seed=int(rng.integers(2**62)))
        self.images_embedded += len(rows)
        logged = _figures(found) | {"mining/images_embedded": float(self.images_embedded)}
        logged |= {"mining/seconds": time.perf_counter() - began, "epoch": float(trainer.current_epoch)}
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=trainer.global_step)
        _say_if_empty(trainer, found)
        return rows[found.anchor], np.where(found.negative >= 0, rows[found.negative], -1)


def _say_if_empty(trainer: Trainer, found: HardNegatives) -> None:
    """Batches without a mined class are batches without mining: that belongs to the health of the run."""
    health = next((c for c in trainer.callbacks if isinstance(c, TrainingHealth)), None)  # type: ignore[attr-defined]
    if health is None or (found.negative >= 0).any():
        return
    dropped = found.dropped
    sign = Sign(
        {"candidates": dropped.candidates},
        f"mining is dead: of {dropped.candidates:,} negatives from the whole set none was left (out of "
        f"range {dropped.out_of_range:,}, within the absolute margin {dropped.absolute:,}, "
        f"the relative {dropped.relative:,})",
        "a smaller min_distance or margin of the mining, or none",
    )
    health.note(trainer, "dead mining", sign)


def _data(trainer: Trainer) -> RetrievalData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, RetrievalData):
        raise TypeError(f"Whole-set mining is of RetrievalData, not {type(data).__name__}.")
    return data


def _embedded(network: nn.Module, data: RetrievalData, table: LabelledImages, rows: np.ndarray) -> np.ndarray:
    """(r, d) float32 embeddings of some rows; every part of the network is in its own mode again afterwards.

    Raises:
        NonFiniteError: some are NaN or infinite; named.
    """
    modes = [(module, module.training) for module in network.modules()]
    device = next(network.parameters()).device
    try:
        batches = (to_float(batch.images) for batch in data.pass_over(table, rows))
        vectors = embed(network, batches, len(rows), device, "mining")
    finally:
        for module, training in modes:
            module.training = training
    bad = rows[~np.isfinite(vectors).all(axis=1)]
    if len(bad):
        raise NonFiniteError(
            f"{len(bad):,} of {len(rows):,} training images have a NaN or infinite embedding, so nothing can be mined: "
            f"{', '.join(table.names[row] for row in bad[:10])}. Look at these images, or lower the learning rate."
        )
    return vectors


def _figures(found: HardNegatives) -> dict[str, float]:
    """What is logged of a refresh; means of nothing are left out."""
    logged = {
        "mining/candidates": float(found.dropped.candidates),
        "mining/dropped_out_of_range": float(found.dropped.out_of_range),
        "mining/dropped_absolute": float(found.dropped.absolute),
        "mining/dropped_relative": float(found.dropped.relative),
    }
    kept = found.negative_distance[found.negative >= 0]
    for name, distances in (("positive", found.positive_distance), ("negative", kept)):
        if len(distances):
            logged[f"mining/mean_{name}_distance"] = float(distances.mean())
    return logged
