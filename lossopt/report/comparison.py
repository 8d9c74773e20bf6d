"""The page of a comparison: which variant is best, whether that is shown, and all that the answer rests on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lossopt.comparison.conclusion import Conclusion, conclude, pair_of, trained_of
from lossopt.comparison.result import Comparison, PairComparison
from lossopt.comparison.statistics import FLIPS
from lossopt.health import Bounds
from lossopt.report.comparison_changes import Changes
from lossopt.report.comparison_curves import Learning, Sensitivity, learning_of, sensitivity_of
from lossopt.report.comparison_ranking import Ranking, ranking_of
from lossopt.report.comparison_runs import CostRow, Grid, Group, costs_of, grid_of, groups_of
from lossopt.report.difference import points
from lossopt.report.galleries import split_name
from lossopt.report.page import render, write_page
from lossopt.report.record import HIDDEN, as_yaml
from lossopt.retrieval.text import MEANINGS

_SIDE = 300.0  # of the picture of all queries
_ALL_SHOWN = 10  # so many verdicts are shown at once; of more, those of the leader
_FAR = 4.0  # times the usual difference: what lies further is beyond the axis
_RESOLVED = ("same for all", "resolved")  # of a plan: what follows from the rest, not to be written in one
_MARKS = {"better": "▲", "worse": "▼", "open": "○", "too few seeds": "…"}


class Cell(NamedTuple):
    """Row against column. kind: "better" (the row is), "worse", "open", "too few seeds"; mark: the same as a sign."""

    difference: float
    kind: str
    mark: str
    words: str


class MatrixRow(NamedTuple):
    """A variant against each in the order of the ranking, None against itself and where nothing was compared."""

    place: int
    variant: str
    cells: list[Cell | None]


class VerdictRow(NamedTuple):
    """A pair on the common axis. at, left, width: in per cent of it; at: None beyond it; left: None, no interval."""

    pair: PairComparison
    mark: str
    at: float | None
    left: float | None
    width: float | None


@dataclass(frozen=True)
class Verdicts:
    """Every pair. matrix: by rank. first: rows shown at once, others: folded away. zero: where no difference stands."""

    matrix: list[MatrixRow]
    first: list[VerdictRow]
    others: list[VerdictRow]
    zero: float
    axis: tuple[str, str]
    how: Sequence[str]


@dataclass(frozen=True)
class Page:
    """Everything that the template shows, worked out."""

    contents: Sequence[tuple[str, str]]
    conclusion: Conclusion
    metrics: list[str]
    ranking: Ranking
    verdicts: Verdicts
    learning: Learning
    costs: list[CostRow]
    groups: list[Group]
    grid: Grid
    unwatched: int
    tuning: list[Sensitivity]
    meaning: str
    settings: list[tuple[str, list[tuple[str, str, bool]]]]
    plan: str
    resolved: str
    paths_hidden: bool


def write_comparison_page(path: Path, comparison: Comparison, changes: Changes | None) -> Path:
    """Writes the page; an earlier one there is replaced as a whole.

    Args:
        path: of the HTML file.
        comparison: what was found.
        changes: query by query between two variants (`changes_between`); None leaves the section out.

    Returns:
        `path`.

    Raises:
        LossoptError: it cannot be written.
    """
    values = {
        "c": comparison,
        "page": page_of(comparison, changes),
        "changes": changes,
        "side": _SIDE,
        "split_name": split_name,
        "units": _units(comparison),
    }
    filters: dict[str, Callable[..., str]] = {"points": points, "bare": _bare, "p": p_text}
    filters |= {"duration": duration_text, "size": size_text}
    return write_page(path, render("comparison.html.j2", values, filters))


def page_of(comparison: Comparison, changes: Changes | None) -> Page:
    """Everything that the page shows, before any HTML."""
    plan = as_yaml({key: value for key, value in comparison.plan.items() if key not in _RESOLVED})
    resolved = {key: comparison.plan[key] for key in _RESOLVED if key in comparison.plan}
    metrics = dict.fromkeys([comparison.metric, *(name for one in comparison.standings for name in one.means)])
    tuning = [] if comparison.tuning is None else sensitivity_of(comparison.tuning, comparison.standings)
    return Page(
        contents=_contents(comparison, changes),
        conclusion=conclude(comparison),
        metrics=list(metrics),
        ranking=ranking_of(comparison),
        verdicts=verdicts_of(comparison),
        learning=learning_of(comparison),
        costs=costs_of(comparison),
        groups=groups_of(comparison),
        grid=grid_of(comparison),
        unwatched=sum(
            run.readings is not None and run.readings < Bounds().patience
            for one in comparison.standings
            for run in one.runs
        ),
        tuning=tuning,
        meaning=meaning_of(comparison.metric),
        settings=_settings(comparison),
        plan=plan,
        resolved=as_yaml(resolved) if resolved else "",
        paths_hidden=HIDDEN in plan,
    )


def verdicts_of(comparison: Comparison) -> Verdicts:
    """The matrix of all pairs, and a row for each on one axis that holds 0."""
    trained = [one.variant for one in trained_of(comparison)]
    matrix = [
        MatrixRow(place, name, [_cell(comparison, name, other) for other in trained])
        for place, name in enumerate(trained, start=1)
    ]
    ends = (0.0, 1.0)
    rows = []
    if comparison.pairs:
        ends = _axis(comparison.pairs)
        rows = [_verdict_row(pair, ends) for pair in comparison.pairs]
    if len(rows) <= _ALL_SHOWN:
        first, others = rows, []
    else:
        first = [row for row in rows if trained[0] in (row.pair.a, row.pair.b)]
        others = [row for row in rows if trained[0] not in (row.pair.a, row.pair.b)]
    return Verdicts(matrix, first, others, _place(0.0, ends), (points(ends[0]), points(ends[1])), _how(comparison))


def _axis(pairs: Sequence[PairComparison]) -> tuple[float, float]:
    """Bounds that hold 0 and what is not far beyond the usual: a collapsed variant must not make all others a point."""
    usual = float(np.median([abs(pair.difference) for pair in pairs]))
    held = [pair for pair in pairs if abs(pair.difference) <= _FAR * usual]
    ends = [0.0, *(value for pair in held for value in (pair.difference, *(pair.interval or ())))]
    most = _FAR * usual or 0.01
    low, high = max(min(ends), -most), min(max(ends), most)
    spare = 0.05 * (high - low or 0.01)
    return low - spare, high + spare


def _verdict_row(pair: PairComparison, ends: tuple[float, float]) -> VerdictRow:
    at = _place(pair.difference, ends)
    left = width = None
    if pair.interval is not None:
        left, right = (min(max(_place(end, ends), 0.0), 100.0) for end in pair.interval)
        width = right - left
    return VerdictRow(pair, _MARKS[pair.verdict], at if at <= 100 else None, left, width)


def _place(value: float, ends: tuple[float, float]) -> float:
    return 100 * (value - ends[0]) / (ends[1] - ends[0])


def meaning_of(metric: str) -> str:
    """What a metric is, in a sentence; "" for one that nobody described."""
    words = MEANINGS.get(metric) or MEANINGS.get(metric.partition("@")[0], "")
    return f"{words[0].upper()}{words[1:]}." if words else ""


def p_text(p: float | None) -> str:
    """A probability with as many decimals as it needs."""
    if p is None:
        return "–"
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def duration_text(seconds: float | None) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.3g}\N{NO-BREAK SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\N{NO-BREAK SPACE}min {rest:02d}\N{NO-BREAK SPACE}s"
    return f"{minutes // 60}\N{NO-BREAK SPACE}h {minutes % 60:02d}\N{NO-BREAK SPACE}min"


def size_text(nbytes: int | None) -> str:
    """Megabytes or gigabytes."""
    if nbytes is None:
        return "–"
    return f"{nbytes / 1e9:.1f}\N{NO-BREAK SPACE}GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f}\N{NO-BREAK SPACE}MB"


def _bare(share: float | None, decimals: int = 1) -> str:
    """Per cent without the sign, for a column that says so; a dash for None."""
    return "–" if share is None else f"{100 * share:.{decimals}f}"


def _cell(comparison: Comparison, row: str, column: str) -> Cell | None:
    pair = None if row == column else pair_of(comparison, row, column)
    if pair is None:
        return None
    kind = pair.verdict if pair.verdict != "better" or pair.a == row else "worse"
    difference = pair.difference if pair.a == row else -pair.difference
    return Cell(difference, kind, _MARKS[kind], pair.words)


def _how(comparison: Comparison) -> list[str]:
    """The test in plain words."""
    if not comparison.pairs:
        return []
    seeds, pairs = len(comparison.seeds), len(comparison.pairs)
    drawn = "all" if 2**seeds <= 2 * FLIPS else f"{FLIPS:,} drawn ones of the"
    patterns = f"{drawn} {2**seeds:,} ways of giving the {seeds} differences their signs"
    rule = "Holm's correction" if comparison.correction == "holm" else "The max-t correction"
    corrected = (
        f"{rule} for {pairs:,} comparisons keeps the chance of calling even one difference real that is not below "
        f"{100 * comparison.alpha:g} %."
    )
    return [
        "Variants are compared seed by seed: both runs of a seed begin with the same weights and see the same images "
        "in the same order. If two variants were alike, each difference could as well have the opposite sign: "
        f"p is the share of {patterns} that give a mean at least as far from 0.",
        corrected if pairs > 1 else "With one comparison nothing has to be corrected.",
    ]


def _settings(comparison: Comparison) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """(variant, (key, value, whether tuning chose it) of everything that it changes)."""
    return [
        (
            one.variant,
            [
                (key, as_yaml(value).removesuffix("...\n").strip(), key in one.tuned)
                for key, value in (dict(one.overrides) | dict(one.tuned)).items()
            ],
        )
        for one in trained_of(comparison)
    ]


def _units(comparison: Comparison) -> str:
    return {"class": "classes", "group": "groups"}[comparison.unit] if comparison.units != 1 else comparison.unit


def _contents(comparison: Comparison, changes: Changes | None) -> list[tuple[str, str]]:
    return [
        ("result", "Result"),
        *([("verdicts", "Each pair")] if comparison.pairs else []),
        ("learning", "Learning curves"),
        ("costs", "Cost"),
        ("runs", "Runs and health"),
        *([("changes", "Query by query")] if changes is not None else []),
        *([("tuning", "Tuning")] if comparison.tuning is not None else []),
        ("definitions", "Definitions"),
        ("repeat", "Repeat it"),
    ]
