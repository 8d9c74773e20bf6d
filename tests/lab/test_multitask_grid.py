"""Sharing against not sharing: the figures from outcomes made up by hand, against SciPy."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lossopt.errors import ConfigError
from lossopt.lab.grid import Outcome
from lossopt.lab.multitask import Sharing, as_markdown, conclusion, sharing
from lossopt.report.lab_multitask import write_multitask_page
from lossopt.runs import RunResult

BOTH = [(0.80, 5.0), (0.84, 4.0), (0.86, 4.5), (0.81, 4.2), (0.90, 4.9)]
ALONE = [0.70, 0.79, 0.80, 0.82, 0.80]
MAE = [6.0, 5.5, 5.7, 5.1, 6.3]


def outcome(variant, seed, test, failure=None):
    result = None if failure else RunResult(Path(), Path(), 1, {}, {}, test, 0, 1.0, [])
    return Outcome(variant, seed, Path(), {}, result, [], (), failure)


def outcomes(seeds=5):
    runs = []
    for seed in range(seeds):
        r2, mae = BOTH[seed]
        shared = {"test/r2/<dx>": r2, "test/mae/<dx>": mae, "test/accuracy": 0.9, "test/loss": 1.0}
        runs.append(outcome("multitask", seed, shared))
        runs.append(
            outcome("size alone", seed, {"test/r2/<dx>": ALONE[seed], "test/mae/<dx>": MAE[seed], "test/loss": 2.0})
        )
        runs.append(outcome("class alone", seed, {"test/accuracy": 0.9, "test/loss": 0.1}))
    return runs


def test_figures_are_paired_by_seed_and_their_intervals_hold_together():
    r2, mae, accuracy = sharing(outcomes()).figures
    assert [one.name for one in (r2, mae, accuracy)] == ["r2/<dx>", "mae/<dx>", "accuracy"]
    assert (r2.alone_as, accuracy.alone_as) == ("size alone", "class alone")
    shared = [first for first, _ in BOTH]
    differences = np.subtract(shared, ALONE)
    assert r2.shared == tuple(shared) and r2.alone == tuple(ALONE)
    assert r2.difference == pytest.approx(differences.mean())
    half = stats.t.ppf(1 - 0.05 / 3 / 2, df=4) * differences.std(ddof=1) / 5**0.5  # three figures
    assert r2.interval == pytest.approx((differences.mean() - half, differences.mean() + half))
    assert r2.verdict == "not told apart"  # by the 95 % of itself alone it would be
    assert stats.ttest_rel(shared, ALONE).confidence_interval(0.95).low > 0
    assert mae.verdict == "sharing helps"  # a smaller error
    assert accuracy.interval is None and accuracy.verdict == "not told apart"


def test_the_conclusion_counts():
    found = sharing(outcomes())
    assert conclusion(found) == "Sharing helps in 1 of 3 figures."
    r2, mae, accuracy = found.figures
    worse = r2._replace(interval=(-0.2, -0.1))
    assert conclusion(Sharing((worse, mae, accuracy), ())) == "Sharing helps in 1 and hurts in 1 of 3 figures."
    assert conclusion(Sharing((accuracy,), ())) == "5 seeds do not tell sharing from not sharing in any figure."


def test_seeds_at_which_one_failed_are_left_out_and_named():
    runs = outcomes(3)
    runs[1] = outcome("size alone", 0, {}, failure="the gradient is not finite")
    found = sharing(runs)
    assert found.figures[0].shared == (0.84, 0.86) and found.figures[2].shared == (0.9, 0.9, 0.9)
    assert found.failed == ("size alone, seed 0: the gradient is not finite",)
    assert "Failed: size alone, seed 0" in as_markdown(found)
    one = sharing(outcomes(1)).figures[0]
    assert one.interval is None and "| 0.8000 | 0.7000 | size alone | +0.1000 |  | not told" in as_markdown(
        sharing(outcomes(1))
    )


def test_undefined_figures_stay_undefined():
    runs = [outcome(name, seed, {"test/r2/x": float("nan")}) for name in ("multitask", "alone") for seed in (0, 1)]
    (figure,) = sharing(runs).figures
    assert figure.interval is None and figure.verdict == "not told apart"


@pytest.mark.parametrize("names", [("multitask",), ("a", "b")])
def test_a_grid_without_the_two_sides_is_refused(names):
    with pytest.raises(ConfigError, match="compares the variant 'multitask' with others, but it has"):
        sharing([outcome(name, 0, {}) for name in names])


def test_the_page_shows_the_table_and_escapes_names(tmp_path):
    page = write_multitask_page(tmp_path / "page.html", "grid", "data", sharing(outcomes())).read_text()
    assert "r2/&lt;dx&gt;" in page and "<dx>" not in page and "Sharing helps in 1 of 3 figures." in page
    assert "0.8420 ± " in page and "sharing helps" in page
    runs = [outcome(name, 0, {}, failure="x") for name in ("multitask", "alone")]
    assert (
        "No two runs of the same seed ended well."
        in write_multitask_page(tmp_path / "no.html", "g", "d", sharing(runs)).read_text()
    )


def test_strips_are_drawn_to_one_scale_for_a_kind_with_better_to_the_right(tmp_path):
    r2, mae, accuracy = sharing(outcomes()).figures
    wide = r2._replace(name="r2/wide", interval=(-1.0, 0.5))
    other = mae._replace(name="mae/other unit", interval=(-1e6, 1e6))
    undefined = accuracy._replace(shared=(float("nan"),) * 5, interval=None)
    page = write_multitask_page(tmp_path / "page.html", "g", "d", Sharing((r2, wide, mae, other, undefined), ()))
    page = page.read_text()
    reach = [(float(a), float(b)) for a, b in re.findall(r'class="reach" x1="([-\d.]+)" x2="([-\d.]+)"', page)]
    assert len(reach) == 4  # the undefined one, first for the groups are sorted, has none
    assert reach[1] == (-100.0, 50.0)
    assert reach[0] == pytest.approx(tuple(100 * end for end in r2.interval), abs=0.05)  # of the 1.0 of the other
    assert 0 < reach[2][0] < reach[2][1] and reach[2][1] > 50  # an error that shrinks, to a scale of its own
    seeds = [float(at) for at in re.findall(r'class="seed" x1="([-\d.]+)"', page)][:5]
    assert seeds == pytest.approx([100 * (a - b) for (a, _), b in zip(BOTH, ALONE, strict=True)], abs=0.05)
    assert len(re.findall('class="mean"', page)) == 4 and len(re.findall('class="seed"', page)) == 20


@pytest.mark.parametrize("pairs", [[(0.101, 0.1), (0.102, 0.101)], [(0.5, 0.1)] * 3, [(0.3, 0.2)] * 3])
def test_equal_differences_say_nothing_whatever_rounding_makes_of_them(pairs):
    runs = [outcome("multitask", seed, {"test/accuracy": both}) for seed, (both, _) in enumerate(pairs)]
    runs += [outcome("alone", seed, {"test/accuracy": alone}) for seed, (_, alone) in enumerate(pairs)]
    (figure,) = sharing(runs).figures
    assert figure.interval is None and figure.verdict == "not told apart"
