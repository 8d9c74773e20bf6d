"""What a comparison found, as its table, its page and its files show it: plain data, computed elsewhere.

Letters: v variants, s seeds, c units that intervals draw anew (classes, or groups of them).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lossopt.health import Finding

Status = Literal["finished", "collapsed", "failed"]
Role = Literal["variant", "random miner", "untrained", "raw pixels"]


class Point(NamedTuple):
    """One validation of a run: training images seen and seconds spent by then, and "recall@1", "map@r", ... of it."""

    images: float
    seconds: float
    figures: Mapping[str, float]


class Activity(NamedTuple):
    """Share of the compared tuples with a loss above zero at one logged step, by images seen; tuples: how many."""

    images: float
    share: float
    tuples: float


@dataclass(frozen=True)
class Run:
    """One variant with one seed.

    seed: None where there is nothing random (raw pixels). status: "collapsed": finished, but its embeddings were
    collapsed when training ended; "failed": it ended with `error`, and `figures` are those of the untrained network of
    its seed. figures: metric name to the mean over the queries of the test split, of the epoch that validation chose.
    folder: None for a failed run that wrote none. epoch: the chosen one. seconds: of training and validation.
    readings: logged steps that health looked at; None: unknown. images_per_second: median over the logged steps.
    peak_memory: bytes, of the whole process or of the accelerator.
    """

    variant: str
    seed: int | None
    status: Status
    figures: Mapping[str, float]
    folder: Path | None
    epoch: int = 0
    images: int = 0
    seconds: float = 0.0
    images_per_second: float | None = None
    peak_memory: int | None = None
    curve: Sequence[Point] = ()
    activity: Sequence[Activity] = ()
    health: Sequence[Finding] = ()
    readings: int | None = None
    error: str = ""


@dataclass(frozen=True)
class Standing:
    """One row of the ranking.

    overrides: the keys that the variant changes, dotted, and its values; tuned: those of them that tuning chose.
    runs: one for each seed, in the order of the plan's seeds. scores: (s,) the primary metric. mean, deviation: of
    them (sample standard deviation; 0 for a single one). interval: 95 %, over seeds and units; None: too few of them.
    means: metric name to the mean over seeds. failed, collapsed: how many of the runs.
    """

    variant: str
    role: Role
    overrides: Mapping[str, Any]
    runs: Sequence[Run]
    scores: np.ndarray
    mean: float
    deviation: float
    interval: tuple[float, float] | None
    means: Mapping[str, float]
    failed: int
    collapsed: int
    tuned: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PairComparison:
    """Two trained variants, `a` the one with the higher mean, paired by seed.

    difference: mean of a - b. differences: (s,) per seed. interval: of the mean difference, 95 %, over seeds and units.
    p: exact sign-flip permutation over seeds, two-sided. adjusted: p corrected for all comparisons of the plan.
    improvement: P(a > b) for a new seed of each, ties counted half; improvement_interval: 95 %.
    detectable: the smallest true difference that so many seeds would find with probability 0.8; None: no number of
    seeds so small could. verdict: "better": a is shown to be better; "open": no difference shown; "too few seeds".
    words: the verdict in one or two sentences.
    """

    a: str
    b: str
    difference: float
    differences: np.ndarray
    interval: tuple[float, float] | None
    p: float
    adjusted: float
    improvement: float
    improvement_interval: tuple[float, float] | None
    detectable: float | None
    verdict: Literal["better", "open", "too few seeds"]
    words: str


class Trial(NamedTuple):
    """One setting tried in tuning: dotted keys and values, and its score on validation; None: the run failed."""

    values: Mapping[str, float]
    score: float | None


@dataclass(frozen=True)
class Tuning:
    """How the variants were tuned: the same number of trials for each.

    space: dotted key to its bounds in words. images: seen by each trial. seed: of the trials' runs. metric: maximised,
    on the validation split. trials: variant to its trials in order; none: it has nothing to tune. chosen: variant to
    the values of the best one; empty: its own. notes: what a reader must know: all trials failed, the best one lies at
    the end of a range, ...
    """

    space: Mapping[str, str]
    images: int
    seed: int
    metric: str
    trials: Mapping[str, Sequence[Trial]]
    chosen: Mapping[str, Mapping[str, float]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Comparison:
    """Everything that the table and the page show.

    name: of the plan. plan: the plan as it was resolved, JSON types. metric: the primary one ("recall@1"). seeds: of
    every variant. images: the budget; wall_seconds: from start to end over all sittings, workers side by side.
    standings: best mean first, baselines among them. pairs: of the trained variants, by the ranks of a and b.
    correction: "holm" or "max-t". alpha: 0.05. seeds_needed: for a verdict with so many comparisons.
    unit: what intervals draw anew besides seeds, "class" or "group"; units: how many. queries, gallery: sizes.
    data: what was trained and evaluated on, in words. environment: lines of versions and threads. workers: side by
    side. overhead: share of the workers' time not spent in runs; None: unknown.
    notes: what a reader must know, in words: failed runs, batches that differ by design, ...
    """

    name: str
    plan: Mapping[str, Any]
    metric: str
    seeds: Sequence[int]
    images: int
    wall_seconds: float
    standings: Sequence[Standing]
    pairs: Sequence[PairComparison]
    correction: Literal["holm", "max-t"]
    alpha: float
    seeds_needed: int
    unit: Literal["class", "group"]
    units: int
    queries: int
    gallery: int
    data: str
    environment: Sequence[str]
    workers: int
    overhead: float | None = None
    tuning: Tuning | None = None
    notes: Sequence[str] = ()
