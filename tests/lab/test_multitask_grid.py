"""Sharing against not sharing: the figures from outcomes made up by hand, against SciPy and a count of sign flips."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lossopt.errors import ConfigError
from lossopt.lab.grid import Outcome
from lossopt.lab.multitask import as_markdown, sharing
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


def test_figures_are_paired_by_seed_and_tested_by_definition():
    r2, mae, accuracy = sharing(outcomes()).figures
    assert [one.name for one in (r2, mae, accuracy)] == ["r2/<dx>", "mae/<dx>", "accuracy"]
    assert (r2.alone_as, accuracy.alone_as) == ("size alone", "class alone")
    shared = [first for first, _ in BOTH]
    differences = np.subtract(shared, ALONE)
    assert r2.shared == tuple(shared) and r2.alone == tuple(ALONE)
    assert r2.difference == pytest.approx(differences.mean())
    paired = stats.ttest_rel(shared, ALONE).confidence_interval(0.95)
    assert r2.interval == pytest.approx((paired.low, paired.high))
    flips = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=5)]
    assert r2.p == pytest.approx(np.mean([flip >= abs(differences.sum()) - 1e-12 for flip in flips]))
    assert mae.p == 2 / 32
    assert mae.verdict == "sharing helps"  # a smaller error
    assert r2.verdict == ("sharing helps" if paired.low > 0 else "not told apart")
    assert accuracy.interval is None and accuracy.p == 1 and accuracy.verdict == "not told apart"


def test_seeds_at_which_one_failed_are_left_out_and_named():
    runs = outcomes(3)
    runs[1] = outcome("size alone", 0, {}, failure="the gradient is not finite")
    found = sharing(runs)
    assert found.figures[0].shared == (0.84, 0.86) and found.figures[2].shared == (0.9, 0.9, 0.9)
    assert found.failed == ("size alone, seed 0: the gradient is not finite",)
    assert "Failed: size alone, seed 0" in as_markdown(found)
    one = sharing(outcomes(1)).figures[0]
    assert (
        one.interval is None
        and one.p == 1
        and "| 0.8000 | 0.7000 | +0.1000 |  | 1.000 |" in as_markdown(sharing(outcomes(1)))
    )


def test_undefined_figures_stay_undefined():
    runs = [outcome(name, seed, {"test/r2/x": float("nan")}) for name in ("multitask", "alone") for seed in (0, 1)]
    (figure,) = sharing(runs).figures
    assert figure.interval is None and np.isnan(figure.p) and figure.verdict == "not told apart"


@pytest.mark.parametrize("names", [("multitask",), ("a", "b")])
def test_a_grid_without_the_two_sides_is_refused(names):
    with pytest.raises(ConfigError, match="compares the variant 'multitask' with others, but it has"):
        sharing([outcome(name, 0, {}) for name in names])


def test_the_page_shows_the_table_and_escapes_names(tmp_path):
    page = write_multitask_page(tmp_path / "page.html", "grid", "data", sharing(outcomes())).read_text()
    assert "r2/&lt;dx&gt;" in page and "<dx>" not in page and "never below 0.0625" in page
    assert "0.8420 ± " in page and "sharing helps" in page
    runs = [outcome(name, 0, {}, failure="x") for name in ("multitask", "alone")]
    assert (
        "No two runs of the same seed ended well."
        in write_multitask_page(tmp_path / "no.html", "g", "d", sharing(runs)).read_text()
    )
