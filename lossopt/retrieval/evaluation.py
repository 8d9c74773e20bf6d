"""Embeddings in, recall@k and its kin out, each with what it leaves out; what has no meaning is refused.

Letters: n rows, q queries, g gallery, d embedding, c classes, R relevant items of a query.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from lossopt.errors import EvaluationError
from lossopt.retrieval import metrics as formulas
from lossopt.retrieval.collapse import Collapse, measure_collapse
from lossopt.retrieval.counting import rank_relevant, relevant_and_candidates
from lossopt.retrieval.hierarchy import coarser_levels
from lossopt.retrieval.index import Distance
from lossopt.retrieval.intervals import intervals_over_classes
from lossopt.retrieval.metrics import HitGroups
from lossopt.retrieval.task import Exclusion, Task, make_task
from lossopt.retrieval.vectors import LabelledVectors

KS = (1, 2, 4, 8)


@dataclass(frozen=True)
class RetrievalResult:
    """What one evaluation found.

    metrics: mean over the queries that have a relevant item; "recall@1", ..., "r_precision", "map@r", "map", "mrr",
        "precision@1", ..., "found@1", ..., "ndcg@1", ...
    metrics_all_queries: the same with the others counted as 0.
    queries: those with a relevant item; excluded: those without. gallery, classes, dimensions: sizes.
    distractors: gallery items of classes that no query has. graded: levels that NDCG counts, 1 without a hierarchy.
    per_query: metric name to (queries,) values; query_rows: (queries,) row numbers they belong to.
    relevant, candidates: (queries,) items that each could find, and items that it searched.
    intervals: metric name to its 95 % interval by bootstrap over classes, where asked for.
    """

    metrics: dict[str, float]
    metrics_all_queries: dict[str, float]
    queries: int
    excluded: int
    gallery: int
    classes: int
    dimensions: int
    distractors: int
    graded: int
    distance: Distance
    exclude: Exclusion
    collapse: Collapse
    per_query: dict[str, np.ndarray] = field(repr=False)
    query_rows: np.ndarray = field(repr=False)
    relevant: np.ndarray = field(repr=False)
    candidates: np.ndarray = field(repr=False)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def trivial(self) -> tuple[str, ...]:
        """Why any model would do well here, in words; empty where one would not."""
        reasons = []
        if self.classes == 1:
            reasons.append("the gallery holds a single class, so that whatever is found is right")
        if int(self.candidates.max()) < 2:
            reasons.append("a query has a single image to choose from")
        return tuple(reasons)

    def as_json(self) -> dict[str, Any]:
        """JSON types; without what is known of single queries."""
        arrays = ("per_query", "query_rows", "relevant", "candidates")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in arrays} | {
            "collapse": asdict(self.collapse),
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
        }


def fitting_ks(task: Task) -> tuple[int, ...]:
    """The usual cut-offs, as far as a query searches so many items."""
    most = int(relevant_and_candidates(task)[1].max())
    return tuple(k for k in KS if k <= most) or KS[:1]


def evaluate_retrieval(
    embeddings: np.ndarray,
    labels: np.ndarray,
    query: np.ndarray | None = None,
    gallery: np.ndarray | None = None,
    ks: Sequence[int] = KS,
    distance: Distance = "euclidean",
    *,
    groups: np.ndarray | None = None,
    exclude: Exclusion = "none",
    levels: np.ndarray | None = None,
    resamples: int = 0,
) -> RetrievalResult:
    """Search every query row among the gallery rows; a row in both never finds itself (by row number, not by rank).

    Args:
        embeddings: (n, d) finite numbers of any type; a memory map is read in parts.
        labels: (n,) integers of any size or strings; equal means relevant.
        query, gallery: (n,) bool; None: all rows.
        ks: cut-offs of recall@k and the like; each at most the number of items a query can find.
        distance: "euclidean" or "cosine".
        groups: (n,) camera, sequence or shelf of each row. exclude: "none", or what a query may not find because it
            shares its group: "same class" (items of its class), "all".
        levels: (n,) or (n, l) coarser labels, such as the alphabet of a character: NDCG gives an item one point for its
            class and one for each level that it shares with the query.
        resamples: bootstrap draws of classes for the 95 % intervals (2,000 is usual); 0: no intervals.

    Raises:
        EvaluationError: NaN or infinite rows (named), zero rows under cosine, an empty gallery, no query with a
            relevant item, a k too large.
        ValueError: arguments of the wrong shape or kind.
    """
    embeddings = np.asanyarray(embeddings)
    if embeddings.ndim != 2 or not embeddings.shape[1]:
        raise EvaluationError(f"Embeddings must be an (n, d) array, got shape {embeddings.shape}.")
    task = make_task(len(embeddings), labels, query, gallery, groups, exclude)
    return evaluate_task(embeddings, task, ks, distance, levels=levels, resamples=resamples)


def evaluate_task(
    embeddings: np.ndarray,
    task: Task,
    ks: Sequence[int] = KS,
    distance: Distance = "euclidean",
    *,
    levels: np.ndarray | None = None,
    query_embeddings: np.ndarray | None = None,
    resamples: int = 0,
) -> RetrievalResult:
    """`evaluate_retrieval` of a checked task.

    Args:
        embeddings, ks, distance, levels: see there.
        task: who asks, who is searched, what is left out.
        query_embeddings: (q, d) what the queries of the task ask with instead of their own rows.
        resamples: bootstrap draws of classes for the intervals; 0: no intervals.
    """
    per_query = measure_task(embeddings, task, ks, distance, levels=levels, query_embeddings=query_embeddings)
    relevant, candidates = relevant_and_candidates(task)
    asked = relevant > 0
    means = {name: float(values.mean()) for name, values in per_query.items()}
    share = float(asked.mean())
    of_queries = np.isin(task.labels[task.gallery_rows], task.labels[task.query_rows])
    return RetrievalResult(
        metrics=means,
        metrics_all_queries={name: mean * share for name, mean in means.items()},
        queries=int(asked.sum()),
        excluded=int((~asked).sum()),
        gallery=len(task.gallery_rows),
        classes=len(np.unique(task.labels[task.gallery_rows])),
        dimensions=embeddings.shape[1],
        distractors=int((~of_queries).sum()),
        graded=1 if levels is None else 1 + np.reshape(levels, (len(embeddings), -1)).shape[1],
        distance=distance,
        exclude=task.exclude,
        collapse=measure_collapse(embeddings, task, distance),
        per_query=per_query,
        query_rows=task.query_rows[asked],
        relevant=relevant[asked],
        candidates=candidates[asked],
        intervals=intervals_over_classes(per_query, task.labels[task.query_rows[asked]], resamples)
        if resamples
        else {},
    )


def evaluate_vectors(
    table: LabelledVectors,
    ks: Sequence[int] = KS,
    distance: Distance = "euclidean",
    exclude: Exclusion = "none",
    *,
    query_embeddings: np.ndarray | None = None,
    resamples: int = 0,
) -> RetrievalResult:
    """`evaluate_task` of a table; where class names have slashes, NDCG counts their levels (but not by "same class").

    Raises:
        EvaluationError: as `evaluate_retrieval`, and rows without a label.
    """
    table.require_labels()
    levels = None if exclude == "same class" else coarser_levels(table.class_names)
    return evaluate_task(
        table.vectors,
        table.task(exclude),
        ks,
        distance,
        levels=None if levels is None else levels[table.labels],
        query_embeddings=query_embeddings,
        resamples=resamples,
    )


def measure_task(
    embeddings: np.ndarray,
    task: Task,
    ks: Sequence[int] = KS,
    distance: Distance = "euclidean",
    *,
    levels: np.ndarray | None = None,
    query_embeddings: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The metrics of `evaluate_task` alone: name to one value per query that has a relevant item, in their order."""
    if distance not in ("euclidean", "cosine"):
        raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}.")
    ks = tuple(ks)
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be one or more whole numbers of at least 1, got {ks}.")
    relevant, candidates = relevant_and_candidates(task)
    asked = relevant > 0
    coarser = _levels(levels, task)
    _refuse(task, relevant, candidates, ks)
    per_query = {name: np.zeros(len(relevant)) for name in _names(ks)}
    ideal = {k: formulas.ideal_gain(relevant, k) for k in ks}
    for queries, groups in rank_relevant(embeddings, task, distance, query_embeddings):
        for name, values in _measured(groups, relevant[queries], ks).items():
            per_query[name][queries] = values
    for labels in coarser:
        above = replace(task, labels=labels)
        many, _ = relevant_and_candidates(above)
        for k in ks:
            ideal[k] += formulas.ideal_gain(many, k)
        for queries, groups in rank_relevant(embeddings, above, distance, query_embeddings, most=max(ks)):
            for k in ks:
                per_query[f"ndcg@{k}"][queries] += formulas.discounted_gain(groups, k)
    for k in ks:
        per_query[f"ndcg@{k}"] /= np.where(asked, ideal[k], 1)
    return {name: values[asked] for name, values in per_query.items()}


