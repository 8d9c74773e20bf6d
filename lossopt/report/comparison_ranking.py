"""The ranking of a comparison: one common axis for all means, intervals and seeds; what is far off is an arrow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lossopt.comparison.conclusion import TRAINED
from lossopt.comparison.result import Comparison, Run, Standing
from lossopt.report.chart import Tick, round_numbers

_MAIN = ("recall@1", "map@r")
_OFF = ("below", "above")
_CLEAR_OF = 2.5  # the axis leaves out what would make it longer than so many times what matters


class Spot(NamedTuple):
    """One seed: where, in per cent of the axis; kind: its status, or "below", "above" where it is off the axis."""

    at: float
    kind: str
    words: str


@dataclass(frozen=True)
class RankRow:
    """One standing. at: of its mean, None off the axis. interval: (left, right) in per cent of the axis, or None.

    off: "below" or "above" where the mean is off the axis, else "". changes: its overrides in words.
    """

    place: int
    standing: Standing
    trained: bool
    at: float | None
    interval: tuple[float, float] | None
    off: str
    spots: list[Spot]
    changes: str


@dataclass(frozen=True)
class Ranking:
    """The table. ticks: of the axis, in per cent of its length. cut: whether something is off the axis.

    others: metrics beside the primary one that have a column.
    """

    rows: list[RankRow]
    ticks: list[Tick]
    cut: bool
    others: list[str]


def ranking_of(comparison: Comparison) -> Ranking:
    """Every standing on one axis."""
    low, high = _bounds(comparison.standings)
    ticks = round_numbers(100 * low, 100 * high, 5)
    ends = (ticks[0] / 100, ticks[-1] / 100)
    rows = [_row(place, one, ends, comparison.metric) for place, one in enumerate(comparison.standings, start=1)]
    places = [Tick(round(_place(tick / 100, ends), 2), f"{tick:g}") for tick in ticks]
    cut = any(row.off or any(spot.kind in _OFF for spot in row.spots) for row in rows)
    there = {name for one in comparison.standings for name in one.means}
    others = [name for name in _MAIN if name in there and name != comparison.metric]
    return Ranking(rows, places, cut, others)


def _row(place: int, one: Standing, ends: tuple[float, float], metric: str) -> RankRow:
    off = _side(one.mean, ends)
    interval = None
    if one.interval is not None and not off:
        left, right = (min(max(_place(end, ends), 0.0), 100.0) for end in one.interval)
        interval = (left, right)
    return RankRow(
        place=place,
        standing=one,
        trained=one.role in TRAINED,
        at=None if off else _place(one.mean, ends),
        interval=interval,
        off=off,
        spots=[_spot(run, float(score), ends) for run, score in zip(one.runs, one.scores, strict=True)],
        changes=changes_in_words(one),
    )


def changes_in_words(one: Standing) -> str:
    """What a variant changes: the last parts of the keys and of the class paths."""
    return ", ".join(f"{key.rpartition('.')[2]} {_value_in_words(value)}" for key, value in one.overrides.items())


def _value_in_words(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        name = str(value.get("class_path", "")).rpartition(".")[2]
        inner = value.get("init_args", {k: v for k, v in value.items() if k != "class_path"}) or {}
        told = ", ".join(f"{key} {_value_in_words(v)}" for key, v in inner.items()) if isinstance(inner, dict) else ""
        return f"{name}({told})" if told else name
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text.rpartition(".")[2] if isinstance(value, str) and text.startswith(("lossopt.", "torch.")) else text


def _spot(run: Run, score: float, ends: tuple[float, float]) -> Spot:
    seed = "" if run.seed is None else f"seed {run.seed}: "
    status = "" if run.status == "finished" else f", {run.status}"
    side = _side(score, ends)
    at = {"below": 0.0, "above": 100.0}.get(side, _place(score, ends))
    return Spot(at, side or run.status, f"{seed}{100 * score:.2f} %{status}")


def _side(share: float, ends: tuple[float, float]) -> str:
    return "below" if share < ends[0] - 1e-9 else "above" if share > ends[1] + 1e-9 else ""


def _place(share: float, ends: tuple[float, float]) -> float:
    return round(100 * (share - ends[0]) / (ends[1] - ends[0]), 2)


def _bounds(standings: Sequence[Standing]) -> tuple[float, float]:
    """Everything, if that is not much longer than what the healthy trained variants need; else only these."""
    whole = _extent(standings)
    healthy = [one for one in standings if one.role in TRAINED and 2 * (one.failed + one.collapsed) < len(one.runs)]
    if len(healthy) < 2:
        return whole
    better = _extent(healthy[: max(2, -(-len(healthy) // 2))])
    bounds = _extent(healthy)
    if bounds[1] - bounds[0] > 2 * _CLEAR_OF * (better[1] - better[0]):
        bounds = better
    return whole if whole[1] - whole[0] <= _CLEAR_OF * (bounds[1] - bounds[0]) else bounds


def _extent(standings: Sequence[Standing]) -> tuple[float, float]:
    """From the least to the greatest of means, intervals and seeds; of means alone where a run went wrong."""
    values = [
        float(value)
        for one in standings
        for value in ((one.mean,) if one.failed or one.collapsed else (one.mean, *(one.interval or ()), *one.scores))
    ]
    finite = [value for value in values if np.isfinite(value)] or [0.0, 1.0]
    return min(finite), max(finite)
