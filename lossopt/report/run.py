"""The page of an evaluation: of a run, with its training, or of vectors alone, whoever made them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lossopt.data.dataset import LabelledImages, Splits
from lossopt.report import belief, figures
from lossopt.report.chart import Chart
from lossopt.report.classes import ClassTable, PairCards, PartTable, class_table, pair_cards, part_tables
from lossopt.report.doubts import Doubts, doubts_view
from lossopt.report.findings import Findings
from lossopt.report.galleries import NEIGHBOURS_SHOWN, Album, Row, choose_queries
from lossopt.report.page import render, write_page
from lossopt.report.record import RunRecord, read_record, without_paths
from lossopt.report.space import Distances, MapView, distances_view, map_view
from lossopt.report.thumbnails import FilePictures, Pictures, TablePictures, Thumbnails
from lossopt.report.training import TrainingView, training_check, training_view
from lossopt.report.words import definitions, distance_name, measured

REPORT = "report.html"
_CONTENTS = (
    *(("result", "Result"), ("belief", "Believe it?"), ("measured", "What was measured"), ("curves", "Curves")),
    ("training", "Training"),
    *(("classes", "Classes"), ("confusions", "Confusions"), ("galleries", "What it finds"), ("distances", "Distances")),
    *(("map", "Map"), ("doubts", "Look again"), ("health", "Health"), ("definitions", "Definitions")),
    ("repeat", "Repeat it"),
)


class Gallery(NamedTuple):
    """A heading and the queries below it."""

    title: str
    note: str
    rows: list[Row]


class SplitTag(NamedTuple):
    """Whether training saw the classes, in two words and in a sentence."""

    tag: str
    words: str
    doubtful: bool


class LeftOut(NamedTuple):
    """Queries without anything to find, counted, and what they would change."""

    how_many: str
    words: str


class Steps(NamedTuple):
    """The headline's metric on the validation split before and after training."""

    untrained: float | None
    best: float | None
    epoch: int | None
    monitor: str


class Repeat(NamedTuple):
    """What somebody needs who wants the same figures."""

    commands: list[str]
    words: str
    facts: list[str]
    config: str


@dataclass(frozen=True)
class Subject:
    """What the page is about.

    name: in the title. where: completes "recall@1 ...". checkpoint: words below the headline. description: of the data.
    class_disjoint: whether training saw none of the classes; None: nobody knows. record: None without a run.
    """

    name: str
    where: str
    checkpoint: str
    description: str
    class_disjoint: bool | None
    repeat: Repeat
    record: RunRecord | None = None


@dataclass(frozen=True)
class Page:
    """Everything that the template shows, worked out."""

    name: str
    seed: int | None
    where: str
    checkpoint: str
    description: str
    contents: Sequence[tuple[str, str]]
    headline: figures.Headline
    seconds: list[figures.Second]
    withheld: belief.Withheld | None
    steps: Steps | None
    counts: list[tuple[str, str]]
    split_tag: SplitTag | None
    left_out: LeftOut | None
    checks: list[belief.Check]
    measured: list[tuple[str, str, str]]
    recall: Chart
    figures: figures.FigureTable
    learning: list[Chart]
    training: TrainingView | None
    classes: ClassTable
    breakdowns: list[PartTable]
    confusions: PairCards
    galleries: list[Gallery]
    distance: str
    distances: Distances
    map: MapView
    doubts: Doubts
    health: list[belief.Sign]
    definitions: list[tuple[str, str]]
    repeat: Repeat


def write_run_report(
    folder: Path, findings: Findings, table: LabelledImages, splits: Splits, page: Path | None = None
) -> Path:
    """Writes `report.html` into a run folder; an earlier one is replaced as a whole.

    Args:
        folder: of the run; its metrics.jsonl, config.yaml, environment.txt and checkpoint manifest are read.
        findings: about the embeddings of the best checkpoint on the test split.
        table: the images of that split.
        splits: of the run, for their description.
        page: where to write instead.

    Returns:
        The path of the page.

    Raises:
        DataError: the folder lacks a file of a run. LossoptError: the page cannot be written.
    """
    record = read_record(folder)
    subject = _run_subject(record, splits)
    return write_page(page or folder / REPORT, as_html(page_of(findings, TablePictures(table), subject)))


def write_vectors_report(path: Path, findings: Findings, name: str, folder: Path) -> Path:
    """Writes the page of vectors that no run is known of; their images are shown where their paths lead to some.

    Args:
        path: of the page.
        findings: about the vectors.
        name: in the title.
        folder: what relative paths of images begin at.

    Raises:
        LossoptError: the page cannot be written.
    """
    pictures = FilePictures(findings.vectors.paths, folder)
    return write_page(path, as_html(page_of(findings, pictures, _vectors_subject(findings, name))))


def as_html(page: Page) -> str:
    """The page as a file."""
    return render("evaluation.html.j2", {"page": page}, {"bare": bare})


def bare(share: float | None, decimals: int = 2) -> str:
    """A share in per cent without its sign, for columns; a dash for None."""
    return "–" if share is None else f"{100 * share:.{decimals}f}"


