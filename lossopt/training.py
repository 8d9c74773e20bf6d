"""One run, from its configuration to its folder: the same steps for the command, the script and the comparison."""

import ctypes
import gc
import json
import logging
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import Namespace
from pytorch_lightning.loggers import Logger

from lossopt import config as configuration
from lossopt import processes
from lossopt.callbacks import FiniteGuard, RetrievalAtValidation, ScoresAtValidation, TrainingHealth
from lossopt.callbacks.validation import scores_line, scores_of
from lossopt.checkpoints import (
    BEST,
    FOLDER,
    Checkpoints,
    DurableCheckpointIO,
    newest_good_checkpoint,
    read_manifest,
)
from lossopt.durable import run_lock, sha256, write_text
from lossopt.errors import ConfigError, DataError
from lossopt.mining import MiningRefresh
from lossopt.modules.network import ImageNetwork
from lossopt.preflight import check_data, check_settings, trainer_settings
from lossopt.report.findings import Findings, examine
from lossopt.report.logged import logged_galleries, logged_tables
from lossopt.report.run import write_run_report
from lossopt.report.thumbnails import Pictures, TablePictures
from lossopt.retrieval.evaluation import evaluate_vectors
from lossopt.retrieval.queries import QUERIES, query_figures, write_queries
from lossopt.retrieval.text import as_line
from lossopt.runs import (
    CONFIG,
    EMBEDDINGS,
    ENVIRONMENT,
    RESULTS,
    LoadedRun,
    RunResult,
    choose_threshold,
    config_hash,
    embed_split,
    load_weights,
    result_of,
    run_folder,
)
from lossopt.signals import ended_by_signals
from lossopt.tracking import METRICS_FILE, finish, log_galleries, log_table, loggers, read_metrics


def train(
    namespace: Namespace,
    resume: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    watching: Sequence[pl.Callback] = (),
) -> RunResult:
    """Trains as configured, then measures the best checkpoint on the test split.

    Args:
        namespace: a parsed configuration (`lossopt.config.parse`).
        resume: see `run_folder`.
        say: told what a person would want to know, a line at a time.
        watching: callbacks besides those that are configured; they are no part of what the run is.

    Raises:
        LossoptError: of the kind that says what is wrong; nothing written before is lost.
        KeyboardInterrupt, Terminated: Ctrl-C, SIGTERM (`signals`); likewise.
        SystemExit: with several processes, in all but the first, once training is done: what comes after is done once.
    """
    config = configuration.resolved(namespace)
    keep_freed_memory()
    processes.end_with_the_first()
    with ended_by_signals(), quiet_lightning():
        pl.seed_everything(config["seed"], workers=True, verbose=False)
        made = configuration.instantiate(namespace)
        pl.seed_everything(config["seed"], workers=True, verbose=False)  # what a loss drew for itself changes nothing
        starter = check_settings(made)
        with processes.together(starter):
            made.data.seed = config["seed"] if made.data.seed is None else made.data.seed
            made.data.trainer = starter  # knows which share of the batches is this process's own
            made.data.setup("fit")
            check_data(made)
            if made.trainer.fast_dev_run:
                processes.start(starter, "a trial")
                return _trial(made, config, say)
            if not processes.is_first():
                return _follow(made, config, starter)
            made.trainer.callbacks = [*_as_list(made.trainer.callbacks), *watching]
            return _lead(made, config, starter, resume, say)


def _as_list(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list) else [] if given is None else [given]


def _lead(
    made: Namespace, config: dict[str, Any], starter: pl.Trainer, resume: str | None, say: Callable[[str], None]
) -> RunResult:
    """The run in its first process: chooses the folder, locks it, and tells the others."""
    folder, again = run_folder(config, resume)
    with run_lock(folder):
        if again and (folder / RESULTS).is_file():
            say(f"This run is finished already: {folder}")
            processes.start(starter)
            return result_of(folder)
        say(made.data.describe())
        checkpoint = newest_good_checkpoint(folder) if again else None
        processes.start(starter, (config, folder, checkpoint))
        for name, text in ((ENVIRONMENT, environment(config)), (CONFIG, yaml.safe_dump(config, sort_keys=False))):
            if not (folder / name).is_file():
                write_text(folder / name, text)
        return _fit(made, config, folder, checkpoint, say)


