"""A page of answers: each query with its nearest images, and where they lie.

Letters: q queries, k neighbours.
"""

from dataclasses import dataclass
from pathlib import Path

from lossopt.report.galleries import Shown, split_name
from lossopt.report.page import render, write_page
from lossopt.report.thumbnails import FilePictures, Pictures, Thumbnails
from lossopt.retrieval.index import Neighbours
from lossopt.retrieval.saved_index import SavedIndex
from lossopt.retrieval.vectors import Rows

MOST_IMAGES = 2_000  # on a page, to keep it below 20 MB


@dataclass(frozen=True)
class Hit:
    """A neighbour; beyond: farther than the threshold; same: this very file."""

    rank: int
    shown: Shown
    beyond: bool
    same: bool

    @property
    def file(self) -> str:
        """The last part of the name: the class and the picture say the rest."""
        return self.shown.name.rstrip("/").rpartition("/")[2] or self.shown.name


@dataclass(frozen=True)
class Answer:
    """A query, and its neighbours from near to far."""

    query: Shown
    hits: list[Hit]


def write_search_page(
    path: Path,
    queries: Rows,
    neighbours: Neighbours,
    saved: SavedIndex,
    pictures: Pictures,
    threshold: float | None = None,
) -> Path:
    """Writes the gallery; an earlier one is replaced as a whole.

    Args:
        path: of the HTML file.
        queries: what was asked; their images are read from their paths.
        neighbours: (q, k) distances and rows of the index.
        saved: the index, for names, classes and what is known of it.
        pictures: of the index's rows.
        threshold: the distance up to which two images count as the same, None: nobody has set one.

    Returns:
        `path`.

    Raises:
        LossoptError: it cannot be written.
    """
    k = neighbours.rows.shape[1]
    count = max(1, min(len(queries), MOST_IMAGES // (k + 1)))
    asked, found = Thumbnails(FilePictures(queries.paths)), Thumbnails(pictures)
    asked.prepare(range(count))
    found.prepare([row for row in neighbours.rows[:count].reshape(-1).tolist() if row >= 0])
    answers = []
    for query in range(count):
        hits = []
        for rank, (distance, row) in enumerate(zip(*(part[query].tolist() for part in neighbours), strict=True), 1):
            if row >= 0:
                beyond = threshold is not None and distance > threshold
                hits.append(
                    Hit(rank, _shown(saved.rows, row, found, distance), beyond, _same(queries, query, saved, row))
                )
        answers.append(Answer(_shown(queries, query, asked), hits))
    values = {
        "answers": answers,
        "count": len(queries),
        "saved": saved,
        "threshold": threshold,
        "title": queries.names[0] if len(queries) == 1 else f"{len(queries):,} queries",
    }
    return write_page(path, render("search.html.j2", values))


def _shown(rows: Rows, row: int, thumbnails: Thumbnails, distance: float = 0.0) -> Shown:
    class_name = rows.class_names[int(rows.labels[row])]
    above, leaf = split_name(class_name)
    return Shown(thumbnails.of(row), class_name, above, leaf, str(rows.names[row]), distance=distance)


def _same(queries: Rows, query: int, saved: SavedIndex, row: int) -> bool:
    if queries.paths is None or saved.rows.paths is None:
        return False
    return bool(queries.paths[query]) and queries.paths[query] == saved.rows.paths[row]
