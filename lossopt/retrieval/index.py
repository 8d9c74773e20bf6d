"""The only home of FAISS: vectors go in, nearest neighbours come out, and smaller is closer whatever FAISS calls it."""

from typing import Literal, NamedTuple

import faiss
import numpy as np

Distance = Literal["euclidean", "cosine"]


class Neighbours(NamedTuple):
    """distances: (q, k) float32, ascending, in the index's distance; rows: (q, k) int64 positions in the gallery."""

    distances: np.ndarray
    rows: np.ndarray


class NeighbourIndex:
    """An exact FAISS index over a gallery.

    Args:
        gallery: (g, d) float vectors.
        distance: "euclidean", or "cosine" (1 - cosine similarity; vectors are scaled to length 1 here, once).

    Raises:
        ValueError: an empty gallery, or a distance of another name.
    """

    def __init__(self, gallery: np.ndarray, distance: Distance = "euclidean") -> None:
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}.")
        if gallery.ndim != 2 or not len(gallery):
            raise ValueError(f"An index needs a gallery of (g, d) vectors, got shape {gallery.shape}.")
        self.distance = distance
        flat = faiss.IndexFlatL2 if distance == "euclidean" else faiss.IndexFlatIP
        self.index = flat(gallery.shape[1])
        self.index.add(self._prepare(gallery))

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def _prepare(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        return unit_length(vectors).astype(np.float32) if self.distance == "cosine" else vectors

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """The k nearest of the gallery for each of (q, d) queries; k is cut to the size of the gallery."""
        found, rows = self.index.search(self._prepare(queries), min(k, len(self)))
        distances = np.sqrt(np.maximum(found, 0)) if self.distance == "euclidean" else 1 - found
        return Neighbours(distances, rows)


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """(n, d) vectors scaled to Euclidean length 1, in float64; a zero vector stays zero."""
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0)
