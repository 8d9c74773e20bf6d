"""Every figure goes to `metrics.jsonl` first and to W&B second; this is the only file that imports wandb.

The local file is the record: one line per call, flushed, readable after a kill. W&B is a view of the same figures, and
whatever goes wrong with it costs one warning, never the run.
"""

import json
import math
import netrc
import os
import shutil
import struct
import time
import warnings
import zlib
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args
from urllib.parse import urlsplit

import numpy as np
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from lossopt.errors import ConfigError, DataError, LossoptError

if TYPE_CHECKING:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

PROJECT = "lossopt"
STEP = "trainer/global_step"
BEST_IS_HIGHEST = ("val/recall@", "val/map@")
Mode = Literal["online", "offline", "disabled", "shared"]
METRICS_FILE = "metrics.jsonl"

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


# --------------------------------------------------------------------------------------------------- the local record


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


# ---------------------------------------------------------------------------------------------------- Weights & Biases


class WandbView(WandbLogger):
    """Lightning's WandbLogger on a started run; the first failure is one warning, and then it is silent."""

    def __init__(self, run: "wandb.Run", folder: Path) -> None:
        super().__init__(experiment=run, project=PROJECT, save_dir=folder)
        self.folder = folder
        self.alive = True
        self._step = 0
        self._best_kept: set[str] = set()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Whatever fails inside ends the view with one warning."""
        try:
            yield
        except Exception as error:  # anything: the run is worth more than its view
            self.alive = False
            _warn_without_wandb(f"W&B stopped answering ({type(error).__name__}: {error})")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log against the step axis; steps never go backwards."""
        if self.alive:
            with self.guarded():
                self._step = max(self._step, self._step if step is None else step)
                self._keep_the_best_of(metrics)
                super().log_metrics(metrics, self._step)

    def _keep_the_best_of(self, names: Iterable[str]) -> None:
        """By exact name: where two patterns fit a name ("val/recall@*" and "*"), W&B picks either of them by chance."""
        for name in names:
            if name.startswith(BEST_IS_HIGHEST) and name not in self._best_kept:
                self._best_kept.add(name)
                self.experiment.define_metric(name, step_metric=STEP, step_sync=True, summary="max")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Add what Lightning found by `save_hyperparameters` to the config."""
        if self.alive:
            with self.guarded():
                super().log_hyperparams(params)

    @rank_zero_only
    def close(self, summary: Mapping[str, Json], exit_code: int) -> None:
        """Write the summary and end the run."""
        if self.alive:
            with self.guarded():
                run = self.experiment
                run.summary.update(dict(summary))
                written = Path(run.settings.sync_file) if run.offline else None
                run.finish(exit_code=exit_code)
                if written and not _is_complete(written, wait_s=10.0):
                    warnings.warn(
                        f"{written} lacks its end (full disk?); {METRICS_FILE} has all figures.", stacklevel=3
                    )
            self.alive = False


def loggers(
    run_folder: Path | str,
    *,
    name: str,
    config: Mapping[str, Json],
    group: str | None = None,
    job_type: str = "train",
    tags: Sequence[str] = (),
) -> list[Logger]:
    """The local record, and W&B beside it unless it is disabled or cannot start.

    W&B is offline unless an API key is configured (WANDB_API_KEY, WANDB_IDENTITY_TOKEN_FILE, or a netrc entry for the
    server); WANDB_MODE overrides that. No prompt, and no network while offline.

    Args:
        run_folder: where `metrics.jsonl` and `wandb/` go.
        config: the resolved configuration, whole; nested dicts stay nested.
        group: what seeds of one setting share.

    Raises:
        ConfigError: WANDB_MODE is no mode of W&B.
    """
    folder = Path(run_folder)
    record = JsonLinesLogger(folder)
    mode = _wandb_mode(os.environ)
    if mode == "disabled" or rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return [record]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run = _start_wandb(folder, mode, name=name, config=config, group=group, job_type=job_type, tags=tags)
    except Exception as error:  # missing package, refused key, full disk, no server: the local record goes on
        _warn_without_wandb(f"W&B did not start ({type(error).__name__}: {error})")
        return [record]
    return [record, WandbView(run, folder)]


def finish(of: Iterable[Logger], summary: Mapping[str, Json], exit_code: int = 0) -> None:
    """Put the headline figures into the W&B summary and close the run; harmless without W&B or when called twice."""
    for logger in of:
        if isinstance(logger, WandbView):
            logger.close(summary, exit_code)


def _start_wandb(
    folder: Path,
    mode: Mode,
    *,
    name: str,
    config: Mapping[str, Json],
    group: str | None,
    job_type: str,
    tags: Sequence[str],
) -> "wandb.Run":
    import wandb

    run = wandb.init(
        project=PROJECT,
        name=name,
        group=group,
        job_type=job_type,
        tags=list(tags),
        config=dict(config),
        dir=str(folder),
        mode=mode,
        reinit="finish_previous",
        settings=wandb.Settings(silent=True, console="off", x_transaction_log_flush_interval=1.0),
    )
    if not Path(run.dir).resolve().is_relative_to(folder.resolve()):
        warnings.warn(f"W&B could not write into {folder} and went to {run.dir}.", stacklevel=3)
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    return run


def _wandb_mode(environment: Mapping[str, str]) -> Mode:
    asked = environment.get("WANDB_MODE", "")
    if environment.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "disabled"
    if not asked:
        return "online" if _has_api_key(environment) else "offline"
    modes: dict[str, Mode] = {mode: mode for mode in get_args(Mode)} | {"dryrun": "offline"}
    if asked not in modes:
        raise ConfigError(f"WANDB_MODE is {asked!r}; allowed: {', '.join(modes)}. Unset it for the default.")
    return modes[asked]


def _has_api_key(environment: Mapping[str, str]) -> bool:
    """Whether wandb would find a key by itself; asks nobody and looks only at whether there is one."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = urlsplit(environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    home = Path(environment.get("HOME") or environment.get("USERPROFILE") or os.sep)
    candidates = [environment.get("NETRC"), home / ".netrc", home / "_netrc"]
    for path in (Path(candidate) for candidate in candidates if candidate):
        try:
            return netrc.netrc(path).authenticators(server) is not None
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
    return False


