"""The folder of a run: where it lies, what it holds, and how its model is used again.

runs/<name>/<time>-<hash>/ holds config.yaml, environment.txt, metrics.jsonl, checkpoints/, wandb/ and, once the run is
finished, embeddings/test/, queries.npz, threshold.json, report.html and results.json.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from lossopt import config as configuration
from lossopt.checkpoints import CONFIG_KEY, DurableCheckpointIO
from lossopt.data.dataset import LabelledImages, SquareImages
from lossopt.data.folder import read_images
from lossopt.data.module import ImageData, to_float
from lossopt.data.omniglot import Omniglot, one_shot_runs
from lossopt.durable import sha256, write_text
from lossopt.errors import ConfigError, EvaluationError
from lossopt.modules.network import TrainedNetwork
from lossopt.report.record import without_paths
from lossopt.retrieval.embeddings import collected, embed, embedded
from lossopt.retrieval.oneshot import OneShotResult, draw_runs, score_runs
from lossopt.retrieval.pairs import draw_pairs
from lossopt.retrieval.store import write_embeddings
from lossopt.retrieval.vectors import LabelledVectors
from lossopt.retrieval.verification import Threshold, verify
from lossopt.tables import rows_of

CONFIG, ENVIRONMENT, RESULTS = "config.yaml", "environment.txt", "results.json"
THRESHOLD, EMBEDDINGS = "threshold.json", "embeddings"
_WHERE_ONLY = ("output", "name", "config")  # keys that change where a run lies, not what it is


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves behind.

    folder: of the run. checkpoint: the best one, of `epoch`. untrained, validation: metrics of the validation split
    before training and at the best epoch. test: of the best checkpoint. images: seen in training. seconds: of training
    and its validations. notes: warnings in words. peak_memory: bytes, of the last process; 0 in runs of old.
    """

    folder: Path
    checkpoint: Path
    epoch: int
    untrained: dict[str, float]
    validation: dict[str, float]
    test: dict[str, float]
    images: int
    seconds: float
    notes: list[str]
    peak_memory: int = 0

    def as_json(self) -> dict[str, Any]:
        """JSON types; the paths are relative to the run folder, which may be moved."""
        return asdict(self) | {"folder": ".", "checkpoint": str(self.checkpoint.relative_to(self.folder))}


def result_of(folder: Path) -> RunResult:
    """What a finished run left in its results.json."""
    content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    return RunResult(**content | {"folder": folder, "checkpoint": folder / content["checkpoint"]})


