"""A tiny comparison on real digits, run once for all tests of this folder, and the components of a clumsy user."""

import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path

import pytest
import yaml

from lossopt.cli import main
from lossopt.comparison import workers
from lossopt.comparison.plan import Plan, read_plan
from lossopt.comparison.settings import tasks_of, variants_of

# Miners of a user's own, in a file beside the plan. Each does its deed at its fourth batch, for the command tries three
# before any run; the one that dies once does so after the first checkpoint.
COMPONENTS = """
import errno, os, signal, time
from pathlib import Path

import pytorch_lightning as pl
import torch
from lossopt.miners import RandomTripletMiner


class Deed(torch.nn.Module):
    tuples, fatal = "triplets", 4

    def __init__(self, mark: str = "mark"):
        super().__init__()
        self.mark, self.batches, self.miner = Path(mark), 0, RandomTripletMiner()

    def forward(self, embeddings, labels):
        self.batches += 1
        if self.batches == self.fatal:
            with self.mark.open("a") as file:
                file.write(f"{os.getpid()}\\n")
            self.act()
        return self.miner(embeddings, labels)

    def act(self):
        raise RuntimeError("the miner has lost its lamp")


class FullDisk(Deed):
    def act(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Killed(Deed):
    def act(self):
        os.kill(os.getpid(), signal.SIGKILL)


class KilledOnce(Killed):
    fatal = 6  # of 8, and the second process begins after the fourth


class Sleeping(Deed):
    def act(self):
        time.sleep(600)


class AtOnce(Deed):
    def forward(self, embeddings, labels):
        return 1 / 0


class Threads(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        from threadpoolctl import threadpool_info

        counts = [torch.get_num_threads(), int(os.environ["OMP_NUM_THREADS"])]
        counts += [pool["num_threads"] for pool in threadpool_info()]
        Path("threads").write_text(" ".join(map(str, counts)))
"""
BASE = """
model:
  class_path: lossopt.modules.TripletNetwork
  init_args:
    encoder: {class_path: lossopt.encoders.Conv4, init_args: {embedding_size: 8, width: 4}}
    loss_fn: {class_path: lossopt.losses.TripletLoss, init_args: {margin: 0.2}}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}
data:
  class_path: lossopt.data.module.RetrievalData
  init_args:
    source: {class_path: lossopt.data.Digits, init_args: {image_size: 16}}
    classes_per_batch: 4
    images_per_class: 4
    augment: [{class_path: lossopt.data.augment.RandomAffine, init_args: {degrees: 10.0, shift: 0.08}}]
trainer: {log_every_n_steps: 1, accelerator: cpu}
"""
MINER, OPTIMIZER = "model.init_args.miner", "model.init_args.optimizer"
PLAN = {
    "base": "base.yaml",
    "variants": {
        "all": {},
        "diverging": {f"{OPTIMIZER}.init_args.lr": 1.0e30},
        "collapsing": {OPTIMIZER: {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0, "weight_decay": 1.0}}},
    },
    "seeds": 2,
    "images": 128,
    "validations": 2,
}


def own_miner(name, mark="mark"):
    """Overrides that give a variant one of the miners above."""
    return {MINER: {"class_path": f"clumsy_components.{name}", "init_args": {"mark": mark}}}


def write_plan(file="tiny", /, **changes) -> Path:
    """The plan above with some entries changed, in the working directory."""
    path = Path(f"{file}.yaml")
    path.write_text(yaml.safe_dump(PLAN | changes, sort_keys=False))
    return path


def tasks_of_plan(path, seed=0):
    """The runs of one seed, without those of the random miner."""
    plan: Plan = read_plan(path)
    found = tasks_of(plan, variants_of(plan))
    return {task.variant: task for task in found if task.seed == seed and task.variant != "random miner"}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with the base configuration and the components."""
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "base.yaml").write_text(BASE)
    (folder / "clumsy_components.py").write_text(COMPONENTS)
    return folder


@pytest.fixture(scope="session")
def server():
    """A new server of processes, ended with the tests.

    Its environment says 3 threads, so that the 1 of a run is the plan's doing.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("OMP_NUM_THREADS", "3")
        forkserver._forkserver._stop()
        multiprocessing.set_forkserver_preload(workers._PRELOADED)
        forkserver.ensure_running()
    yield
    forkserver._forkserver._stop()


@pytest.fixture
def here(place, monkeypatch):
    """That folder as the working directory."""
    monkeypatch.chdir(place)
    return place


@pytest.fixture(scope="session")
def finished(place, server):
    """The plan file of a comparison that is done: one variant learns, one diverges, one collapses."""
    before = Path.cwd()
    os.chdir(place)
    try:
        path = write_plan()
        assert main(["compare", str(path)]) == 0
        return path
    finally:
        os.chdir(before)
