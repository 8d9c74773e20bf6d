"""The parts of a page, each against its definition: charts, chosen queries, thumbnails, maps, tables for W&B."""

import base64
import io
import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from lossopt.data.dataset import InMemory, LabelledImages
from lossopt.errors import ConfigError
from lossopt.report.chart import LEFT, TOP, Series, density_chart, line_chart, round_numbers, share_chart
from lossopt.report.classes import pair_cards
from lossopt.report.embedding_map import draw_whole_classes, map_embedding
from lossopt.report.findings import examine
from lossopt.report.galleries import Album, chance_of_recall, choose_queries, split_name
from lossopt.report.logged import logged_galleries, logged_tables
from lossopt.report.thumbnails import FilePictures, TablePictures, Thumbnails, sprite_sheet, thumbnail
from lossopt.retrieval.evaluation import evaluate_vectors
from lossopt.retrieval.vectors import Rows
from lossopt.tables import rows_of
from lossopt.tracking import finish, log_galleries, log_table, loggers, read_offline_run


def numbers(path):
    """(n, 2) points of SVG path data."""
    return np.array([[float(a), float(b)] for a, b in re.findall(r"([-\d.]+) ([-\d.]+)", path)])


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


# ------------------------------------------------------------------------------------------------------------ charts


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (92.4, 94.2), (0.5, 0.5), (0.0, 0.0), (-3, 1e6), (1e-9, 3e-9)])
def test_axes_enclose_the_data(low, high):
    ticks = round_numbers(low, high)
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12
    assert 2 <= len(ticks) <= 8
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6)


def test_long_curves_are_thinned_and_say_so():
    y = np.tile([0.0, 4.0], 5_000)
    chart = line_chart("loss", np.arange(10_000.0), y, "steps")
    (line,) = chart.lines
    assert line.line.count("L") == 119
    assert "mean of about 84 logged steps" in chart.note
    assert len(set(numbers(line.band)[:, 1])) == 2  # the band goes from the least to the greatest


def test_shares_are_drawn_where_the_axis_says():
    y = np.array([0.0, 0.25, 1.0])
    series = [
        Series("one", "main", np.arange(3.0), y, y, y),
        Series("two", "other", np.arange(2.0), np.array([0.5, 1])),
    ]
    chart = share_chart("t", series, "k", [(0.0, "1"), (1.0, "2"), (2.0, "4")], marked=[(1.0, 0.25, "here")])
    left, right, top, bottom = chart.area
    np.testing.assert_allclose(numbers(chart.lines[0].line)[:, 0], [left, (left + right) / 2, right], atol=0.06)
    np.testing.assert_allclose(numbers(chart.lines[0].line)[:, 1], bottom + y * (top - bottom), atol=0.06)
    assert [dot.text for dot in chart.lines[0].dots] == ["one: 0.0 %", "one: 25.0 %", "one: 100.0 %"]
    assert (chart.marks[0].x, chart.marks[0].y) == chart.lines[0].dots[1][:2]
    assert abs(chart.lines[0].label_y - chart.lines[1].label_y) >= 14  # both end at 100 %
    for line in chart.lines:
        assert top <= line.label_y <= bottom + 4


def test_histograms_are_scaled_each_to_its_own_height_and_marked():
    edges = np.array([0.0, 1.0, 2.0, 4.0])
    heights = np.array([1.0, 4.0, 0.0])
    chart = density_chart(
        "t", edges, [("a", "positive", heights), ("b", "negative", 100 * heights)], "d", [(3.0, "cut")]
    )
    outline, other = (numbers(line.line) for line in chart.lines)
    np.testing.assert_array_equal(outline, other)
    left, right, top, bottom = chart.area
    np.testing.assert_allclose(outline[1:-1:2, 1], bottom + heights / 4 * (top - bottom), atol=0.06)
    (mark,) = chart.uprights
    assert mark.x == pytest.approx(left + 0.75 * (right - left), abs=0.06)
    assert (left, top) == (14, TOP + 16) != (LEFT, TOP)


# ---------------------------------------------------------------------------------------------------- chosen queries


def test_chance_with_nothing_wrong_to_draw_is_one():
    assert chance_of_recall(np.array([2, 2]), np.array([2, 2]), 1) == 1
    assert chance_of_recall(np.array([1, 3]), np.array([4, 4]), 1) == pytest.approx(0.5)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 17, 18, 24, 40])
