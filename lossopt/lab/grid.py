"""A grid of small trainings: every variant with every seed, side by side, each an ordinary run, found again when done.

name: fmnist_2c2d                       # default: the file's name
base: ../fmnist_2c2d.yaml               # relative to the file; a list is merged, the last one wins
set: {trainer.max_epochs: 5}            # for all variants
variants: {SGD: {model.init_args.optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.158}}}, Adam: {}}
seeds: 3                                # 0 to 2, or a list
threads: 1                              # of each run
output: runs

Where `lossopt compare` pairs and tests retrieval runs at one budget, a grid only runs and reads back.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from lossopt.comparison.outcomes import check_same_surroundings, is_done
from lossopt.comparison.plan import read_entries
from lossopt.comparison.settings import Task, changed_config
from lossopt.comparison.workers import execute, failure_of
from lossopt.config import instantiate, parse
from lossopt.data.dataset import Splits
from lossopt.errors import ConfigError, LossoptError
from lossopt.health import Finding, read_health
from lossopt.preflight import check_data, check_settings
from lossopt.runs import RESULTS, RunResult, config_hash, flattened, result_of
from lossopt.tracking import METRICS_FILE, read_metrics
from lossopt.training import quiet_lightning

Say = Callable[[str], None]
OWN_KEYS = {  # what a grid sets for every run, and where it says so
    "seed": "seeds",
    "data.init_args.seed": "seeds",
    "name": "name",
    "output": "output",
    "trainer.devices": "--workers",
}


@dataclass(frozen=True)
class Grid:
    """What is trained.

    name: of the folder of its runs. base: configuration files. set: dotted keys and values for all variants. variants:
    name to dotted keys and values. seeds: of every variant. threads: of each run; they change the last bits. output:
    folder of all runs. path: of the file.
    """

    name: str
    base: Sequence[Path]
    variants: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    path: Path
    set: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    output: Path = Path("runs")

    @property
    def folder(self) -> Path:
        """Where the runs and the page lie."""
        return self.output / self.name


class Outcome(NamedTuple):
    """What one run left.

    config: resolved. result: None if it failed. rows: what it logged, in order (`val/...` of each epoch among them).
    health: what went wrong on the way. failure: the error that ended it; None: it ended well.
    """

    variant: str
    seed: int
    folder: Path
    config: Mapping[str, Any]
    result: RunResult | None
    rows: Sequence[Mapping[str, Any]]
    health: tuple[Finding, ...]
    failure: str | None

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(epoch, value) of a logged figure at each validation; epoch 0 is the untrained network."""
        return [(int(row["epoch"]), float(row[name])) for row in self.rows if name in row]


def read_grid(path: Path) -> Grid:
    """Reads and checks a grid.

    Raises:
        ConfigError: there is no such file, it is not YAML, or an entry is unknown, missing or out of its bounds.
    """
    return Grid(path=path, **read_entries(path, [own.name for own in fields(Grid)], ("base", "variants", "seeds"), 1))


def tasks_of(grid: Grid) -> list[Task]:
    """Every run, seed by seed.

    Raises:
        ConfigError: a key or value of a variant does not fit.
    """
    for where, changed in (("set", grid.set), *((f"variant {name!r}", one) for name, one in grid.variants.items())):
        for key in flattened(dict(changed)):
            if key in OWN_KEYS:
                raise ConfigError(
                    f"{grid.path}: {where} sets {key}, which a grid sets for all runs by {OWN_KEYS[key]}."
                )
    configs = {}
    for name, changed in grid.variants.items():
        config = changed_config(grid.base, (grid.set, changed), f"{grid.path}, variant {name!r}")
        config["name"], config["output"] = f"{grid.name}/{name.replace(' ', '-')}", str(grid.output)
        config["data"]["init_args"]["seed"], config["trainer"]["devices"] = None, 1  # the data's seed is the run's
        configs[name] = config
    tasks = []
    for seed in grid.seeds:
        for name, config in configs.items():
            own = {**config, "seed": seed}
            tasks.append(Task(name, seed, own, config_hash(own), grid.folder / name.replace(" ", "-")))
    return tasks


def check(grid: Grid, tasks: Sequence[Task]) -> None:
    """Refuses what can be refused before any training.

    Raises:
        ConfigError, DataError: a variant cannot run; it is named. Or runs that are done were made by other versions.
    """
    check_same_surroundings(tasks, grid.threads)
    known: dict[str, Splits] = {}  # by data: read once
    for task in {task.variant: task for task in tasks if not is_done(task)}.values():
        source = json.dumps(task.config["data"], sort_keys=True)
        try:
            with quiet_lightning():
                made = instantiate(parse([], dict(task.config)))
                made.data.splits = known.get(source)
                check_settings(made)
                made.data.setup("fit")
                check_data(made)
        except LossoptError as wrong:
            raise type(wrong)(f"{grid.path}, variant {task.variant!r}: {wrong}") from wrong
        known[source] = made.data.splits


def train_grid(grid: Grid, workers: int, say: Say) -> list[Outcome]:
    """Runs what is missing, `workers` side by side, and reads back what all runs left; one that failed is an outcome.

    Raises:
        LossoptError: a run could not be made for a reason that has nothing to do with it (a full disk); what is done is
            kept, and the same command goes on.
    """
    tasks = tasks_of(grid)
    missing = [task for task in tasks if not is_done(task)]
    check(grid, tasks)
    if missing:
        done = len(tasks) - len(missing)
        say(f"{grid.name}: {len(tasks)} runs, {done} done already, {workers} side by side")
    for number, ended in enumerate(execute(missing, workers, grid.threads), 1):
        what = f"{ended.task.variant}, seed {ended.task.seed}: {ended.how} in {ended.around:.0f} s"
        say(f"{number:>4} of {len(missing)}  {what}" + (f" ({ended.words})" if ended.words else ""))
        if ended.how == "stopped":
            raise LossoptError(
                f"The run of {ended.task.variant!r} with seed {ended.task.seed} could not be made: "
                f"{ended.words.rstrip('.')}. What is done is kept in {grid.folder}; the same command goes on."
            )
    return [outcome_of(task) for task in tasks]


def outcome_of(task: Task) -> Outcome:
    """What a done run left.

    Raises:
        LossoptError: it has gone. DataError: a file of it cannot be read.
    """
    folder = task.found()
    if folder is None:
        raise LossoptError(f"The run of {task.variant!r}, seed {task.seed}, has gone. Start the command again.")
    record = read_health(folder)
    return Outcome(
        task.variant,
        task.seed,
        folder,
        task.config,
        result_of(folder) if (folder / RESULTS).is_file() else None,
        read_metrics(folder / METRICS_FILE) if (folder / METRICS_FILE).is_file() else [],
        () if record is None else record.findings,
        failure_of(folder),
    )
