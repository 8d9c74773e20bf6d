"""What every comparison is seen against: the network before any training, and the pixels themselves.

Each leaves queries.npz in a folder of its own, as a run does, and is found again by the hash of what it depends on.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from lossopt.callbacks import rows_of
from lossopt.comparison.plan import Plan
from lossopt.config import instantiate, parse
from lossopt.data.dataset import LabelledImages, Splits
from lossopt.data.module import RetrievalData, to_float
from lossopt.retrieval.embeddings import collected, embedded
from lossopt.retrieval.evaluation import evaluate_vectors
from lossopt.retrieval.queries import QUERIES, QueryFigures, query_figures, read_queries, write_queries

UNTRAINED, PIXELS = "untrained", "raw pixels"


def untrained_network(plan: Plan, config: Mapping[str, Any], splits: Splits, seed: int) -> QueryFigures:
    """The test split, embedded by the network that training begins with."""
    depends = {"encoder": config["model"]["init_args"]["encoder"], "seed": seed}

    def vectors() -> np.ndarray:
        pl.seed_everything(seed, workers=True, verbose=False)
        made = instantiate(parse([], dict(config)))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        table = splits.test
        batches = _batches(made.data, table)
        return collected(embedded(made.model.eval().to(device), batches, len(table), device, "untrained"), len(table))

    return _kept(plan, config, splits, f"{UNTRAINED}/seed{seed}", depends, vectors)


def raw_pixels(plan: Plan, config: Mapping[str, Any], splits: Splits) -> QueryFigures:
    """The test split, each image its own embedding."""

    def vectors() -> np.ndarray:
        made = instantiate(parse([], dict(config)))
        return np.concatenate([batch.flatten(1).numpy() for batch in _batches(made.data, splits.test)])

    return _kept(plan, config, splits, "raw-pixels/pixels", {}, vectors)


def _batches(data: RetrievalData, table: LabelledImages) -> Iterator[torch.Tensor]:
    return (to_float(batch.images) for batch in data.pass_over(table))


def _kept(
    plan: Plan, config: Mapping[str, Any], splits: Splits, place: str, depends: Mapping[str, Any], vectors: Any
) -> QueryFigures:
    settings, source = config["retrieval"], config["data"]["init_args"]["source"]
    depends = {**depends, "source": source, "retrieval": settings, "threads": plan.threads}
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:8]
    path = Path(f"{plan.folder / place}-{digest}") / QUERIES
    if path.is_file():
        return read_queries(path)
    table = rows_of(splits.test).with_vectors(vectors(), {})
    found = evaluate_vectors(table, settings["ks"], settings["distance"], settings["exclude"])
    figures = query_figures(found, table)
    write_queries(path, figures)
    return figures
