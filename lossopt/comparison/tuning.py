"""Equal tuning: every variant gets the same number of trials, each an ordinary run, scored on the validation split.

Nothing is stored here. What is asked next depends on the seed and on what was told before, so after an interruption
the same settings are asked again, and their runs are found finished.
"""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import qmc

from lossopt.comparison.result import Trial, Tuning
from lossopt.errors import ConfigError
from lossopt.explain import nearest

Values = Mapping[str, float]  # dotted key to value
_SEED = 1000  # far from the seeds that plans count from 0
_DIGITS = 4  # of asked values: they read well, and are the same text in every configuration
# Start-up: the plan's own values, then a Sobol sequence, moved by one random step per key so that it need not begin in
# a corner: the same points for all variants, spread over every whole range, which is what a curve of sensitivity needs.
# After them Optuna's TPE looks closer where the scores are good. It is a pure function of seed and scores (no clock,
# thread or process in it), and its ask and tell have no budget of their own: all variants get the plan's. Trial t never
# depends on how many follow, so that more trials continue the fewer. On 100 simulated bells of 2 keys with noise and a
# cliff where runs fail, the best of 16 trials fell short of the top by 2.0 points of 60 (random search 7.0, only Sobol
# 5.1, TPE from random points 4.1); of 8 trials, which are all start-up, by 9.0 (random 10.7).
_STARTUP = 8  # a power of two, as Sobol points are balanced


class Range(NamedTuple):
    """From `low` to `high`, both allowed; `log`: searched at equal ratios, not at equal steps."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', logarithmic' if self.log else ''}"

    def at(self, share: float) -> float:
        """The value at a share (0 to 1) of the way from low to high, rounded, and never out of the range."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + share * (high - low)
        return self.rounded(math.exp(value) if self.log else value)

    def share(self, value: float) -> float:
        """The way from low to high at which a value lies: the inverse of `at`."""
        low, high, value = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        return (value - low) / (high - low)

    def rounded(self, value: float) -> float:
        """To 4 significant digits, but never out of the range."""
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class TuningSettings:
    """How a plan tunes its variants.

    trials: of each variant. space: dotted key to its range, for every variant that has the key. images: seen by each
    trial; None: the plan's budget. seed: of the trials' runs and of the search. variants: ranges of single variants,
    which replace or add to the common ones.
    """

    trials: int
    space: Mapping[str, Range]
    images: int | None = None
    seed: int = _SEED
    variants: Mapping[str, Mapping[str, Range]] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """All keys that any variant tunes, the common ones first."""
        own = (key for ranges in self.variants.values() for key in ranges)
        return list(dict.fromkeys([*self.space, *own]))

    def as_json(self) -> dict[str, Any]:
        """As a plan writes it."""
        ranges = {name: {key: one._asdict() for key, one in inner.items()} for name, inner in self.variants.items()}
        return {
            "trials": self.trials,
            "images": self.images,
            "seed": self.seed,
            "space": {key: one._asdict() for key, one in self.space.items()},
            "variants": ranges,
        }


def check_tuning(mapping: Any, variants: Sequence[str], seeds: Sequence[int]) -> TuningSettings:
    """The entry `tuning` of a plan.

    Args:
        mapping: as it was read.
        variants: the plan's.
        seeds: the plan's; trials run with another one, so that no variant is chosen on a run that then counts.

    Raises:
        ConfigError: an entry is unknown, missing or out of its bounds, a range is empty, or the seed is the plan's.
    """
    _check_keys(mapping, [one.name for one in fields(TuningSettings)], "tuning", needed=("trials",))
    space = _ranges(mapping.get("space"), "tuning.space")
    own = mapping.get("variants") if mapping.get("variants") is not None else {}
    _check_keys(own, variants, "tuning.variants")
    ranges = {name: _ranges(inner, f"tuning.variants.{name}") for name, inner in own.items()}
    if not space and not any(ranges.values()):
        raise ConfigError(
            "tuning.space is empty. Give what is tuned, such as space: {model.init_args.optimizer.init_args.lr: "
            "{low: 3.0e-4, high: 1.0e-2, log: true}}, or remove tuning."
        )
    images = mapping.get("images")
    seed = _whole(mapping.get("seed", _SEED), "tuning.seed", 0)
    if seed in seeds:
        raise ConfigError(
            f"tuning.seed is {seed}, which is one of the plan's seeds: what is tuned on it would be judged on it. "
            f"Choose another, such as {next(one for one in range(_SEED, _SEED + len(seeds) + 1) if one not in seeds)}."
        )
    return TuningSettings(
        trials=_whole(mapping["trials"], "tuning.trials", 2),
        space=space,
        images=None if images is None else _whole(images, "tuning.images", 1),
        seed=seed,
        variants=ranges,
    )


