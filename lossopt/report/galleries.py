"""Which queries a report shows, and what they found: the worst, those around the median, the best."""

import base64
import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from lossopt.data.dataset import LabelledImages
from lossopt.retrieval.evaluation import RetrievalResult

SIDE = 96  # pixels of a thumbnail's longer side, at most


class Chosen(NamedTuple):
    """Positions among the queries; no position is in two of them."""

    worst: list[int]
    median: list[int]
    best: list[int]


@dataclass(frozen=True)
class Shown:
    """One image of a gallery.

    image: a PNG as a data URI. pixelated: small enough to be enlarged with hard edges. above, leaf: the class name up
    to its last slash, and after it. correct, distance: of a neighbour; a query has True and 0.
    """

    image: str
    pixelated: bool
    class_name: str
    above: str
    leaf: str
    correct: bool
    distance: float


@dataclass(frozen=True)
class Row:
    """A query and its nearest neighbours; relevant: images of its class that it could have found."""

    query: Shown
    name: str
    average_precision: float
    relevant: int
    neighbours: list[Shown]

    @property
    def hits(self) -> int:
        """How many of the neighbours shown are of the query's class."""
        return sum(near.correct for near in self.neighbours)


def choose_queries(score: np.ndarray, label: np.ndarray, each: int = 6) -> Chosen:
    """The `each` lowest scores, those around the median, and the highest; fewer of each when there are few queries.

    Equal scores are taken from different classes in turn, classes in a fixed shuffled order, so that six perfect
    queries are not six of one class or of the first alphabet.

    Args:
        score: (q,) average precision of each query.
        label: (q,) its class, a whole number >= 0.
        each: how many of each kind.
    """
    count = min(each, -(-len(score) // 3))
    turn = _turn_within_ties(score, label)
    shuffled = np.random.default_rng(0).permutation(int(label.max()) + 1)[label]
    ascending = np.lexsort((shuffled, turn, score))
    worst = ascending[:count]
    descending = np.lexsort((shuffled, turn, -score))
    best = descending[~np.isin(descending, worst)][:count]
    rest = ascending[~np.isin(ascending, np.concatenate([worst, best]))]
    start = max(0, (len(rest) - count + 1) // 2)
    return Chosen(worst.tolist(), rest[start : start + count].tolist(), best.tolist())


def _turn_within_ties(score: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(q,) how many earlier queries have the same score and the same class."""
    order = np.lexsort((label, score))  # stable: file order within
    new = np.ones(len(score), dtype=bool)
    new[1:] = (np.diff(score[order]) != 0) | (np.diff(label[order]) != 0)
    starts = np.maximum.accumulate(np.where(new, np.arange(len(score)), 0))
    turn = np.empty(len(score), dtype=np.int64)
    turn[order] = np.arange(len(score)) - starts
    return turn


def relevant_and_candidates(found: RetrievalResult, table: LabelledImages) -> tuple[np.ndarray, np.ndarray]:
    """(q,) items of its class that each query can find, and (q,) items that it searches; itself is in neither."""
    labels = table.labels.numpy()
    gallery = np.ones(len(table), dtype=bool) if table.gallery is None else table.gallery.numpy()
    itself = gallery[found.query_rows].astype(np.int64)
    per_class = np.bincount(labels[gallery], minlength=len(table.class_names))
    return per_class[labels[found.query_rows]] - itself, int(gallery.sum()) - itself


def chance_of_recall(relevant: np.ndarray, candidates: np.ndarray, k: int) -> float:
    """Mean recall@k of a random order: 1 - C(candidates - relevant, k) / C(candidates, k), over queries."""
    missed = np.ones(len(relevant))
    for drawn in range(k):
        missed *= np.clip(candidates - relevant - drawn, 0, None) / np.maximum(candidates - drawn, 1)
    return float(1 - missed.mean())


def gallery_rows(found: RetrievalResult, table: LabelledImages, positions: list[int], neighbours: int = 5) -> list[Row]:
    """Queries by their positions in `found`, each with up to 10 of its nearest as images."""
    relevant, _ = relevant_and_candidates(found, table)
    rows = []
    for position in positions:
        query = int(found.query_rows[position])
        near = [int(row) for row in found.neighbours[position][:neighbours] if row >= 0]
        images = table.batch([query, *near]).images.permute(0, 2, 3, 1).numpy()
        distances = [0.0, *(float(value) for value in found.neighbour_distances[position][: len(near)])]
        names = [table.class_names[int(table.labels[row])] for row in (query, *near)]
        shown = [
            _shown(image, name, name == names[0], distance)
            for image, name, distance in zip(images, names, distances, strict=True)
        ]
        rows.append(
            Row(
                query=shown[0],
                name=table.names[query],
                average_precision=float(found.per_query["map@r"][position]),
                relevant=int(relevant[position]),
                neighbours=shown[1:],
            )
        )
    return rows


def _shown(image: np.ndarray, class_name: str, correct: bool, distance: float) -> Shown:
    above, slash, leaf = class_name.rpartition("/")
    if not leaf:
        above, slash, leaf = "", "", class_name
    uri, pixelated = png_uri(image)
    return Shown(uri, pixelated, class_name, above + slash, leaf, correct, distance)


def png_uri(image: np.ndarray, side: int = SIDE) -> tuple[str, bool]:
    """A (h, w, 1 or 3) uint8 image as a PNG data URI, at most `side` long, and whether it was smaller than that."""
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    small = max(picture.size) < side
    if not small:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    picture.save(written, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode("ascii"), small
