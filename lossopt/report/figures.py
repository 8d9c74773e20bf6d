"""The figures of a page: the headline on its ruler, the table of metrics, the curves over k and over training."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lossopt.report.chart import Chart, Series, line_chart, share_chart
from lossopt.report.findings import Findings
from lossopt.report.page import metric_name, percent
from lossopt.report.record import RunRecord

Interval = tuple[float, float]
_AT_K = ("precision", "found", "ndcg")


@dataclass(frozen=True)
class Headline:
    """The metric in large type: its value, interval and chance, on a ruler and in words."""

    name: str
    value: float
    interval: Interval | None
    chance: float | None
    sentence: str
    described: str
    ruler_words: list[tuple[str, float, str]]


class Second(NamedTuple):
    """Another metric beside the headline."""

    name: str
    value: float
    interval: Interval | None
    meaning: str


class MetricRow(NamedTuple):
    """One line of the table of figures; shares in [0, 1], None where there is no figure."""

    name: str
    untrained: float | None
    best: float | None
    test: float
    test_all: float
    interval: Interval | None


@dataclass(frozen=True)
class FigureTable:
    """main: recall@k, MAP@R. others: without a cut-off. by_k: (k, one value of each of `kinds`)."""

    main: list[MetricRow]
    others: list[MetricRow]
    kinds: list[str]
    by_k: list[tuple[int, list[float]]]
    trained: bool
    left_out: bool


def headline(findings: Findings) -> Headline:
    """The first recall that was asked for."""
    result, name, k = findings.result, findings.headline, findings.ks[0]
    value, chance, interval = result.metrics[name], findings.chance, result.intervals.get(name)
    classes = len(np.unique(findings.task.labels[result.query_rows]))
    told = []
    if interval is not None:
        told.append(f"95 % interval {100 * interval[0]:.1f} to {percent(interval[1])} over {classes:,} classes")
    told.append(f"a random order would reach {percent(chance, 1 if chance > 0.005 else 2)}")
    hits = round(100 * value)
    nearest = "the nearest other image is" if k == 1 else f"at least one of the {k:,} nearest other images is"
    near_end = 0 if 100 * value > 18 else 1
    return Headline(
        name=name,
        value=value,
        interval=interval,
        chance=chance,
        sentence=f"Out of 100 queries, {hits} succeed: {nearest} of the query's class.",
        described="; ".join(told) + ".",
        ruler_words=[("0", 0.0, "first"), ("100 %", 100.0, "last")][near_end:],
    )


def seconds(findings: Findings) -> list[Second]:
    """What stands below the headline: MAP@R, which asks for all images of the class and not for one."""
    result = findings.result
    meaning = "how much of each class comes first, not only its nearest image"
    return [Second("map@r", result.metrics["map@r"], result.intervals.get("map@r"), meaning)]


def figure_table(findings: Findings, record: RunRecord | None) -> FigureTable:
    """All metrics at the cut-offs asked for, beside those of the validation split where a run has them."""
    result = findings.result
    untrained = record.untrained.metrics if record is not None and record.untrained else {}
    best = record.best.metrics if record is not None and record.best else {}

    def row(name: str) -> MetricRow:
        return MetricRow(
            *(name, untrained.get(name), best.get(name), result.metrics[name], result.metrics_all_queries[name]),
            result.intervals.get(name),
        )

    kinds = [kind for kind in _AT_K if f"{kind}@{findings.ks[0]}" in result.metrics]
    return FigureTable(
        main=[row(f"recall@{k}") for k in findings.ks] + [row("map@r")],
        others=[row(name) for name in ("r_precision", "map", "mrr") if name in result.metrics],
        kinds=[{"ndcg": "NDCG@k"}.get(kind, f"{kind}@k") for kind in kinds],
        by_k=[(k, [result.metrics[f"{kind}@{k}"] for kind in kinds]) for k in findings.ks],
        trained=record is not None,
        left_out=result.excluded > 0,
    )


def recall_chart(findings: Findings, record: RunRecord | None) -> Chart:
    """recall@k over k on a logarithmic axis, with its interval, chance, and validation before and after training."""
    curve, ks = findings.curve, [point.k for point in findings.curve]
    x, y = np.log2(ks), np.array([point.value for point in curve])
    bounds = [point.interval for point in curve if point.interval is not None]
    low, high = np.array(bounds).T if bounds else (None, None)
    series = [Series("recall" if record is None else "test", "main", x, y, low, high)]
    for measured, words, kind in (
        (record.best if record is not None else None, "validation", "validation"),
        (record.untrained if record is not None else None, "untrained", "before"),
    ):
        there = [k for k in ks if measured is not None and f"recall@{k}" in measured.metrics]
        if measured is not None and there:
            of = np.array([measured.metrics[f"recall@{k}"] for k in there])
            series.append(Series(words, kind, np.log2(there), of))
    series.append(Series("chance", "by-chance", x, np.array([point.chance for point in curve])))
    note = "Band: 95 % interval, by drawing classes anew." if low is not None else ""
    if len(series) > 2:
        note += " Validation and untrained: on the validation split, whose gallery is another."
    step = max(1, -(-len(ks) // 9))
    ticks = [(float(np.log2(k)), f"{k:,}") for k in ks[::step]]
    return share_chart("recall@k", series, "k nearest images", ticks, y_label="% of queries", note=note.strip())


def learning_charts(record: RunRecord, first: str) -> list[Chart]:
    """Validation figures and the loss over training."""
    x_label = "images seen" if record.images is not None else "steps"
    charts = []
    for name in dict.fromkeys((first, "map@r")):
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
