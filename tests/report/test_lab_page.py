"""The lab page: it draws the pieces that it is given, to the digit; nothing in it can act, whatever they are called."""

import base64
import hashlib
import json
import math
import re
import struct
from html.parser import HTMLParser

import numpy as np
import pytest

from lossopt.lab.pieces import Activity, Curve, Descent, Landscape, Lines, Paths, Slider, Surface, TripletStep
from lossopt.report.lab import Lab, breakable, formula, scripted, write_lab_page
from lossopt.report.lab_curves import TOGETHER, labelled_side, reach, scaled
from lossopt.report.lab_drawing import Frame, Moving, number, pack, spread_out, ticks_of, trace
from lossopt.report.lab_networks import loss_levels
from lossopt.report.lab_relief import bands, levels_of, said_of
from lossopt.report.page import HOME

HOSTILE = "</script><script>alert(1)</script>"
QUOTED = "\"' onmouseover='alert(2)' style=\"background:url(https://evil.example)"
BRACED = "{{7*7}}{% raw %}<img src=q onerror=alert(3)>]]>--><svg/onload=alert(4)>"
X = np.linspace(-3, 3, 41)
DELTAS = (0.5, 1.0, 2.0)
TAGS = """
    html head meta title style script body nav ol li a main svg defs clippath rect g path header p h1 h2 h3 span
    noscript section figure figcaption div line text label input output table thead tbody tr th td i code fieldset
    legend use circle dl dt dd br sub sup pre bdi button
"""


class Page(HTMLParser):
    """Everything of a page that could act, what it says, and its elements by their key in the script's data."""

    def __init__(self, text):
        super().__init__()
        self.raw, self.tags, self.attributes, self.said, self._code = text, [], [], [], ""
        self.labels, self.inputs, self._depth = 0, [], []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.said)).replace("\N{NO-BREAK SPACE}", " ")
        start = text.index(">", text.index('id="lab-data"')) + 1
        self.data = json.loads(text[start : text.index("</script>", start)])

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._code = tag if tag in ("style", "script") else ""
        if tag == "label":
            self.labels += 1
        if tag == "input":
            self.inputs.append((self.labels, dict(attrs)))

    def handle_endtag(self, tag):
        self._code = ""
        self.labels -= tag == "label"

    def handle_data(self, data):
        if not self._code:
            self.said.append(data)

    def array(self, key):
        """Decoded by hand, from what the format says: int16, little-endian, -32768 a gap."""
        packed = self.data["arrays"][key]
        raw = base64.b64decode(packed["data"])
        steps = struct.unpack(f"<{len(raw) // 2}h", raw)
        step = (packed["high"] - packed["low"]) / 65534
        values = [math.nan if one == -32768 else packed["low"] + (one + 32767) * step for one in steps]
        return np.array(values).reshape(packed["shape"]), step

    def drawn(self, key, kind="line"):
        """Path data of what is drawn under a key."""
        part = self.raw[self.raw.index(f'data-draw="{key}"') :]
        return re.findall(rf'<path class="{kind}[^"]*" d="([^"]*)"', part)[0]


def points_of(d):
    """Path data of M and l to a list of runs of points."""
    runs = []
    for run in re.findall(r"M([^M]*)", d):
        steps = np.array([float(word) for word in run.replace("l", " ").replace("Z", " ").split()]).reshape(-1, 2)
        runs.append(steps.cumsum(axis=0))
    return runs


def huber(delta):
    return np.where(abs(X) <= delta, X**2 / 2, delta * (abs(X) - delta / 2)), np.clip(X, -delta, delta)


def curve(name="Huber", family="regression", value=None, gradient=None, slider=None, **words):
    said = {"formula": "e^(−x) < s_j", "says": "It says.", "source": "Huber 1964", "where": "torch.nn.HuberLoss"}
    said |= {"x_label": "error", "edge": "At 0 it is 0."} | words
    edge = said.pop("edge")
    x_label = said.pop("x_label")
    rows = [huber(delta) for delta in DELTAS]
    value = np.stack([row[0] for row in rows]) if value is None else value
    gradient = np.stack([row[1] for row in rows]) if gradient is None else gradient
    return Curve(name, family, **said, x_label=x_label, x=X, slider=slider, value=value, gradient=gradient, edge=edge)


