"""The tables and figures of a page for W&B, from the same findings, so that the two cannot disagree."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lossopt.report.classes import MOST_ROWS
from lossopt.report.findings import Findings
from lossopt.report.galleries import NEIGHBOURS_SHOWN
from lossopt.report.record import without_paths
from lossopt.report.thumbnails import Pictures
from lossopt.retrieval.breakdown import Part
from lossopt.tracking import Gallery, Neighbour

_QUERIES = 20
_PAIRS = 24

Cell = str | int | float | bool | np.ndarray | None


class LoggedTable(NamedTuple):
    """A table to log; line: two columns to draw as a curve, the second over the first. An array is an image."""

    name: str
    columns: list[str]
    rows: list[list[Cell]]
    line: tuple[str, str] | None = None


def logged_tables(findings: Findings, pictures: Pictures) -> list[LoggedTable]:
    """Recall over k, classes, groups, confusions, distances, ROC, maps, suspected labels, near-duplicates."""
    bars, verification = findings.histograms, findings.verification
    tables = [
        LoggedTable(
            "recall_at_k",
            ["k", "recall", "low", "high", "chance"],
            [[point.k, point.value, *(point.interval or (None, None)), point.chance] for point in findings.curve],
            ("k", "recall"),
        ),
        LoggedTable("classes", *_parts(findings, findings.classes, "class")),
        LoggedTable("groups", *_parts(findings, findings.groups, "group")),
        LoggedTable("seen_classes", *_parts(findings, findings.seen, "class was")),
        _confusions(findings, pictures),
        _map(findings),
        _suspects(findings, pictures),
        _duplicates(findings, pictures),
    ]
    if bars is not None and verification is not None:
        middles = (bars.edges[:-1] + bars.edges[1:]) / 2
        columns = ["distance", "same class", "different classes"]
        tables.append(LoggedTable("distances", columns, np.stack([middles, bars.positive, bars.negative], 1).tolist()))
        tables.append(LoggedTable("roc", ["FAR", "TAR"], verification.curve.tolist(), ("FAR", "TAR")))
    return [table for table in tables if table.rows]


def logged_galleries(findings: Findings, pictures: Pictures) -> list[Gallery]:
    """Some queries with what they found, evenly spaced from the worst average precision to the best."""
    result, labels, names = findings.result, findings.vectors.labels, findings.vectors.class_names
    order = np.argsort(result.per_query["map@r"], kind="stable")
    spaced = order[np.linspace(0, len(order) - 1, min(_QUERIES, len(order)), dtype=np.int64)]
    positions = list(dict.fromkeys(spaced.tolist()))
    near = findings.nearest_of(positions, NEIGHBOURS_SHOWN)
    galleries = []
    for place, query in enumerate(result.query_rows[positions].tolist()):
        rows = [int(row) for row in near.rows[place] if row >= 0]
        asked, *images = pictures.read([query, *rows])
        if asked is None:
            continue
        found = [
            Neighbour(image, without_paths(names[labels[row]]), float(distance), bool(labels[row] == labels[query]))
            for image, row, distance in zip(images, rows, near.distances[place], strict=False)
            if image is not None
        ]
        galleries.append(Gallery(asked, without_paths(names[labels[query]]), found))
    return galleries


def _parts(findings: Findings, parts: Sequence[Part], kind: str) -> tuple[list[str], list[list[Cell]]]:
    metrics = (findings.headline, "map@r")
    rows: list[list[Cell]] = [
        [without_paths(part.name), part.queries, *(part.metrics[name] for name in metrics)]
        for part in parts[:MOST_ROWS]
    ]
    return [kind, "queries", *metrics], rows


def _confusions(findings: Findings, pictures: Pictures) -> LoggedTable:
    names = findings.vectors.class_names
    rows = []
    for pair in findings.confusions.pairs[:_PAIRS]:
        counts: list[Cell] = [pair.first_as_second, pair.second_as_first, pair.queries]
        classes = [without_paths(names[pair.first]), without_paths(names[pair.second])]
        rows.append([*classes, *counts, *pictures.read(pair.examples[0])])
    columns = ["class", "taken for", "times", "other way", "queries of both", "query", "found"]
    return LoggedTable("confusions", columns, rows)


def _map(findings: Findings) -> LoggedTable:
    drawn, vectors = findings.map, findings.vectors
    axes = np.concatenate([layout.at for layout in drawn.layouts], axis=1)
    columns = [f"{layout.name} {axis}" for layout in drawn.layouts for axis in "xy"]
    rows: list[list[Cell]] = [
        [*at, without_paths(vectors.class_names[vectors.labels[row]]), without_paths(str(vectors.names[row]))]
        for row, at in zip(drawn.rows.tolist(), axes.tolist(), strict=True)
    ]
    return LoggedTable("map", [*columns, "class", "name"], rows)


def _suspects(findings: Findings, pictures: Pictures) -> LoggedTable:
    names, files = findings.vectors.class_names, findings.vectors.names
    rows = []
    for doubt in findings.suspects[:_PAIRS]:
        told: list[Cell] = [
            without_paths(text) for text in (str(files[doubt.row]), names[doubt.label], names[doubt.rival])
        ]
        rows.append([*told, doubt.score, *pictures.read([doubt.row, doubt.examples[0]])])
    return LoggedTable("suspected_labels", ["name", "labelled", "looks like", "score", "image", "rival"], rows)


def _duplicates(findings: Findings, pictures: Pictures) -> LoggedTable:
    files = findings.vectors.names
    rows = []
    for pair in findings.duplicates.pairs[:_PAIRS]:
        told: list[Cell] = [without_paths(str(files[row])) for row in (pair.first, pair.second)]
        rows.append([*told, pair.distance, pair.same_class, *pictures.read([pair.first, pair.second])])
    return LoggedTable("near_duplicates", ["one", "other", "distance", "same class", "image", "other image"], rows)
