"""Who asks, who is searched, and what a query may not find: the same rules for metrics, neighbours and pairs.

Letters: n rows, q queries, g gallery items, b some queries, m some items.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lossopt.errors import EvaluationError

Exclusion = Literal["none", "same class", "all"]
EXCLUSIONS: tuple[Exclusion, ...] = ("none", "same class", "all")


@dataclass(frozen=True)
class Task:
    """A retrieval task over n rows. A row is its own id: a query never finds itself, wherever its twin stands.

    labels: (n,) int64, 0..c-1; equal means relevant.
    query_rows: (q,) int64 ascending. gallery_rows: (g,) int64 ascending.
    groups: (n,) int64 (camera, sequence, shelf), or None.
    exclude: what a query may not find because it shares the query's group: "none"; "same class": items of its class and
        group, as in person re-identification; "all": every item of its group.
    """

    labels: np.ndarray
    query_rows: np.ndarray
    gallery_rows: np.ndarray
    groups: np.ndarray | None = None
    exclude: Exclusion = "none"

    def left_out(self, queries: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(b, m) bool: which of the (m,) or (b, m) items each of the (b,) query rows may not find."""
        items = np.broadcast_to(items, (len(queries), items.shape[-1]))
        forbidden = items == queries[:, None]
        if self.exclude != "none" and self.groups is not None:
            shared = self.groups[items] == self.groups[queries][:, None]
            if self.exclude == "same class":
                shared &= self.labels[items] == self.labels[queries][:, None]
            forbidden |= shared
        return forbidden


def make_task(
    n: int,
    labels: np.ndarray,
    query: np.ndarray | None = None,
    gallery: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    exclude: Exclusion = "none",
) -> Task:
    """Checks the columns of a task.

    Args:
        n: rows.
        labels: (n,) integers of any size, or strings; equal means relevant.
        query, gallery: (n,) bool; None: all rows.
        groups: (n,) integers or strings, or None.
        exclude: see `Task`; anything but "none" needs groups.

    Raises:
        EvaluationError: no query or an empty gallery.
        ValueError: a column of the wrong shape or kind, floating-point labels, an exclusion of another name.
    """
    is_query, is_gallery = _mask("query", query, n), _mask("gallery", gallery, n)
    if exclude not in EXCLUSIONS:
        raise ValueError(f"exclude must be one of {', '.join(map(repr, EXCLUSIONS))}, got {exclude!r}.")
    if exclude != "none" and groups is None:
        raise ValueError(f"exclude={exclude!r} leaves out items of the query's group, but there are no groups.")
    if not is_query.any() or not is_gallery.any():
        raise EvaluationError(f"{is_query.sum()} queries and {is_gallery.sum()} gallery images: both are needed.")
    return Task(
        labels=_codes("labels", labels, n),
        query_rows=np.flatnonzero(is_query),
        gallery_rows=np.flatnonzero(is_gallery),
        groups=None if groups is None else _codes("groups", groups, n),
        exclude=exclude,
    )


def _codes(name: str, column: np.ndarray, n: int) -> np.ndarray:
    """Whole numbers or strings to 0..c-1, exactly."""
    column = np.asarray(column)
    if column.shape != (n,):
        raise ValueError(f"One of {name} per embedding: got {column.shape} for {n} embeddings.")
    if column.dtype.kind not in "iubUS":
        raise ValueError(
            f"{name} must be whole numbers or strings, got {column.dtype}: floating-point numbers merge large ids."
        )
    return np.unique(column, return_inverse=True)[1].reshape(-1)


def _mask(name: str, column: np.ndarray | None, n: int) -> np.ndarray:
    if column is None:
        return np.ones(n, dtype=bool)
    column = np.asarray(column)
    if column.dtype != bool or column.shape != (n,):
        raise ValueError(
            f"{name} must be ({n},) booleans, one per row, got {column.dtype} of shape {column.shape}. "
            "From row numbers: mask = np.zeros(n, bool); mask[rows] = True."
        )
    return column
