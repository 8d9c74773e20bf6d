"""What an index finds, against a count by definition; and the page that shows it."""

import math
from html.parser import HTMLParser

import numpy as np
import pytest

from lossopt.errors import ConfigError, EvaluationError
from lossopt.report.tuning import rate_text, time_text, tuning_picture, write_tuning_page
from lossopt.retrieval import tuning as tuning_module
from lossopt.retrieval.index import NeighbourIndex
from lossopt.retrieval.tuning import (
    Measured,
    OperatingPoint,
    Tuning,
    as_text,
    at_least,
    default_factories,
    draw_sample,
    measure,
    tune,
)
from lossopt.retrieval.vectors import LabelledVectors


def table(vectors, query=None, gallery=None):
    n = len(vectors)
    return LabelledVectors(
        vectors, np.zeros(n, np.int64), ("class",), [str(row) for row in range(n)], query=query, gallery=gallery
    )


def clustered(n, d=8, seed=0, classes=20):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, d))
    return (centres[rng.integers(classes, size=n)] + 0.4 * rng.normal(size=(n, d))).astype(np.float32)


def distance_by_definition(a, b, distance):
    if distance == "euclidean":
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    return 1 - sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def recall_by_definition(index, vectors, queries, gallery, k, distance):
    """For each query: the k nearest others by the definition; of the first k others that the index lists, how many are
    as near as the last of those; as exact and as listed as whole-number vectors allow."""
    shares = []
    rows = vectors.tolist()
    for query in queries:
        exact = sorted(distance_by_definition(rows[query], rows[item], distance) for item in gallery if item != query)
        wanted = min(k, len(exact))
        listed = [gallery[place] for place in index.search(vectors[[query]], len(gallery)).rows[0] if place >= 0]
        listed = [item for item in listed if item != query][:k]
        reach = exact[wanted - 1] + 1e-9
        right = sum(distance_by_definition(rows[query], rows[item], distance) <= reach for item in listed)
        shares.append(right / wanted)
    return shares


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "PQ2x4np"])
def test_recall_is_the_share_by_definition_among_ties_and_duplicates(factory, distance):
    rng = np.random.default_rng(3)
    vectors = rng.integers(1, 5, (200, 4)).astype(np.float32)  # whole numbers: many ties, many duplicates
    query, gallery = rng.random((2, 200)) < 0.8
    data = table(vectors, query, gallery)
    rows = np.flatnonzero(gallery)
    index = NeighbourIndex(vectors, distance, factory, rows=rows)
    sample = draw_sample(data, distance, k=5)
    expected = recall_by_definition(index, vectors, np.flatnonzero(query), rows.tolist(), 5, distance)
    found = measure(index, data, sample).recall
    if factory == "Flat":
        assert found == 1
    else:
        # among equal distances an index lists what it likes, and the longer list need not begin like the shorter one
        assert found == pytest.approx(np.mean(expected), abs=0.02) and found < 1


def test_an_index_with_other_rows_scores_nothing():
    vectors = clustered(300)
    data = table(vectors)
    far = NeighbourIndex(np.concatenate([vectors[200:] + 50, vectors[:200] + 50]))
    assert measure(far, data, draw_sample(data, k=3)).recall < 0.2


def test_the_query_itself_is_neither_found_nor_wanted():
    vectors = np.arange(10, dtype=np.float32)[:, None] ** 2
    sample = draw_sample(table(vectors), k=2)
    assert sample.itself.tolist() == list(range(10)) and sample.reach[0] == 4 and sample.reach[9] == 32
    assert measure(NeighbourIndex(vectors), table(vectors), sample).recall == 1
    asks = np.arange(10) < 3
    outside = draw_sample(table(vectors, asks, ~asks), k=2)
    assert outside.itself.tolist() == [-1, -1, -1] and outside.reach.tolist() == [16, 15, 12]


