"""What whitening, query expansion and re-ranking change: the same metrics before, and after each step on top.

Their settings must be chosen on validation images: a setting that was tried on the evaluated ones proves nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np

from lossopt.errors import EvaluationError
from lossopt.retrieval import metrics as formulas
from lossopt.retrieval.counting import rank_relevant
from lossopt.retrieval.evaluation import KS, measure_task
from lossopt.retrieval.expansion import expand_queries
from lossopt.retrieval.index import Distance, Neighbours
from lossopt.retrieval.metrics import HitGroups
from lossopt.retrieval.reranking import Reciprocal, rerank, reranked_groups
from lossopt.retrieval.task import Exclusion, Task
from lossopt.retrieval.vectors import LabelledVectors
from lossopt.retrieval.whitening import learn_whitening

Step = Literal["whiten", "expand", "rerank"]
STEPS: tuple[Step, ...] = get_args(Step)


@dataclass(frozen=True)
class AfterSettings:
    """How the steps are done; see `learn_whitening`, `expand_queries` and `rerank`.

    dimensions, regularisation: of whitening. neighbours, alpha: of query expansion. lists, reciprocal: length of the
    re-ranked lists, and how.
    """

    dimensions: int | None = None
    regularisation: float = 0.1
    neighbours: int = 5
    alpha: float = 3.0
    lists: int = 100
    reciprocal: Reciprocal = field(default_factory=Reciprocal)


class Stage(NamedTuple):
    """name: "as embedded", then the step that was added; metrics: means over the queries with a relevant item."""

    name: str
    metrics: dict[str, float]


def after_search(
    vectors: LabelledVectors,
    train: LabelledVectors | None = None,
    steps: Sequence[Step] = ("expand", "rerank"),
    ks: Sequence[int] = KS,
    distance: Distance = "euclidean",
    exclude: Exclusion = "none",
    settings: AfterSettings = AfterSettings(),
) -> list[Stage]:
    """Metrics as embedded, then after each step, the earlier ones staying in place.

    Args:
        vectors: the table that is evaluated.
        train: training embeddings of the same model; "whiten" needs them.
        steps: any of "whiten", "expand", "rerank"; done in this order, whatever the order given.
        ks: cut-offs of recall@k and precision@k.
        distance, exclude: of the evaluation.
        settings: of the steps.

    Returns:
        One stage more than there are steps; the keys of all: recall@k, precision@k, "r_precision", "map@r".

    Raises:
        EvaluationError: no training embeddings to whiten by, or those of the evaluated images; and as
            `measure_task`.
        ValueError: a step of another name.
    """
    unknown = [step for step in steps if step not in STEPS]
    if unknown:
        raise ValueError(f"Steps after search are {', '.join(STEPS)}; got {', '.join(map(repr, unknown))}.")
    vectors.require_labels()
    if "whiten" in steps:
        _refuse_training(vectors, train)
    task, embeddings, asked, ks = vectors.task(exclude), vectors.vectors, None, tuple(ks)
    stages = [Stage("as embedded", _metrics(embeddings, task, ks, distance))]
    if "whiten" in steps and train is not None:
        whitening = learn_whitening(
            train.vectors, settings.dimensions, settings.regularisation, unit_input=distance == "cosine"
        )
        embeddings = whitening.apply(embeddings)
        stages.append(Stage("whiten", _metrics(embeddings, task, ks, distance)))
    if "expand" in steps:
        asked = expand_queries(embeddings, task, task.query_rows, settings.neighbours, settings.alpha, distance)
        stages.append(Stage("expand", _metrics(embeddings, task, ks, distance, asked)))
    if "rerank" in steps:
        lists = rerank(embeddings, task, task.query_rows, settings.lists, settings.reciprocal, distance, asked)
        stages.append(Stage("rerank", _reranked_metrics(embeddings, task, ks, distance, asked, lists)))
    return stages


def after_text(stages: Sequence[Stage]) -> str:
    """A table in per cent: a line per stage, with what it adds to the line before."""
    names = [name for name in stages[0].metrics if not name.startswith("precision@")]
    lines = [("after search   " + "".join(f"{name:<18}" for name in names)).rstrip()]
    for number, stage in enumerate(stages):
        before = stages[max(0, number - 1)].metrics
        cells = ""
        for name, value in stage.metrics.items():
            if name in names:
                change = f"({100 * (value - before[name]):+.2f})" if number else ""
                cells += f"{100 * value:<8.2f}{change:<10}"
        lines.append(f"{f'+ {stage.name}' if number else stage.name:<15}{cells}".rstrip())
    lines.append("In brackets: what the step changes. Choose its settings on validation images, never on these.")
    return "\n".join(lines)


def _metrics(
    embeddings: np.ndarray, task: Task, ks: tuple[int, ...], distance: Distance, asked: np.ndarray | None = None
) -> dict[str, float]:
    found = measure_task(embeddings, task, ks, distance, query_embeddings=asked)
    return {name: float(found[name].mean()) for name in _names(ks)}


def _reranked_metrics(
    embeddings: np.ndarray,
    task: Task,
    ks: tuple[int, ...],
    distance: Distance,
    asked: np.ndarray | None,
    lists: Neighbours,
) -> dict[str, float]:
    parts: dict[str, list[np.ndarray]] = {name: [] for name in _names(ks)}
    for queries, original in rank_relevant(embeddings, task, distance, asked):
        some = Neighbours(lists.distances[queries], lists.rows[queries])
        own = task.labels[task.query_rows[queries], None]
        relevant = (task.labels[some.rows] == own) & (some.rows >= 0)
        for name, values in _measured(reranked_groups(original, some, relevant), ks).items():
            parts[name].append(values)
    return {name: float(np.concatenate(values).mean()) for name, values in parts.items()}


def _names(ks: tuple[int, ...]) -> list[str]:
    return [*(f"recall@{k}" for k in ks), *(f"precision@{k}" for k in ks), "r_precision", "map@r"]


def _measured(groups: HitGroups, ks: tuple[int, ...]) -> dict[str, np.ndarray]:
    r = groups.relevant
    values = {f"recall@{k}": formulas.recall_at_k(groups, k) for k in ks}
    values |= {f"precision@{k}": formulas.hits_at_k(groups, k) / k for k in ks}
    return values | {
        "r_precision": formulas.hits_at_k(groups, r) / r,
        "map@r": formulas.average_precision(groups, r),
    }


def _refuse_training(vectors: LabelledVectors, train: LabelledVectors | None) -> None:
    if train is None:
        raise EvaluationError(
            "Whitening is learnt on training embeddings, and none were given. Evaluate a run, or give the embeddings "
            "of its training split; or leave the step `whiten` out."
        )
    if train.vectors.shape[1] != vectors.vectors.shape[1]:
        raise EvaluationError(
            f"The training embeddings have {train.vectors.shape[1]} dimensions, the evaluated ones "
            f"{vectors.vectors.shape[1]}: they are not of one model."
        )
    rows = {name: row for row, name in enumerate(vectors.names)}
    both = [(row, rows[name]) for row, name in enumerate(train.names) if name in rows]
    same = [train.names[i] for i, j in both if np.array_equal(train.vectors[i], vectors.vectors[j])]
    if same:
        raise EvaluationError(
            f"{len(same)} of the training embeddings are evaluated, too, first {', '.join(same[:3])}: whitening learnt "
            "on evaluated images says nothing of others. Give embeddings of other images."
        )
