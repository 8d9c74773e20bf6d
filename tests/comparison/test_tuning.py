"""Equal tuning: the same trials for all, found again after any interruption, within the ranges, and bad input named."""

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys

import pytest

from lossopt.comparison.result import Trial
from lossopt.comparison.tuning import Range, TuningSettings, check_tuning, spaces_of, tune
from lossopt.errors import ConfigError

LR = "model.init_args.optimizer.init_args.lr"
MARGIN = "model.init_args.loss_fn.init_args.margin"
SPACE = {LR: {"low": 3e-4, "high": 1e-2, "log": True}, MARGIN: {"low": 0.05, "high": 1.0}}
OWN = {  # flattened configurations: "plain" has no margin, "fixed" nothing to tune
    "hinge": {LR: 1e-3, MARGIN: 0.2, "name": "a"},
    "plain": {LR: 1e-3, "name": "b"},
    "fixed": {"name": "c"},
}


def settings_of(space=SPACE, names=tuple(OWN), **more):
    return check_tuning({"trials": 12, "space": space, **more}, names, [0, 1, 2])


def run(settings, execute, own=OWN, said=None):
    say = (lambda line: None) if said is None else said.append
    return tune(settings, spaces_of(settings, own), own, execute, say, metric="val/map@r", images=4800)


def bell(values):
    """Best at a learning rate of 2e-3 and a margin of 0.3; from 6e-3 on the run fails."""
    if values[LR] > 6e-3:
        return None
    return 0.6 * math.exp(-(math.log(values[LR] / 2e-3) ** 2) - (values.get(MARGIN, 0.3) - 0.3) ** 2)


def bells(asked):
    return {name: bell(values) for name, values in asked.items()}


def test_every_variant_gets_the_same_number_of_trials_and_the_best_is_chosen():
    rounds, said = [], []

    def execute(asked):
        rounds.append({name: set(values) for name, values in asked.items()})
        return bells(asked)

    found = run(settings_of(), execute, said=said)
    assert rounds == [{"hinge": {LR, MARGIN}, "plain": {LR}}] * 12
    assert {name: len(trials) for name, trials in found.trials.items()} == {"hinge": 12, "plain": 12, "fixed": 0}
    for name in ("hinge", "plain"):
        scores = [trial.score for trial in found.trials[name]]
        assert scores == [bell(trial.values) for trial in found.trials[name]]
        assert None in scores  # a failed trial is one of the 12
        best = max(score for score in scores if score is not None)
        assert found.chosen[name] == found.trials[name][scores.index(best)].values
        assert best > 0.5
    assert found.chosen["fixed"] == {}
    assert found.notes == ["fixed: nothing to tune, it has none of the keys."]
    assert (found.images, found.seed, found.metric) == (4800, 1000, "val/map@r")
    assert found.space == {LR: "0.0003 to 0.01, logarithmic (hinge, plain)", MARGIN: "0.05 to 1 (hinge)"}
    best = max(trial.score for trial in found.trials["plain"] if trial.score is not None)
    assert len(said) == 12 and said[-1].startswith("Tuning: trial 12 of 12; ") and f"plain {100 * best:.1f}" in said[-1]


def test_the_first_trial_is_the_plans_own_setting_digit_for_digit():
    own = {"a": {LR: 0.00123456789, MARGIN: 1}, "b": {LR: 0.02, MARGIN: 0.5}, "c": {LR: None, MARGIN: 0.5}}
    settings = settings_of(names=list(own))
    found = run(settings, bells, own)
    assert found.trials["a"][0].values == {LR: 0.00123456789, MARGIN: 1}
    assert found.trials["b"][0].values == found.trials["c"][0].values  # a quasi-random point in its place
    assert [len(trials) for trials in found.trials.values()] == [12, 12, 12]
    assert f"b: its own setting was not among the trials, for {LR} = 0.02 is out of range." in found.notes
    assert f"c: its own setting was not among the trials, for {LR} = None is out of range." in found.notes