def config_hash(config: dict[str, Any], without: tuple[str, ...] = ()) -> str:
    """8 hexadecimal digits that two runs share if they do the same thing."""
    kept = {key: value for key, value in config.items() if key not in (*_WHERE_ONLY, *without)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def config_of(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run.

    Raises:
        ConfigError: `folder` is not the folder of a run.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ConfigError(f"There is no {CONFIG} in {folder}: give the folder of a run, such as runs/NAME/TIME-HASH.")
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config


def _check_same(config: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Refuses to go on with a run under another configuration; names what differs."""
    if config_hash(config) == config_hash(earlier):
        return
    now, then = flattened(config), flattened(earlier)
    differing = [
        f"{key} was {then.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key) and key not in _WHERE_ONLY
    ]
    raise ConfigError(
        "A run can only be resumed under its own configuration. Different: " + "; ".join(differing[:10]) + ". "
        "Give `--resume RUN` alone to go on with the run's own, or start a new run."
    )


def flattened(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested configuration as dotted keys and values."""
    if not isinstance(config, dict):
        return {prefix.rstrip("."): config}
    return {key: value for name, inner in config.items() for key, value in flattened(inner, f"{prefix}{name}.").items()}


def run_folder(config: dict[str, Any], resume: str | None) -> tuple[Path, bool]:
    """The folder to write to, and whether it is an earlier run to go on with.

    Args:
        config: the resolved configuration.
        resume: None: a new folder. "auto": the newest folder of this very configuration, or a new one. A path: that.
    """
    home, digest = Path(config["output"]) / config["name"], config_hash(config)
    if resume not in (None, "auto"):
        folder = Path(str(resume))
        _check_same(config, config_of(folder))
        return folder, True
    if resume == "auto" and (earlier := sorted(home.glob(f"*-{digest}"))):
        return earlier[-1], True
    stamp, number = time.strftime("%Y%m%d-%H%M%S"), 0
    while True:
        folder = home / (f"{stamp}-{digest}" if not number else f"{stamp}.{number}-{digest}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as refused:
            raise ConfigError(
                f"Cannot make the run folder {folder}: {refused.strerror}. Choose another --output."
            ) from refused
        else:
            return folder, False


def load_weights(model: torch.nn.Module, checkpoint: Path) -> None:
    """Puts a checkpoint's weights into a model of the same configuration."""
    model.load_state_dict(DurableCheckpointIO().load_checkpoint(checkpoint)["state_dict"])


class LoadedRun(NamedTuple):
    """A trained model, its data, and the checkpoint and configuration that they come from."""

    model: TrainedNetwork
    data: ImageData
    checkpoint: Path
    config: dict[str, Any]


def load_run(path: Path, overrides: Sequence[str] = ()) -> LoadedRun:
    """The best checkpoint of a run folder, or a checkpoint file, as it was configured.

    Args:
        path: a run folder or a .ckpt file.
        overrides: `--data.init_args.source...=value` words that replace parts of the configuration.

    Raises:
        ConfigError: there is no such run; DataError: its checkpoint cannot be read.
    """
    checkpoint = path / "checkpoints" / "best.ckpt" if path.is_dir() else path
    if not checkpoint.is_file():
        raise ConfigError(f"There is no checkpoint at {checkpoint}. Give the folder of a run, or a .ckpt file.")
    content = DurableCheckpointIO().load_checkpoint(checkpoint)
    if CONFIG_KEY not in content:
        raise ConfigError(f"{checkpoint} does not hold a lossopt configuration; it was not written by `lossopt train`.")
    parsed = configuration.parse(list(overrides), content[CONFIG_KEY])
    made = configuration.instantiate(parsed)
    made.model.load_state_dict(content["state_dict"])
    return LoadedRun(made.model.eval(), made.data, checkpoint, configuration.resolved(parsed))


def choose_threshold(run: LoadedRun) -> Threshold | None:
    """Chooses, on the validation split, the distance up to which two images count as the same, and keeps it.

    It lies in the run folder as threshold.json; what is embedded afterwards carries it along. None, and no file, where
    the validation split has too few pairs for its false accept rate.
    """
    table = table_of(run, "validation")
    try:
        found = verify(draw_pairs(table.vectors, table.task(), run.config["retrieval"]["distance"])).threshold
    except EvaluationError:  # no pairs of both kinds
        found = None
    if found is not None:
        write_text(_threshold_file(run.checkpoint), json.dumps(found.as_json(), indent=2) + "\n")
    return found


def _kept_threshold(checkpoint: Path) -> dict[str, Any] | None:
    """What `choose_threshold` kept beside a checkpoint, as JSON types; None: nothing."""
    path = _threshold_file(checkpoint)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _threshold_file(checkpoint: Path) -> Path:
    return checkpoint.absolute().parents[1] / THRESHOLD


def table_of(run: LoadedRun, split: str) -> LabelledVectors:
    """The embeddings of "train", "validation" or "test", in memory."""
    table: LabelledImages = getattr(run.data.splits, split)
    return rows_of(table).with_vectors(
        vectors_of(run, table, split), {"split": split, "threshold": _kept_threshold(run.checkpoint)}
    )


def embed_split(run: LoadedRun, split: str, out: Path) -> LabelledVectors:
    """Embeds "train", "validation" or "test" into a folder, batch by batch; the vectors are never all in memory.

    Returns:
        The table as it lies on disk, mapped (see `lossopt.retrieval.store`).

    Raises:
        LossoptError: the data cannot be read, an embedding is not finite, or the folder cannot be written.
    """
    table: LabelledImages = getattr(run.data.splits, split)
    return _embed_table(run, table, out, {"data": run.data.splits.description, "split": split})


def embed_images(run: LoadedRun, images: Path, out: Path, allow_outside: bool = False) -> LabelledVectors:
    """Embeds an image, or a folder of images, made to look like those that the run was trained on.

    Args:
        run: the model; its own data is not needed if its source says how its images look (`SquareImages`).
        images: the file or folder; classes are those of the class folders in it, or "" (`read_images`).
        out: the folder to write.
        allow_outside: follow links that lead out of the folder.

    Returns, raises: as `embed_split`.
    """
    table, description = images_like(run, images, allow_outside)
    return _embed_table(run, table, out, {"data": description, "split": None})


def images_like(run: LoadedRun, images: Path, allow_outside: bool = False) -> tuple[LabelledImages, str]:
    """The table of `read_images`, decoded as the run's own images are; arguments as for `embed_images`."""
    source = run.data.source
    if isinstance(source, SquareImages):
        size, channels, inverted, area = source.image_size, source.channels, source.inverted, source.area
    else:
        channels, size = run.data.splits.test.batch([0]).images.shape[1:3]
        inverted = area = False
    return read_images(images, size, channels, inverted, allow_outside, area)


def vectors_of(run: LoadedRun, table: LabelledImages, what: str | None = None) -> np.ndarray:
    """(n, d) float32: the embeddings of a table, in memory. what: named beside the progress bar."""
    return collected(_embedded(run.model, run.data, table, what), len(table))


def _embed_table(run: LoadedRun, table: LabelledImages, out: Path, origin: dict[str, Any]) -> LabelledVectors:
    """Embeds a table; what is said of its origin is freed of the machine's paths."""
    provenance = {
        "checkpoint": run.checkpoint.name,
        "checkpoint_sha256": sha256(run.checkpoint),
        "config_hash": config_hash(run.config),
        **origin,
        "data": without_paths(origin["data"]),
        "distance": run.config["retrieval"]["distance"],
        "threads": torch.get_num_threads(),
        "threshold": _kept_threshold(run.checkpoint),
    }
    return write_embeddings(out, _embedded(run.model, run.data, table, origin["split"]), rows_of(table), provenance)


def _embedded(model: TrainedNetwork, data: ImageData, table: LabelledImages, what: str | None) -> Iterator[np.ndarray]:
    """The embeddings of a table in batches of the run's size: every command sees the same numbers."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batches = (to_float(batch.images) for batch in data.pass_over(table))
    return embedded(model.embedder.to(device), batches, len(table), device, f"embedding {what or 'images'}")


def one_shot(run: LoadedRun, drawn: int = 1_000, seed: int = 0) -> tuple[OneShotResult, OneShotResult]:
    """20-way within-alphabet one-shot accuracy: on the 20 official runs, and on `drawn` runs like them.

    Raises:
        ConfigError: the run was not trained on Omniglot, or was trained on evaluation alphabets (Vinyals' split).
    """
    source = run.data.source
    if not isinstance(source, Omniglot):
        raise ConfigError(f"One-shot runs are drawn from Omniglot; this run was trained on {type(source).__name__}.")
    if source.split == "vinyals":
        raise ConfigError(
            "This run was trained on Vinyals' split, which holds characters of the alphabets that the one-shot runs "
            "ask about. Train with split: lake (or small1, small2) to score them."
        )
    model, device = run.model, "cuda" if torch.cuda.is_available() else "cpu"
    official = []
    for task in one_shot_runs(source.root, source.image_size):
        both = torch.cat([task.query, task.support])
        vectors = embed(model.embedder.to(device), [to_float(both)], len(both), device)
        official.append((vectors[: len(task.query)], vectors[len(task.query) :], task.answers.numpy()))
    table = run.data.splits.test
    vectors = collected(_embedded(model, run.data, table, "test"), len(table))
    if table.groups is None:
        raise ConfigError("One-shot runs are drawn within alphabets, but this Omniglot has no groups.")
    runs = draw_runs(vectors, table.labels.numpy(), table.groups.numpy(), drawn, seed=seed)
    return score_runs(official), score_runs(runs)
