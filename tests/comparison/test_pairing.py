"""Every variant of a seed starts alike and is shown the same: weights, rows, augmented images, random numbers."""

import dataclasses
import json
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml

from lossopt.comparison.plan import read_plan
from lossopt.comparison.settings import differing_data, tasks_of, variants_of
from lossopt.config import parse
from lossopt.data.module import RetrievalData
from lossopt.training import train

from .conftest import MINER, write_plan

PLANS = sorted((Path(__file__).parents[2] / "configs" / "compare").glob("*.yaml"))
BATCHES = 2  # in each of two epochs
LOSS = "model.init_args.loss_fn"
SMALL = {  # what is paired does not depend on it
    "trainer.precision": "32-true",
    "model.init_args.encoder.init_args.width": 4,
    "trainer.limit_val_batches": 1,
    "data.init_args.evaluation_batch_size": 64,
}
DROPPING = """
import torch

class Dropping(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(256, 8), torch.nn.Dropout(0.5))
"""


class Enough(Exception):
    """What was to be seen has been seen."""


class Shown(pl.Callback):
    """Keeps what a run begins with and what its first batches are."""

    def __init__(self):
        self.weights, self.ids, self.images, self.random = {}, [], [], []

    def on_train_start(self, trainer, pl_module):
        self.weights = {name: value.clone() for name, value in pl_module.encoder.state_dict().items()}
        self.random.append(random_state())

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == BATCHES - 1:
            raise Enough
        self.ids.append(batch.ids.tolist())
        self.images.append(batch.images.clone())
        self.random.append(random_state())


def random_state():
    state = np.random.get_state()
    return torch.get_rng_state().tolist(), [state[0], state[1].tolist(), *state[2:]], random.getstate()


@pytest.fixture(scope="module")
def read():
    """Sources that were read, by their settings."""
    return {}


@pytest.fixture(autouse=True)
def _read_once(monkeypatch, here, read):
    """Reading the images of a source anew for every variant would take most of the time."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    really = RetrievalData.splits.fget

    def splits(self):
        key = type(self.source).__name__ + json.dumps(vars(self.source), sort_keys=True, default=str)
        if key not in read:
            read[key] = really(self)
        return read[key]

    monkeypatch.setattr(RetrievalData, "splits", property(splits, RetrievalData.splits.fset))


@cache  # two plans may have a run in common
def seen_by(config):
    seen = Shown()
    with pytest.raises(Enough):
        train(parse([], json.loads(config)), watching=[seen])
    return seen


def shown(plan, variants, seed):
    """Variant to what its run with this seed is shown."""
    tasks = [task for task in tasks_of(plan, variants) if task.seed == seed]
    assert len(tasks) == len(variants)
    return {task.variant: seen_by(json.dumps({**task.config, "name": "pairing"})) for task in tasks}


def short(path, images_per_batch, **changes):
    images = 2 * BATCHES * images_per_batch
    return dataclasses.replace(read_plan(path), images=images, validations=2, output=Path("pairing"), **changes)


def assert_same_weights(found):
    first, *rest = found.values()
    assert first.weights
    for one in rest:
        assert one.weights.keys() == first.weights.keys()
        assert all(torch.equal(one.weights[name], first.weights[name]) for name in first.weights)


def assert_same_batches(found):
    first, *rest = found.values()
    assert len(first.ids) == 2 * BATCHES - 1 and first.ids[0] != first.ids[BATCHES]
    for one in rest:
        assert one.ids == first.ids
        assert all(torch.equal(a, b) for a, b in zip(one.images, first.images, strict=True))


def assert_same_randomness(found, until=None):
    first, *rest = found.values()
    for one in rest:
        assert one.random[:until] == first.random[:until]


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_variants_of_a_shipped_plan_start_alike_and_are_shown_the_same(path, request):
    if "omniglot" in yaml.safe_load(path.read_text())["base"]:
        request.getfixturevalue("data_root")
    plan = short(path, 128, set={**read_plan(path).set, **SMALL})
    variants = variants_of(plan)
    by_design = differing_data(variants)
    assert set(by_design) == ({"whole-set"} if path.stem == "omniglot_miners" else set())
    found = shown(plan, variants, seed=2)
    assert_same_weights(found)
    assert_same_randomness(found)
    assert_same_batches({name: one for name, one in found.items() if name not in by_design})


def test_a_loss_with_weights_of_its_own_and_dropout_change_nothing(here):
    (here / "dropping_encoder.py").write_text(DROPPING)
    losses = "pytorch_metric_learning.losses"
    size = {"num_classes": 5, "embedding_size": 8}
    path = write_plan(
        "own_weights",
        set={"model.init_args.encoder": "dropping_encoder.Dropping"},
        variants={
            "triplets": {},
            "proxies": {LOSS: {"class_path": f"{losses}.ProxyAnchorLoss", "init_args": size}, MINER: None},
            "angles": {LOSS: {"class_path": f"{losses}.ArcFaceLoss", "init_args": size}, MINER: None},
            "dice": {MINER: "lossopt.miners.RandomTripletMiner"},
        },
    )
    plan = short(path, 16)
    variants = variants_of(plan)
    found = shown(plan, variants, seed=1)
    assert_same_weights(found)
    assert_same_batches(found)
    assert_same_randomness(found)  # the masks of dropout, too, batch by batch
    first = found["triplets"].random
    assert first[1][0] != first[2][0]  # dropout did draw
    other = shown(plan, variants[-1:], seed=0)["dice"]
    assert other.ids != found["dice"].ids and other.random[0] != found["dice"].random[0]
    assert not torch.equal(other.weights["1.weight"], found["dice"].weights["1.weight"])


def test_a_variant_whose_batches_differ_is_named_with_the_keys_in_which_they_do():
    plan = read_plan(
        write_plan(
            "differing",
            variants={
                "all": {},
                "wide": {"data.init_args.classes_per_batch": 2, "data.init_args.images_per_class": 8},
                "plain": {"data.init_args.augment": None},
                "fast": {"model.init_args.optimizer.init_args.lr": 0.1},
            },
        )
    )
    assert differing_data(variants_of(plan)) == {
        "wide": ["data.init_args.classes_per_batch", "data.init_args.images_per_class"],
        "plain": ["data.init_args.augment"],
    }
