"""Two sets of vectors of the same images, query by query: the mean difference, and its interval over classes.

The tables are matched by the names of their rows first, so that both search the same gallery. Differences are A - B.

Letters: n rows, q queries, c classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from lossopt.errors import EvaluationError
from lossopt.retrieval.evaluation import KS, RetrievalResult, evaluate_vectors
from lossopt.retrieval.index import Distance
from lossopt.retrieval.intervals import Interval, intervals_over_classes
from lossopt.retrieval.task import Exclusion
from lossopt.retrieval.vectors import LabelledVectors, listed

HEADLINE = "map@r"
_TIE = 1e-9  # a query is won or lost by more than this
_FEW_CLASSES = 10
DETAILS = ("precision@", "found@", "ndcg@")  # metrics beside the main ones


@dataclass(frozen=True)
class Pair:
    """Two tables with the same rows in the same order.

    a, b: the tables. rows_a, rows_b: (n,) where the rows stand in the tables that they come from.
    only_a, only_b: rows that the other table lacks; neither asked nor searched.
    """

    a: LabelledVectors
    b: LabelledVectors
    rows_a: np.ndarray = field(repr=False)
    rows_b: np.ndarray = field(repr=False)
    only_a: int
    only_b: int


class MetricDifference(NamedTuple):
    """Means of one metric over the same queries, their difference a - b, and its 95 % interval over classes or None."""

    name: str
    a: float
    b: float
    difference: float
    interval: Interval | None


class ClassDifference(NamedTuple):
    """Mean headline metric over the queries of a class; queries won by A and lost."""

    name: str
    queries: int
    a: float
    b: float
    difference: float
    won: int
    lost: int


@dataclass(frozen=True)
class Difference:
    """What distinguishes A from B.

    a, b: the evaluations. metrics: headline first. won, lost, tied: queries by the headline metric.
    per_query: (q,) difference in the headline metric, in the order of `a.query_rows`.
    classes: those that A wins most first. notes: what a reader must know, in words.
    """

    a: RetrievalResult
    b: RetrievalResult
    metrics: list[MetricDifference]
    won: int
    lost: int
    tied: int
    per_query: np.ndarray = field(repr=False)
    classes: list[ClassDifference] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def headline(self) -> MetricDifference:
        """The metric that the verdict is about."""
        return self.metrics[0]


def pair_by_name(a: LabelledVectors, b: LabelledVectors) -> Pair:
    """The rows that both tables have, in the order of A.

    Raises:
        EvaluationError: less than half of either table is in the other; a row has another class, or is a query or in
            the gallery in one table only; rows without a label.
    """
    _refuse_unnamed(a, b)
    place = {name: row for row, name in enumerate(b.names)}
    matched = np.array([place.get(name, -1) for name in a.names], dtype=np.int64)
    rows_a = np.flatnonzero(matched >= 0)
    rows_b = matched[rows_a]
    n = len(rows_a)
    if 2 * n < max(len(a), len(b)):
        raise EvaluationError(
            f"Only {n:,} of the {len(a):,} rows of A and {len(b):,} of B have the same name, less than half (A has "
            f"{listed(a.names, 2)}; B has {listed(b.names, 2)}). Give two sets of vectors of the same images."
        )
    one, other = _selected(a, rows_a), _selected(b, rows_b)
    for side in (one, other):
        side.require_labels()
    _refuse_other_columns(one, other)
    return Pair(one, other, rows_a, rows_b, len(a) - n, len(b) - n)


def difference(
    pair: Pair,
    ks: Sequence[int] = KS,
    distances: tuple[Distance, Distance] = ("euclidean", "euclidean"),
    exclude: Exclusion = "none",
    resamples: int = 2_000,
    seed: int = 0,
) -> Difference:
    """Evaluates both tables and compares them.

    Args:
        pair: of tables.
        ks: cut-offs, of both.
        distances: of A and of B; each model is searched by the distance that it was made for.
        exclude: of both.
        resamples, seed: of the interval; see `intervals_over_classes`.

    Raises:
        EvaluationError: as `evaluate_vectors`; different groups where `exclude` needs them.
    """
    if exclude != "none" and _texts(pair.a, "group") != _texts(pair.b, "group"):
        raise EvaluationError(f"exclude={exclude!r} needs the groups of the rows, but A and B do not have the same.")
    found = [
        evaluate_vectors(side, ks, distance, exclude)
        for side, distance in zip((pair.a, pair.b), distances, strict=True)
    ]
    compared = compare(found[0], found[1], pair.a.labels, pair.a.class_names, resamples, seed)
    return replace(compared, notes=(*_notes_on_rows(pair), *compared.notes))


def compare(
    a: RetrievalResult,
    b: RetrievalResult,
    labels: np.ndarray,
    class_names: Sequence[str],
    resamples: int = 2_000,
    seed: int = 0,
) -> Difference:
    """Two evaluations of the same queries in the same gallery, paired query by query.

    Args:
        a, b: the evaluations; metrics that only one of them has are left out and noted.
        labels: (n,) positions in `class_names` of all rows.
        class_names: for the table of classes.
        resamples, seed: of the interval.

    Raises:
        EvaluationError: the evaluations differ in their queries, their gallery, or in what a query may not find.
    """
    same_queries = np.array_equal(a.query_rows, b.query_rows) and np.array_equal(a.relevant, b.relevant)
    if not same_queries or a.gallery != b.gallery or a.exclude != b.exclude:
        raise EvaluationError(
            f"A and B were not evaluated alike: {a.queries:,} and {b.queries:,} queries, {a.gallery:,} and "
            f"{b.gallery:,} gallery items, exclude {a.exclude!r} and {b.exclude!r}. Evaluate both on the same rows."
        )
    names = [HEADLINE, *(name for name in a.per_query if name != HEADLINE and name in b.per_query)]
    gaps = {name: a.per_query[name] - b.per_query[name] for name in names}
    label = labels[a.query_rows]
    intervals = intervals_over_classes(gaps, label, resamples, seed)
    metrics = [
        MetricDifference(name, a.metrics[name], b.metrics[name], float(gap.mean()), intervals.get(name))
        for name, gap in gaps.items()
    ]
    gap = np.where(np.abs(gaps[HEADLINE]) <= _TIE, 0.0, gaps[HEADLINE])
    return Difference(
        a=a,
        b=b,
        metrics=metrics,
        won=int((gap > 0).sum()),
        lost=int((gap < 0).sum()),
        tied=int((gap == 0).sum()),
        per_query=gap,
        classes=_by_class(a.per_query[HEADLINE], b.per_query[HEADLINE], gap, label, class_names),
        notes=_notes(a, b, len(np.unique(label))),
    )


def verdict(found: Difference, a: str = "A", b: str = "B") -> str:
    """The headline in words: which is better and by how much, or that no difference is shown."""
    name, _, _, gap, interval = found.headline
    metric = "MAP@R" if name == HEADLINE else name
    points = f"{100 * abs(gap):.1f} points of {metric}"
    if not found.won and not found.lost:
        return f"No difference: {a} and {b} have the same {metric} in every query."
    if interval is None:
        return f"No statement: {a} - {b} = {100 * gap:+.1f} points of {metric}, but there is only one class of queries."
    low, high = interval if gap >= 0 else (-interval[1], -interval[0])
    within = f"95 % interval over classes {100 * low:.1f} to {100 * high:.1f}"
    if low <= 0:
        better, worse = (a, b) if gap >= 0 else (b, a)
        return f"No difference shown: {better} has {points} more than {worse} here ({within})."
    return (
        f"{a} is better than {b} by {points} ({within})."
        if gap > 0
        else f"{b} is better than {a} by {points} ({within})."
    )


def difference_text(found: Difference, a: str, b: str) -> str:
    """What A and B are, verdict, a table in per cent, queries won and lost, and notes."""
    lines = [f"A: {a}", f"B: {b}", "", verdict(found)]
    lines += ["", f"{'per cent':<14}{'A':>8}{'B':>8}{'A - B':>9}   95 % interval of A - B"]
    for name, one, other, gap, interval in found.metrics:
        if name.startswith(DETAILS):
            continue
        within = "" if interval is None else f"   {100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"
        lines.append(f"{name:<14}{100 * one:8.2f}{100 * other:8.2f}{100 * gap:+9.2f}{within}")
    ranked = [one for one in found.classes if one.difference]
    lines += ["", f"queries by {HEADLINE}: A wins {found.won:,}, B wins {found.lost:,}, {found.tied:,} are equal"]
    for words, some in (("A", ranked[:3]), ("B", ranked[::-1][:3])):
        told = [f"{one.name} ({100 * one.difference:+.1f})" for one in some if (one.difference > 0) == (words == "A")]
        if told:
            lines.append(f"classes where {words} is better by most: {', '.join(told)}")
    lines += [
        "",
        f"{found.a.queries:,} queries of {len(found.classes):,} classes, {found.a.gallery:,} gallery items; paired by "
        "query, classes drawn anew for the intervals.",
        *found.notes,
    ]
    return "\n".join(lines)


def _notes(a: RetrievalResult, b: RetrievalResult, classes: int) -> tuple[str, ...]:
    notes = []
    for words, one in (("A", a), ("B", b)):
        if one.collapse.collapsed:
            notes.append(f"DO NOT BELIEVE THIS: the embeddings of {words} have collapsed.")
    if a.distance != b.distance:
        notes.append(f"Distances differ: {a.distance} for A, {b.distance} for B.")
    alone = [name for one, other in ((a, b), (b, a)) for name in one.per_query if name not in other.per_query]
    if alone:
        notes.append(f"Only one of the two has {', '.join(alone)}: left out.")
    if a.excluded:
        notes.append(f"{a.excluded:,} more queries have nothing to find and are left out.")
    if classes < _FEW_CLASSES:
        notes.append(f"With {classes} classes of queries the interval is rough.")
    notes.append(
        "One set of vectors each: this compares these two, not the methods that made them. A method is compared over "
        "several trainings with different seeds."
    )
    return tuple(notes)


def _notes_on_rows(pair: Pair) -> list[str]:
    notes = []
    if pair.only_a or pair.only_b:
        notes.append(
            f"{pair.only_a:,} rows are only in A and {pair.only_b:,} only in B: left out of queries and galleries."
        )
    hashes = [side.provenance.get("checkpoint_sha256") for side in (pair.a, pair.b)]
    if hashes[0] and hashes[0] == hashes[1]:
        notes.append("Both sets of vectors come from the same checkpoint.")
    return notes


def _by_class(
    a: np.ndarray, b: np.ndarray, gap: np.ndarray, label: np.ndarray, class_names: Sequence[str]
) -> list[ClassDifference]:
    count = np.bincount(label)
    means = [np.bincount(label, values) / np.maximum(count, 1) for values in (a, b, gap)]
    won, lost = np.bincount(label, gap > 0), np.bincount(label, gap < 0)
    there = np.flatnonzero(count)
    ranked = there[np.argsort(-means[2][there], kind="stable")]
    return [
        ClassDifference(
            name=class_names[c],
            queries=int(count[c]),
            a=float(means[0][c]),
            b=float(means[1][c]),
            difference=float(means[2][c]),
            won=int(won[c]),
            lost=int(lost[c]),
        )
        for c in ranked.tolist()
    ]


def _refuse_unnamed(a: LabelledVectors, b: LabelledVectors) -> None:
    """Row numbers as names match rows of files that have nothing to do with each other."""
    numbered = all(all(name == str(row) for row, name in enumerate(side.names)) for side in (a, b))
    if numbered and len(a) != len(b):
        raise EvaluationError(
            f"A has {len(a):,} rows, B {len(b):,}, and neither has names: nobody can tell which belong together. Give "
            "files with a column of names, or embeddings folders."
        )


def _refuse_other_columns(a: LabelledVectors, b: LabelledVectors) -> None:
    """The same question must be asked of both."""
    one, other = _texts(a, "class"), _texts(b, "class")
    differing = [row for row in range(len(a)) if one[row] != other[row]]
    if differing:
        row = differing[0]
        raise EvaluationError(
            f"{len(differing):,} rows have another class in B than in A, first {a.names[row]}: {one[row]!r} in A, "
            f"{other[row]!r} in B. Use the same labels for both."
        )
    for name in ("query", "gallery"):
        marks = [np.ones(len(a), bool) if getattr(side, name) is None else getattr(side, name) for side in (a, b)]
        if not np.array_equal(marks[0], marks[1]):
            raise EvaluationError(
                f"A and B mark other rows as {name}: {marks[0].sum():,} and {marks[1].sum():,}. Evaluate the same task."
            )


def _texts(side: LabelledVectors, column: str) -> list[str]:
    """Class or group name of each row; the positions may differ between tables."""
    numbers, names = (side.labels, side.class_names) if column == "class" else (side.groups, side.group_names)
    return [] if numbers is None else [names[number] for number in numbers.tolist()]


def _selected(side: LabelledVectors, rows: np.ndarray) -> LabelledVectors:
    """Some rows of a table; a memory map stays one where all rows stay in place."""
    if np.array_equal(rows, np.arange(len(side))):
        return side
    return replace(
        side,
        vectors=side.vectors[rows],
        labels=side.labels[rows],
        names=[side.names[row] for row in rows.tolist()],
        paths=None if side.paths is None else [side.paths[row] for row in rows.tolist()],
        groups=None if side.groups is None else side.groups[rows],
        query=None if side.query is None else side.query[rows],
        gallery=None if side.gallery is None else side.gallery[rows],
    )
