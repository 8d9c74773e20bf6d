"""Labelled vectors: what every step after training reads, whoever made them.

Letters: n rows, d dimensions, c classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lossopt.retrieval.task import Exclusion, Task, make_task


@dataclass(frozen=True)
class LabelledVectors:
    """A table of n embeddings, in memory or mapped from disk. A row number is a row's id within the table.

    Args:
        vectors: (n, d) floats, possibly a read-only memory map.
        labels: (n,) int64, each the position of the row's class in `class_names`.
        class_names: one name per class; unique. Slashes part levels of a hierarchy ("Latin/character01").
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
