"""Distances and the map: how far apart same and different classes are, and how the embedding looks from above."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lossopt.report.chart import Chart, Series, density_chart, share_chart
from lossopt.report.findings import Findings
from lossopt.report.galleries import split_name
from lossopt.report.page import percent
from lossopt.report.record import without_paths
from lossopt.report.thumbnails import Pictures, Sprites, sprite_sheet
from lossopt.report.words import distance_name
from lossopt.retrieval.verification import Verification

_COLOURS = 12
_OPERATING = 200
_TILE = 48


class VerificationRow(NamedTuple):
    """One figure of verification in words."""

    name: str
    meaning: str
    value: str
    interval: str
    threshold: str


@dataclass(frozen=True)
class Distances:
    """operating: [threshold, TAR, FAR] along the axis. drawn: [low, high, left, right] of the axis and its drawing."""

    words: str
    densities: Chart | None
    roc: Chart | None
    rows: list[VerificationRow]
    operating: list[list[float]]
    threshold: float
    drawn: list[float]


class Point(NamedTuple):
    """A point of the map: colour, class (as a number) and what is said of it; miss: its first neighbour is wrong."""

    kind: str
    code: int
    class_name: str
    words: str
    miss: bool


class MapLayout(NamedTuple):
    """A map, its coordinates in units of a drawing with sides of 1000."""

    name: str
    how: str
    at: list[tuple[int, int]]


@dataclass(frozen=True)
class MapView:
    """legend: (colour, words), the most frequent first. judged: whether first neighbours are known to be right."""

    words: str
    points: list[Point]
    layouts: list[MapLayout]
    legend: list[tuple[str, str]]
    sprites: Sprites | None
    judged: bool


def distances_view(findings: Findings) -> Distances:
    """Histograms of both kinds of pairs, the ROC, and its figures with their thresholds."""
    found, bars = findings.verification, findings.histograms
    if found is None or bars is None:
        words = (
            "There are no pairs of both kinds to compare: verification needs two classes, one of them with two images."
        )
        return Distances(words, None, None, [], [], 0.0, [])
    edges, widths = bars.edges, np.diff(bars.edges)
    tar, far = (np.clip(np.cumsum(density * widths), 0, 1) for density in (bars.positive, bars.negative))
    kept = np.unique(np.linspace(0, len(widths) - 1, min(_OPERATING, len(widths))).astype(np.int64))
    threshold = found.threshold
    chosen = found.at_eer.threshold if threshold is None else threshold.value
    if findings.kept is not None:
        chosen = findings.kept[0].value
    densities = density_chart(
        "How far apart pairs are",
        edges,
        [("same class", "positive", bars.positive), ("different classes", "negative", bars.negative)],
        f"{distance_name(findings.result.distance)} distance",
        [] if chosen is None else [(chosen, f"threshold {chosen:.3g}")],
        "Each outline is scaled to its own height: there are "
        f"{found.all_negatives / max(1, found.all_positives):,.0f} times as many pairs of different classes.",
    )
    sampled = "" if found.negatives == found.all_negatives else " (drawn at random)"
    return Distances(
        words=f"In {percent(found.auc, 2)} of cases two images of one class are nearer to each other than two images "
        f"of different classes are (ROC AUC). Compared: {found.positives:,} of {found.all_positives:,} pairs of one "
        f"class and {found.negatives:,} of {found.all_negatives:,} of different ones{sampled}.{_kept_words(findings)}",
        densities=densities,
        roc=_roc(findings, found),
        rows=_verification_rows(found),
        operating=[[round(float(v), 6) for v in (edges[i + 1], tar[i], far[i])] for i in kept],
        threshold=0.0 if chosen is None else chosen,
        drawn=[float(edges[0]), float(edges[-1]), densities.area[0], densities.area[1]],
    )


def _kept_words(findings: Findings) -> str:
    """What the threshold that was chosen on validation does here, in a sentence; nothing without one."""
    if findings.kept is None:
        return ""
    threshold, here = findings.kept
    aim = "the equal error rate" if threshold.target_far is None else f"a FAR of {percent(threshold.target_far, 0)}"
    low_high = "" if threshold.low is None else f" ({threshold.low:.3g} to {threshold.high:.3g})"
    return (
        f" The threshold of {threshold.value:.3g}{low_high} was chosen on the validation split for {aim}; here it "
        f"accepts {percent(here.tar)} of the pairs of one class and {percent(here.far, 2)} of the others."
    )


def _roc(findings: Findings, found: Verification) -> Chart:
    least = 1e-4
    far, tar = found.curve[:, 0], found.curve[:, 1]
    inside = far >= least
    x, y = np.log10(far[inside]), tar[inside]
    if (~inside).any():  # begin at the axis, at what was reached before it
        x, y = np.append(-4.0, x), np.append(tar[~inside].max(), y)
    even = np.linspace(-4, 0, 60)
    at = found.threshold if findings.kept is None else findings.kept[1]
    marked = [] if at is None or at.far < least else [(float(np.log10(at.far)), at.tar, "the threshold")]
    return share_chart(
        "Which share of each kind a threshold accepts",
        [Series("this model", "main", x, y), Series("chance", "by-chance", even, 10**even)],
        "accepted of different classes (FAR)",
        [(-4.0, "0.01 %"), (-3.0, "0.1 %"), (-2.0, "1 %"), (-1.0, "10 %"), (0.0, "100 %")],
        y_label="% accepted of one class (TAR)",
        note="ROC with a logarithmic axis: the left is where thresholds are used.",
        room=84,
        marked=marked,
    )


def _verification_rows(found: Verification) -> list[VerificationRow]:
    def within(name: str) -> str:
        bounds = found.intervals.get(name)
        return "" if bounds is None else f"{100 * bounds[0]:.2f} to {percent(bounds[1], 2)}"

    def at(threshold: float | None) -> str:
        return "–" if threshold is None else f"{threshold:.4g}"

    rows = [
        VerificationRow(
            "ROC AUC", "chance that the pair of one class is the nearer one", percent(found.auc, 2), within("auc"), ""
        ),
        VerificationRow(
            *("EER", "where as many are wrongly accepted as wrongly refused", percent(found.eer, 2), within("eer")),
            at(found.at_eer.threshold),
        ),
    ]
    for rate, point in found.at_far.items():
        name, meaning = f"TAR at FAR {100 * rate:g} %", f"accepted of one class, while 1 in {1 / rate:,.0f} others is"
        if point is None:
            rows.append(VerificationRow(name, "too few pairs of different classes for such a small rate", "–", "", ""))
        else:
            rows.append(
                VerificationRow(name, meaning, percent(point.tar, 2), within(f"tar@{rate:g}"), at(point.threshold))
            )
    if found.threshold is not None and found.threshold.low is not None and found.threshold.high is not None:
        chosen = found.threshold
        aim = "the equal error rate" if chosen.target_far is None else f"FAR {100 * chosen.target_far:g} %"
        rows.append(
            VerificationRow(
                *("Threshold kept", f"chosen for {aim}", f"{chosen.value:.4g}"),
                *(f"{chosen.low:.4g} to {chosen.high:.4g}", f"{chosen.value:.4g}"),
            )
        )
    return rows


def map_view(findings: Findings, pictures: Pictures) -> MapView:
    """The points of the map, coloured by class, by group, or by repeating colours where both are many."""
    vectors, drawn, result = findings.vectors, findings.map, findings.result
    labels = vectors.labels[drawn.rows]
    kinds, legend, by = _colours(findings)
    first = np.full(len(vectors), np.nan)
    if findings.first_right is not None:
        first[result.query_rows] = findings.first_right
    points = []
    for row, label, kind in zip(drawn.rows.tolist(), labels.tolist(), kinds, strict=True):
        miss = bool(first[row] < 0.5)
        words = without_paths(str(vectors.names[row])) + (", first neighbour wrong" if miss else "")
        points.append(Point(kind, label, without_paths(vectors.class_names[label]), words, miss))
    whole, every = len(drawn.rows) == len(vectors), drawn.classes == drawn.all_classes
    images = f"all {len(vectors):,} images" if whole else f"{len(drawn.rows):,} of {len(vectors):,} images"
    part = f"{images} of {drawn.classes:,} classes" if every else f"{images}, of {drawn.classes:,} classes out of "
    part += "" if every else f"{drawn.all_classes:,}, drawn at random"
    return MapView(
        words=f"Shown: {part}; {by}. A map is for looking: only distances in the embedding itself were measured.",
        points=points,
        layouts=[
            MapLayout(one.name, one.how, [(round(30 + 940 * x), round(970 - 940 * y)) for x, y in one.at.tolist()])
            for one in drawn.layouts
        ],
        legend=legend,
        sprites=sprite_sheet(pictures, drawn.rows.tolist(), _TILE),
        judged=findings.first_right is not None,
    )


def _colours(findings: Findings) -> tuple[list[str], list[tuple[str, str]], str]:
    """A colour per point, the legend, and words on what colours mean."""
    vectors, rows = findings.vectors, findings.map.rows
    labels = vectors.labels[rows]
    if findings.map.classes <= _COLOURS:
        return *_ranked(labels, vectors.class_names), "a colour is a class"
    groups, names = vectors.groups, vectors.group_names
    if groups is None and (upper := [split_name(name)[0].rstrip("/") for name in vectors.class_names]) and all(upper):
        names = tuple(dict.fromkeys(upper))
        groups = np.array([names.index(name) for name in upper])[vectors.labels]
    if groups is not None and len(np.unique(groups[rows])) > 1:
        return *_ranked(groups[rows], names), "a colour is a group"
    turn = np.random.default_rng(0).permutation(len(vectors.class_names))[labels] % _COLOURS
    return [f"k{number}" for number in turn], [], "a colour is a class, but colours repeat"


def _ranked(codes: np.ndarray, names: tuple[str, ...]) -> tuple[list[str], list[tuple[str, str]]]:
    """Colours for the most frequent; the others share grey."""
    numbers, counts = np.unique(codes, return_counts=True)
    order = numbers[np.argsort(-counts, kind="stable")]
    coloured = order if len(order) <= _COLOURS else order[: _COLOURS - 1]
    kind = {int(number): f"k{place}" for place, number in enumerate(coloured)}
    legend = [(kind[int(number)], without_paths(names[int(number)])) for number in coloured]
    if len(order) > len(coloured):
        legend.append(("rest", f"{len(order) - len(coloured)} others"))
    return [kind.get(int(code), "rest") for code in codes], legend