def test_k_beyond_the_gallery_wants_what_there_is():
    vectors = clustered(6)
    data = table(vectors)
    sample = draw_sample(data, k=10)
    assert sample.wanted.tolist() == [5] * 6
    assert measure(NeighbourIndex(vectors), data, sample).recall == 1
    asks = np.array([True, True, False, False, False, False])
    mixed = draw_sample(table(vectors, None, asks), k=10)
    assert mixed.wanted.tolist() == [1, 1, 2, 2, 2, 2]


def test_what_has_nothing_to_find_or_no_distance_is_refused():
    with pytest.raises(EvaluationError, match="nothing to find"):
        draw_sample(table(clustered(1)))
    spoilt = clustered(20)
    spoilt[[4, 9]] = np.nan
    with pytest.raises(EvaluationError, match=r"2 of 20 gallery vectors are NaN .*\[4, 9\]"):
        draw_sample(table(spoilt))
    asks = np.zeros(20, dtype=bool)
    asks[4] = True
    with pytest.raises(EvaluationError, match=r"1 of 1 queries are NaN .*\[4\]"):
        draw_sample(table(spoilt, asks, np.arange(20) < 3))
    for wrong in ({"k": 0}, {"most": 0}):
        with pytest.raises(ValueError, match="1 or more"):
            draw_sample(table(clustered(5)), **wrong)


def test_a_sample_is_drawn_by_seed_and_never_larger_than_asked():
    data = table(clustered(300))
    first, again, other = (draw_sample(data, most=40, seed=seed) for seed in (0, 0, 1))
    assert len(first.asked) == 40 and np.array_equal(first.itself, again.itself)
    assert not np.array_equal(first.itself, other.itself)
    assert len(set(first.itself.tolist())) == 40


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_the_exact_answer_does_not_depend_on_how_the_gallery_is_read(distance, monkeypatch):
    vectors = np.round(4 * clustered(300)) + 0.5
    gallery = np.arange(300) % 7 != 0
    whole = draw_sample(table(vectors, None, gallery), distance, k=12)
    monkeypatch.setattr(tuning_module, "_CELLS", 8 * 11)
    parts = draw_sample(table(vectors, None, gallery), distance, k=12)
    np.testing.assert_allclose(parts.reach, whole.reach, rtol=1e-12)
    assert np.array_equal(parts.wanted, whole.wanted)
    data = table(vectors, None, gallery)
    index = NeighbourIndex(vectors, distance, "IVF4,Flat", rows=np.flatnonzero(gallery))
    in_parts = measure(index, data, whole).recall
    monkeypatch.undo()
    assert measure(index, data, whole).recall == in_parts


# ----------------------------------------------------------------------------------------------------------- tuning


@pytest.fixture(scope="module")
def tuned():
    return tune(table(clustered(1500, 16)), k=5, most_queries=150)


def test_exact_search_comes_first_and_every_index_is_measured(tuned):
    points = tuned.points
    assert points[0].factory == "Flat" and points[0].measured.recall == 1
    assert {point.factory for point in points} == set(default_factories(1500, 16))
    assert (tuned.k, tuned.queries, tuned.gallery, tuned.dimensions) == (5, 150, 1500, 16)
    assert all(0 < point.measured.recall <= 1 and point.measured.seconds > 0 for point in points)
    assert all(point.measured.batch_seconds > 0 and point.build_seconds >= 0 for point in points)
    sizes = {point.factory: point.measured.nbytes for point in points}
    assert sizes["SQ8"] < sizes["Flat"] / 3 and sizes["HNSW32,Flat"] > sizes["Flat"]
    assert any("advises" in note for note in tuned.notes)


def test_more_probes_find_more_and_no_setting_is_listed_that_another_beats(tuned):
    for factory in {point.factory for point in tuned.points}:
        own = sorted((p for p in tuned.points if p.factory == factory), key=lambda p: p.measured.seconds)
        recalls = [point.measured.recall for point in own]
        assert recalls == sorted(recalls) and len(set(recalls)) == len(recalls)


