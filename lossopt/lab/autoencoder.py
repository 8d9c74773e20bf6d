"""What a grid of autoencoders found: each loss under each optimiser at its best learning rate, and every failure.

A run that rebuilds every image as the same one counts as a failure, whatever its error: it never enters a mean.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA

from lossopt.callbacks.reconstructions import read_reconstructions
from lossopt.data.dataset import LabelledImages, Splits
from lossopt.data.module import to_float
from lossopt.errors import ConfigError, DataError
from lossopt.lab.grid import Outcome
from lossopt.modules.autoencoder import VARIES, Autoencoder
from lossopt.runs import flattened

_MAY_DIFFER = ("model.init_args.loss_fn.", "model.init_args.optimizer.", "seed", "name", "output")


class Run(NamedTuple):
    """One run.

    loss, optimizer: the class, with the arguments in which others of the class differ. rate: of learning. curve:
    (epoch, squared error per validation image), epoch 0 untrained. loss_at_end: of the validation split after the last
    epoch; NaN if the run failed. scores: of the best checkpoint on the test split, by measure. seconds: epoch to the
    time it was reached, validations included. fault: in words; None of a run that ended well and tells images apart.
    """

    loss: str
    optimizer: str
    rate: float
    seed: int
    folder: Path
    curve: tuple[tuple[int, float], ...]
    loss_at_end: float
    scores: Mapping[str, float]
    seconds: Mapping[int, float]
    fault: str | None

    @property
    def at_end(self) -> float:
        """Squared error per validation image after the last epoch; infinite if the run failed."""
        return self.curve[-1][1] if self.curve and not math.isnan(self.loss_at_end) else math.inf

    @property
    def seconds_per_epoch(self) -> float:
        """NaN if no epoch ended."""
        last = max(self.seconds, default=0)
        return self.seconds[last] / last if last else math.nan

    def seconds_to(self, target: float) -> float:
        """Until an epoch ended with an error of at most `target`; infinite if none did, or the run has a fault."""
        reached = [] if self.fault else [epoch for epoch, error in self.curve if epoch and error <= target]
        return self.seconds[reached[0]] if reached else math.inf


class Cell(NamedTuple):
    """A loss under an optimiser at the best of its rates: that with the fewest faults, then the least validation loss.

    runs: its seeds. scores: test figures, mean of the seeds without a fault; empty if all have one. strip: uint8 (rows,
    height, width) or (..., 3), the pictures that the first seed left (`KeepReconstructions`); without rows if none.
    """

    loss: str
    optimizer: str
    rate: float
    runs: tuple[Run, ...]
    scores: Mapping[str, float]
    strip: np.ndarray

    @property
    def faulty(self) -> int:
        """Seeds with a fault."""
        return sum(run.fault is not None for run in self.runs)


class Baselines(NamedTuple):
    """Squared error per image of what needs no gradient: of the test and of the validation split.

    mean_image: every image rebuilt as the mean of the training images. pca: by so many principal components.
    """

    components: int
    mean_image: float
    pca: float
    pca_validation: float


class Found(NamedTuple):
    """All that the page shows. losses, optimizers: in the grid's order. cells: by (loss, optimiser)."""

    losses: tuple[str, ...]
    optimizers: tuple[str, ...]
    runs: tuple[Run, ...]
    cells: Mapping[tuple[str, str], Cell]
    baselines: Baselines

    @property
    def faults(self) -> list[Run]:
        """The runs that failed, in the grid's order."""
        return [run for run in self.runs if run.fault is not None]


def check_variants(configs: Sequence[Mapping[str, Any]]) -> None:
    """Refuses variants that differ in more than loss and optimiser, by which the page tells them apart.

    Raises:
        ConfigError: the key is named.
    """
    first, *others = [
        {key: value for key, value in flattened(dict(config)).items() if not key.startswith(_MAY_DIFFER)}
        for config in configs
    ]
    for other in others:
        keys = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
        if keys:
            raise ConfigError(
                f"This grid compares losses, optimisers and learning rates, but its variants differ in {keys[0]}, too. "
                "Give it one value under set, and make another grid for the other."
            )


def autoencoders(outcomes: Sequence[Outcome], splits: Splits, code: int) -> Found:
    """What the runs of a grid say, with the baselines of its data.

    Args:
        outcomes: of `Autoencoder` networks whose configurations name loss_fn and the optimiser's lr, and which
            `check_variants` lets pass.
        splits: what they were trained and tested on.
        code: numbers of a code.
    """
    models = [one.config["model"]["init_args"] for one in outcomes]
    names = zip(_names([one["loss_fn"] for one in models]), _names([one["optimizer"] for one in models]), strict=True)
    runs = tuple(_run(one, loss, optimizer) for one, (loss, optimizer) in zip(outcomes, names, strict=True))
    losses, optimizers = (tuple(dict.fromkeys(getattr(run, name) for run in runs)) for name in ("loss", "optimizer"))
    cells = {}
    for pair in dict.fromkeys((run.loss, run.optimizer) for run in runs):
        own = [run for run in runs if (run.loss, run.optimizer) == pair]
        cells[pair] = _best(own, splits.test.batch([0]).images.shape[-2])
    return Found(losses, optimizers, runs, cells, baselines(splits, code))


def code_size(model: Autoencoder, table: LabelledImages) -> int:
    """Numbers of a code."""
    with torch.no_grad():
        return model.eval().codes(to_float(table.batch([0]).images)).flatten(1).shape[1]


