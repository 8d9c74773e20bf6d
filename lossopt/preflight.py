"""What must hold before any work starts: each check names the key, what was given, what is allowed, what to do next."""

import sys
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from pytorch_lightning.callbacks import ProgressBar as AnyProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lossopt.callbacks import ProgressBar
from lossopt.data.module import RetrievalData, to_float
from lossopt.data.shuffled import ShuffledData
from lossopt.errors import ConfigError
from lossopt.losses.memory import CrossBatchMemory
from lossopt.modules.embedding import EmbeddingNetwork
from lossopt.modules.network import ImageNetwork, TrainedNetwork
from lossopt.processes import check_strategy
from lossopt.retrieval.counting import relevant_and_candidates
from lossopt.retrieval.index import NeighbourIndex
from lossopt.retrieval.task import make_task
from lossopt.tables import rows_of


def check_settings(made: Namespace) -> pl.Trainer:
    """What the parts of a configuration ask of each other; reads no data.

    Args:
        made: the instantiated configuration.

    Returns:
        A trainer with the run's settings, but no run: it knows how many processes there are and which one this is.

    Raises:
        ConfigError: they cannot work together.
    """
    model, data = made.model, made.data
    if isinstance(model, EmbeddingNetwork) and isinstance(data, RetrievalData):
        _check_retrieval(made)
    elif isinstance(model, ImageNetwork) and isinstance(data, ShuffledData):
        _check_monitor(made.checkpoint.monitor, [f"val/{name}" for name in model.metrics])
    else:
        raise ConfigError(
            "`lossopt train` trains a SiameseNetwork or a TripletNetwork on RetrievalData, and an Autoencoder or a "
            f"MultitaskNetwork on ShuffledData; got {type(model).__name__} on {type(data).__name__}."
        )
    _check_optimizer(model)
    return _check_trainer(made)


def _check_optimizer(model: TrainedNetwork) -> None:
    try:
        groups = model.make_optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups
    except ValueError as refused:
        raise ConfigError(f"The optimiser refuses its arguments: {refused}.") from refused
    for group in groups:
        if not 0 < group["lr"] < float("inf"):
            raise ConfigError(f"The learning rate is {group['lr']}; it must be a positive number.")


def _check_retrieval(made: Namespace) -> None:
    model, data, ks = made.model, made.data, made.retrieval.ks
    if data.images_per_class < 2 and model.needs_positives:
        raise ConfigError(
            f"images_per_class is {data.images_per_class}, but {type(model.loss_fn).__name__} needs positives: two or "
            "more images of a class in a batch. Set data.init_args.images_per_class to 2 or more."
        )
    if not ks or min(ks) < 1:
        raise ConfigError(f"retrieval.ks is {ks}; give one or more whole numbers of at least 1.")
    logged = [*(f"val/recall@{k}" for k in ks), "val/map@r", "val/effective_rank", "val/spread"]
    _check_monitor(made.checkpoint.monitor, logged)


def _check_monitor(monitor: str, logged: list[str]) -> None:
    if monitor not in logged:
        raise ConfigError(f"checkpoint.monitor is {monitor!r}; a validation logs {', '.join(logged)}.")


def _check_trainer(made: Namespace) -> pl.Trainer:
    settings = made.trainer
    if settings.max_epochs is not None and settings.max_epochs < 1 and settings.max_epochs != -1:
        raise ConfigError(
            f"trainer.max_epochs is {settings.max_epochs}; it must be 1 or more, or -1 for another limit."
        )
    for name in ("limit_train_batches", "limit_val_batches"):
        if getattr(settings, name) == 0:
            raise ConfigError(f"trainer.{name} is 0; a run needs batches to train on and images to validate on.")
    try:
        trainer = pl.Trainer(**trainer_settings(made), logger=False, enable_checkpointing=False)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as refused:
        raise ConfigError(f"The trainer refuses its settings: {' '.join(str(refused).split())}") from refused
    check_strategy(trainer)
    return trainer


