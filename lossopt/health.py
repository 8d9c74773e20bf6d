"""Rules that turn a few numbers of a training run into words: what is going wrong, since when, what to try first.

A rule is a pure function of one `Reading`, taken at a logged step; `HealthLog` counts how often in a row a rule speaks,
and keeps one `Finding` for each kind of fault.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from lossopt.errors import DataError

HEALTH = "health.json"
Kind = Literal[
    "collapse",
    "mean image",
    "dead mining",
    "idle steps",
    "stuck",
    "exploding embeddings",
    "exploding gradient",
    "non-finite",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

TRY_FIRST: dict[Kind, str] = {
    "collapse": "a lower learning rate, then a miner that is less hard (semi-hard, or none), then a larger batch",
    "mean image": "another learning rate, then less momentum, then batch norm or units that do not saturate (SiLU)",
    "dead mining": "a larger margin, then more classes per batch, then a harder miner",
    "idle steps": "a larger margin (the miner's, too), then more classes per batch, then an easier miner",
    "stuck": "another learning rate, and a look at what the loss compares: labels, margin, frozen parameters",
    "exploding embeddings": "an encoder with normalize: true, then a lower learning rate",
    "exploding gradient": "a lower learning rate or a longer warm-up, then trainer.gradient_clip_val 1.0",
    "non-finite": "a look at the images named above, then a lower learning rate",
}


@dataclass(frozen=True)
class Bounds:
    """Where a rule begins to speak. Healthy runs keep away from all of them.

    patience: so many logged steps in a row before a finding begins (two for what explodes, which has little time left).
    active: share of the tuples, or tuples per image of the batch, below which mining is dead.
    near: how near to its collapsed value a loss counts as there. fallen: how far the spread has then fallen.
    vanished: gradient norm against the first ones. growth: norms against the first ones. first: how many are "first".
    loud: a norm below this has not exploded, however small the first ones were.
    idle: share of the steps without a tuple, asked once there were `enough` steps.
    """

    patience: int = 3
    active: float = 0.01
    near: float = 0.05
    fallen: float = 0.1
    vanished: float = 1e-6
    growth: float = 100.0
    first: int = 5
    loud: float = 10.0
    idle: float = 0.1
    enough: int = 100


class Reading(NamedTuple):
    """What was measured at one logged step; None where it could not be.

    step: batches seen so far. idle_steps: those of them in which the miner found nothing. images: rows of the batch.
    loss: None if there was nothing to compare. collapsed_loss: what the loss is when all embeddings are equal, if that
    is one value. alike: signs, in words, that the embeddings are nearly equal or lie on a line; spread, effective_rank:
    see `lossopt.retrieval.collapse.Shape`. embedding_norm: mean length. gradient_norm: of the last optimiser step.
    tuples: compared by the loss. mined: whether a miner chose them. share_active: share of them with a loss above 0.
    """

    step: int
    idle_steps: int
    images: int
    loss: float | None
    collapsed_loss: float | None
    alike: Sequence[str]
    spread: float
    effective_rank: float
    embedding_norm: float | None
    gradient_norm: float | None
    tuples: float | None
    mined: bool
    share_active: float | None


class Sign(NamedTuple):
    """One fault in numbers, and as a clause that begins with what is wrong; advice: if it is not that of the kind."""

    numbers: Mapping[str, float]
    what: str
    advice: str | None = None


@dataclass(frozen=True)
class Finding:
    """One kind of fault in one run, with the numbers of the last step that showed it.

    first_step, last_step: batches seen when it began, and when it was last there. steps: logged steps that showed it.
    what: a clause that begins with what is wrong. try_first: what most often helps.
    """

    kind: Kind
    first_step: int
    last_step: int
    steps: int
    numbers: dict[str, float]
    what: str
    try_first: str

    @property
    def when(self) -> str:
        """The steps from the first to the last."""
        if self.first_step == self.last_step:
            return f"step {self.last_step:,}"
        return f"steps {self.first_step:,} to {self.last_step:,}"

    @property
    def text(self) -> str:
        """The whole of it in two sentences."""
        return f"{self.when}: {self.what}. Try first: {self.try_first}."

    def as_json(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self) | {"text": self.text}


def finding_of(content: Mapping[str, Any]) -> Finding:
    """What `Finding.as_json` wrote."""
    return Finding(**{own.name: content[own.name] for own in fields(Finding)})


def plain(number: float) -> str:
    """Three digits, and no powers of ten where a number is large."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def collapse(reading: Reading, first_spread: float | None, bounds: Bounds) -> Sign | None:
    """Embeddings that are all but equal; or that came nearer and nearer until the loss is that of equal ones.

    The loss alone is no sign: a network that has not learnt yet also compares equal distances, between embeddings that
    lie far apart. Collapse under the hardest negatives: Schroff et al. 2015, CVPR, section 3.2; Wu et al. 2017, ICCV.
    """
    loss, there = reading.loss, reading.collapsed_loss
    at_value = loss is not None and there is not None and abs(loss - there) <= bounds.near * there
    fallen = first_spread is not None and reading.spread < bounds.fallen * first_spread
    if not reading.alike and not (at_value and fallen):
        return None
    numbers = {"spread": reading.spread, "effective_rank": reading.effective_rank}
    reasons = list(reading.alike)
    if first_spread is not None and fallen:
        numbers["first_spread"] = first_spread
        reasons.append(f"their spread is {reading.spread:.2g} of {first_spread:.2g} at the start")
    if at_value and loss is not None and there is not None:
        numbers |= {"loss": loss, "collapsed_loss": there}
        reasons.append(f"the loss is {loss:.4g}, and {there:.4g} when all are equal")
    return Sign(numbers, f"the embeddings have collapsed, even if recall still looks right: {'; '.join(reasons)}")