def test_start_up_points_are_shared_and_spread_evenly_over_the_whole_range():
    own = {"a": {LR: 1.0, MARGIN: 0.2}, "b": {LR: 1.0}, "c": {MARGIN: 7.0}}  # out of range: all 8 points are asked
    settings = settings_of(names=list(own), trials=8)
    found = run(settings, lambda asked: dict.fromkeys(asked, 0.5), own)
    begins = []
    for key, with_it in ((LR, "b"), (MARGIN, "c")):
        values = [trial.values[key] for trial in found.trials["a"]]
        assert values == [trial.values[key] for trial in found.trials[with_it]]
        scale = math.log if key == LR else float
        low, high = scale(SPACE[key]["low"]), scale(SPACE[key]["high"])
        shares = sorted((scale(value) - low) / (high - low) for value in values)
        assert all(abs(after - before - 1 / 8) < 1e-3 for before, after in itertools.pairwise(shares))
        assert shares[0] < 1 / 8 and shares[-1] > 7 / 8 - 1e-3
        begins.append(shares[0])
    assert abs(begins[0] - begins[1]) > 0.01  # each key has its own step
    joint = {(found_at(trial, LR) < 0.5, found_at(trial, MARGIN) < 0.5) for trial in found.trials["a"]}
    assert len(joint) == 4  # not along a diagonal


def found_at(trial, key):
    one = Range(**SPACE[key])
    scale = math.log if one.log else float
    return (scale(trial.values[key]) - scale(one.low)) / (scale(one.high) - scale(one.low))


def test_more_trials_begin_with_the_fewer_and_a_key_more_leaves_the_others_points():
    few, many = (run(settings_of(trials=trials), bells) for trials in (5, 14))
    longer = run(settings_of(trials=10, names=["hinge", "plain", "fixed"]), bells)
    for name in ("hinge", "plain"):
        assert few.trials[name] == many.trials[name][:5]
        assert longer.trials[name] == many.trials[name][:10]
    alone = run(settings_of(space={LR: SPACE[LR]}), bells)
    assert [t.values for t in alone.trials["plain"]] == [t.values for t in many.trials["plain"][:12]]
    assert [t.values[LR] for t in alone.trials["hinge"][:8]] == [t.values[LR] for t in many.trials["hinge"][:8]]


def test_another_seed_asks_other_points():
    one, two = (run(settings_of(seed=seed), bells) for seed in (1000, 1001))
    assert one.trials["plain"][0] == two.trials["plain"][0]  # its own setting
    assert all(a.values != b.values for a, b in zip(one.trials["plain"][1:], two.trials["plain"][1:], strict=True))


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", range(12))
@pytest.mark.parametrize("half", [False, True])
def test_an_interrupted_tuning_comes_to_the_same_end_and_runs_nothing_twice(at, half):
    runs, executed = {}, []

    def execute(asked, dies_at=None):
        for name, values in asked.items():
            key = (name, json.dumps(values, sort_keys=True))
            if key not in runs:
                if dies_at is not None and len(executed) == 2 * dies_at + half:
                    raise Killed
                executed.append(key)
                runs[key] = bell(values)
        return {name: runs[name, json.dumps(values, sort_keys=True)] for name, values in asked.items()}

    settings = settings_of()
    with pytest.raises(Killed):
        run(settings, lambda asked: execute(asked, at))
    assert len(executed) == 2 * at + half
    assert run(settings, execute) == run(settings, bells)
    assert len(executed) == len(set(executed)) == 24


def test_neither_process_nor_hash_seed_nor_threads_change_what_is_asked():
    here = run(settings_of(trials=16), bells)
    code = (
        "import importlib.util, json, sys\n"
        f"spec = importlib.util.spec_from_file_location('these', {__file__!r})\n"
        "these = importlib.util.module_from_spec(spec); spec.loader.exec_module(these)\n"
        "print(json.dumps(these.run(these.settings_of(trials=16), these.bells).trials))"
    )
    there = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stderr == ""  # Optuna is quiet
    assert json.loads(there.stdout) == json.loads(json.dumps(here.trials))


def test_failed_trials_count_and_are_not_asked_beside_again():
    asked_there = 0
    for seed in range(2000, 2010):
        found = run(settings_of(seed=seed, trials=24), bells)
        scores = [trial.score for trial in found.trials["plain"]]
        assert len(scores) == 24
        asked_there += scores[8:].count(None)
    assert asked_there / 160 < 0.1  # 0.15 of the range fails; where failures are forgotten, 0.9 of these trials do


