"""Embeddings in, recall@k and its kin out, each with what it leaves out; what has no meaning is refused.

Letters: n rows, q queries, g gallery, d embedding, c classes, R relevant items of a query.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lossopt.errors import EvaluationError
from lossopt.retrieval import metrics as formulas
from lossopt.retrieval.counting import rank_relevant, relevant_and_candidates
from lossopt.retrieval.index import Distance, unit_length
from lossopt.retrieval.metrics import HitGroups
from lossopt.retrieval.task import Exclusion, Task, make_task

KS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Collapse:
    """Signs that the embeddings say nothing.

    tie_share: share of queries whose nearest distance is shared by several items.
    mean_cosine: of random pairs; near 1 when all vectors point one way.
    spread: standard deviation per dimension x sqrt(d), of unit vectors: near 1 spread out, 0 collapsed.
    effective_rank: exp of the entropy of the centred singular values (Roy & Vetterli 2007); 1 is a line.
    """

    tie_share: float
    mean_cosine: float
    spread: float
    effective_rank: float

    @property
    def collapsed(self) -> bool:
        """Whether a recall figure of these embeddings should not be believed."""
        return self.tie_share > 0.1 or self.spread < 0.02 or self.effective_rank < 1.5


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

    Raises:
        EvaluationError: NaN or infinite rows (named), zero rows under cosine, an empty gallery, no query with a
            relevant item, a k too large.
        ValueError: arguments of the wrong shape or kind.
    """
    embeddings = np.asanyarray(embeddings)
    if embeddings.ndim != 2 or not embeddings.shape[1]:
        raise EvaluationError(f"Embeddings must be an (n, d) array, got shape {embeddings.shape}.")
    task = make_task(len(embeddings), labels, query, gallery, groups, exclude)
    return evaluate_task(embeddings, task, ks, distance, levels=levels)


def evaluate_task(
    embeddings: np.ndarray,
    task: Task,
    ks: Sequence[int] = KS,
    distance: Distance = "euclidean",
    *,
    levels: np.ndarray | None = None,
    query_embeddings: np.ndarray | None = None,
) -> RetrievalResult:
    """`evaluate_retrieval` of a checked task.

    Args:
        embeddings, ks, distance, levels: see there.
        task: who asks, who is searched, what is left out.
        query_embeddings: (q, d) what the queries of the task ask with instead of their own rows.
    """
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
        for queries, groups in rank_relevant(embeddings, above, distance, query_embeddings):
            for k in ks:
                per_query[f"ndcg@{k}"][queries] += formulas.discounted_gain(groups, k)
    per_query = {name: values[asked] for name, values in per_query.items()}
    for k in ks:
        per_query[f"ndcg@{k}"] /= ideal[k][asked]
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
        graded=1 + len(coarser),
        distance=distance,
        exclude=task.exclude,
        collapse=measure_collapse(embeddings, np.zeros(1)),
        per_query=per_query,
        query_rows=task.query_rows[asked],
        relevant=relevant[asked],
        candidates=candidates[asked],
    )


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
            f"without that rule {without} queries have a match. Check the group column, or evaluate with exclude: none."
        )
    most = int(candidates[asked].max())
    if max(ks) > most:
        raise EvaluationError(f"recall@{max(ks)} was asked for, but a query has {most} items to find. Lower k.")


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


def measure_collapse(embeddings: np.ndarray, tied_first: np.ndarray, sample: int = 2_000) -> Collapse:
    """Signs of collapse on at most `sample` evenly spaced rows; see `Collapse`."""
    rows = np.linspace(0, len(embeddings) - 1, min(sample, len(embeddings))).astype(np.int64)
    unit = unit_length(embeddings[rows])
    count, d = unit.shape
    mean = unit.mean(axis=0)
    cosine = (count * float(mean @ mean) - float((unit**2).sum() / count)) / max(1, count - 1)
    values = np.linalg.svd(unit - mean, compute_uv=False)
    total = float(values.sum())
    shares = values[values > 0] / total if total > 0 else np.ones(1)
    return Collapse(
        tie_share=float(tied_first.mean()),
        mean_cosine=cosine,
        spread=float(np.sqrt(unit.var(axis=0).mean() * d)),
        effective_rank=float(np.exp(-(shares * np.log(shares)).sum())),
    )
