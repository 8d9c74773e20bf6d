"""A grid of real small runs: trained once, found again, its failures kept, its mistakes refused before training."""

from pathlib import Path

import pytest
import yaml

from lossopt.comparison.workers import Ended
from lossopt.errors import ConfigError, LossoptError
from lossopt.lab.grid import check, read_grid, tasks_of, train_grid

DENSE = {"embedding_size": 2, "widths": [8], "image_size": 8}
BASE = {
    "model": {
        "class_path": "lossopt.modules.Autoencoder",
        "init_args": {
            "encoder": {"class_path": "lossopt.encoders.DenseEncoder", "init_args": DENSE},
            "decoder": {"class_path": "lossopt.decoders.DenseDecoder", "init_args": DENSE},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
        },
    },
    "data": {
        "class_path": "lossopt.data.ShuffledData",
        "init_args": {
            "source": {"class_path": "lossopt.data.Digits", "init_args": {"split": "closed"}},
            "batch_size": 256,
        },
    },
    "trainer": {"max_epochs": 1},
    "checkpoint": {"monitor": "val/error", "mode": "min"},
}
VARIANTS = {
    "SGD": {},
    "Adam": {"model.init_args.optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}},
    "far too fast": {"model.init_args.optimizer.init_args.lr": 1e38},
}


def checked(path):
    made = read_grid(path)
    check(made, tasks_of(made))


@pytest.fixture
def grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    Path("base.yaml").write_text(yaml.safe_dump(BASE))

    def written(**changed):
        content = {"base": "base.yaml", "variants": VARIANTS, "seeds": 1} | changed
        Path("small.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return Path("small.yaml")

    return written


def test_every_variant_runs_once_and_a_failure_is_an_outcome(grid):
    said = []
    found = train_grid(read_grid(grid()), 2, said.append)
    assert [(one.variant, one.seed) for one in found] == [("SGD", 0), ("Adam", 0), ("far too fast", 0)]
    assert said[0] == "small: 3 runs, 0 done already, 2 side by side" and len(said) == 4
    sgd, adam, fast = found
    assert [epoch for epoch, _ in sgd.curve("val/error")] == [0, 1]
    assert (
        sgd.result.test["test/error"] > 0 and adam.config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.01
    )
    assert sgd.curve("val/error")[0] == adam.curve("val/error")[0]  # the same untrained network
    assert fast.result is None and "not finite" in fast.failure and fast.health[0].kind == "non-finite"
    again = []
    assert [one.folder for one in train_grid(read_grid(grid()), 2, again.append)] == [one.folder for one in found]
    assert again == []
    tasks = tasks_of(read_grid(grid(seeds=[0, 5])))
    assert [(task.seed, task.config["seed"]) for task in tasks] == [(0, 0)] * 3 + [(5, 5)] * 3
    assert len({task.digest for task in tasks}) == 6
    assert all(task.config["data"]["init_args"]["seed"] is None for task in tasks)  # then it is that of the run


def test_a_run_that_could_not_be_made_stops_the_grid_with_its_name(grid, monkeypatch):
    def stopped(tasks, workers, threads):
        yield Ended(tasks[0], "stopped", "the disk is full.", 1.0, 1.0)

    monkeypatch.setattr("lossopt.lab.grid.execute", stopped)
    with pytest.raises(LossoptError, match=r"could not be made: the disk is full\. What is done is kept in runs"):
        train_grid(read_grid(grid()), 1, lambda line: None)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sedes": 2}, r"there is no 'sedes' in a plan.*seeds"),
        ({"seeds": 0}, "seeds is 0; give one or more"),
        ({"variants": {"only": {}}}, "two or more names"),
        ({"images": 100}, "there is no 'images' in a plan"),
        (
            {"variants": {"a": {}, "b": {"model.init_args.decodr.widths": [1]}}},
            r"variant 'b': there is no key 'decodr'",
        ),
        ({"variants": {"a": {"seed": 5}, "b": {"seed": 6}}}, r"variant 'a' sets seed, which a grid sets .* by seeds"),
        ({"set": {"data.init_args": {"seed": 1}}}, "set sets data.init_args.seed"),
        ({"set": {"checkpoint.monitor": "val/zzz"}}, r"variant 'SGD': checkpoint.monitor is 'val/zzz'"),
        ({"set": {"data.init_args.batch_size": 9999}}, r"variant 'SGD': .*batch_size is 9999"),
    ],
)
def test_a_mistake_is_refused_before_training(grid, changed, said):
    path = grid(**changed)
    with pytest.raises(ConfigError, match=said):
        checked(path)
    assert not Path("runs").exists()
