"""Rows of a table that are equal to the last bit.

Letters: n rows, d dimensions.
"""

import numpy as np

_CELLS = 2**22  # rows x dimensions looked at together: bounds the memory


def first_equal_row(embeddings: np.ndarray) -> np.ndarray:
    """(n,) int64: for each of (n, d) rows, the first row that equals it, which is itself where none before does.

    0.0 and -0.0 are equal. Rows are compared by a 64-bit hash.
    """
    step = max(1, _CELLS // max(1, embeddings.shape[1]))
    hashes = np.empty(len(embeddings), dtype=np.int64)
    for start in range(0, len(embeddings), step):
        rows = embeddings[start : start + step] + 0.0  # -0.0 + 0.0 is 0.0
        hashes[start : start + step] = [hash(row.tobytes()) for row in rows]
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    return first[inverse]


def duplicate_share(first_equal: np.ndarray) -> float:
    """Share of rows that equal another row, from what `first_equal_row` found."""
    copies = np.bincount(first_equal, minlength=len(first_equal))[first_equal]
    return float((copies > 1).mean()) if len(copies) else 0.0
