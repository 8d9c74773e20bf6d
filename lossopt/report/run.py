"""The report of one run: a single HTML file without scripts or requests, in which every foreign text is escaped."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lossopt.data.dataset import LabelledImages, Splits
from lossopt.durable import write_whole
from lossopt.report.chart import HEIGHT, WIDTH, Chart, line_chart
from lossopt.report.galleries import (
    Row,
    chance_of_recall,
    choose_queries,
    gallery_rows,
    relevant_and_candidates,
)
from lossopt.report.record import RunRecord, read_record, without_paths
from lossopt.retrieval.evaluation import RetrievalResult

REPORT = "report.html"


class MetricRow(NamedTuple):
    """One line of the table of figures; shares in [0, 1], None where there is no figure."""

    name: str
    untrained: float | None
    best: float | None
    test: float
    test_all: float


class GalleryGroup(NamedTuple):
    """A heading and the queries below it."""

    title: str
    note: str
    rows: list[Row]


class Sign(NamedTuple):
    """One figure of the run's health and a sentence on what it means."""

    name: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Summary:
    """All figures of a report, before any HTML.

    headline: name of the metric in large type. chance: what a random order would reach in it, None for MAP@R.
    """

    record: RunRecord
    found: RetrievalResult
    headline: str
    chance: float | None
    metrics: list[MetricRow]
    charts: list[Chart]
    galleries: list[GalleryGroup]
    health: list[Sign]


def write_run_report(folder: Path, found: RetrievalResult, table: LabelledImages, splits: Splits) -> Path:
    """Writes `report.html` into a run folder; an earlier one is replaced as a whole.

    Args:
        folder: of the run; its metrics.jsonl, config.yaml, environment.txt and checkpoint manifest are read.
        found: the evaluation of the best checkpoint on the test split.
        table: the images of that split.
        splits: of the run, for their description.

    Returns:
        The path of the page.

    Raises:
        DataError: the folder lacks a file of a run. LossoptError: the page cannot be written.
    """
    page = as_html(summarise(read_record(folder), found, table), splits.description, splits.class_disjoint)
    # names on disk need not be text: a byte that is not becomes a visible escape
    content = page.encode("utf-8", "backslashreplace")
    write_whole(folder / REPORT, lambda file: file.write(content))
    return folder / REPORT


def as_html(summary: Summary, description: str, class_disjoint: bool) -> str:
    """The page. description: of the splits, in words; class_disjoint: whether training and test share no class."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "metric": metric_name, "distance": distance_text}
    return environment.get_template("run.html.j2").render(
        summary=summary,
        record=summary.record,
        found=summary.found,
        description=without_paths(description),
        class_disjoint=class_disjoint,
        without_paths=without_paths,
        width=WIDTH,
        height=HEIGHT,
    )


def summarise(record: RunRecord, found: RetrievalResult, table: LabelledImages) -> Summary:
    """Everything that the page shows, worked out."""
    headline = next(iter(found.metrics))
    chance = None
    if headline.startswith("recall@"):
        chance = chance_of_recall(*relevant_and_candidates(found, table), int(headline.removeprefix("recall@")))
    return Summary(
        record=record,
        found=found,
        headline=headline,
        chance=chance,
        metrics=_metrics(record, found),
        charts=_charts(record, headline),
        galleries=_galleries(found, table),
        health=_health(record, found),
    )


def percent(share: float | None, decimals: int = 1) -> str:
    """A share in [0, 1] in per cent; a dash for None."""
    return "–" if share is None else f"{100 * share:.{decimals}f}\N{NO-BREAK SPACE}%"


def metric_name(key: str) -> str:
    """The name of a metric as people write it."""
    return "MAP@R" if key == "map@r" else key


def distance_text(distance: float) -> str:
    """Three decimals while distances are small, four digits beyond."""
    return f"{distance:.3f}" if distance < 10 else f"{distance:.4g}"


def _metrics(record: RunRecord, found: RetrievalResult) -> list[MetricRow]:
    untrained = record.untrained.metrics if record.untrained else {}
    best = record.best.metrics if record.best else {}
    return [
        MetricRow(name, untrained.get(name), best.get(name), value, found.metrics_all_queries[name])
        for name, value in found.metrics.items()
    ]


def _charts(record: RunRecord, headline: str) -> list[Chart]:
    x_label = "images seen" if record.images is not None else "steps"
    charts = []
    for name in dict.fromkeys((headline, "map@r")):
        if name not in record.validation:
            continue
        x, y = record.validation[name]
        marked = [(0.0, "untrained")] if record.untrained else []
        if record.best and record.best.step > 0:
            marked.append((record.images_at(record.best.step), "best"))
        title = f"{metric_name(name)}, validation, %"
        charts.append(line_chart(title, x, 100 * y, x_label, marked=tuple(marked)))
    charts.append(line_chart("Training loss", *record.loss, x_label, decimals=3))
    return charts


def _galleries(found: RetrievalResult, table: LabelledImages) -> list[GalleryGroup]:
    score = found.per_query["map@r"]
    chosen = choose_queries(score, table.labels.numpy()[found.query_rows])
    words = (
        ("Worst", "Lowest average precision. Look here for wrong labels, unreadable images and look-alike classes."),
        ("Around the median", "What to expect from an ordinary query."),
        ("Best", "Highest average precision. If even these look wrong, doubt the labels or the split."),
    )
    return [
        GalleryGroup(title, note, gallery_rows(found, table, positions))
        for (title, note), positions in zip(words, chosen, strict=True)
        if positions
    ]


def _health(record: RunRecord, found: RetrievalResult) -> list[Sign]:
    collapse = found.collapse
    signs = [
        Sign(
            "Effective rank",
            f"{collapse.effective_rank:.1f} of {found.dimensions}",
            "How many directions the test embeddings use. Near 1 they lie on a line and say almost nothing.",
        ),
        Sign(
            "Spread",
            f"{collapse.spread:.2f}",
            "How far the embeddings, at unit length, spread around their mean: near 1 is wide, 0 is a single point.",
        ),
        Sign(
            "Ties at rank 1",
            percent(collapse.tie_share),
            "Queries whose nearest distance is shared by several images: duplicates in the data, or a collapse.",
        ),
    ]
    if record.dead_steps is not None:
        signs.append(
            Sign(
                "Steps with nothing to compare",
                percent(record.dead_steps),
                "Of the logged steps, those in which the miner found no pair or triplet: nothing was learnt in them.",
            )
        )
    if record.gradient_norm is not None:
        signs.append(
            Sign(
                "Gradient norm at the end",
                f"{record.gradient_norm:.3g}",
                "Length of the gradient over the last logged steps. Near 0 learning has stopped; growing, it diverges.",
            )
        )
    if record.embedding_norm is not None:
        signs.append(
            Sign("Embedding norm at the end", f"{record.embedding_norm:.3g}", _norm_meaning(record.embedding_norm))
        )
    return signs


def _norm_meaning(norm: float) -> str:
    if np.isclose(norm, 1.0, atol=5e-3):
        return "Mean length of an embedding in training; 1 means that the network scales them to unit length."
    return "Mean length of an embedding in training. It is not fixed to 1: near 0 they shrink to a point."