def trainer_settings(made: Namespace) -> dict[str, Any]:
    """The `trainer` section as Lightning's arguments; the progress bar shows in a terminal only, and not too often."""
    settings: dict[str, Any] = dict(vars(made.trainer))
    callbacks, plugins = settings.get("callbacks") or [], settings.get("plugins") or []
    settings["callbacks"] = list(callbacks) if isinstance(callbacks, list) else [callbacks]
    settings["plugins"] = list(plugins) if isinstance(plugins, list) else [plugins]
    if settings.get("enable_progress_bar") is None:  # a bar that is written to a file slows training down
        settings["enable_progress_bar"] = sys.stderr.isatty()
    if settings["enable_progress_bar"] and not any(isinstance(one, AnyProgressBar) for one in settings["callbacks"]):
        settings["callbacks"].append(ProgressBar())
    settings["enable_model_summary"] = bool(settings.get("enable_model_summary"))
    return settings


def check_data(made: Namespace) -> None:
    """What the configuration asks of the data, once they are read.

    Raises:
        ConfigError: a loss with fewer classes than there are; a recall@k of more items than a query can find; a rule
            for groups where there are none; a memory for embeddings of another size; mining that can find nothing.
    """
    if isinstance(made.model, ImageNetwork):
        made.model.check_data(made.data.splits)
        return
    classes = len(made.data.training_table().class_names)
    room = getattr(made.model.loss_fn, "num_classes", None)
    if isinstance(room, int) and room < classes:
        raise ConfigError(
            f"{type(made.model.loss_fn).__name__} has num_classes {room}, but the training data has {classes} classes. "
            f"Set model.init_args.loss_fn.init_args.num_classes to {classes}."
        )
    if made.model.needs_groups and made.data.training_table().groups is None:
        raise ConfigError(
            f"The miner {type(made.model.miner).__name__} chooses negatives by group, but the training data has no "
            "groups. Give the data a group column, or set the miner's group_rule to 'any'."
        )
    _check_embeddings(made)
    settings = made.retrieval
    for name in ("validation", "test"):
        rows = rows_of(getattr(made.data.splits, name))
        if settings.exclude != "none" and rows.groups is None:
            raise ConfigError(
                f"retrieval.exclude {settings.exclude!r} leaves out images of the query's group, but the {name} split "
                "has no groups. Give the data a group column, or set --retrieval.exclude none."
            )
        task = make_task(len(rows), rows.labels, rows.query, rows.gallery, rows.groups, settings.exclude)
        most = int(relevant_and_candidates(task)[1].max())
        if max(settings.ks) > most:
            fitting = [k for k in settings.ks if k <= most]
            raise ConfigError(
                f"retrieval.ks asks for recall@{max(settings.ks)}, but a query of the {name} split has {most} "
                f"items to find. Set --retrieval.ks to {fitting or [1]}."
            )


def _check_embeddings(made: Namespace) -> None:
    """What only the embedding of an image can tell: its size, where something was set for it."""
    memory, mining = made.model.loss_fn, made.data.mining
    table = made.data.training_table()
    if not isinstance(memory, CrossBatchMemory) and mining is None:
        return
    made.model.eval()
    with torch.no_grad():
        size = made.model(to_float(table.batch([0]).images)).shape[1]
    made.model.train()
    if isinstance(memory, CrossBatchMemory) and memory.embedding_size != size:
        raise ConfigError(
            f"CrossBatchMemory has embedding_size {memory.embedding_size}, but the encoder's embeddings have {size} "
            f"numbers. Set model.init_args.loss_fn.init_args.embedding_size to {size}."
        )
    if mining is None:
        return
    rows = min(mining.sample or len(table), len(table))
    if mining.skip + mining.window >= rows:
        raise ConfigError(
            f"WholeSetMining skips {mining.skip:,} negatives and takes {mining.window:,}, but mines among {rows:,} "
            "images. Lower data.init_args.mining.init_args.skip or window, or raise sample."
        )
    probe = np.random.default_rng(0).standard_normal((64, size), dtype=np.float32)
    NeighbourIndex(probe, mining.distance, mining.factory, mining.parameters)  # refuses what FAISS does not take