@pytest.mark.parametrize("failed", [None, math.nan, math.inf, -math.inf])
def test_where_all_trials_fail_the_variant_keeps_its_own_setting(failed):
    found = run(
        settings_of(), lambda asked: {name: failed if name == "hinge" else bell(v) for name, v in asked.items()}
    )
    assert found.chosen["hinge"] == {}
    assert [trial.score for trial in found.trials["hinge"]] == [None] * 12
    assert "hinge: all 12 trials failed, so it keeps its own setting." in found.notes
    assert found.chosen["plain"] == run(settings_of(), bells).chosen["plain"]  # untouched by its neighbour


def test_of_equal_scores_the_first_is_chosen():
    found = run(settings_of(), lambda asked: dict.fromkeys(asked, 0.0))
    assert found.chosen["hinge"] == {LR: 1e-3, MARGIN: 0.2}
    later = iter([None, 0.1, 0.3, 0.2, *[0.3] * 8])
    found = run(
        settings_of(space={LR: SPACE[LR]}, names=["plain"]),
        lambda asked: {"plain": next(later)},
        {"plain": OWN["plain"]},
    )
    assert found.chosen["plain"] == found.trials["plain"][2].values
    assert found.trials["plain"][2] == Trial(found.chosen["plain"], 0.3)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0.000123456, 0.0123456), (0.12344, 0.12346), (2.0, 1e6), (1e-9, 1e-8)])
def test_values_are_rounded_and_stay_within_the_range(low, high, log):
    settings = settings_of(space={LR: {"low": low, "high": high, "log": log}}, names=["a"], trials=30)
    found = run(settings, lambda asked: {"a": asked["a"][LR]}, {"a": {LR: high}})  # the best is at the upper end
    for trial in found.trials["a"]:
        value = trial.values[LR]
        assert low <= value <= high and type(value) is float
        assert value in (low, high) or value == float(f"{value:.3e}")
    below = run(settings, lambda asked: {"a": -asked["a"][LR]}, {"a": {LR: low}})
    assert all(low <= trial.values[LR] <= high for trial in below.trials["a"])


def test_ranges_turn_shares_into_values_and_back():
    assert Range(1e-4, 1e-2, True).at(0.5) == 0.001
    assert Range(-1.0, 3.0).at(0.25) == 0.0
    assert Range(0.0, 1.0).at(1 / 3) == 0.3333
    for one in (Range(1e-4, 1e-2, True), Range(-1.0, 3.0)):
        assert (one.at(0), one.at(1)) == (one.low, one.high)
        assert one.share(one.at(0.3)) == pytest.approx(0.3, abs=1e-3)
    assert str(Range(0.0003, 0.01, True)) == "0.0003 to 0.01, logarithmic"
    assert str(Range(0.05, 1.0)) == "0.05 to 1"


def test_tuning_does_better_than_the_plans_own_setting_and_close_to_the_best():
    found = run(settings_of(trials=16), bells)
    for name in ("hinge", "plain"):
        assert bell(found.chosen[name]) > bell(OWN[name])
        assert bell(found.chosen[name]) > 0.95 * 0.6


def test_a_best_value_at_the_end_of_its_range_is_said():
    own = {"plain": OWN["plain"]}
    settings = settings_of(space={LR: SPACE[LR]}, names=["plain"])
    up = run(settings, lambda asked: {"plain": asked["plain"][LR]}, own)
    down = run(settings, lambda asked: {"plain": -asked["plain"][LR]}, own)
    inside = run(settings, bells, own)
    highest, lowest = (one.chosen["plain"][LR] for one in (up, down))
    bounds = "0.0003 to 0.01, logarithmic"
    assert up.notes == [
        f"plain: the best {LR}, {highest:g}, is at the high end of {bounds}; a wider range may do better."
    ]
    assert down.notes == [
        f"plain: the best {LR}, {lowest:g}, is at the low end of {bounds}; a wider range may do better."
    ]
    assert inside.notes == []
    two = settings_of(space={LR: SPACE[LR]}, names=["plain"], trials=2)
    assert run(two, lambda asked: {"plain": asked["plain"][LR]}, own).notes == []  # the larger of two, but far from it
    higher = {"plain": {LR: 0.00999}}  # near the end, but its own setting lies beyond and is worse
    assert run(settings, lambda asked: {"plain": asked["plain"][LR] % 0.0099}, higher).notes == []


