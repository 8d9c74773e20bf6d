"""The page of a grid of autoencoders: the pictures that runs left, figures as found, failures by name, no script."""

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lossopt.lab.autoencoder import Baselines, Cell, Found, Run
from lossopt.report.lab_autoencoder import _curves, _rates, loss_words, write_autoencoder_page

TRAPPED = "every image is rebuilt as nearly the same one, the mean image"


def run(folder, loss, optimizer, rate, error, seed=0, fault=None):
    broken = math.isinf(error)
    return Run(
        loss=loss,
        optimizer=optimizer,
        rate=rate,
        seed=seed,
        folder=folder,
        curve=((0, 180.0),) if broken else ((0, 180.0), (1, 2 * error), (2, error)),
        loss_at_end=math.nan if broken else error / 784,
        scores={} if broken else {"error": error, "mse": error / 784, "l1": error / 300, "smooth_l1": error / 1568},
        seconds={} if broken else {1: 3.0, 2: 6.5},
        fault=fault,
    )


@pytest.fixture
def found(tmp_path):
    strip = np.random.default_rng(0).integers(0, 256, (4, 8, 24), dtype=np.uint8)  # images, untrained, 2 epochs
    good = none = tmp_path
    nothing = np.empty((0, 8, 0), np.uint8)
    runs = (
        run(good, "MSELoss", "Adam", 0.01, 9.0),
        run(good, "MSELoss", "Adam", 0.1, 52.9, fault=TRAPPED + " <b>"),
        run(none, "L1Loss", "Adam", 0.01, 12.0),
        run(none, "L1Loss", "Adam", 0.01, 50.0, 1, TRAPPED),
        run(none, "L1Loss", "Adam", 0.1, math.inf, fault="A NaN in step 7."),
        run(none, "MSELoss", "SGD", 1.0, math.inf, fault=f"Cannot read {tmp_path}/x."),
    )
    cells = {
        ("MSELoss", "Adam"): Cell("MSELoss", "Adam", 0.01, runs[:1], runs[0].scores, strip),
        ("L1Loss", "Adam"): Cell("L1Loss", "Adam", 0.01, runs[2:4], runs[2].scores, nothing),
        ("MSELoss", "SGD"): Cell("MSELoss", "SGD", 1.0, runs[5:], {}, nothing),
    }
    return Found(("MSELoss", "L1Loss"), ("Adam", "SGD"), runs, cells, Baselines(16, 52.9, 21.06, 17.0)), strip


