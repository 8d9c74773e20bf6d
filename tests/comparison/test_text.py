"""A comparison as text: what it concludes, its tables to the letter, and that a spreadsheet runs none of it."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from lossopt.comparison.conclusion import conclude, listed_names, pair_of
from lossopt.comparison.result import Comparison, PairComparison, Run, Standing
from lossopt.comparison.text import as_csv, as_markdown, as_text, costs_as_csv, pairs_as_csv


def standing(name, scores, role="variant", failed=(), collapsed=(), interval=None):
    seeds = range(len(scores)) if role != "raw pixels" else [None]
    runs = [
        Run(
            *(name, seed, "failed" if seed in failed else "collapsed" if seed in collapsed else "finished"),
            *({"map@r": score, "recall@1": score + 0.25}, None, 3, 960),
            seconds=10.0 + score,
            images_per_second=None if seed in failed else 100.0,
        )
        for seed, score in zip(seeds, scores, strict=True)
    ]
    scores = np.array(scores)
    return Standing(
        *(name, role, {"m": None}, runs, scores, float(scores.mean())),
        deviation=float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
        interval=interval,
        means={"map@r": float(scores.mean()), "recall@1": float(scores.mean()) + 0.25},
        failed=len(failed),
        collapsed=len(collapsed),
    )


def comparison(standings, verdicts, interval=(0.01, 0.03), detectable=0.015, **changes):
    """verdicts: (a, b) to the verdict of the pair."""
    means = {one.variant: one.mean for one in standings}
    pairs = [
        PairComparison(
            *(a, b, means[a] - means[b], np.zeros(2), interval, 0.00390625, 0.0078125, 0.9, (0.7, 1.0)),
            *(detectable, verdict, f"{a}, {b}: {verdict}."),
        )
        for (a, b), verdict in verdicts.items()
    ]
    values = {"metric": "map@r", "seeds": [0, 1], "images": 960, "wall_seconds": 60.0, "correction": "holm"}
    values |= {"alpha": 0.05, "seeds_needed": 2, "unit": "class", "units": 7, "queries": 50, "gallery": 60}
    values |= {"data": "digits", "environment": [], "workers": 1, "name": "plan", "plan": {}}
    return Comparison(standings=standings, pairs=pairs, **values | changes)


A, B, C = standing("a", [0.50, 0.52]), standing("b", [0.48, 0.48]), standing("c", [0.40, 0.42])
RANDOM = standing("random", [0.30, 0.30], "random miner")
UNTRAINED = standing("untrained", [0.10, 0.12], "untrained")
PIXELS = standing("raw pixels", [0.05], "raw pixels")


def test_the_best_one_is_named_where_it_beats_all():
    found = conclude(comparison([A, B, UNTRAINED], {("a", "b"): "better"}))
    assert found.headline == "a is best: it is shown to be better than b."
    assert found.words == [
        "a reaches 51.0 % MAP@R, 3.0 points more than b, the next (95 % interval of the difference +1.0 to +3.0)."
    ]
    assert (found.cautions, found.leader, found.enough) == ([], A, True)
    three = conclude(comparison([A, B, C], dict.fromkeys([("a", "b"), ("a", "c"), ("b", "c")], "better")))
    assert three.headline == "a is best: it is shown to be better than each of the other 2."


def test_who_is_not_told_apart_from_the_first_is_named():
    found = conclude(comparison([A, B, C], {("a", "b"): "open", ("a", "c"): "better", ("b", "c"): "open"}))
    assert found.headline == "a has the highest mean, but is not told apart from b."
    assert found.words[0].endswith(" With 2 seeds, a true difference of 1.5 points would be found 4 times in 5.")
    assert found.words[1] == "a is shown to be better than c."
    none = conclude(comparison([A, B, C], dict.fromkeys([("a", "b"), ("a", "c"), ("b", "c")], "open"), detectable=None))
    assert (
        none.headline == "No best one is shown: a has the highest mean, but is not told apart from any of the other 2."
    )
    assert "would be found" not in " ".join(none.words)


def test_too_few_seeds_give_no_verdict():
    found = conclude(comparison([A, B], {("a", "b"): "too few seeds"}, interval=None, seeds_needed=8))
    assert found.headline == "Not enough seeds for a verdict: 2 of at least 8."
    assert found.words == [
        "a has the highest mean so far, 51.0 % MAP@R, 3.0 points more than b, the next. "
        "More seeds may turn the order round."
    ]
    assert not found.enough
    assert "best" not in found.headline


def test_nothing_to_compare():
    assert conclude(comparison([A, UNTRAINED], {})).headline == "Nothing to compare: a is the only trained variant."
    nothing = conclude(comparison([PIXELS], {}))
    assert (nothing.headline, nothing.leader) == ("Nothing to compare: no variant was trained.", None)


def test_mining_is_measured_by_a_random_miner():
    better = dict.fromkeys([("a", "b"), ("a", "random"), ("b", "random"), ("random", "c")], "better")
    low = standing("c", [0.20, 0.20])
    found = conclude(comparison([A, B, RANDOM, low], better | {("a", "c"): "better", ("b", "c"): "open"}))
    assert found.words[-1] == "2 of 3 variants are shown to be better than the random miner, c to be worse."
    found = conclude(comparison([RANDOM, low], {("random", "c"): "open"}))
    assert found.words[-1] == "None of 1 variants is shown to be better than the random miner."


def test_what_a_reader_must_know_first():
    bad = standing("bad", [0.04, 0.05], collapsed=(0, 1))
    ill = standing("ill", [0.5, 0.11], failed=(1,))
    pairs = dict.fromkeys([("a", "ill"), ("a", "bad"), ("ill", "bad")], "open")
    found = conclude(comparison([A, ill, UNTRAINED, PIXELS, bad], pairs))
    assert found.cautions == [
        "Runs that collapsed: bad 2 of 2; they count with the epoch that validation chose.",
        "Runs that failed: ill 1 of 2; each counts with the figures of the untrained network of its seed.",
        "bad ends no higher than the untrained network (11.0 %) and raw pixels (5.0 %).",
    ]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c", "d"], "a, b, c and d"),
        (["a", "b", "c", "d", "e"], "a, b, c and 2 others"),
    ],
)
def test_lists_of_names(names, text):
    assert listed_names(names) == text


def test_a_pair_is_found_either_way_round():
    found = comparison([A, B], {("a", "b"): "open"})
    assert pair_of(found, "b", "a") is pair_of(found, "a", "b") is found.pairs[0]
    assert pair_of(found, "a", "c") is None


def test_the_terminal_has_it_all():
    found = comparison([A, B, UNTRAINED, PIXELS], {("a", "b"): "better"}, notes=["b is odd."])
    assert as_text(found).splitlines() == [
        "a is best: it is shown to be better than b.",
        "a reaches 51.0 % MAP@R, 3.0 points more than b, the next (95 % interval of the difference +1.0 to +3.0).",
        "",
        "MAP@R in per cent on the test split, mean over 2 seeds",
        "",
        "   variant      mean  95 % interval    sd  recall@1  failed  collapsed",
        "1  a           51.00              -  1.41     76.00     0/2        0/2",
        "2  b           48.00              -  0.00     73.00     0/2        0/2",
        "3  untrained   11.00              -  1.41     36.00       -          -",
        "4  raw pixels   5.00              -     -     30.00       -          -",
        "",
        "each pair: difference in points of MAP@R",
        "",
        "a  b  a - b   95 % interval  corrected p  P(a > b)  verdict",
        "a  b  +3.00  +1.00 to +3.00       0.0078      0.90  a is better",
        "",
        "Paired by seed, 2 seeds: exact sign-flip permutation, p corrected for 1 comparison (Holm), better at 5 %.",
        "Intervals draw seeds and 7 classes anew.",
        "b is odd.",
    ]


def test_long_and_odd_names_do_not_break_the_terminal():
    long = standing("x" * 90 + "\x1b[31m", [0.5, 0.52], interval=(0.4, 0.6))
    other = standing("y" * 90 + "\n", [0.4, 0.42], interval=(0.4, 0.6))
    lines = as_text(comparison([long, other], {(long.variant, other.variant): "too few seeds"})).splitlines()
    assert max(map(len, lines)) <= 120
    assert "\x1b" not in "\n".join(lines)


def test_markdown_is_a_table_in_which_names_are_text():
    found = comparison([replace(A, variant="a|b*_<i>"), B], {("a|b*_<i>", "b"): "open"})
    text = as_markdown(found)
    assert text == as_markdown(found)
    assert r"| 1 | a\|b\*\_\<i\> | 51.00 | - | 1.41 | 76.00 | 0/2 | 0/2 |" in text.splitlines()
    assert r"| a\|b\*\_\<i\> | b | +3.00 | +1.00 to +3.00 | 0.0078 | 0.90 | not shown |" in text.splitlines()
    assert text.startswith(r"**No best one is shown: a\|b\*\_\<i\> has the highest mean")
    for line in text.splitlines():
        cells = line.replace(r"\|", "").count("|")
        assert cells in (0, 9, 8)


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_keeps_every_digit_and_leaves_unknowns_empty():
    third = standing("a", [1 / 3, 2 / 3], interval=(0.25, 0.75))
    found = comparison([third, B, PIXELS], {("a", "b"): "better"}, detectable=None)
    rows = read(as_csv(found))
    assert [row["variant"] for row in rows] == ["a", "b", "raw pixels"]
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert (float(rows[0]["mean"]), float(rows[0]["low"]), rows[1]["low"]) == (third.mean, 0.25, "")
    assert float(rows[0]["recall@1"]) == third.means["recall@1"]
    (pair,) = read(pairs_as_csv(found))
    assert float(pair["difference"]) == found.pairs[0].difference
    assert (pair["p"], pair["p_corrected"], pair["detectable"]) == ("0.00390625", "0.0078125", "")
    assert (pair["verdict"], pair["correction"]) == ("better", "holm")
    costs = read(costs_as_csv(found))
    assert [(row["variant"], row["seed"]) for row in costs] == [
        *(("a", "0"), ("a", "1"), ("b", "0"), ("b", "1")),
        ("raw pixels", ""),
    ]
    assert (costs[0]["seconds"], costs[0]["peak_memory_bytes"], costs[0]["status"]) == (str(10 + 1 / 3), "", "finished")


@pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@x", "\t=x", "\r\n+x"])
def test_a_spreadsheet_runs_no_name_and_reads_negative_numbers(name):
    odd = standing(name, [0.3, 0.3])
    found = comparison([odd, B], {(name, "b"): "open"})
    for text in (as_csv(found), pairs_as_csv(found), costs_as_csv(found)):
        assert f"'{name.strip()}" in [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    assert float(read(pairs_as_csv(found))[0]["difference"]) < 0


def test_nothing_but_costs_tells_of_the_sitting(tmp_path):
    found = comparison([A, B], {("a", "b"): "better"})
    runs = [replace(run, folder=tmp_path, seconds=99.5, peak_memory=77_777, images_per_second=3.25) for run in A.runs]
    later = comparison([replace(A, runs=runs), B], {("a", "b"): "better"}, wall_seconds=7.0, workers=5, overhead=0.5)
    for write in (as_text, as_markdown, as_csv, pairs_as_csv):
        assert write(found) == write(later)
    assert costs_as_csv(found) != costs_as_csv(later)
