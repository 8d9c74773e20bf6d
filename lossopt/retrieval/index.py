"""The only home of FAISS: vectors go in, nearest neighbours come out, and smaller is closer whatever FAISS calls it.

Letters: g gallery rows, d dimensions, q queries, k neighbours.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal, NamedTuple

import faiss
import numpy as np

from lossopt.errors import ConfigError, DataError, EvaluationError
from lossopt.retrieval.factory import EXAMPLES, FLAT, check_factory, fit_to_rows, shortened, training_rows

Distance = Literal["euclidean", "cosine"]
TRAINING_ROWS = 20_000  # twice what FAISS advises for codes of 8 bits; k-means takes minutes beyond
_CELLS = 2**22  # numbers handed over at a time
_LARGEST = 1e17  # of a number: the squares of greater ones add up to infinity in float32
_FEW = 1_000  # rows: exact search among so few takes no time, so an index that cannot be trained becomes exact
_SPARE_BYTES = 2**26  # tables that FAISS makes of a file may exceed the file by so much
_LATTICE_RADIUS = 256  # squared; decoding tables beyond it take minutes to make


class Neighbours(NamedTuple):
    """The answer to q queries, in the index's distance.

    distances: (q, k) floats, ascending, inf where there is no neighbour; of an index that keeps codes instead of
    vectors they are estimates. rows: (q, k) int64 positions in the gallery, -1 where there is no neighbour.
    """

    distances: np.ndarray
    rows: np.ndarray


class NeighbourIndex:
    """A FAISS index over a gallery; row numbers of the gallery are its ids.

    Args:
        gallery: (g, d) finite float or integer vectors, in memory or mapped from disk; read a part at a time.
        distance: "euclidean", or "cosine" (1 - cosine similarity; vectors are scaled to length 1 here, once, and FAISS
            sees Euclidean distances between them, which every index knows).
        factory: FAISS's `index_factory` string; "Flat" is exact.
        parameters: of the search, such as "nprobe=8" or "nprobe=8,k_factor_rf=4".
        most_training_rows: rows that are drawn to train it, where it needs training and its lists do not need more.
        seed: of that draw.
        rows: (g,) int64, which rows of `gallery` are taken, in this order; None: all of them.

    Attributes:
        factory: as built, which differs from the one asked for where rows are too few; `notes` say so.
        trained_on: how many rows it was trained on, 0 if it needs none.
        lengths: (least, greatest) of the gallery before scaling, None unless cosine.

    Raises:
        ConfigError: a factory string or parameters that FAISS does not take.
        EvaluationError: NaN or infinite vectors, or zero vectors under cosine (with their row numbers).
        ValueError: an empty gallery, or a distance of another name.
    """

    def __init__(
        self,
        gallery: np.ndarray,
        distance: Distance = "euclidean",
        factory: str = FLAT,
        parameters: str = "",
        most_training_rows: int = TRAINING_ROWS,
        seed: int = 0,
        rows: np.ndarray | None = None,
    ) -> None:
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"distance must be 'euclidean' or 'cosine', got {distance!r}.")
        if gallery.ndim != 2 or not gallery.size or (rows is not None and not len(rows)):
            raise ValueError(f"An index needs a gallery of (g, d) vectors, got shape {gallery.shape}.")
        self.distance: Distance = distance
        self.dimensions = gallery.shape[1]
        self.trained_on, self.parameters = 0, ""
        self.lengths = check_vectors(gallery, distance, "gallery vectors", rows)
        check_factory(factory, distance == "cosine")
        n = len(gallery) if rows is None else len(rows)
        self.factory, self.notes = fit_to_rows(factory, n)
        try:
            self.index = self._built(gallery, rows, most_training_rows, seed)
        except RuntimeError as refused:
            words = shortened(str(refused))
            if n >= _FEW and "training points" not in words:
                raise ConfigError(
                    f"FAISS cannot build {self.factory!r} of {n:,} rows with {self.dimensions} dimensions: "
                    f"{words}. Examples: {EXAMPLES}."
                ) from refused
            self.notes = (f"exact search instead of {factory}: {n:,} rows are too few for it ({words}).",)
            self.factory, self.trained_on = FLAT, 0
            self.index = self._built(gallery, rows, most_training_rows, seed)
        self.set_parameters(parameters, all_known=self.factory == factory)

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def nbytes(self) -> int:
        """The size of the index as a file, which is about what it takes in memory."""
        size = 0

        def count(part: bytes) -> None:
            nonlocal size
            size += len(part)

        self.write(count)
        return size

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """The k nearest of the gallery for each of (q, d) queries; k is cut to the size of the gallery.

        Raises:
            EvaluationError: NaN or infinite queries, or zero queries under cosine.
            ValueError: queries of another dimension, or k < 1.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimensions or k < 1:
            raise ValueError(f"(q, {self.dimensions}) queries and k >= 1 are needed, got {queries.shape} and k = {k}.")
        check_vectors(queries, self.distance, "queries")
        squared, rows = self.index.search(_prepared(queries, self.distance), min(k, len(self)))
        squared = np.maximum(squared, 0)
        distances = squared / 2 if self.distance == "cosine" else np.sqrt(squared)
        return Neighbours(np.where(rows >= 0, distances, np.inf), rows)

    def set_parameters(self, parameters: str, all_known: bool = True) -> None:
        """Settings of the search, such as "nprobe=8"; what is not named stays as it is.

        Args:
            parameters: names and whole numbers, parted by commas.
            all_known: refuse a name that this index does not have; False: leave it out and note it.

        Raises:
            ConfigError: says what this index can be set to.
        """
        kept = _named_numbers(self.parameters)
        for name, value in _named_numbers(parameters).items():
            try:
                faiss.ParameterSpace().set_index_parameter(self.index, name, value)
                kept[name] = value
            except RuntimeError as refused:
                if all_known:
                    names = ", ".join({name for each in self.settings() for name in each}) or "nothing"
                    raise ConfigError(
                        f"{self.factory!r} has no search parameter {name!r}; what can be set: {names}."
                    ) from refused
                self.notes += (f"{name} is left out: {self.factory} has no such parameter.",)
        self.parameters = as_parameters(kept)

    def settings(self) -> list[dict[str, int]]:
        """Search parameters worth trying, from FAISS's own ranges: every combination, cheap ones first."""
        space = faiss.ParameterSpace()
        space.initialize(self.index)
        found: list[dict[str, int]] = []
        for number in range(space.n_combinations()):
            items = [item.partition("=") for item in space.combination_name(number).split(",") if item]
            # "ht", a filter over codes that is off as a rule, would multiply them by 17; "inf" stands for no limit
            setting = {name: int(float(value)) for name, _, value in items if name != "ht" and value != "inf"}
            if setting not in found:
                found.append(setting)
        return found

    def write(self, sink: Callable[[bytes], object]) -> None:
        """Hands the index over as bytes, a part at a time."""
        faiss.write_index(self.index, faiss.PyCallbackIOWriter(sink))  # type: ignore[attr-defined]

    @classmethod
    def read(cls, file: BinaryIO, size: int, rows: int, dimensions: int, distance: Distance) -> "NeighbourIndex":
        """An index that was written before. Check the file's sha256 first: FAISS trusts what it reads.

        Args:
            file: opened; `size` bytes.
            size, rows, dimensions: what the index must have. FAISS may not allocate or loop beyond them.
            distance: as it was built.

        Raises:
            DataError: FAISS cannot read it, or it has another size, dimension or metric than said.
        """
        before = (
            faiss.get_deserialization_vector_byte_limit(),
            faiss.get_deserialization_loop_limit(),
            faiss.get_deserialization_lattice_r2_limit(),
        )
        _limit(size + _SPARE_BYTES, max(rows, dimensions, 1024), _LATTICE_RADIUS)
        try:
            index = faiss.read_index(faiss.PyCallbackIOReader(file.read))  # type: ignore[attr-defined]
        except (RuntimeError, MemoryError) as refused:
            raise DataError(f"FAISS cannot read it ({shortened(str(refused))})") from refused
        finally:
            _limit(*before)
        found = (index.d, index.ntotal, index.metric_type == faiss.METRIC_L2, index.is_trained)
        if found != (dimensions, rows, True, True):
            raise DataError(
                f"the index has {found[1]:,} rows of {found[0]} dimensions"
                f"{'' if found[2] else ' and measures similarity'}{'' if found[3] else ' and is not trained'}; "
                f"{rows:,} rows of {dimensions} dimensions were expected"
            )
        made = cls.__new__(cls)
        made.distance, made.dimensions, made.index = distance, dimensions, index
        made.factory, made.parameters, made.notes, made.trained_on, made.lengths = "", "", (), 0, None
        return made

    def _built(self, gallery: np.ndarray, rows: np.ndarray | None, most_training_rows: int, seed: int) -> faiss.Index:
        try:
            index = faiss.index_factory(self.dimensions, self.factory, faiss.METRIC_L2)
        except RuntimeError as refused:
            raise ConfigError(
                f"FAISS does not know the index {self.factory!r} for {self.dimensions} dimensions: "
                f"{shortened(str(refused))}. Examples: {EXAMPLES}."
            ) from refused
        n = len(gallery) if rows is None else len(rows)
        if not index.is_trained:
            self.trained_on = min(n, training_rows(self.factory, most_training_rows))
            sample = np.sort(np.random.default_rng(seed).choice(n, self.trained_on, replace=False))
            with _quiet(index):
                index.train(_prepared(gallery[sample if rows is None else rows[sample]], self.distance))
        if isinstance(index, faiss.IndexFlat):  # room for all rows at once: growing would copy them again and again
            index.codes.resize(n * self.dimensions * 4)
            index.codes.resize(0)
        for _, part in _chunks(gallery, rows):
            index.add(_prepared(part, self.distance))
        return index


