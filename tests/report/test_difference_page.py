"""The page of a difference: its figures, and that nothing in it can act, whatever classes and files are called."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from lossopt.data.dataset import InMemory, LabelledImages
from lossopt.report.difference import SomePictures, most_changed, points, summarise, write_difference_page
from lossopt.report.thumbnails import FilePictures, TablePictures
from lossopt.retrieval.difference import difference, pair_by_name, verdict
from lossopt.retrieval.vectors import Rows

HOSTILE = (
    "x&<img src=q onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "</style><style>*{background:url(https://evil.example)}",
    "{{7*7}}{% raw %}",
    "javascript:alert(3)",
    "\"' onmouseover='alert(4)' style=\"background:url(https://evil.example/x)",
    "]]>--><svg/onload=alert(5)>",
    "bytes \udce9\u202e and tail",
)
TAGS = """
    html head meta title style script body main header section p h1 h2 h3 span strong b br div ol ul li dl dt dd table
    thead tr td th tbody figure figcaption svg line text rect bdi article img details summary
"""
ATTRIBUTES = """
    lang charset http-equiv content name class role scope viewbox aria-label aria-sort x x1 x2 y y1 y2 width height dy
    transform text-anchor src alt title style data-sort data-sortable data-v tabindex
"""


class Page(HTMLParser):
    """Everything of a page that could act, and what it says."""

    def __init__(self, text):
        super().__init__()
        self.raw, self.tags, self.attributes, self.said, self._code = text, [], [], [], ""
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.said))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._code = tag if tag in ("style", "script") else ""

    def handle_endtag(self, tag):
        self._code = ""

    def handle_data(self, data):
        if not self._code:
            self.said.append(data)


def tables(names=None, each=12, classes=8, noise=(0.7, 1.1), **columns):
    """Two tables of the same images, and their images."""
    names = names or tuple(f"group/class{number}" for number in range(classes))
    labels = np.arange(len(names)).repeat(each)
    files = [f"{names[label]}/{row}.png" for row, label in enumerate(labels)]
    rows = Rows(labels, tuple(names), files, **columns)
    centres = np.random.default_rng(0).normal(size=(len(names), 6))[labels]
    sides = [
        rows.with_vectors(centres + amount * np.random.default_rng([9, seed]).normal(size=centres.shape), {})
        for seed, amount in enumerate(noise)
    ]
    pixels = torch.randint(0, 256, (len(labels), 1, 20, 20), generator=torch.Generator().manual_seed(1))
    return *sides, LabelledImages(InMemory(pixels.to(torch.uint8)), torch.from_numpy(labels), tuple(names), files)


def written(folder, a, b, pictures, names=("run a", "run b")):
    pair = pair_by_name(a, b)
    found = difference(pair)
    path = write_difference_page(folder / "diff.html", found, pair, names, pictures)
    return Page(path.read_text(encoding="utf-8")), found


def test_the_page_says_the_figures(tmp_path):
    a, b, images = tables()
    page, found = written(tmp_path, a, b, [TablePictures(images)])
    headline = found.headline
    assert f"{points(headline.difference)} points MAP@R, A − B" in page.text
    assert verdict(found) in page.text
    ends = " to ".join(points(end) for end in headline.interval)
    assert f"95 % interval over classes {ends}" in page.text
    for one in found.metrics:
        name = {"map@r": "MAP@R", "r_precision": "R-precision"}.get(one.name, one.name)
        if name.startswith(("recall", "MAP@R", "R-prec", "found")):
            cells = f"{name} {100 * one.a:.2f} {100 * one.b:.2f} {points(one.difference, 2)}"
            assert cells in page.text
    assert f"A wins {found.won} equal {found.tied} B wins {found.lost}" in page.text
    assert "several trainings with different seeds" in page.text
    assert "Do not believe" not in page.text
    assert "run a" in page.text


def test_each_query_shows_what_either_found(tmp_path):
    a, b, images = tables()
    page, found = written(tmp_path, a, b, [TablePictures(images)])
    verdicts = [value for tag, name, value in page.attributes if (tag, name) == ("span", "aria-label")]
    shown = page.tags.count("article")
    assert shown == 16
    assert len(verdicts) == shown * 10
    pair = pair_by_name(a, b)
    shown_rows = summarise(found, pair, [TablePictures(images)])
    near = [near for one in shown_rows.won + shown_rows.lost for near in one.found_by_a + one.found_by_b]
    assert verdicts == ["right" if one.correct else "wrong" for one in near]
    assert {"right", "wrong"} == set(verdicts)
    assert page.text.count("✓") == verdicts.count("right") + 1
    assert page.tags.count("img") == shown * 11


def test_the_galleries_hold_the_queries_that_changed_most():
    a, b, images = tables()
    pair = pair_by_name(a, b)
    found = difference(pair)
    page = summarise(found, pair, [TablePictures(images)])
    best = page.won[0]
    place = int(np.argmax(found.per_query))
    assert best.query.name == a.names[found.a.query_rows[place]]
    assert (best.a, best.b) == (found.a.per_query["map@r"][place], found.b.per_query["map@r"][place])
    for one in page.won:
        assert one.a > one.b
        row = a.names.index(one.query.name)
        for side, near in ((a, one.found_by_a), (b, one.found_by_b)):
            distances = np.linalg.norm(side.vectors - side.vectors[row], axis=1)
            distances[row] = np.inf
            assert [found.name for found in near] == [a.names[other] for other in np.argsort(distances)[:5]]
            np.testing.assert_allclose([found.distance for found in near], np.sort(distances)[:5])
            assert [found.correct for found in near] == [a.labels[a.names.index(f.name)] == a.labels[row] for f in near]
    for one in page.lost:
        assert one.a < one.b
    assert len({one.query.class_name for one in page.won}) == min(8, len(page.won))


def test_every_query_is_in_one_square():
    a, b, images = tables()
    pair = pair_by_name(a, b)
    found = difference(pair)
    page = summarise(found, pair, [TablePictures(images)])
    counts = {kind: 0 for kind in ("a", "b", "tie")}
    for cell in page.cells:
        counts[cell.kind] += int(cell.words.split()[0].replace(",", ""))
        assert 0 <= cell.x <= cell.x + cell.side <= 300.1
        assert 0 <= cell.y <= cell.y + cell.side <= 300.1
        middle = (cell.x + cell.side / 2, 300 - cell.y - cell.side / 2)
        expected = "tie" if abs(middle[0] - middle[1]) < 1 else "a" if middle[0] > middle[1] else "b"
        assert cell.kind == expected
    assert sum(counts.values()) == found.a.queries
    assert counts["a"] <= found.won
    assert counts["b"] <= found.lost


@pytest.mark.parametrize("noise", [(1.0, 1.0), (0.5, 2.0), (2.0, 0.5)])
def test_intervals_stand_where_they_belong_on_their_axis(noise):
    a, b, images = tables(noise=noise)
    pair = pair_by_name(a, b)
    found = difference(pair)
    page = summarise(found, pair, [TablePictures(images)])
    bars = page.main + page.details
    assert page.main[0].metric == found.headline
    assert not [bar for bar in page.main if bar.metric.name.startswith("precision@")]
    assert 0 < page.zero < 100
    assert {bar.metric.name for bar in bars} == {one.name for one in found.metrics}
    for bar in bars:
        low, high = bar.metric.interval
        assert 0 <= bar.left <= bar.left + bar.width <= 100
        assert (bar.left > page.zero) == (low > 0)
        assert (bar.left + bar.width < page.zero) == (high < 0)
        assert bar.left - 1e-9 <= bar.at <= bar.left + bar.width + 1e-9
        assert bar.sure == (low > 0 or high < 0)


def test_names_are_inert(tmp_path):
    a, b, images = tables(HOSTILE, each=6)
    page, _ = written(tmp_path, a, b, [TablePictures(images)], names=(HOSTILE[0], HOSTILE[1]))
    assert set(page.tags) <= set(TAGS.split())
    assert {name for _, name, _ in page.attributes} <= set(ATTRIBUTES.split())
    assert page.tags.count("script") == 1
    assert page.tags.count("style") == 1
    sources = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert sources
    assert all(re.fullmatch(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", value) for value in sources)
    styles = [value for _, name, value in page.attributes if name == "style"]
    assert all(re.fullmatch(r"(left:[\d.]+%;?|width:[\d.]+%|flex:\d+|--share:[\d.]+)+", value) for value in styles)
    for name in HOSTILE[:-1]:
        assert name.rpartition("/")[2] in page.text
    assert "bytes \\udce9" in page.text


def test_the_policy_forbids_everything_but_the_inlined(tmp_path):
    a, b, images = tables()
    page, _ = written(tmp_path, a, b, [TablePictures(images)])
    policies = [value for tag, name, value in page.attributes if (tag, name) == ("meta", "content")]
    policy = next(value for value in policies if value.startswith("default-src 'none'"))
    assert "unsafe-inline'; script-src 'sha256-" in policy
    assert page.raw.index("Content-Security-Policy") < page.raw.index("<style>")
    style = page.raw[page.raw.index("<style>") : page.raw.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_pictures_follow_the_rows_of_the_pair_and_fall_back(tmp_path):
    a, b, _ = tables(classes=2, each=5)
    for row in range(10):
        Image.new("RGB", (16, 16), (20 * row, 0, 0)).save(tmp_path / f"{row}.png")
    paths = [f"{row}.png" for row in range(10)]
    paths[::2] = ["missing.png"] * 5
    first = SomePictures(FilePictures(paths, tmp_path), np.array([7, 2, 0]))
    found = first.read([2, 0, 1])
    assert found[1][0, 0, 0] == 140
    assert found[0] is None
    assert found[2] is None
    a_only = SomePictures(FilePictures(None), np.arange(10))
    page, _ = written(tmp_path, a, b, [a_only, SomePictures(FilePictures(paths, tmp_path), np.arange(10))])
    assert "img" in page.tags
    assert ("span", "class", "found no-image") in page.attributes
    page, _ = written(tmp_path, a, b, [a_only])
    assert "img" not in page.tags


def test_the_first_source_of_an_image_is_taken():
    a, b, images = tables()
    black = LabelledImages(
        InMemory(torch.zeros(96, 1, 20, 20, dtype=torch.uint8)), images.labels, images.class_names, images.names
    )
    pair = pair_by_name(a, b)
    found = difference(pair)
    both, first = (
        summarise(found, pair, [TablePictures(one) for one in some]) for some in ((images, black), (images,))
    )
    assert both.won[0].query.image == first.won[0].query.image


def test_a_collapse_comes_before_the_figures(tmp_path):
    a, b, images = tables()
    flat = b.rows().with_vectors(np.ones_like(b.vectors), {})
    page, _ = written(tmp_path, a, flat, [TablePictures(images)])
    assert page.text.index("Do not believe this") < page.text.index("MAP@R, A − B")
    assert "embeddings of B have collapsed" in page.text


def test_nothing_won_and_nothing_lost(tmp_path):
    a, _, images = tables()
    page, _ = written(tmp_path, a, a, [TablePictures(images)])
    assert page.text.count("There is none.") == 2
    assert page.text.count("No class.") == 2
    assert "No difference" in page.text


def test_no_path_of_the_machine_is_on_the_page(tmp_path):
    root = "/home/alice/pictures"
    a, b, images = tables()
    names = [f"{root}/{row}.png" for row in range(len(a))]
    sides = [Rows(side.labels, side.class_names, names).with_vectors(side.vectors, {}) for side in (a, b)]
    page, _ = written(tmp_path, *sides, [TablePictures(images)], names=(f"{root}/a", f"{root}/b"))
    assert "alice" not in page.raw


def test_most_changed_takes_one_of_each_class_first():
    gain = np.array([9.0, 8, 7, 6, 5, 0, -1])
    label = np.array([0, 0, 1, 1, 2, 3, 3])
    assert most_changed(gain, label, 3) == [0, 2, 4]
    assert most_changed(gain, label, 4) == [0, 1, 2, 4]
    assert most_changed(gain, label, 9) == [0, 1, 2, 3, 4]
    assert most_changed(-np.ones(3), np.zeros(3, int)) == []


@pytest.mark.parametrize(("share", "text"), [(0.0512, "+5.1"), (-0.0512, "−5.1"), (None, "–"), (0.0, "+0.0")])
def test_points_are_signed(share, text):
    assert points(share) == text
