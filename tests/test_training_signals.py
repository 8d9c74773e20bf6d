"""SIGTERM and Ctrl-C end a run with the shell's exit codes, its files and W&B closed; `--resume` goes on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from lossopt.cli import main
from lossopt.errors import LossoptError, Terminated
from lossopt.signals import ended_by_signals
from lossopt.tracking import read_metrics, read_offline_run

# FAULT="step signal": what the run hears in the middle of a training step.
ENCODER = """
import os, signal
import torch

class Heard(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 16))
        self.steps = 0

    def forward(self, images):
        self.steps += self.training
        step, number = os.environ.get("FAULT", "0 0").split()
        if self.training and self.steps == int(step):
            os.kill(os.getpid(), int(number))
        return torch.nn.functional.normalize(self.layers(images), dim=1)
"""
CONFIG = """
name: heard
model:
  class_path: lossopt.modules.TripletNetwork
  init_args:
    encoder: {class_path: heard.Heard}
    loss_fn: {class_path: lossopt.losses.TripletLoss, init_args: {margin: 0.5}}
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.01}}
data:
  class_path: lossopt.data.module.RetrievalData
  init_args:
    source: {class_path: lossopt.data.Digits, init_args: {image_size: 16}}
    classes_per_batch: 5
    images_per_class: 4
    batches_per_epoch: 3
trainer: {max_epochs: 3, accelerator: cpu, log_every_n_steps: 1}
retrieval: {test: false}
"""
TRAIN = ["train", "--config", "heard.yaml"]


@pytest.fixture
def _handlers():
    """Python's own, also where the tests run in the background of a shell; a run leaves them as they were."""
    own = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    after = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert after == own


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nobody has interrupted."""
    folder = tmp_path_factory.mktemp("signals")
    (folder / "heard.py").write_text(ENCODER)
    (folder / "heard.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        patch.setenv("WANDB_MODE", "disabled")
        assert main([*TRAIN, "--output", "whole"]) == 0
        (run,) = Path("whole/heard").iterdir()
        yield run


def interrupted(output, number):
    """A run in a process of its own that gets the signal in its second epoch: its folder, exit code and last words."""
    fault = {"FAULT": f"5 {number}", "WANDB_MODE": "offline", "HOME": str(Path.cwd())}
    command = [sys.executable, "-m", "lossopt.cli", *TRAIN, "--output", output]
    done = subprocess.run(command, env=os.environ | fault, capture_output=True, text=True, timeout=300)
    (folder,) = Path(output, "heard").iterdir()
    return folder, done.returncode, done.stderr


def last_weights(folder):
    return torch.load(max((folder / "checkpoints").glob("epoch=*.ckpt")), weights_only=True)["state_dict"]


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize(
    ("number", "code", "how"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_a_run_cleanly_and_resume_goes_on_to_the_same_bits(number, code, how, whole):
    folder, ended, said = interrupted(how, int(number))
    assert ended == code
    assert said.splitlines()[-1] == f"lossopt train: {how}; `--resume` goes on from the last checkpoint."
    assert "Traceback" not in said
    assert not (folder / "results.json").exists()
    assert json.loads((folder / "health.json").read_text())["findings"] == []
    assert read_offline_run(folder).exit_code == 1, "W&B is told that the run did not finish"
    assert main([*TRAIN, "--output", how, "--resume"]) == 0
    assert list(Path(how, "heard").iterdir()) == [folder]
    theirs, ours = last_weights(whole), last_weights(folder)
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in theirs)
    rows = [[row["val/map@r"] for row in read_metrics(path) if "val/map@r" in row] for path in (whole, folder)]
    assert rows[0] == rows[1]


def hear(number):
    os.kill(os.getpid(), number)
    time.sleep(0.2)  # the handler runs before the next line


def ending_of(work):
    """What leaves the block when `work` is done in it."""
    try:
        with ended_by_signals():
            work()
    except BaseException as error:
        return type(error), getattr(error, "code", None)


@pytest.mark.usefixtures("_handlers")
def test_sigterm_interrupts_at_once_and_a_second_one_lets_the_run_close():
    done = []

    def work():
        try:
            hear(signal.SIGTERM)
            done.append("the next step")
        finally:
            hear(signal.SIGTERM)
            done.append("closing")

    assert ending_of(work) == (Terminated, 143)
    assert done == ["closing"]


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("becomes", [LossoptError("Cannot save"), SystemExit(0), KeyboardInterrupt(), None])
def test_sigterm_is_the_end_whatever_becomes_of_the_exception(becomes):
    def work():
        try:
            hear(signal.SIGTERM)
        except SystemExit:
            if becomes is not None:
                raise becomes from None

    assert ending_of(work) == (Terminated, 143)


def as_lightning_does():
    try:
        hear(signal.SIGINT)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(1)


@pytest.mark.usefixtures("_handlers")
def test_ctrl_c_is_itself_again_after_lightning_and_other_ends_stay():
    assert ending_of(as_lightning_does) == (KeyboardInterrupt, None)
    assert ending_of(lambda: sys.exit(7)) == (SystemExit, 7)
    assert ending_of(lambda: None) is None
    with pytest.raises(LossoptError, match="as it is"), ended_by_signals():
        raise LossoptError("as it is")


@pytest.mark.usefixtures("_handlers")
def test_a_further_process_ends_without_a_word(monkeypatch):
    monkeypatch.setattr("lossopt.signals.is_first", lambda: False)
    assert ending_of(lambda: hear(signal.SIGTERM)) == (SystemExit, 143)
    assert ending_of(lambda: hear(signal.SIGINT)) == (SystemExit, 130)
    assert ending_of(as_lightning_does) == (SystemExit, 130)


def test_the_handler_of_a_host_program_and_other_threads_are_left_alone():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with ended_by_signals():
            hear(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    passed = []

    def work():
        with ended_by_signals():
            passed.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert passed
