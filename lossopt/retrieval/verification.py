"""Same class or not, from one distance: AUC, EER, TAR at a given FAR, and a threshold to keep with the model.

Conventions of the ROC are in roc.py, what a pair is in pairs.py. Letters: p pairs, c classes, b bins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lossopt.errors import EvaluationError
from lossopt.retrieval.index import Distance
from lossopt.retrieval.intervals import Interval, expanded_tail
from lossopt.retrieval.pairs import Pairs
from lossopt.retrieval.roc import OperatingPoint, Roc

FARS = (1e-1, 1e-2, 1e-3, 1e-4)
TARGET_FAR = 1e-2  # 1,000 negative pairs suffice, which 50 images have; a rarer one hangs on few pairs of classes
_FALSE_ACCEPTS = 10  # negative pairs that a FAR must stand on
_FEWEST_CLASSES = 4  # with fewer, many resamples have a single class and no negative pair
_READINGS = 2_048  # steps at which the ROC of a resample is read, twice: evenly, and by the logarithm of the FAR


@dataclass(frozen=True)
class Threshold:
    """A distance to decide by, kept with the model.

    value: accept a pair up to this distance. low, high: its 95 % interval over classes; None with too few of them.
    far, tar: shares accepted where it was chosen. target_far: what it was chosen for; None: the equal error rate.
    distance, normalised: of the vectors it holds for. pairs: how many it was chosen on.
    """

    value: float
    low: float | None
    high: float | None
    far: float
    tar: float
    target_far: float | None
    distance: Distance
    normalised: bool
    pairs: int

    def as_json(self) -> dict[str, Any]:
        """JSON types; `Threshold(**content)` reads it back."""
        return asdict(self)


@dataclass(frozen=True)
class Verification:
    """How well one distance tells pairs of one class from pairs of two.

    auc, eer: see `Roc`. at_eer: the step nearest to the EER. at_far: the step of each FAR asked for; None: the FAR
    would stand on fewer than 10 negative pairs. threshold: None if its FAR would, or if no distance is that strict.
    intervals: 95 %, over classes, of "auc", "eer" and "tar@FAR"; empty with fewer than four classes.
    positives, negatives: pairs compared, out of all_positives and all_negatives. classes: in those pairs.
    curve: (at most 501, 2) FAR and TAR, for a picture.
    """

    auc: float
    eer: float
    at_eer: OperatingPoint
    at_far: dict[float, OperatingPoint | None]
    threshold: Threshold | None
    intervals: dict[str, Interval]
    positives: int
    negatives: int
    all_positives: int
    all_negatives: int
    classes: int
    distance: Distance
    normalised: bool
    curve: np.ndarray = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self) | {
            "at_eer": self.at_eer._asdict(),
            "at_far": {f"{far:g}": point and point._asdict() for far, point in self.at_far.items()},
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "curve": self.curve.tolist(),
        }

    def as_text(self) -> str:
        """A line per figure, then what was compared."""
        lines = [
            f"{'ROC AUC':<11}{100 * self.auc:6.2f} %{self._between('auc')}",
            f"{'EER':<11}{100 * self.eer:6.2f} %{self._between('eer')}",
        ]
        for far, point in self.at_far.items():
            name = f"TAR@{far:g}"
            if point is None:
                needed = f"{_FALSE_ACCEPTS / far:,.0f} pairs of two classes are needed, there are {self.negatives:,}"
                lines.append(f"{name:<11}not given: {needed}")
            else:
                at = "no distance is so strict" if point.threshold is None else f"distance <= {point.threshold:.4g}"
                lines.append(f"{name:<11}{100 * point.tar:6.2f} %{self._between(name.lower())}, {at}")
        if self.threshold is not None:
            chosen = self.threshold
            aim = "EER" if chosen.target_far is None else f"FAR {chosen.target_far:g}"
            between = "" if chosen.low is None or chosen.high is None else f" ({chosen.low:.4g} to {chosen.high:.4g})"
            lines.append(f"threshold for {aim}: distance <= {chosen.value:.4g}{between}")
        kind = f"{self.distance} distance{', vectors of length 1' if self.normalised else ''}"
        lines.append(
            f"{_of(self.positives, self.all_positives)} pairs of one class, "
            f"{_of(self.negatives, self.all_negatives)} of two; {self.classes:,} classes, {kind}"
        )
        return "\n".join(lines)

    def _between(self, name: str) -> str:
        interval = self.intervals.get(name)
        return "" if interval is None else f" ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})"


def _of(here: int, there: int) -> str:
    return f"{here:,}" if here == there else f"{here:,} of {there:,}"


def verify(
    pairs: Pairs,
    fars: Sequence[float] = FARS,
    target_far: float | None = TARGET_FAR,
    resamples: int = 500,
    seed: int = 0,
) -> Verification:
    """The figures of some pairs, and the threshold for `target_far`.

    Args:
        pairs: see `draw_pairs`.
        fars: false accept rates at which TAR is wanted.
        target_far: what the threshold is chosen for; None: the equal error rate.
        resamples: of the classes, for the intervals; 0: none.
        seed: of the resamples.

    Raises:
        ValueError: a FAR that is not between 0 and 1.
    """
    aims = [*fars] if target_far is None else [*fars, target_far]
    if not all(0 < far < 1 for far in aims):
        raise ValueError(f"A FAR is a share between 0 and 1, got fars={tuple(fars)}, target_far={target_far}.")
    given = {far: round(far * pairs.negatives, 6) >= _FALSE_ACCEPTS for far in aims}
    bench = _Bench(pairs)
    roc = bench.roc()
    read = [far for far in fars if given[far]]
    low_high = bench.intervals(read, target_far, resamples, np.random.default_rng(seed))
    low, high = low_high.pop("threshold", (None, None))
    at = roc.at_eer() if target_far is None else roc.at_far(target_far)
    threshold = None
    if at.threshold is not None and (target_far is None or given[target_far]):
        kind = (pairs.distance, pairs.normalised, len(pairs.distances))
        threshold = Threshold(at.threshold, low, high, at.far, at.tar, target_far, *kind)
    return Verification(
        auc=roc.auc(),
        eer=roc.eer(),
        at_eer=roc.at_eer(),
        at_far={far: roc.at_far(far) if given[far] else None for far in fars},
        threshold=threshold,
        intervals=low_high,
        positives=pairs.positives,
        negatives=pairs.negatives,
        all_positives=pairs.all_positives,
        all_negatives=pairs.all_negatives,
        classes=len(bench.classes),
        distance=pairs.distance,
        normalised=pairs.normalised,
        curve=roc.curve(),
    )


class _Bench:
    """Pairs in order of distance, whose ROC can be had as they are, or with every class drawn any number of times."""

    def __init__(self, pairs: Pairs) -> None:
        self.classes, codes = np.unique(pairs.classes, return_inverse=True)
        codes = codes.reshape(-1, 2)
        order = np.argsort(pairs.distances, kind="stable")
        positive, negative = order[pairs.same[order]], order[~pairs.same[order]]
        self.positive, (self.first, self.second) = codes[positive, 0], codes[negative].T.copy()
        self.steps = np.unique(pairs.distances)
        self.accepted = np.searchsorted(pairs.distances[positive], self.steps, side="right")
        self.falsely = np.searchsorted(pairs.distances[negative], self.steps, side="right")

    def roc(self) -> Roc:
        return Roc(self.steps, self.falsely / len(self.first), self.accepted / len(self.positive))

    def _weighted(self, times: np.ndarray, read: np.ndarray) -> Roc | None:
        """The ROC at some steps, with class i there times[i] times; None if that leaves no pair of a kind.

        Copies of a class are new classes: a positive pair counts as often as its class, a negative one as often as the
        product of its two. Two copies of one class are neither.
        """
        tar = np.append(0, np.cumsum(times[self.positive]))[self.accepted[read]]
        far = np.append(0, np.cumsum(times[self.first] * times[self.second]))[self.falsely[read]]
        return Roc(self.steps[read], far / far[-1], tar / tar[-1]) if far[-1] and tar[-1] else None

    def intervals(
        self, fars: Sequence[float], target_far: float | None, resamples: int, rng: np.random.Generator
    ) -> dict[str, Interval]:
        """95 % intervals of every figure and of the threshold, classes drawn with replacement.

        Source: Davezies, D'Haultfœuille & Guyonvarch 2021, Annals of Statistics 49 (bootstrap of pairs by their units).
        """
        c = len(self.classes)
        if c < _FEWEST_CLASSES or not resamples:
            return {}
        read = self._readings()
        drawn = []
        for _ in range(resamples):
            times = np.bincount(rng.integers(c, size=c), minlength=c).astype(np.uint16)
            roc = self._weighted(times, read)
            if roc is not None:
                at = roc.at_eer() if target_far is None else roc.at_far(target_far)
                distance = self.steps[0] if at.threshold is None else at.threshold
                drawn.append([roc.auc(), roc.eer(), distance, *(roc.at_far(far).tar for far in fars)])
        tail = expanded_tail(c)
        bounds = np.quantile(np.array(drawn), [tail, 1 - tail], axis=0)
        names = ["auc", "eer", "threshold", *(f"tar@{far:g}" for far in fars)]
        return {name: (float(low), float(high)) for name, (low, high) in zip(names, bounds.T, strict=True)}

    def _readings(self) -> np.ndarray:
        """Which steps: all if they are few, else close together where FAR is small, and the last."""
        evenly = np.linspace(0, len(self.steps) - 1, _READINGS).astype(np.int64)
        counts = np.unique(np.geomspace(1, len(self.first), _READINGS).astype(np.int64))
        before = np.searchsorted(self.falsely, counts, side="right") - 1  # the last step with so many false accepts
        return np.unique(np.concatenate([evenly, np.maximum(before, 0)]))


def kept_threshold(provenance: Mapping[str, Any]) -> Threshold | None:
    """The threshold that came along with some vectors or an index; None: none did, or it is of another kind."""
    content = provenance.get("threshold")
    try:
        return Threshold(**content) if isinstance(content, dict) else None
    except TypeError:  # fields of another version
        return None


class Applied(NamedTuple):
    """What a kept threshold does to other pairs. far, tar: shares accepted; positives, negatives: pairs."""

    far: float
    tar: float
    positives: int
    negatives: int


def apply_threshold(threshold: Threshold, pairs: Pairs) -> Applied:
    """FAR and TAR of a threshold that was chosen elsewhere: on validation, for instance, applied to test.

    Raises:
        EvaluationError: the pairs are measured in another distance, or their vectors are (not) of length 1.
    """
    kept, here = (threshold.distance, threshold.normalised), (pairs.distance, pairs.normalised)
    if kept[0] != here[0] or (kept[0] == "euclidean" and kept[1] != here[1]):
        words = [f"{distance} distance, vectors {'' if unit else 'not '}of length 1" for distance, unit in (kept, here)]
        raise EvaluationError(
            f"The threshold was chosen for {words[0]}; these pairs have {words[1]}. Choose one for them."
        )
    accepted = pairs.distances <= threshold.value
    return Applied(
        far=float(accepted[~pairs.same].mean()),
        tar=float(accepted[pairs.same].mean()),
        positives=pairs.positives,
        negatives=pairs.negatives,
    )


class DistanceHistograms(NamedTuple):
    """edges: (b + 1,) distances. positive, negative: (b,) densities, each of area 1."""

    edges: np.ndarray
    positive: np.ndarray
    negative: np.ndarray


def distance_histograms(pairs: Pairs, bins: int = 60) -> DistanceHistograms:
    """Both kinds of pairs over the same bins; the outermost hold the 0.05 % that lie farther out."""
    low, high = np.quantile(pairs.distances, [0.0005, 0.9995])
    inside = np.clip(pairs.distances, low, high)
    edges = np.histogram_bin_edges(inside, bins)
    positive, negative = (np.histogram(inside[kind], edges, density=True)[0] for kind in (pairs.same, ~pairs.same))
    return DistanceHistograms(edges, positive, negative)
