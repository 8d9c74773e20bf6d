"""A plan that cannot work is refused before any work, and the refusal names what is wrong and what to write instead."""

import re
from datetime import date
from pathlib import Path

import pytest
import yaml

from lossopt.cli import main
from lossopt.comparison.plan import OWN_KEYS, read_plan
from lossopt.comparison.settings import tasks_of, variants_of
from lossopt.errors import ConfigError

from .conftest import MINER, PLAN, own_miner, write_plan

LR = "model.init_args.optimizer.init_args.lr"
P, K = "data.init_args.classes_per_batch", "data.init_args.images_per_class"
TWO = {"a": {}, "b": {MINER: "lossopt.miners.SemiHardMiner"}}


@pytest.fixture(autouse=True)
def _here(here):
    """Beside the base configuration."""


def variants(**changes):
    return variants_of(read_plan(write_plan("bad", **{"variants": TWO, **changes})))


def written(text):
    path = write_plan("bad")
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variant": {}}, r"bad\.yaml: there is no 'variant' in a plan; did you mean 'variants'\?$"),
        ({"zzz": 1}, r"there is no 'zzz' in a plan \(known: name, base, variants, seeds, images, set.*\)\.$"),
        ({"path": "x"}, "there is no 'path' in a plan"),
        ({"name": "a/b"}, r'name is "a/b"; it must be words of letters'),
        ({"name": ".."}, r'name is "\.\."; it must be .* begin with no dot'),
        ({"name": 3}, "name is 3; it must be words"),
        ({"base": "nowhere.yaml"}, r"there is no base configuration nowhere\.yaml. Paths are relative to the plan"),
        ({"base": ["base.yaml", 3]}, "base is 3; it must be a text"),
        ({"base": None}, "base is null; it must be a text"),
        ({"set": [1]}, r"set is \[1\]; it must be dotted keys and values"),
        ({"set": {1: 2}}, "set is .*; it must be dotted keys and values"),
        ({"variants": {"a": {}}}, r"variants is .*; it must be two or more names, each with the keys"),
        ({"variants": ["a", "b"]}, r"variants is \[.*; it must be two or more names"),
        ({"variants": {"a": {}, "b": 3}}, "variant 'b' is 3; it must be dotted keys"),
        ({"variants": {"a": {}, "b": [MINER]}}, "variant 'b' is .*; it must be dotted keys"),
        ({"variants": {"a": {}, False: {}}}, "the name of a variant is false; it must be words"),
        ({"variants": {"a": {}, "../b": {}}}, "the name of a variant is .*; it must be words"),
        ({"variants": {"a": {}, "..": {}}}, "the name of a variant is .*begin with no dot"),
        ({"variants": {"a b": {}, "A-B": {}}}, "names that differ by more than spaces and capitals"),
        ({"variants": {"a": {}, "Untrained": {}}}, "no variant can be called 'untrained'; the table has a row"),
        ({"variants": {"a": {}, "raw pixels": {}}}, "no variant can be called 'raw-pixels'"),
        (
            {"seeds": 1},
            r"seeds is 1, but one run of each variant cannot tell a difference from chance\. Give 2 or more",
        ),
        ({"seeds": [4]}, r"seeds is \[4\], but one run of each variant"),
        ({"seeds": 0}, "seeds is 0, but one run"),
        ({"seeds": []}, r"seeds is \[\], but one run"),
        ({"seeds": [0, 1, 0]}, r"seeds is \[0, 1, 0\]; each may be there once"),
        ({"seeds": [0, -1]}, r"seeds is \[0, -1\]; give how many, or a list of whole numbers from 0 to 4,294,967,295"),
        ({"seeds": [0, 2**32]}, "seeds is .*; give how many, or a list of whole numbers from 0 to 4,294,967,295"),
        ({"seeds": [0, True]}, "seeds is .*; give how many"),
        ({"seeds": True}, "seeds is true; give how many"),
        ({"seeds": 2.0}, "seeds is 2.0; give how many"),
        ({"images": 0}, "images is 0; it must be a whole number of 1 or more"),
        ({"images": "many"}, 'images is "many"; it must be a whole number'),
        ({"images": 1e5}, "images is 100000.0; it must be a whole number"),
        ({"validations": 0}, "validations is 0; it must be a whole number"),
        ({"threads": True}, "threads is true; it must be a whole number"),
        ({"metric": None}, "metric is null; it must be a text"),
        ({"correction": "bonferroni"}, 'correction is "bonferroni"; it must be holm or max-t'),
        ({"correction": ["holm"]}, "correction is .*; it must be holm or max-t"),
        ({"unit": "seed"}, 'unit is "seed"; it must be class or group'),
        ({"output": 5}, "output is 5; it must be a text"),
        ({"tuning": {}}, "tuning needs 'trials'"),
        ({"tuning": 5}, "tuning is 5; it must hold keys and values"),
    ],
)
def test_an_entry_that_does_not_fit_is_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        read_plan(write_plan("bad", **changes))