def test_the_best_are_those_that_nothing_beats(tuned):
    for one in tuned.points:
        beaten = any(
            other.measured.recall >= one.measured.recall
            and other.measured.seconds <= one.measured.seconds
            and other.measured[:2] != one.measured[:2]
            for other in tuned.points
        )
        assert one.optimal is not beaten
    assert any(point.optimal for point in tuned.points)


def point(name, recall, seconds, nbytes, optimal=False):
    factory, _, parameters = name.partition(" ")
    return OperatingPoint(factory, parameters, Measured(recall, seconds, seconds / 4, nbytes), 0.5, optimal)


def some_tuning(*points, notes=()):
    return Tuning(points, 10, 1000, 20_000, 64, "euclidean", 2, notes)


def test_the_quickest_and_the_smallest_that_are_good_enough():
    found = some_tuning(
        point("Flat", 1, 1e-3, 5_000_000, True),
        point("IVF8,Flat nprobe=2", 0.97, 2e-4, 5_100_000, True),
        point("SQ8", 0.992, 1.1e-3, 1_300_000),
    )
    assert [each.name for each in at_least(found, 0.95)] == ["IVF8,Flat nprobe=2", "SQ8"]
    assert [each.name for each in at_least(found, 0.999)] == ["Flat"]
    assert at_least(some_tuning(point("SQ8", 0.9, 1, 1)), 0.99) == []
    text = as_text(found)
    assert "*  100.00 %     1.000 ms     4,000 /s     5.0 MB    0.5 s  Flat\n" in text
    assert "   99.20 %     1.100 ms" in text
    assert "At least 95%: quickest IVF8,Flat nprobe=2; smallest SQ8." in text
    assert "At least 99%: quickest Flat; smallest SQ8." in text
    nothing = as_text(some_tuning(point("SQ8", 0.9, 1, 1)))
    assert "At least 95%: none of these." in nothing


def test_factories_of_ones_own_are_measured_beside_exact_search_only():
    heard = []
    found = tune(table(clustered(300)), "cosine", ["IVF4,Flat", "IVF64,Flat"], 3, 50, say=heard.append)
    assert heard == ["Flat", "IVF4,Flat", "IVF64,Flat"]
    assert {each.factory for each in found.points} == {"Flat", "IVF4,Flat", "IVF7,Flat"}
    assert found.points[0].measured.recall > 0.99 and found.distance == "cosine"
    assert found.notes == ("IVF64,Flat: 7 lists instead of 64: each needs 39 rows to be trained, and there are 300.",)
    again = tune(table(clustered(300)), "euclidean", ["IVF7,Flat", "IVF64,Flat"], 3, 50)
    names = [each.name for each in again.points]
    assert len(set(names)) == len(names)  # IVF64 becomes IVF7, which is measured once
    with pytest.raises(ConfigError, match="bogus"):
        tune(table(clustered(60)), factories=["bogus"])


def test_settings_stop_where_everything_is_found(monkeypatch):
    asked = []
    monkeypatch.setattr(
        NeighbourIndex, "set_parameters", lambda index, parameters, all_known=True: asked.append(parameters)
    )
    tune(table(clustered(400)), factories=["HNSW32,Flat"], k=3, most_queries=50)
    assert "efSearch=4" in asked and "efSearch=512" not in asked  # a default of 16 finds everything at once


@pytest.mark.parametrize(("n", "d"), [(2, 1), (60, 7), (999, 64), (1200, 1), (1200, 3), (1200, 7), (1500, 24)])
def test_the_usual_indexes_can_be_built_for_any_size(n, d):
    for factory in default_factories(n, d):
        index = NeighbourIndex(np.random.default_rng(0).normal(size=(n, d)).astype(np.float32), factory=factory)
        assert index.factory == factory


def test_lists_grow_with_the_root_of_the_rows():
    assert "IVF256,Flat" in default_factories(13_180, 64) and "IVF1024,Flat" in default_factories(60_000, 128)
    assert not any("IVF" in factory for factory in default_factories(100, 64))


# --------------------------------------------------------------------------------------------------------- the page


