"""Two sets of vectors of the same images: paired by name, query by query; refused where they do not belong together."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lossopt.cli import main
from lossopt.commands.evaluation import _told_apart
from lossopt.errors import EvaluationError
from lossopt.retrieval.difference import compare, difference, difference_text, pair_by_name, verdict
from lossopt.retrieval.evaluation import evaluate_task, evaluate_vectors
from lossopt.retrieval.intervals import bootstrap_over_classes
from lossopt.retrieval.vectors import LabelledVectors, Rows


def table(noise=0.8, n=240, classes=24, d=8, seed=0, names=None, lone=0, **columns) -> LabelledVectors:
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(n) % classes, np.arange(classes, classes + lone)])
    centres = rng.normal(size=(classes + lone, d))[labels]
    vectors = centres + noise * np.random.default_rng([7, seed]).normal(size=(n + lone, d))
    class_names = tuple(f"c/{number}" for number in range(classes + lone))
    names = names or [f"image{row}" for row in range(n + lone)]
    return Rows(labels, class_names, names, **columns).with_vectors(vectors.astype(np.float32), {})


def chosen(side: LabelledVectors, rows) -> LabelledVectors:
    """Some rows in another order, the classes under other numbers."""
    rows = np.asarray(rows)
    there, labels = np.unique(len(side.class_names) - 1 - side.labels[rows], return_inverse=True)
    names = tuple(side.class_names[::-1][number] for number in there)
    return Rows(labels, names, [side.names[row] for row in rows]).with_vectors(side.vectors[rows], {})


def test_differences_are_those_of_the_same_queries():
    a, b = table(0.8), table(1.0, seed=1)
    found = difference(pair_by_name(a, b), (1, 3))
    results = [evaluate_vectors(side, (1, 3)) for side in (a, b)]
    assert found.metrics[0].name == "map@r"
    assert [one.name for one in found.metrics].count("map@r") == 1
    assert {one.name for one in found.metrics} == set(results[0].per_query)
    for one in found.metrics:
        gaps = results[0].per_query[one.name] - results[1].per_query[one.name]
        assert one.difference == pytest.approx(np.mean(gaps))
        assert (one.a, one.b) == tuple(result.metrics[one.name] for result in results)
        assert one.interval == pytest.approx(bootstrap_over_classes(gaps, a.labels))
    ap = [result.per_query["map@r"] for result in results]
    assert found.won == sum(x > y for x, y in zip(*ap, strict=True)) > 0
    assert found.lost == sum(x < y for x, y in zip(*ap, strict=True)) > 0
    assert found.tied == sum(x == y for x, y in zip(*ap, strict=True)) > 0
    assert found.won + found.lost + found.tied == 240
    np.testing.assert_allclose(found.per_query, ap[0] - ap[1])


def test_the_table_of_classes_adds_up():
    a, b = table(0.8), table(1.0, seed=1)
    found = difference(pair_by_name(a, b))
    assert [one.difference for one in found.classes] == sorted((one.difference for one in found.classes), reverse=True)
    assert sum(one.queries for one in found.classes) == found.a.queries
    assert sum(one.won for one in found.classes) == found.won
    assert sum(one.lost for one in found.classes) == found.lost
    for one in found.classes:
        own = a.labels == a.class_names.index(one.name)
        assert one.queries == 10
        assert one.a == pytest.approx(found.a.per_query["map@r"][own].mean())
        assert one.difference == pytest.approx(one.a - one.b)
        assert one.won == (found.per_query[own] > 0).sum()


def test_order_of_rows_and_numbers_of_classes_do_not_matter():
    a, b = table(0.8), table(1.0, seed=1)
    mixed = chosen(b, np.random.default_rng(3).permutation(240))
    straight, crossed = difference(pair_by_name(a, b)), difference(pair_by_name(a, mixed))
    assert [one[:4] for one in straight.metrics] == [pytest.approx(one[:4]) for one in crossed.metrics]
    np.testing.assert_allclose(straight.per_query, crossed.per_query, atol=1e-12)
    pair = pair_by_name(a, mixed)
    assert pair.a is a
    assert [mixed.names[row] for row in pair.rows_b] == list(a.names)
    np.testing.assert_array_equal(pair.b.vectors, b.vectors)


def test_rows_of_one_table_only_are_left_out_of_both_and_counted():
    a, b = table(0.8), table(1.0, seed=1)
    only = [0, 5, 7, 100]
    pair = pair_by_name(chosen(a, np.delete(np.arange(240), only)), b)
    assert (pair.only_a, pair.only_b) == (0, 4)
    pair = pair_by_name(a, chosen(b, np.delete(np.arange(240), only)[::-1]))
    assert (pair.only_a, pair.only_b) == (4, 0)
    found = difference(pair)
    rest = np.delete(np.arange(240), only)
    expected = evaluate_vectors(chosen(a, rest))
    assert found.a.metrics == pytest.approx(expected.metrics)
    assert (found.a.queries, found.b.gallery) == (236, 236)
    assert "4 rows are only in A and 0 only in B" in found.notes[0]


def test_marks_of_queries_and_gallery_go_with_their_rows():
    a, rest = table(), np.delete(np.arange(240), [0, 5, 7])
    marks = {"query": np.arange(240) % 3 == 0, "gallery": np.arange(240) % 4 != 0, "groups": np.arange(240) % 5}
    whole = replace(a, **marks, group_names=tuple("vwxyz"), paths=[f"{row}.png" for row in range(240)])
    columns = {name: column[rest] for name, column in marks.items()}
    part = replace(chosen(a, rest), **columns, group_names=whole.group_names)
    pair = pair_by_name(whole, part)
    for name, column in columns.items():
        np.testing.assert_array_equal(getattr(pair.a, name), column)
    assert pair.a.paths == [f"{row}.png" for row in rest]
    found = difference(pair, exclude="all")
    assert found.tied == found.a.queries > 0
    assert found.b.gallery == columns["gallery"].sum()


def test_tables_of_other_images_are_refused():
    a = table()
    with pytest.raises(EvaluationError, match=r"Only 0 of the 240 rows of A and 240 of B .* B has other0, other1"):
        pair_by_name(a, table(names=[f"other{row}" for row in range(240)]))
    with pytest.raises(EvaluationError, match="Only 119 of the 119 rows of A and 240 of B"):
        pair_by_name(chosen(a, np.arange(119)), a)
    assert pair_by_name(chosen(a, np.arange(120)), a).only_b == 120
    numbers = [str(row) for row in range(240)]
    with pytest.raises(EvaluationError, match="A has 240 rows, B 239, and neither has names"):
        pair_by_name(table(names=numbers), chosen(table(names=numbers), np.arange(239)))
    assert pair_by_name(table(names=numbers), table(names=numbers, seed=1)).only_a == 0


def test_another_question_to_b_is_refused():
    a = table()
    wrong = a.labels.copy()
    wrong[[3, 9]] = 0
    with pytest.raises(EvaluationError, match=r"2 rows have another class .* first image3: 'c/3' in A, 'c/0' in B"):
        pair_by_name(a, replace(a, labels=wrong))
    marks = np.arange(240) % 2 == 0
    for column in ("query", "gallery"):
        with pytest.raises(EvaluationError, match=f"mark other rows as {column}: 240 and 120"):
            pair_by_name(a, replace(a, **{column: marks}))
    assert pair_by_name(replace(a, query=marks), replace(a, query=marks)).a.query is marks
    everywhere = replace(a, query=np.ones(240, bool))
    assert pair_by_name(a, everywhere).only_a == 0
    with pytest.raises(EvaluationError, match="have no label"):
        pair_by_name(replace(a, class_names=("", *a.class_names[1:])), replace(a, class_names=("", *a.class_names[1:])))
    grouped = replace(a, groups=np.arange(240) % 5, group_names=tuple("vwxyz"))
    with pytest.raises(EvaluationError, match="needs the groups"):
        difference(pair_by_name(grouped, a), exclude="all")
    renamed = replace(grouped, groups=4 - np.arange(240) % 5, group_names=tuple("zyxwv"))
    both = difference(pair_by_name(grouped, renamed), exclude="all")
    assert (both.tied, both.a.exclude, both.b.exclude) == (240, "all", "all")
    assert difference(pair_by_name(grouped, a)).tied == 240


def test_evaluations_that_differ_in_more_than_the_vectors_are_refused():
    a, b = table(0.8), table(1.0, seed=1)
    one = evaluate_task(a.vectors, a.task())
    half = replace(b, gallery=np.arange(240) < 200)
    grouped = replace(b, groups=np.arange(240), group_names=tuple(map(str, range(240))))
    for other in (half.task(), grouped.task("all"), replace(b, query=np.arange(240) > 5).task()):
        with pytest.raises(EvaluationError, match="not evaluated alike"):
            compare(one, evaluate_task(b.vectors, other), a.labels, a.class_names)
    first, last = (replace(a, query=rows) for rows in (np.arange(240) < 120, np.arange(240) >= 120))
    with pytest.raises(EvaluationError, match="not evaluated alike: 120 and 120 queries"):
        compare(*(evaluate_task(a.vectors, side.task()) for side in (first, last)), a.labels, a.class_names)
    lone = table(lone=2)
    fewer = replace(lone, gallery=np.arange(242) < 240)
    with pytest.raises(EvaluationError, match="242 and 240 gallery items"):
        compare(*(evaluate_task(lone.vectors, side.task()) for side in (lone, fewer)), lone.labels, lone.class_names)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_verdict_says_which_is_better_and_within_what(swapped):
    good, bad = table(0.6), table(1.6, seed=1)
    found = difference(pair_by_name(bad, good) if swapped else pair_by_name(good, bad))
    low, high = found.headline.interval
    within = (-high, -low) if swapped else (low, high)
    assert within[0] > 0
    points = f"{abs(100 * found.headline.difference):.1f} points of MAP@R"
    names = ("B", "A") if swapped else ("A", "B")
    expected = f"{names[0]} is better than {names[1]} by {points} (95 % interval over classes "
    assert verdict(found) == expected + f"{100 * within[0]:.1f} to {100 * within[1]:.1f})."


def test_a_difference_within_its_interval_is_not_called_one():
    found = difference(pair_by_name(table(0.8), table(0.8, seed=1)))
    low, high = found.headline.interval
    assert low < 0 < high
    assert verdict(found).startswith("No difference shown: ")
    more = "A" if found.headline.difference > 0 else "B"
    assert f"{more} has {abs(100 * found.headline.difference):.1f} points of MAP@R more" in verdict(found)


def test_the_same_vectors_twice_are_no_difference():
    found = difference(pair_by_name(table(), table()))
    assert verdict(found, "x", "y") == "No difference: x and y have the same MAP@R in every query."
    assert (found.won, found.lost, found.tied) == (0, 0, 240)


def test_one_class_of_queries_says_nothing_of_others():
    query = np.arange(240) % 24 == 3
    found = difference(pair_by_name(*(replace(table(0.8, seed=s), query=query) for s in (0, 1))))
    assert found.headline.interval is None
    assert verdict(found).startswith("No statement: A - B = ")
    assert "only one class" in verdict(found)
    assert any("With 1 classes" in note for note in found.notes)


def test_what_a_reader_must_know_is_noted():
    a, b = table(0.8, lone=2), table(1.0, seed=1, lone=2)
    notes = " ".join(difference(pair_by_name(a, b), distances=("euclidean", "cosine")).notes)
    assert "euclidean for A, cosine for B" in notes
    assert "2 more queries have nothing to find" in notes
    assert "several trainings with different seeds" in notes
    assert "rough" not in notes
    assert "collapsed" not in notes
    assert "checkpoint" not in notes
    flat = replace(b, vectors=np.ones_like(b.vectors))
    assert "the embeddings of B have collapsed" in " ".join(difference(pair_by_name(a, flat)).notes)
    same = [replace(side, provenance={"checkpoint_sha256": "12"}) for side in (a, b)]
    assert "same checkpoint" in difference(pair_by_name(*same)).notes[0]
    results = [evaluate_task(side.vectors, side.task(), ks) for side, ks in ((a, (1, 2)), (b, (1, 5)))]
    found = compare(*results, a.labels, a.class_names)
    left_out = next(note for note in found.notes if note.startswith("Only one of the two has"))
    assert "recall@2" in left_out
    assert "recall@5" in left_out
    assert "recall@2" not in [one.name for one in found.metrics]


def test_the_text_has_the_figures():
    found = difference(pair_by_name(table(0.8), table(0.9, seed=1)), (1,))
    text = difference_text(found, "runs/a", "runs/b")
    assert text.startswith("A: runs/a\nB: runs/b\n\n" + verdict(found))
    line = next(line for line in text.splitlines() if line.startswith("recall@1")).split()
    one = next(one for one in found.metrics if one.name == "recall@1")
    assert line == [
        "recall@1",
        *(f"{100 * value:.2f}" for value in (one.a, one.b)),
        *(f"{100 * value:+.2f}" for value in (one.difference, one.interval[0])),
        "to",
        f"{100 * one.interval[1]:+.2f}",
    ]
    assert f"A wins {found.won}, B wins {found.lost}, {found.tied} are equal" in text
    assert f"A is better by most: {found.classes[0].name} ({100 * found.classes[0].difference:+.1f})" in text
    clear = difference_text(difference(pair_by_name(table(0.5), table(3.0, seed=1))), "a", "b")
    assert "A is better by most" in clear
    assert "B is better by most" not in clear
    assert f"B is better by most: {found.classes[-1].name} ({100 * found.classes[-1].difference:+.1f})" in text


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("/home/alice/x/a.npz", "/home/alice/x/b.npz"), ("a.npz", "b.npz")),
        (
            ("/home/alice/x/embeddings/test", "/home/alice/y/embeddings/test"),
            ("x/embeddings/test", "y/embeddings/test"),
        ),
        (("/home/alice/a", "/home/alice/a"), ("a", "a")),
    ],
)
def test_a_page_names_no_more_folders_than_it_must(paths, names):
    assert _told_apart(*map(Path, paths)) == names


def test_the_command(tmp_path, capsys):
    for name, side in (("a", table(0.6)), ("b", table(1.6, seed=1))):
        labels = [side.class_names[label] for label in side.labels]
        np.savez(tmp_path / f"{name}.npz", vectors=side.vectors, labels=np.array(labels), names=np.array(side.names))
    paths = [str(tmp_path / name) for name in ("a.npz", "b.npz")]
    assert main(["diff", *paths, "--ks", "1", "--html", str(tmp_path / "diff.html")]) == 0
    said = capsys.readouterr().out
    assert "A is better than B by" in said
    assert f"page: {tmp_path / 'diff.html'}" in said
    assert "A is better than B by" in (tmp_path / "diff.html").read_text(encoding="utf-8")
    np.savez(tmp_path / "c.npz", vectors=np.eye(3), labels=np.arange(3), names=np.array(["x", "y", "z"]))
    assert main(["diff", paths[0], str(tmp_path / "c.npz")]) == 5
    assert "lossopt diff: Only 0 of the 240 rows" in capsys.readouterr().err
    assert main(["diff", paths[0], str(tmp_path / "none.npz")]) == 3
    assert main(["diff", *paths, "--exclude", "all"]) == 2
