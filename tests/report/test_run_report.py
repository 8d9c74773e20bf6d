"""The report of an evaluation: its numbers, and that nothing in it can act, whatever classes and files are called."""

import base64
import hashlib
import json
import re
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml

from lossopt.data.dataset import InMemory, LabelledImages, Splits
from lossopt.errors import DataError
from lossopt.health import HealthLog, Sign
from lossopt.report import page as page_module
from lossopt.report.embedding_map import Layout
from lossopt.report.findings import examine
from lossopt.report.record import HIDDEN, read_record, without_paths
from lossopt.report.run import write_run_report, write_vectors_report
from lossopt.retrieval.evaluation import evaluate_vectors
from lossopt.retrieval.vectors import Rows
from lossopt.retrieval.verification import verify
from lossopt.tables import rows_of

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
    html head meta title style script body nav main header section p h1 h2 h3 span strong s br div ol li ul dl dt dd
    table thead tr td th tbody small figure figcaption svg line text path circle bdi article img details summary pre
    code a i
"""
ATTRIBUTES = """
    lang charset http-equiv content name class id role scope colspan viewbox aria-label aria-sort x x1 x2 y y1 y2 cx cy
    r d text-anchor src alt title href style tabindex
"""


class Page(HTMLParser):
    """Everything of a page that could act, and what it says."""

    def __init__(self, text):
        super().__init__()
        self.raw, self.tags, self.attributes, self.said, self.inert = text, [], [], [], False
        self.scripts = []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.said))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.inert = tag in ("style", "script")

    def handle_endtag(self, tag):
        self.inert = False

    def handle_data(self, data):
        if not self.inert:
            self.said.append(data)
        elif self.tags[-1] == "script":
            self.scripts.append(data)


def images(classes=4, each=6, channels=1, side=20, names=None, lone=0, **columns):
    """A table of noise: `each` images of each class, then `lone` classes of a single image."""
    labels = torch.cat([torch.arange(classes).repeat_interleave(each), torch.arange(classes, classes + lone)])
    pixels = torch.randint(0, 256, (len(labels), channels, side, side), generator=torch.Generator().manual_seed(1))
    class_names = tuple(names or [f"group/class{label}" for label in range(classes + lone)])
    files = [f"{class_names[label]}/{row}.png" for row, label in enumerate(labels.tolist())]
    return LabelledImages(InMemory(pixels.to(torch.uint8)), labels, class_names, files, **columns)


def noisy(labels, noise=0.8, d=8):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(100, d))[labels] + noise * rng.normal(size=(len(labels), d))).astype("f4")


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
        entry = {"file": "best.ckpt", "sha256": "5ha0f", "bytes": 0, "step": 20, "epoch": 1, "metrics": best}
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "manifest.json").write_text(json.dumps({"checkpoints": [entry]}))
    return folder


def found_in(table, embeddings=None, ks=(1, 2), trained_on=("elsewhere",), **settings):
    vectors = rows_of(table).with_vectors(noisy(table.labels.numpy()) if embeddings is None else embeddings, {})
    return examine(vectors, evaluate_vectors(vectors, ks, **settings), trained_on=trained_on)


def report(folder, table, findings=None, description="noise, split by class", class_disjoint=True):
    findings = findings or found_in(table)
    splits = Splits(images(names=[f"train{n}" for n in range(4)]), table, table, description, class_disjoint)
    path = write_run_report(folder, findings, table, splits)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8")), findings


def as_read(text):
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_the_page_says_the_numbers(tmp_path):
    page, findings = report(run_folder(tmp_path / "run"), images())
    result, text = findings.result, as_read(page.text)
    headline = 100 * result.metrics["recall@1"]
    assert 0 < headline < 100
    assert f"{headline:.1f} % recall@1 on the test split" in text
    low, high = result.intervals["recall@1"]
    assert f"95 % interval {100 * low:.1f} to {100 * high:.1f} % over 4 classes" in text
    assert f"a random order would reach {100 * 5 / 23:.1f} %" in text
    assert f"Out of 100 queries, {headline:.0f} succeed: the nearest other image is of the query's class." in text
    assert "12.3 % untrained network" in text
    assert "61.3 % trained, epoch 1" in text
    line = re.search(r"MAP@R ([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+) to ([\d.]+) ", text[text.index("per cent") :])
    assert line is not None
    wanted = (result.metrics["map@r"], *result.intervals["map@r"])
    assert line.groups() == ("5.67", "43.21", *(f"{100 * value:.2f}" for value in wanted))
    for expected in ("24 queries", "24 gallery images", "4 classes", "0 queries left out", "noise, split by class"):
        assert expected in text or " ".join(reversed(expected.split(" ", 1))) in text
    for expected in ("seed 3", "torch==9.8.7", "best checkpoint sha256 5ha0f", "1,280 images", "No class of the test"):
        assert expected in text
    assert "Do not believe" not in text
    assert "withheld" not in text


def test_every_metric_stands_beside_its_cut_off(tmp_path):
    page, findings = report(run_folder(tmp_path / "run"), images())
    metrics, text = findings.result.metrics, as_read(page.text)
    for k in (1, 2):
        values = " ".join(f"{100 * metrics[f'{kind}@{k}']:.2f}" for kind in ("precision", "found", "ndcg"))
        assert f"k = {k} {values}" in text
    for name, written in (("r_precision", "R-precision"), ("map", "MAP"), ("mrr", "MRR")):
        assert f"{written} {100 * metrics[name]:.2f} (" in text


def test_classes_come_worst_first_with_the_means_of_their_queries(tmp_path):
    table = images(classes=5)
    page, findings = report(run_folder(tmp_path / "run"), table)
    values, labels = findings.result.per_query, table.labels.numpy()[findings.result.query_rows]
    means = {c: (values["recall@1"][labels == c].mean(), values["map@r"][labels == c].mean()) for c in range(5)}
    order = sorted(means, key=lambda c: (means[c][0], f"class{c}"))
    rows = re.findall(r"group/ class(\d) ([\d.]+) ([\d.]+) 6 ", as_read(page.text[page.text.index("Class by class") :]))
    assert [row for row in rows if row[0]] == [
        (str(c), f"{100 * means[c][0]:.1f}", f"{100 * means[c][1]:.1f}") for c in order
    ]
    sorted_by = [(name, value) for tag, name, value in page.attributes if name == "aria-sort"]
    assert set(sorted_by) == {("aria-sort", "ascending")}


def test_groups_and_seen_classes_have_tables_of_their_own(tmp_path):
    table = images(groups=torch.arange(24) % 3, group_names=("north", "south", "west"))
    findings = found_in(table, trained_on=("group/class1",))
    page, _ = report(run_folder(tmp_path / "run"), table, findings, class_disjoint=False)
    first = findings.result.per_query["recall@1"]
    for group, name in enumerate(("north", "south", "west")):
        mean = first[np.arange(24) % 3 == group].mean()
        assert re.search(rf"{name} {100 * mean:.1f} [\d.]+ 4 8 ", as_read(page.text))
    assert re.search(rf"unseen {100 * first[table.labels.numpy() != 1].mean():.1f} [\d.]+ 3 18 ", as_read(page.text))
    assert re.search(rf" seen {100 * first[table.labels.numpy() == 1].mean():.1f} [\d.]+ 1 6 ", as_read(page.text))


def test_the_gallery_shows_right_and_wrong_by_more_than_colour(tmp_path):
    table = images(classes=8, each=8)
    findings = found_in(table, noisy(table.labels.numpy(), 1.2))
    page, _ = report(run_folder(tmp_path / "run"), table, findings)
    assert page.tags.count("article") == 4 * 6
    near = findings.nearest_of(range(64), 5)
    right = table.labels.numpy()[near.rows] == table.labels.numpy()[:, None]
    verdicts = [value for tag, name, value in page.attributes if tag == "span" and name == "aria-label"]
    verdicts = [value for value in verdicts if value in ("right", "wrong")]
    assert len(verdicts) == 24 * 5
    part = page.text[page.text.index("Each query (left") : page.text.index("How far apart pairs are")]
    queries = re.findall(r"group/class\d/(\d+)\.png", part)
    expected = [("right" if good else "wrong") for query in queries for good in right[int(query)]]
    assert verdicts == expected
    shown = page.text[page.text.index("Each query (left") : page.text.index("How far apart pairs are")]
    assert shown.count("✓") == verdicts.count("right") + 1  # one in the key
    assert shown.count("✕") == verdicts.count("wrong") + 1
    worst = int(np.argmin(findings.result.per_query["map@r"]))
    assert f"{near.distances[worst, 0]:.3f}" in shown


def test_near_misses_have_a_wrong_first_and_a_right_second_neighbour(tmp_path):
    table = images(classes=8, each=8)
    findings = found_in(table, noisy(table.labels.numpy(), 1.2))
    page, _ = report(run_folder(tmp_path / "run"), table, findings)
    part = page.text[page.text.index("Near misses") : page.text.index("Around the median")]
    queries = [int(row) for row in re.findall(r"class\d/(\d+)\.png", part)]
    assert queries
    near, labels = findings.nearest_of(queries, 2), findings.vectors.labels
    assert (labels[near.rows[:, 0]] != labels[queries]).all()
    assert (labels[near.rows[:, 1]] == labels[queries]).all()


@pytest.mark.parametrize("home", ["run", "vectors"])
def test_names_are_inert(tmp_path, home):
    table = images(classes=8, names=HOSTILE, groups=torch.arange(48) % 8, group_names=HOSTILE)
    rows = rows_of(table)
    vectors = rows.with_vectors(noisy(table.labels.numpy(), 1.5), {HOSTILE[1]: HOSTILE[0], "data": HOSTILE[5]})
    findings = examine(vectors, evaluate_vectors(vectors, (1, 2)), trained_on=HOSTILE[:3])
    if home == "run":
        folder = run_folder(tmp_path / "run", name=HOSTILE[0], note=HOSTILE[1])
        page, _ = report(folder, table, findings, description=HOSTILE[5])
    else:
        page = Page(write_vectors_report(tmp_path / "x.html", findings, HOSTILE[1], tmp_path).read_text("utf-8"))
    assert set(page.tags) <= set(TAGS.split())
    names = {name for _, name, _ in page.attributes if not name.startswith("data-")}
    assert names <= set(ATTRIBUTES.split())
    for _, name, value in page.attributes:
        if name == "src":
            assert re.fullmatch(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", value)
        elif name == "href":
            assert re.fullmatch(r"#[a-z]+", value)
        elif name == "style":
            assert re.fullmatch(r"(left|width|--share):[\d.]+%?(;width:[\d.]+%)?", value)
        elif name.startswith("data-"):
            assert re.fullmatch(r"number|text|[a-z]+\d*|[\d.e-]+|\[[\d., e\[\]-]*\]||None", value or ""), (name, value)
    assert len(page.scripts) == 1
    assert page.tags.count("script") == 1
    for name in HOSTILE[:-1]:
        assert name.rpartition("/")[2] in page.text
    assert "bytes \\udce9" in page.text
    style = page.raw[page.raw.index("<style>") : page.raw.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_allows_our_one_script_and_no_request(tmp_path):
    page, _ = report(run_folder(tmp_path / "run"), images())
    script = page.raw[page.raw.index("<script>") + 8 : page.raw.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [value for tag, name, value in page.attributes if name == "content" and "default-src" in value]
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert page.raw.index("Content-Security-Policy") < page.raw.index("<style>")


def test_the_script_writes_text_and_never_markup():
    script = (page_module.HOME / page_module.SCRIPT).read_text(encoding="utf-8")
    assert script.isascii() or "…" in script
    assert "</" not in script
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(", "setTimeout"):
        assert word not in script
    for word in ("fetch", "XMLHttp", "import(", "http", "localStorage", "cookie", "open("):
        assert word not in script


def test_the_page_stays_small_with_many_classes_and_large_images_of_noise(tmp_path, monkeypatch):
    table = images(classes=1_010, each=2, channels=3, side=130)
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(1_010, 8)).repeat(2, axis=0) + 0.4 * rng.normal(size=(2_020, 8))).astype("f4")
    monkeypatch.setattr("lossopt.report.embedding_map._tsne", lambda points, begin, seed: Layout("t-SNE", begin, ""))
    monkeypatch.setattr("lossopt.report.findings.verify", partial(verify, resamples=5))
    page, findings = report(run_folder(tmp_path / "run"), table, found_in(table, vectors))
    assert len(page.raw) < 20e6
    assert len(findings.classes) == 1_010
    assert "Of 1,010 classes, the 750 worst and the 250 best are listed." in page.text
    body = page.raw[page.raw.index('id="classes"') : page.raw.index('id="confusions"')]
    assert body.count("<tr>") == 1_001
    assert "2,000 of 2,020 images" in page.text
    assert page.tags.count("circle") > 4_000


def test_left_out_queries_are_counted_and_both_means_shown(tmp_path):
    page, findings = report(run_folder(tmp_path / "run"), images(lone=2))
    found = findings.result
    assert found.excluded == 2
    assert "2 queries have nothing to find" in page.text
    assert found.metrics_all_queries["recall@1"] < found.metrics["recall@1"]
    both = (f"{100 * m['recall@1']:.1f} %" for m in (found.metrics_all_queries, found.metrics))
    assert "would be {} instead of {}".format(*both) in page.text
    assert f"{100 * found.metrics_all_queries['map@r']:.2f}" in page.text


def test_a_collapse_is_named_and_the_headline_withheld(tmp_path):
    table = images()
    findings = found_in(table, np.ones((len(table), 8), dtype="f4"))
    page, _ = report(run_folder(tmp_path / "run"), table, findings)
    assert findings.result.collapse.collapsed
    assert page.text.index("Do not believe these figures") < page.text.index("withheld recall@1 on the test split")
    for reason in findings.result.collapse.reasons:
        assert reason in page.text
    assert "Out of 100 queries" not in page.text
    struck = re.search(r"<s>([^<]*)</s>", page.raw)
    assert struck is not None
    assert "withheld</title>" in page.raw


@pytest.mark.parametrize(("labels", "why"), [([0] * 6, "a single class"), ([0, 0], "a single image to choose from")])
def test_a_trivial_task_is_named_and_the_headline_withheld(tmp_path, labels, why):
    labels = np.array(labels)
    names = [str(row) for row in range(len(labels))]
    vectors = Rows(labels, ("only",), names).with_vectors(noisy(labels), {})
    findings = examine(vectors, evaluate_vectors(vectors, (1,)))
    page = Page(write_vectors_report(tmp_path / "x.html", findings, "six", tmp_path).read_text("utf-8"))
    assert "The task is trivial" in page.text
    assert why in page.text
    assert "withheld recall@1 on these vectors" in page.text
    assert "There are no pairs of both kinds" in page.text


def test_classes_known_from_training_are_not_called_unseen(tmp_path):
    page, _ = report(run_folder(tmp_path / "run"), images(), found_in(images(), trained_on=None), class_disjoint=False)
    assert "known classes Test classes were also trained on" in page.text
    assert "unseen classes No class" not in page.text


def test_vectors_without_a_run_or_images_have_a_page_of_names(tmp_path):
    labels = np.repeat(np.arange(4), 6)
    rows = Rows(labels, tuple("abcd"), [f"row {row}" for row in range(24)], paths=["nowhere.png"] * 24)
    vectors = rows.with_vectors(noisy(labels), {"checkpoint": "/home/alice/best.ckpt", "query": {"n": 3}})
    findings = examine(vectors, evaluate_vectors(vectors, (1,)))
    page = Page(write_vectors_report(tmp_path / "x.html", findings, "mine.npz", tmp_path).read_text("utf-8"))
    assert "img" not in page.tags
    assert "row 7" in page.text
    assert "recall@1 on these vectors" in page.text
    assert "alice" not in page.raw
    assert "query.n: 3" in page.text
    assert "Classes unseen in training unknown" in page.text
    assert "How it was learnt" not in page.text


def test_a_run_of_a_single_validation_without_a_checkpoint_list(tmp_path):
    page, _ = report(run_folder(tmp_path / "run", validations=1), images())
    assert "12.3 % untrained network" in as_read(page.text)
    assert "– trained" in page.text
    assert "nothing on record" in page.text  # the training loss


def test_no_path_of_the_machine_is_on_the_page(tmp_path):
    root = "/home/alice/my pictures"
    folder = run_folder(tmp_path / "run", output=str(tmp_path), data={"root": root, "also": [r"C:\Users\alice\x"]})
    table = images(each=9, names=[f"{root}/{name}" for name in "abcd"])
    table.names[:] = [f"{root}/{row}.png" for row in range(len(table))]
    page, _ = report(folder, table, description=f"Folder {root}: 4 classes by shares")
    for private in ("alice", str(tmp_path), "my pictures"):
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
    np.testing.assert_allclose(record.logged["miner/tuples"].y, [10, 0, 10, 0])
    np.testing.assert_allclose(record.logged["miner/tuples"].x, [320, 640, 960, 1280])
    assert record.health is None
    np.testing.assert_allclose(record.validation["recall@1"].x, [0, 640, 1280])
    np.testing.assert_allclose(record.validation["recall@1"].y, [0.1234, 0.6125, 0.1434])
    np.testing.assert_allclose(record.loss.x, [320, 640, 960, 1280])


def with_health(folder, *findings):
    """health.json of a run of 40 steps that were looked at 4 times."""
    log = HealthLog(steps=40, readings=4)
    for kind, sign, step in findings:
        log.add(kind, sign, step, [10, step])
    (folder / "health.json").write_text(json.dumps(log.as_json()))
    return folder


def test_a_run_that_went_well_says_so(tmp_path):
    page, _ = report(with_health(run_folder(tmp_path / "run")), images())
    assert "Nothing went wrong: 4 looks in 40 steps found no sign of trouble." in page.text
    assert "Training went well yes" in page.text
    part = page.text[page.text.index("How training went") : page.text.index("How it was learnt")]
    assert "Gradient alive and bounded 1.5 " in part and "Embeddings of bounded length 1 " in part
    assert "Something to compare 0 to 10 in a batch" in part
    assert "✕" not in part and "Try first" not in part


def test_what_went_wrong_is_told_with_its_steps_and_advice(tmp_path):
    words = "the embeddings have collapsed: the loss is 0.2, and 0.2 when all are equal"
    stuck = Sign({}, "training is stuck: the gradient is 0")
    folder = with_health(run_folder(tmp_path / "run"), ("collapse", Sign({}, words), 30), ("stuck", stuck, 40))
    page, _ = report(folder, images())
    assert (
        "Training went well no The embeddings collapsed (steps 10 to 30); Training was stuck (steps 10 to 40)."
        in page.text
    )
    part = page.text[page.text.index("How training went") : page.text.index("How it was learnt")]
    assert (
        f"The embeddings collapsed Steps 10 to 30 of 40, then no more T{words[1:]}. Try first A lower learning" in part
    )
    assert "Training was stuck Steps 10 to 40, to the end Training is stuck: the gradient is 0. Try first" in part
    assert part.count("✕") == 2
    assert "Training did not go well: see what was found, at 4 looks in 40 steps" in part and "Nothing went" not in part
    assert "begins 1.500" in page.text


def test_a_run_from_before_there_was_health_says_that_nobody_looked(tmp_path):
    page, _ = report(run_folder(tmp_path / "run"), images())
    assert "no health.json, so nobody looked" in page.text and "Training went well" not in page.text


def test_health_that_cannot_be_read_is_refused(tmp_path):
    folder = run_folder(tmp_path / "run")
    (folder / "health.json").write_text("{")
    with pytest.raises(DataError, match=r"health\.json"):
        read_record(folder)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        read_record(tmp_path)
    folder = run_folder(tmp_path / "run")
    (folder / "config.yaml").unlink()
    with pytest.raises(DataError, match=r"Cannot read .*config\.yaml"):
        read_record(folder)


def test_other_cut_offs_than_1_make_another_headline(tmp_path):
    findings = found_in(images(), ks=(3,))
    assert findings.headline == "recall@3"
    assert findings.chance == pytest.approx(1 - 18 * 17 * 16 / (23 * 22 * 21))
    page, _ = report(run_folder(tmp_path / "run"), images(), findings)
    assert "at least one of the 3 nearest other images is of the query's class" in page.text