def _names(ks: tuple[int, ...]) -> list[str]:
    whole = ["r_precision", "map@r", "map", "mrr"]
    return [f"recall@{k}" for k in ks] + whole + [f"{name}@{k}" for name in ("precision", "found", "ndcg") for k in ks]


def _measured(groups: HitGroups, r: np.ndarray, ks: tuple[int, ...]) -> dict[str, np.ndarray]:
    """All metrics of a chunk of queries; NDCG is not yet divided by its ideal."""
    values = {
        "r_precision": formulas.hits_at_k(groups, r) / r,
        "map@r": formulas.average_precision(groups, r),
        "map": formulas.average_precision(groups),
        "mrr": formulas.reciprocal_rank(groups),
    }
    for k in ks:
        hits = formulas.hits_at_k(groups, k)
        values |= {f"recall@{k}": formulas.recall_at_k(groups, k), f"precision@{k}": hits / k, f"found@{k}": hits / r}
        values[f"ndcg@{k}"] = formulas.discounted_gain(groups, k)
    return values


def _refuse(task: Task, relevant: np.ndarray, candidates: np.ndarray, ks: tuple[int, ...]) -> None:
    asked = relevant > 0
    if not asked.any():
        queries, gallery = len(relevant), len(task.gallery_rows)
        if task.groups is None or task.exclude == "none":
            raise EvaluationError(
                f"None of the {queries} queries has another image of its class among the {gallery} gallery images, so "
                "there is nothing to find. Check the labels and the query and gallery columns."
            )
        without = int((relevant_and_candidates(replace(task, exclude="none"))[0] > 0).sum())
        raise EvaluationError(
            f"Every match of the {queries} queries is left out because it shares the query's group (exclude: "
            f"{task.exclude!r}, column: group, {len(np.unique(task.groups))} groups, {gallery} gallery images); "
            f"without that rule {without} queries have a match. Check the groups, or leave nothing out (exclude: none)."
        )
    most = int(candidates[asked].max())
    if max(ks) > most:
        raise EvaluationError(f"recall@{max(ks)} was asked for, but a query searches {most} items. Lower k.")


def _levels(levels: np.ndarray | None, task: Task) -> list[np.ndarray]:
    """The coarser labels as (n,) columns of whole numbers; each class must lie in one of each."""
    if levels is None:
        return []
    levels = np.asarray(levels)
    n = len(task.labels)
    columns = levels.reshape(n, -1).T if levels.shape[:1] == (n,) and levels.ndim <= 2 else None
    if columns is None:
        raise ValueError(f"levels must be ({n},) or ({n}, l) labels, one row per embedding, got shape {levels.shape}.")
    if task.exclude == "same class":
        raise ValueError("Graded relevance and exclude='same class' cannot be combined; take exclude='all' or 'none'.")
    found = []
    for number, column in enumerate(columns):
        codes = make_task(n, column).labels
        pairs = np.unique(np.stack([task.labels, codes]), axis=1)
        twice = np.flatnonzero(np.diff(pairs[0]) == 0)
        if len(twice):
            raise ValueError(
                f"Level {number} is not coarser than the classes: {len(twice)} classes are in more than one of its "
                "groups. Every class must lie in exactly one."
            )
        found.append(codes)
    return found
