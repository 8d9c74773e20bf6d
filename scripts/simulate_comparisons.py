"""How far the statistics of a comparison can be trusted: false verdicts, power and intervals on simulated runs.

    python scripts/simulate_comparisons.py                      # about two minutes
    python scripts/simulate_comparisons.py --simulations 5000

Runs of a seed share an effect of that seed. "collapsing": every tenth run of any variant ends 20 standard deviations
lower. Family-wise error: share of comparisons with any wrong "better". Under "half differ" the first half of the
variants are 3 standard deviations apart from each other and from the rest, which are equal; only pairs among the rest
can be wrong.
"""

import argparse
import itertools
from typing import Literal

import numpy as np

from lossopt.comparison.statistics import holm, power, sign_flip_test, step_down_max_t, two_level_interval

ALPHA = 0.05
DESIGNS = ((4, 8), (4, 10), (8, 8), (8, 11))
WORLDS: tuple[tuple[Literal["normal", "collapsing"], Literal["all equal", "half differ"]], ...] = (
    ("normal", "all equal"),
    ("collapsing", "all equal"),
    ("normal", "half differ"),
)


def simulated_runs(rng: np.random.Generator, shift: np.ndarray, seeds: int, noise: str) -> np.ndarray:
    """(variants, seeds) scores, in standard deviations of the noise of a run."""
    runs = shift[:, None] + rng.normal(size=(1, seeds)) + rng.normal(size=(len(shift), seeds))
    return runs - 20 * (rng.random(runs.shape) < 0.1) if noise == "collapsing" else runs


def found(rng: np.random.Generator, shift: np.ndarray, seeds: int, noise: str, times: int) -> np.ndarray:
    """(times, 2, pairs): whether Holm and max-t call each pair different."""
    a, b = np.array(list(itertools.combinations(range(len(shift)), 2))).T
    verdicts = []
    for _ in range(times):
        runs = simulated_runs(rng, shift, seeds, noise)
        differences = runs[a] - runs[b]
        verdicts.append([holm(sign_flip_test(differences)) <= ALPHA, step_down_max_t(differences) <= ALPHA])
    return np.array(verdicts)


def print_errors(times: int) -> None:
    """Family-wise error of each design in each world."""
    error = 100 * np.sqrt(ALPHA * (1 - ALPHA) / times)
    print(f"family-wise error in per cent, at most {100 * ALPHA:g} (standard error {error:.1f})\n")
    print(f"{'variants':>8} {'seeds':>5}  {'noise':<11}{'truth':<13}{'Holm':>6}{'max-t':>7}")
    rng = np.random.default_rng(0)
    for variants, seeds in DESIGNS:
        for noise, truth in WORLDS:
            shift = np.where(np.arange(variants) < variants // 2, 3.0 * np.arange(1, variants + 1), 0.0)
            shift = shift * (truth == "half differ")
            null = [shift[i] == shift[j] for i, j in itertools.combinations(range(variants), 2)]
            wrong = 100 * found(rng, shift, seeds, noise, times)[:, :, null].any(axis=2).mean(axis=0)
            print(f"{variants:8} {seeds:5}  {noise:<11}{truth:<13}{wrong[0]:6.1f}{wrong[1]:7.1f}", flush=True)


def print_power(times: int) -> None:
    """How often one pair is told apart, when one variant is ahead of all others, beside what `power` says."""
    print("\npower in per cent: the first variant is ahead by the effect, in standard deviations of a difference")
    print("in brackets what the function power says, for the hardest step\n")
    print(f"{'variants':>8} {'seeds':>5} {'effect':>6}{'Holm':>12}{'max-t':>12}")
    rng = np.random.default_rng(1)
    for variants, seeds in DESIGNS:
        pairs = variants * (variants - 1) // 2
        for effect in (1.0, 1.5, 2.0, 3.0):
            shift = np.where(np.arange(variants) == 0, effect * np.sqrt(2), 0.0)
            share = 100 * found(rng, shift, seeds, "normal", times)[:, :, 0].mean(axis=0)
            said = [100 * power(effect, 1.0, seeds, pairs, way, ALPHA) for way in ("holm", "max-t")]
            told = "".join(f"{one:6.0f} ({two:3.0f})" for one, two in zip(share, said, strict=True))
            print(f"{variants:8} {seeds:5} {effect:6.1f}{told}", flush=True)


def print_coverage(times: int) -> None:
    """How often the interval over seeds and units holds the true mean."""
    ratios = {"1:0": (1, 0), "9:1": (9, 1), "1:1": (1, 1), "1:9": (1, 9), "0:1": (0, 1)}
    error = 100 * np.sqrt(0.05 * 0.95 / times)
    print(f"\n95 % intervals: how often they hold the truth, in per cent (standard error {error:.1f}),")
    print(
        "by the ratio of the variance of the mean due to seeds to that due to units; a tenth more is of single cells\n"
    )
    print(f"{'scores':<8}{'seeds':>5} {'units':>5}" + "".join(f"{name:>7}" for name in ratios))
    rng = np.random.default_rng(2)
    for skewed, s, c in itertools.product((False, True), (3, 5, 8, 10), (20, 200)):

        def noise(size: tuple[int, ...], skewed: bool = skewed) -> np.ndarray:
            return rng.exponential(size=size) - 1 if skewed else rng.normal(size=size)

        shares = []
        for of_seeds, of_units in ratios.values():
            total = of_seeds + of_units
            held = 0
            for _ in range(times):
                scores = np.sqrt(of_seeds / total * s) * noise((s, 1)) + np.sqrt(of_units / total * c) * noise((1, c))
                scores += np.sqrt(0.1 * s * c) * rng.normal(size=(s, c))
                interval = two_level_interval(scores, np.ones(c), 500, int(rng.integers(2**31)))
                held += interval is not None and interval[0] <= 0 <= interval[1]
            shares.append(100 * held / times)
        told = "".join(f"{share:7.1f}" for share in shares)
        print(f"{'skewed' if skewed else 'normal':<8}{s:5} {c:5}{told}", flush=True)


def main() -> None:
    """Parses, simulates, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1_000, help="of each design; intervals take a fifth")
    times = parser.parse_args().simulations
    print_errors(times)
    print_power(max(1, times // 5))
    print_coverage(max(1, times // 5))


if __name__ == "__main__":
    main()
