"""The same figures in Weights & Biases, offline unless logged in; what goes wrong with it costs one warning, no run."""

import netrc
import os
import warnings
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args
from urllib.parse import urlsplit

import numpy as np
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from lossopt.errors import ConfigError
from lossopt.tracking.offline import is_complete
from lossopt.tracking.record import METRICS_FILE, PROJECT, Json, JsonLinesLogger

if TYPE_CHECKING:
    import wandb

STEP = "trainer/global_step"
BEST_IS_HIGHEST = ("val/recall@", "val/map@")
Mode = Literal["online", "offline", "disabled", "shared"]


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
                if written and not is_complete(written, wait_s=10.0):
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
        dir=str(folder.absolute()),  # W&B's helper may have been started in another working directory
        mode=mode,
        reinit="finish_previous",
        # no system statistics: on few cores their sampling slows the training that they watch
        settings=wandb.Settings(silent=True, console="off", x_transaction_log_flush_interval=1.0, x_disable_stats=True),
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


def log_table(
    to: Iterable[Logger],
    key: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Json | np.ndarray]],
    step: int | None = None,
    line: tuple[str, str] | None = None,
) -> None:
    """One W&B table, or a chart of it. Nothing happens without W&B, and the local record holds figures only.

    Args:
        to: loggers; those that are not W&B are passed over.
        key: where it appears.
        columns: their names.
        rows: a value per column; a uint8 array of shape (h, w) or (h, w, c) is shown as an image.
        step: see `WandbView.log_metrics`.
        line: two columns, to be drawn as a curve of the second over the first.

    Raises:
        ValueError: a row has more or fewer values than there are columns.
    """
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"{key}: every row needs {len(columns)} values, one for each of {', '.join(columns)}.")
    views = [logger for logger in to if isinstance(logger, WandbView) and logger.alive]
    if not views or not rows:
        return
    import wandb

    for view in views:
        with view.guarded(), _staged_inside(view.folder):
            cells = [[wandb.Image(cell) if isinstance(cell, np.ndarray) else cell for cell in row] for row in rows]
            table = wandb.Table(columns=list(columns), data=cells)
            shown = table if line is None else wandb.plot.line(table, line[0], line[1], title=key)
            view.log_metrics({key: shown}, step)


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
