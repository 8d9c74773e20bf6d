"""What every comparison is seen against: the network before any training, and the pixels themselves.

Each is measured once, in a process of its own as runs are, and leaves queries.npz in a folder that is found again by
the hash of what it depends on.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from lossopt.comparison.plan import Plan
from lossopt.comparison.settings import Task
from lossopt.config import instantiate, parse
from lossopt.data.module import to_float
from lossopt.durable import write_text
from lossopt.errors import EvaluationError
from lossopt.retrieval.embeddings import collected, embedded
from lossopt.retrieval.evaluation import evaluate_vectors
from lossopt.retrieval.queries import QUERIES, QueryFigures, query_figures, read_queries, write_queries
from lossopt.tables import rows_of

UNTRAINED, PIXELS = "untrained", "raw pixels"
REFUSED = "refused.txt"


def untrained_task(plan: Plan, config: Mapping[str, Any], seed: int) -> Task:
    """The network that a run of this configuration and seed begins with, on the test split."""
    return _task(UNTRAINED, plan, config, seed, {"encoder": config["model"]["init_args"]["encoder"], "seed": seed})


def pixels_task(plan: Plan, config: Mapping[str, Any]) -> Task:
    """The test split, each image its own embedding."""
    return _task(PIXELS, plan, config, 0, {})


def _task(name: str, plan: Plan, config: Mapping[str, Any], seed: int, depends: Mapping[str, Any]) -> Task:
    source = config["data"]["init_args"]["source"]
    depends = {**depends, "source": source, "retrieval": config["retrieval"], "threads": plan.threads}
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:8]
    return Task(name, seed, {**config, "seed": seed}, digest, plan.folder / name.replace(" ", "-"))


def baseline_tasks(plan: Plan, tasks: Sequence[Task]) -> list[Task]:
    """Raw pixels once, and the untrained network that each run begins with; of equal ones, one."""
    found = [pixels_task(plan, tasks[0].config)] + [untrained_task(plan, task.config, task.seed) for task in tasks]
    return list({task.digest: task for task in found}.values())


def is_baseline(task: Task) -> bool:
    """Whether nothing is trained in it."""
    return task.variant in (UNTRAINED, PIXELS)


def is_measured(task: Task) -> bool:
    """Whether its figures, or why there can be none, are there already."""
    return (_place(task) / QUERIES).is_file() or (_place(task) / REFUSED).is_file()


def measure_baseline(task: Task) -> None:
    """Embeds the test split, and keeps what each query found; or why no figure can be given."""
    pl.seed_everything(task.seed, workers=True, verbose=False)
    made = instantiate(parse([], dict(task.config)))
    table, settings = made.data.splits.test, task.config["retrieval"]
    batches = (to_float(batch.images) for batch in made.data.pass_over(table))
    if task.variant == PIXELS:
        vectors = np.concatenate([images.flatten(1).numpy() for images in batches])
    else:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = made.model.eval().to(device)
        vectors = collected(embedded(network, batches, len(table), device), len(table))
    rows = rows_of(table).with_vectors(vectors, {})
    _place(task).mkdir(parents=True, exist_ok=True)
    try:
        found = evaluate_vectors(rows, settings["ks"], settings["distance"], settings["exclude"])
    except EvaluationError as refused:  # black images have no direction
        write_text(_place(task) / REFUSED, f"{refused}\n")
    else:
        write_queries(_place(task) / QUERIES, query_figures(found, rows))


def baseline_figures(task: Task) -> QueryFigures | None:
    """What a measured baseline found; None: no figure can be given.

    Raises:
        DataError: the file cannot be read.
    """
    return None if (_place(task) / REFUSED).is_file() else read_queries(_place(task) / QUERIES)


def _place(task: Task) -> Path:
    return task.folder / f"seed{task.seed}-{task.digest}"