def acting(text):
    """Tags and attributes by which a page could fetch or do something."""
    found = []

    class Page(HTMLParser):
        def handle_starttag(self, tag, attrs):
            names = [name for name, _ in attrs if name in ("src", "href", "srcset", "style") or name.startswith("on")]
            found.extend([tag] if tag in ("script", "img", "iframe", "object", "link", "form") else [])
            found.extend(f"{tag} {name}" for name in names)

    Page().feed(text)
    return found


def page_of(tmp_path, tuning, title="run/test"):
    path = tmp_path / "tune.html"
    assert write_tuning_page(path, tuning, title) == path
    return path.read_text(encoding="utf-8")


def test_the_page_says_every_point_and_acts_on_nothing(tuned, tmp_path):
    text = page_of(tmp_path, tuned, "x&<img src=q onerror=alert(1)>{{7*7}} /home/me/secret")
    for each in tuned.points:
        assert each.name.replace(",", ",<wbr>") in text
        assert f"{100 * each.measured.recall:.2f}\N{NO-BREAK SPACE}%" in text
    assert text.count('class="mark"') == 2 * sum(each.optimal for each in tuned.points)  # wide and narrow
    assert "<img" not in text and "{{7*7}}" in text and "/home/me" not in text
    assert "<script" not in text and "default-src &#39;none&#39;" in text
    assert acting(text) == []
    assert "viewport" in text and "prefers-color-scheme" in text


def test_labels_stay_inside_and_cover_no_other_label(tuned):
    for size in ((960, 440), (370, 400)):
        picture = tuning_picture(tuned, size)
        boxes = []
        for mark in [*picture.chart.marks, *(mark for _, mark in picture.names)]:
            if mark.text:
                width = 6.4 * len(mark.text)
                left = mark.text_x - (width if mark.anchor == "end" else 0)
                boxes.append((left, mark.text_y - 10, left + width, mark.text_y + 3))
                assert left > 0 and left + width < size[0] and 0 < mark.text_y < size[1]
        for number, a in enumerate(boxes):
            for b in boxes[number + 1 :]:
                assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])
        left, right, top, bottom = picture.chart.area
        for line in picture.chart.lines:
            assert all(left <= dot.x <= right and top <= dot.y <= bottom for dot in line.dots)
        assert len(picture.chart.x_ticks) >= 4


def test_the_axes_are_logarithmic_in_time_and_in_what_is_missed(tmp_path):
    found = some_tuning(
        *(
            point(f"A p={n}", recall, seconds, 1, True)
            for n, (recall, seconds) in enumerate([(0.9, 1e-5), (0.99, 1e-4), (0.999, 1e-3)])
        )
    )
    (line,) = tuning_picture(found, (960, 440)).chart.lines[1:]
    x, y = ([dot[axis] for dot in line.dots] for axis in (0, 1))
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2) and x[0] < x[2]
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.2) and y[0] > y[2]
    ticks = tuning_picture(found, (960, 440)).chart.y_ticks
    assert [tick.text for tick in ticks] == ["90", "95", "98", "99", "99.5", "99.9", "100"]
    assert "★" in page_of(tmp_path, found)


def test_one_point_alone_makes_a_page(tmp_path):
    text = page_of(tmp_path, some_tuning(point("Flat", 1.0, 1e-3, 5_000_000, True), notes=("IVF9: too few",)))
    assert "quickest and smallest" in text and "IVF9: too few" in text
    assert "no index of these reaches it" in page_of(tmp_path, some_tuning(point("SQ8", 0.3, 1e-3, 5, True)))


def test_figures_are_rounded_to_what_they_are_worth():
    assert [time_text(seconds).replace("\N{NO-BREAK SPACE}", " ") for seconds in (1.8e-5, 1.23e-3, 0.0456)] == [
        *("0.018 ms", "1.23 ms", "45.6 ms")
    ]
    assert [rate_text(seconds) for seconds in (1 / 163_655, 1 / 87, 3.0)] == ["160,000", "87", "0"]