def bowl(name="bowl", minimum=(0.0, 0.0), sign=1):
    axis = np.linspace(-2, 2, 41)
    x, y = np.meshgrid(axis, axis)
    return Surface(name, "A bowl.", "x² + y²", axis, axis, x**2 + sign * y**2, (-1.5, 1.0), minimum)


def walk(surface, name="SGD", momentum=None):
    """Gradient descent by hand at rates 0.1, 0.4 and 1.3; the last one leaves and is NaN from step 4 on."""
    rates, momenta, steps = (0.1, 0.4, 1.3), 1 if momentum is None else len(momentum.values), 6
    points = np.empty((3, momenta, steps, 2))
    for at, rate in enumerate(rates):
        for step in range(steps):
            points[at, :, step] = np.array(surface.start) * (1 - 2 * rate) ** step
    points[2, :, 4:] = np.nan
    if momentum is not None:
        points[:, 1] *= 0.5
    height = points[..., 0] ** 2 + points[..., 1] ** 2
    return Paths(name, surface.name, Slider("rate", rates, 1), momentum, points, height, "w ← w - rate · g", "Falls.")


def whole(**changed):
    """Every kind of piece."""
    momentum, ground = Slider("momentum", (0.0, 0.9), 1), bowl()
    paths = {"batch": np.array([(-1.5, 1), (0, 0.5)]), "one": np.linspace((-1.5, 1), (0, 0), 500)}
    losses = {"batch": np.array([3.25, 0.25]), "one": np.linspace(3.25, 0, 500)}
    seen = {"batch": np.array([0, 499]), "one": np.arange(500)}
    epochs = np.arange(5)
    axis = np.linspace(-1, 1, 11)
    x, y = np.meshgrid(axis, axis)
    embedding = np.random.default_rng(0).normal(size=(9, 2))
    pieces = {
        "curves": [
            curve(slider=Slider("delta", DELTAS, 1)),
            curve("MSE", value=(X**2)[None], gradient=(2 * X)[None]),
            curve("ReLU", "activation", np.maximum(X, 0)[None], np.where(X < 0, 0.0, 1.0)[None], x_label="input x"),
        ],
        "surfaces": [ground, bowl("saddle", None, -1)],
        "paths": [walk(ground), walk(ground, "Momentum", momentum), walk(bowl("saddle", None, -1))],
        "descent": Descent(bowl("regression"), paths, losses, seen),
        "lines": [
            Lines(
                *("error of h", "f / h", "Small is bad.", "", "", "h", "error", (True, True)),
                *(np.array([1.0, 0.1, 0.0]), None, {"forward": np.array([[1.0, 0.0, 0.3]])}),
            ),
            Lines(
                *("average", "a ← b", "Smooth.", "", "", "time", "value", (False, False), np.arange(3.0)),
                *(Slider("beta", (0.5, 0.9), 0), {"raw": np.ones((1, 3)), "a": np.array([[0, 1, 2.0], [0, 0.5, 1]])}),
            ),
        ],
        "triplet": TripletStep(
            *(embedding, np.repeat([3, 5, 8], 3), Slider("margin", (0.1, 0.5), 1)),
            *(np.stack([embedding, embedding * 1.5]), np.array([0.1, 0.4]), np.array([0.1, 0.25])),
            *(np.array([3, 40]), 54),
        ),
        "activity": [
            Activity(
                "ReLU", ["first", "last"], np.array([0, 0.25]), np.array([0.004, 1]), np.array([-2, np.nan]), 0.975
            ),
            Activity("tanh", ["only"], np.array([0.5]), np.array([0.5]), np.array([0.0]), 0.5),
        ],
        "landscape": Landscape(
            *("quickstart, seed 0", ("first way", "second way"), axis, axis, 0.1 + x**2 + 3 * y**2),
            np.column_stack([-np.linspace(0.9, 0, 5), np.linspace(0.8, 0, 5)]),
            epochs.tolist(),
            *(2 - 0.3 * epochs, np.linspace(0.6, 0, 5), ["Batch norm in evaluation mode."]),
        ),
    }
    return Lab(**pieces | changed)