def test_no_query_is_shown_twice(count):
    rng = np.random.default_rng(count)
    score, label = rng.permutation(count) / count, np.arange(count)
    rank = rng.choice([1.0, 0.5, 0.25], count)
    chosen = choose_queries(score, label, rank)
    every = [*chosen.worst, *chosen.near_misses, *chosen.median, *chosen.best]
    assert len(set(every)) == len(every)
    assert list(score[chosen.worst]) == sorted(score)[: len(chosen.worst)]
    assert list(score[chosen.best]) == sorted(score, reverse=True)[: len(chosen.best)]
    assert (rank[chosen.near_misses] == 0.5).all()
    if count == 40:
        assert [len(part) for part in chosen] == [6, 6, 6, 6]
        others = sorted(set(range(40)) - {*chosen.worst, *chosen.best, *chosen.near_misses}, key=lambda at: score[at])
        assert sorted(score[chosen.median]) == sorted(score[others[8:14]])
        missed = sorted((score[at], at) for at in range(40) if rank[at] == 0.5 and at not in chosen.best + chosen.worst)
        assert chosen.near_misses == [at for _, at in missed[::-1][:6]]


def test_equal_scores_come_from_different_classes():
    label = np.repeat(np.arange(20), 10)
    chosen = choose_queries(np.ones(200), label, np.ones(200))
    for part in (chosen.worst, chosen.median, chosen.best):
        assert len(set(label[part])) >= 3
    assert len(set(label[chosen.worst])) == len(set(label[chosen.best])) == 6
    assert chosen.near_misses == []
    assert chosen == choose_queries(np.ones(200), label, np.ones(200))


def test_of_one_class_at_most_two_while_there_are_others():
    label = np.array([0] * 10 + [1] * 10 + [2] * 10)
    score = np.arange(30) / 30
    chosen = choose_queries(score, label, np.full(30, 0.5))
    assert chosen.worst == [0, 1, 10, 11, 20, 21]
    assert chosen.best == [29, 28, 19, 18, 9, 8]
    assert choose_queries(score, np.zeros(30, int), np.ones(30)).worst == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("name", "parts"), [("a/b/c", ("a/b/", "c")), ("c", ("", "c")), ("a/", ("", "a/")), ("", ("", ""))]
)
def test_names_are_split_at_their_last_slash(name, parts):
    assert split_name(name) == parts


# -------------------------------------------------------------------------------------------------------- thumbnails


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_images_arrive_whole_when_small_and_shrunk_when_large(channels, mode):
    small = np.arange(20 * 30 * channels, dtype=np.uint8).reshape(20, 30, channels)
    made = thumbnail(small)
    assert (opened(made.uri).mode, made.pixelated) == (mode, True)
    np.testing.assert_array_equal(np.asarray(opened(made.uri)).reshape(small.shape), small)
    large = thumbnail(np.zeros((200, 400, channels), dtype=np.uint8))
    assert (opened(large.uri).size, large.pixelated) == ((128, 64), False)
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, channels), dtype=np.uint8)
    assert thumbnail(noise).uri.startswith("data:image/jpeg;base64,")


class Counted:
    """Pictures that remember what was read; odd rows have none."""

    def __init__(self):
        self.asked = []

    def read(self, rows):
        self.asked += rows
        return [np.full((3, 3, 1), row, dtype=np.uint8) if row % 2 == 0 else None for row in rows]


def test_each_image_is_read_once():
    pictures = Counted()
    thumbnails = Thumbnails(pictures)
    thumbnails.prepare([4, 2, 4, 3])
    assert thumbnails.of(3) is None
    assert np.asarray(opened(thumbnails.of(2).uri))[0, 0] == 2
    assert pictures.asked == [4, 2, 3]