def test_a_variants_own_ranges_replace_and_add():
    settings = settings_of(
        space={LR: SPACE[LR]},
        names=["hinge", "plain", "wide"],
        variants={"wide": {LR: {"low": 0.1, "high": 0.2}, MARGIN: {"low": 1, "high": 2}}},
    )
    own = {"hinge": OWN["hinge"], "plain": OWN["plain"], "wide": OWN["hinge"]}
    spaces = spaces_of(settings, own)
    assert spaces["hinge"] == spaces["plain"] == {LR: Range(3e-4, 1e-2, True)}
    assert spaces["wide"] == {LR: Range(0.1, 0.2), MARGIN: Range(1.0, 2.0)}
    assert settings.keys == [LR, MARGIN]
    found = run(settings, lambda asked: dict.fromkeys(asked, 0.5), own)
    assert all(0.1 <= t.values[LR] <= 0.2 and 1 <= t.values[MARGIN] <= 2 for t in found.trials["wide"])
    assert found.space == {LR: "0.0003 to 0.01, logarithmic (hinge, plain); 0.1 to 0.2 (wide)", MARGIN: "1 to 2 (wide)"}


def test_where_all_variants_share_a_range_it_is_said_once():
    own = {"a": OWN["hinge"], "b": OWN["hinge"]}
    found = run(settings_of(names=list(own), trials=2), bells, own)
    assert found.space == {LR: "0.0003 to 0.01, logarithmic", MARGIN: "0.05 to 1"}


def test_with_nothing_to_tune_nothing_runs():
    settings = settings_of()
    found = tune(settings, {"a": {}}, {"a": {}}, pytest.fail, pytest.fail, metric="val/map@r", images=1)
    assert (found.trials, found.chosen) == ({"a": []}, {"a": {}})
    assert found.notes == ["a: nothing to tune, it has none of the keys."]


def test_optuna_is_quiet_and_its_level_is_put_back(capfd):
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    run(settings_of(), bells)
    with pytest.raises(Killed):
        run(settings_of(), raise_killed)
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    optuna.logging.set_verbosity(before)
    assert capfd.readouterr() == ("", "")


def raise_killed(asked):
    raise Killed


def test_without_optuna_the_message_is_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r'Tuning needs Optuna. Install it with: pip install "lossopt\[tune\]"'):
        run(settings_of(), pytest.fail)


def test_a_tuning_as_a_plan_gives_it():
    found = check_tuning(
        {
            "trials": 8,
            "images": 48000,
            "seed": 7,
            "space": {LR: {"low": "3e-4", "high": 1, "log": True}},  # YAML reads 3e-4 as a text
            "variants": {"b": {MARGIN: {"low": 0, "high": 1}}},
        },
        ["a", "b"],
        [0, 1],
    )
    assert found == TuningSettings(8, {LR: Range(3e-4, 1.0, True)}, 48000, 7, {"b": {MARGIN: Range(0.0, 1.0)}})
    assert check_tuning({"trials": 2, "space": SPACE, "images": None, "variants": None}, ["a"], []).images is None
    only = check_tuning({"trials": 2, "variants": {"a": SPACE}}, ["a"], [])
    assert (only.space, only.keys) == ({}, [LR, MARGIN])
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.trials = 9


def changed(**more):
    return {"trials": 8, "space": SPACE, **more}