def _follow(made: Namespace, config: dict[str, Any], starter: pl.Trainer) -> RunResult:
    """The run in a further process: trains and validates where it is told to; ends in `processes.part`.

    Raises:
        ConfigError: the first process is at another run, the second one of a script.
    """
    its_config, folder, checkpoint = processes.start(starter)
    if its_config != config:
        raise ConfigError(
            "With several processes a script can train one configuration, for each process runs the script from its "
            "beginning. Give each run a `lossopt train` command of its own, or --trainer.devices 1."
        )
    return _fit(made, config, folder, checkpoint, lambda line: None)


def _fit(
    made: Namespace, config: dict[str, Any], folder: Path, checkpoint: Path | None, say: Callable[[str], None]
) -> RunResult:
    model, data = made.model, made.data
    health = TrainingHealth(folder, say)
    checkpoints = Checkpoints(folder, config, made.checkpoint.monitor, made.checkpoint.mode)
    watching = [_watch(made, say, health), health, FiniteGuard(folder, health), checkpoints]
    trainer = _trainer(made, config, folder, watching)
    try:
        if checkpoint is None:
            trainer.validate(model, datamodule=data, verbose=False)  # the untrained network: epoch 0
        else:
            say(f"resuming from {checkpoint}")
        with _long_lived_objects_left_alone():
            trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        processes.part(trainer)
        if not trainer.global_step:
            raise DataError("Training made no step: no training batch was used. Look at the trainer.limit_* settings.")
        return _measure(made, folder, config, trainer, health, say)
    except BaseException:
        finish(trainer.loggers, {}, exit_code=1)
        raise


def _watch(made: Namespace, say: Callable[[str], None], health: TrainingHealth) -> pl.Callback:
    """What tells, after every validation, how good the network is."""
    if isinstance(made.model, ImageNetwork):
        return ScoresAtValidation(say, health)
    settings = made.retrieval
    return RetrievalAtValidation(settings.ks, settings.distance, settings.exclude, say, health)


def _measure(
    made: Namespace,
    folder: Path,
    config: dict[str, Any],
    trainer: pl.Trainer,
    health: TrainingHealth,
    say: Callable[[str], None],
) -> RunResult:
    """The best checkpoint on the test split; results.json is written last, so that it marks a finished run."""
    monitor = made.checkpoint.monitor
    validations = [row for row in read_metrics(folder / METRICS_FILE) if monitor in row]
    best = next((entry for entry in read_manifest(folder / FOLDER) if entry.file == BEST), None)
    if best is None:
        raise ConfigError(
            f"Training ended without a finite {monitor} at the end of any epoch, so there is no best checkpoint. The "
            f"newest is in {folder / FOLDER}. Let epochs end with a validation (batches_per_epoch, "
            "trainer.check_val_every_n_epoch, trainer.max_steps)."
        )
    result = RunResult(
        folder=folder,
        checkpoint=folder / FOLDER / BEST,
        epoch=best.epoch,
        untrained=_validation_only(validations[0]),
        validation=_validation_only(best.metrics),
        test={},
        images=health.images,
        seconds=health.seconds,
        notes=health.close(trainer),
        peak_memory=peak_memory(),
    )
    itself = isinstance(made.model, ImageNetwork)
    line = scores_line(result.validation) if itself else as_line(result.validation)
    say(f"best       {line}  (epoch {result.epoch}, chosen by {monitor})")
    if made.retrieval.test:
        load_weights(made.model, result.checkpoint)
        (_score if itself else _retrieve)(made, config, trainer, result, say)
    finish(trainer.loggers, {**result.validation, **result.test})
    write_text(folder / RESULTS, json.dumps(result.as_json(), indent=2))
    return result


def _score(
    made: Namespace, config: dict[str, Any], trainer: pl.Trainer, result: RunResult, say: Callable[[str], None]
) -> None:
    """The test split, by a network that scores itself."""
    trainer.test(made.model, datamodule=made.data, verbose=False)
    result.test.update(scores_of(trainer, "test/", made.model.metrics))
    say(f"test       {scores_line(result.test)}")
    for logger in trainer.loggers:
        logger.log_metrics(result.test, step=trainer.global_step)


