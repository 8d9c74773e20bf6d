"""Classes and groups on a page: their figures, the worst first, and what each is most often taken for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lossopt.report.findings import Findings
from lossopt.report.galleries import Album, Shown, split_name
from lossopt.report.page import metric_name, percent
from lossopt.report.record import without_paths
from lossopt.report.thumbnails import Pictures, Thumbnail, Thumbnails
from lossopt.retrieval.breakdown import Part

MOST_ROWS = 1_000
_PAIRS = 12
_SIDE = 44  # pixels of a class's image


class ClassRow(NamedTuple):
    """A line of the table of classes; first, second: the headline's metric and MAP@R."""

    above: str
    leaf: str
    image: Thumbnail | None
    queries: int
    first: float
    second: float
    taken_for: str
    times: int


@dataclass(frozen=True)
class ClassTable:
    """metric: of the column `first`. words: above the table; note: what was cut."""

    metric: str
    words: str
    rows: list[ClassRow]
    pictures: bool
    note: str


class PartRow(NamedTuple):
    """A line of a breakdown by group, or by whether a class was seen."""

    name: str
    classes: int
    queries: int
    first: float
    second: float


class PartTable(NamedTuple):
    """A breakdown and its words; kind: head of its first column."""

    title: str
    words: str
    kind: str
    rows: list[PartRow]
    note: str


def class_table(findings: Findings, pictures: Pictures) -> ClassTable:
    """A row per class, the worst first; of very many classes the worst and the best."""
    parts, first = findings.classes, findings.headline
    worst = MOST_ROWS * 3 // 4
    kept = parts if len(parts) <= MOST_ROWS else [*parts[:worst], *parts[worst - MOST_ROWS :]]
    example, thumbnails = _first_rows(findings), Thumbnails(pictures, _SIDE)
    thumbnails.prepare([example[part.key] for part in kept])
    confused, names = findings.confusions, findings.vectors.class_names
    rows = []
    for part in kept:
        above, leaf = split_name(without_paths(part.name))
        other, times = int(confused.taken_for[part.key]), int(confused.times[part.key])
        image = thumbnails.of(example[part.key])
        word = "" if other < 0 else without_paths(names[other])
        rows.append(ClassRow(above, leaf, image, part.queries, part.metrics[first], part.metrics["map@r"], word, times))
    note = ""
    if len(kept) < len(parts):
        note = f"Of {len(parts):,} classes, the {worst:,} worst and the {MOST_ROWS - worst:,} best are listed."
    return ClassTable(first, _class_words(parts, first), rows, any(row.image for row in rows), note)


def _class_words(parts: Sequence[Part], first: str) -> str:
    values = np.array([part.metrics[first] for part in parts])
    metric = metric_name(first)
    if len(values) == 1:
        return f"There is one class; its {metric} is {percent(float(values[0]))}."
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return (
        f"Half of the {len(parts):,} classes reach a {metric} of {percent(float(middle))} or more, the middle 80 % lie "
        f"between {percent(float(low))} and {percent(float(high))}. Perfect: {int((values == 1).sum()):,}; at zero: "
        f"{int((values == 0).sum()):,}. The worst come first. Taken for: the class of the first wrong image among the "
        "R nearest (at most 10), most often."
    )


def _first_rows(findings: Findings) -> dict[int, int]:
    """The first query row of each class."""
    rows = findings.result.query_rows
    labels, first = np.unique(findings.vectors.labels[rows], return_index=True)
    return dict(zip(labels.tolist(), rows[first].tolist(), strict=True))


def part_tables(findings: Findings) -> list[PartTable]:
    """By group, and by whether training saw the class, where those are known."""
    labels = findings.vectors.labels[findings.result.query_rows]
    tables = []
    for title, kind, parts, keys, words in (
        ("Group by group", "group", findings.groups, findings.group_of_query, "The worst first."),
        (
            *("Classes seen and unseen in training", "class was", findings.seen, findings.seen_of_query),
            "The unseen ones tell what to expect of new classes.",
        ),
    ):
        if parts and keys is not None:
            rows = [
                PartRow(
                    *(without_paths(part.name), len(np.unique(labels[keys == part.key])), part.queries),
                    *(part.metrics[findings.headline], part.metrics["map@r"]),
                )
                for part in parts[:MOST_ROWS]
            ]
            note = f"The worst {MOST_ROWS:,} of {len(parts):,} are listed." if len(parts) > MOST_ROWS else ""
            tables.append(PartTable(title, words, kind, rows, note))
    return tables


class PairCard(NamedTuple):
    """Two classes taken for each other; examples: (query, the wrong image that it found)."""

    first: str
    second: str
    words: str
    examples: list[tuple[Shown, Shown]]


class PairCards(NamedTuple):
    """words: above the pairs, the most frequent first."""

    words: str
    pairs: list[PairCard]


def pair_cards(findings: Findings, album: Album) -> PairCards:
    """The pairs of classes that queries mistake for each other most often, each with two examples."""
    pairs, names, labels = findings.confusions.pairs[:_PAIRS], findings.vectors.class_names, findings.vectors.labels
    if not pairs:
        return PairCards("No query met a wrong image before it had found all that it could.", [])
    cards = []
    for pair in pairs:
        forth = [rows for rows in pair.examples if labels[rows[0]] == pair.first]
        back = [rows for rows in pair.examples if labels[rows[0]] != pair.first]
        examples = [(album.shown(query), album.shown(found, False)) for query, found in (forth + back)[:2]]
        first, second = without_paths(names[pair.first]), without_paths(names[pair.second])
        words = f"{pair.first_as_second} times, the other way {pair.second_as_first}; {pair.queries} queries of both"
        cards.append(PairCard(first, second, words, examples))
    return PairCards(
        "Counted by the first wrong image that a query meets among its R nearest (at most 10). Of each pair: two "
        "queries, and the wrong image that each of them found.",
        cards,
    )