@pytest.mark.parametrize("missing", ["base", "variants", "seeds", "images"])
def test_a_missing_entry_is_named_with_those_that_are_there(missing):
    path = written(yaml.safe_dump({key: value for key, value in PLAN.items() if key != missing}))
    with pytest.raises(ConfigError, match=f"a plan needs '{missing}'. It has .*'validations'"):
        read_plan(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"bad\.yaml is no plan: it holds NoneType, not keys and values"),
        ("- 1\n", "is no plan: it holds list"),
        ("a: [1\n", "is no plan: .*line 2"),
        ("? [a]\n: 1\n", "is no plan: .*unhashable"),
        ("seeds: 2\nseeds: 3\n", "is no plan: 'seeds' is there twice .*line 2"),
        ("variants:\n  a: {}\n  b: {}\n  a: {x: 1}\n", "'a' is there twice .*line 4"),
        ("variants: {a: {x: 1, x: 2}, b: {}}\n", "'x' is there twice"),
        ("7: 1\n", "there is no 7 in a plan"),
        ("a: !!python/object/apply:os.getcwd []\n", "is no plan: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_plan(text, words):
    with pytest.raises(ConfigError, match=words):
        read_plan(written(text))


def test_a_file_that_cannot_be_read(here):
    with pytest.raises(ConfigError, match=r"Cannot read the plan nowhere\.yaml \(No such file or directory\)"):
        read_plan(Path("nowhere.yaml"))
    with pytest.raises(ConfigError, match=r"Cannot read the plan .* \(Is a directory\)"):
        read_plan(here)
    path = write_plan("bad")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is no plan"):
        read_plan(path)


def test_yaml_may_bring_keys_in_from_elsewhere():
    rest = yaml.safe_dump({key: value for key, value in PLAN.items() if key != "variants"})
    shared = f"variants:\n  a: &a {{{LR}: 0.1}}\n  b: {{<<: *a, {MINER}: lossopt.miners.SemiHardMiner}}\n"
    assert read_plan(written(rest + shared)).variants["b"] == {LR: 0.1, MINER: "lossopt.miners.SemiHardMiner"}


def test_what_a_plan_leaves_out_and_how_its_entries_are_read():
    plan = read_plan(write_plan("bad"))
    assert (plan.name, plan.seeds, plan.metric, plan.correction) == ("bad", [0, 1], "map@r", "holm")
    assert (plan.unit, plan.threads, plan.tuning, dict(plan.set)) == ("class", 1, None, {})
    assert plan.folder == Path("runs/bad")
    plan = read_plan(write_plan("bad", seeds=[7, 3], base=["base.yaml", "base.yaml"], set=None, tuning=None))
    assert plan.seeds == [7, 3] and len(plan.base) == 2 and plan.set == {} and plan.tuning is None


@pytest.mark.parametrize("key", OWN_KEYS)
def test_what_the_plan_sets_for_all_cannot_be_set_by_one(key):
    with pytest.raises(ConfigError, match=rf"set sets {key}, which a plan sets for all runs by '{OWN_KEYS[key]}'"):
        read_plan(write_plan("bad", set={key: 1}))
    with pytest.raises(ConfigError, match=f"variant 'b' sets {key}, which a plan sets"):
        read_plan(write_plan("bad", variants={"a": {}, "b": {key: 1}}))


@pytest.mark.parametrize(
    "nested", [{"trainer": {"max_epochs": 9}}, {"data.init_args": {"seed": 3}}, {"data": {"init_args": {"seed": 3}}}]
)
def test_nor_within_a_value(nested):
    with pytest.raises(
        ConfigError, match=r"variant 'b' sets (trainer\.max_epochs|data\.init_args\.seed), which a plan"
    ):
        read_plan(write_plan("bad", variants={"a": {}, "b": nested}))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"model.init_args.minr": None},
            r"variant 'b': there is no key 'minr' in model.init_args; did you mean 'miner'\?",
        ),
        ({"modle.init_args.miner": None}, "variant 'b': there is no key 'modle'; did you mean 'model'"),
        ({"trainer.precison": "32"}, "there is no key 'precison' in trainer; did you mean 'precision'"),
        (
            {"model.init_args.optimizer.init_args.lrr": 0.1},
            "there is no key 'lrr' in model.init_args.optimizer.init_args; did you mean 'lr'",
        ),
        ({MINER: "lossopt.miners.SemiHardMinr"}, "SemiHardMinr'. Did you mean lossopt.miners.SemiHardMiner"),
        ({MINER: {"class_path": "lossopt.miners.SemiHardMiner", "init_args": {"margn": 1}}}, "Did you mean 'margin'"),
        ({P: "few"}, "variant 'b': data.init_args.classes_per_batch: expected int.* few"),
        ({P: 2.5}, "variant 'b': data.init_args.classes_per_batch: expected int"),
        ({P: date(2020, 1, 1)}, "variant 'b': data.init_args.classes_per_batch: expected int. Got value: 2020-01-01"),
        ({"retrieval.ks.0": 3}, "variant 'b': retrieval.ks: expected list"),
        ({f"{LR}.x": 3}, "variant 'b': model.init_args.optimizer"),
        ({MINER: "my_own.Miner"}, "There is no module 'my_own'"),
    ],
)
def test_a_key_or_value_that_does_not_fit_is_answered_with_the_nearest(changed, words):
    with pytest.raises(ConfigError, match=words):
        variants(variants={"a": {}, "b": changed})


