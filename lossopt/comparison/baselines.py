"""What every comparison is seen against: the network before any training, and the pixels themselves.

Each is measured once, in a process of its own as runs are, and leaves queries.npz in a folder that is found again by
the hash of what it depends on.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from lossopt.callbacks import rows_of
from lossopt.comparison.plan import Plan
from lossopt.comparison.settings import Task
from lossopt.config import instantiate, parse
from lossopt.data.module import to_float
from lossopt.durable import write_text
from lossopt.errors import EvaluationError
from lossopt.retrieval.embeddings import collected, embedded
from lossopt.retrieval.evaluation import evaluate_vectors
from lossopt.retrieval.queries import QUERIES, QueryFigures, query_figures, read_queries, write_queries

UNTRAINED, PIXELS = "untrained", "raw pixels"
REFUSED = "refused.txt"


def baseline_tasks(plan: Plan, config: Mapping[str, Any]) -> list[Task]:
    """The untrained network of each seed, and raw pixels once.

    Args:
        plan: whose seeds and folder.
        config: of a variant: its encoder, data and retrieval are those that count.
    """
    encoder = config["model"]["init_args"]["encoder"]
    shared = {"source": config["data"]["init_args"]["source"], "retrieval": config["retrieval"]}
    shared["threads"] = plan.threads
    found = []
    for name, seed, depends in [(PIXELS, 0, {})] + [
        (UNTRAINED, s, {"encoder": encoder, "seed": s}) for s in plan.seeds
    ]:
        digest = hashlib.sha256(json.dumps({**depends, **shared}, sort_keys=True).encode()).hexdigest()[:8]
        found.append(Task(name, seed, {**config, "seed": seed}, digest, plan.folder / name.replace(" ", "-")))
    return found


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