def dead_mining(reading: Reading, bounds: Bounds) -> Sign | None:
    """Next to nothing to learn from: few tuples of a miner, or a low share active that is also few for the batch.

    Of millions of tuples a low share is still plenty, so that many active ones per image are never called dead.
    """
    tuples, share, images = reading.tuples, reading.share_active, reading.images
    if tuples is None:
        return None
    if reading.mined and tuples < bounds.active * images:
        words = f"the miner finds {tuples:,.0f} tuples in a batch of {images:,} images"
        return Sign({"tuples": tuples, "images": float(images)}, f"mining is dead: {words}", TRY_FIRST["idle steps"])
    if share is None or share >= bounds.active or share * tuples >= images:
        return None
    words = f"{share:.2%} of {tuples:,.0f} tuples have a loss above 0, {share * tuples:,.0f} in a batch of {images:,}"
    numbers = {"share_active": share, "tuples": tuples, "images": float(images)}
    return Sign(numbers, f"mining is dead: {words} images")


def idle(steps: int, idle_steps: int, bounds: Bounds) -> Sign | None:
    """More than a tenth of all steps in which a miner found nothing at all."""
    share = idle_steps / max(1, steps)
    if share <= bounds.idle:
        return None
    words = f"{share:.0%} of the steps had nothing to compare ({idle_steps:,} of {steps:,})"
    return Sign({"share": share, "idle_steps": float(idle_steps)}, f"{words}, so nothing was learnt in them")


def stuck(reading: Reading, first_gradient: float | None, bounds: Bounds) -> Sign | None:
    """A gradient of exactly 0, or of next to nothing against the first ones."""
    norm = reading.gradient_norm
    if norm is None or reading.loss is None or norm > bounds.vanished * (first_gradient or 0.0):
        return None
    numbers, words = {"gradient_norm": norm}, f"the gradient is {norm:.2g}"
    if first_gradient is not None:
        numbers["first_gradient_norm"] = first_gradient
        words += f", {first_gradient:.2g} at the start"
    return Sign(numbers, f"training is stuck: {words}")


def exploding(what: str, norm: float | None, first: float | None, bounds: Bounds) -> Sign | None:
    """A norm that is a hundred times that of the first logged steps; what: "embedding" or "gradient"."""
    if norm is None or first is None or not norm > max(bounds.loud, bounds.growth * first):
        return None
    numbers = {f"{what}_norm": norm, f"first_{what}_norm": first}
    return Sign(numbers, f"the {what} norm explodes: {plain(norm)}, against {plain(first)} at the start")


