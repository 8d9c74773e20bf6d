"""What an evaluation found for each query, in one file: what comparisons pair runs by.

Letters: q queries.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lossopt.durable import write_whole
from lossopt.errors import DataError
from lossopt.retrieval.evaluation import RetrievalResult
from lossopt.retrieval.vectors import LabelledVectors

QUERIES = "queries.npz"
_MAIN = ("recall@", "map@r", "map", "mrr", "r_precision")  # the others follow from the embeddings
_VERSION = 1


@dataclass(frozen=True)
class QueryFigures:
    """Metrics of each query that has something to find, in the order of the rows.

    metrics: name to (q,) values. labels: (q,) positions in `class_names`; groups likewise, None without groups.
    names: (q,) of the rows. gallery: items searched.
    """

    metrics: dict[str, np.ndarray]
    labels: np.ndarray
    class_names: tuple[str, ...]
    groups: np.ndarray | None
    group_names: tuple[str, ...]
    names: tuple[str, ...]
    gallery: int

    @property
    def means(self) -> dict[str, float]:
        """Metric name to the mean over the queries."""
        return {name: float(values.mean()) for name, values in self.metrics.items()}


def query_figures(found: RetrievalResult, rows: LabelledVectors) -> QueryFigures:
    """Of an evaluation of a table: its main metrics, query by query."""
    asked = found.query_rows
    return QueryFigures(
        metrics={name: values for name, values in found.per_query.items() if name.startswith(_MAIN)},
        labels=rows.labels[asked],
        class_names=tuple(rows.class_names),
        groups=None if rows.groups is None else rows.groups[asked],
        group_names=tuple(rows.group_names),
        names=tuple(rows.names[row] for row in asked.tolist()),
        gallery=found.gallery,
    )


def write_queries(path: Path, figures: QueryFigures) -> None:
    """Writes them as a whole.

    Raises:
        LossoptError: they cannot be written; the text has the path and the free bytes.
    """
    about = {
        "version": _VERSION,
        "class_names": figures.class_names,
        "group_names": figures.group_names,
        "names": figures.names,
        "gallery": figures.gallery,
    }
    columns = {f"metric/{name}": values for name, values in figures.metrics.items()} | {"labels": figures.labels}
    if figures.groups is not None:
        columns["groups"] = figures.groups
    text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)  # no pickle: names are text in a file of numbers
    write_whole(path, lambda file: np.savez_compressed(file, about=text, **columns))  # type: ignore[arg-type]


def read_queries(path: Path) -> QueryFigures:
    """What `write_queries` wrote.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            about = json.loads(content["about"].tobytes())
            metrics = {name[len("metric/") :]: content[name] for name in content if name.startswith("metric/")}
            return QueryFigures(
                metrics=metrics,
                labels=content["labels"],
                class_names=tuple(about["class_names"]),
                groups=content.get("groups"),
                group_names=tuple(about["group_names"]),
                names=tuple(about["names"]),
                gallery=int(about["gallery"]),
            )
    except Exception as error:  # a damaged zip raises almost anything
        raise DataError(
            f"Cannot read {path} ({type(error).__name__}: {error}). `lossopt evaluate` and `lossopt compare` need it "
            "whole: remove the run's results.json and resume it, and it is written anew."
        ) from error