def test_a_variant_equal_to_another_is_refused_also_where_it_only_says_so_otherwise():
    same = {MINER: {"class_path": "lossopt.miners.SemiHardMiner", "init_args": {"margin": 0.2}}}
    with pytest.raises(ConfigError, match=r"the variants 'b' and 'c' are the same configuration\. Remove one"):
        variants(variants={**TWO, "c": same})
    with pytest.raises(ConfigError, match="the variants 'a' and 'b' are the same"):
        variants(variants={"a": {}, "b": {LR: 0.01}})


@pytest.mark.parametrize("metric", ["recall@3", "recall", "val/map@r", "accuracy", "MAP@R"])
def test_a_metric_that_no_run_logs_is_refused_with_those_that_are(metric):
    with pytest.raises(
        ConfigError, match=rf"metric is '{metric}', which no run logs.*(did you mean|known: recall@1).*add its k"
    ):
        variants(metric=metric)


@pytest.mark.parametrize("metric", ["recall@1", "map@r", "map", "mrr", "r_precision"])
def test_the_metrics_that_runs_log(metric):
    assert len(variants(metric=metric)) == 3


def test_a_budget_below_a_batch_before_each_validation_names_the_variant_and_the_least():
    words = r"variant 'b': a budget of 31 images is less than one batch of 16 before each of 2 validations. "
    with pytest.raises(ConfigError, match=words + "Give images: 32 or more, or fewer validations"):
        variants(variants={"a": {P: 2}, "b": {}}, images=31)
    assert {one.images for one in variants(images=32)} == {32}


def test_uneven_budgets_are_refused_with_one_that_is_even_for_all():
    uneven = {"a": {}, "b": {P: 3}, "c": {P: 5, K: 2}}  # batches of 16, 12 and 10 images
    words = "with 2 validations 'b' would see 120 images, but 'a' 96, for 16 of them are a batch.* such as 480"
    with pytest.raises(ConfigError, match=words):
        variants(variants=uneven, images=120)
    assert {one.images for one in variants(variants=uneven, images=480)} == {480}
    nearly = variants(variants={"a": {}, "b": {P: 3}}, images=1000)  # 992 and 984: alike within 5 %
    assert sorted({one.images for one in nearly}) == [984, 992]


def test_every_run_has_the_budget_and_ends_each_epoch_with_a_validation_whatever_the_base_says(here):
    (here / "long.yaml").write_text(
        "seed: 5\nname: x\ntrainer: {max_epochs: 50, max_steps: 7, min_epochs: 3, max_time: 00:01:00:00, "
        "limit_train_batches: 0.5, check_val_every_n_epoch: 4, fast_dev_run: true}\n"
        "data: {init_args: {seed: 11, batches_per_epoch: 3}}\n"
    )
    found = variants(base=["base.yaml", "long.yaml"])
    for one in found:
        trainer, data = one.config["trainer"], one.config["data"]["init_args"]
        assert (trainer["max_epochs"], data["batches_per_epoch"], one.images) == (2, 4, 128)
        assert (trainer["max_steps"], trainer["min_epochs"], trainer["max_time"]) == (-1, None, None)
        assert (trainer["limit_train_batches"], trainer["check_val_every_n_epoch"]) == (None, 1)
        assert trainer["fast_dev_run"] is False and data["seed"] is None
    tasks = tasks_of(read_plan(write_plan("bad", variants=TWO)), found)
    assert [(task.variant, task.seed) for task in tasks] == [
        (name, seed) for seed in (0, 1) for name in ("a", "b", "random miner")
    ]
    assert {task.config["seed"] for task in tasks} == {0, 1} and len({task.digest for task in tasks}) == 6