def spaces_of(settings: TuningSettings, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Range]]:
    """The ranges of each variant: the common ones whose keys it has, and its own. Empty: nothing to tune.

    Args:
        settings: of the plan.
        configs: variant to its resolved configuration, flattened to dotted keys and values.

    Raises:
        ConfigError: a common key that no variant has, or a variant's own key that it has not; nearest one named.
    """
    for key in settings.space:
        if not any(key in config for config in configs.values()):
            every = {one: value for config in configs.values() for one, value in config.items()}
            raise ConfigError(f"tuning.space: no variant has the key {key!r}{_similar(key, every)}")
    for name, ranges in settings.variants.items():
        for key in ranges:
            if key not in configs[name]:
                raise ConfigError(f"tuning.variants: {name!r} has no key {key!r}{_similar(key, configs[name])}")
    return {
        name: {key: one for key, one in {**settings.space, **settings.variants.get(name, {})}.items() if key in config}
        for name, config in configs.items()
    }


def tune(
    settings: TuningSettings,
    spaces: Mapping[str, Mapping[str, Range]],
    own: Mapping[str, Mapping[str, Any]],
    execute: Callable[[Mapping[str, Values]], Mapping[str, float | None]],
    say: Callable[[str], None],
    *,
    metric: str,
    images: int,
) -> Tuning:
    """Asks for the t-th trial of all variants, has them run side by side, and so on; the best of each is chosen.

    The first trial of a variant is the plan's own setting wherever that lies within the ranges, so that tuning never
    ends below it on validation. Of equally good trials the first one is chosen.

    Args:
        settings: trials and seed.
        spaces: variant to the ranges of the keys that it has (`spaces_of`); a variant without any has no trials.
        own: variant to its values before tuning, dotted keys; may have more keys than are tuned.
        execute: runs one round, variant to values, and returns variant to its score on the validation split, larger is
            better; None (or not finite): the run failed. A trial that was run before need not run again.
        say: told one line after each round.
        metric: the score's name. images: seen by each trial; both are kept in the result.

    Raises:
        ConfigError: Optuna is missing.
    """
    optuna = _optuna()
    trials: dict[str, list[Trial]] = {name: [] for name in spaces}
    with _quiet(optuna):
        studies = {name: _Study(optuna, settings, space, own[name]) for name, space in spaces.items() if space}
        for number in range(1, settings.trials + 1) if studies else ():
            asked = {name: study.ask() for name, study in studies.items()}
            scores = execute(asked)
            for name, values in asked.items():
                given = scores[name]
                score = float(given) if given is not None and math.isfinite(given) else None
                studies[name].tell(score)
                trials[name].append(Trial(values, score))
            say(f"Tuning: trial {number} of {settings.trials}; best {metric} of each so far: {_best_in_words(trials)}")
    best = {name: _best(tried) for name, tried in trials.items()}
    return Tuning(
        space=_space_in_words(settings, spaces),
        images=images,
        seed=settings.seed,
        metric=metric,
        trials=trials,
        chosen={name: {} if one is None else one.values for name, one in best.items()},
        notes=[note for name, space in spaces.items() for note in _notes(name, space, trials[name], own[name])],
    )


class _Study:
    """The search of one variant; kept in memory only."""

    def __init__(
        self, optuna: ModuleType, settings: TuningSettings, space: Mapping[str, Range], own: Mapping[str, Any]
    ) -> None:
        self.optuna, self.space = optuna, space
        self.first = _startup(settings, space)
        if all(_is_within(own[key], one) for key, one in space.items()):
            self.first[0] = {key: own[key] for key in space}  # as they are: the run may be there already
        self.distributions = {
            key: optuna.distributions.FloatDistribution(one.low, one.high, log=one.log) for key, one in space.items()
        }
        sampler = optuna.samplers.TPESampler(seed=settings.seed, n_startup_trials=_STARTUP)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)

    def ask(self) -> dict[str, float]:
        """The next setting."""
        number = len(self.study.trials)
        if number < _STARTUP:
            self.study.enqueue_trial(self.first[number])
        self.trial = self.study.ask(self.distributions)
        if number < _STARTUP:
            return self.first[number]
        # the study keeps them as they were: half a unit of the fourth digit apart, far less than its kernels are wide
        return {key: one.rounded(self.trial.params[key]) for key, one in self.space.items()}

    def tell(self, score: float | None) -> None:
        """Ends the trial that was asked for.

        A failed one is told as pruned, which TPE takes for bad. Failed trials it forgets, so that it asks beside them
        again: on one key of which a sixth fails, 9 in 10 of its trials then failed, against 1 in 12.
        """
        pruned = self.optuna.trial.TrialState.PRUNED
        self.study.tell(self.trial, score, state=pruned if score is None else None)


def _startup(settings: TuningSettings, space: Mapping[str, Range]) -> list[dict[str, float]]:
    """The quasi-random points: a key's column is the same for all variants, whatever other keys they have."""
    keys = settings.keys
    steps = np.random.default_rng(settings.seed).random(len(keys))
    shares = (qmc.Sobol(len(keys), scramble=False).random(_STARTUP) + steps) % 1
    return [{key: one.at(row[keys.index(key)]) for key, one in space.items()} for row in shares]