def threads() -> int:
    """How many threads FAISS searches with."""
    return int(faiss.omp_get_max_threads())


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """(n, d) vectors scaled to Euclidean length 1, in float64; a zero vector stays zero."""
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0)


def _prepared(vectors: np.ndarray, distance: Distance) -> np.ndarray:
    """What FAISS takes: contiguous float32, of length 1 for cosine."""
    return np.ascontiguousarray(unit_length(vectors) if distance == "cosine" else vectors, dtype=np.float32)


def _chunks(vectors: np.ndarray, rows: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers and vectors of some rows at a time, so that a memory map is never read whole."""
    step = max(1, _CELLS // vectors.shape[1])
    n = len(vectors) if rows is None else len(rows)
    for start in range(0, n, step):
        stop = min(start + step, n)
        if rows is None:
            yield np.arange(start, stop), vectors[start:stop]
        else:
            yield rows[start:stop], vectors[rows[start:stop]]


def check_vectors(
    vectors: np.ndarray, distance: Distance, what: str, rows: np.ndarray | None = None
) -> tuple[float, float] | None:
    """Refuses what has no distance; returns the least and the greatest length if the distance is cosine."""
    unfit: list[np.ndarray] = []
    zero: list[np.ndarray] = []
    lengths: list[float] = []
    for numbers, part in _chunks(vectors, rows):
        with np.errstate(over="ignore"):
            part = np.asarray(part, dtype=np.float32)  # a finite float64 can be infinite for FAISS
        fit = np.isfinite(part) if distance == "cosine" else np.abs(part) < _LARGEST
        unfit.append(numbers[~fit.all(axis=1)])
        if distance == "cosine":
            found = np.linalg.norm(part.astype(np.float64), axis=1)
            zero.append(numbers[found == 0])
            lengths += [float(found.min()), float(found.max())]
    for bad, fault in (
        (np.concatenate([np.empty(0, np.int64), *unfit]), "are NaN or infinite (or too large for float32 distances)"),
        (np.concatenate([np.empty(0, np.int64), *zero]), "are zero and have no cosine distance"),
    ):
        if len(bad):
            raise EvaluationError(
                f"{len(bad):,} of {len(vectors if rows is None else rows):,} {what} {fault}, first rows: "
                f"{bad[:10].tolist()}. "
                "Look at these images, or leave the rows out."
            )
    return (min(lengths), max(lengths)) if lengths else None


def as_parameters(setting: Mapping[str, int]) -> str:
    """{"nprobe": 8} as "nprobe=8"."""
    return ",".join(f"{name}={value}" for name, value in setting.items())


def _named_numbers(parameters: str) -> dict[str, int]:
    """ "nprobe=8,efSearch=64" as a dictionary."""
    found = {}
    for item in filter(None, parameters.split(",")):
        name, _, digits = item.partition("=")
        if not name.strip() or not digits.strip().isdigit() or int(digits) < 1:
            raise ConfigError(
                f"Search parameters are names and whole numbers above 0, such as 'nprobe=8' or "
                f"'nprobe=8,efSearch=64'; got {parameters!r}."
            )
        found[name.strip()] = int(digits)
    return found


@contextmanager
def _quiet(index: faiss.Index) -> Iterator[None]:
    """Keeps FAISS from printing, while it trains, that rows are few: `notes` say it."""
    turns: list[Any] = []
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain
        turns = [faiss.downcast_VectorTransform(chain.at(number)) for number in range(chain.size())]
        turns = [turn for turn in turns if isinstance(turn, faiss.OPQMatrix)]
        index = faiss.downcast_index(index.index)
    if isinstance(index, faiss.IndexRefine):
        index = faiss.downcast_index(index.base_index)
    codes: list[Any] = [faiss.ProductQuantizer(turn.d_out, turn.M, 8) for turn in turns]
    for turn, code in zip(turns, codes, strict=True):
        turn.pq = code
    if isinstance(index, (faiss.IndexPQ, faiss.IndexIVFPQ)):
        codes.append(index.pq)
    for trained in [*codes, *([index] if isinstance(index, faiss.IndexIVF) else [])]:
        trained.cp.min_points_per_centroid = 1
    try:
        yield
    finally:
        for turn in turns:
            turn.pq = None


def _limit(vector_bytes: int, loops: int, lattice_radius: int) -> None:
    """How much FAISS may allocate at once, how often it may loop, and how fine a lattice may be, while it reads."""
    faiss.set_deserialization_vector_byte_limit(vector_bytes)
    faiss.set_deserialization_loop_limit(loops)
    faiss.set_deserialization_lattice_r2_limit(lattice_radius)
