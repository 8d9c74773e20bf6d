"""The configuration of a run: what LightningCLI users expect, parsed by jsonargparse, answered with the nearest name.

Top-level keys: seed, name, output, model, data, trainer, retrieval, checkpoint. `model` and `data` take class_path and
init_args; every class with typed arguments can be named, also one in the user's own file.
"""

import dataclasses
import difflib
import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_metric_learning.utils.module_with_records import ModuleWithRecords

from lossopt.errors import ConfigError
from lossopt.retrieval.evaluation import KS
from lossopt.retrieval.index import Distance

# the run's own business: its folder, its loggers, its checkpoints
_TRAINER_SKIP = {
    "logger",
    "default_root_dir",
    "enable_checkpointing",
    "use_distributed_sampler",
    "num_sanity_val_steps",
}


@dataclasses.dataclass(frozen=True)
class RetrievalSettings:
    """What is measured at every validation.

    Args:
        ks: cut-offs of recall@k.
        distance: "euclidean" or "cosine".
        test: whether the best checkpoint is measured on the test split at the end of training.
    """

    ks: list[int] = dataclasses.field(default_factory=lambda: list(KS))
    distance: Distance = "euclidean"
    test: bool = True


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """Which checkpoint is the best.

    Args:
        monitor: a logged metric, for example "val/map@r" or "val/recall@1".
        mode: whether more or less of it is better.
    """

    monitor: str = "val/map@r"
    mode: Literal["max", "min"] = "max"


def parser() -> ArgumentParser:
    """The parser of `lossopt train`."""
    made = ArgumentParser(prog="lossopt train", exit_on_error=False, description="Train a retrieval model.")
    made.add_argument("--config", action="config", help="a YAML file; several are merged, the last one wins")
    made.add_argument("--seed", type=int, default=0, help="of weights, batches and augmentation")
    made.add_argument("--name", type=str, default="run", help="folder of the runs of this experiment")
    made.add_argument("--output", type=str, default="runs", help="folder of all runs")
    made.add_subclass_arguments(LightningModule, "model", required=True)
    made.add_subclass_arguments(LightningDataModule, "data", required=True)
    made.add_class_arguments(
        Trainer, "trainer", skip=_TRAINER_SKIP, fail_untyped=False, instantiate=False, sub_configs=True
    )
    made.add_class_arguments(RetrievalSettings, "retrieval")
    made.add_class_arguments(CheckpointSettings, "checkpoint")
    made.set_defaults({"trainer.log_every_n_steps": 10, "trainer.max_epochs": 10})
    made.add_instantiator(_with_components, ModuleWithRecords, subclasses=True)
    return made


def _with_components(class_type: type, *args: Any, **kwargs: Any) -> Any:
    """pytorch-metric-learning's classes take distances and reducers through untyped arguments: make those here."""
    return class_type(*args, **{name: _component(value) for name, value in kwargs.items()})


def _component(value: Any) -> Any:
    if isinstance(value, Namespace | dict) and "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        arguments = dict(value.get("init_args") or {})
        return _with_components(getattr(importlib.import_module(module), name), **arguments)
    return value


def parse(arguments: Sequence[str] | None = None, config: dict[str, Any] | None = None) -> Namespace:
    """Command-line words, or a resolved configuration, to a checked namespace.

    Raises:
        ConfigError: anything that does not fit, with the nearest valid name.
    """
    made = parser()
    sys.path.insert(0, os.getcwd())  # classes in the user's own files
    try:
        with redirect_stderr(StringIO()):
            return made.parse_args(arguments) if config is None else made.parse_object(config)
    except (ArgumentError, TypeError, ValueError, ImportError, AttributeError, KeyError) as wrong:
        raise ConfigError(explain(str(wrong), _words(arguments, config))) from wrong
    finally:
        sys.path.remove(os.getcwd())