def page_of(findings: Findings, pictures: Pictures, subject: Subject) -> Page:
    """Everything that a page shows."""
    album, record, result = Album(findings.vectors, Thumbnails(pictures)), subject.record, findings.result
    return Page(
        name=subject.name,
        seed=None if record is None else record.seed,
        where=subject.where,
        checkpoint=subject.checkpoint,
        description=subject.description,
        contents=[entry for entry in _CONTENTS if record is not None or entry[0] != "training"],
        headline=figures.headline(findings),
        seconds=figures.seconds(findings),
        withheld=belief.withheld(findings),
        steps=None if record is None else _steps(record, findings.headline),
        counts=[
            *(("queries", f"{result.queries:,}"), ("gallery images", f"{result.gallery:,}")),
            *(("classes", f"{result.classes:,}"), ("queries left out", f"{result.excluded:,}")),
        ],
        split_tag=_split_tag(subject.class_disjoint),
        left_out=_left_out(findings),
        checks=belief.checks(findings, subject.class_disjoint) + training_check(record),
        measured=measured(findings),
        recall=figures.recall_chart(findings, record),
        figures=figures.figure_table(findings, record),
        learning=[] if record is None else figures.learning_charts(record, findings.headline),
        training=None if record is None else training_view(record),
        classes=class_table(findings, pictures),
        breakdowns=part_tables(findings),
        confusions=pair_cards(findings, album),
        galleries=_galleries(findings, album),
        distance=distance_name(result.distance),
        distances=distances_view(findings),
        map=map_view(findings, pictures),
        doubts=doubts_view(findings, album),
        health=belief.health(findings),
        definitions=definitions(findings),
        repeat=subject.repeat,
    )


def _run_subject(record: RunRecord, splits: Splits) -> Subject:
    images = "" if record.images is None else f", {record.images:,} images"
    epochs = "1 epoch" if record.epochs == 1 else f"{record.epochs} epochs"
    hidden = " Paths of the machine are left out below." if record.paths_hidden else ""
    facts = list(record.environment)
    if record.checkpoint_sha256:
        facts.append(f"best checkpoint sha256 {record.checkpoint_sha256}")
    return Subject(
        name=record.name,
        where="on the test split",
        checkpoint="best checkpoint" + ("" if record.best is None else f", epoch {record.best.epoch}"),
        description=splits.description,
        class_disjoint=splits.class_disjoint,
        repeat=Repeat(
            ["lossopt train --config config.yaml"],
            f"config.yaml lies in the folder of the run, {record.folder}. Seed {record.seed}; {epochs}, "
            f"{record.steps:,} steps{images}.{hidden}",
            facts,
            record.config,
        ),
        record=record,
    )


def _vectors_subject(findings: Findings, name: str) -> Subject:
    given = dict(findings.vectors.provenance)
    split, checkpoint = given.get("split"), given.get("checkpoint")
    result = findings.result
    rule = "" if result.exclude == "none" else f" --exclude {result.exclude.replace(' ', '-')}"
    ks = " ".join(str(k) for k in findings.ks)
    return Subject(
        name=name,
        where=f"on the {split} split" if split else "on these vectors",
        checkpoint=f"checkpoint {without_paths(str(checkpoint))}" if checkpoint else "",
        description=str(given.get("data") or ""),
        class_disjoint=findings.class_disjoint,
        repeat=Repeat(
            [f"lossopt report VECTORS --ks {ks} --distance {result.distance}{rule}"],
            "What the vectors say of where they come from:"
            if given
            else "The vectors do not say where they come from.",
            _facts(given),
            "",
        ),
    )


def _facts(given: dict[str, Any]) -> list[str]:
    """Provenance as lines; what is nested is joined with dots."""
    lines = []
    for key, value in given.items():
        if isinstance(value, dict):
            lines += [f"{key}.{line}" for line in _facts(value)]
        elif value is not None:
            lines.append(without_paths(f"{key}: {value}"))
    return lines


def _steps(record: RunRecord, name: str) -> Steps:
    return Steps(
        untrained=record.untrained.metrics.get(name) if record.untrained else None,
        best=record.best.metrics.get(name) if record.best else None,
        epoch=record.best.epoch if record.best else None,
        monitor=record.monitor,
    )


def _split_tag(class_disjoint: bool | None) -> SplitTag | None:
    if class_disjoint is None:
        return None
    if class_disjoint:
        return SplitTag("unseen classes", "No class of the test split was trained on.", False)
    words = "Test classes were also trained on (with other images), so this does not measure unseen classes."
    return SplitTag("known classes", words, True)


def _left_out(findings: Findings) -> LeftOut | None:
    result, name = findings.result, findings.headline
    if not result.excluded:
        return None
    one = result.excluded == 1
    both = (f"{100 * metrics[name]:.1f} %" for metrics in (result.metrics_all_queries, result.metrics))
    return LeftOut(
        f"{result.excluded:,} {'query has' if one else 'queries have'} nothing to find",
        f"(no other image of the class in what {'it searches' if one else 'they search'}) and {'is' if one else 'are'} "
        "left out. Counted as failures, {} would be {} instead of {}.".format(name, *both),
    )


def _galleries(findings: Findings, album: Album) -> list[Gallery]:
    result = findings.result
    score, rank = result.per_query["map@r"], 1 / result.per_query["mrr"]
    chosen = choose_queries(score, findings.vectors.labels[result.query_rows], result.per_query["mrr"])
    words = (
        (
            "Worst",
            "Lowest average precision, at most two of a class. Look here for wrong labels, unreadable images and "
            "look-alike classes.",
        ),
        (
            "Near misses",
            "The first neighbour is wrong and the second right; those that are right in all else come first.",
        ),
        ("Around the median", "What to expect from an ordinary query."),
        ("Best", "Highest average precision. If even these look wrong, doubt the labels or the split."),
    )
    galleries = []
    for (title, note), positions in zip(words, chosen, strict=True):
        if not positions:
            if title == "Near misses":
                galleries.append(Gallery(title, "No query has a wrong first neighbour and a right second one.", []))
            continue
        at = np.array(positions)
        near = findings.nearest_of(positions, NEIGHBOURS_SHOWN)
        rows = album.gallery(result.query_rows[at].tolist(), near, score[at], result.relevant[at], rank[at])
        galleries.append(Gallery(title, note, rows))
    return galleries