def baselines(splits: Splits, components: int) -> Baselines:
    """The mean image and PCA, both of the training split; PCA with as many numbers as a code has."""
    train, validation, test = (_pixels(table) for table in (splits.train, splits.validation, splits.test))
    components = min(components, *train.shape)
    pca = PCA(components, svd_solver="covariance_eigh").fit(train)
    errors = [_error(part, pca.inverse_transform(pca.transform(part))) for part in (test, validation)]
    return Baselines(components, _error(test, train.mean(axis=0)), *errors)


def _pixels(table: LabelledImages) -> np.ndarray:
    """(n, c h w) float32 in [0, 1]."""
    return table.batch(range(len(table))).images.flatten(1).numpy().astype(np.float32) / 255


def _error(images: np.ndarray, made: np.ndarray) -> float:
    return float(((images - made).astype(np.float64) ** 2).sum(axis=1).mean())


def _run(one: Outcome, loss: str, optimizer: str) -> Run:
    rows = [row for row in one.rows if "val/error" in row]
    curve = tuple((int(row["epoch"]), float(row["val/error"])) for row in rows)
    ended = one.result is not None and len(rows) > 0
    return Run(
        loss=loss,
        optimizer=optimizer,
        rate=float(one.config["model"]["init_args"]["optimizer"]["init_args"]["lr"]),
        seed=one.seed,
        folder=one.folder,
        curve=curve,
        loss_at_end=float(rows[-1]["val/loss"]) if ended else math.nan,
        scores={} if one.result is None else {key.removeprefix("test/"): v for key, v in one.result.test.items()},
        seconds={int(row["epoch"]): float(row["train/seconds"]) for row in rows if row["epoch"]},
        fault=_fault(one, rows),
    )


def _names(given: Sequence[Mapping[str, Any]]) -> list[str]:
    """The class of each, with its module, and its arguments but lr, where others of the name differ in them."""
    classes = [str(one["class_path"]) for one in given]
    shorts = [path.rpartition(".")[2] for path in classes]
    arguments = [{k: v for k, v in flattened(dict(one.get("init_args") or {})).items() if k != "lr"} for one in given]
    names = []
    for path, short, own in zip(classes, shorts, arguments, strict=True):
        alike = [other for other, words in zip(arguments, classes, strict=True) if words == path]
        differ = sorted({key for other in alike for key in other.keys() | own.keys() if other.get(key) != own.get(key)})
        telling = ", ".join(f"{key} {own.get(key)}" for key in differ)
        alone = len({other for other, words in zip(classes, shorts, strict=True) if words == short}) == 1
        names.append((short if alone else path) + (f" ({telling})" if telling else ""))
    return names


def _fault(one: Outcome, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What is wrong with a run at its end; a plateau that it has left is no fault."""
    if one.result is None or not rows:
        return one.failure or "it ended without a result"
    if float(rows[-1]["val/variation"]) < VARIES:
        seen = next((finding.what for finding in one.health if finding.kind == "mean image"), "")
        return seen or "every image is rebuilt as nearly the same one"
    return None


def _best(runs: Sequence[Run], height: int) -> Cell:
    """Of the runs of one loss and one optimiser; height: of an image."""
    rates: dict[float, list[Run]] = {}
    for run in runs:
        rates.setdefault(run.rate, []).append(run)

    def order(rate: float) -> tuple[int, float]:
        own = rates[rate]
        well = [run.loss_at_end for run in own if run.fault is None]
        return len(own) - len(well), mean(well) if well else math.inf

    rate = min(rates, key=order)
    own = tuple(rates[rate])
    well = [run for run in own if run.fault is None]
    scores = {name: mean(run.scores[name] for run in well) for name in (well[0].scores if well else ())}
    return Cell(own[0].loss, own[0].optimizer, rate, own, scores, _strip(own[0].folder, height))


def _strip(folder: Path, height: int) -> np.ndarray:
    try:
        return read_reconstructions(folder, height)
    except DataError:
        return np.empty((0, height, 0), dtype=np.uint8)


def as_markdown(found: Found) -> str:
    """Each trained loss, under each optimiser, scored by each measure; then the failures by name."""
    lines = [
        "| optimiser | trained on | rate | error per image | mse | l1 | smooth l1 | s per epoch |",
        "|---" * 8 + "|",
    ]
    for optimizer in found.optimizers:
        for loss in found.losses:
            cell = found.cells.get((loss, optimizer))
            if cell is not None:
                lines.append(_line(cell))
    base = found.baselines
    lines.append(f"| PCA, {base.components} components | | | {base.pca:.2f} | | | | |")
    lines.append(f"| mean image | | | {base.mean_image:.2f} | | | | |")
    lines += ["", f"{len(found.faults)} of {len(found.runs)} runs failed:"] if found.faults else []
    lines += [f"- {run.optimizer} at {run.rate:g} on {run.loss}, seed {run.seed}: {run.fault}" for run in found.faults]
    return "\n".join(lines) + "\n"


def _line(cell: Cell) -> str:
    shown: list[tuple[str, Callable[[float], str]]] = [("error", "{:.2f}".format)]
    shown += [(name, "{:.5f}".format) for name in ("mse", "l1", "smooth_l1")]
    figures = [text(cell.scores[name]) if name in cell.scores else "failed" for name, text in shown]
    rate = f"{cell.rate:g}" + (f" ({cell.faulty} of {len(cell.runs)} seeds failed)" if cell.faulty else "")
    times = [run.seconds_per_epoch for run in cell.runs if not math.isnan(run.seconds_per_epoch)]
    time = f"{mean(times):.1f}" if times else ""
    return f"| {cell.optimizer} | {cell.loss} | {rate} | {' | '.join(figures)} | {time} |"