def _warn_without_wandb(cause: str) -> None:
    warnings.warn(f"{cause}. The run goes on; its figures are in {METRICS_FILE}.", stacklevel=3)


# ------------------------------------------------------------------------------------------------------------ galleries


class Neighbour(NamedTuple):
    """One retrieved item; images are uint8, (h, w) or (h, w, c)."""

    image: np.ndarray
    label: str
    distance: float
    correct: bool


class Gallery(NamedTuple):
    """A query and what was retrieved for it, nearest first."""

    query_image: np.ndarray
    query_label: str
    neighbours: Sequence[Neighbour]


MOST_QUERIES = 200
MOST_NEIGHBOURS = 5


def log_galleries(to: Iterable[Logger], key: str, rows: Sequence[Gallery], step: int | None = None) -> None:
    """Show retrieved neighbours as one W&B table: query, label, share correct, then a captioned image per neighbour.

    At most 200 queries x 5 neighbours are logged. The images lie in `<run>/wandb/artifacts/`, so that a copy of the
    run folder has them. Nothing happens without W&B, and the local record holds figures only.

    Raises:
        ValueError: an image is not uint8 of shape (h, w) or (h, w, c).
    """
    views = [logger for logger in to if isinstance(logger, WandbView) and logger.alive]
    if not views or not rows:
        return
    import wandb

    shown = [row._replace(neighbours=row.neighbours[:MOST_NEIGHBOURS]) for row in rows[:MOST_QUERIES]]
    for image in (image for row in shown for image in (row.query_image, *(near.image for near in row.neighbours))):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ValueError(
                f"A gallery image must be uint8 of shape (h, w) or (h, w, c), got {image.dtype} {image.shape}."
            )
    width = max(len(row.neighbours) for row in shown)
    for view in views:
        with view.guarded(), _staged_inside(view.folder):
            table = wandb.Table(columns=["query", "label", "correct", *(str(k + 1) for k in range(width))])
            for row in shown:
                images = [_captioned(near) for near in row.neighbours]
                correct = sum(near.correct for near in row.neighbours) / max(1, len(row.neighbours))
                query = wandb.Image(row.query_image, caption=row.query_label)
                table.add_data(query, row.query_label, correct, *images, *[None] * (width - len(images)))
            view.log_metrics({key: table}, step)


def _captioned(near: Neighbour) -> "wandb.Image":
    import wandb

    verdict = "hit" if near.correct else "miss"
    return wandb.Image(near.image, caption=f"{verdict}: {near.label} at {near.distance:.4g}")


