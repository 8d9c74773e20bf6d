"""Runs side by side, each in a process of its own: what one does, leaks or dies of touches no other.

The processes are forked from a server that has imported everything once and computed nothing, so that a run starts at
once and alike. They end when the command ends, however it ends.
"""

import errno
import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch

from lossopt.comparison.baselines import is_baseline, measure_baseline
from lossopt.comparison.settings import Task
from lossopt.durable import write_text
from lossopt.errors import ConfigError, LossoptError

FAILURE = "failure.json"
_PRELOADED = ["lossopt.comparison.workers", "lossopt.training", "wandb"]
_TRIES = 2  # of a run whose process was killed
_OF_THE_MACHINE = (  # errors that say nothing about a variant: a full disk, no right to write, no memory, no handles
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE),
)
Ending = Literal["finished", "failed", "stopped"]


class Ended(NamedTuple):
    """How a run ended: "finished", "failed" (a result: the training went wrong), or "stopped" (no result: it must run
    again). words: the error. inside: seconds within the training itself; around: of its process, from start to end.
    everyones: it was stopped by what would stop the others, too (a full disk)."""

    task: Task
    how: Ending
    words: str
    inside: float
    around: float
    everyones: bool = False


@dataclass
class _Worker:
    """A process at work."""

    task: Task
    tries: int
    process: Any
    messages: Connection
    place: int
    began: float
    images: int = 0
    told: tuple[Ending, str, float] | None = None


def execute(
    tasks: Sequence[Task],
    workers: int,
    threads: int,
    images_seen: Callable[[Task, int], None] = lambda task, images: None,
) -> Generator[Ended, None, None]:
    """Runs all tasks, `workers` at a time, and yields each as it ends. Closing the iterator ends what is at work.

    Args:
        tasks: in the order in which they begin.
        workers, threads: processes side by side, and CPU threads of each.
        images_seen: told, from time to time, how many images a run has seen.
    """
    context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    context.set_forkserver_preload(_PRELOADED)
    waiting = [(task, 1) for task in tasks][::-1]
    places = list(range(workers))[::-1]
    at_work: list[_Worker] = []
    try:
        while waiting or at_work:
            while waiting and places:
                task, tries = waiting.pop()
                at_work.append(_start(context, task, tries, places.pop(), threads))
            ready = wait([one.messages for one in at_work] + [one.process.sentinel for one in at_work])
            for one in [one for one in at_work if one.messages in ready or one.process.sentinel in ready]:
                _listen(one, images_seen)
                if one.process.exitcode is None:
                    continue
                at_work.remove(one)
                places.append(one.place)
                ended = _ended(one)
                if one.told is None and one.tries < _TRIES:
                    waiting.append((one.task, one.tries + 1))
                else:
                    yield ended
    finally:
        for one in at_work:
            one.process.kill()
            one.process.join()


def _start(context: Any, task: Task, tries: int, place: int, threads: int) -> _Worker:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, threads, place, theirs), name=f"{task.variant}-{task.seed}")
    process.start()
    theirs.close()
    return _Worker(task, tries, process, ours, place, time.perf_counter())


def _listen(one: _Worker, images_seen: Callable[[Task, int], None]) -> None:
    """Takes what a process has said; one that is gone says nothing more."""
    try:
        while one.messages.poll():
            message = one.messages.recv()
            if isinstance(message, int):
                images_seen(one.task, message)
            else:
                one.told = message
    except EOFError:
        one.process.join()


def _ended(one: _Worker) -> Ended:
    one.process.join()
    one.messages.close()
    around = time.perf_counter() - one.began
    if one.told is not None:
        how, words, inside = one.told
        return Ended(one.task, how, words, inside, around, everyones=how == "stopped")
    code = one.process.exitcode
    what = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = " (often: out of memory; give fewer --workers)" if code == -signal.SIGKILL else ""
    return Ended(one.task, "stopped", f"its process {what}, {_TRIES} times{hint}.", 0.0, around)


def _work(task: Task, threads: int, place: int, messages: Connection) -> None:
    """In the process of a run."""
    _end_with_the_command()
    with _share_of_the_machine(threads, place):
        from lossopt.config import parse
        from lossopt.training import train

        began = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they would be printed between the lines of other runs
                if is_baseline(task):
                    measure_baseline(task)
                else:
                    namespace = parse([], dict(task.config))  # classes of one's own are known from here on
                    found = task.found()
                    train(namespace, None if found is None else str(found), watching=[_Progress(messages)])
        except KeyboardInterrupt:
            messages.send(("stopped", "interrupted", time.perf_counter() - began))
        except Exception as error:
            how: Ending = "failed" if not _is_no_result(error) and _keep_failure(task, error) else "stopped"
            messages.send((how, _said(error), time.perf_counter() - began))
        else:
            messages.send(("finished", "", time.perf_counter() - began))


class _Progress(pl.Callback):
    """Tells the command how many images a run has seen."""

    def __init__(self, messages: Connection) -> None:
        self.messages = messages

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After every epoch."""
        self._tell(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Now and then."""
        if trainer.global_step % 50 == 0:
            self._tell(trainer)

    def _tell(self, trainer: pl.Trainer) -> None:
        self.messages.send(trainer.global_step * trainer.datamodule.images_per_batch)  # type: ignore[attr-defined]


def _end_with_the_command() -> None:
    """A run whose command was killed would hold its folder's lock against the next one."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end-with-the-command").start()


@contextmanager
def _share_of_the_machine(threads: int, place: int) -> Iterator[None]:
    """So many threads, whichever library asks; with several accelerators, one of them in turn."""
    from threadpoolctl import threadpool_limits

    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(place % torch.cuda.device_count())
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # this process's own: evaluation and loader workers ask it
    with threadpool_limits(threads):
        yield


def _is_no_result(error: Exception) -> bool:
    """A full disk, a locked folder or no memory says nothing about the variant."""
    full = isinstance(error, OSError) and error.errno in _OF_THE_MACHINE
    none_left = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
    return full or none_left or isinstance(error, ConfigError) or type(error) is LossoptError


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, LossoptError) else f"{type(error).__name__}: {error}"


def _keep_failure(task: Task, error: Exception) -> bool:
    """The run's folder says how it failed, so that it is a result and need not run again; False: it has none yet."""
    folder = task.found()
    if folder is not None:
        content = {"error": _said(error), "kind": type(error).__name__, "trace": traceback.format_exc()}
        write_text(folder / FAILURE, json.dumps(content, indent=2) + "\n")
    return folder is not None


def set_failures_aside(folder: Path) -> int:
    """Failed runs below the folder of a plan are to run again, from their last checkpoints; how many there are."""
    files = list(folder.glob(f"*/*/{FAILURE}"))
    for file in files:
        file.replace(file.with_name(f"earlier-{FAILURE}"))
    return len(files)


def failure_of(folder: Path) -> str | None:
    """What a failed run said at its end; None: it has not failed."""
    path = folder / FAILURE
    if not path.is_file():
        return None
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return str(content["error"])