def written(folder, lab):
    path = write_lab_page(folder / "lab.html", lab)
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return written(tmp_path_factory.mktemp("lab"), whole())


def test_every_piece_is_there_with_its_words(page):
    for words in (
        "Huber",
        "It says.",
        "At 0 it is 0.",
        "Huber 1964",
        "Falls.",
        "A bowl.",
        "error of h",
        "Small is bad.",
    ):
        assert words in page.text
    for words in (
        "40 of 54 triplets have a loss above 0. Mean loss 0.4; after the step 0.25.",
        "97.5 %",
        "25 %",
        "< 1 %",
    ):
        assert words in page.text
    for words in ("quickstart, seed 0", "first way", "Batch norm in evaluation mode.", "epoch 0", "60 %"):
        assert words in page.text
    assert "torch.nn.HuberLoss" in page.text.replace("\N{ZERO WIDTH SPACE}", "")


@pytest.mark.parametrize("name", ["Huber", "MSE", "ReLU"])
def test_curves_decode_to_the_numbers_given(page, name):
    given = {one.name: one for one in whole().curves}[name]
    for part, values in (("value", given.value), ("gradient", given.gradient)):
        read, step = page.array(f"curve {name} {part}")
        assert read.shape == values.shape
        assert step < (np.ptp(values) + 1e-9) / 60_000
        assert np.allclose(read, values, atol=0.51 * step, rtol=0)


def test_a_card_stands_at_the_start_of_its_slider(page):
    drawing = page.data["drawings"]["card Huber value"]
    left, right, top, bottom, x0, x1, y0, y1 = drawing["frame"]
    (points,) = points_of(page.drawn("card Huber value"))
    x = x0 + (points[:, 0] - left) / (right - left) * (x1 - x0)
    y = y0 + (bottom - points[:, 1]) / (bottom - top) * (y1 - y0)
    assert np.allclose(x, X, atol=0.06 / (right - left) * (x1 - x0))
    assert np.allclose(y, huber(1.0)[0], atol=0.06 / (bottom - top) * (y1 - y0))
    ghosts = re.findall(r'class="ghost"', page.raw[page.raw.index('data-draw="card Huber value"') :].split("</g>")[0])
    assert len(ghosts) == 2  # delta 0.5 and 2


def test_a_comparison_lays_curves_over_one_axis_and_reads_them_at_the_hand(page):
    assert "Why robust losses are robust" in page.text
    rows = re.findall(r'<td class="value">(.*?)</td><td class="gradient">(.*?)</td>.*?--share: ([\d.]+)', page.raw)
    at = int(np.argmin(abs(X - 2.5)))
    drawing = page.data["drawings"]["together Why robust losses are robust readings"]
    assert drawing["largest"] == 10  # the axis of the gradient reaches from -10 to 10
    by_hand = [(X[at] ** 2, 2 * X[at]), (huber(1.0)[0][at], 1.0)]
    for row, (value, gradient) in zip(rows, by_hand, strict=True):
        assert row[:2] == (number(value), number(gradient))
        assert float(row[2]) == pytest.approx(gradient / 10)


def test_gaps_and_what_is_infinite_are_gaps(tmp_path):
    value = np.where(X < 0, np.nan, 1 / np.where(X == 0, 1, X))[None]
    value[0, 20] = np.inf
    only = curve("log", value=value, gradient=np.full((1, 41), np.nan))
    page = written(tmp_path, Lab(curves=[only]))
    read, _ = page.array("curve log value")
    assert np.array_equal(np.isnan(read), ~np.isfinite(value))
    assert len(points_of(page.drawn("card log value"))) == 1
    assert page.drawn("card log gradient") == ""


