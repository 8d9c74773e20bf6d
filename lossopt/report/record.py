"""What a run folder says about its run, as a report needs it; nothing that names a machine, a person or a place."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from lossopt.checkpoints import BEST, FOLDER, read_manifest
from lossopt.errors import DataError
from lossopt.health import HealthRecord, read_health
from lossopt.tracking import read_metrics

HIDDEN = "(path left out)"
_PATH = re.compile(
    r"""(?:^|(?<=[\s'"(=,;\[])|(?<=:))                  # where a word begins; of https:// nothing matches below
        (?:file:/+|~[\w.-]*[/\\]|/(?=[^\s/])|[A-Za-z]:[\\/]|\\\\)
        [^'",;:()\[\]\n]*                               # to the next punctuation: a path may hold blanks
        """,
    re.VERBOSE,
)
_LOGGED = (
    *("train/spread", "train/effective_rank", "train/gradient_norm", "train/embedding_norm"),
    *("miner/tuples", "miner/share_active"),
)


class Measured(NamedTuple):
    """Metrics by their plain name ("recall@1", "map@r", ...), and when they were measured."""

    step: int
    epoch: int
    metrics: dict[str, float]


class Curve(NamedTuple):
    """(x, y) of one figure over a run; x counts images seen where the run says so, else steps."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class RunRecord:
    """A run without its embeddings.

    name, seed, monitor: from the configuration. folder: its last part only.
    untrained: validation before the first step. best: validation at the kept checkpoint. Each None if not on record.
    steps, images, epochs: of training; images is None if no step was logged.
    validation, loss: curves. logged: further curves of training by the key they were logged under ("train/spread").
    health: what its health.json says; None without one.
    checkpoint_sha256: of the best checkpoint, "" if none is on record.
    config, environment: text. paths_hidden: whether a path was left out of `config`.
    """

    name: str
    seed: int
    monitor: str
    folder: str
    untrained: Measured | None
    best: Measured | None
    steps: int
    images: int | None
    epochs: int
    validation: dict[str, Curve]
    loss: Curve
    logged: dict[str, Curve]
    health: HealthRecord | None
    checkpoint_sha256: str
    config: str
    environment: tuple[str, ...]
    paths_hidden: bool

    def images_at(self, step: int) -> float:
        """Images seen at a step, or the step itself where no step was logged; the unit of the curves' x."""
        return step * self.images / self.steps if self.images is not None and self.steps else float(step)


def read_record(folder: Path) -> RunRecord:
    """Reads metrics.jsonl, the checkpoint manifest, config.yaml and environment.txt; results.json is not needed.

    Raises:
        DataError: one of the files is missing or unreadable.
    """
    rows: list[dict[str, Any]] = list(read_metrics(folder))
    config = _config(folder)
    text = as_yaml(config)
    steps = [row for row in rows if "train/images" in row or "train/loss" in row]
    validations = [found for row in rows if (found := _validation(row)) is not None]
    kept = next((entry for entry in read_manifest(folder / FOLDER) if entry.file == BEST), None)
    best = None if kept is None else Measured(kept.step, kept.epoch, _plain(kept.metrics))
    per_step = _images_per_step(steps)
    last_step = int(rows[-1]["step"]) if rows else 0
    scale = per_step or 1.0
    return RunRecord(
        name=str(config.get("name", "run")),
        seed=int(config.get("seed", 0)),
        monitor=str(config.get("checkpoint", {}).get("monitor", "val/map@r")),
        folder=folder.resolve().name,
        untrained=next((found for found in validations if found.step == 0), None),
        best=best if best is not None and best.metrics else None,
        steps=last_step,
        images=None if per_step is None else round(last_step * per_step),
        epochs=max((found.epoch for found in validations), default=0),
        validation=_validation_curves(validations, scale),
        loss=_curve_of(steps, "train/loss", scale),
        logged={name: _curve_of(steps, name, scale) for name in _LOGGED if any(name in row for row in steps)},
        health=read_health(folder),
        checkpoint_sha256="" if kept is None else kept.sha256,
        config=text,
        environment=tuple(
            without_paths(line) for line in _text(folder, "environment.txt").splitlines() if line.strip()
        ),
        paths_hidden=HIDDEN in text,
    )


def without_paths(text: str) -> str:
    """The text with every absolute path (POSIX, Windows, ~, file:) replaced by a few words."""
    return _PATH.sub(HIDDEN, text)


def as_yaml(config: Any) -> str:
    """A configuration of JSON types as YAML, without absolute paths."""
    text: str = yaml.safe_dump(_without_paths(config), sort_keys=False, allow_unicode=True, width=100)
    return text


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(_text(folder, "config.yaml"))
    except yaml.YAMLError as error:
        raise DataError(f"config.yaml of {folder} is not YAML ({error}). Restore it from a copy of the run.") from error
    if not isinstance(config, dict):
        raise DataError(f"config.yaml of {folder} holds no configuration. Restore it from a copy of the run.")
    return config


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(
            f"Cannot read {folder / name} ({error.strerror}). A report is written from the folder of a run, which "
            "holds config.yaml, environment.txt and metrics.jsonl."
        ) from error


def _without_paths(value: Any) -> Any:
    """A configuration in which a text that begins with a path is hidden whole (paths may hold blanks)."""
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return HIDDEN if _PATH.match(value) else without_paths(value)


def _validation(row: dict[str, Any]) -> Measured | None:
    metrics = _plain(row)
    return Measured(int(row["step"]), int(row.get("epoch", 0)), metrics) if metrics else None


def _plain(metrics: dict[str, Any]) -> dict[str, float]:
    """The retrieval metrics of the validation split, without the split in their names."""
    return {key[4:]: float(value) for key, value in metrics.items() if key.startswith("val/") and "@" in key}


def _images_per_step(steps: list[dict[str, Any]]) -> float | None:
    seen = [(row["train/images"], row["step"]) for row in steps if row.get("train/images") and row["step"]]
    return float(seen[-1][0]) / float(seen[-1][1]) if seen else None


def _validation_curves(validations: list[Measured], scale: float) -> dict[str, Curve]:
    names = list(dict.fromkeys(name for found in validations for name in found.metrics))
    return {
        name: _curve(
            [found.step * scale for found in validations if name in found.metrics],
            [found.metrics[name] for found in validations if name in found.metrics],
        )
        for name in names
    }


def _curve(x: list[float], y: list[float]) -> Curve:
    """Points whose y is finite."""
    kept = [(a, float(b)) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    return Curve(np.array([a for a, _ in kept]), np.array([b for _, b in kept]))


def _curve_of(steps: list[dict[str, Any]], name: str, scale: float) -> Curve:
    """What was logged under a name, over the steps, or over the images seen, that have it."""
    there = [row for row in steps if name in row]
    # a batch with nothing to compare is seen, but makes no step
    x = [float(row.get("train/images", row["step"] * scale)) for row in there]
    return _curve(x, [row[name] for row in there])
