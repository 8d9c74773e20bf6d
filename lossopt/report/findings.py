"""All that an evaluation found, worked out once: the page, the tables in W&B and the terminal read it from here.

Letters: n rows, q queries with a relevant item, k neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from lossopt.errors import EvaluationError
from lossopt.report.embedding_map import EmbeddingMap, map_embedding
from lossopt.report.galleries import chance_of_recall
from lossopt.retrieval.breakdown import Part, breakdown
from lossopt.retrieval.clustering import Clustering, measure_clustering
from lossopt.retrieval.doubts import (
    Confusions,
    LabelDoubt,
    NearDuplicates,
    confusions,
    label_doubts,
    near_duplicates,
)
from lossopt.retrieval.evaluation import RetrievalResult, measure_task
from lossopt.retrieval.index import Distance, Neighbours
from lossopt.retrieval.intervals import Interval, intervals_over_classes
from lossopt.retrieval.neighbours import nearest
from lossopt.retrieval.pairs import draw_pairs
from lossopt.retrieval.task import Task
from lossopt.retrieval.vectors import LabelledVectors
from lossopt.retrieval.verification import (
    Applied,
    DistanceHistograms,
    Threshold,
    Verification,
    apply_threshold,
    distance_histograms,
    kept_threshold,
    verify,
)

_MOST_LISTED = 20_000  # queries whose neighbours are listed; of more, a sample
_LISTED = 10
_CURVE_TO = 1_024
_MOST_SHOWN = 48
_MOST_PAIRS = 10**9  # of a query and a gallery item: about ten seconds of search
_AT_K = ("precision@", "found@", "ndcg@")


class CurvePoint(NamedTuple):
    """recall@k at one k, its 95 % interval (None with a single class), and that of a random order."""

    k: int
    value: float
    interval: Interval | None
    chance: float


@dataclass(frozen=True)
class Findings:
    """What one evaluation found, whoever made the vectors.

    vectors, task, result: what was evaluated, and its metrics, with 95 % intervals over classes.
    curve: recall at the cut-offs of `result` and, unless the table is very large, at k = 1, 2, 4, ... up to 1,024.
    first_right: (queries,) chance that the first neighbour is right: recall@1 of each query. None: not measured.
    near: the 10 nearest rows of the queries at the positions `listed` of result.query_rows.
    classes, groups, seen: figures of each class, of each group (empty without groups), of classes that training saw and
        did not see (empty unless there are both). group_of_query, seen_of_query: (queries,) keys of those parts.
    suspects, all_suspects: rows whose neighbours agree on another class, the surest, and how many there are.
    duplicates, confusions: near-duplicates and confused classes, among the listed queries.
    verification, histograms: of pairs; None without pairs of both kinds. kept: the threshold that came along with the
        vectors, chosen on validation, and what it does to these pairs; None: there is none that fits.
    class_disjoint: whether training saw none of the classes; None: nobody knows.
    """

    vectors: LabelledVectors
    task: Task
    result: RetrievalResult
    curve: list[CurvePoint]
    first_right: np.ndarray | None
    listed: np.ndarray
    near: Neighbours
    classes: list[Part]
    groups: list[Part]
    group_of_query: np.ndarray | None
    seen: list[Part]
    seen_of_query: np.ndarray | None
    suspects: list[LabelDoubt]
    all_suspects: int
    duplicates: NearDuplicates
    confusions: Confusions
    verification: Verification | None
    histograms: DistanceHistograms | None
    kept: tuple[Threshold, Applied] | None
    clustering: Clustering
    map: EmbeddingMap
    class_disjoint: bool | None

    @property
    def ks(self) -> tuple[int, ...]:
        """The cut-offs that were asked for, the first in large type."""
        return cut_offs(self.result)

    @property
    def headline(self) -> str:
        """The metric in large type."""
        return f"recall@{self.ks[0]}"

    @property
    def chance(self) -> float:
        """What a random order would reach in the headline."""
        return next(point.chance for point in self.curve if point.k == self.ks[0])

    def nearest_of(self, positions: Sequence[int], k: int) -> Neighbours:
        """The k nearest of the queries at these positions of result.query_rows."""
        rows = self.result.query_rows[np.asarray(positions, dtype=np.int64)]
        return nearest(self.vectors.vectors, self.task, rows, k, self.result.distance)


def cut_offs(result: RetrievalResult) -> tuple[int, ...]:
    """The ks of a result, in the order that they were asked for."""
    return tuple(int(name.removeprefix("recall@")) for name in result.metrics if name.startswith("recall@"))


def examine(
    vectors: LabelledVectors,
    result: RetrievalResult,
    *,
    trained_on: Sequence[str] | None = None,
    with_umap: bool = False,
    seed: int = 0,
) -> Findings:
    """Everything that a person would ask next about evaluated vectors.

    Args:
        vectors: rows with labels, and groups, queries, gallery where there are any.
        result: of `evaluate_vectors`; intervals that it lacks are added.
        trained_on: names of the classes that the model was trained on; None: unknown.
        with_umap: also a UMAP; needs umap-learn.
        seed: of samples, resamples and maps.
    """
    task, distance, rows = vectors.task(result.exclude), result.distance, result.query_rows
    if not result.intervals:
        whole = {name: values for name, values in result.per_query.items() if not name.startswith(_AT_K)}
        result = replace(result, intervals=intervals_over_classes(whole, task.labels[rows], seed=seed))
    labels, by = vectors.labels[rows], f"recall@{cut_offs(result)[0]}"
    shown = {name: result.per_query[name] for name in (by, "map@r")}
    groups = None if vectors.groups is None else vectors.groups[rows]
    seen = None if trained_on is None else np.isin(vectors.class_names, list(trained_on))[labels].astype(np.int64)
    curve, first_right = _curve(vectors, task, result, seed)
    listed = np.sort(np.random.default_rng(seed).permutation(len(rows))[:_MOST_LISTED])
    near = nearest(vectors.vectors, task, rows[listed], _LISTED, distance)
    about = near, rows[listed], vectors.labels
    suspects, all_suspects = label_doubts(*about, result.relevant[listed], _MOST_SHOWN)
    verification, histograms, kept = _verified(vectors, task, distance, seed)
    clustering, drawn = _drawn(vectors, task, distance, seed, with_umap)
    return Findings(
        vectors=vectors,
        task=task,
        result=result,
        curve=curve,
        first_right=first_right,
        listed=listed,
        near=near,
        classes=breakdown(shown, labels, vectors.class_names, by),
        groups=_parted(shown, groups, vectors.group_names, by, 1),
        group_of_query=groups,
        seen=_parted(shown, seen, ("unseen", "seen"), by, 2),
        seen_of_query=seen,
        suspects=suspects,
        all_suspects=all_suspects,
        duplicates=near_duplicates(*about, _MOST_SHOWN),
        confusions=confusions(*about, result.relevant[listed], _MOST_SHOWN),
        verification=verification,
        histograms=histograms,
        kept=kept,
        clustering=clustering,
        map=drawn,
        class_disjoint=None if seen is None else not seen.any(),
    )


def _parted(
    per_query: dict[str, np.ndarray], keys: np.ndarray | None, names: Sequence[str], by: str, fewest: int
) -> list[Part]:
    """A breakdown; empty without keys, or with fewer than `fewest` different ones."""
    return [] if keys is None or len(np.unique(keys)) < fewest else breakdown(per_query, keys, names, by)


def _drawn(
    vectors: LabelledVectors, task: Task, distance: Distance, seed: int, with_umap: bool
) -> tuple[Clustering, EmbeddingMap]:
    # on one thread: beside other work, threads that wait for each other take ten times as long as one
    with threadpool_limits(1):
        clustering = measure_clustering(vectors.vectors, task, distance, seed)
        return clustering, map_embedding(vectors.vectors, vectors.labels, distance, seed=seed, with_umap=with_umap)


def _curve(
    vectors: LabelledVectors, task: Task, result: RetrievalResult, seed: int
) -> tuple[list[CurvePoint], np.ndarray | None]:
    """recall@k at powers of two and at the cut-offs of the result, and (queries,) recall@1, None if that is unknown.

    It is measured anew, which is another search: of a very large table only the cut-offs of the result are known.
    """
    ks = list(cut_offs(result))
    per_query = result.per_query
    if len(task.query_rows) * len(task.gallery_rows) <= _MOST_PAIRS:
        most = min(_CURVE_TO, int(result.candidates.min()))
        ks += [2**power for power in range(most.bit_length()) if 2**power <= most]
        per_query = measure_task(vectors.vectors, task, sorted({1, *ks}), result.distance)
    names = {k: f"recall@{k}" for k in sorted({1, *ks}) if f"recall@{k}" in per_query}
    values = {name: per_query[name] for name in names.values()}
    intervals = intervals_over_classes(values, task.labels[result.query_rows], seed=seed)
    points = [
        CurvePoint(
            k,
            float(values[name].mean()),
            intervals.get(name),
            chance_of_recall(result.relevant, result.candidates, k),
        )
        for k, name in names.items()
    ]
    return points, values.get("recall@1")


def _verified(
    vectors: LabelledVectors, task: Task, distance: Distance, seed: int
) -> tuple[Verification | None, DistanceHistograms | None, tuple[Threshold, Applied] | None]:
    """None where there are no pairs of one kind; None where no threshold came along, or one for another distance."""
    try:
        pairs = draw_pairs(vectors.vectors, task, distance, seed=seed)
    except EvaluationError:
        return None, None, None
    threshold = kept_threshold(vectors.provenance)
    try:
        kept = None if threshold is None else (threshold, apply_threshold(threshold, pairs))
    except EvaluationError:
        kept = None
    return verify(pairs, seed=seed), distance_histograms(pairs), kept
