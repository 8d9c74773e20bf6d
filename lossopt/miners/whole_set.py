"""Hard negatives out of the whole data set: nearest first, in a window of ranks, under guards against false ones.

In-batch miners choose among what the batch happens to hold; here every row is searched, through an index.
Letters: n rows, d dimensions, a anchors, w negatives of the window.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.spatial.distance import cdist

from lossopt.losses.distances import one_of
from lossopt.miners.candidates import GroupRule
from lossopt.miners.tuples import Triplets
from lossopt.retrieval.factory import FLAT
from lossopt.retrieval.index import Distance, check_vectors, unit_length
from lossopt.retrieval.neighbours import nearest
from lossopt.retrieval.task import Task, make_task

Positive = Literal["nearest", "hardest", "random"]
_CELLS = 2**22  # distances held at a time
_MOST_CLASSMATES = (
    64  # rows of the anchor's class that are expected before its negatives; of more, the search asks again
)


class Dropped(NamedTuple):
    """How many negatives of the windows each guard left out; one that several guards refuse counts for each.

    candidates: negatives in all windows, before the guards.
    """

    candidates: int
    out_of_range: int
    absolute: int
    relative: int


class HardNegatives(NamedTuple):
    """What was mined for a anchors, those of the rows asked for that have a positive.

    anchor: (a,) int64, ascending. positive: (a,) int64. positive_distance: (a,) float64.
    negative: (a, w) int64, nearest first; -1 where there is none or a guard left it out.
    negative_distance: (a, w) float64; inf there.
    """

    anchor: np.ndarray
    positive: np.ndarray
    positive_distance: np.ndarray
    negative: np.ndarray
    negative_distance: np.ndarray
    dropped: Dropped

    def triplets(self) -> Triplets:
        """Every anchor with its positive and each of its negatives, as the losses take them."""
        kept = self.negative >= 0
        per_anchor = kept.sum(axis=1)
        columns = np.repeat(self.anchor, per_anchor), np.repeat(self.positive, per_anchor), self.negative[kept]
        return Triplets(*(torch.from_numpy(column) for column in columns))


class WholeSetMining:
    """Which negatives are mined from the whole training set, how often, and how batches are made of them.

    A batch takes seed classes from the pile, the classes of the negatives mined for their images, nearest first, and
    the rest from the pile again (`PKSampler`). A negative that is nearer than the anchor's own class may well be of
    that class (label noise, two names for one thing): `skip` and the guards leave such out. The margins are measured
    from the anchor's nearest positive; from its farthest, they would leave out every hard negative of a wide class.

    Args:
        confusable_classes: how many of a batch's classes are those of mined negatives.
        classes_per_seed: how many of them belong to one seed class.
        every_n_steps: training batches between two refreshes; None: at the end of every epoch.
        warmup_steps: training batches before the first refresh; until then batches are dealt without mining.
        sample: how many training images are embedded at a refresh, drawn anew each time; None: all.
        skip: the so many nearest negatives are left out.
        window: the so many next ones are mined.
        positive: of each anchor "nearest", "hardest" (farthest; ties to the lowest row) or "random".
        min_distance: a negative nearer than this is left out.
        max_distance: and one farther than this; None: no limit.
        absolute_margin: a negative must be farther than the nearest positive by at least this; None: need not.
        relative_margin: and by at least this share of the positive's distance (0.05: 5 % farther); None: need not.
        group_rule: negatives come from "any" group, only from an "other" group than the anchor's, or from the "same".
        distance: "euclidean" or "cosine"; also of the margins.
        factory: FAISS's `index_factory` string; "Flat" is exact, "IVF4096,Flat" and its kin are for millions of rows.
        parameters: of its search, such as "nprobe=16".

    Raises:
        ValueError: a number out of range, a word that is none of the above.

    Source: Smirnov et al. 2018 (hard example mining with auxiliary embeddings); Cakir et al. 2019, CVPR (batches of
    confusable classes); the guards are those of sentence-transformers' `mine_hard_negatives` (range_min, range_max,
    max_score, min_score, absolute_margin, relative_margin), of distances instead of similarities.
    """

    def __init__(
        self,
        confusable_classes: int = 16,
        classes_per_seed: int = 3,
        every_n_steps: int | None = None,
        warmup_steps: int = 0,
        sample: int | None = None,
        skip: int = 0,
        window: int = 16,
        positive: Positive = "hardest",
        min_distance: float = 0.0,
        max_distance: float | None = None,
        absolute_margin: float | None = None,
        relative_margin: float | None = None,
        group_rule: GroupRule = "any",
        distance: Distance = "euclidean",
        factory: str = FLAT,
        parameters: str = "",
    ) -> None:
        whole = {"confusable_classes": (confusable_classes, 1), "classes_per_seed": (classes_per_seed, 1)}
        whole |= {"warmup_steps": (warmup_steps, 0), "skip": (skip, 0), "window": (window, 1)}
        whole |= {
            "every_n_steps": (1 if every_n_steps is None else every_n_steps, 1),
            "sample": (2 if sample is None else sample, 2),
        }
        for name, (given, least) in whole.items():
            if given < least:
                raise ValueError(f"WholeSetMining {name} must be {least} or more, got {given}.")
        lengths = {"min_distance": min_distance, "absolute_margin": absolute_margin, "relative_margin": relative_margin}
        for name, length in lengths.items():
            if length is not None and not 0 <= length < math.inf:
                raise ValueError(f"WholeSetMining {name} must be a finite number of at least 0, got {length}.")
        if max_distance is not None and not max_distance > min_distance:
            raise ValueError(
                f"WholeSetMining takes negatives from min_distance {min_distance} up to max_distance {max_distance}: "
                "there are none. Raise max_distance, or leave it out."
            )
        for name, word, valid in (
            ("positive", positive, Positive),
            ("group_rule", group_rule, GroupRule),
            ("distance", distance, Distance),
        ):
            one_of(name, word, valid)
        self.confusable_classes, self.classes_per_seed = confusable_classes, classes_per_seed
        self.every_n_steps, self.warmup_steps, self.sample = every_n_steps, warmup_steps, sample
        self.skip, self.window, self.positive = skip, window, positive
        self.min_distance, self.max_distance = min_distance, max_distance
        self.absolute_margin, self.relative_margin = absolute_margin, relative_margin
        self.group_rule, self.distance = group_rule, distance
        self.factory, self.parameters = factory, parameters

    def mine(
        self,
        vectors: np.ndarray,
        labels: np.ndarray,
        groups: np.ndarray | None = None,
        rows: np.ndarray | None = None,
        seed: int = 0,
    ) -> HardNegatives:
        """The window of each row, and what the guards left of it.

        With "Flat" the windows are exact: ranks `skip` + 1 to `skip` + `window` among the row's negatives, by distance
        and then by row (of rows at one distance at the end of a window, any). Memory: O(n d), and blocks; never n x n.

        Args:
            vectors: (n, d) finite floats.
            labels: (n,) whole numbers or strings.
            groups: (n,) likewise; needed by the group rules "other" and "same".
            rows: row numbers to mine for; None: all.
            seed: of the positives, where they are random.

        Raises:
            EvaluationError: NaN or infinite vectors, or zero vectors under cosine, with their row numbers.
            ValueError: columns that are not one per vector; a group rule without groups.
            ConfigError: an index that FAISS does not know.
        """
        if self.group_rule != "any" and groups is None:
            raise ValueError(f"group_rule {self.group_rule!r} asks for groups, but there are none. Set it to 'any'.")
        n, width = len(vectors), self.skip + self.window
        if n == 0:
            return _none(self.window)
        check_vectors(vectors, self.distance, "vectors")
        task = make_task(n, labels, groups=groups)
        asked = np.arange(n) if rows is None else np.unique(rows)
        positives = self._positives(vectors, task.labels, seed)
        asked = asked[positives.row[asked] >= 0]
        negative = np.full((len(asked), width), -1, dtype=np.int64)
        distances = np.full((len(asked), width), np.inf)
        classmates = int(min(np.bincount(task.labels).max(), _MOST_CLASSMATES))
        for part, gallery in _searched(self.group_rule, task, asked):
            negatives = _Negatives(task.labels, gallery, gallery, task.groups, "none", self.group_rule)
            distances[part], negative[part] = nearest(
                vectors,
                negatives,
                asked[part],
                width,
                self.distance,
                factory=self.factory,
                parameters=self.parameters,
                left_out=classmates,
            )
        return self._guarded(asked, positives, negative[:, self.skip :], distances[:, self.skip :])

    def _guarded(
        self, anchor: np.ndarray, positives: "_Positives", negative: np.ndarray, distances: np.ndarray
    ) -> HardNegatives:
        there = negative >= 0
        near = positives.nearest[anchor, None]
        most = math.inf if self.max_distance is None else self.max_distance
        out_of_range = there & ((distances < self.min_distance) | (distances > most))
        further = -math.inf if self.absolute_margin is None else self.absolute_margin
        absolute = there & (distances < near + further)
        relative = there & (distances < near * (0 if self.relative_margin is None else 1 + self.relative_margin))
        refused = out_of_range | absolute | relative
        return HardNegatives(
            anchor,
            positives.row[anchor],
            positives.distance[anchor],
            np.where(refused, -1, negative),
            np.where(refused, np.inf, distances),
            Dropped(*(int(which.sum()) for which in (there, out_of_range, absolute, relative))),
        )

    def _positives(self, vectors: np.ndarray, labels: np.ndarray, seed: int) -> "_Positives":
        """Of every row; -1 where it is alone in its class."""
        rng = np.random.default_rng(seed)
        found = _Positives(np.full(len(labels), -1), np.full(len(labels), np.inf), np.full(len(labels), np.inf))
        for rows, members, distances in _within_classes(vectors, labels, self.distance):
            itself = rows[:, None] == members[None, :]
            near = np.where(itself, np.inf, distances)
            if self.positive == "nearest":
                chosen = near.argmin(axis=1)
            elif self.positive == "hardest":
                chosen = np.where(itself, -np.inf, distances).argmax(axis=1)
            else:
                chosen = rng.integers(0, len(members) - 1, len(rows))
                chosen += chosen >= itself.argmax(axis=1)
            found.row[rows] = members[chosen]
            found.distance[rows] = distances[np.arange(len(rows)), chosen]
            found.nearest[rows] = near.min(axis=1)
        return found


class _Positives(NamedTuple):
    """Of each of n rows: its positive, -1 if it has none; how far that is; how far the nearest positive is."""

    row: np.ndarray
    distance: np.ndarray
    nearest: np.ndarray


@dataclass(frozen=True)
class _Negatives(Task):
    """A search for what is of another class, and of the groups that the rule allows."""

    rule: GroupRule = "any"

    def left_out(self, queries: np.ndarray, items: np.ndarray) -> np.ndarray:
        forbidden: np.ndarray = self.labels[items] == self.labels[queries][:, None]
        if self.rule == "other" and self.groups is not None:
            forbidden |= self.groups[items] == self.groups[queries][:, None]
        return forbidden


def _searched(rule: GroupRule, task: Task, asked: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions in `asked`, and the rows that are searched for them: all, or under "same" each group for itself."""
    if not len(asked):
        return
    if rule != "same" or task.groups is None:
        yield np.arange(len(asked)), task.gallery_rows
        return
    order = np.argsort(task.groups, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(task.groups))[:-1])
    for group in np.unique(task.groups[asked]):
        yield np.flatnonzero(task.groups[asked] == group), members[group]


def _within_classes(
    vectors: np.ndarray, labels: np.ndarray, distance: Distance
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Some rows of a class, all rows of it (two or more, ascending), and the float64 distances between them."""
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.cumsum(np.bincount(labels))[:-1]):
        if len(members) < 2:
            continue
        own = np.asarray(vectors[members], dtype=np.float64)
        own = unit_length(own) if distance == "cosine" else own
        step = max(1, _CELLS // len(members))
        for start in range(0, len(members), step):
            found = cdist(own[start : start + step], own)
            yield members[start : start + step], members, found**2 / 2 if distance == "cosine" else found


def _none(window: int) -> HardNegatives:
    rows, distances = np.empty(0, dtype=np.int64), np.empty(0)
    empty = np.empty((0, window), dtype=np.int64)
    return HardNegatives(rows, rows, distances, empty, empty.astype(np.float64), Dropped(0, 0, 0, 0))
