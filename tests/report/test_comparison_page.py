"""The page of a comparison: its figures, its verdicts, and that nothing in it can act, whatever variants are called."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from lossopt.comparison.result import (
    Activity,
    Comparison,
    PairComparison,
    Point,
    Run,
    Standing,
    Trial,
    Tuning,
)
from lossopt.data.dataset import InMemory, LabelledImages
from lossopt.health import Finding
from lossopt.report.comparison import duration_text, p_text, page_of, size_text, verdicts_of, write_comparison_page
from lossopt.report.comparison_changes import changes_between
from lossopt.report.comparison_curves import learning_of, sensitivity_of, spark_of
from lossopt.report.comparison_ranking import changes_in_words, ranking_of
from lossopt.report.comparison_runs import costs_of, grid_of, groups_of
from lossopt.report.thumbnails import TablePictures
from lossopt.retrieval.difference import difference, pair_by_name
from lossopt.retrieval.queries import query_figures
from lossopt.retrieval.vectors import Rows

MINER = "model.init_args.miner"
LR = "model.init_args.optimizer.init_args.lr"
MARGIN = "model.init_args.loss_fn.init_args.margin"
VARIANTS = {  # name: (MAP@R, share active at the end, seconds, class)
    "easy-positive": (0.583, 0.41, 95.0, "lossopt.miners.EasyPositiveMiner"),
    "semi-hard": (0.579, 0.36, 82.0, "lossopt.miners.SemiHardMiner"),
    "multi-similarity": (0.571, 0.28, 88.0, "lossopt.miners.MultiSimilarityMiner"),
    "distance-weighted": (0.562, 0.22, 84.0, "lossopt.miners.DistanceWeightedMiner"),
    "all": (0.541, 0.02, 79.0, None),
    "whole set": (0.540, 0.6, 131.0, "lossopt.miners.WholeSetMiner"),
    "batch-hard": (0.52, 0.7, 77.0, "lossopt.miners.BatchHardMiner"),
    "random": (0.497, 0.04, 75.0, "lossopt.miners.RandomTripletMiner"),
    "hardest": (0.021, 0.99, 76.0, "lossopt.miners.HardMiner"),
}
COLLAPSE = Finding(
    kind="collapse",
    first_step=150,
    last_step=750,
    steps=24,
    numbers={"spread": 0.001},
    what="the embeddings have collapsed, even if recall still looks right: their spread is 0.001 of 0.55 at the start; "
    "the loss is 0.2001, and 0.2 when all are equal",
    try_first="a lower learning rate, then a miner that is less hard (semi-hard, or none), then a larger batch",
)
IDLE = Finding(
    kind="dead mining",
    first_step=500,
    last_step=750,
    steps=9,
    numbers={},
    what="mining is dead: 0.40% of 22,532 tuples have a loss above 0, 90 in a batch of 128 images",
    try_first="a larger margin, then more classes per batch, then a harder miner",
)


def a_run(name, seed, score, rng, seconds=80.0, active=0.3, status="finished", health=(), images=96_000, error=""):
    figures = {"recall@1": min(1.0, score + 0.3), "map@r": score, "r_precision": score + 0.05, "mrr": score + 0.35}
    if status == "failed":
        return Run(name, seed, status, figures, None, error=error)
    steps = np.linspace(0, 1, 6)
    level = 0.11 + (score + 0.04 - 0.11) * (1 - np.exp(-4 * steps)) + rng.normal(0, 0.004, 6)
    curve = [
        Point(float(images * at), float(seconds * at), {"map@r": float(y), "recall@1": float(y) + 0.3})
        for at, y in zip(steps, level, strict=True)
    ]
    along = np.linspace(0, 1, 40)
    activity = [
        Activity(float(images * at), float(np.clip(1 - (1 - active) * (1 - np.exp(-5 * at)), 0, 1)), 20_000.0 - 100 * n)
        for n, at in enumerate(along)
    ]
    rate = images / seconds * rng.normal(1.2, 0.02)
    return Run(
        *(name, seed, status, figures, None),
        epoch=5,
        images=images,
        seconds=seconds * rng.normal(1, 0.03),
        images_per_second=rate,
        peak_memory=int(9.1e8),
        curve=curve,
        activity=activity,
        health=health,
    )


def standing(name, role, runs, overrides=None, tuned=None, interval=True):
    scores = np.array([run.figures["map@r"] for run in runs])
    mean, sd = float(scores.mean()), float(scores.std(ddof=1)) if len(scores) > 1 else 0.0
    names = dict.fromkeys(key for run in runs for key in run.figures)
    return Standing(
        *(name, role, overrides or {}, runs, scores, mean, sd),
        interval=(mean - 0.012, mean + 0.012) if interval else None,
        means={key: float(np.mean([run.figures[key] for run in runs])) for key in names},
        failed=sum(run.status == "failed" for run in runs),
        collapsed=sum(run.status == "collapsed" for run in runs),
        tuned=tuned or {},
    )


def pair(a, b, seeds, pairs, enough=True):
    gaps = a.scores - b.scores
    gap, sd = float(gaps.mean()), float(gaps.std(ddof=1)) if len(gaps) > 1 else 0.01
    half = 2.4 * sd / np.sqrt(len(gaps))
    shown = enough and gap > half * 1.3
    verdict = "better" if shown else "open" if enough else "too few seeds"
    within = f"95 % interval {100 * (gap - half):+.1f} to {100 * (gap + half):+.1f}"
    words = {
        "better": f"{a.variant} is better than {b.variant} by {100 * gap:.1f} points of MAP@R ({within}).",
        "open": f"No difference shown: {a.variant} has {100 * gap:.1f} points more than {b.variant} ({within}).",
        "too few seeds": f"Not enough seeds for a verdict: {seeds}. {a.variant} has {100 * gap:.1f} points more.",
    }[verdict]
    return PairComparison(
        *(a.variant, b.variant, gap, gaps, (gap - half, gap + half) if len(gaps) > 1 else None),
        *(2 / 2**seeds if shown else 0.148, 0.0156 if shown else 0.43, 0.95 if shown else 0.6),
        *((0.8, 1.0) if shown else (0.3, 0.8), 1.1 * half if enough else None, verdict, words),
    )


def fabricated(seeds=8, variants=VARIANTS, enough=True, tuning=False, health=True, needed=10):
    """A comparison as a real one comes out, but for the numbers."""
    rng = np.random.default_rng(4)
    by_seed = rng.normal(0, 0.01, seeds)
    standings = []
    for place, (name, (level, active, seconds, miner)) in enumerate(variants.items()):
        runs = []
        for seed in range(seeds):
            status, found = "finished", ()
            if name == "hardest":
                status, found = "collapsed", (COLLAPSE,) if health else ()
            if name == "whole set" and seed == 3:
                status = "failed"
            if name == "all" and seed < 2 and health:
                found = (IDLE,)
            score = level + by_seed[seed] + rng.normal(0, 0.006) if status == "finished" else level / 2
            error = "DataError: cannot read /home/alice/images/a b.png (No space left on device)"
            runs.append(a_run(name, seed, score, rng, seconds, active, status, found, error=error))
        overrides = {MINER: miner if place % 2 else {"class_path": miner, "init_args": {"margin": 0.2}}}
        role = "random miner" if name == "random" else "variant"
        tuned = {LR: 10 ** rng.uniform(-3.5, -2)} if tuning else {}
        standings.append(standing(name, role, runs, overrides if miner else {MINER: None}, tuned, enough))
    runs = [a_run("untrained", seed, 0.107 + rng.normal(0, 0.004), rng) for seed in range(seeds)]
    standings.append(standing("untrained", "untrained", [replace(run, curve=(), activity=()) for run in runs]))
    standings.append(
        standing("raw pixels", "raw pixels", [Run("raw pixels", None, "finished", {"map@r": 0.0862}, None)])
    )
    standings.sort(key=lambda one: -one.mean)
    trained = [one for one in standings if one.role in ("variant", "random miner")]
    both = [(a, b) for place, a in enumerate(trained) for b in trained[place + 1 :]]
    return Comparison(
        name="omniglot_miners",
        plan={"name": "omniglot_miners", "base": "../omniglot_triplet.yaml", "variants": {"all": {MINER: None}}}
        | {"seeds": seeds, "images": 96_000, "data": "/home/alice/omniglot"},
        metric="map@r",
        seeds=list(range(seeds)),
        images=96_000,
        wall_seconds=6_912.3,
        standings=standings,
        pairs=[pair(a, b, seeds, len(both), enough) for a, b in both],
        correction="max-t",
        alpha=0.05,
        seeds_needed=needed,
        unit="class",
        units=659,
        queries=13_180,
        gallery=13_180,
        data="Omniglot: 30 background alphabets to train, 20 evaluation alphabets to test, 28 pixels, classes disjoint",
        environment=["python 3.11", "torch 2.14", "threads of a run 1"],
        workers=2,
        overhead=0.011,
        tuning=tuned_of(variants, rng) if tuning else None,
        notes=["batch-hard: its batches hold 8 images of a class, those of the others 4."]
        if variants is VARIANTS
        else [],
    )


def tuned_of(variants, rng):
    trials = {}
    for number, name in enumerate(variants):
        trials[name] = []
        for trial in range(8):
            lr, margin = 10 ** rng.uniform(-3.5, -2), rng.uniform(0.05, 0.5)
            score = 0.55 - 0.06 * (np.log10(lr) + 2.7) ** 2 - 0.3 * (margin - 0.2) ** 2 - 0.01 * number
            trials[name].append(Trial({LR: lr, MARGIN: margin}, None if trial == 5 and number == 1 else score))
    chosen = {name: max((t for t in some if t.score), key=lambda t: t.score).values for name, some in trials.items()}
    space = {LR: "0.0003 to 0.01, logarithmic", MARGIN: "0.05 to 0.5"}
    return Tuning(space=space, images=48_000, seed=1_000, metric="map@r", trials=trials, chosen=chosen)


def the_changes(names=("easy-positive", "semi-hard"), seeds=3, classes=8, each=12, class_names=None):
    class_names = class_names or tuple(f"Alphabet {number // 2}/character{number}" for number in range(classes))
    labels = np.arange(len(class_names)).repeat(each)
    rows = Rows(labels, class_names, [f"{class_names[label]}/{row}.png" for row, label in enumerate(labels)])
    centres = np.random.default_rng(0).normal(size=(len(class_names), 6))[labels]

    def side(amount, seed):
        return rows.with_vectors(centres + amount * np.random.default_rng([9, seed]).normal(size=centres.shape), {})

    tables = [(side(0.8, seed), side(1.0, 100 + seed)) for seed in range(seeds)]
    pixels = torch.randint(0, 256, (len(labels), 1, 20, 20), generator=torch.Generator().manual_seed(1))
    images = LabelledImages(InMemory(pixels.to(torch.uint8)), torch.from_numpy(labels), class_names, rows.names)
    pairs = [pair_by_name(a, b) for a, b in tables]
    found = [difference(both) for both in pairs]
    per_seed = [(query_figures(one.a, rows), query_figures(one.b, rows)) for one in found]
    changes = changes_between(names, pairs[0], found[0], 0, per_seed, [TablePictures(images)])
    return changes, found, per_seed


class Page(HTMLParser):
    """Everything of a page that could act, and what it says."""

    def __init__(self, text):
        super().__init__()
        self.raw, self.tags, self.attributes, self.said, self._code = text, [], [], [], ""
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.said)).replace("\N{NO-BREAK SPACE}", " ")

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._code = tag if tag in ("style", "script") else ""

    def handle_endtag(self, tag):
        self._code = ""

    def handle_data(self, data):
        if not self._code:
            self.said.append(data)


def written(folder, comparison, changes=None):
    path = write_comparison_page(folder / "comparison.html", comparison, changes)
    assert path.stat().st_size < 5e6
    return Page(path.read_text(encoding="utf-8"))


HOSTILE = (
    "</script><script>alert(2)</script>",
    "</style><style>*{background:url(https://evil.example)}",
    "\"' onmouseover='alert(4)' style=\"background:url(https://evil.example/x)",
    "{{7*7}}{% raw %}",
    "x&<img src=q onerror=alert(1)>",
    "javascript:alert(3)",
    "]]>--><svg/onload=alert(5)>",
    "Ünïcode 最小 \udce9\u202e tail",
    "hardest",
)


def points_at(page, kind):
    """Attributes of all tags whose class is this."""
    return [value for tag, name, value in page.attributes if name == "class" and value == kind]


def test_the_page_answers_first_and_then_says_everything(tmp_path):
    comparison = fabricated(tuning=True, needed=8)
    changes, _, _ = the_changes()
    page = written(tmp_path, comparison, changes)
    leader = comparison.standings[0]
    answer = "easy-positive has the highest mean, but is not told apart from"
    assert page.text.index(answer, page.text.index("Comparison omniglot")) < page.text.index("variant 45")
    assert (
        f"MAP@R of easy-positive mean of 8 seeds on the test split; 95 % interval {100 * leader.interval[0]:.1f}"
        in page.text
    )
    for place, one in enumerate(comparison.standings, start=1):
        assert re.search(rf"\b{place} {one.variant} .*? {100 * one.mean:.2f} ", page.text), one.variant
    for pair in comparison.pairs:
        assert pair.words in page.text
    for anchor, _ in page_of(comparison, changes).contents:
        assert page.raw.count(f'<section id="{anchor}"') == page.raw.count(f'href="#{anchor}"') == 1, anchor
    for words in (
        *("all 256 ways of giving the 8 differences their signs", "max-t correction for 36 comparisons"),
        *("hardest : collapsed, 8 of 8 runs", "whole set : failed, 1 of 8 run", "all : mining died, 2 of 8 runs"),
        *("1.1 % of the workers' time", "1 h 55 min", "910 MB", "No space left on device", "a lower learning rate"),
        *("Query by query: easy-positive against semi-hard", "mean over the 3 seeds", "of seed 0 alone"),
        *("8 trials of 48,000 images with seed 1000", "0.0003 to 0.01, logarithmic", "base: ../omniglot_triplet.yaml"),
        *(
            "torch 2.14",
            "batch-hard: its batches hold 8 images",
            "Mean average precision over the R nearest",
        ),
        *("counts with the figures of the untrained network of its seed", "lossopt compare PLAN.yaml"),
    ):
        assert words in page.text, words
    assert "alice" not in page.raw
    assert "(path left out)" in page.text


def test_names_are_inert(tmp_path):
    variants = dict(zip(HOSTILE, VARIANTS.values(), strict=True))
    comparison = fabricated(variants=variants, tuning=True, needed=8)
    comparison = replace(comparison, name=HOSTILE[0], data=HOSTILE[1], notes=HOSTILE, environment=HOSTILE)
    comparison = replace(comparison, plan={"name": HOSTILE[0], "resolved": {HOSTILE[1]: HOSTILE[4]}})
    changes, _, _ = the_changes(HOSTILE[:2], class_names=HOSTILE[:8])
    page = written(tmp_path, comparison, changes)
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert not {"iframe", "object", "link", "base", "form", "input"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    sources = [(name, value) for _, name, value in page.attributes if name in ("src", "href")]
    assert all(re.fullmatch(r"#[a-z]+|data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", value) for _, value in sources)
    styles = [value for _, name, value in page.attributes if name == "style"]
    assert all(re.fullmatch(r"(left:[\d.]+%;?|width:[\d.]+%|flex:\d+|--share:[\d.]+)+", value) for value in styles)
    for name in HOSTILE[:-2]:
        assert name in page.text, name
    assert "最小 \\udce9" in page.text
    policy = next(value for _, name, value in page.attributes if name == "content" and value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    style = page.raw[page.raw.index("<style>") : page.raw.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_with_too_few_seeds_the_page_says_so_before_any_figure(tmp_path):
    two = {name: VARIANTS[name] for name in ("semi-hard", "random")}
    page = written(tmp_path, fabricated(2, two, enough=False))
    assert "Not enough seeds for a verdict: 2 of at least 10." in page.text
    assert "2 of 10 seeds No verdict yet 10 is the least that 1 comparison needs" in page.text
    assert "is best" not in page.text and "▲" not in page.text
    assert "With one comparison nothing has to be corrected." in page.text
    assert "–: none, however large" in page.text
    assert "No run failed, none collapsed" in page.text
    assert 'id="changes"' not in page.raw and 'id="tuning"' not in page.raw


def test_a_single_variant_has_no_pairs(tmp_path):
    page = written(tmp_path, fabricated(1, {"semi-hard": VARIANTS["semi-hard"]}))
    assert "Nothing to compare: semi-hard is the only trained variant." in page.text
    assert 'id="verdicts"' not in page.raw
    empty = replace(fabricated(1, {"semi-hard": VARIANTS["semi-hard"]}), standings=[], pairs=[])
    assert "no variant was trained" in written(tmp_path, empty).text


def test_the_matrix_is_antisymmetric_and_marks_do_not_rely_on_colour():
    comparison = fabricated()
    rows = verdicts_of(comparison).matrix
    opposite = {"better": "worse", "worse": "better", "open": "open"}
    means = {one.variant: one.mean for one in comparison.standings}
    for i, row in enumerate(rows):
        assert row.cells[i] is None
        for j, cell in enumerate(row.cells):
            if i == j:
                continue
            other = rows[j].cells[i]
            assert cell.difference == -other.difference
            assert cell.kind == opposite[other.kind]
            assert cell.mark == {"better": "▲", "worse": "▼", "open": "○"}[cell.kind]
            np.testing.assert_allclose(cell.difference, means[row.variant] - means[rows[j].variant])
    assert {cell.kind for row in rows for cell in row.cells if cell} == set(opposite)


def test_verdicts_stand_where_they_belong_and_a_collapse_does_not_squeeze_them():
    found = verdicts_of(fabricated())
    assert {row.pair.a for row in found.first} == {"easy-positive"}
    assert len(found.first) == 8 and len(found.others) == 28
    for row in found.first + found.others:
        if row.at is None:
            assert row.pair.b == "hardest"
            continue
        assert 0 <= row.left <= row.left + row.width <= 100
        low, _ = row.pair.interval
        assert (row.left > found.zero) == (low > 0)
        assert (row.at > found.zero) == (row.pair.difference > 0)
    near = [row.at for row in found.first if row.pair.b in ("semi-hard", "batch-hard")]
    assert near[1] - near[0] > 10


def test_the_ranking_axis_holds_the_healthy_and_points_at_the_rest():
    comparison = fabricated()
    ranking = ranking_of(comparison)
    ticks = [float(tick.text) for tick in ranking.ticks]
    assert [tick.at for tick in ranking.ticks] == sorted(tick.at for tick in ranking.ticks)
    assert (ranking.ticks[0].at, ranking.ticks[-1].at) == (0, 100)
    assert ranking.cut
    by_name = {row.standing.variant: row for row in ranking.rows}
    for row in ranking.rows:
        value = 100 * row.standing.mean
        if row.standing.variant in ("untrained", "raw pixels", "hardest"):
            assert (row.off, row.at, row.interval) == ("below", None, None)
        else:
            assert row.off == ""
            np.testing.assert_allclose(row.at, 100 * (value - ticks[0]) / (ticks[-1] - ticks[0]), atol=0.01)
            assert 0 <= row.interval[0] < row.at < row.interval[1] <= 100
    kinds = [spot.kind for spot in by_name["whole set"].spots]
    assert kinds == ["finished"] * 3 + ["below"] + ["finished"] * 4
    assert "seed 3: 27.00 %, failed" in by_name["whole set"].spots[3].words
    assert [row.trained for row in ranking.rows] == [
        row.standing.role in ("variant", "random miner") for row in ranking.rows
    ]


def test_nothing_is_cut_where_everything_is_near():
    variants = {name: (level, 0.3, 80.0, None) for name, level in (("a", 0.12), ("b", 0.1), ("c", 0.07))}
    ranking = ranking_of(fabricated(variants=variants))
    assert not ranking.cut
    assert all(row.at is not None for row in ranking.rows)


def test_panels_for_many_variants_one_chart_for_few():
    many = learning_of(fabricated())
    assert many.panels and len(many.by_images) == len(many.by_seconds) == 9
    assert many.left_out == "1 failed run has no curve here."
    for panel in many.by_images:
        lines = panel.chart.lines
        assert [line.kind for line in lines] == ["other"] * 8 + ["main"]
        assert all(line.label == "" and not line.band and not line.dots for line in lines[:-1])
        assert lines[-1].band
    few = learning_of(fabricated(variants={name: VARIANTS[name] for name in ("semi-hard", "all", "random")}))
    assert not few.panels and len(few.by_images) == 1
    assert [line.label.rpartition(" ")[0] for line in few.by_images[0].chart.lines] == ["semi-hard", "all", "random"]


def test_a_curve_is_the_mean_of_the_runs_that_did_not_fail():
    comparison = fabricated()
    learning = learning_of(comparison)
    for one in comparison.standings[:9]:
        runs = [run for run in one.runs if run.status != "failed"]
        if not runs[0].curve:
            continue
        panel = next(panel for panel in learning.by_images if panel.variant == one.variant)
        last = 100 * np.mean([run.curve[-1].figures["map@r"] for run in runs])
        assert panel.chart.lines[-1].label == f"{last:.1f}"
        first = 100 * np.mean([run.curve[0].figures["map@r"] for run in runs])
        assert panel.chart.described == f"{one.variant} over images seen: {first:.1f} to {last:.1f} %"
    # what a failed run logged before it failed counts for nothing
    ill = comparison.standings[0].runs[0]
    ill = replace(ill, status="failed", curve=[point._replace(figures={"map@r": 0.99}) for point in ill.curve])
    with_it = replace(comparison.standings[0], runs=[ill, *comparison.standings[0].runs[1:]])
    panel = learning_of(replace(comparison, standings=[with_it, *comparison.standings[1:]])).by_images[0]
    last = 100 * np.mean([run.curve[-1].figures["map@r"] for run in with_it.runs[1:]])
    assert panel.chart.lines[-1].label == f"{last:.1f}"
    # runs that stopped early shorten the curve; none at all leaves it out
    short = replace(comparison.standings[0].runs[0], curve=comparison.standings[0].runs[0].curve[:3])
    cut = replace(comparison.standings[0], runs=[short, *comparison.standings[0].runs[1:]])
    panel = learning_of(replace(comparison, standings=[cut, *comparison.standings[1:]])).by_images[0]
    assert len(panel.chart.lines[-1].dots) <= 3
    bare = [replace(one, runs=[replace(run, curve=()) for run in one.runs]) for one in comparison.standings]
    assert learning_of(replace(comparison, standings=bare)).by_images == []


def test_a_curve_below_the_axis_runs_along_its_bottom_and_has_no_dots_there():
    learning = learning_of(fabricated())
    assert learning.cut
    by_name = {panel.variant: panel.chart for panel in learning.by_images}
    collapsed, healthy = by_name["hardest"], by_name["semi-hard"]
    bottom = healthy.area[3]
    heights = [float(part.split()[1]) for part in healthy.lines[-1].line[1:].split("L")]
    assert max(heights) == bottom and heights[0] == bottom and min(heights) < bottom - 40
    assert all(dot.y < bottom for dot in healthy.lines[-1].dots)
    assert set(collapsed.lines[-1].line[1:].replace("L", " ").split()[1::2]) == {f"{bottom:g}"}
    assert not collapsed.lines[-1].dots
    # it leaves the bottom where the straight line between two validations crosses it
    one = next(one for one in fabricated().standings if one.variant == "semi-hard")
    y = np.mean([[point.figures["map@r"] for point in run.curve] for run in one.runs], axis=0)
    least = min(float(tick.text) for tick in healthy.y_ticks) / 100
    after = int(np.argmax(y > least))
    share = (after - 1 + (least - y[after - 1]) / (y[after] - y[after - 1])) / 5
    left, right = healthy.area[:2]
    places = [float(part.split()[0]) for part in healthy.lines[-1].line[1:].split("L")]
    leaves = places[[height < bottom for height in heights].index(True) - 1]
    np.testing.assert_allclose(leaves, left + share * (right - left), atol=0.1)


def test_costs_are_medians_of_the_runs_that_did_not_fail():
    comparison = fabricated()
    rows = {row.variant: row for row in costs_of(comparison)}
    assert "untrained" not in rows and len(rows) == 9
    one = next(one for one in comparison.standings if one.variant == "whole set")
    done = [run for run in one.runs if run.status != "failed"]
    assert len(done) == 7
    row = rows["whole set"]
    seconds = sorted(run.seconds for run in done)
    assert row.seconds == (seconds[3], seconds[0], seconds[-1])
    assert row.rate == sorted(run.images_per_second for run in done)[3]
    assert row.memory == int(9.1e8)
    assert row.images == (96_000, 96_000)
    np.testing.assert_allclose((row.spark.first, row.tuples[0], row.tuples[1]), (1.0, 20_000, 16_100))
    nothing = replace(one, runs=[run for run in one.runs if run.status == "failed"])
    row = costs_of(replace(comparison, standings=[nothing]))[0]
    assert (row.rate, row.seconds, row.memory, row.spark, row.tuples) == (None,) * 5


def test_a_spark_goes_from_0_to_100_per_cent():
    one = [Activity(0.0, 1.0, 5.0), Activity(50.0, 0.5, 5.0), Activity(100.0, 0.0, 5.0)]
    two = [Activity(0.0, 0.5, 5.0), Activity(50.0, 0.0, 5.0)]
    runs = [Run("a", seed, "finished", {}, None, activity=steps) for seed, steps in enumerate((one, two))]
    found = spark_of(runs)
    assert (found.first, found.last) == (0.75, 0.25)
    assert found.path == "M1.0 7.0L119.0 19.0"
    assert spark_of([Run("a", 0, "finished", {}, None)]) is None


def test_faults_are_grouped_by_variant_and_told_once():
    groups = groups_of(fabricated())
    assert [(one.variant, one.title, one.hit, one.runs) for one in groups] == [
        ("whole set", "Failed", 1, 8),
        ("hardest", "Collapsed", 8, 8),
        ("all", "Mining died", 2, 8),
    ]
    assert groups[0].what == "DataError: cannot read (path left out)(No space left on device)"
    assert groups[1].seeds == "0, 1, 2, 3, 4, 5, 6, 7"
    assert groups[1].what.startswith("steps 150 to 750: the embeddings have collapsed")
    assert groups[1].try_first == COLLAPSE.try_first
    silent = groups_of(fabricated(health=False))
    assert "health had no finding" in silent[1].what and silent[1].try_first == ""


def test_a_collapse_that_passed_is_a_finding_and_no_collapsed_run():
    comparison = fabricated(variants={"semi-hard": VARIANTS["semi-hard"], "all": VARIANTS["all"]}, health=False)
    one = comparison.standings[0]
    healed = replace(one, runs=[replace(one.runs[0], health=[COLLAPSE]), *one.runs[1:]])
    groups = groups_of(replace(comparison, standings=[healed, *comparison.standings[1:]]))
    assert [(one.title, one.hit) for one in groups] == [("The embeddings collapsed for a while", 1)]


def test_every_run_has_a_cell():
    comparison = fabricated()
    rows = {row.variant: row for row in grid_of(comparison).rows}
    for one in comparison.standings:
        expected = list(one.scores) * (8 // len(one.runs))  # raw pixels: the same for every seed
        assert [cell[0] for cell in rows[one.variant].cells] == expected
    assert [cell[1] for cell in rows["whole set"].cells] == ["finished"] * 3 + ["failed"] + ["finished"] * 4
    missing = replace(
        comparison.standings[0], runs=comparison.standings[0].runs[1:], scores=comparison.standings[0].scores[1:]
    )
    assert grid_of(replace(comparison, standings=[missing])).rows[0].cells[0] is None


def test_sensitivity_shows_every_trial_and_marks_the_chosen():
    comparison = fabricated(tuning=True)
    found = sensitivity_of(comparison.tuning, comparison.standings)
    assert [one.parameter for one in found] == [LR, MARGIN]
    order = [one.variant for one in comparison.standings if one.role in ("variant", "random miner")]
    for one in found:
        assert [panel.variant for panel in one.panels] == order
        for panel in one.panels:
            trials = comparison.tuning.trials[panel.variant]
            dots, failed = panel.chart.lines
            assert len(dots.dots) == sum(trial.score is not None for trial in trials)
            assert len(failed.dots) == sum(trial.score is None for trial in trials)
            best = max((trial for trial in trials if trial.score is not None), key=lambda trial: trial.score)
            (mark,) = panel.chart.marks
            assert mark.text == f"{best.values[one.parameter]:.3g}"
            assert mark.y == min(dot.y for dot in dots.dots)
            assert all(dot.y > max(good.y for good in dots.dots) for dot in failed.dots)
            left, right, top, bottom = panel.chart.area
            assert all(left < dot.x < right and top <= dot.y <= bottom for dot in dots.dots + failed.dots)
    lr = found[0].panels[0].chart
    first, second = sorted(comparison.tuning.trials[order[0]], key=lambda trial: trial.values[LR])[:2]
    by_text = {dot.text: dot.x for dot in lr.lines[0].dots}
    xs = sorted(by_text.values())
    all_lr = np.log10([trial.values[LR] for trials in comparison.tuning.trials.values() for trial in trials])
    scale = (lr.area[1] - lr.area[0]) / (np.ptp(all_lr) + 0.16)
    gap = np.log10(second.values[LR]) - np.log10(first.values[LR])
    np.testing.assert_allclose(xs[1] - xs[0], gap * scale, atol=0.2)


def test_tuning_in_which_everything_failed_still_has_a_page(tmp_path):
    comparison = fabricated(variants={"all": VARIANTS["all"], "semi-hard": VARIANTS["semi-hard"]}, tuning=True)
    failed = {
        name: [trial._replace(score=None) for trial in trials] for name, trials in comparison.tuning.trials.items()
    }
    page = written(tmp_path, replace(comparison, tuning=replace(comparison.tuning, trials=failed, chosen={})))
    assert "✕ at the bottom failed" in page.text


def test_changes_are_means_over_seeds_and_pictures_of_one():
    changes, found, per_seed = the_changes(seeds=3)
    a, b = (np.mean([both[side].metrics["map@r"] for both in per_seed], axis=0) for side in (0, 1))
    np.testing.assert_allclose(changes.found.per_query, a - b, atol=1e-12)
    assert changes.found.won == int((a - b > 1e-9).sum()) and changes.found.lost == int((b - a > 1e-9).sum())
    assert changes.found.won != found[0].won  # the means differ from the seed
    for one in changes.found.classes:
        rows = [n for n, name in enumerate(per_seed[0][0].names) if name.startswith(f"{one.name}/")]
        np.testing.assert_allclose(one.difference, (a - b)[rows].mean())
    names = list(per_seed[0][0].names)
    for shown, sign in ((changes.figures.won, 1), (changes.figures.lost, -1)):
        assert shown
        for versus in shown:
            at = names.index(versus.query.name)
            assert sign * (a - b)[at] > 0
            assert versus.a == found[0].a.per_query["map@r"][at] and versus.b == found[0].b.per_query["map@r"][at]
            assert sign * (versus.a - versus.b) > 0
    best = (a - b)[found[0].per_query > 0].max()
    assert any(np.isclose((a - b)[names.index(one.query.name)], best) for one in changes.figures.won)


def test_changes_of_other_queries_are_refused():
    _, found, per_seed = the_changes(seeds=1)
    pair = pair_by_name(*[rows_of(per_seed[0][0], side) for side in (0, 1)])
    other = replace(per_seed[0][0], names=per_seed[0][0].names[::-1])
    with pytest.raises(ValueError, match="stand in another order"):
        changes_between(("a", "b"), pair, found[0], 0, [(other, per_seed[0][1])], [])
    with pytest.raises(ValueError, match="at least one run"):
        changes_between(("a", "b"), pair, found[0], 0, [], [])


def rows_of(figures, seed):
    rows = Rows(figures.labels, figures.class_names, list(figures.names))
    return rows.with_vectors(np.random.default_rng(seed).normal(size=(len(figures.names), 4)), {})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({MINER: None}, "miner none"),
        ({MINER: "lossopt.miners.SemiHardMiner"}, "miner SemiHardMiner"),
        (
            {MINER: {"class_path": "lossopt.miners.BatchHardMiner", "init_args": {"margin": 0.2}}},
            "miner BatchHardMiner(margin 0.2)",
        ),
        ({"a.b": 0.00012345678, "c": "x.y"}, "b 0.0001235, c x.y"),
        ({}, ""),
    ],
)
def test_changes_in_words(overrides, words):
    one = standing("a", "variant", [Run("a", 0, "finished", {"map@r": 0.5}, None)], overrides)
    assert changes_in_words(one) == words


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (duration_text(None), "–"),
        (duration_text(12.345), "12.3 s"),
        (duration_text(101), "1 min 41 s"),
        (duration_text(3599.7), "1 h 00 min"),
        (duration_text(7_260), "2 h 01 min"),
        (size_text(None), "–"),
        (size_text(910_000_000), "910 MB"),
        (size_text(2_340_000_000), "2.3 GB"),
        (p_text(None), "–"),
        (p_text(0.00001), "< 0.0001"),
        (p_text(0.00781), "0.0078"),
        (p_text(0.25), "0.250"),
    ],
)
def test_figures_in_words(words, text):
    assert words.replace("\N{NO-BREAK SPACE}", " ") == text
