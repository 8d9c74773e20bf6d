"""What a run left in its folder, read back: figures, curve, cost, health, and its figures query by query."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from lossopt.comparison.baselines import is_baseline, is_measured
from lossopt.comparison.result import Activity, Point, Run, Status
from lossopt.comparison.settings import Task
from lossopt.comparison.workers import failure_of
from lossopt.errors import ConfigError, EvaluationError
from lossopt.health import Finding, HealthRecord, read_health
from lossopt.retrieval.queries import QUERIES, QueryFigures, read_queries
from lossopt.runs import RESULTS, result_of
from lossopt.tracking import read_metrics
from lossopt.training import environment

_LATE = 0.9  # of the steps: a collapse that is still there by then was not overcome
_OWN = ("lossopt==", "torch==", "torchvision==", "pytorch-lightning==", "threads=", "accelerator=")  # change figures


class Outcome(NamedTuple):
    """A run and its figures query by query."""

    run: Run
    queries: QueryFigures


def is_done(task: Task) -> bool:
    """Whether its run need not run again: it has finished, or its failure is a result."""
    if is_baseline(task):
        return is_measured(task)
    folder = task.found()
    return folder is not None and ((folder / RESULTS).is_file() or failure_of(folder) is not None)


def outcome_of(task: Task, untrained: QueryFigures | None) -> Outcome:
    """What a done run left; one that failed counts with the network that it began with.

    Raises:
        DataError: a file of it cannot be read.
    """
    folder = task.found()
    if folder is None:
        raise ConfigError(f"The run of {task.variant!r}, seed {task.seed}, has gone. Start the command again.")
    rows = _rows(folder)
    record = read_health(folder)
    findings = () if record is None else record.findings
    known: dict[str, Any] = {
        "folder": folder,
        "curve": _curve(rows),
        "activity": _activity(rows),
        "health": findings,
        "readings": None if record is None else record.readings,
        "images_per_second": _median(rows, "train/images_per_second"),
    }
    if not (folder / RESULTS).is_file():
        last = rows[-1] if rows else {}
        known |= {"images": int(last.get("train/images", 0)), "seconds": float(last.get("train/seconds", 0.0))}
        words = failure_of(folder) or ""
        if untrained is None:
            raise EvaluationError(
                f"The run of {task.variant!r} with seed {task.seed} failed ({words}), and the untrained network "
                "that it would count with cannot be measured either. Look at the encoder and the test split."
            )
        return Outcome(Run(task.variant, task.seed, "failed", untrained.means, error=words, **known), untrained)
    result, queries = result_of(folder), read_queries(folder / QUERIES)
    status: Status = "collapsed" if ended_collapsed(record) else "finished"
    known |= {"epoch": result.epoch, "images": result.images, "seconds": result.seconds}
    return Outcome(
        Run(task.variant, task.seed, status, queries.means, peak_memory=result.peak_memory or None, **known), queries
    )


def ended_collapsed(record: HealthRecord | None) -> bool:
    """Whether the embeddings were collapsed when training ended, rather than for a while."""
    return record is not None and any(_is_late_collapse(finding, record.steps) for finding in record.findings)


def _is_late_collapse(finding: Finding, steps: int) -> bool:
    return finding.kind == "collapse" and finding.last_step >= _LATE * steps


def score_of(task: Task, metric: str) -> float | None:
    """The metric on validation, at the chosen epoch; None: the run failed."""
    folder = task.found()
    if folder is None or not (folder / RESULTS).is_file():
        return None
    return result_of(folder).validation.get(f"val/{metric}")


def check_same_surroundings(tasks: Sequence[Task], threads: int) -> None:
    """Refuses to mix runs of several versions or thread counts in one comparison.

    Args:
        tasks: of the plan.
        threads: of each run.

    Raises:
        ConfigError: a run that would be reused was made otherwise; it is named, with what differs.
    """
    here = _surroundings(environment(threads=threads))
    for task in tasks:
        folder = task.found()
        if folder is None or not (folder / "environment.txt").is_file():
            continue
        there = _surroundings((folder / "environment.txt").read_text(encoding="utf-8"))
        differing = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        if differing:
            told = "; ".join(f"{name} was {there.get(name)}, is {here.get(name)}" for name in differing)
            raise ConfigError(
                f"{folder} was made elsewise ({told}), and figures of both would be compared as if they were alike. "
                "Set another output in the plan for new runs of all, or go back to what it was."
            )


def _surroundings(environment: str) -> dict[str, str]:
    lines = [line for line in environment.splitlines() if line.startswith(_OWN)]
    return dict(line.replace("==", "=", 1).split("=", 1) for line in lines)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder) if (folder / "metrics.jsonl").is_file() else []


def _curve(rows: Sequence[dict[str, Any]]) -> list[Point]:
    """Every validation, the untrained network first."""
    return [
        Point(
            images=float(row.get("train/images", 0.0)),
            seconds=float(row.get("train/seconds", 0.0)),
            figures={key.removeprefix("val/"): value for key, value in row.items() if key.startswith("val/")},
        )
        for row in rows
        if "val/map@r" in row
    ]


def _activity(rows: Sequence[dict[str, Any]]) -> list[Activity]:
    return [
        Activity(row["train/images"], row["miner/share_active"], row.get("miner/tuples", 0.0))
        for row in rows
        if "miner/share_active" in row
    ]


def _median(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return median(values) if values else None