def with_range(**more):
    return changed(space={LR: {"low": 0.1, "high": 0.2, **more}})


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (8, r"tuning is 8; it must hold keys and values \(trials, space, images, seed, variants\)"),
        (None, "tuning is None; it must hold"),
        (["trials"], "it must hold keys and values"),
        ({}, "tuning needs 'trials'. It has nothing"),
        ({"space": SPACE}, "tuning needs 'trials'. It has 'space'"),
        (changed(trails=8), "tuning: there is no 'trails'; did you mean 'trials'"),
        (changed(**{"1": 8}), r"tuning: there is no '1' \(known: trials, "),
        (changed(trials=1), "tuning.trials is 1; it must be a whole number of 2 or more"),
        (changed(trials=8.0), "tuning.trials is 8.0"),
        (changed(trials=True), "tuning.trials is True"),
        (changed(trials="8"), "tuning.trials is '8'"),
        (changed(images=0), "tuning.images is 0; it must be a whole number of 1 or more"),
        (changed(images=1e5), "tuning.images is 100000.0"),
        (changed(images=True), "tuning.images is True"),
        (changed(seed=-1), "tuning.seed is -1; it must be a whole number of 0 or more"),
        (changed(seed=None), "tuning.seed is None"),
        (changed(seed=1), "tuning.seed is 1, which is one of the plan's seeds.* Choose another, such as 1000"),
        (changed(space=None), r"tuning.space is empty. Give what is tuned, such as space: \{model"),
        (changed(space={}, variants={"a": {}}), "tuning.space is empty"),
        (changed(space=[LR]), "tuning.space is .*it must hold keys of the configuration, each with low and high"),
        (changed(space={LR: [0.1, 0.2]}), rf"tuning.space.{LR} is \[0.1, 0.2\]; .*\(low, high, log\)"),
        (changed(space={LR: {"low": 1}}), rf"tuning.space.{LR} needs 'high'. It has 'low'"),
        (with_range(hihg=3), "there is no 'hihg'; did you mean 'high'"),
        (with_range(high=0.1), "is from 0.1 to 0.1; low must be less than high"),
        (with_range(high=-1), "is from 0.1 to -1; low must be less than high"),
        (with_range(low=0, log=True), "has log: true and low: 0; a logarithm needs low above 0"),
        (with_range(low=-1, log=True), "has log: true and low: -1"),
        (with_range(log="yes"), r"log is 'yes'; it must be true \(equal ratios\) or false"),
        (with_range(log=1), "log is 1; it must be true"),
        (with_range(high=math.inf), "high is inf; it must be a number"),
        (with_range(low=math.nan), "low is nan; it must be a number"),
        (with_range(low=True), "low is True; it must be a number"),
        (with_range(low=None), "low is None; it must be a number"),
        (with_range(high="much"), "high is 'much'; it must be a number"),
        (changed(variants={"batch-hrad": {}}), "tuning.variants: there is no 'batch-hrad'; did you mean 'batch-hard'"),
        (changed(variants=["a"]), "tuning.variants is .*it must hold keys and values"),
        (changed(variants={"a": {LR: {"low": 2, "high": 1}}}), f"tuning.variants.a.{LR} is from 2 to 1"),
    ],
)
def test_what_does_not_fit_is_named(mapping, message):
    with pytest.raises(ConfigError, match=message):
        check_tuning(mapping, ["a", "batch-hard"], [0, 1])


def test_the_usual_seed_is_refused_too_if_the_plan_has_it():
    with pytest.raises(ConfigError, match=r"tuning.seed is 1000.* such as 1002"):
        check_tuning({"trials": 8, "space": SPACE}, ["a"], [1000, 1001])


def test_a_key_that_no_variant_has_is_answered_with_the_nearest():
    def ask(key, variants=None):
        entry = {key: {"low": 0.1, "high": 0.2}}
        settings = settings_of(space={} if variants else entry, **({"variants": {variants: entry}} if variants else {}))
        return spaces_of(settings, OWN)

    with pytest.raises(ConfigError, match=rf"tuning.space: no variant has the key 'lr'; did you mean '{LR}'\?"):
        ask("lr")
    with pytest.raises(ConfigError, match=rf"'model.init_args.optimiser.init_args.lr'; did you mean '{LR}'"):
        ask("model.init_args.optimiser.init_args.lr")
    with pytest.raises(ConfigError, match=rf"'model.init_args.optimizer.init_args.l'; did you mean '{LR}'"):
        ask("model.init_args.optimizer.init_args.l")
    with pytest.raises(ConfigError, match=r"no variant has the key 'zzz'; `lossopt train .*--print_config` shows"):
        ask("zzz")
    with pytest.raises(ConfigError, match=f"tuning.variants: 'plain' has no key '{MARGIN}'"):
        ask(MARGIN, "plain")
