"""The report of a run: its numbers, and that nothing in it can act, whatever classes and files are called."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lossopt.callbacks import evaluate_table
from lossopt.data.dataset import InMemory, LabelledImages, Splits
from lossopt.errors import DataError
from lossopt.report.chart import line_chart, round_numbers
from lossopt.report.galleries import chance_of_recall, choose_queries, png_uri
from lossopt.report.record import HIDDEN, read_record, without_paths
from lossopt.report.run import summarise, write_run_report

HOSTILE = (
    "x&<img src=q onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "{{7*7}}{% raw %}",
    "$\\frac$",
    "javascript:alert(3)",
    "\"' onmouseover='alert(4)' style=\"background:url(https://evil.example/x)",
    "]]>--><svg/onload=alert(5)>",
    "bytes \udce9\u202e and tail",
)
TAGS = """
    html head meta title style body main header section p h1 h2 h3 span strong br div ol li ul dl dt dd table thead tr
    td th tbody small figure figcaption svg line text path circle bdi article img details summary pre code
"""
ATTRIBUTES = """
    lang charset http-equiv content name class role scope colspan viewbox aria-label x x1 x2 y y1 y2 cx cy r d
    text-anchor src alt title
"""


class Page(HTMLParser):
    """Everything of a page that could act, and what it says."""

    def __init__(self, text):
        super().__init__()
        self.raw, self.tags, self.attributes, self.said, self._style = text, [], [], [], False
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.said))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._style = tag == "style"

    def handle_endtag(self, tag):
        self._style = False

    def handle_data(self, data):
        if not self._style:
            self.said.append(data)


def images(classes=4, each=6, channels=1, side=20, names=None, lone=0):
    """A table of noise: `each` images of each class, then `lone` classes of a single image."""
    labels = torch.cat([torch.arange(classes).repeat_interleave(each), torch.arange(classes, classes + lone)])
    pixels = torch.randint(0, 256, (len(labels), channels, side, side), generator=torch.Generator().manual_seed(1))
    class_names = tuple(names or [f"group/class{label}" for label in range(classes + lone)])
    files = [f"{class_names[label]}/{row}.png" for row, label in enumerate(labels.tolist())]
    return LabelledImages(InMemory(pixels.to(torch.uint8)), labels, class_names, files)


def vectors(table, noise=0.8, d=8):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(100, d))[table.labels.numpy()] + noise * rng.normal(size=(len(table), d))).astype("f4")


def run_folder(folder, validations=3, **config):
    """What `lossopt train` leaves, in miniature."""
    folder.mkdir()
    whole = {"seed": 3, "name": "tiny", "checkpoint": {"monitor": "val/map@r", "mode": "max"}, "output": "runs"}
    (folder / "config.yaml").write_text(yaml.safe_dump(whole | config))
    (folder / "environment.txt").write_text("torch==9.8.7\nthreads=1\n")
    rows, best = [], {"val/recall@1": 0.6125, "val/map@r": 0.4321, "val/spread": 0.5}
    for epoch in range(validations):
        for step in (20 * epoch - 10, 20 * epoch) if epoch else ():
            health = {"train/gradient_norm": 1.5, "train/embedding_norm": 1.0, "miner/tuples": step % 20}
            rows.append({"step": step, "time": 1.0, "train/loss": 1 / step, "train/images": 32.0 * step, **health})
        figures = best if epoch == 1 else {"val/recall@1": 0.1234 + epoch / 100, "val/map@r": 0.0567}
        rows.append({"step": 20 * epoch, "time": 1.0, **figures, "epoch": float(epoch)})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if validations > 1:
        entry = {"file": "best.ckpt", "sha256": "", "bytes": 0, "step": 20, "epoch": 1, "metrics": best}
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "manifest.json").write_text(json.dumps({"checkpoints": [entry]}))
    return folder


def report(folder, table, embeddings=None, description="noise, split by class", class_disjoint=True):
    found = evaluate_table(vectors(table) if embeddings is None else embeddings, table, (1, 2))
    splits = Splits(images(names=[f"train{n}" for n in range(4)]), table, table, description, class_disjoint)
    path = write_run_report(folder, found, table, splits)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8")), found


def test_the_page_says_the_numbers(tmp_path):
    page, found = report(run_folder(tmp_path / "run"), images())
    headline = 100 * found.metrics["recall@1"]
    assert 0 < headline < 100
    assert f"{headline:.1f} % recall@1 on the test split" in page.text
    assert "12.3 % untrained network" in page.text
    assert "61.3 % trained, epoch 1" in page.text
    line = re.search(r"MAP@R ([\d.]+) ([\d.]+) ([\d.]+) ", page.text)
    assert line is not None
    assert line.groups() == ("5.67", "43.21", f"{100 * found.metrics['map@r']:.2f}")
    for expected in ("24 queries", "24 gallery", "4 classes", "0 queries left out", "noise, split by class"):
        assert expected in page.text or " ".join(reversed(expected.split(" ", 1))) in page.text
    for expected in (
        "seed 3",
        "torch==9.8.7",
        "lossopt train --config config.yaml",
        "1,280 images",
        "No class of the test",
    ):
        assert expected in page.text
    assert "Do not believe" not in page.text


def test_the_gallery_shows_right_and_wrong_by_more_than_colour(tmp_path):
    page, found = report(run_folder(tmp_path / "run"), images(each=8))
    verdicts = [value for tag, name, value in page.attributes if tag == "span" and name == "aria-label"]
    assert len(verdicts) == 18 * 5
    assert {"right", "wrong"} == set(verdicts)
    assert page.text.count("✓") == verdicts.count("right") + 1  # one in the key
    assert page.text.count("✕") == verdicts.count("wrong") + 1
    assert f"{found.neighbour_distances[np.argmin(found.per_query['map@r'])][0]:.3f}" in page.text


def test_names_are_inert(tmp_path):
    table = images(classes=len(HOSTILE), names=HOSTILE)
    folder = run_folder(tmp_path / "run", name=HOSTILE[0], note=HOSTILE[1])
    page, _ = report(folder, table, description=HOSTILE[5])
    assert set(page.tags) <= set(TAGS.split())
    assert {name for _, name, _ in page.attributes} <= set(ATTRIBUTES.split())
    sources = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert sources
    assert all(re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", value) for value in sources)
    for name in HOSTILE[:-1]:
        assert name.rpartition("/")[2] in page.text
    assert "bytes \\udce9" in page.text
    style = page.raw[page.raw.index("<style>") : page.raw.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_content_security_policy_forbids_everything_but_the_inlined(tmp_path):
    page, _ = report(run_folder(tmp_path / "run"), images())
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("meta", "content", policy) in page.attributes
    assert page.raw.index("Content-Security-Policy") < page.raw.index("<style>")


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_images_arrive_whole_when_small_and_shrunk_when_large(channels, mode):
    small = np.arange(20 * 30 * channels, dtype=np.uint8).reshape(20, 30, channels)
    uri, pixelated = png_uri(small)
    read = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert (read.mode, pixelated) == (mode, True)
    np.testing.assert_array_equal(np.asarray(read).reshape(small.shape), small)
    uri, pixelated = png_uri(np.zeros((200, 400, channels), dtype=np.uint8))
    assert (Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size, pixelated) == ((96, 48), False)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_page_stays_small_with_large_images_of_noise(tmp_path, channels):
    page, _ = report(run_folder(tmp_path / "run"), images(channels=channels, side=224))
    assert len(page.raw) < 5e6
    assert page.tags.count("img") == 18 * 6


def test_left_out_queries_are_counted_and_both_means_shown(tmp_path):
    page, found = report(run_folder(tmp_path / "run"), images(lone=2))
    assert found.excluded == 2
    assert "2 queries have nothing to find" in page.text
    assert found.metrics_all_queries["recall@1"] < found.metrics["recall@1"]
    both = (f"{100 * m['recall@1']:.1f} %" for m in (found.metrics_all_queries, found.metrics))
    assert "would be {} instead of {}".format(*both) in page.text
    assert f"{100 * found.metrics_all_queries['map@r']:.2f}" in page.text


def test_a_collapse_is_named_before_the_headline(tmp_path):
    table = images()
    page, found = report(run_folder(tmp_path / "run"), table, np.ones((len(table), 8), dtype="f4"))
    assert found.collapse.collapsed
    assert page.text.index("Do not believe these figures") < page.text.index("recall@1 on the test split")


def test_classes_known_from_training_are_not_called_unseen(tmp_path):
    page, _ = report(run_folder(tmp_path / "run"), images(), class_disjoint=False)
    assert "known classes Test classes were also trained on" in page.text
    assert "unseen classes No class" not in page.text


def test_a_run_of_a_single_validation_without_a_checkpoint_list(tmp_path):
    page, _ = report(run_folder(tmp_path / "run", validations=1), images())
    assert "12.3 % untrained network" in page.text
    assert "– trained" in page.text
    assert "nothing on record" in page.text  # the training loss


def test_no_path_of_the_machine_is_on_the_page(tmp_path):
    root = "/home/alice/my pictures"
    folder = run_folder(tmp_path / "run", output=str(tmp_path), data={"root": root, "also": [r"C:\Users\alice\x"]})
    table = images()
    table.names[:] = [f"{root}/{row}.png" for row in range(len(table))]
    page, _ = report(folder, table, description=f"Folder {root}: 4 classes by shares")
    for private in ("alice", str(tmp_path), "pictures"):
        assert private not in page.raw
    assert f"Folder {HIDDEN}: 4 classes by shares" in page.text
    assert "Paths of the machine are left out" in page.text


@pytest.mark.parametrize("text", ["group/class/1.png", "https://example.org/x", "and / or", "~5 minutes", "</script>"])
def test_what_is_no_path_stays(text):
    assert without_paths(text) == text


@pytest.mark.parametrize(
    "text", ["/a", "~/a", "~alice/a", r"C:\a", "D:/a", r"\\host\a", "file:///a b", "root=/a", "(/a"]
)
def test_a_path_goes(text):
    assert HIDDEN in without_paths(text)
    assert "a" not in without_paths(text).replace(HIDDEN, "")


def test_what_the_record_holds(tmp_path):
    record = read_record(run_folder(tmp_path / "run"))
    assert (record.steps, record.images, record.epochs, record.folder) == (40, 1280, 2, "run")
    assert record.dead_steps == 0.5
    np.testing.assert_allclose(record.validation["recall@1"].x, [0, 640, 1280])
    np.testing.assert_allclose(record.validation["recall@1"].y, [0.1234, 0.6125, 0.1434])
    np.testing.assert_allclose(record.loss.x, [320, 640, 960, 1280])


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        read_record(tmp_path)
    folder = run_folder(tmp_path / "run")
    (folder / "config.yaml").unlink()
    with pytest.raises(DataError, match=r"Cannot read .*config\.yaml"):
        read_record(folder)


def test_other_cut_offs_than_1_make_another_headline(tmp_path):
    table = images()
    found = evaluate_table(vectors(table), table, (3,))
    summary = summarise(read_record(run_folder(tmp_path / "run")), found, table)
    assert summary.headline == "recall@3"
    assert summary.chance == pytest.approx(1 - 18 * 17 * 16 / (23 * 22 * 21))


def test_chance_with_nothing_wrong_to_draw_is_one():
    assert chance_of_recall(np.array([2, 2]), np.array([2, 2]), 1) == 1
    assert chance_of_recall(np.array([1, 3]), np.array([4, 4]), 1) == pytest.approx(0.5)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 17, 18, 40])
def test_worst_median_and_best_never_share_a_query(count):
    rng = np.random.default_rng(count)
    score, label = rng.permutation(count) / count, rng.integers(0, 3, count)
    chosen = choose_queries(score, label)
    every = [*chosen.worst, *chosen.median, *chosen.best]
    assert len(set(every)) == len(every) == min(count, 18)
    assert list(score[chosen.worst]) == sorted(score)[: len(chosen.worst)]
    assert list(score[chosen.best]) == sorted(score, reverse=True)[: len(chosen.best)]
    if count == 40:
        assert sorted(score[chosen.median]) == sorted(score)[17:23]


def test_equal_scores_come_from_different_classes():
    label = np.repeat(np.arange(20), 10)
    chosen = choose_queries(np.ones(200), label)
    for part in chosen:
        assert len(set(label[part])) == 6
    assert chosen == choose_queries(np.ones(200), label)


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
    assert chart.line.count("L") == 119
    assert "mean of about 84 logged steps" in chart.note
    heights = {float(value) for value in re.findall(r" ([\d.]+)", chart.band)}
    assert len(heights) == 2  # the band goes from the least to the greatest