@dataclass
class HealthLog:
    """Follows the readings of a run; knows no trainer, no clock and no device.

    steps, readings: batches seen and logged steps looked at. findings: at most one of a kind, in the order of their
    beginning. early: the first healthy values of a norm or spread, which later ones are compared with.
    """

    bounds: Bounds = field(default_factory=Bounds)
    steps: int = 0
    readings: int = 0
    findings: dict[Kind, Finding] = field(default_factory=dict)
    early: dict[str, list[float]] = field(default_factory=dict)
    streaks: dict[Kind, list[int]] = field(default_factory=dict)

    def read(
        self, reading: Reading, others: Mapping[Kind, Sign | None] | None = None
    ) -> tuple[list[Finding], dict[Kind, bool]]:
        """Follows one reading: the findings that begin with it, and which rules spoke.

        Args:
            reading: of this step.
            others: signs of the network's own, by kind; None: it has none.
        """
        self.steps, self.readings = reading.step, self.readings + 1
        signs = {**self._signs(reading), **(others or {})}
        begun = []
        for kind, sign in signs.items():
            streak = self.streaks[kind] = [*self.streaks.get(kind, []), reading.step] if sign is not None else []
            patience = min(2, self.bounds.patience) if kind.startswith("exploding") else self.bounds.patience
            if kind == "idle steps":
                patience = 1
            if sign is not None and (kind in self.findings or len(streak) >= patience):
                begun += self.add(kind, sign, reading.step, streak)
        return begun, {kind: sign is not None for kind, sign in signs.items()}

    def add(self, kind: Kind, sign: Sign, step: int, streak: Sequence[int] = ()) -> list[Finding]:
        """Keeps a sign as a finding, or adds it to that of its kind; [the finding] if it is new.

        Args:
            kind: of the fault.
            sign: what was seen.
            step: batches seen by then.
            streak: the logged steps in a row that showed it, this one included; none of a sign that was seen elsewhere,
                which makes a known finding last, but leaves it its words.
        """
        self.steps = max(self.steps, step)
        earlier, words = self.findings.get(kind), (dict(sign.numbers), sign.what, sign.advice or TRY_FIRST[kind])
        if earlier is None:
            seen = list(streak) or [step]
            self.findings[kind] = Finding(kind, seen[0], step, len(seen), *words)
            return [self.findings[kind]]
        if streak:
            numbers, what, advice = words
            earlier = replace(earlier, steps=earlier.steps + 1, numbers=numbers, what=what, try_first=advice)
        self.findings[kind] = replace(earlier, last_step=step)
        return []

    def after_epoch(self, steps: int, idle_steps: int) -> list[Finding]:
        """Looks at the share of idle steps, however few steps there were so far; where mining is dead, that says it."""
        sign = None if "dead mining" in self.findings else idle(steps, idle_steps, self.bounds)
        return [] if sign is None else self.add("idle steps", sign, steps, [steps])

    def _signs(self, reading: Reading) -> dict[Kind, Sign | None]:
        """One cause, one finding: where embeddings collapsed or mining is dead, no gradient is what follows."""
        bounds, gradient = self.bounds, reading.gradient_norm
        norm, early = reading.embedding_norm, self.early
        signs: dict[Kind, Sign | None] = {
            "collapse": collapse(reading, max(early.get("spread", []), default=None), bounds),
            "dead mining": dead_mining(reading, bounds),
            "idle steps": None,
            "exploding embeddings": exploding("embedding", norm, min(early.get("embedding", []), default=None), bounds),
            "exploding gradient": exploding("gradient", gradient, self._first_gradient(), bounds),
            "stuck": None,
        }
        if signs["dead mining"] is None and "dead mining" not in self.findings and reading.step >= bounds.enough:
            signs["idle steps"] = idle(reading.step, reading.idle_steps, bounds)
        if signs["collapse"] is None and signs["dead mining"] is None:
            signs["stuck"] = stuck(reading, self._first_gradient(), bounds)
        self._remember("spread", reading.spread, signs["collapse"])
        self._remember("embedding", norm, signs["exploding embeddings"])
        self._remember("gradient", gradient, signs["exploding gradient"] or signs["stuck"])
        return signs

    def _first_gradient(self) -> float | None:
        """The median, for single gradients differ widely; None before there is one."""
        values = self.early.get("gradient", [])
        return statistics.median(values) if values else None

    def _remember(self, name: str, value: float | None, sign: Sign | None) -> None:
        """Keeps a value among the first ones, unless there are enough of them or it is a fault itself."""
        values = self.early.setdefault(name, [])
        if sign is None and value is not None and 0 < value < math.inf and len(values) < self.bounds.first:
            values.append(value)

    def as_json(self) -> dict[str, Any]:
        """The content of health.json."""
        found = [finding.as_json() for finding in self.findings.values()]
        return {"version": 1, "steps": self.steps, "readings": self.readings, "findings": found}

    def state_dict(self) -> dict[str, Any]:
        """Everything that goes on after a resume, in plain types."""
        return self.as_json() | {"early": self.early, "streaks": self.streaks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `state_dict`."""
        self.steps, self.readings = state["steps"], state["readings"]
        self.findings = {found["kind"]: finding_of(found) for found in state["findings"]}
        self.early, self.streaks = dict(state["early"]), dict(state["streaks"])


class HealthRecord(NamedTuple):
    """What health.json of a run says."""

    steps: int
    readings: int
    findings: tuple[Finding, ...]


def read_health(folder: Path) -> HealthRecord | None:
    """The health of the run in a folder; None if it has no health.json.

    Raises:
        DataError: the file cannot be read.
    """
    path = folder / HEALTH
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = tuple(finding_of(one) for one in content["findings"])
        return HealthRecord(int(content["steps"]), int(content["readings"]), found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"Cannot read {path} ({error}). Restore it from a copy of the run, or remove it.") from error