def instantiate(namespace: Namespace) -> Namespace:
    """Makes the objects of a configuration.

    Raises:
        ConfigError: a class refused its arguments; its own words.
    """
    try:
        return parser().instantiate_classes(namespace)
    except (TypeError, ValueError, ImportError, ArgumentError) as refused:
        raise ConfigError(explain(str(refused), [])) from refused


def resolved(namespace: Namespace) -> dict[str, Any]:
    """The whole configuration as JSON types, with every default filled in and without what only says where to write."""
    made = parser()
    text = made.dump(namespace, format="json", skip_none=False)
    config: dict[str, Any] = json.loads(text)
    return config


def _words(arguments: Sequence[str] | None, config: dict[str, Any] | None) -> list[str]:
    return list(arguments or []) + ([json.dumps(config)] if config else [])


def explain(message: str, given: list[str]) -> str:
    """A parser's message in plain words: the innermost cause, and the nearest valid name for a misspelt one."""
    lines = [line.strip(" -") for line in message.strip().splitlines() if line.strip()]
    text = " ".join(lines)
    if found := re.search(r"[Kk]ey ['\"]?([\w.]+)['\"]? is not expected|No action for key ['\"]([\w.]+)['\"]", text):
        key = next(group for group in found.groups() if group)
        return _unknown_key(key, text)
    if found := re.search(r"[Uu]nrecognized arguments: (\S+)", text):
        return _unknown_key(found.group(1).lstrip("-").split("=")[0], text)
    if found := re.search(r"(?:Import path|class_path|[Uu]nexpected import path format:?) ?['\"]?([\w.]+)['\"]?", text):
        if hint := nearest_class(found.group(1)):
            return f"{lines[0] if len(lines[0]) < 300 else 'No such class: ' + found.group(1)}. {hint}"
    return text


def _unknown_key(key: str, text: str) -> str:
    """An answer to a key that nobody knows."""
    parent, _, last = key.rpartition(".")
    names = _known_names(parent, text)
    close = difflib.get_close_matches(last, names, n=3, cutoff=0.5)
    hint = (
        f"Did you mean {' or '.join(repr(name) for name in close)}?"
        if close
        else (f"Known here: {', '.join(sorted(names)[:30])}." if names else "")
    )
    return f"Unknown key {key!r} in the configuration. {hint}".strip()


def _known_names(parent: str, text: str) -> set[str]:
    """Argument names of the classes that the message speaks of, else the keys of the parser below `parent`."""
    names: set[str] = set()
    for path in re.findall(r"\b(?:[A-Za-z_]\w*\.)+[A-Z]\w*", text):
        if (found := _import(path)) is not None and inspect.isclass(found):
            names |= _arguments(found)
    known = {action.dest for action in parser()._actions}
    inside = {name.split(".")[parent.count(".") + 1 if parent else 0] for name in known if name.startswith(parent)}
    return names | (inside - {"help", "config", "print_config"})


def _arguments(cls: type) -> set[str]:
    """Names of the constructor's arguments, its bases' included where it passes arguments on."""
    names: set[str] = set()
    for one in inspect.getmro(cls):
        if "__init__" not in vars(one) or one is object:
            continue
        parameters = inspect.signature(one.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return names


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


PLACES = (
    "lossopt.losses", "lossopt.miners", "lossopt.encoders", "lossopt.modules", "lossopt.data", "lossopt.data.augment",
    "lossopt.schedules", "pytorch_metric_learning.losses", "pytorch_metric_learning.miners", "torch.optim",
)  # fmt: skip


def nearest_class(path: str) -> str | None:
    """The class that a misspelt path most likely meant, as a sentence."""
    last = path.rpartition(".")[2]
    known: dict[str, str] = {}
    for place in PLACES:
        module = importlib.import_module(place)
        for name, thing in vars(module).items():
            if inspect.isclass(thing) and not name.startswith("_"):
                known.setdefault(name, f"{place}.{name}")
    close = difflib.get_close_matches(last, list(known), n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(known[name] for name in close)}?" if close else None
