"""What a grid of classifiers found: accuracy epoch by epoch, beside curves that others have published."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from lossopt.lab.grid import Outcome
from lossopt.runs import flattened

ACCURACY = "val/accuracy"
EPOCHS = (1, 2, 5, 10)  # those that are listed, as far as the runs go
# Test accuracy by epoch, mean and standard deviation of 10 seeds: Schneider, Balles & Hennig 2019, DeepOBS, ICLR, the
# raw logs of their baselines for fmnist_2c2d, by optimiser and learning rate.
DEEPOBS = {
    ("torch.optim.SGD", 0.158): {1: (0.8545, 0.012), 2: (0.8754, 0.009), 5: (0.8956, 0.007), 10: (0.9024, 0.007)},
    ("torch.optim.Adam", 2.5e-4): {1: (0.8526, 0.006), 2: (0.8761, 0.003), 5: (0.8967, 0.004), 10: (0.9099, 0.004)},
}
_FMNIST_2C2D = {  # what must be as it was there, for the published figures to be of the same thing
    "data.init_args.source.class_path": "lossopt.data.FashionMNIST",
    "data.init_args.source.init_args.split": "standard",
    "data.init_args.source.init_args.holdout": 0,
    "data.init_args.batch_size": 128,
    "data.init_args.augment": None,
    "model.init_args.trunk.class_path": "lossopt.encoders.Conv2",
    "model.init_args.classification.init_args.deviation": 0.05,
    "model.init_args.lr_scheduler": None,
    "model.init_args.classification.init_args.class_weights": "equal",
    "model.init_args.classification.init_args.loss_fn": None,
    "model.init_args.hard_example_fraction": 1.0,
    "model.init_args.regression": None,
    "model.init_args.optimizer.init_args.weight_decay": 0.0,
    **dict.fromkeys(("trainer.limit_train_batches", "trainer.limit_val_batches", "trainer.gradient_clip_val"), None),
    "trainer.accumulate_grad_batches": 1,
}


def published_for(config: Mapping[str, Any]) -> Mapping[int, tuple[float, float]]:
    """Epoch to (mean, deviation), where DeepOBS trained the same network on the same data alike; empty elsewhere."""
    own = flattened(dict(config))
    if any(own.get(key, value) != value for key, value in _FMNIST_2C2D.items()):
        return {}
    named, arguments = own.get("model.init_args.optimizer.class_path"), "model.init_args.optimizer.init_args"
    if own.get(f"{arguments}.momentum", 0.0):
        return {}
    return DEEPOBS.get((str(named), float(own.get(f"{arguments}.lr", 0))), {})


class AtEpoch(NamedTuple):
    """Accuracy after an epoch, in [0, 1]. values: of each seed. published: (mean, deviation), or None."""

    epoch: int
    values: tuple[float, ...]
    published: tuple[float, float] | None

    @property
    def mean(self) -> float:
        """Of the seeds."""
        return mean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds; None with one."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def apart(self) -> float | None:
        """From the published mean, in published standard deviations; None where nothing is published."""
        return None if self.published is None else (self.mean - self.published[0]) / self.published[1]


class Classifier(NamedTuple):
    """One variant. curve: every epoch. listed: those of `EPOCHS`. seconds: of an epoch, its validation included.

    seeds: runs that ended well. failed: what ended the others. faults: what the health watch named, with how often.
    """

    name: str
    curve: tuple[AtEpoch, ...]
    listed: tuple[AtEpoch, ...]
    seconds: float
    seeds: int
    failed: tuple[str, ...]
    faults: Mapping[str, int]


def classifiers(outcomes: Sequence[Outcome]) -> list[Classifier]:
    """One row for each variant, in the order of the grid.

    Args:
        outcomes: of networks that log `val/accuracy`.
    """
    return [
        _classifier(name, [one for one in outcomes if one.variant == name])
        for name in dict.fromkeys(one.variant for one in outcomes)
    ]


def _classifier(name: str, runs: Sequence[Outcome]) -> Classifier:
    published = published_for(runs[0].config)
    ended = [one for one in runs if one.result is not None]
    curves = [dict(one.curve(ACCURACY)) for one in ended]
    epochs = sorted(set.intersection(*map(set, curves))) if curves else []
    curve = tuple(AtEpoch(epoch, tuple(one[epoch] for one in curves), published.get(epoch)) for epoch in epochs)
    kinds = [finding.kind for one in runs for finding in one.health]
    return Classifier(
        name,
        curve,
        tuple(one for one in curve if one.epoch in EPOCHS),
        mean(one.result.seconds / max(epochs[-1], 1) for one in ended if one.result) if epochs else math.nan,
        len(ended),
        tuple(one.failure or "" for one in runs if one.result is None),
        {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
    )


def as_markdown(rows: Sequence[Classifier]) -> str:
    """A table of accuracies in per cent, mean ± deviation over seeds, with the published figures below each."""
    epochs = sorted({one.epoch for row in rows for one in row.listed})
    lines = [
        "| | " + " | ".join(f"epoch {epoch}" for epoch in epochs) + " | s per epoch |",
        "|---" * (len(epochs) + 2) + "|",
    ]
    for row in rows:
        found = {one.epoch: one for one in row.listed}
        cells = [_cell(found[epoch]) if epoch in found else "" for epoch in epochs]
        seconds = "" if math.isnan(row.seconds) else f"{row.seconds:.0f}"
        lines.append(f"| {row.name}, {_counted(row.seeds, 'seed')} | {' | '.join(cells)} | {seconds} |")
        told = [_published(found[epoch]) if epoch in found else "" for epoch in epochs]
        if any(told):
            lines.append(f"| published, 10 seeds | {' | '.join(told)} | |")
        lines += [f"| {row.name}: {why} |" + " |" * (len(epochs) + 1) for why in row.failed]
        lines += [
            f"| {row.name}: {kind}, {_counted(count, 'run')} |" + " |" * (len(epochs) + 1)
            for kind, count in row.faults.items()
        ]
    return "\n".join(lines) + "\n"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _cell(one: AtEpoch) -> str:
    spread = "" if one.deviation is None else f" ± {100 * one.deviation:.2f}"
    return f"{100 * one.mean:.2f}{spread}"


def _published(one: AtEpoch) -> str:
    if one.published is None or one.apart is None:
        return ""
    return f"{100 * one.published[0]:.2f} ± {100 * one.published[1]:.1f} ({one.apart:+.1f} deviations from it)"