@contextmanager
def _staged_inside(folder: Path) -> Iterator[None]:
    """W&B stages the files of a table in the user's home, which a copied run folder would lack; keep them inside."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str((folder / "wandb").resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]
        else:
            os.environ["WANDB_DATA_DIR"] = before


# ---------------------------------------------------------------------------------------------- reading offline runs

_FILE_HEADER = b":W&B"
_FILE_HEADER_BYTES = 7
_BLOCK = 32768
_CHUNK_HEADER = struct.Struct("<IHB")  # crc32 of (type + data), length of data, type
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class OfflineRun(NamedTuple):
    """What an offline W&B run holds.

    `exit_code` is None and `complete` False where the process was killed. Summaries that follow a rule are nested, as
    W&B keeps them: {"val/map@r": {"max": 0.9}}. `files` maps W&B's name of a file to where it lies; the whole of a
    table with images is its "<key>.table.json".
    """

    path: Path
    name: str
    group: str
    tags: tuple[str, ...]
    config: dict[str, Json]
    history: list[dict[str, Json]]
    summary: dict[str, Json]
    files: dict[str, Path]
    exit_code: int | None
    complete: bool


def read_offline_run(path: Path | str) -> OfflineRun:
    """Read a `.wandb` file, or the newest one below a run folder.

    A tail cut off in the middle of a record is what a killed process leaves: the records before it are returned.

    Raises:
        DataError: no such file, not a W&B file, or a record whose checksum is wrong.
        LossoptError: wandb is not installed (it defines the records).
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.rglob("*.wandb"), key=lambda file: file.parent.name)
        if not found:
            raise DataError(f"There is no .wandb file below {path}. Was the run made with WANDB_MODE=disabled?")
        path = found[-1]
    try:
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]
    except ImportError as error:
        raise LossoptError(f"Reading {path} needs wandb ({error}). Install it: pip install wandb") from error

    content = path.read_bytes() if path.is_file() else b""
    if content[: len(_FILE_HEADER)] != _FILE_HEADER:
        raise DataError(f"{path} is not a W&B offline run: it does not begin with {_FILE_HEADER.decode()}.")
    run = OfflineRun(path, "", "", (), {}, [], {}, {}, None, False)
    for payload in _payloads(content, path):
        run = _with_record(run, Record.FromString(payload))
    for own in (run.config, run.summary):
        own.pop("_wandb", None)  # its notes to itself
    return run


def _is_complete(path: Path, wait_s: float) -> bool:
    """Whether the run's last record is on disk; W&B's helper writes it only after `finish` has returned."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        with suppress(DataError):
            if read_offline_run(path).complete:
                return True
        time.sleep(0.02)
    return False


def _payloads(content: bytes, path: Path) -> Iterator[bytes]:
    """The records of a LevelDB log: chunks within blocks of 32 KiB, a long record spread over several chunks."""
    position, record = _FILE_HEADER_BYTES, b""
    while position + _CHUNK_HEADER.size <= len(content):
        left_in_block = _BLOCK - position % _BLOCK
        if left_in_block < _CHUNK_HEADER.size:  # too small for a header: padding
            position += left_in_block
            continue
        checksum, size, kind = _CHUNK_HEADER.unpack_from(content, position)
        start = position + _CHUNK_HEADER.size
        data = content[start : start + size]
        if len(data) < size or not content[position:].strip(b"\0"):  # cut off, or zeros after a power failure
            return
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or zlib.crc32(bytes([kind]) + data) != checksum:
            raise DataError(
                f"{path} is damaged at byte {position}: the checksum is wrong. Copy it again from its source."
            )
        record = data if kind in (_FULL, _FIRST) else record + data
        if kind in (_FULL, _LAST):
            yield record
        position = start + size


def _with_record(run: OfflineRun, record: "Record") -> OfflineRun:
    """Fold one record into what is known so far."""
    kind = record.WhichOneof("record_type")
    if kind == "run":
        _update(run.config, record.run.config.update)
        started = record.run
        return run._replace(name=started.display_name, group=started.run_group, tags=tuple(started.tags))
    if kind == "config":
        _update(run.config, record.config.update)
    elif kind == "history":
        run.history.append(_update({}, record.history.item))
    elif kind == "summary":
        _update(run.summary, record.summary.update)
    elif kind == "files":
        run.files.update({file.path: run.path.parent / "files" / file.path for file in record.files.files})
    elif kind == "artifact":
        staged = run.path.parents[1] / "artifacts" / "staging"  # beside the run, also where the folder was moved
        for content in record.artifact.manifest.contents:
            beside = staged / Path(content.local_path).name
            run.files[content.path] = beside if beside.is_file() else Path(content.local_path)
    elif kind == "exit":
        return run._replace(exit_code=record.exit.exit_code, complete=True)
    return run


def _update(into: dict[str, Json], items: Iterable[Any]) -> dict[str, Json]:
    for item in items:
        *parents, last = list(item.nested_key) or [item.key]
        place = into
        for key in parents:
            inner = place.get(key)
            if not isinstance(inner, dict):
                inner = place[key] = {}
            place = inner
        place[last] = json.loads(item.value_json)  # also reads NaN and Infinity
    return into
