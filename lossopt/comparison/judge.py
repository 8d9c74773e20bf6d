"""What the runs of a plan amount to: standings with intervals, all pairs with their verdicts, and what must be said.

Letters: v variants, s seeds, q queries, c units.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lossopt.comparison.assess import assess_pairs, interval_of
from lossopt.comparison.baselines import PIXELS, UNTRAINED, baseline_figures, pixels_task, untrained_task
from lossopt.comparison.diary import Diary
from lossopt.comparison.outcomes import outcome_of
from lossopt.comparison.plan import Plan
from lossopt.comparison.result import Comparison, Role, Run, Standing, Tuning
from lossopt.comparison.settings import Task, Variant, differing_data
from lossopt.comparison.statistics import seeds_needed
from lossopt.errors import EvaluationError
from lossopt.retrieval.queries import QueryFigures
from lossopt.runs import flattened
from lossopt.training import environment

ALPHA = 0.05
_BASELINES: dict[str, Role] = {UNTRAINED: "untrained", PIXELS: "raw pixels"}
_PLACES = ("name", "output", "seed")
_WRITTEN = {"map@r": "MAP@R", "map": "MAP", "mrr": "MRR", "r_precision": "R-precision"}


def judge(
    plan: Plan,
    variants: Sequence[Variant],
    tasks: Sequence[Task],
    data: str,
    tuning: Tuning | None,
    diary: Diary,
) -> Comparison:
    """The comparison of runs that are done.

    Args:
        plan, variants, tasks: what was to be run; every task is done, and so are their baselines.
        data: what was trained and evaluated on, in words.
        tuning: how the variants were tuned, if they were.
        diary: how long it took.

    Raises:
        EvaluationError: the runs were evaluated on different queries, or without groups where the plan's unit is one.
    """
    baselines = [pixels_task(plan, tasks[0].config), *(untrained_task(plan, variants[0].config, s) for s in plan.seeds)]
    figures = {(task.variant, task.seed): baseline_figures(task) for task in baselines}
    found = {
        one.name: [
            outcome_of(task, baseline_figures(untrained_task(plan, task.config, task.seed)))
            for task in tasks
            if task.variant == one.name
        ]
        for one in variants
    }
    every = [outcome for outcomes in found.values() for outcome in outcomes]
    first = every[0].queries
    units = _Units(first, plan)
    for outcome in every:
        units.check(outcome.queries, f"{outcome.run.variant!r} with seed {outcome.run.seed}")
    by_unit = {name: np.stack([units.means(one.queries) for one in outcomes]) for name, outcomes in found.items()}
    standings = [
        _standing(one.name, one.role, [outcome.run for outcome in found[one.name]], plan, by_unit[one.name], units)
        for one in variants
    ]
    standings = [
        replace(row, overrides=one.overrides, tuned=one.tuned) for row, one in zip(standings, variants, strict=True)
    ]
    scores = np.stack([row.scores for row in standings])
    names = [one.name for one in variants]
    stacked = np.stack([by_unit[name] for name in names])
    words = _WRITTEN.get(plan.metric, plan.metric)
    pairs = assess_pairs(names, scores, stacked, units.weights, words, plan.correction, ALPHA)
    for name, role in _BASELINES.items():
        told = {seed: one for (variant, seed), one in figures.items() if variant == name and one is not None}
        if told:
            runs = [
                Run(name, None if name == PIXELS else seed, "finished", one.means, None) for seed, one in told.items()
            ]
            by_seed = np.stack([units.means(one) for one in told.values()])
            standings.append(_standing(name, role, runs, plan, by_seed, units))
    standings.sort(key=lambda one: -one.mean)  # stable: of equal ones the first of the plan
    return Comparison(
        name=plan.name,
        plan=_as_json(plan, variants),
        metric=plan.metric,
        seeds=tuple(plan.seeds),
        images=variants[0].images,
        wall_seconds=diary.wall_seconds(),
        standings=standings,
        pairs=pairs,
        correction=plan.correction,
        alpha=ALPHA,
        seeds_needed=seeds_needed(len(pairs), plan.correction, ALPHA),
        unit=plan.unit,
        units=len(units.weights),
        queries=len(first.names),
        gallery=first.gallery,
        data=data,
        environment=environment(threads=plan.threads).splitlines(),
        workers=diary.most_workers(),
        overhead=diary.overhead(),
        tuning=tuning,
        notes=[
            *(tuning.notes if tuning else ()),
            *_notes(plan, variants, [task for task in baselines if figures[task.variant, task.seed] is None]),
        ],
    )


class _Units:
    """What intervals draw anew besides seeds: the classes of the queries, or their groups."""

    def __init__(self, like: QueryFigures, plan: Plan) -> None:
        if plan.unit == "group" and like.groups is None:
            raise EvaluationError(
                f"{plan.path}: unit is 'group', but the test split has no groups. Give the data a group column, or set "
                "unit: class."
            )
        numbers = like.labels if plan.unit == "class" or like.groups is None else like.groups
        self.metric, self.names = plan.metric, like.names
        self._unit = np.unique(numbers, return_inverse=True)[1].reshape(-1)
        self.weights = np.bincount(self._unit).astype(float)

    def check(self, figures: QueryFigures, whose: str) -> None:
        """Refuses figures of other queries: they cannot be paired."""
        if figures.names != self.names:
            raise EvaluationError(
                f"The run of {whose} was evaluated on {len(figures.names):,} queries that are not the "
                f"{len(self.names):,} of the others. Variants may differ in what they train on, not in the test split."
            )

    def means(self, figures: QueryFigures) -> np.ndarray:
        """(c,) mean of the primary metric over the queries of each unit."""
        return np.bincount(self._unit, weights=figures.metrics[self.metric]) / self.weights


def _standing(name: str, role: Role, runs: Sequence[Run], plan: Plan, by_unit: np.ndarray, units: _Units) -> Standing:
    scores = np.array([run.figures[plan.metric] for run in runs])
    metrics = [metric for metric in runs[0].figures if all(metric in run.figures for run in runs)]
    return Standing(
        variant=name,
        role=role,
        overrides={},
        runs=runs,
        scores=scores,
        mean=float(scores.mean()),
        deviation=float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
        interval=interval_of(by_unit, units.weights),
        means={metric: float(np.mean([run.figures[metric] for run in runs])) for metric in metrics},
        failed=sum(run.status == "failed" for run in runs),
        collapsed=sum(run.status == "collapsed" for run in runs),
    )


def _notes(plan: Plan, variants: Sequence[Variant], refused: Sequence[Task]) -> list[str]:
    """What is not alike between variants by design, where the random miner comes from, and what has no figures."""
    notes = [
        f"No figure can be given for {task.variant}: see {task.folder.name} in the plan's folder." for task in refused
    ]
    if plan.tuning is None:
        notes.append("Nothing was tuned: a variant may be behind because settings that all share suit another better.")
    own = {one.name: [key for key in one.overrides if key.startswith("data.")] for one in variants}
    for name, differing in differing_data(variants).items():
        keys = ", ".join(own[name] or differing[:4])
        notes.append(f"{name} is trained on other batches than the rest, by design: it sets {keys}.")
    encoders = {json.dumps(one.config["model"]["init_args"]["encoder"], sort_keys=True) for one in variants}
    if len(encoders) > 1:
        notes.append(f"Encoders differ; the untrained network in the table is that of {variants[0].name}.")
    for one in variants:
        if one.name not in plan.variants:
            keys = ", ".join(f"{key} {value}" for key, value in one.overrides.items())
            notes.append(f"{one.name} was added as the yardstick of all miners: the base with {keys}.")
    return notes


def _as_json(plan: Plan, variants: Sequence[Variant]) -> dict[str, Any]:
    """The plan as one would write it down to repeat it; where it lies on this machine is left out."""
    every = {
        one.name: flattened({key: value for key, value in one.config.items() if key not in _PLACES}) for one in variants
    }
    keys = list(dict.fromkeys(key for config in every.values() for key in config))
    first = every[variants[0].name]
    same = [key for key in keys if all(key in one and one[key] == first.get(key) for one in every.values())]
    return {
        "name": plan.name,
        "base": [file.name for file in plan.base],
        "set": dict(plan.set),
        "variants": {one.name: dict(one.overrides) for one in variants},
        "seeds": list(plan.seeds),
        "images": plan.images,
        "validations": plan.validations,
        "metric": plan.metric,
        **({} if plan.tuning is None else {"tuning": plan.tuning.as_json()}),
        "correction": plan.correction,
        "unit": plan.unit,
        "threads": plan.threads,
        "same for all": {key: first[key] for key in same},
        "resolved": {name: {k: v for k, v in one.items() if k not in same} for name, one in every.items()},
    }