def test_a_random_miner_is_added_unless_there_is_one():
    added = variants()[-1]
    assert (added.name, added.role) == ("random miner", "random miner")
    assert added.config["model"]["init_args"]["miner"]["class_path"] == "lossopt.miners.RandomTripletMiner"
    own = variants(variants={**TWO, "dice": {MINER: "RandomTripletMiner"}})
    assert [(one.name, one.role) for one in own][2:] == [("dice", "random miner")]
    with pytest.raises(ConfigError, match="one is added under the name 'random miner', which another variant has"):
        variants(variants={"a": {}, "Random-miner": TWO["b"]})


def test_a_loss_that_takes_no_miners_choice_gets_the_plain_loss_beside_the_random_miner():
    smooth = {"model.init_args.loss_fn": {"class_path": "lossopt.losses.SmoothAPLoss"}}
    added = variants(set=smooth, variants={"a": {}, "b": {LR: 0.1}})[-1]
    parts = added.config["model"]["init_args"]
    assert parts["loss_fn"]["class_path"] == "lossopt.losses.TripletLoss"
    assert parts["miner"]["class_path"] == "lossopt.miners.RandomTripletMiner"


def test_data_that_are_not_dealt_in_batches_of_classes_are_refused():
    with pytest.raises(ConfigError, match=r"variant 'b': .*RetrievalData"):
        variants(variants={"a": {}, "b": {"data": "pytorch_lightning.demos.boring_classes.BoringDataModule"}})


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"variants": {"a": {}, "b": own_miner("AtOnce")}}, 2, "variant 'b': it cannot make a training step: ZeroDivi"),
        ({"variants": {"a": {}, "b": {P: 6}}, "images": 960}, 2, "variant 'b': .*5 classes that can be used"),
        ({"variants": {"a": {}, "b": {LR: 0}}}, 2, "variant 'b': The learning rate is 0"),
        (
            {"variants": {"a": {}, "b": {"data.init_args.source.init_args.split": "closed"}}},
            2,
            "'b' would be evaluated on other queries than 'a': its test split is another",
        ),
        ({"set": {"retrieval.exclude": "all"}}, 2, "variant 'all': retrieval.exclude 'all' leaves out"),
        ({"seeds": 1}, 2, "one run of each variant"),
    ],
)
def test_the_command_refuses_before_any_training(changes, code, words, capsys, here):
    assert main(["compare", str(write_plan("refused", **changes))]) == code
    assert re.search(words, capsys.readouterr().err)
    assert not (here / "runs" / "refused").exists()


def test_a_class_that_a_variant_names_begins_with_its_own_defaults():
    found = variants(
        set={MINER: "lossopt.miners.SemiHardMiner"},
        variants={
            "base": {},
            "other miner": {MINER: "lossopt.miners.BatchHardMiner"},
            "then a key": {MINER: "lossopt.miners.HardMiner", f"{MINER}.init_args.budget": 7},
            "a key": {"model.init_args.loss_fn.init_args.margin": "3e-1"},
            "below": {"trainer": {"gradient_clip_val": 1.0}},
        },
    )
    model = {one.name: one.config["model"]["init_args"] for one in found}
    assert model["base"]["miner"]["init_args"]["margin"] == 0.2  # that of the base's SemiHardMiner
    assert model["other miner"]["miner"]["init_args"]["margin"] is None
    assert model["random miner"]["miner"]["init_args"]["margin"] is None
    assert model["then a key"]["miner"]["init_args"]["budget"] == 7
    assert model["a key"]["loss_fn"]["init_args"]["margin"] == 0.3
    trainer = {one.name: one.config["trainer"] for one in found}
    assert trainer["below"]["gradient_clip_val"] == 1.0
    assert trainer["below"]["log_every_n_steps"] == trainer["base"]["log_every_n_steps"]