def test_paths_decode_and_say_where_they_left(page):
    given = whole().paths[0]
    for axis, name in enumerate("xy"):
        read, step = page.array(f"bowl SGD {name}")
        assert np.array_equal(np.isnan(read), np.isnan(given.points[..., axis]))
        assert np.allclose(read, given.points[..., axis], atol=0.51 * step, rtol=0, equal_nan=True)
    heights, step = page.array("bowl SGD heights")
    assert np.allclose(heights, np.log10(np.maximum(given.height, 1e-8)), atol=0.51 * step, rtol=0, equal_nan=True)
    last = given.height[1, 0, -1]
    assert f"height {number(last)}" in page.text
    drawn = points_of(page.drawn("bowl SGD", "way"))[0]
    frame = Frame(*page.data["drawings"]["bowl SGD"]["frame"][:4], (-2, 2), (-2, 2))
    assert np.allclose(drawn[:, 0], frame.across(given.points[1, 0, :, 0]), atol=0.06)
    assert np.allclose(drawn[:, 1], frame.down(given.points[1, 0, :, 1]), atol=0.06)


@pytest.mark.parametrize(
    ("heights", "step", "log", "said"),
    [
        ([0.5, -1.0, np.nan], 2, True, "left the map at step 1"),
        ([0.5, -1.0, np.nan], 1, True, "height 0.1"),
        ([0.5, -8.0], 1, True, "at the bottom"),
        ([0.5, -8.0], 1, False, "height \N{MINUS SIGN}8"),
        ([np.nan, np.nan], 0, True, "nowhere"),
    ],
)
def test_how_low_a_path_is_in_words(heights, step, log, said):
    assert said_of(np.array(heights), step, log) == said


def test_level_lines_lie_at_their_height():
    surface, frame = bowl(), Frame(0, 300, 0, 300, (-2, 2), (-2, 2))
    levels = levels_of(surface.height)
    assert len(levels) == 11 and np.allclose(np.diff(np.log(levels)), np.log(levels[1] / levels[0]))
    for level, d in zip(levels, bands(frame, surface.x, surface.y, surface.height, levels), strict=True):
        places = np.concatenate(points_of(d))
        x, y = -2 + places[:, 0] / 75, 2 - places[:, 1] / 75
        inside = (abs(x) < 1.99) & (abs(y) < 1.99)  # the rest runs along the rim
        assert inside.any()
        assert np.allclose((x**2 + y**2)[inside], level, atol=0.02)


def test_a_saddle_has_levels_in_equal_steps_and_a_plain_has_none():
    assert np.ptp(np.diff(levels_of(bowl("saddle", None, -1).height))) < 1e-9
    assert levels_of(np.ones((3, 3))) == [] == levels_of(np.full((3, 3), np.nan)) == loss_levels(np.ones((2, 2)))


@pytest.mark.parametrize(
    ("low", "high", "levels"),
    [(0.3, 40, [0.5, 1, 2, 5, 10, 20]), (0.11, 3, None), (1.0, 2.0, None), (-1.0, 1.0, None), (1e-12, 1e12, None)],
)
def test_levels_of_a_loss_are_few_and_inside(low, high, levels):
    found = loss_levels(np.array([[low, high]]))
    assert 5 <= len(found) <= 14 and all(low < level < high for level in found) and sorted(found) == found
    if levels:
        assert set(np.round(levels, 9)) <= set(np.round(found, 9))


def test_descent_shows_each_way_as_far_as_its_examples_go(page):
    stops = [int(text.replace(",", "")) for text in page.data["sliders"]["descent seen"]]
    assert stops[0] == 0 and stops[-1] == 499
    steps = page.data["drawings"]["descent batch"]["steps"]
    assert steps == [0] * (len(stops) - 1) + [1]  # one step, once all 499 are seen
    assert page.data["drawings"]["descent one"]["steps"] == stops
    losses, step = page.array("descent losses batch")
    assert np.allclose(losses, [3.25] * (len(stops) - 1) + [0.25], atol=step)


