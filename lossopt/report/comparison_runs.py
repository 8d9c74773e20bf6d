"""What the runs of a comparison cost, how each ended, and what their health said, grouped by variant and fault."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lossopt.comparison.conclusion import TRAINED, trained_of
from lossopt.comparison.result import Comparison, Run, Standing
from lossopt.report.comparison_curves import Spark, spark_of
from lossopt.report.record import without_paths
from lossopt.report.training import TITLES

_ERROR_SHOWN = 600  # letters


class CostRow(NamedTuple):
    """One variant. seconds: (median, least, greatest) of its runs; rate: images/s; memory: bytes, the greatest.

    images: least and greatest seen by a run. tuples: (first, last) compared per batch, means over the runs; None each
    where nothing was logged.
    """

    variant: str
    rate: float | None
    seconds: tuple[float, float, float] | None
    memory: int | None
    images: tuple[int, int]
    spark: Spark | None
    tuples: tuple[float, float] | None


class Group(NamedTuple):
    """The runs of a variant with one fault. hit: how many of its runs; seeds: theirs; what: of the first of them."""

    variant: str
    title: str
    hit: int
    runs: int
    seeds: str
    what: str
    try_first: str


class GridRow(NamedTuple):
    """A variant with one (score, status, words) for each seed; None where it has no run of that seed."""

    variant: str
    trained: bool
    cells: list[tuple[float, str, str] | None]


@dataclass(frozen=True)
class Grid:
    """Every run. seeds: the columns."""

    seeds: Sequence[int]
    rows: list[GridRow]


def costs_of(comparison: Comparison) -> list[CostRow]:
    """A row for each trained variant, by rank."""
    return [_cost(one) for one in trained_of(comparison)]


def _cost(one: Standing) -> CostRow:
    done = [run for run in one.runs if run.status != "failed"]
    seconds = np.array([run.seconds for run in done])
    rates = [run.images_per_second for run in done if run.images_per_second is not None]
    memories = [run.peak_memory for run in done if run.peak_memory is not None]
    images = [run.images for run in done] or [0]
    logged = [run.activity for run in done if run.activity]
    return CostRow(
        variant=one.variant,
        rate=float(np.median(rates)) if rates else None,
        seconds=(float(np.median(seconds)), float(seconds.min()), float(seconds.max())) if done else None,
        memory=max(memories) if memories else None,
        images=(min(images), max(images)),
        spark=spark_of(done),
        tuples=(
            float(np.mean([steps[0].tuples for steps in logged])),
            float(np.mean([steps[-1].tuples for steps in logged])),
        )
        if logged
        else None,
    )


def groups_of(comparison: Comparison) -> list[Group]:
    """Failed runs first, then collapsed ones, then what health found in others; grouped by variant and fault."""
    return [
        *(group for one in comparison.standings for group in _failed(one)),
        *(group for one in comparison.standings for group in _collapsed(one)),
        *(group for one in comparison.standings for group in _found(one)),
    ]


def _failed(one: Standing) -> list[Group]:
    """Runs that ended with the same words are one group."""
    errors: dict[str, list[Run]] = {}
    for run in one.runs:
        if run.status == "failed":
            errors.setdefault(without_paths(" ".join(run.error.split())), []).append(run)
    advice = "with the figures of the untrained network of its seed"
    return [
        _group(one, "Failed", runs, words[:_ERROR_SHOWN] or "no words were left", advice)
        for words, runs in errors.items()
    ]


def _collapsed(one: Standing) -> list[Group]:
    """Collapsed when training ended, with what health said of it."""
    runs = [run for run in one.runs if run.status == "collapsed"]
    if not runs:
        return []
    said = next((found for run in runs for found in run.health if found.kind == "collapse"), None)
    words = "the embeddings were collapsed when training ended, though health had no finding during training"
    if said is not None:
        words = f"{said.when}: {without_paths(said.what)}"
    return [_group(one, "Collapsed", runs, words, said.try_first if said is not None else "")]


def _found(one: Standing) -> list[Group]:
    """Findings by kind; the collapse of runs that are counted as collapsed is told above."""
    kinds: dict[str, list[Run]] = {}
    for run in one.runs:
        for found in run.health:
            if not (found.kind == "collapse" and run.status == "collapsed"):
                kinds.setdefault(found.kind, []).append(run)
    groups = []
    for kind, runs in kinds.items():
        said = next(found for found in runs[0].health if found.kind == kind)
        title = TITLES[said.kind] + (" for a while" if kind == "collapse" else "")
        groups.append(_group(one, title, runs, f"{said.when}: {without_paths(said.what)}", said.try_first))
    return groups


def _group(one: Standing, title: str, runs: Sequence[Run], what: str, try_first: str) -> Group:
    seeds = ", ".join(str(run.seed) for run in runs if run.seed is not None)
    return Group(one.variant, title, len(runs), len(one.runs), seeds, what, try_first)


def grid_of(comparison: Comparison) -> Grid:
    """The primary metric of each run."""
    rows = []
    for one in comparison.standings:
        by_seed = {run.seed: (run, float(score)) for run, score in zip(one.runs, one.scores, strict=True)}
        alone = by_seed.get(None)
        cells = []
        for seed in comparison.seeds:
            run_and_score = by_seed.get(seed, alone)
            cells.append(None if run_and_score is None else _cell(*run_and_score))
        rows.append(GridRow(one.variant, one.role in TRAINED, cells))
    return Grid(comparison.seeds, rows)


def _cell(run: Run, score: float) -> tuple[float, str, str]:
    return score, run.status, f"epoch {run.epoch}" if run.status != "failed" and run.epoch else run.status
