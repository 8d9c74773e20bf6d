"""Several processes, one run: the first one chooses, writes and speaks; the others train along and end with it.

Lightning's launcher runs the command again for every further process; torchrun starts all of them at once.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from pytorch_lightning.utilities import rank_zero_only

from lossopt.errors import ConfigError, LossoptError

_FIRST = "LOSSOPT_FIRST_PROCESS"  # its process id, known to those that it starts
_SET_FOR_OTHERS = (_FIRST, "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_COURTESY_S = 5.0  # how long the others leave it to the first process to name an error that all of them met


def is_first() -> bool:
    """Whether this process writes and speaks; the answer is known before there is a trainer."""
    return not rank_zero_only.rank  # type: ignore[attr-defined]


def check_strategy(trainer: Trainer) -> None:
    """Refuses strategies under which a run's figures or weights would stay in processes that are gone.

    Raises:
        ConfigError: the trainer would start processes, but not by running the command again.
    """
    strategy = trainer.strategy
    by_command = isinstance(strategy.launcher, _SubprocessScriptLauncher) and isinstance(strategy, DDPStrategy)
    if strategy.launcher is not None and not by_command:
        start = getattr(strategy, "_start_method", None)
        how = f"{type(strategy).__name__}, start_method {start!r}" if start else type(strategy).__name__
        raise ConfigError(
            f"trainer.strategy ({how}) would leave the run's figures or weights in processes that end with the "
            "training. For several processes give --trainer.strategy ddp; in a notebook, --trainer.devices 1."
        )


def end_with_the_first() -> None:
    """Makes sure that a process which another one started does not outlive it, whatever it is busy with."""
    first = os.environ.get(_FIRST)
    if first and not is_first():
        threading.Thread(target=_end_after, args=(int(first),), daemon=True, name="end-with-the-first").start()


def _end_after(first: int) -> None:
    while os.getppid() == first:
        time.sleep(0.5)
    os._exit(1)


def start(trainer: Trainer, told: object = None) -> Any:
    """Starts the other processes of a run, if it has any, and tells them what the first one has chosen.

    Args:
        trainer: whose settings say how many; it need not be the one that trains.
        told: by the first process; not looked at in the others. None: there is nothing to do, the others end here.

    Returns:
        What the first process told.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy) or strategy.launcher is None:
        return told
    environment = strategy.cluster_environment
    if trainer.is_global_zero:
        if told is None and environment and not environment.creates_processes_externally:
            return None
        os.environ[_FIRST] = str(os.getpid())
    strategy.launcher.launch(strategy.setup_environment)
    told = strategy.broadcast(told)
    if told is None and not trainer.is_global_zero:
        raise SystemExit(0)
    return told


def part(trainer: Trainer) -> None:
    """After the training: the processes let go of each other, and all but the first end here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if not trainer.is_global_zero:
        raise SystemExit(0)


@contextmanager
def together(trainer: Trainer) -> Iterator[None]:
    """An error in any process ends all of them, and is named once; the environment is as it was before.

    The others leave errors that all of them meet to the first, whose end is theirs (`end_with_the_first`, torchrun).
    When the first loses the connection to another, it looks at how that one ended.

    Raises:
        SystemExit: another process has said what is wrong; its exit code.
        LossoptError: another process is gone without a word.
    """
    before = {name: os.environ.get(name) for name in _SET_FOR_OTHERS}
    try:
        yield
    except Exception as error:
        if not trainer.is_global_zero:
            time.sleep(_COURTESY_S)
            raise
        started = _released(trainer)
        try:
            if isinstance(error, RuntimeError):  # as all errors of gloo and NCCL are
                _look_at(started, error)
        finally:
            for process in started:
                process.kill()
                process.wait()  # gloo does not let this one end before
        raise
    finally:  # what this process starts later is no part of this run
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}


def _released(trainer: Trainer) -> list[subprocess.Popen]:
    """The processes that this one has started, out of the hands of Lightning's observer.

    When one of them fails, it would kill this process, too, perhaps before it has spoken.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return []
    started = list(launcher.procs)
    launcher.procs.clear()
    return started


def _look_at(started: list[subprocess.Popen], error: RuntimeError) -> None:
    deadline = time.monotonic() + _COURTESY_S
    while started and time.monotonic() < deadline:
        for rank, process in enumerate(started, start=1):
            code = process.poll()
            if code and code > 0:
                raise SystemExit(code) from error
            if code:
                which, how = f"Process {rank} of {1 + len(started)}, counted from 0,", signal.Signals(-code).name
                raise LossoptError(
                    f"{which} was killed by {how}. "
                    "If nobody did that, memory ran out: use fewer processes, smaller batches or fewer workers. "
                    "`--resume` goes on from the last checkpoint."
                ) from error
        time.sleep(0.05)
