"""Which rows of a batch can be compared, found from labels alone; and how tuples chosen by a miner are read.

The field's convention: pairs are four index tensors, triplets three. Nothing is n x n x n: memory is O(n m) plus the
tuples returned. Letters: n rows, m reference rows, l levels, p pairs, t triplets.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

TupleKind = Literal["pairs", "triplets", "batch"]  # "batch": whole rows, whatever a miner would choose
COLUMNS: dict[TupleKind, str] = {
    "batch": "(all rows of the batch)",
    "pairs": "(anchor1, positive, anchor2, negative)",
    "triplets": "(anchor, positive, negative)",
}


def _one_per_row(name: str, labels: Tensor | None, embeddings: Tensor) -> Tensor:
    rows = len(embeddings)
    if labels is None:
        raise ValueError(f"{name} are needed to find the tuples of {rows} embeddings; give {name}, or indices_tuple.")
    if labels.ndim == 0 or len(labels) != rows:
        raise ValueError(f"{name} must be one per embedding: {rows} rows, but {name} of shape {tuple(labels.shape)}.")
    return labels


def label_pair(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    own: int | None = None,
) -> tuple[Tensor, Tensor, int | None]:
    """Labels of rows and of reference rows, on the embeddings' device, and the column at which the rows begin there.

    Raises:
        ValueError: labels are missing, or are not one per row; `own` leaves no room for the rows.
    """
    reference = embeddings if ref_emb is None else ref_emb
    if reference is embeddings:
        own = 0
        ref_labels = labels if ref_labels is None else ref_labels
    rows = _one_per_row("labels", labels, embeddings)
    columns = _one_per_row("ref_labels", ref_labels, reference)
    if own is not None and not 0 <= own <= len(reference) - len(embeddings):
        raise ValueError(
            f"own is {own}, but {len(embeddings)} rows cannot begin there among {len(reference)} reference rows."
        )
    labels = rows.to(embeddings.device)
    return labels, (labels if columns is rows else columns.to(embeddings.device)), own


def shared_levels(labels: Tensor, ref_labels: Tensor) -> Tensor:
    """Relevance of hierarchical labels: how many leading levels two rows share; (n, l), (m, l) -> (n, m) int64.

    Labels (n,) are one level: relevance 1 for the same class, else 0. Below a differing level nothing counts.
    """
    labels, ref_labels = (given[:, None] if given.ndim == 1 else given for given in (labels, ref_labels))
    if labels.shape[1] != ref_labels.shape[1]:
        raise ValueError(
            f"labels have {labels.shape[1]} levels but ref_labels have {ref_labels.shape[1]}; give the same."
        )
    shared = torch.ones(len(labels), len(ref_labels), dtype=torch.bool, device=labels.device)
    relevance = torch.zeros_like(shared, dtype=torch.int64)
    for level in range(labels.shape[1]):
        shared = shared & (labels[:, level, None] == ref_labels[:, level])
        relevance += shared
    return relevance


def join_ranges(order: Tensor, anchor: Tensor, partner: Tensor, first: Tensor, count: Tensor) -> tuple[Tensor, ...]:
    """Triplets (anchor[i], partner[i], x) for x in order[anchor[i], first[i] : first[i] + count[i]], i ascending.

    order is (n, m); the other four are (p,) int64. Memory: the triplets returned.
    """
    pair = torch.repeat_interleave(count)
    within = torch.arange(len(pair), device=pair.device) - (count.cumsum(0) - count)[pair]
    return anchor[pair], partner[pair], order[anchor[pair], first[pair] + within]


def graded_triplets(relevance: Tensor, own: bool) -> tuple[Tensor, ...]:
    """Every (a, i, j) with relevance[a, i] > relevance[a, j]: three (t,) int64, sorted by a, i, relevance of j.

    Args:
        relevance: (n, m) finite numbers, larger is more relevant.
        own: the columns are the rows themselves, so a is neither i nor j.
    """
    graded = relevance.clone() if relevance.is_floating_point() else relevance.float()
    if own:
        graded.fill_diagonal_(math.inf)
    ascending, order = graded.sort(dim=1, stable=True)
    below = torch.searchsorted(ascending.contiguous(), graded.contiguous())
    if own:
        below.fill_diagonal_(0)
    anchor, higher = below.nonzero(as_tuple=True)
    return join_ranges(order, anchor, higher, torch.zeros_like(anchor), below[anchor, higher])


def read_tuples(indices: Sequence[Tensor], needed: TupleKind, loss: str, device: torch.device) -> tuple[Tensor, ...]:
    """The index tensors of the field's convention, on `device`: 3 columns are triplets, 4 are pairs.

    Raises:
        ValueError: they are not of the kind `needed`; nothing is converted, for pairs fit many triplets.
    """
    if needed == "batch":
        raise ValueError(f"{loss} compares all rows of the batch and takes no indices; leave the miner out.")
    kinds: dict[int, TupleKind] = {3: "triplets", 4: "pairs"}
    given = kinds.get(len(indices))
    if given != needed:
        raise ValueError(
            f"{loss} needs {needed} {COLUMNS[needed]}, got {given or 'neither pairs nor triplets'} "
            f"({len(indices)} index tensors); use a miner that returns {needed}, or none."
        )
    return tuple(column.to(device) for column in indices)
