"""The embedding in two dimensions: PCA, t-SNE and, on request, UMAP of whole classes drawn at random.

A map is for looking, not for measuring: only PCA keeps distances, and only the two directions of greatest variance.
Letters: m points, d dimensions.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from lossopt.errors import ConfigError
from lossopt.retrieval.index import Distance, unit_length

MOST_POINTS = 2_000
_FEWEST_FOR_TSNE = 12
_PERPLEXITY = 30.0
_EACH_AT_LEAST = 20


@dataclass(frozen=True)
class Layout:
    """One map: its name, (m, 2) coordinates scaled to [0, 1] with equal units along both axes, and how it was made."""

    name: str
    at: np.ndarray
    how: str


@dataclass(frozen=True)
class EmbeddingMap:
    """rows: (m,) row numbers, ascending. classes, all_classes: drawn, and there. layouts: of the same rows."""

    rows: np.ndarray
    classes: int
    all_classes: int
    layouts: tuple[Layout, ...]


def map_embedding(
    vectors: np.ndarray,
    labels: np.ndarray,
    distance: Distance = "euclidean",
    most: int = MOST_POINTS,
    seed: int = 0,
    with_umap: bool = False,
) -> EmbeddingMap:
    """Maps of at most `most` rows: classes in random order, each with all its rows or an equal share of the room.

    Args:
        vectors: (n, d) finite floats; with the cosine distance they are mapped at unit length.
        labels: (n,) int64.
        distance: "euclidean" or "cosine".
        most: points.
        seed: of the drawing and of the maps.
        with_umap: also UMAP, if umap-learn is there.

    Returns:
        The maps; t-SNE is left out where fewer than 12 points differ.

    Raises:
        ConfigError: UMAP is asked for and not installed.
    """
    rows = draw_whole_classes(labels, most, seed)
    chosen = np.asarray(vectors[rows])
    chosen = unit_length(chosen) if distance == "cosine" else chosen.astype(np.float64)
    layouts = [_pca(chosen)]
    different = len(np.unique(chosen, axis=0))
    if different >= _FEWEST_FOR_TSNE:
        scaled = (chosen - chosen.mean(axis=0)) / chosen.std()  # the same map, whatever the unit
        layouts.append(_tsne(scaled, layouts[0].at, seed))
        if with_umap:
            layouts.append(_umap(scaled, seed))
    return EmbeddingMap(rows, len(np.unique(labels[rows])), len(np.unique(labels)), tuple(layouts))


def draw_whole_classes(labels: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Ascending row numbers, at most `most`: classes in random order until the room is full.

    A class brings all its rows, but no more than 20 or, where there are few classes, its equal share of the room.
    """
    rng = np.random.default_rng(seed)
    codes = np.unique(labels, return_inverse=True)[1].reshape(-1)
    classes = int(codes.max()) + 1
    each = max(_EACH_AT_LEAST, most // classes)
    shuffled = rng.permutation(len(codes))
    turn = rng.permutation(classes)[codes[shuffled]]
    order = shuffled[np.argsort(turn, kind="stable")]  # class by class, random within
    place = np.arange(len(order)) - np.searchsorted(np.sort(turn), np.sort(turn), side="left")
    return np.sort(order[place < each][:most])


def _pca(points: np.ndarray) -> Layout:
    components = min(2, *points.shape)
    centred = points - points.mean(axis=0)
    if not np.ptp(centred, axis=0).any():
        return Layout("PCA", np.full((len(points), 2), 0.5), "all points are one")
    made = PCA(components, svd_solver="full").fit(centred)
    at = np.zeros((len(points), 2))
    at[:, :components] = made.transform(centred)
    kept = float(made.explained_variance_ratio_[:components].sum())
    return Layout("PCA", _unit_square(at), f"two directions of greatest variance; they hold {100 * kept:.0f} % of it")


def _tsne(points: np.ndarray, begin: np.ndarray, seed: int) -> Layout:
    """begin: (m, 2) where the points start, which decides how the clusters lie: as in the PCA."""
    perplexity = min(_PERPLEXITY, (len(points) - 1) / 3)
    start = ((begin - begin.mean(axis=0)) / begin.std() * 1e-4).astype(np.float32)
    at = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(points)
    return Layout(
        "t-SNE", _unit_square(at), f"perplexity {perplexity:.3g}, seed {seed}; distances between clusters mean little"
    )


def _umap(points: np.ndarray, seed: int) -> Layout:
    try:
        from umap import UMAP
    except ImportError as missing:
        raise ConfigError('UMAP needs a package: pip install "lossopt[umap]". PCA and t-SNE need none.') from missing
    neighbours = min(15, len(points) - 1)
    at = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(points)
    return Layout(
        "UMAP", _unit_square(at), f"{neighbours} neighbours, seed {seed}; distances between clusters mean little"
    )


def _unit_square(at: np.ndarray) -> np.ndarray:
    low, span = at.min(axis=0), float(np.ptp(at, axis=0).max()) or 1.0
    scaled = (at - low) / span
    return scaled + (1 - scaled.max(axis=0)) / 2
