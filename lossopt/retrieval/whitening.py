"""PCA whitening: learnt on training embeddings, applied to others a chunk at a time, in float64 inside.

Letters: n rows, d dimensions in, m dimensions out.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lossopt.durable import write_whole
from lossopt.errors import DataError, EvaluationError
from lossopt.retrieval.index import unit_length

_CELLS = 2**21  # float64 numbers in a chunk
_KEYS = ("mean", "projection", "unit_input")


@dataclass(frozen=True)
class Whitening:
    """A shift, a turn and a scale per direction; then length 1.

    mean: (d,) float64 of the training embeddings. projection: (d, m) float64, directions already scaled.
    unit_input: whether embeddings are scaled to length 1 before anything else (cosine distance).
    """

    mean: np.ndarray
    projection: np.ndarray
    unit_input: bool = False

    @property
    def dimensions(self) -> int:
        """m, of what comes out."""
        return int(self.projection.shape[1])

    def apply(self, vectors: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Whitened embeddings of length 1; one that equals the training mean becomes zero.

        Args:
            vectors: (n, d) finite floats, in memory or mapped from disk.
            out: (n, m) array to write into, such as a memory map; None: a new one.

        Returns:
            (n, m) float32, or `out`.

        Raises:
            EvaluationError: NaN or infinite rows (named).
            ValueError: vectors or `out` of another shape.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mean):
            raise ValueError(f"This whitening takes (n, {len(self.mean)}) embeddings, got shape {vectors.shape}.")
        if out is None:
            out = np.empty((len(vectors), self.dimensions), dtype=np.float32)
        if out.shape != (len(vectors), self.dimensions):
            raise ValueError(f"out must have shape {(len(vectors), self.dimensions)}, got {out.shape}.")
        for start, chunk in _chunks(vectors, self.unit_input):
            out[start : start + len(chunk)] = unit_length((chunk - self.mean) @ self.projection)
        return out

    def save(self, path: Path) -> None:
        """Writes an .npz file without pickles, whole or not at all; raises LossoptError."""
        write_whole(
            path, lambda file: np.savez(file, mean=self.mean, projection=self.projection, unit_input=self.unit_input)
        )


def load_whitening(path: Path) -> Whitening:
    """Reads what `Whitening.save` wrote.

    Raises:
        DataError: no such file, or one that is not a whitening.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            mean, projection, unit_input = (content[key] for key in _KEYS)
        fits = mean.ndim == 1 and projection.ndim == 2 and len(projection) == len(mean) and unit_input.dtype == bool
        if not fits or not (np.isfinite(mean).all() and np.isfinite(projection).all()):
            raise ValueError(f"mean {mean.shape} and projection {projection.shape} do not belong together")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a saved whitening ({error}). Learn it again and save it.") from error
    return Whitening(mean, projection, bool(unit_input))


def learn_whitening(
    train: np.ndarray, dimensions: int | None = None, regularisation: float = 0.1, unit_input: bool = False
) -> Whitening:
    """The whitening of training embeddings: their directions of spread, each scaled to a variance of about 1.

    Directions without any spread in training (a constant dimension) are left out: nothing is known of them.

    Args:
        train: (n, d) finite floats of TRAINING images, n > d, or n > `dimensions`; in memory or mapped from disk.
            Never of the images that are evaluated: their figures would say nothing of others.
        dimensions: directions to keep, those of most spread; None: all that have any.
        regularisation: share of the mean variance that is added to each variance, so that directions of little spread,
            which are mostly noise, are not blown up without bound; 0: plain whitening.
        unit_input: scale embeddings to length 1 first; right for cosine distance.

    Raises:
        EvaluationError: too few rows, no spread at all, or NaN or infinite rows (named).
        ValueError: an argument of the wrong shape or size.

    Source: Jegou & Chum 2012, Negative evidences and co-occurences in image retrieval, ECCV, section 2.
    """
    if train.ndim != 2 or not train.shape[1]:
        raise ValueError(f"Training embeddings must be an (n, d) array, got shape {train.shape}.")
    n, d = train.shape
    if dimensions is not None and not 1 <= dimensions <= d:
        raise ValueError(f"dimensions must be from 1 to {d}, the size of the embeddings, got {dimensions}.")
    if not 0 <= regularisation < np.inf:
        raise ValueError(f"regularisation must be 0 or more, got {regularisation}.")
    if n <= (dimensions or d):
        raise EvaluationError(
            f"Whitening to {dimensions or d} dimensions needs more than {dimensions or d} training embeddings, got "
            f"{n}. Embed more training images, or ask for fewer dimensions."
        )
    mean = np.sum([chunk.sum(axis=0) for _, chunk in _chunks(train, unit_input)], axis=0) / n
    covariance = np.zeros((d, d))
    for _, chunk in _chunks(train, unit_input):
        centred = chunk - mean
        covariance += centred.T @ centred / n
    variance, directions = np.linalg.eigh(covariance)  # ascending
    variance, directions = variance[::-1], directions[:, ::-1]
    # rounding makes a spread: of the covariance, and of the mean of a constant dimension
    eps = float(np.finfo(float).eps)
    floor = max(n, d) * eps * float(variance[0]) + (n * eps) ** 2 * float(mean @ mean)
    spread = int((variance > floor).sum())
    if not spread:
        raise EvaluationError(
            f"All {n} training embeddings are equal: there is nothing to whiten. Has training failed?"
        )
    if spread < (dimensions or 1):
        raise EvaluationError(
            f"The training embeddings spread along {spread} directions only, fewer than the {dimensions} dimensions "
            f"asked for. Ask for {spread} or fewer."
        )
    kept = slice(dimensions or spread)
    scale = np.sqrt(variance[kept] + regularisation * variance.clip(0).mean())
    return Whitening(mean, directions[:, kept] / scale, unit_input)


def _chunks(vectors: np.ndarray, unit_input: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Position and float64 copy of some rows at a time; NaN and infinity are refused."""
    step = max(1, _CELLS // vectors.shape[1])
    for start in range(0, len(vectors), step):
        chunk = np.asarray(vectors[start : start + step], dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(chunk).all(axis=1))
        if len(bad):
            raise EvaluationError(
                f"{len(bad)} embeddings are NaN or infinite, first rows: {(bad[:10] + start).tolist()}. Look at the "
                "images of these rows, or at the training for divergence."
            )
        yield start, unit_length(chunk) if unit_input else chunk