class Texts(HTMLParser):
    """Every text of a page, its table rows, and its pictures."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.pictures, self.tags, self.words, self.page = [[]], [], [], "", page
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "img":
            self.pictures.append(dict(attributes))

    def handle_endtag(self, tag):
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        self.words += data
        if self.rows[-1]:
            self.rows[-1][-1] += data.strip()


@pytest.fixture
def page(found, tmp_path):
    path = write_autoencoder_page(tmp_path / "page.html", "tiny <grid>", "Digits & so on.", found[0])
    return Texts(path.read_text(encoding="utf-8"))


def test_the_rows_of_the_strip_are_the_pictures_of_the_page(found, page):
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one["src"].partition(",")[2])))) for one in page.pictures
    ]
    np.testing.assert_array_equal(np.stack(shown), found[1])
    heads = [row[0] for row in page.rows if row and row[0] in ("the images", "untrained", "epoch 1", "epoch 2")]
    assert heads == ["the images", "untrained", "epoch 1", "epoch 2"]
    assert page.pictures[3]["alt"] == "epoch 2, MSE, Adam, rate 0.01"
    assert "These runs left no pictures" in page.words  # those of L1


def test_the_rows_of_the_strip_are_named_by_the_epochs_that_were_validated(found, tmp_path):
    every_other = found[0].runs[0]._replace(curve=((0, 180.0), (2, 20.0), (4, 9.0)), seconds={2: 3.0, 4: 6.0})
    cell = found[0].cells["MSELoss", "Adam"]._replace(runs=(every_other,))
    only = found[0]._replace(losses=("MSELoss",), optimizers=("Adam",), cells={("MSELoss", "Adam"): cell})
    path = write_autoencoder_page(tmp_path / "page.html", "tiny", "Digits.", only)
    pictures = Texts(path.read_text(encoding="utf-8")).pictures
    assert [one["alt"].split(",")[0] for one in pictures] == ["the images", "untrained", "epoch 2", "epoch 4"]


def test_losses_are_named_as_people_write_them_with_what_tells_them_apart():
    names = ("MSELoss", "SmoothL1Loss (beta 0.1)", "CharbonnierLoss", "mine.L1Loss")
    assert [loss_words(name) for name in names] == ["MSE", "smooth L1 (beta 0.1)", "Charbonnier", "mine.L1"]


def test_the_headline_does_not_praise_what_is_worse_than_the_mean_image(found, page, tmp_path):
    assert "No run did better" not in page.words
    low = found[0]._replace(baselines=found[0].baselines._replace(mean_image=8.0))
    text = write_autoencoder_page(tmp_path / "page.html", "tiny", "Digits.", low).read_text(encoding="utf-8")
    assert "No run did better than the mean image" in text and '<p class="big">' not in text


def test_the_table_gives_each_loss_by_each_measure(page):
    rows = {tuple(row[:2]): row[2:] for row in page.rows if len(row) == 8}
    assert rows["MSE", "0.01"] == ["9.00", "0.01148", "0.03000", "0.00574", "3.2 s", "6 s"]
    assert [f'class="best">{text}<' in page.page for text in ("9.00", "0.03000", "12.00")] == [True, True, False]
    assert rows["L1", "0.01"][:4] == ["12.00", "0.01531", "0.04000", "0.00765"]
    assert rows["L1", "0.01"][5] == "never"  # one of its seeds is trapped
    assert rows["MSE", "1"] == ["failed"] * 4 + ["–", "never"]
    assert any(row == ["1 of 2 seeds failed; the figures are those of the others."] for row in page.rows)
    assert any(row == ["1 of 1 seeds failed."] for row in page.rows)


def test_every_failure_is_named_and_nothing_runs(page, tmp_path):
    assert "4 failed" in page.words and "6 runs" in page.words
    for words in (f"{TRAPPED} <b>", "A NaN in step 7.", "Adam at 0.1 on MSE, seed 0", "Adam at 0.01 on L1, seed 1"):
        assert words in re.sub(r"\s+", " ", page.words.replace("\n", " ")).replace(" ,", ","), words
    assert str(tmp_path) not in page.words
    assert "script" not in page.tags and "link" not in page.tags
    assert all(one["src"].startswith("data:image/png;base64,") for one in page.pictures)


def test_a_fault_widens_the_band_but_is_in_no_line(found):
    chart = _rates(found[0], "Adam")
    mse, l1 = chart.lines
    assert [dot.text for dot in mse.dots] == ["MSE: 9.0", "MSE: 52.9"]
    assert [dot.text for dot in l1.dots] == ["L1: 12.0", f"L1: {1.1 * 52.9:.1f}"]  # the top: the only run failed
    assert [tick.text for tick in chart.x_ticks] == ["0.01", "0.1"]
    lowest = [float(y) for y in re.findall(r" (-?[\d.]+)", l1.band)]
    assert min(lowest) < l1.dots[0].y - 50  # SVG: upwards is less; the trapped seed at 50


def test_the_line_is_the_mean_of_the_seeds_and_the_band_holds_them_all(found, tmp_path):
    more = found[0]._replace(runs=(*found[0].runs, run(tmp_path, "MSELoss", "Adam", 0.01, 15.0, seed=1)))
    mse = _rates(more, "Adam").lines[0]
    assert mse.dots[0].text == "MSE: 12.0"
    first, down = mse.dots[0], [tuple(map(float, at.split())) for at in re.findall(r"[\d.]+ [\d.]+", mse.band)]
    ends = sorted(y for x, y in down if x == first.x)
    assert first.y - ends[0] == pytest.approx(ends[-1] - first.y, abs=0.2) and ends[-1] - ends[0] > 10


def test_curves_go_over_all_epochs_and_end_in_what_failed(found):
    adam = _curves(found[0], "Adam")
    assert [dot.text for dot in adam.lines[1].dots] == [f"L1: {1.1 * 52.9:.1f}", "L1: 24.0", "L1: 12.0"]
    assert len(_curves(found[0], "SGD").lines[0].dots) == 1


def test_a_grid_without_one_good_run_says_so(found, tmp_path):
    bad = found[0]._replace(runs=found[0].runs[5:], cells={("MSELoss", "SGD"): found[0].cells["MSELoss", "SGD"]})
    bad = bad._replace(losses=("MSELoss",), optimizers=("SGD",))
    words = Texts(Path(write_autoencoder_page(tmp_path / "p.html", "x", "y", bad)).read_text(encoding="utf-8")).words
    assert "No run ended well" in words