def test_a_way_without_a_first_step_has_no_loss_yet(tmp_path):
    late = whole().descent._replace(seen={"batch": np.array([250, 499]), "one": np.arange(500)})
    page = written(tmp_path, Lab(descent=late))
    losses, _ = page.array("descent losses batch")
    stops = [int(text) for text in page.data["sliders"]["descent seen"]]
    assert np.array_equal(np.isnan(losses), np.array(stops) < 250)
    assert page.data["drawings"]["descent batch"]["steps"][0] == -1


def test_lines_on_logarithmic_axes_ascend_and_leave_out_what_has_no_logarithm(page):
    x, _ = page.array("lines error of h x")
    y, step = page.array("lines error of h forward")
    assert np.allclose(x, [np.nan, -1, 0], equal_nan=True, atol=1e-4)  # h = 0 has no place
    assert np.allclose(y, [[np.log10(0.3), np.nan, 0]], equal_nan=True, atol=step)
    assert page.data["drawings"]["lines average"]["lines"][0]["sliders"] == [None]
    assert page.data["drawings"]["lines average"]["lines"][1]["sliders"] == ["lines average"]


def test_triplets_move_with_the_margin(page):
    drawing, given = page.data["drawings"]["triplet"], whole().triplet
    assert len(drawing["after"]) == 2 and len(drawing["said"]) == 2
    assert drawing["after"][0] == drawing["before"]  # the small margin moved nothing
    apart = np.array(drawing["after"][1]) - np.array(drawing["before"])
    scale = apart[:, 0] / (given.moved[1] - given.points)[:, 0]
    assert np.allclose(scale, scale[0], rtol=0.02) and np.allclose(
        -apart[:, 1] / scale[0], 0.5 * given.points[:, 1], atol=2e-3
    )


def test_without_a_landscape_the_page_says_how_to_get_it(tmp_path):
    page = written(tmp_path, whole(landscape=None))
    assert "lossopt lab runs/NAME/TIME-HASH" in page.text and "landscape" not in page.data["drawings"]
    assert "lossopt lab runs" not in written(tmp_path, whole()).text


def test_a_landscape_without_checkpoints_or_with_holes(tmp_path):
    given = whole().landscape
    loss = given.loss.copy()
    loss[0, :3] = np.nan
    bare = given._replace(path=np.empty((0, 2)), epochs=[], path_loss=np.empty(0), apart=np.empty(0), loss=loss)
    page = written(tmp_path, Lab(landscape=bare))
    assert "landscape epoch" not in page.data["sliders"] and "landscape" not in page.data["drawings"]


def test_checkpoints_stand_where_the_path_is(page):
    places, given = np.array(page.data["drawings"]["landscape"]["places"]), whole().landscape
    assert np.allclose((places[:, 0] - 52) / 580 * 2 - 1, given.path[:, 0], atol=1e-3)
    assert np.allclose(1 - (places[:, 1] - 20) / 580 * 2, given.path[:, 1], atol=1e-3)
    assert (
        page.data["drawings"]["landscape"]["said"][0]
        == "loss 2; 60\N{NO-BREAK SPACE}% of its distance is not on the map"
    )


def test_an_empty_lab_is_a_page(tmp_path):
    assert "What losses, activations and optimisers do" in written(tmp_path, Lab()).text


def test_every_slider_can_be_reached_by_keys_and_says_what_it_is(page):
    ranges = [(inside, one) for inside, one in page.inputs if one["type"] == "range"]
    assert len(ranges) >= 10
    for inside, one in ranges:
        texts = page.data["sliders"][one["data-slider"]]
        assert inside == 1  # a label around it
        assert one["min"] == "0" and one["step"] == "1" and one["max"] == str(len(texts) - 1)
        assert one["aria-valuetext"] == texts[int(one["value"])]
        assert "hidden" in one  # no dead slider where no script runs
    keys = {one["data-slider"] for _, one in ranges}
    assert keys == set(page.data["sliders"])


