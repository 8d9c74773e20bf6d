"""What a grid of a multitask network and its single-task networks found: does sharing help, figure by figure?

Letters: s seeds.
"""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
from scipy import stats

from lossopt.comparison.statistics import sign_flip_test
from lossopt.errors import ConfigError
from lossopt.lab.grid import Outcome

SHARED = "multitask"  # the variant that the others are compared with
_SMALLER_IS_BETTER = ("mae/", "distance/", "loss")


class Figure(NamedTuple):
    """One test figure of the network with all tasks, against that of the network which has this task alone.

    name: as it is logged, without `test/`. alone_as: the other variant. shared, alone: (s,) by seed, paired.
    interval: 95 % for the mean difference shared - alone, by Student's t of the paired differences; None with one seed.
    p: of the exact sign-flip test, two-sided; with s seeds it cannot be below 2 / 2**s.
    """

    name: str
    alone_as: str
    shared: tuple[float, ...]
    alone: tuple[float, ...]
    interval: tuple[float, float] | None
    p: float

    @property
    def difference(self) -> float:
        """Mean over the seeds."""
        return mean(self.shared) - mean(self.alone)

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "not told apart"
        better = (self.interval[0] > 0) != self.name.startswith(_SMALLER_IS_BETTER)
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
    figures = []
    for other in (name for name in names if name != SHARED):
        seeds = [one.seed for one in outcomes if one.variant == other]
        pairs = [(tests[SHARED, s], tests[other, s]) for s in seeds if (SHARED, s) in tests and (other, s) in tests]
        for key in pairs[0][1] if pairs else ():
            if key != "test/loss" and all(key in both[0] for both in pairs):
                figures.append(_figure(key.removeprefix("test/"), other, [(a[key], b[key]) for a, b in pairs]))
    failed = [f"{one.variant}, seed {one.seed}: {one.failure}" for one in outcomes if one.result is None]
    return Sharing(tuple(figures), tuple(failed))


def _figure(name: str, other: str, pairs: Sequence[tuple[float, float]]) -> Figure:
    shared, alone = zip(*pairs, strict=True)
    differences = np.subtract(shared, alone)
    interval, p = None, float("nan")
    if np.isfinite(differences).all():
        p = float(sign_flip_test(differences[None])[0])
        if len(pairs) > 1 and differences.std():
            low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
            interval = (float(low), float(high))
    return Figure(name, other, shared, alone, interval, p)


def as_markdown(found: Sharing) -> str:
    """A table of the figures: mean ± deviation over seeds, the paired difference and what it says."""
    lines = ["| | multitask | alone | difference | 95 % | p | |", "|---" * 7 + "|"]
    lines += [f"| {' | '.join(cells(figure))} |" for figure in found.figures]
    return "\n".join([*lines, *(f"\nFailed: {one}" for one in found.failed)]) + "\n"


def cells(figure: Figure) -> tuple[str, ...]:
    """Name, shared, alone, difference, interval, p and verdict of a figure, as text."""
    low_high = "" if figure.interval is None else f"{figure.interval[0]:+.4f} to {figure.interval[1]:+.4f}"
    spread = (_spread(figure.shared), _spread(figure.alone))
    return (figure.name, *spread, f"{figure.difference:+.4f}", low_high, f"{figure.p:.3f}", figure.verdict)


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")
