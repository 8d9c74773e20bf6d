"""A comparison from its plan to its result: prepare, tune, run what is missing, judge.

Everything that is known of a run lies in its folder. Nothing here is state: a comparison that is interrupted starts
again with the same plan, finds what is done, and ends with the same table.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jsonargparse import Namespace
from pytorch_lightning import Trainer
from tqdm import tqdm

from lossopt.comparison.baselines import PIXELS, baseline_tasks, is_baseline
from lossopt.comparison.diary import Diary
from lossopt.comparison.judge import ALPHA, judge
from lossopt.comparison.outcomes import check_same_surroundings, is_done, score_of
from lossopt.comparison.plan import Plan
from lossopt.comparison.result import Comparison, Tuning
from lossopt.comparison.settings import Task, Variant, tasks_of, trial_task, variants_of, with_values
from lossopt.comparison.statistics import seeds_needed
from lossopt.comparison.tuning import spaces_of, tune
from lossopt.comparison.workers import Ended, execute
from lossopt.config import instantiate, parse
from lossopt.data.dataset import Splits
from lossopt.errors import ConfigError, LossoptError
from lossopt.preflight import check_data, check_settings
from lossopt.runs import flattened
from lossopt.training import quiet_lightning

_STEPS = 3  # timed ones; the first warms up
_FORWARD = 0.4  # of a step's time: embedding without a gradient
_START = 4.0  # seconds: reading the data, W&B, checkpoints

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A plan that will run.

    splits: of its data. pace: seconds that an image takes each variant, roughly; empty if all runs are done.
    took: seconds of the preparation.
    """

    plan: Plan
    variants: Sequence[Variant]
    splits: Splits
    pace: Mapping[str, float]
    took: float

    def seconds(self, task: Task, images: int) -> float:
        """That a run may take."""
        splits, validations = self.splits, self.plan.validations
        embedded = len(splits.test) + (validations + 2) * len(splits.validation)
        return _START + self.pace[task.variant] * (images + _FORWARD * embedded)


