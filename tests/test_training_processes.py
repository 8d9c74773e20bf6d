"""A run of two processes is the run of one: same losses, weights and figures, one folder, one voice, one end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lossopt.cli import main
from lossopt.tracking import read_metrics

# No batch norm: its statistics differ between processes. FAULT="rank step kill|raise": what befalls a training step.
ENCODER = """
import os, signal
import torch
from lossopt.errors import DataError

class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(256, 32), torch.nn.Tanh(), torch.nn.Linear(32, 8)
        )
        self.steps = 0

    def forward(self, images):
        self.steps += self.training
        rank, step, how = os.environ.get("FAULT", "0 0 none").split()
        if self.training and self.steps == int(step) and os.environ.get("LOCAL_RANK", "0") == rank:
            open("fault", "w").close()
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise DataError("the cat has eaten image 7")
        return torch.nn.functional.normalize(self.layers(images), dim=1)
"""
CONFIG = """
name: two
model:
  class_path: lossopt.modules.TripletNetwork
  init_args:
    encoder: {class_path: plain.Plain}
    loss_fn: {class_path: lossopt.losses.TripletLoss, init_args: {margin: 0.5}}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
data:
  class_path: lossopt.data.module.RetrievalData
  init_args:
    source: {class_path: lossopt.data.Digits, init_args: {image_size: 16}}
    classes_per_batch: 8
    images_per_class: 4
    batches_per_epoch: 3
    rotations_as_classes: true
trainer: {max_epochs: 2, accelerator: cpu, log_every_n_steps: 1}
"""
TRAIN = ["train", "--config", "two.yaml", "--trainer.strategy", "ddp", "--trainer.devices"]
LIGHTNING = [sys.executable, "-m", "lossopt.cli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "plain.py").write_text(ENCODER)
    (folder / "two.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        patch.syspath_prepend(folder)
        yield folder


def together(*words, launcher=LIGHTNING, fault=""):
    """Two processes; returns when nobody holds their output any more, so that an orphan would be waited for.

    Returns: what they left, and the seconds from the fault until then.
    """
    environment = os.environ | ({"FAULT": fault} if fault else {})
    command = [*launcher, *TRAIN, "2", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return done, time.time() - Path("fault").stat().st_mtime if fault else 0.0


def weights(folder):
    return torch.load(max((folder / "checkpoints").glob("epoch=*.ckpt")), weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def pair(place):
    """(folder of the run of two processes, its output, folder of the run of one)."""
    done, _ = together("--output", "pair")
    assert done.returncode == 0, done.stderr
    assert main([*TRAIN, "1", "--output", "alone"]) == 0
    (two,), (one,) = Path("pair/two").glob("*"), Path("alone/two").glob("*")
    return two, done, one


def test_two_processes_train_what_one_trains(pair):
    two, _, one = pair
    losses = [[row["train/loss"] for row in read_metrics(folder) if "train/loss" in row] for folder in (two, one)]
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert min(losses[1]) > 0.01 and np.ptp(losses[1]) > 0.01, "nothing would be compared"
    theirs, ours = weights(two), weights(one)
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=0)


def test_two_processes_measure_what_one_measures(pair):
    two, _, one = pair
    results, expected = (json.loads((folder / "results.json").read_text()) for folder in (two, one))
    assert results["images"] == expected["images"] == 2 * 3 * 8 * 4
    for part in ("untrained", "validation", "test"):  # 449 and 447 images: padding to two equal shares would show
        assert results[part] == pytest.approx(expected[part], abs=1e-4), part
    assert results["untrained"] == expected["untrained"]
    rows = [{key for key in row if not key.startswith("health/")} for row in read_metrics(two)]
    assert rows == [{key for key in row if not key.startswith("health/")} for row in read_metrics(one)]


def test_one_process_speaks_and_writes(pair):
    two, done, one = pair
    assert done.stderr == ""
    said = done.stdout.splitlines()
    for beginning in ("train ", "untrained ", "epoch 1 ", "epoch 2 ", "best ", "test ", "report ", "192 images in"):
        assert sum(line.startswith(beginning) for line in said) == 1 + (beginning == "test "), beginning
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}


def test_one_process_evaluates_what_two_have_trained(pair, capsys):
    two, _, _ = pair
    assert main(["evaluate", str(two)]) == 0
    recall = json.loads((two / "results.json").read_text())["test"]["test/recall@1"]
    assert f"{100 * recall:.2f} %" in capsys.readouterr().out


def test_a_killed_process_ends_the_other_and_torchrun_resumes_to_the_same_bits(pair):
    two, _, _ = pair
    done, seconds = together("--output", "killed", fault="1 5 kill")  # the second step of the second epoch
    assert done.returncode > 0 or done.returncode == -9
    assert seconds < 30, "nobody may be left by then"
    assert "terminated with code -9" in done.stderr or "was killed by SIGKILL" in done.stderr
    assert "Traceback" not in done.stderr
    (folder,) = Path("killed/two").glob("*")
    assert not (folder / "results.json").exists()
    done, _ = together("--output", "killed", "--resume", launcher=[*TORCHRUN, "-m", "lossopt.cli"])
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout and list(Path("killed/two").glob("*")) == [folder]
    for name, tensor in weights(two).items():
        assert torch.equal(weights(folder)[name], tensor), name
    assert json.loads((folder / "results.json").read_text())["images"] == 192


def test_an_error_in_one_process_ends_both_and_is_named_once(place):
    done, seconds = together("--output", "spoilt", fault="1 2 raise")
    assert done.returncode in (3, -9)
    assert done.stderr.count("the cat has eaten image 7") == 1 and "Traceback" not in done.stderr
    assert seconds < 30
