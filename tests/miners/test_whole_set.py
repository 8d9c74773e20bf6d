"""Whole-set mining against a plain loop over all rows, on ties, duplicates, lone labels and groups; and its file."""

import csv
import math

import numpy as np
import pytest

from lossopt.cli import main
from lossopt.errors import ConfigError, DataError, EvaluationError
from lossopt.miners.triplet_file import COLUMNS, as_text, write_triplets
from lossopt.miners.whole_set import WholeSetMining

GUARDS = (
    {},
    {"min_distance": 2.0},
    {"max_distance": 3.0},
    {"absolute_margin": 0.0},
    {"absolute_margin": 1.0},
    {"relative_margin": 0.0},
    {"relative_margin": 0.5},
    {"min_distance": 1.0, "max_distance": 4.0, "absolute_margin": 0.5, "relative_margin": 0.25},
)


def distance(x, y, cosine):
    x, y = [float(value) for value in x], [float(value) for value in y]
    if cosine:
        return 1 - sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))


def by_definition(vectors, labels, groups, anchor, settings):
    """(positives from near to far, the window before guards, what each guard refuses of it) as (distance, row)."""
    cosine = settings.get("distance") == "cosine"
    everything = [(distance(vectors[anchor], vectors[row], cosine), row) for row in range(len(labels)) if row != anchor]
    positives = sorted(pair for pair in everything if labels[pair[1]] == labels[anchor])
    rule = settings.get("group_rule", "any")
    negatives = sorted(
        (far, row)
        for far, row in everything
        if labels[row] != labels[anchor]
        and (rule != "other" or groups[row] != groups[anchor])
        and (rule != "same" or groups[row] == groups[anchor])
    )
    skip = settings.get("skip", 0)
    window = negatives[skip : skip + settings["window"]]
    least, most = settings.get("min_distance", 0), settings.get("max_distance") or math.inf
    near = positives[0][0] if positives else math.nan
    refused = {
        "out_of_range": {row for far, row in window if not least <= far <= most},
        "absolute": {row for far, row in window if far < near + settings.get("absolute_margin", -math.inf)},
        "relative": {row for far, row in window if far < near * (1 + settings.get("relative_margin", -1))},
    }
    return positives, window, refused


def check(vectors, labels, groups=None, rows=None, **settings):
    settings = {"window": 4} | settings
    found = WholeSetMining(**settings).mine(vectors, labels, groups, rows)
    told = {"out_of_range": 0, "absolute": 0, "relative": 0}
    anchors, candidates = [], 0
    for anchor in range(len(labels)) if rows is None else sorted(set(rows)):
        positives, window, refused = by_definition(vectors, labels, groups, anchor, settings)
        if not positives:
            continue
        place = len(anchors)
        anchors.append(anchor)
        candidates += len(window)
        for guard, of_guard in refused.items():
            told[guard] += len(of_guard)
        kept = [(far, row) for far, row in window if not any(row in of_guard for of_guard in refused.values())]
        there = found.negative[place] >= 0
        assert found.negative[place][there].tolist() == [row for _, row in kept]
        assert found.negative_distance[place][there] == pytest.approx([far for far, _ in kept])
        assert np.isinf(found.negative_distance[place][~there]).all()
        chosen = {"nearest": 0, "hardest": -1}.get(settings.get("positive", "hardest"))
        if chosen is not None:
            assert found.positive_distance[place] == pytest.approx(positives[chosen][0])
            ties = [row for far, row in positives if far == pytest.approx(positives[chosen][0])]
            assert found.positive[place] == min(ties)
        assert found.positive[place] in {row for _, row in positives}
    assert found.anchor.tolist() == anchors
    assert found.dropped._asdict() == {"candidates": candidates, **told}
    anchor, positive, negative = (column.tolist() for column in found.triplets())
    triplets = list(zip(anchor, positive, negative, strict=True))
    assert len(set(triplets)) == len(triplets) == int((found.negative >= 0).sum())
    assert all(labels[a] == labels[p] != labels[n] and a != p for a, p, n in triplets)
    return found


