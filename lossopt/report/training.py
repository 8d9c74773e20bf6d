"""How training went: what went wrong and since when, or that nothing did, with the figures that say so."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lossopt.health import Finding, HealthRecord, Kind, plain
from lossopt.report.belief import Check, State
from lossopt.report.chart import Chart, line_chart
from lossopt.report.record import Curve, RunRecord

TITLES: dict[Kind, str] = {
    "collapse": "The embeddings collapsed",
    "mean image": "Every image was rebuilt as the same one",
    "dead mining": "Mining died",
    "idle steps": "Steps with nothing to compare",
    "stuck": "Training was stuck",
    "exploding embeddings": "The embeddings grew out of bounds",
    "exploding gradient": "The gradient exploded",
    "non-finite": "A NaN or an infinity",
}
_NOT_ON_RECORD = "–"


class Trouble(NamedTuple):
    """One finding: what it is called, when it was there, what was seen, and what most often helps."""

    title: str
    when: str
    what: str
    try_first: str


@dataclass(frozen=True)
class TrainingView:
    """The section. words: an opening sentence. troubles: none in a healthy run. checks: one for each rule."""

    words: str
    troubles: list[Trouble]
    checks: list[Check]
    charts: list[Chart]


def training_view(record: RunRecord) -> TrainingView:
    """What the record of a run says about its training."""
    health = record.health
    if health is None:
        return TrainingView("The run has no health.json, so nobody looked at how it went.", [], [], _charts(record, {}))
    found = {finding.kind: finding for finding in health.findings}
    looks = f"{health.readings:,} looks in {health.steps:,} steps"
    words = f"Nothing went wrong: {looks} found no sign of trouble."
    if found:
        words = f"Training did not go well: see what was found, at {looks}, before believing any figure of this run."
    return TrainingView(
        words=words,
        troubles=[_trouble(finding, health) for finding in health.findings],
        checks=[
            *(_apart(record, found), _something_to_compare(record, found), _gradient(record, found)),
            *(_length(record, found), _finite(found)),
        ],
        charts=_charts(record, found),
    )


def training_check(record: RunRecord | None) -> list[Check]:
    """The line of the list of doubts; none where nothing is on record."""
    if record is None or record.health is None:
        return []
    name, found = "Training went well", record.health.findings
    if not found:
        return [Check("good", name, "yes", "No sign of collapse, of dead mining, or of norms that vanish or explode.")]
    words = "; ".join(f"{TITLES[finding.kind]} ({finding.when})" for finding in found)
    return [Check("bad", name, "no", f"{words}. See “How training went”.")]


def _trouble(finding: Finding, health: HealthRecord) -> Trouble:
    lasted = ", to the end" if finding.last_step >= health.steps else f" of {health.steps:,}, then no more"
    when = finding.when[0].upper() + finding.when[1:] + lasted
    return Trouble(TITLES[finding.kind], when, _sentence(finding.what), _sentence(finding.try_first))


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _state(found: dict[Kind, Finding], *kinds: Kind) -> State:
    return "bad" if any(kind in found for kind in kinds) else "good"


def _range(curve: Curve | None, form: str = "") -> str:
    """The least and the greatest value; one of them where both read alike."""
    if curve is None or not len(curve.y):
        return _NOT_ON_RECORD
    low, high = (format(end, form) if form else plain(end) for end in (float(curve.y.min()), float(curve.y.max())))
    return low if low == high else f"{low} to {high}"


def _apart(record: RunRecord, found: dict[Kind, Finding]) -> Check:
    rank = _range(record.logged.get("train/effective_rank"), ".1f")
    return Check(
        _state(found, "collapse"),
        "Embeddings stayed apart",
        f"spread {_range(record.logged.get('train/spread'), '.2g')}",
        f"Within a batch, at unit length: 0 is a single point. They use {rank} directions (effective rank).",
    )


def _something_to_compare(record: RunRecord, found: dict[Kind, Finding]) -> Check:
    share, tuples = record.logged.get("miner/share_active"), record.logged.get("miner/tuples")
    percent = None if share is None else Curve(share.x, 100 * share.y)
    return Check(
        _state(found, "dead mining", "idle steps"),
        "Something to compare",
        f"{_range(tuples, ',.0f')} in a batch" if percent is None else f"{_range(percent)} % active",
        f"Pairs or triplets with a loss above 0, of {_range(tuples, ',.0f')} in a batch: the others teach nothing.",
    )


def _gradient(record: RunRecord, found: dict[Kind, Finding]) -> Check:
    curve = record.logged.get("train/gradient_norm")
    never = curve is not None and not curve.y.any()  # where no finding says why
    return Check(
        "doubtful" if never and "stuck" not in found else _state(found, "stuck", "exploding gradient"),
        "Gradient alive and bounded",
        _range(curve),
        "Length of the gradient. Near 0 learning has stopped; a hundred times the first ones, it explodes.",
    )


def _length(record: RunRecord, found: dict[Kind, Finding]) -> Check:
    curve = record.logged.get("train/embedding_norm")
    unit = curve is not None and len(curve.y) > 0 and bool(np.isclose(curve.y, 1.0, atol=5e-3).all())
    fixed = "The network scales embeddings to unit length." if unit else "Mean length of an embedding, not fixed to 1."
    return Check(_state(found, "exploding embeddings"), "Embeddings of bounded length", _range(curve), fixed)


def _finite(found: dict[Kind, Finding]) -> Check:
    state = _state(found, "non-finite")
    words = "The loss and its gradient were looked at in every step, before the optimiser took it."
    return Check(state, "Finite numbers", "yes" if state == "good" else "no", words)


def _charts(record: RunRecord, found: dict[Kind, Finding]) -> list[Chart]:
    """Spread, gradient and share active over the run, with the beginning of what went wrong."""
    charts = []
    for name, title, factor, decimals, kinds in (
        ("train/spread", "Spread of the embeddings", 1, 3, ("collapse",)),
        ("train/gradient_norm", "Gradient norm", 1, 3, ("stuck", "exploding gradient")),
        ("train/embedding_norm", "Embedding norm", 1, 1, ("exploding embeddings",)),
        ("miner/share_active", "Share with a loss above 0, %", 100, 2, ()),
        ("miner/tuples", "Pairs or triplets compared", 1, 0, ("dead mining", "idle steps")),
    ):
        curve = record.logged.get(name)
        if curve is None or len(curve.y) < 2 or (np.ptp(curve.y) < 1e-6 and not any(kind in found for kind in kinds)):
            continue  # a flat line tells nothing that the list does not
        begun = tuple((_images_at(record, found[kind].first_step), "begins") for kind in kinds if kind in found)
        charts.append(line_chart(title, curve.x, factor * curve.y, _x_label(record), decimals=decimals, marked=begun))
    return charts


def _images_at(record: RunRecord, batches: int) -> float:
    """Findings count batches, also those that made no step."""
    if record.health is None or record.images is None or not record.health.steps:
        return float(batches)
    return batches * record.images / record.health.steps


def _x_label(record: RunRecord) -> str:
    return "images seen" if record.images is not None else "steps"
