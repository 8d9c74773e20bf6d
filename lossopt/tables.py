"""A table of images as retrieval sees it: all but the pixels."""

from collections.abc import Sequence

import numpy as np

from lossopt.data.dataset import LabelledImages
from lossopt.retrieval.evaluation import KS, RetrievalResult, evaluate_vectors
from lossopt.retrieval.index import Distance
from lossopt.retrieval.task import Exclusion
from lossopt.retrieval.vectors import Rows


def evaluate_table(
    embeddings: np.ndarray,
    table: LabelledImages,
    ks: Sequence[int] = KS,
    distance: Distance = "euclidean",
    exclude: Exclusion = "none",
) -> RetrievalResult:
    """`evaluate_vectors` of a table's embeddings: the numbers that its embeddings folder gives."""
    return evaluate_vectors(rows_of(table).with_vectors(embeddings, {}), ks, distance, exclude)


def rows_of(table: LabelledImages) -> Rows:
    """All that is known of a table's images besides their pixels."""
    return Rows(
        labels=table.labels.numpy(),
        class_names=table.class_names,
        names=table.names,
        paths=table.paths(),
        groups=None if table.groups is None else table.groups.numpy(),
        group_names=table.group_names,
        query=None if table.query is None else table.query.numpy(),
        gallery=None if table.gallery is None else table.gallery.numpy(),
    )