def untidy(seed=0, n=90, classes=9):
    """Whole numbers in two dimensions: full of ties and duplicates. Labels unsorted, huge, one alone."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(0, 6, (n, 2)).astype(np.float32)
    labels = rng.integers(0, classes, n) + 2**24
    labels[7] = -5
    return vectors, labels, rng.integers(0, 4, n)


@pytest.mark.parametrize("guards", GUARDS, ids=str)
@pytest.mark.parametrize("skip", [0, 3])
def test_windows_are_those_of_the_definition(guards, skip):
    vectors, labels, _ = untidy()
    check(vectors, labels, skip=skip, **guards)


@pytest.mark.parametrize("rule", ["any", "other", "same"])
@pytest.mark.parametrize("positive", ["nearest", "hardest", "random"])
def test_group_rules_and_positives(rule, positive):
    vectors, labels, groups = untidy(1)
    check(vectors, labels, groups, group_rule=rule, positive=positive, window=30)


def test_cosine_does_not_see_lengths():
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(60, 5)).astype(np.float32)
    labels = rng.integers(0, 5, 60)
    settings = {"distance": "cosine", "absolute_margin": 0.01, "min_distance": 0.05}
    found = check(vectors, labels, **settings)
    again = WholeSetMining(window=4, **settings).mine(vectors * rng.uniform(1, 9, (60, 1)), labels)
    assert found.negative.tolist() == again.negative.tolist()


def test_the_window_is_filled_when_hundreds_of_positives_are_nearer():
    rng = np.random.default_rng(4)
    vectors = np.concatenate([rng.normal(size=(400, 3)), 50 + rng.normal(size=(20, 3))])
    found = check(vectors, np.arange(420) // 400, rows=[0, 1, 399, 400], window=5, skip=2)
    assert (found.negative >= 0).all()


def test_the_window_is_filled_when_the_anchors_group_is_nearer():
    vectors = np.arange(300, dtype=np.float64)[:, None]
    found = check(vectors, np.arange(300) % 50, np.arange(300) // 150, group_rule="other", rows=[0, 149, 299])
    assert (found.negative >= 0).all()


def test_only_the_rows_asked_for_are_anchors_but_all_are_searched():
    vectors, labels, _ = untidy(2)
    check(vectors, labels, rows=[44, 3, 3, 7])


def test_one_class_all_different_and_no_rows():
    vectors, *_ = untidy()
    assert (check(vectors, np.zeros(90, dtype=int), max_distance=3.0).negative == -1).all()
    assert len(check(vectors, np.arange(90)).anchor) == 0
    empty = WholeSetMining().mine(np.empty((0, 2)), np.empty(0, dtype=int))
    assert [len(column) for column in empty.triplets()] == [0, 0, 0]


def test_equal_rows_everywhere():
    found = check_ties(np.zeros((50, 3)), np.arange(50) // 5)
    assert (found.negative_distance == 0).all()


def check_ties(vectors, labels):
    """Among more equal distances than the window holds, any rows will do; they must be negatives, and different."""
    found = WholeSetMining(window=6).mine(vectors, labels)
    for anchor, negatives in zip(found.anchor, found.negative, strict=True):
        assert len(set(negatives.tolist())) == 6 and (labels[negatives] != labels[anchor]).all()
    return found


def test_random_positives_are_every_other_row_of_the_class_alike_and_follow_the_seed():
    labels = np.repeat([0, 1], 4)
    vectors = np.arange(8.0)[:, None]
    mining = WholeSetMining(positive="random", window=1)
    drawn = [mining.mine(vectors, labels, seed=seed).positive for seed in range(600)]
    for anchor in range(4):
        share = np.bincount([draw[anchor] for draw in drawn], minlength=4)[:4] / 600
        assert share[anchor] == 0
        assert np.delete(share, anchor) == pytest.approx(1 / 3, abs=0.08)
    assert drawn[5].tolist() == mining.mine(vectors, labels, seed=5).positive.tolist()


def test_an_approximate_index_gives_negatives_and_no_row_that_it_did_not_find():
    rng = np.random.default_rng(6)
    vectors = np.concatenate([rng.normal(size=(1500, 4)), 100 + rng.normal(size=(1500, 4))])
    labels = rng.integers(0, 50, 3000)
    exact = WholeSetMining(window=3).mine(vectors, labels)
    most = WholeSetMining(window=3, factory="IVF16,Flat", parameters="nprobe=16").mine(vectors, labels)
    assert (exact.negative == most.negative).all()
    few = WholeSetMining(window=2000, factory="IVF2,Flat", parameters="nprobe=1").mine(vectors, labels, rows=[0, 2999])
    for place, anchor in enumerate((0, 2999)):
        negatives = few.negative[place][few.negative[place] >= 0]
        assert 1300 < len(negatives) <= 1500 and (labels[negatives] != labels[anchor]).all()
        assert ((negatives < 1500) == (anchor < 1500)).all()
    with pytest.raises(ConfigError, match="FAISS does not know"):
        WholeSetMining(factory="Nonsense").mine(vectors, labels)


def test_bad_rows_are_named():
    vectors, labels, _ = untidy()
    for value in (np.nan, np.inf):
        bad = vectors.copy()
        bad[[4, 40], 1] = value
        with pytest.raises(EvaluationError, match=r"2 of 90 vectors are NaN or infinite .*\[4, 40\]"):
            WholeSetMining().mine(bad, labels)
    with pytest.raises(EvaluationError, match="are zero and have no cosine distance"):
        WholeSetMining(distance="cosine").mine(np.zeros((4, 2)), np.array([0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window must be 1 or more, got 0"),
        ({"skip": -1}, "skip must be 0 or more, got -1"),
        ({"every_n_steps": 0}, "every_n_steps must be 1 or more, got 0"),
        ({"sample": 1}, "sample must be 2 or more, got 1"),
        ({"confusable_classes": 0}, "confusable_classes must be 1 or more"),
        ({"absolute_margin": -0.1}, "absolute_margin must be a finite number of at least 0, got -0.1"),
        ({"relative_margin": math.nan}, "relative_margin must be a finite number"),
        ({"min_distance": 1.0, "max_distance": 1.0}, "there are none. Raise max_distance"),
        ({"group_rule": "others"}, "group_rule must be one of 'any', 'other', 'same'; got 'others'"),
        ({"positive": "semi-hard"}, "positive must be one of"),
        ({"distance": "l2"}, "distance must be one of 'euclidean', 'cosine'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        WholeSetMining(**settings)


def test_a_group_rule_needs_groups():
    vectors, labels, _ = untidy()
    with pytest.raises(ValueError, match="'other' asks for groups"):
        WholeSetMining(group_rule="other").mine(vectors, labels)


# ------------------------------------------------------------------------------------------------------------ files


def named(tmp_path):
    vectors, labels, groups = untidy(8, n=40, classes=4)
    names = np.array(["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", 'a,"b"', "é", *(f"row{i}" for i in range(34))])
    path = tmp_path / "vectors.npz"
    np.savez(path, vectors=vectors, labels=labels, names=names, groups=groups)
    return path, vectors, labels, names.tolist()


def test_triplets_as_csv_and_npz_name_what_was_mined(tmp_path):
    _, vectors, labels, names = named(tmp_path)
    found = WholeSetMining(window=3, absolute_margin=0.5).mine(vectors, labels)
    for suffix in (".csv", ".npz"):
        written = write_triplets(tmp_path / f"t{suffix}", found, names)
        assert written == len(found.triplets().anchor)
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert tuple(header) == COLUMNS and len(lines) == written
    archive = np.load(tmp_path / "t.npz", allow_pickle=False)
    for line, *row in zip(lines, *found.triplets(), *(archive[name] for name in COLUMNS), strict=True):
        plain = [names[int(number)] for number in row[:3]]
        assert [str(name) for name in row[3:6]] == plain
        assert line[:3] == [f"'{name}" if name[0] in "=+-@" else name for name in plain]
        measured = [distance(vectors[int(row[0])], vectors[int(number)], False) for number in row[1:3]]
        assert [float(cell) for cell in line[3:]] == pytest.approx(measured, rel=1e-5)
        assert row[6:] == pytest.approx(measured)
    with pytest.raises(ConfigError, match=r"written as .csv or .npz"):
        write_triplets(tmp_path / "t.txt", found, names)
    with pytest.raises(DataError, match="Nothing was mined"):
        write_triplets(tmp_path / "t.csv", WholeSetMining().mine(vectors, np.arange(40)), names)


def test_the_words_count_what_the_guards_left_out():
    labels = np.array([0, 0, 1, 1])
    vectors = np.array([[0.0], [4.0], [5.0], [11.0]])
    said = as_text(WholeSetMining(window=2, absolute_margin=0.0, min_distance=2.0).mine(vectors, labels), 4)
    # from 4: 1 and 7, nearest positive 4; from 0: 5 and 11, from 5: 1 and 5, nearest positive 6; from 11: 7 and 11
    assert "4 anchors of 4 rows, 5 negatives" in said
    assert "2 of 8 candidates (25.0%) left out by the distance range" in said
    assert "3 of 8 candidates (37.5%) left out by the absolute margin" in said
    assert "2 anchors (50.0%) have fewer than 2 negatives" in said
    assert "mean      5.0000    8.2000" in said and "50 %      5.0000    7.0000" in said


def test_the_command_mines_vectors(tmp_path, capsys):
    path, *_ = named(tmp_path)
    out = tmp_path / "t.csv"
    words = ["mine", str(path), "--output", str(out), "--window", "2", "--group-rule", "other"]
    assert main([*words, "--relative-margin", "0.05"]) == 0
    said = capsys.readouterr().out
    assert "left out by the relative margin" in said and f"triplets written to {out}" in said
    assert f"{len(out.read_text().splitlines()) - 1:,} triplets" in said
    assert main([*words, "--skip", "-1"]) == 2
    assert "skip must be 0 or more" in capsys.readouterr().err
    np.save(tmp_path / "bare.npy", np.ones((4, 2)))
    assert main(["mine", str(tmp_path / "bare.npy"), "--output", str(out)]) == 5
    assert "--labels FILE" in capsys.readouterr().err