def _best(tried: Sequence[Trial]) -> Trial | None:
    """The first of the best; None: all failed, or there are none."""
    scored = [(trial.score, trial) for trial in tried if trial.score is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def _best_in_words(trials: Mapping[str, Sequence[Trial]]) -> str:
    best = {name: _best(tried) for name, tried in trials.items() if tried}
    return ", ".join(
        f"{name} {'none' if one is None or one.score is None else f'{100 * one.score:.1f}'}"
        for name, one in best.items()
    )


def _space_in_words(settings: TuningSettings, spaces: Mapping[str, Mapping[str, Range]]) -> dict[str, str]:
    """Key to its range; where variants differ in it or lack it, each range with the variants that it holds for."""
    found = {}
    for key in settings.keys:
        names: dict[Range, list[str]] = {}
        for name, space in spaces.items():
            if key in space:
                names.setdefault(space[key], []).append(name)
        alone = all(key in space for space in spaces.values()) and len(names) == 1
        found[key] = "; ".join(str(one) if alone else f"{one} ({', '.join(of)})" for one, of in names.items())
    return found


def _notes(name: str, space: Mapping[str, Range], tried: Sequence[Trial], own: Mapping[str, Any]) -> Iterator[str]:
    """What a reader must know of the tuning of one variant."""
    if not space:
        yield f"{name}: nothing to tune, it has none of the keys."
        return
    outside = [f"{key} = {own[key]}" for key, one in space.items() if not _is_within(own[key], one)]
    if outside:
        yield f"{name}: its own setting was not among the trials, for {', '.join(outside)} is out of range."
    best = _best(tried)
    if best is None:
        yield f"{name}: all {len(tried)} trials failed, so it keeps its own setting."
        return
    for key, one in space.items():
        values, value = [trial.values[key] for trial in tried], best.values[key]
        for end, extreme, away in (("low", min(values), one.share(value)), ("high", max(values), 1 - one.share(value))):
            if value == extreme and away < 1 / _STARTUP:
                yield f"{name}: the best {key}, {value:g}, is at the {end} end of {one}; a wider range may do better."


def _is_within(value: Any, one: Range) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and one.low <= value <= one.high


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as missing:
        raise ConfigError('Tuning needs Optuna. Install it with: pip install "lossopt[tune]"') from missing
    module: ModuleType = optuna
    return module


@contextmanager
def _quiet(optuna: ModuleType) -> Iterator[None]:
    """Without Optuna's log of every study, which is said in our own words; its level is put back at the end."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def _check_keys(given: Any, known: Sequence[str], where: str, needed: Sequence[str] = ()) -> None:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} is {given!r}; it must hold keys and values ({', '.join(known)}).")
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}: there is no {key!r}{nearest(str(key), known)}")
    for key in needed:
        if key not in given:
            raise ConfigError(f"{where} needs {key!r}. It has {', '.join(map(repr, given)) or 'nothing'}.")


def _ranges(given: Any, where: str) -> dict[str, Range]:
    """Dotted key to its range; nothing given is no range."""
    if not isinstance(given, Mapping | None):
        raise ConfigError(f"{where} is {given!r}; it must hold keys of the configuration, each with low and high.")
    return {str(key): _range(one, f"{where}.{key}") for key, one in (given or {}).items()}


def _range(given: Any, where: str) -> Range:
    _check_keys(given, Range._fields, where, needed=("low", "high"))
    log = given.get("log", False)
    low, high = _number(given["low"], f"{where}.low"), _number(given["high"], f"{where}.high")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log is {log!r}; it must be true (equal ratios) or false (equal steps).")
    if low >= high:
        raise ConfigError(f"{where} is from {low:g} to {high:g}; low must be less than high.")
    if log and low <= 0:
        raise ConfigError(f"{where} has log: true and low: {low:g}; a logarithm needs low above 0. Or remove log.")
    return Range(low, high, log)


def _number(value: Any, where: str) -> float:
    """A text too: YAML takes 3e-4, without a point, for one."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{where} is {value!r}; it must be a number.")
    return number


def _whole(value: Any, where: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{where} is {value!r}; it must be a whole number of {least} or more.")
    return value


def _similar(key: str, config: Mapping[str, Any]) -> str:
    """The nearest keys, as the end of a sentence, its stop included: written alike, or with the same last part."""
    last = key.rpartition(".")[2]
    near = [one for one in config if one.rpartition(".")[2] == last]
    near += difflib.get_close_matches(key, config, 2)
    if not near:
        return "; `lossopt train --config ... --print_config` shows all keys."
    return f"; did you mean {' or '.join(map(repr, list(dict.fromkeys(near))[:2]))}?"
