"""SIGTERM ends a run the way Ctrl-C does: at once, by an exception, so that its files and W&B are closed on the way.

Lightning would go on to the end of the batch and then exit with 0, overlook a SIGTERM in the last batch of a
validation, and turn Ctrl-C into exit code 1. No checkpoint is at risk: each is replaced whole (`durable`).
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lossopt.errors import Terminated
from lossopt.processes import is_first


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Around a run, in the main thread (elsewhere Python hears no signals, and this does nothing).

    A handler for SIGTERM that the program has set itself stays in charge. Only the first process of a run speaks, so
    that the others end with the bare exit code.

    Raises:
        Terminated: SIGTERM.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: either of them, in a further process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        if not received:  # a second one would interrupt the closing
            received.append(number)
            raise Terminated

    try:
        with _handlers_kept():
            if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
                signal.signal(signal.SIGTERM, end)
            yield
    except BaseException as ended:
        if not received and _is_ctrl_c(ended):
            _leave_speaking_to_the_first(130)
            raise KeyboardInterrupt from ended
        if not received:
            raise
    if received:  # whatever has become of the exception on its way, and even if the run has come to its end since
        _leave_speaking_to_the_first(Terminated.exit_code)
        raise Terminated


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Lightning leaves Ctrl-C switched off."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # set outside of Python, so it cannot be set from here
                signal.signal(number, handler)


def _is_ctrl_c(ended: BaseException) -> bool:
    """Lightning makes a SystemExit of it."""
    return isinstance(ended.__context__ if isinstance(ended, SystemExit) else ended, KeyboardInterrupt)


def _leave_speaking_to_the_first(code: int) -> None:
    if not is_first():
        raise SystemExit(code)
