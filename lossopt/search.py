"""From images to their neighbours: the run that made an index embeds them, and the index answers.

Letters: q queries, k neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lossopt.durable import sha256
from lossopt.errors import ConfigError, DataError
from lossopt.report.thumbnails import FilePictures, Pictures, TablePictures
from lossopt.retrieval.foreign import SUFFIXES, read_vectors
from lossopt.retrieval.index import Neighbours
from lossopt.retrieval.saved_index import SavedIndex
from lossopt.retrieval.store import is_embeddings
from lossopt.retrieval.vectors import Rows
from lossopt.retrieval.verification import kept_threshold
from lossopt.runs import LoadedRun, images_like, load_run, rows_of, vectors_of


@dataclass(frozen=True)
class Search:
    """Queries and what an index answered.

    queries: names, classes and paths of the q queries. neighbours: (q, k) distances and rows of `saved`. run: that
    embedded the queries, None if they came as vectors.
    """

    queries: Rows
    neighbours: Neighbours
    saved: SavedIndex
    run: LoadedRun | None

    @property
    def threshold(self) -> float | None:
        """The distance up to which two images count as the same, None: nobody has set one."""
        kept = kept_threshold(self.saved.provenance)
        return kept.value if kept is not None and kept.distance == self.saved.index.distance else None


def search_index(
    saved: SavedIndex,
    what: Path,
    k: int = 10,
    run: Path | None = None,
    overrides: Sequence[str] = (),
    allow_outside: bool = False,
) -> Search:
    """Asks an index for the nearest of some images, decoded and embedded as its own rows were.

    Args:
        saved: the index.
        what: an image, a folder of images, or vectors: an embeddings folder, .npy, .npz or .parquet.
        k: neighbours; the size of the index at most.
        run: the run that made the index's vectors; None: as remembered when the index was built.
        overrides: `--data...` and `--model...` words for that run.
        allow_outside: follow links that lead out of the folder.

    Raises:
        ConfigError: the run is not known, or is not the one that made the vectors.
        DataError: images or vectors that cannot be read, or vectors of another model.
    """
    if not what.exists():
        raise DataError(f"There is no file or folder {what}.")
    if what.suffix.lower() in SUFFIXES or (what.is_dir() and is_embeddings(what)):
        table = read_vectors(what)
        made_with, wanted = table.provenance.get("checkpoint_sha256"), saved.provenance.get("checkpoint_sha256")
        if table.vectors.shape[1] != saved.index.dimensions or (made_with and wanted and made_with != wanted):
            raise DataError(
                f"{what} holds vectors of {table.vectors.shape[1]} dimensions"
                f"{f' of checkpoint {made_with[:12]}' if made_with else ''}; the index has {saved.index.dimensions}"
                f"{f' of checkpoint {wanted[:12]}' if wanted else ''}. Both must come from one model."
            )
        return Search(table.rows(), saved.index.search(np.asarray(table.vectors), k), saved, None)
    loaded = matching_run(saved, run, overrides)
    images, _ = images_like(loaded, what, allow_outside)
    return Search(rows_of(images), saved.index.search(vectors_of(loaded, images), k), saved, loaded)


def matching_run(saved: SavedIndex, given: Path | None, overrides: Sequence[str] = ()) -> LoadedRun:
    """The run that made an index's vectors, known by the sha256 of its checkpoint.

    Raises:
        ConfigError: there is no such run, or its checkpoint is another.
    """
    wanted = saved.provenance.get("checkpoint_sha256")
    if not wanted:
        raise ConfigError(
            "The vectors of this index were not made by `lossopt embed`, so no image can be embedded as they were. "
            "Search with vectors of the same model instead: lossopt search INDEX vectors.npy"
        )
    folder = given or saved.run
    if folder is None:
        raise ConfigError("The index does not say which run made its vectors. Give that run: --run RUN.")
    if given is None and not (folder.is_file() or (folder / "checkpoints").is_dir()):
        raise ConfigError(
            f"The run that made the vectors of this index is not at {folder}. Say where it is: --run RUN."
        )
    run = load_run(folder, overrides)
    found = sha256(run.checkpoint)
    if found != wanted:
        raise ConfigError(
            f"The vectors of this index were made with a {saved.provenance.get('checkpoint')} of sha256 {wanted[:12]}, "
            f"but {run.checkpoint} has {found[:12]}: another model's distances would mean nothing. Give the run that "
            "made them (--run RUN), or embed and index again with this one."
        )
    return run


def as_text(search: Search) -> str:
    """For each query its neighbours: rank, distance, class, and path or name."""
    rows, lines = search.saved.rows, []
    width = max((len(rows.class_names[rows.labels[row]]) for row in _answered(search)), default=0)
    for query, name in enumerate(search.queries.names):
        lines.append(f"{name}")
        for rank, (distance, row) in enumerate(zip(*(part[query] for part in search.neighbours), strict=True), start=1):
            if row >= 0:
                beyond = "  (beyond the threshold)" if is_beyond(search.threshold, distance) else ""
                where = (rows.paths[row] if rows.paths is not None else "") or rows.names[row]
                lines.append(
                    f"{rank:4d} {distance:10.4f}  {rows.class_names[rows.labels[row]]:<{width}}  {where}{beyond}"
                )
    return "\n".join(lines)


def is_beyond(threshold: float | None, distance: float) -> bool:
    """Whether a neighbour is too far to count as the same."""
    return threshold is not None and distance > threshold


def pictures(search: Search) -> Pictures:
    """The images of the index's rows: files, or where they have none, the images of the run's data by their names."""
    rows, run = search.saved.rows, search.run
    split = search.saved.provenance.get("split")
    if rows.paths is not None or run is None or split not in ("train", "validation", "test"):
        return FilePictures(rows.paths)
    try:
        table = getattr(run.data.splits, split)
    except DataError:  # the data is elsewhere by now: names must do
        return FilePictures(None)
    place = {name: row for row, name in enumerate(table.names)}
    return _Renumbered(TablePictures(table), [place.get(name, -1) for name in rows.names])


@dataclass(frozen=True)
class _Renumbered:
    """Pictures of rows that are other rows of a table, -1 where there is none."""

    pictures: Pictures
    rows: Sequence[int]

    def read(self, rows: Sequence[int]) -> list[np.ndarray | None]:
        there = [self.rows[row] for row in rows if self.rows[row] >= 0]
        found = iter(self.pictures.read(there))
        return [next(found) if self.rows[row] >= 0 else None for row in rows]


def _answered(search: Search) -> list[int]:
    found = search.neighbours.rows
    return np.unique(found[found >= 0]).tolist()