def prepare(plan: Plan) -> Prepared:
    """Refuses what can be refused before training, and times a few steps of each variant.

    Raises:
        ConfigError, DataError: a variant cannot run; it is named.
    """
    began = time.perf_counter()
    variants = variants_of(plan)
    if plan.tuning:
        _check_tuning(plan, variants)
    tasks = tasks_of(plan, variants)
    check_same_surroundings(tasks, plan.threads)
    missing = plan.tuning is not None or any(not is_done(task) for task in tasks)
    known: dict[str, Splits] = {}  # by source: read once
    pace = {}
    for one in variants:
        source = json.dumps(one.config["data"]["init_args"]["source"], sort_keys=True)
        try:
            with quiet_lightning(), _threads(plan.threads):
                made = instantiate(parse([], dict(one.config)))
                made.data.seed = 0
                made.data.splits = known.get(source)
                trainer = check_settings(made)
                made.data.setup("fit")
                check_data(made)
                if missing:
                    pace[one.name] = _pace(made, trainer) / one.images_per_batch
        except LossoptError as wrong:
            raise type(wrong)(f"{plan.path}, variant {one.name!r}: {wrong}") from wrong
        except Exception as wrong:  # of a component, perhaps of the user's own
            raise ConfigError(
                f"{plan.path}, variant {one.name!r}: it cannot make a training step: {type(wrong).__name__}: {wrong}. "
                "`lossopt train` with its keys shows where."
            ) from wrong
        known[source] = made.data.splits
        if plan.unit == "group" and made.data.splits.test.groups is None:
            raise ConfigError(
                f"{plan.path}: unit is 'group', but the test split has no groups. Give the data a group column, or set "
                "unit: class."
            )
        _check_same_test(variants[0], one, next(iter(known.values())), made.data.splits, plan)
    return Prepared(plan, variants, next(iter(known.values())), pace, time.perf_counter() - began)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """So many in here, and then as many as before: they change the last bits of other runs of this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_tuning(plan: Plan, variants: Sequence[Variant]) -> None:
    """Every range must be of a key that a variant has, does not set itself, and that takes any number."""
    if plan.tuning is None:
        return
    spaces = spaces_of(plan.tuning, {one.name: flattened(one.config) for one in variants})
    for one in variants:
        for key in spaces[one.name]:
            if key in flattened(dict(one.overrides)):
                raise ConfigError(
                    f"{plan.path}: {key} is tuned, and the variant {one.name!r} sets it: one would replace the other. "
                    "Tune it, or set it."
                )
        values = {key: bounds.at(0.5) for key, bounds in spaces[one.name].items()}
        trial_task(plan, one, values, plan.tuning.images or plan.images, plan.tuning.seed)  # refuses what does not fit


def _check_same_test(first: Variant, other: Variant, splits: Splits, others: Splits, plan: Plan) -> None:
    """Figures of different questions cannot be paired."""
    exclude = [one.config["retrieval"]["exclude"] for one in (first, other)]
    same = list(splits.test.names) == list(others.test.names) and torch.equal(splits.test.labels, others.test.labels)
    if not same or exclude[0] != exclude[1]:
        raise ConfigError(
            f"{plan.path}: {other.name!r} would be evaluated on other queries than {first.name!r}: "
            + (f"retrieval.exclude is {exclude[1]!r}, not {exclude[0]!r}. " if same else "its test split is another. ")
            + "Variants may differ in what they train on, not in what is asked of them."
        )


def _pace(made: Namespace, trainer: Trainer) -> float:
    """Seconds of a training step."""
    model, data = made.model.train(), made.data
    batch = next(iter(data.train_dataloader()))
    times = []
    for _ in range(_STEPS):
        began = time.perf_counter()
        with trainer.strategy.precision_plugin.train_step_context():
            loss = model.training_step(data.on_after_batch_transfer(batch, 0), 0)
        if loss is not None and loss.requires_grad:
            loss.backward()
        times.append(time.perf_counter() - began)
    return min(times)


def workers_for(plan: Plan, asked: int | None, cores: int) -> int:
    """Runs side by side, each with the plan's threads.

    Raises:
        ConfigError: together they would have more threads than there are cores.
    """
    most = max(1, cores // plan.threads)
    if asked is not None and asked > most:
        raise ConfigError(
            f"--workers {asked} with threads: {plan.threads} each need {asked * plan.threads} cores, but there are "
            f"{cores}: all would be slower. Give --workers {most}, or fewer threads in the plan."
        )
    return asked or most


def announce(prepared: Prepared, workers: int) -> str:
    """How many runs there are, how many are done, and about how long the others take."""
    plan, variants = prepared.plan, prepared.variants
    tasks = tasks_of(plan, variants)
    missing = [task for task in tasks if not is_done(task)]
    seconds = sum(prepared.seconds(task, plan.images) for task in missing)
    lines = [
        f"{plan.name}: {len(variants)} variants x {len(plan.seeds)} seeds, {variants[0].images:,} images each, by test "
        f"{plan.metric}",
        prepared.splits.description,
    ]
    pairs = len(variants) * (len(variants) - 1) // 2
    needed = seeds_needed(pairs, plan.correction, ALPHA)
    if len(plan.seeds) < needed:
        fewer = seeds_needed(pairs, "max-t", ALPHA)
        other = f", {fewer} with correction: max-t" if fewer < needed else ""
        lines.append(f"intervals, but no verdict: {pairs} pairs need {needed} seeds with {plan.correction}{other}")
    together = f"{workers} side by side, {plan.threads} {'thread' if plan.threads == 1 else 'threads'} each"
    if plan.tuning:
        images, trials = plan.tuning.images or plan.images, plan.tuning.trials
        seconds += trials * sum(_START + prepared.pace[one.name] * images for one in variants)
        lines.append(f"tuned first, on validation: {trials} trials of {images:,} images for each variant")
        lines.append(
            f"{len(tasks)} runs, about {duration(seconds / workers)} with {together}, less what is done already"
        )
    else:
        lines.append(f"{len(tasks)} runs, {len(tasks) - len(missing)} done already")
        lines[-1] += f"; about {duration(seconds / workers)} with {together}" if missing else ""
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Rounded as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def conduct(prepared: Prepared, workers: int, say: Say) -> Comparison:
    """Runs what is missing, and judges.

    Args:
        prepared: the plan.
        workers: runs side by side.
        say: told each run as it ends, and what a person would want to know.

    Raises:
        LossoptError: runs could not be made for a reason that has nothing to do with them (a full disk, no memory);
            what is done is kept, and the same command goes on.
    """
    plan, diary = prepared.plan, Diary(prepared.plan.folder, workers, prepared.took)
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        raise ConfigError(
            f"{plan.path}: cannot make {plan.folder} for the runs: {refused.strerror}. Set another output."
        ) from refused
    variants, tuning = prepared.variants, None
    if plan.tuning:
        tuning = _tuned(prepared, workers, diary, say)
        variants = [with_values(one, plan, tuning.chosen.get(one.name, {})) for one in variants]
    tasks = tasks_of(plan, variants)
    _run([*baseline_tasks(plan, tasks), *tasks], prepared, plan.images, workers, diary, say)
    return judge(plan, variants, tasks, prepared.splits.description, tuning, diary)


def _run(
    tasks: Sequence[Task], prepared: Prepared, images: int, workers: int, diary: Diary, say: Say, later: int = 0
) -> None:
    """Executes those tasks that are not done yet, under a progress bar over their images.

    later: images of runs that come after these.

    Raises:
        ConfigError: some were done under other versions. LossoptError: some ended without being a result.
    """
    check_same_surroundings(tasks, prepared.plan.threads)
    tasks = [task for task in tasks if not is_done(task)]
    stopped: list[Ended] = []
    seen: dict[str, int] = {}
    began = time.perf_counter()
    trained = sum(not is_baseline(task) for task in tasks)
    with tqdm(total=images * trained, unit=" images", unit_scale=True, disable=None, leave=False) as bar:

        def count(task: Task, so_far: int) -> None:
            bar.update(so_far - seen.get(task.digest, 0))
            seen[task.digest] = so_far

        running = execute(tasks, workers, prepared.plan.threads, count)
        for number, ended in enumerate(running, 1):
            if not is_baseline(ended.task):
                count(ended.task, images)
            diary.note(ended)
            left = (time.perf_counter() - began) / max(number, workers) * (len(tasks) - number + later / images)
            say(f"{number:>4} of {len(tasks)}  {_line(ended, prepared.plan.metric)}, {duration(left)} left")
            if ended.how == "stopped":
                stopped.append(ended)
                if ended.everyones:
                    running.close()  # what is at work goes on from its last checkpoint
                    break
    if stopped:
        first = stopped[0]
        runs = "1 run" if len(stopped) == 1 else f"{len(stopped)} runs"
        raise LossoptError(
            f"{runs} could not be made, first {first.task.variant!r} with seed {first.task.seed}: "
            f"{first.words.rstrip('.')}. What is done is kept in {prepared.plan.folder}; the same command goes on with "
            "what is missing."
        )


def _line(ended: Ended, metric: str) -> str:
    task = ended.task
    name = task.variant if task.variant == PIXELS else f"{task.variant}, seed {task.seed}"
    told = f"{name}: {ended.how} in {ended.around:.0f} s" + (f" ({ended.words})" if ended.words else "")
    score = score_of(task, metric) if ended.how == "finished" else None
    return told if score is None else f"{told}, validation {metric} {100 * score:.1f}"


def _tuned(prepared: Prepared, workers: int, diary: Diary, say: Say) -> Tuning:
    """The best settings of each variant on validation, with the same number of trials for each."""
    plan, settings = prepared.plan, prepared.plan.tuning
    if settings is None:
        raise ValueError("This plan has no tuning.")
    variants = {one.name: one for one in prepared.variants}
    images = settings.images or plan.images
    own = {name: flattened(one.config) for name, one in variants.items()}
    rounds: list[int] = []

    def execute_round(asked: Mapping[str, Mapping[str, float]]) -> Mapping[str, float | None]:
        trials = {
            name: trial_task(plan, variants[name], values, images, settings.seed) for name, values in asked.items()
        }
        rounds.append(len(trials))
        later = (settings.trials - len(rounds)) * len(trials) * images + len(variants) * len(plan.seeds) * plan.images
        _run(list(trials.values()), prepared, images, workers, diary, say, later)
        return {name: score_of(task, plan.metric) for name, task in trials.items()}

    spaces = spaces_of(settings, own)
    return tune(settings, spaces, own, execute_round, say, metric=plan.metric, images=images)