def test_a_sprite_sheet_has_the_nth_image_as_its_nth_tile():
    made = sprite_sheet(Counted(), [10, 11, 12, 13, 14], tile=3)
    assert (made.columns, made.tile, made.across, made.down) == (3, 3, 9, 6)
    sheet = np.asarray(opened(made.uri))
    assert sheet.shape == (6, 9)
    tiles = [sheet[3 * (n // 3) + 1, 3 * (n % 3) + 1] for n in range(6)]
    assert tiles == [10, 0, 12, 0, 14, 0]
    assert sprite_sheet(Counted(), [1, 3]) is None


def test_what_is_no_image_file_has_no_picture(tmp_path):
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "red.png")
    (tmp_path / "text.png").write_text("<script>")
    os.mkfifo(tmp_path / "pipe.png")
    names = ["red.png", "", "text.png", "pipe.png", "missing.png", "zero\0byte.png", ".", "/dev/zero", "x" * 5_000]
    found = FilePictures(names, tmp_path).read(range(len(names)))
    assert found[0].shape == (128, 128, 3)
    assert (found[0][..., 0] == 255).all()
    assert all(image is None for image in found[1:])
    assert FilePictures(None).read([0, 1]) == [None, None]


# --------------------------------------------------------------------------------------------------------------- map


@pytest.mark.parametrize("sizes", [[1], [5, 300, 2], [3] * 900, [50] * 30, [1] * 2_500, [10_000]])
def test_classes_are_drawn_whole_or_in_equal_shares(sizes):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)) * 7, sizes))
    rows = draw_whole_classes(labels, 600, seed=1)
    assert (np.diff(rows) > 0).all()
    assert len(rows) <= 600
    names, counts = np.unique(labels[rows], return_counts=True)
    share = max(20, 600 // len(sizes))
    expected = [min(share, sizes[name // 7]) for name in names]
    assert (counts == expected).sum() >= len(names) - 1  # the last class may be cut by the room
    assert (counts <= expected).all()
    if sum(min(share, size) for size in sizes) <= 600:
        assert len(names) == len(sizes)
    else:
        assert len(rows) == 600


def test_pca_keeps_the_distances_of_points_in_a_plane():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(40, 2)) * [3, 1]
    turned = plane @ np.linalg.qr(rng.normal(size=(5, 5)))[0][:2]
    pca = map_embedding(turned + 7, np.arange(40)).layouts[0]
    assert "100 %" in pca.how
    far = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    drawn = np.linalg.norm(pca.at[:, None] - pca.at[None], axis=2)
    np.testing.assert_allclose(drawn / drawn.max(), far / far.max(), atol=1e-9)
    assert (pca.at >= -1e-9).all()
    assert (pca.at <= 1 + 1e-9).all()


def test_tsne_keeps_far_clusters_apart_and_is_the_same_whatever_the_unit():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 15)
    points = 50 * rng.normal(size=(4, 6))[labels] + rng.normal(size=(60, 6))
    first, second = (map_embedding(scale * points, labels).layouts[1] for scale in (1, 2.0**40))
    np.testing.assert_array_equal(first.at, second.at)
    distances = np.linalg.norm(first.at[:, None] - first.at[None], axis=2) + 9 * np.eye(60)
    assert (labels[distances.argmin(axis=1)] == labels).all()
    assert "perplexity 19.7" in first.how


@pytest.mark.parametrize("points", [np.ones((30, 3)), np.arange(30.0)[:, None], np.ones((1, 4)), np.eye(3)])
def test_a_map_of_hardly_anything_is_still_a_map(points):
    made = map_embedding(points, np.arange(len(points)))
    assert len(made.layouts[0].at) == len(points)
    assert all(np.isfinite(layout.at).all() for layout in made.layouts)


def test_umap_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(ConfigError, match=r'pip install "lossopt\[umap\]"'):
        map_embedding(np.random.default_rng(0).normal(size=(30, 4)), np.arange(30), with_umap=True)


# ---------------------------------------------------------------------------------------------------- findings, W&B


def examined(noise=1.0, classes=6, each=6, **columns):
    labels = np.repeat(np.arange(classes), each)
    names = [f"image {row}" for row in range(len(labels))]
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(classes, 5))[labels] + noise * rng.normal(size=(len(labels), 5))
    table = Rows(labels, tuple(f"class {c}" for c in range(classes)), names, **columns).with_vectors(vectors, {})
    return examine(table, evaluate_vectors(table, (1, 3)))


def test_the_curve_is_recall_at_every_power_of_two_and_cut_off():
    findings = examined()
    vectors, labels = findings.vectors.vectors, findings.vectors.labels
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    right = labels[distances.argsort(axis=1)[:, :-1]] == labels[:, None]
    assert [point.k for point in findings.curve] == [1, 2, 3, 4, 8, 16, 32]
    for point in findings.curve:
        assert point.value == pytest.approx(right[:, : point.k].any(axis=1).mean())
        assert point.interval[0] <= point.value <= point.interval[1]
    np.testing.assert_array_equal(findings.first_right, right[:, 0])
    np.testing.assert_array_equal(findings.near.rows, distances.argsort(axis=1)[:, :10])


def test_of_a_very_large_table_only_the_asked_cut_offs_are_known(monkeypatch):
    monkeypatch.setattr("lossopt.report.findings._MOST_PAIRS", 36 * 36 - 1)
    monkeypatch.setattr("lossopt.report.findings._MOST_LISTED", 10)
    findings = examined()
    assert [point.k for point in findings.curve] == [1, 3]
    assert findings.near.rows.shape == (10, 10)
    assert len(findings.listed) == 10


def test_names_belong_to_their_classes_though_some_have_no_row():
    labels = np.repeat([5, 2, 9], 6)
    names = [str(row) for row in range(18)]
    vectors = np.random.default_rng(0).normal(size=(18, 4)) + labels[:, None] * [9, 0, 0, 0]
    table = Rows(labels, tuple(f"class {c}" for c in range(11)), names).with_vectors(vectors, {})
    findings = examine(table, evaluate_vectors(table, (1,)), trained_on=["class 2", "class 3"])
    assert {part.name for part in findings.classes} == {"class 5", "class 2", "class 9"}
    assert {part.name: part.queries for part in findings.seen} == {"seen": 6, "unseen": 12}
    assert findings.class_disjoint is False


def test_a_confused_pair_shows_first_what_its_words_say():
    findings = examined(2.0)
    cards = pair_cards(findings, Album(findings.vectors, Thumbnails(FilePictures(None)))).pairs
    turned = 0
    for card, pair in zip(cards, findings.confusions.pairs, strict=False):
        names = [(asked.class_name, found.class_name) for asked, found in card.examples]
        assert {*names} <= {(card.first, card.second), (card.second, card.first)}
        assert names == sorted(names, key=lambda both: both[0] != card.first)
        queries = [f"class {findings.vectors.labels[query]}" for query, _ in pair.examples[:2]]
        turned += queries != [asked for asked, _ in names]
    assert len(cards) == 12
    assert turned


def test_wandb_gets_the_tables_of_the_page(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    labels = torch.arange(6).repeat_interleave(6)
    pixels = torch.randint(0, 256, (36, 3, 9, 9), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    names = [f"/home/alice/{row}.png" for row in range(36)]
    table = LabelledImages(InMemory(pixels), labels, tuple(f"/home/alice/{c}" for c in "abcdef"), names)
    pictures = TablePictures(table)
    vectors = rows_of(table).with_vectors(examined(1.5).vectors.vectors, {})
    findings = examine(vectors, evaluate_vectors(vectors, (1, 3)))
    both = loggers(tmp_path / "run", name="tiny", config={})
    log_galleries(both, "test/galleries", logged_galleries(findings, pictures), 7)
    for table_ in logged_tables(findings, pictures):
        log_table(both, f"test/{table_.name}", table_.columns, table_.rows, 7, table_.line)
    finish(both, {})
    run = read_offline_run(next((tmp_path / "run" / "wandb").glob("offline-run-*")))
    files = {name: path for name, path in run.files.items() if re.match(r"test/.*\.table\.json$", name)}
    read = {re.sub(r"(_table)?\.table\.json$", "", name): json.loads(path.read_text()) for name, path in files.items()}
    wanted = {"galleries", "recall_at_k", "classes", "confusions", "map", "suspected_labels", "distances", "roc"}
    assert set(read) == {f"test/{name}" for name in wanted}
    curve = read["test/recall_at_k"]
    assert curve["columns"] == ["k", "recall", "low", "high", "chance"]
    assert [row[:2] for row in curve["data"]] == [[point.k, point.value] for point in findings.curve]
    classes = [[part.queries, *part.metrics.values()] for part in findings.classes]
    assert [row[1:] for row in read["test/classes"]["data"]] == classes
    assert len(read["test/galleries"]["data"]) == 20
    first = read["test/confusions"]["data"][0]
    assert first[5]["_type"] == "image-file"
    assert not any("alice" in path.read_text() for path in files.values())


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="every row needs 2 values, one for each of a, b"):
        log_table([], "x", ["a", "b"], [[1]])
