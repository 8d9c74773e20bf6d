"""A checkpoint counts once `manifest.json` lists its sha256; every file is replaced whole, so a kill costs one save.

Lightning stages checkpoints in the system's temporary folder and moves them; where that is another file system, a kill
or a full disk destroys the previous file too. Here the new file is written beside the old one and renamed.
"""

import json
import math
import pickle
import platform
import random
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytorch_lightning
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from lossopt import __version__
from lossopt.durable import sha256, write_whole
from lossopt.errors import ConfigError, LossoptError

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
HISTORY = "history"
BEST = "best.ckpt"
CONFIG_KEY = "lossopt_config"
RNG_KEY = "lossopt_rng"


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's door to the disk: whole files on saving, weights only on loading. Pass it as `plugins=[...]`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path | str, storage_options: None = None) -> None:
        """Save by `write_whole`.

        Raises:
            LossoptError: as there.
            TypeError: `storage_options` is given.
        """
        if storage_options is not None:
            raise TypeError(
                f"DurableCheckpointIO writes plain files, without storage_options; got {storage_options!r}."
            )
        write_whole(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(
        self, path: Path | str, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Load tensors and plain types only, from a local file, after comparing it with the manifest beside it.

        Raises:
            LossoptError: what is wrong with the file, and what to do.
        """
        if weights_only is False:
            raise LossoptError(f"{path}: weights_only=False would run code from the file. Leave the argument out.")
        if "://" in str(path):
            raise LossoptError(f"{path} is a URL. Download the file, compare its sha256, and give the local path.")
        path = Path(path)
        fault = _fault_of_file(path) or _fault_by_manifest(path)
        if fault:
            raise LossoptError(
                f"Cannot load {path}: {fault}. Give another .ckpt file of the run; `lossopt train --resume RUN` goes "
                "on from its newest good one."
            )
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            raise LossoptError(
                f"Cannot load {path}: it holds more than tensors and plain types, which could run code ({error}). "
                "Save it again from the program that made it, with plain hyper-parameters."
            ) from error
        except (OSError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
            raise LossoptError(f"Cannot load {path}: damaged or not a checkpoint ({error}).") from error


def _fault_of_file(path: Path) -> str:
    """What can be said of a file without unpickling it; empty if nothing is wrong."""
    if not path.is_file():
        return "there is no such file"
    if path.stat().st_size == 0:
        return "the file is empty (0 bytes); its save was interrupted or the disk was full"
    with path.open("rb") as file:
        beginning = file.read(4)
    if beginning != b"PK\x03\x04":
        return f"it is not a checkpoint (it begins with {beginning!r}; a checkpoint begins with b'PK\\x03\\x04')"
    if not zipfile.is_zipfile(path):
        return f"it is truncated (its {path.stat().st_size} bytes lack the closing directory)"
    return ""


def _fault_by_manifest(path: Path) -> str:
    faults: list[str] = []
    with suppress(LossoptError):  # another program's manifest, or a damaged one: the file's own checks remain
        faults = [entry.fault(path.parent) for entry in read_manifest(path.parent) if entry.file == path.name]
    return "" if "" in faults or not faults else faults[-1]


# --------------------------------------------------------------------------------------------------------- manifest


class Entry(NamedTuple):
    """One listed checkpoint; `epoch` counts completed epochs."""

    file: str
    sha256: str
    bytes: int
    step: int
    epoch: int
    metrics: dict[str, float]

    def fault(self, folder: Path) -> str:
        """What is wrong with the file on disk; empty if it is the one that was saved."""
        path = folder / self.file
        if not path.is_file():
            return "the file is missing"
        if path.stat().st_size != self.bytes:
            return f"it has {path.stat().st_size} bytes instead of {self.bytes}"
        return "" if sha256(path) == self.sha256 else "its sha256 is not the one of the save"


def read_manifest(folder: Path) -> list[Entry]:
    """The listed checkpoints, oldest save first; empty without a manifest.

    Raises:
        LossoptError: the manifest is unreadable.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return []
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["checkpoints"]
        return [Entry(**{**item, "metrics": {k: float(v) for k, v in item["metrics"].items()}}) for item in listed]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LossoptError(
            f"{path} is unreadable ({type(error).__name__}: {error}). Name a checkpoint file of {folder} yourself, "
            "or move the folder away to start afresh."
        ) from error


def _write_manifest(folder: Path, entries: list[Entry]) -> None:
    versions = {
        "lossopt": __version__,
        "torch": torch.__version__,
        "pytorch_lightning": pytorch_lightning.__version__,
        "python": platform.python_version(),
    }
    listed = [
        entry._asdict() | {"metrics": {k: v if math.isfinite(v) else str(v) for k, v in entry.metrics.items()}}
        for entry in entries
    ]
    text = json.dumps({"format": 1, "versions": versions, "checkpoints": listed}, indent=1, allow_nan=False)
    write_whole(folder / MANIFEST, lambda file: file.write(text.encode()))


def list_checkpoint(
    folder: Path, file: str, *, step: int, epoch: int, metrics: Mapping[str, float], keep: int
) -> Entry:
    """Enter a saved file as the newest and remove all but the newest `keep` (best.ckpt is not counted)."""
    path = folder / file
    entry = Entry(file, sha256(path), path.stat().st_size, step, epoch, dict(metrics))
    entries = [old for old in read_manifest(folder) if old.file != file and (folder / old.file).is_file()]
    entries.append(entry)
    _write_manifest(folder, entries)
    too_old = [old for old in entries if old.file != BEST][:-keep]
    for old in too_old:  # the file first: a kill in between leaves a listed gap, not an unlisted file
        (folder / old.file).unlink()
    if too_old:
        _write_manifest(folder, [kept for kept in entries if kept not in too_old])
    return entry


def promote(folder: Path, entry: Entry) -> Path:
    """Make a copy of a listed checkpoint the new best.ckpt; at every moment one listed entry fits the file."""
    best = entry._replace(file=BEST)
    others = read_manifest(folder)
    before = [other for other in others if other.step < entry.step or other.file == BEST]
    after = [other for other in others if other not in before]
    _write_manifest(folder, [*before, best, *after])
    with (folder / entry.file).open("rb") as source:
        write_whole(folder / BEST, lambda file: shutil.copyfileobj(source, file))
    _write_manifest(folder, [*(other for other in before if other.file != BEST), best, *after])
    return folder / BEST


def newest_good_checkpoint(run_folder: Path | str) -> Path | None:
    """The newest checkpoint whose size and sha256 are those of its save, or None if the run never saved one.

    Each newer one that is passed over is named, with the reason, in a UserWarning.

    Raises:
        LossoptError: checkpoints are listed, but none of them is good; or the manifest is unreadable.
    """
    folder = Path(run_folder) / FOLDER
    entries = read_manifest(folder)
    passed_over: dict[str, str] = {}
    for entry in reversed(entries):
        fault = entry.fault(folder)
        if not fault:
            for file, reason in passed_over.items():
                warnings.warn(f"{folder / file} was passed over: {reason}. Using {entry.file}.", stacklevel=2)
            return folder / entry.file
        passed_over[entry.file] = fault
    if entries:
        faults = "; ".join(f"{file}: {reason}" for file, reason in passed_over.items())
        raise LossoptError(f"No checkpoint in {folder} is good ({faults}). Move the folder away to start afresh.")
    return None


# --------------------------------------------------------------------------------------------------- random numbers


def rng_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators in types that load with weights_only."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(states: Mapping[str, Any]) -> None:
    """Undo whatever has been drawn since `rng_states`; CUDA states only where the number of devices is the same."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


def _rng_states_of_all_ranks() -> list[dict[str, Any]]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [rng_states()]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, rng_states())
    return gathered


# --------------------------------------------------------------------------------------------------------- callback


class Checkpoints(Checkpoint):
    """Saves after every training epoch (its validation included): the newest `keep` files, and the best by `monitor`.

    Files are `<run_folder>/checkpoints/epoch=003-step=450.ckpt`, where 003 is the number of completed epochs, and
    `best.ckpt`. With DurableCheckpointIO, and a data order that depends on nothing but seed and epoch (with a private
    `generator=` on the DataLoader), a resumed run has the same bits as an uninterrupted one.

    Args:
        run_folder: the run's folder; one run at a time (`run_lock`).
        config: the resolved configuration, stored in every checkpoint as "lossopt_config"; JSON types only.
        monitor: a logged metric, or None to keep no best. NaN and infinities are never best; a tie keeps the earlier.
        mode: "max" if higher is better, else "min".
        keep: how many of the newest to keep besides the best.

    Attributes:
        best_value, best_path: the best so far, also of the part of the run before a resume; None before the first.
        last_path: the newest save of this process.

    Raises:
        ConfigError: in training, `monitor` was not logged, or the folder holds checkpoints and none was resumed from.
    """

    def __init__(
        self,
        run_folder: Path | str,
        config: Mapping[str, Any],
        monitor: str | None = "val/map@r",
        mode: Literal["max", "min"] = "max",
        keep: int = 2,
    ) -> None:
        if mode not in ("max", "min"):
            raise ConfigError(f"Checkpoints(mode={mode!r}): allowed are 'max' and 'min'.")
        if keep < 1:
            raise ConfigError(f"Checkpoints(keep={keep}): keep at least 1; 2 survive one damaged file.")
        self.folder = Path(run_folder) / FOLDER
        self.config = _json_only(config)
        self.monitor, self.mode, self.keep = monitor, mode, keep
        self.best_value: float | None = None
        self.best_path: Path | None = None
        self.last_path: Path | None = None
        self._rng: list[dict[str, Any]] | None = None
        self._begun = False
        self._validated_at: int | None = None

    @property
    def best_model_path(self) -> str:
        """What Lightning's `ckpt_path="best"` asks for."""
        return str(self.best_path or "")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the generators' states until training starts; what lies between draws numbers too."""
        self._rng = checkpoint.get(RNG_KEY, [])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the generators' states and the configuration."""
        checkpoint[RNG_KEY] = _rng_states_of_all_ranks()
        checkpoint[CONFIG_KEY] = self.config

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the best from the manifest; set the generators, last of all callbacks (Lightning sorts them so)."""
        entries = [] if _only_a_trial(trainer) else read_manifest(self.folder)
        if entries and self._rng is None and not self._begun:
            raise ConfigError(
                f"{self.folder} holds the checkpoints of an earlier run, but this one starts from scratch. "
                "Start with --resume to go on, or choose another run folder."
            )
        self._begun = True
        if trainer.is_global_zero:
            self._take_up_best(entries)
        if self._rng:
            if trainer.global_rank < len(self._rng):
                restore_rng(self._rng[trainer.global_rank])
            self._rng = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a misspelt `val/` monitor at the first validation."""
        if trainer.sanity_checking:
            return
        if self.monitor and self.monitor.startswith("val/") and self.monitor not in trainer.callback_metrics:
            raise self._not_logged(trainer)
        if trainer.state.fn == "fit":
            self._validated_at = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, list, and promote if it is the best."""
        if _only_a_trial(trainer):
            return
        value = self._monitored(trainer)
        metrics = {
            name: float(tensor)
            for name, tensor in trainer.callback_metrics.items()
            if self._validated_at == trainer.global_step or not name.startswith("val/")
        }
        epoch = trainer.current_epoch + 1
        path = self.folder / f"epoch={epoch:03d}-step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        self.last_path = path
        if trainer.is_global_zero:
            entry = list_checkpoint(
                self.folder, path.name, step=trainer.global_step, epoch=epoch, metrics=metrics, keep=self.keep
            )
            if self._is_best(value):
                self.best_value, self.best_path = value, promote(self.folder, entry)
        trainer.strategy.barrier("lossopt.checkpoints")

    def _monitored(self, trainer: Trainer) -> float | None:
        """The monitor's value for the present weights; None where these were not validated."""
        if self.monitor is None:
            return None
        if self.monitor.startswith("val/") and self._validated_at != trainer.global_step and trainer.enable_validation:
            return None
        if self.monitor in trainer.callback_metrics:
            return float(trainer.callback_metrics[self.monitor])
        raise self._not_logged(trainer)

    def _not_logged(self, trainer: Trainer) -> ConfigError:
        logged = ", ".join(sorted(trainer.callback_metrics)) or "none"
        return ConfigError(
            f"Checkpoints(monitor={self.monitor!r}): no such metric was logged. Logged are: {logged}. "
            "Name one of them, or None to keep only the newest."
        )

    def _is_best(self, value: float | None) -> bool:
        if value is None or not math.isfinite(value):
            return False
        if self.best_value is None:
            return True
        return value > self.best_value if self.mode == "max" else value < self.best_value

    def _take_up_best(self, entries: list[Entry]) -> None:
        """The best of the run so far; a kill between saving the best and copying it is made good here."""
        if self.monitor is None:
            return
        best: Entry | None = None
        for entry in sorted(entries, key=lambda entry: entry.file != BEST):
            value = entry.metrics.get(self.monitor)
            if self._is_best(value) and not entry.fault(self.folder):
                self.best_value, best = value, entry
        if best is not None:
            self.best_path = self.folder / BEST if best.file == BEST else promote(self.folder, best)


class WeightHistory(Callback):
    """Keeps the weights of every epoch, which `Checkpoints` does not: `lossopt lab RUN` draws the way they have gone.

    Add it in the configuration, under trainer.callbacks, as class_path: lossopt.checkpoints.WeightHistory. It has no
    key of its own there, so that the resolved configurations of runs without it, and their hashes, stay what they were.

    Files are `<run_folder>/checkpoints/history/epoch=003.pt`, 000 is the untrained network. Each holds the state dict
    alone, floating numbers in float32, and loads with weights_only. They are never removed, and no run goes on from
    them: the manifest does not list them. An epoch's file is there before its checkpoint, so that a resumed run has
    no gap, and an epoch that is trained again replaces its own.

    Raises:
        LossoptError: in training, a file cannot be written.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The untrained network."""
        if trainer.global_step == 0:
            self._write(trainer, pl_module, 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning calls `Checkpoints` after all others, also where this one stands last in the configuration."""
        self._write(trainer, pl_module, trainer.current_epoch + 1)

    def _write(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        if _only_a_trial(trainer) or not trainer.is_global_zero:
            return
        state = {
            name: value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for name, value in pl_module.state_dict().items()
        }
        path = Path(trainer.default_root_dir) / FOLDER / HISTORY / f"epoch={epoch:03d}.pt"
        write_whole(path, lambda file: torch.save(state, file))


def weight_history(run_folder: Path | str) -> dict[int, Path]:
    """What `WeightHistory` has left in a run's folder, by completed epochs, first to last; empty without it."""
    found = (Path(run_folder) / FOLDER / HISTORY).glob("epoch=*.pt")
    return dict(sorted((int(path.stem.partition("=")[2]), path) for path in found))


def _only_a_trial(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # Lightning sets it at run time


def _json_only(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain = json.loads(json.dumps(dict(config)))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The configuration for Checkpoints must hold JSON types only ({error}); "
            "such a checkpoint could not be loaded again. Turn paths and the like into text."
        ) from error
    return plain
