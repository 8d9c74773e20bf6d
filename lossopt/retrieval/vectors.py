"""Labelled vectors: what every step after training reads, whoever made them.

Letters: n rows, d dimensions, c classes, q queries, g gallery items.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lossopt.errors import DataError, EvaluationError
from lossopt.retrieval.task import Exclusion, Task, make_task

UNLABELLED = ""  # the class of rows of which no class is known


@dataclass(frozen=True)
class Rows:
    """What is known of n rows besides their vectors: the columns of `LabelledVectors`, described there.

    Raises:
        DataError: columns of different lengths, a number that is no position of a name, a name that is there twice.
    """

    labels: np.ndarray
    class_names: tuple[str, ...]
    names: Sequence[str]
    paths: Sequence[str] | None = None
    groups: np.ndarray | None = None
    group_names: tuple[str, ...] = ()
    query: np.ndarray | None = None
    gallery: np.ndarray | None = None

    def __post_init__(self) -> None:
        columns = {"labels": self.labels, "paths": self.paths, "groups": self.groups}
        columns |= {"query": self.query, "gallery": self.gallery}
        for name, column in columns.items():
            if column is not None and len(column) != len(self):
                raise DataError(f"There are {len(self):,} names but {len(column):,} {name}; each row needs one.")
        for what, numbers, known in (
            ("labels", self.labels, self.class_names),
            ("groups", self.groups, self.group_names),
        ):
            if numbers is not None and len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(known):
                raise DataError(
                    f"{what} run from {numbers.min()} to {numbers.max()}, but they are positions among {len(known):,} "
                    "names."
                )
        for what, names in (("rows", self.names), ("classes", self.class_names), ("groups", self.group_names)):
            if twice := repeated(names):
                raise DataError(
                    f"{len(twice):,} names of {what} are there more than once: {listed(twice)}. A name stands for one."
                )

    def __len__(self) -> int:
        return len(self.names)

    def with_vectors(self, vectors: np.ndarray, provenance: Mapping[str, Any]) -> "LabelledVectors":
        """The table of these rows.

        Raises:
            DataError: `vectors` is not (n, d).
        """
        if vectors.ndim != 2 or len(vectors) != len(self):
            raise DataError(f"The vectors have shape {vectors.shape}, but there are {len(self):,} rows.")
        return LabelledVectors(vectors, **vars(self), provenance=provenance)


@dataclass(frozen=True)
class LabelledVectors:
    """A table of n embeddings, in memory or mapped from disk. A row number is a row's id within the table.

    Args:
        vectors: (n, d) floats, possibly a read-only memory map.
        labels: (n,) int64, each the position of the row's class in `class_names`.
        class_names: one name per class; unique. Slashes part levels of a hierarchy ("Latin/character01"). The class
            "" holds the rows without a label: they can be searched, but not evaluated.
        names: n texts that identify the rows; unique. The same image has the same name in every file.
        paths: n paths of image files, "" where there is none; None: no row has one.
        groups: (n,) int64 positions in `group_names` (alphabet, camera, shelf), or None.
        group_names: one name per group.
        query, gallery: (n,) bool; None: all rows.
        provenance: where the vectors come from: "checkpoint" (file), "checkpoint_sha256", "data", "split", "distance",
            "normalised", ...; JSON types.
    """

    vectors: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    names: Sequence[str]
    paths: Sequence[str] | None = None
    groups: np.ndarray | None = None
    group_names: tuple[str, ...] = ()
    query: np.ndarray | None = None
    gallery: np.ndarray | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.vectors)

    def task(self, exclude: Exclusion = "none") -> Task:
        """Who asks and who is searched, from the columns of the table."""
        return make_task(len(self), self.labels, self.query, self.gallery, self.groups, exclude)

    def rows(self) -> Rows:
        """All columns but the vectors."""
        columns = {name: column for name, column in vars(self).items() if name not in ("vectors", "provenance")}
        return Rows(**columns)

    def require_labels(self) -> None:
        """Refuses an evaluation of rows whose class nobody knows.

        Raises:
            EvaluationError: rows of the class "" ask or are searched.
        """
        if UNLABELLED not in self.class_names:
            return
        bare = self.labels == self.class_names.index(UNLABELLED)
        if self.query is not None and self.gallery is not None:
            bare = bare & (self.query | self.gallery)
        if bare.any():
            raise EvaluationError(
                f"{int(bare.sum()):,} of {len(self):,} vectors have no label, so nobody can tell what is right. Give "
                "labels (--labels FILE, or images in one folder per class); searching needs none."
            )


def query_gallery(query: LabelledVectors, gallery: LabelledVectors) -> LabelledVectors:
    """One table in which the rows of `query` are searched among the rows of `gallery`; classes meet by name.

    Joining copies: (q + g) x d numbers are held in memory. Names get "query/" or "gallery/" in front; groups meet by
    name too, and are left out unless both tables have them. Of a table's own marks, `query.query` and
    `gallery.gallery` hold.

    Raises:
        DataError: different dimensions, or images that are in both tables and would find their own copy.
    """
    if query.vectors.shape[1] != gallery.vectors.shape[1]:
        raise DataError(
            f"The query vectors have {query.vectors.shape[1]:,} dimensions, those of the gallery "
            f"{gallery.vectors.shape[1]:,}. Both must come from one model."
        )
    _refuse_shared_rows(query, gallery)
    class_names, labels = _met(query.class_names, query.labels, gallery.class_names, gallery.labels)
    group_names: tuple[str, ...] = ()
    groups = None
    if query.groups is not None and gallery.groups is not None:
        group_names, groups = _met(query.group_names, query.groups, gallery.group_names, gallery.groups)
    paths = None
    if query.paths is not None or gallery.paths is not None:
        paths = [path for part in (query, gallery) for path in part.paths or [""] * len(part)]
    return Rows(
        labels=labels,
        class_names=class_names,
        names=[f"query/{name}" for name in query.names] + [f"gallery/{name}" for name in gallery.names],
        paths=paths,
        groups=groups,
        group_names=group_names,
        query=np.concatenate([_marks(query.query, len(query)), np.zeros(len(gallery), dtype=bool)]),
        gallery=np.concatenate([np.zeros(len(query), dtype=bool), _marks(gallery.gallery, len(gallery))]),
    ).with_vectors(
        np.concatenate([query.vectors, gallery.vectors]),
        {**gallery.provenance, "query": dict(query.provenance)},
    )


def _refuse_shared_rows(query: LabelledVectors, gallery: LabelledVectors) -> None:
    """The same name and the same vector: the same image."""
    rows = {name: row for row, name in enumerate(gallery.names)}
    shared = [(row, rows[name]) for row, name in enumerate(query.names) if name in rows]
    same = [query.names[q] for q, g in shared if np.array_equal(query.vectors[q], gallery.vectors[g])]
    if same and (len(same) == len(query) or not (_numbered(query) and _numbered(gallery))):
        raise DataError(
            f"{len(same):,} of the {len(query):,} queries are in the gallery too, with the same name and the same "
            f"vector: {listed(same)}. They would find their own copy. Give one file with the columns query and "
            "gallery, or, if all ask and all are searched, leave the queries out: then a row never finds itself."
        )


def _numbered(table: LabelledVectors) -> bool:
    """Whether the names are row numbers, which nobody gave: then a single equal vector is no sign of one image."""
    return all(name == str(row) for row, name in enumerate(table.names))


def _met(
    first_names: tuple[str, ...], first: np.ndarray, second_names: tuple[str, ...], second: np.ndarray
) -> tuple[tuple[str, ...], np.ndarray]:
    """One list of names for two columns of positions, and both columns on it."""
    names = tuple(dict.fromkeys((*second_names, *first_names)))
    position = {name: number for number, name in enumerate(names)}
    places = [np.array([position[name] for name in part], dtype=np.int64) for part in (first_names, second_names)]
    return names, np.concatenate([places[0][first], places[1][second]])


def _marks(column: np.ndarray | None, n: int) -> np.ndarray:
    return np.ones(n, dtype=bool) if column is None else column


def repeated(names: Sequence[str]) -> list[str]:
    """The names that are there more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def listed(items: Sequence[str], limit: int = 10) -> str:
    """The first items, and how many more there are; for messages."""
    return ", ".join(items[:limit]) + (f" and {len(items) - limit:,} more" if len(items) > limit else "")
