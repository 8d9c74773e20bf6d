"""The configuration of a run: what LightningCLI users expect, parsed by jsonargparse, answered with the nearest name.

Top-level keys: seed, name, output, model, data, trainer, retrieval, checkpoint. `model` and `data` take class_path and
init_args; every class with typed arguments can be named, also one in the user's own file.
"""

import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from jsonargparse.typing import NonNegativeInt
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_metric_learning.utils.module_with_records import ModuleWithRecords

from lossopt.errors import ConfigError
from lossopt.explain import explain
from lossopt.retrieval.evaluation import KS
from lossopt.retrieval.index import Distance
from lossopt.retrieval.task import Exclusion

_TRAINER_SKIP = {
    # the run's own business: its folder, its loggers, its checkpoints
    *("logger", "default_root_dir", "enable_checkpointing", "use_distributed_sampler", "num_sanity_val_steps"),
    # validation comes at the end of an epoch, and an epoch is batches_per_epoch long
    *("val_check_interval", "overfit_batches", "limit_test_batches", "limit_predict_batches"),
}
_LIMITS = {"limit_train_batches", "limit_val_batches"}


@dataclasses.dataclass(frozen=True)
class RetrievalSettings:
    """What is measured at every validation.

    Args:
        ks: cut-offs of recall@k.
        distance: "euclidean" or "cosine".
        exclude: what a query may not find because it shares its group: "none", "same class" (images of its class, as
            with cameras), "all".
        test: whether the best checkpoint is measured on the test split at the end of training.
        report: whether report.html is written then; without it a run ends sooner, and `lossopt report` writes it later.
    """

    ks: list[int] = dataclasses.field(default_factory=lambda: list(KS))
    distance: Distance = "euclidean"
    exclude: Exclusion = "none"
    test: bool = True
    report: bool = True


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """Which checkpoint is the best.

    Args:
        monitor: a metric of the validation, for example "val/map@r" or "val/recall@1".
        mode: whether more or less of it is better.
    """

    monitor: str = "val/map@r"
    mode: Literal["max", "min"] = "max"


def parser() -> ArgumentParser:
    """The parser of `lossopt train`."""
    set_parsing_settings(instantiate_subclass_spec_in_any=False)  # untyped arguments: see _with_components
    made = ArgumentParser(prog="lossopt train", exit_on_error=False, allow_abbrev=False)
    made.description = "Train a retrieval model."
    made.add_argument("--config", action="config", help="a YAML file; several are merged, the last one wins")
    made.add_argument("--seed", type=NonNegativeInt, default=0, help="of weights, batches and augmentation")
    made.add_argument("--name", type=str, default="run", help="folder of the runs of this experiment")
    made.add_argument("--output", type=str, default="runs", help="folder of all runs")
    made.add_subclass_arguments(LightningModule, "model", required=True, fail_untyped=False)
    made.add_subclass_arguments(LightningDataModule, "data", required=True, fail_untyped=False)
    made.add_class_arguments(
        Trainer, "trainer", skip=_TRAINER_SKIP | _LIMITS, fail_untyped=False, instantiate=False, sub_configs=True
    )
    for limit in sorted(_LIMITS):  # the Trainer's own annotation reads 1 (one batch) as 1.0 (all of them)
        made.add_argument(f"--trainer.{limit}", type=int | float | None, default=None, help="batches, or a share")
    made.add_class_arguments(RetrievalSettings, "retrieval")
    made.add_class_arguments(CheckpointSettings, "checkpoint")
    made.set_defaults({"trainer.log_every_n_steps": 10, "trainer.max_epochs": 10})
    return made


def keys(of: ArgumentParser) -> list[str]:
    """Every key that the parser knows, dotted."""
    names = (name.lstrip("-") for action in of._actions for name in action.option_strings)
    return [name for name in names if not name.endswith("+") and name not in ("h", "print_shtab")]


def _with_components(class_type: type, *args: Any, **kwargs: Any) -> Any:
    """pytorch-metric-learning's classes take distances and reducers through untyped arguments: make those here."""
    return class_type(*args, **{name: _component(value) for name, value in kwargs.items()})


def _component(value: Any) -> Any:
    if isinstance(value, Namespace | dict) and "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        arguments = dict(value.get("init_args") or {})
        return _with_components(getattr(importlib.import_module(module), name), **arguments)
    if isinstance(value, str) and value.startswith("pytorch_metric_learning."):
        return _component({"class_path": value})
    return value


def parse(arguments: Sequence[str] = (), config: dict[str, Any] | None = None) -> Namespace:
    """Command-line words to a checked namespace.

    Args:
        arguments: the words.
        config: a resolved configuration that the words override.

    Raises:
        ConfigError: anything that does not fit, with the nearest valid name.
    """
    made = parser()
    given = [] if config is None else ["--config", json.dumps(config, default=str)]
    sys.path.insert(0, os.getcwd())  # classes in the user's own files
    try:
        with redirect_stderr(StringIO()):
            return made.parse_args([*given, *arguments])
    except (ArgumentError, TypeError, ValueError, ImportError, AttributeError, KeyError) as wrong:
        raise ConfigError(explain(str(wrong), keys(made))) from wrong
    finally:
        sys.path.remove(os.getcwd())


def instantiate(namespace: Namespace) -> Namespace:
    """Makes the objects of a configuration.

    Raises:
        ConfigError: a class refused its arguments; its own words.
    """
    made = parser()
    try:
        return made.instantiate(namespace, instantiators=[(_with_components, ModuleWithRecords, True)])
    except (TypeError, ValueError, ImportError, ArgumentError) as refused:
        raise ConfigError(explain(str(refused), keys(made))) from refused


def resolved(namespace: Namespace) -> dict[str, Any]:
    """The whole configuration as JSON types, with every default filled in."""
    config: dict[str, Any] = _plain(namespace)
    config.pop("config", None)
    return config


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return {name: _plain(inner) for name, inner in vars(value).items()}
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):  # NonNegativeInt and the like are ints of their own class
        return int(value) if isinstance(value, int) else value
    return str(value)
