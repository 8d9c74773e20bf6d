"""The record that survives, `metrics.jsonl`: one line per call, flushed, readable after a kill."""

import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from lossopt.errors import DataError, LossoptError

PROJECT = "lossopt"
METRICS_FILE = "metrics.jsonl"

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class JsonLinesLogger(Logger):
    """One JSON line per call of `log_metrics`, appended to `<run_folder>/metrics.jsonl` and flushed at once.

    A line holds "step", "time" (seconds since 1970; order rows by step, clocks jump) and the figures. NaN and the
    infinities are the texts "NaN", "Infinity", "-Infinity", so that every line is JSON; `read_metrics` turns them
    back. Steps never go backwards within a process. A process that finds lines there first writes {"resumed": true}.
    """

    def __init__(self, run_folder: Path | str) -> None:
        super().__init__()
        self.path = Path(run_folder) / METRICS_FILE
        self._step = 0
        self._opened = False

    @property
    def name(self) -> str:
        """The project."""
        return PROJECT

    @property
    def version(self) -> str:
        """The name of the run folder."""
        return self.path.parent.name

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    def log_hyperparams(self, *_given: object, **_named: object) -> None:
        """Hyper-parameters live in the run folder's `config.yaml`; nothing is written here."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line.

        Raises:
            LossoptError: the line could not be written; the text names the file and the free bytes.
            ValueError: a figure is called "step", "time" or "resumed".
        """
        taken = {"step", "time", "resumed"} & set(metrics)
        if taken:
            raise ValueError(f"A metric cannot be called {sorted(taken)}; add a prefix, for example 'train/step'.")
        self._step = max(self._step, self._step if step is None else step)
        row = {"step": self._step, "time": round(time.time(), 3)}
        self._append(row | {key: _as_text_if_not_finite(value) for key, value in metrics.items()})

    def _append(self, row: Mapping[str, Json]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                if not self._opened:
                    file.write(_heading_of_resumed_file(self.path))
                    self._opened = True
                file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise LossoptError(
                f"Cannot write to {self.path} ({error}; {_free_bytes(self.path)} bytes free there). "
                "Make room or choose another run folder, then start again with --resume."
            ) from error


def read_metrics(path: Path | str) -> list[dict[str, Json]]:
    """The rows of a `metrics.jsonl` (or of the one in a run folder), in the order in which they count.

    A half-written line (the process was killed) is left out. A resumed process repeats the steps after its checkpoint,
    so rows of the earlier process at or beyond the first repeated step are left out too.

    Raises:
        DataError: there is no such file.
    """
    path = Path(path)
    path = path / METRICS_FILE if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"There is no {path}. Give a run folder, or a {METRICS_FILE} that a run has written.")
    rows: list[dict[str, Json]] = []
    resumed = False
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "resumed" in row:
            resumed = True
            continue
        if resumed:
            rows = [earlier for earlier in rows if earlier["step"] < row["step"]]
            resumed = False
        rows.append({key: _from_text_if_not_finite(value) for key, value in row.items()})
    return rows


def _heading_of_resumed_file(path: Path) -> bytes:
    """Closes a half-written line and marks where the next process begins; nothing for a new file."""
    if path.stat().st_size == 0:
        return b""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        ends_whole = file.read() == b"\n"
    return (b"" if ends_whole else b"\n") + b'{"resumed": true}\n'


def _as_text_if_not_finite(value: float) -> float | int | str:
    number = value if isinstance(value, int) else float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _from_text_if_not_finite(value: Json) -> Json:
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def _free_bytes(path: Path) -> int:
    there = next((folder for folder in path.parents if folder.is_dir()), Path("/"))
    return shutil.disk_usage(there).free