def _retrieve(
    made: Namespace, config: dict[str, Any], trainer: pl.Trainer, result: RunResult, say: Callable[[str], None]
) -> None:
    """The test split, searched; its report."""
    folder = result.folder
    run = LoadedRun(made.model, made.data, result.checkpoint, config)
    choose_threshold(run)
    vectors = embed_split(run, "test", folder / EMBEDDINGS / "test")
    found = evaluate_vectors(vectors, made.retrieval.ks, made.retrieval.distance, made.retrieval.exclude)
    result.test.update({f"test/{name}": value for name, value in found.metrics.items()})
    say(f"test       {as_line(result.test)}")
    for logger in trainer.loggers:
        logger.log_metrics(result.test, step=trainer.global_step)
    write_queries(folder / QUERIES, query_figures(found, vectors))
    if made.retrieval.report:
        findings = examine(vectors, found, trained_on=made.data.splits.train.class_names)
        table = made.data.splits.test
        say(f"report     {write_run_report(folder, findings, table, made.data.splits)}")
        _show(trainer.loggers, findings, TablePictures(table), trainer.global_step)


def _show(to: list[Logger], findings: Findings, pictures: Pictures, step: int) -> None:
    """The tables and figures of the report in W&B."""
    log_galleries(to, "test/galleries", logged_galleries(findings, pictures), step)
    for table in logged_tables(findings, pictures):
        log_table(to, f"test/{table.name}", table.columns, table.rows, step, table.line)


def _trial(made: Namespace, config: dict[str, Any], say: Callable[[str], None]) -> RunResult:
    """`trainer.fast_dev_run`: a few batches through everything; nothing is kept."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        health = TrainingHealth()
        trainer = _trainer(made, config, folder, [_watch(made, lambda line: None, health), health, FiniteGuard(folder)])
        trainer.fit(made.model, datamodule=made.data)
        processes.part(trainer)
        finish(trainer.loggers, {})
    say("A trial of a few batches went through; nothing was kept.")
    return RunResult(folder, folder, 0, {}, {}, {}, health.images, 0.0, [])


def _validation_only(row: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key.startswith("val/")}


def _trainer(made: Namespace, config: dict[str, Any], folder: Path, watching: list[pl.Callback]) -> pl.Trainer:
    settings = trainer_settings(made)
    mined = getattr(made.data, "mining", None)
    mining = [MiningRefresh(mined)] if mined else []
    settings["callbacks"] = [*watching[:-1], *mining, *settings["callbacks"], watching[-1]]
    settings["plugins"].append(DurableCheckpointIO())
    group = f"{config['name']}-{config_hash(config, without=('seed',))}"
    return pl.Trainer(
        **settings,
        logger=loggers(folder, name=f"{config['name']}-seed{config['seed']}", group=group, config=config),
        default_root_dir=folder,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


def keep_freed_memory() -> None:
    """Asks glibc to keep freed pages instead of returning them: about a fifth more images per second on a CPU.

    Training frees and asks for the same large buffers at every step; by default each is mapped and zeroed anew. Without
    glibc this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)


def peak_memory() -> int:
    """Bytes that this process has held at most; with an accelerator, those that tensors held there. 0: unknown."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows keeps no such count
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@contextmanager
def _long_lived_objects_left_alone() -> Iterator[None]:
    """Tables, names and modules live as long as the run: the garbage collector need not walk them at every pass."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def environment(config: Mapping[str, Any] | None = None, threads: int | None = None) -> str:
    """Versions, processor settings and code of one's own that a result depends on; no machine and no person is named.

    Args:
        config: of the run: files that its classes come from are named by module and hash, unless they are installed.
        threads: of the run; None: those of this process.
    """
    packages = ("lossopt", "torch", "torchvision", "pytorch-lightning", "pytorch-metric-learning", "faiss-cpu", "numpy")
    lines = [f"{name}=={metadata.version(name)}" for name in packages]
    lines += [f"python=={platform.python_version()}", f"threads={threads or torch.get_num_threads()}"]
    lines.append(f"accelerator={torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
    lines += [f"code {module}={digest}" for module, digest in own_code(config or {}).items()]
    return "\n".join(lines) + "\n"


def own_code(config: Mapping[str, Any]) -> dict[str, str]:
    """Modules that a configuration takes classes from, but for lossopt and packages, and 8 digits of their sha256."""
    named = re.findall(r'"class_path": "([\w.]+)\.\w+"', json.dumps(config))  # also those in lists
    found = {}
    for name in sorted(set(named)):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and name.partition(".")[0] != "lossopt" and "site-packages" not in Path(file).parts:
            found[name] = sha256(Path(file))[:8]
    return found


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning's advertisements and advice that does not apply here stay off the terminal."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric.utilities")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for advice in ("does not have many workers", "lower value for log", "returned `None`", "LeafSpec", "sync_dist"):
            warnings.filterwarnings("ignore", f".*{advice}.*")
        if not processes.is_first():
            warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