def test_all_that_a_drawing_needs_is_there(page):
    keys = {value for _, name, value in page.attributes if name == "data-draw"}
    for key, drawing in page.data["drawings"].items():
        assert key in keys
        lines = [*drawing.get("lines", ()), *drawing.get("value", ()), *drawing.get("gradient", ())]
        used = [one for line in lines for one in line["sliders"]] + [drawing.get("hand"), drawing.get("until")]
        assert {one for one in used if one} <= set(page.data["sliders"])
        assert {line["y"] for line in lines} <= set(page.data["arrays"])
        for line in lines:
            shape = page.data["arrays"][line["y"]]["shape"]
            assert len(shape) == len(line["sliders"]) + 1
            for size, slider in zip(shape, line["sliders"], strict=False):
                assert size == (len(page.data["sliders"][slider]) if slider else 1)


def hostile(text):
    """Every text of every piece is this one."""
    lab = whole()
    words = dict.fromkeys(("name", "formula", "says", "source", "where", "x_label", "edge"), text)
    slider = Slider(text, DELTAS, 1)
    return Lab(
        curves=[curve(slider=slider)._replace(**words), *lab.curves],
        surfaces=[one._replace(says=text, formula=text, name=text) for one in lab.surfaces[:1]],
        paths=[
            lab.paths[1]._replace(
                **dict.fromkeys(("optimizer", "surface", "formula", "says", "source", "where"), text),
                rate=lab.paths[1].rate._replace(name=text),
                momentum=lab.paths[1].momentum._replace(name=text),
            )
        ],
        descent=lab.descent._replace(
            surface=lab.descent.surface._replace(name=text, says=text, formula=text),
            **{key: {text: value["one"]} for key, value in lab.descent._asdict().items() if key != "surface"},
        ),
        lines=[
            lab.lines[1]._replace(
                **dict.fromkeys(("name", "formula", "says", "source", "where", "x_label", "y_label"), text),
                lines={text: np.ones((1, 3))},
            )
        ],
        triplet=lab.triplet,
        activity=[lab.activity[0]._replace(network=text, layers=[text, text])],
        landscape=lab.landscape._replace(title=text, axes=(text, text), notes=[text]),
    )


@pytest.mark.parametrize("text", [HOSTILE, QUOTED, BRACED])
def test_nothing_in_it_can_act(tmp_path, text):
    page = written(tmp_path, hostile(text))
    assert set(page.tags) <= set(TAGS.split())
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in ("src", "srcset", "action")]
    assert all(value.startswith("#") for _, name, value in page.attributes if name in ("href", "xlink:href"))
    styles = [value for _, name, value in page.attributes if name == "style"]
    assert all(re.fullmatch(r"--share: [\d.]+", value) for value in styles)
    assert page.tags.count("script") == 2 and page.tags.count("style") == 1
    assert "alert" not in page.raw[page.raw.index("<script>") :]
    assert text in page.text or re.sub(r"\s+", " ", text) in page.text


def test_the_policy_names_the_one_script_and_allows_no_request(page):
    script = page.raw[page.raw.index("<script>") + len("<script>") : page.raw.rindex("</script>")]
    assert script == "".join((HOME / name).read_text(encoding="utf-8") for name in ("page.js", "lab.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and name == "content")
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "http://" not in script and "https://" not in script and "fetch(" not in script


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (-0.0, "0"), (1, "1"), (2.5, "2.5"), (999.96, "1,000"), (1234.5, "1,230"), (0.00012, "0.00012")),
        *((1.5e-7, "1.5 × 10⁻⁷"), (-2.5e9, "−2.5 × 10⁹"), (1e6, "1 × 10⁶"), (-0.123456, "−0.123")),
        *((math.nan, "–"), (math.inf, "–"), (9.9999e-5, "0.0001"), (99999, "100,000")),
    ],
)
def test_numbers_are_written_as_people_write_them(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("ln(1 + e^(−y s))", "ln(1 + e<sup>−y s</sup>)"),
        ("−s_y + ln Σ_j e^(s_j)", "−s<sub>y</sub> + ln Σ<sub>j</sub> e<sup>s<sub>j</sub></sup>"),
        ("Σ_(j≠y) softmax(s)_j", "Σ<sub>j≠y</sub> softmax(s)<sub>j</sub>"),
        ("weight_decay of 2 negative_slope", "weight_decay of 2 negative_slope"),
        ("a < b & e^x", "a &lt; b &amp; e<sup>x</sup>"),
        ("<i>^(<b>)", "&lt;i&gt;<sup>&lt;b&gt;</sup>"),
    ],
)
def test_scripts_of_formulas_are_set_high_and_low(text, html):
    assert scripted(text) == html


