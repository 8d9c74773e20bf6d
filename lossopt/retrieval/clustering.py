"""How well k-means, told only the number of classes, finds the classes again: NMI and AMI.

Letters: n rows, d dimensions, c classes.
"""

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from lossopt.retrieval.index import Distance, unit_length
from lossopt.retrieval.task import Task

_MOST_WORK = 4e9  # rows x clusters x dimensions: about ten seconds of k-means on one core
_MOST_CELLS = 2**24  # rows x dimensions: bounds the memory


@dataclass(frozen=True)
class Clustering:
    """Agreement of k-means clusters with the classes.

    nmi: mutual information over the mean of the two entropies; grows with the number of clusters even by chance.
    ami: the same, adjusted so that chance scores 0. None, both, where clustering says nothing: see `reason`.
    clusters: as many as classes. rows: clustered, out of all_rows; fewer when classes were drawn to bound the work.
    all_classes: in the task.
    """

    nmi: float | None
    ami: float | None
    clusters: int
    rows: int
    all_rows: int
    all_classes: int
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)

    def as_text(self) -> str:
        """One line."""
        if self.nmi is None or self.ami is None:
            return f"NMI and AMI are not given: {self.reason}"
        drawn = f" drawn from {self.all_classes:,}" if self.clusters < self.all_classes else ""
        return (
            f"NMI {100 * self.nmi:.2f} %, AMI {100 * self.ami:.2f} %: k-means of {self.rows:,} images into "
            f"{self.clusters:,} clusters, as many as classes{drawn}"
        )


def measure_clustering(
    embeddings: np.ndarray, task: Task, distance: Distance = "euclidean", seed: int = 0, most_work: float = _MOST_WORK
) -> Clustering:
    """Clusters every row that asks or is searched; at most 20 rounds of k-means from one k-means++ start.

    Peers that start from random rows find somewhat worse clusters, and lower figures.

    Args:
        embeddings: (n, d) finite floats.
        task: whose classes are looked for.
        distance: "cosine" scales the vectors to length 1 first.
        seed: of the start, and of the classes drawn.
        most_work: rows x clusters x d; beyond it only some of the classes, drawn at random, are clustered. NMI and AMI
            are then those of an easier task.

    Source: Oh Song et al. 2016, CVPR, section 5 (NMI of as many clusters as classes); Musgrave, Belongie & Lim 2020
    (its flaws); Vinh, Epps & Bailey 2010, JMLR 11 (AMI).
    """
    rows = np.union1d(task.query_rows, task.gallery_rows)
    classes, sizes = np.unique(task.labels[rows], return_counts=True)
    there = len(rows), len(classes)
    if len(classes) < 2 or sizes.max() == 1:
        why = "there is only one class." if len(classes) < 2 else "no class has two images."
        return Clustering(None, None, len(classes), len(rows), *there, why)
    chosen = _draw(rows, task.labels, embeddings.shape[1], most_work, np.random.default_rng(seed))
    vectors = unit_length(embeddings[chosen]) if distance == "cosine" else embeddings[chosen]
    centred = (vectors - vectors.mean(axis=0, dtype=np.float64)).astype(
        np.float32
    )  # float32 loses less near a collapse
    labels = np.unique(task.labels[chosen], return_inverse=True)[1]
    clusters = int(labels.max()) + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct vectors than clusters: scored as they are
        found = KMeans(clusters, n_init=1, max_iter=20, random_state=seed, copy_x=False).fit_predict(centred)
    nmi, ami = normalized_mutual_info_score(labels, found), adjusted_mutual_info_score(labels, found)
    return Clustering(float(nmi), float(ami), clusters, len(chosen), *there)


def _draw(rows: np.ndarray, labels: np.ndarray, d: int, most_work: float, rng: np.random.Generator) -> np.ndarray:
    """The rows, or those of some classes, so many that the work is bounded, and the memory."""
    classes = np.unique(labels[rows])
    share = np.sqrt(most_work / (len(rows) * len(classes) * d))
    if share < 1:
        rows = rows[np.isin(labels[rows], rng.permutation(classes)[: max(2, int(share * len(classes)))])]
    most_rows = _MOST_CELLS // d
    return rows if len(rows) <= most_rows else np.sort(rng.choice(rows, most_rows, replace=False))
