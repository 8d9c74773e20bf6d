"""What a grid of a multitask network and its single-task networks found: does sharing help, figure by figure?

Letters: s seeds.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from lossopt.errors import ConfigError
from lossopt.lab.grid import Outcome

SHARED = "multitask"  # the variant that the others are compared with
_ROUNDING = 1e-9  # differences that are the same but for this share of the figures say nothing of other seeds
_SMALLER_IS_BETTER = ("mae/", "distance/", "loss")
Verdict = Literal["not told apart", "sharing helps", "sharing hurts"]


class Figure(NamedTuple):
    """One test figure of the network with all tasks, against that of the network which has this task alone.

    name: as it is logged, without `test/`. alone_as: the other variant. shared, alone: (s,) by seed, paired.
    interval: for the mean difference shared - alone, by Student's t of the paired differences, so wide that all figures
    of the grid lie in theirs together with 95 % (Bonferroni); None with one seed, or if all differences are the same.
    """

    name: str
    alone_as: str
    shared: tuple[float, ...]
    alone: tuple[float, ...]
    interval: tuple[float, float] | None

    @property
    def difference(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.shared) - np.mean(self.alone))

    @property
    def smaller_is_better(self) -> bool:
        """Of an error, not of a score."""
        return self.name.startswith(_SMALLER_IS_BETTER)

    @property
    def verdict(self) -> Verdict:
        """What the interval allows to say."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "not told apart"
        better = (self.interval[0] > 0) != self.smaller_is_better
        return "sharing helps" if better else "sharing hurts"


class Sharing(NamedTuple):
    """All figures, and the runs that failed, in words."""

    figures: tuple[Figure, ...]
    failed: tuple[str, ...]


def sharing(outcomes: Sequence[Outcome]) -> Sharing:
    """Compares each single-task variant with the variant "multitask", over the seeds at which both ended well.

    The loss is left out: it is another one in each network.

    Raises:
        ConfigError: no variant of that name, or none beside it.
    """
    names = list(dict.fromkeys(one.variant for one in outcomes))
    if SHARED not in names or len(names) < 2:
        raise ConfigError(
            f"This grid compares the variant {SHARED!r} with others, but it has {', '.join(names)}. Name one of the "
            f"variants {SHARED} and give others with fewer heads."
        )
    tests = {(one.variant, one.seed): one.result.test for one in outcomes if one.result is not None}
    pairs = []
    for other in (name for name in names if name != SHARED):
        seeds = [one.seed for one in outcomes if one.variant == other]
        both = [(tests[SHARED, s], tests[other, s]) for s in seeds if (SHARED, s) in tests and (other, s) in tests]
        for key in both[0][1] if both else ():
            if key != "test/loss" and all(key in shared for shared, _ in both):
                pairs.append((key.removeprefix("test/"), other, [(shared[key], alone[key]) for shared, alone in both]))
    failed = [f"{one.variant}, seed {one.seed}: {one.failure}" for one in outcomes if one.result is None]
    return Sharing(tuple(_figure(*one, 1 - 0.05 / len(pairs)) for one in pairs), tuple(failed))


def _figure(name: str, other: str, pairs: Sequence[tuple[float, float]], level: float) -> Figure:
    shared, alone = zip(*pairs, strict=True)
    differences = np.subtract(shared, alone)
    interval = None
    same = np.ptp(differences) <= _ROUNDING * np.abs(pairs).max()
    if len(pairs) > 1 and np.isfinite(differences).all() and not same:
        low, high = stats.ttest_1samp(differences, 0).confidence_interval(level)
        interval = (float(low), float(high))
    return Figure(name, other, shared, alone, interval)


def conclusion(found: Sharing) -> str:
    """A sentence."""
    verdicts, seeds = [figure.verdict for figure in found.figures], max(len(one.shared) for one in found.figures)
    helps, hurts = verdicts.count("sharing helps"), verdicts.count("sharing hurts")
    if not helps and not hurts:
        return f"{seeds} seed{'' if seeds == 1 else 's'} do not tell sharing from not sharing in any figure."
    parts = [f"{word} in {count}" for word, count in (("helps", helps), ("hurts", hurts)) if count]
    return f"Sharing {' and '.join(parts)} of {len(verdicts)} figures."


def as_markdown(found: Sharing) -> str:
    """A table of the figures: mean ± deviation over seeds, the paired difference and what it says."""
    lines = ["| | multitask | alone | as | difference | 95 % together | |", "|---" * 7 + "|"]
    lines += [f"| {' | '.join(_cells(figure))} |" for figure in found.figures]
    return "\n".join([*lines, *(f"\nFailed: {one}" for one in found.failed)]) + "\n"


def _cells(figure: Figure) -> tuple[str, ...]:
    sides = (spread(figure.shared), spread(figure.alone), figure.alone_as)
    return (figure.name, *sides, f"{figure.difference:+.4f}", reach(figure), figure.verdict)


def reach(figure: Figure) -> str:
    """The interval as text; "" if there is none."""
    return "" if figure.interval is None else f"{figure.interval[0]:+.4f} to {figure.interval[1]:+.4f}"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, as text."""
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")