def test_a_formula_has_a_line_for_each_part_and_true_minus_signs():
    assert formula("v ← a - b;  w ← <c>") == "v ← a − b<br>w ← &lt;c&gt;"
    assert breakable("torch.nn.ReLU").replace("\N{ZERO WIDTH SPACE}", "|") == "torch.|nn.|ReLU"


@pytest.mark.parametrize("wanted", [[50, 50, 50], [-100, 0, 400], [200, 199], [20.0], [], [10, 200, 11, 199]])
def test_labels_stay_inside_in_order_and_apart(wanted):
    frame = Frame(0, 10, 20, 200, (0, 1), (0, 1))
    placed = spread_out(wanted, frame)
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    assert all(
        b - a >= 14 for a, b in zip([placed[at] for at in order], [placed[at] for at in order][1:], strict=False)
    )
    assert all(20 <= at <= 200 for at in placed)


def test_lines_are_labelled_where_they_lie_apart():
    fan = [Moving(str(slope), "k0", np.linspace(0, slope, 9), (), ()) for slope in (1, 2, 3)]
    assert labelled_side(fan) == "right"
    assert labelled_side([one._replace(values=one.values[::-1]) for one in fan]) == "left"


def test_an_axis_shows_all_but_spikes():
    assert reach(np.array([1.0, 2.0, np.nan])) == (0, 2)
    assert reach(np.array([1.0, 2.0]), zero=False) == (1, 2)
    low, high = reach(np.concatenate([np.linspace(0, 1, 99), [1e9]]))
    assert low == 0 and high < 2
    assert reach(np.full(3, np.nan)) == (0, 1)
    assert np.allclose(scaled(np.array([10.0, 0.0, -1.0]), True), [1, np.nan, np.nan], equal_nan=True)


def test_ticks_enclose_their_axis():
    assert [words for _, words in ticks_of((-2.0, 3.0), log=True)] == ["0.01", "0.1", "1", "10", "100", "1,000"]
    for bounds in ((-8.0, 0.5), (-14.0, 0.0), (0.2, 0.3)):
        places = [place for place, _ in ticks_of(bounds, log=True)]
        assert places[0] <= bounds[0] and places[-1] >= bounds[1] and len(places) <= 8


def test_packed_numbers_keep_gaps_and_stay_in_their_bounds():
    packed = pack(np.array([[1.0, np.nan, 5.0], [np.inf, -7.0, 2.0]]), (0.0, 4.0))
    steps = struct.unpack("<6h", base64.b64decode(packed["data"]))
    assert steps == (-16384, -32768, 32767, -32768, -32767, 0) and packed["shape"] == [2, 3]
    assert pack(np.full(2, 3.0))["low"] == 3  # all alike: no division by nothing
    assert struct.unpack("<2h", base64.b64decode(pack(np.full(2, 3.0))["data"])) == (-32767, -32767)


def test_a_line_is_broken_at_gaps_and_cannot_run_away():
    d = trace(np.array([0, 1.04, np.nan, 5, 9e9]), np.array([0, 2, 3, 4, -9e9]))
    assert [run.round(3).tolist() for run in points_of(d)] == [[[0, 0], [1, 2]], [[5, 4], [4000, -4000]]]
    assert trace(np.array([np.nan]), np.array([1.0])) == ""


def test_what_is_compared_is_in_the_catalogue():
    from lossopt.lab.catalogue import curves

    by_name = {one.name: one for one in curves()}
    for together in TOGETHER:
        some = [by_name[name] for name in together.names]
        assert {one.family for one in some} == {together.family}
        assert all(np.array_equal(one.x, some[0].x) for one in some)
