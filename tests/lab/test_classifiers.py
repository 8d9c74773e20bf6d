"""Tables and page of a grid of classifiers, from outcomes made up by hand."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest

from lossopt.health import Finding
from lossopt.lab.classifiers import as_markdown, classifiers, published_for
from lossopt.lab.grid import Outcome
from lossopt.report.lab_classifiers import write_classifiers_page
from lossopt.runs import RunResult

CONFIG = {
    "data": {
        "init_args": {
            "source": {
                "class_path": "lossopt.data.FashionMNIST",
                "init_args": {"split": "standard", "holdout": 0},
            },
            "batch_size": 128,
        }
    },
    "trainer": {"limit_train_batches": None, "accumulate_grad_batches": 1},
    "model": {
        "init_args": {
            "trunk": {"class_path": "lossopt.encoders.Conv2"},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.158, "momentum": 0.0}},
        }
    },
}


def outcome(variant, seed, accuracies, seconds=10.0, failure=None, health=()):
    rows = [{"epoch": float(epoch), "val/accuracy": value} for epoch, value in enumerate(accuracies)]
    result = None if failure else RunResult(Path(), Path(), 1, {}, {}, {}, 0, seconds, [])
    config = CONFIG if variant == "SGD" else {"model": {"init_args": {"lr_scheduler": "some"}}}
    return Outcome(variant, seed, Path(), config, result, [*rows, {"train/loss": 1.0}], health, failure)


def rows():
    stuck = Finding("stuck", 1, 9, 3, {}, "training is stuck", "less")
    return classifiers(
        [
            outcome("SGD", 0, [0.1, 0.86, 0.88]),
            outcome("SGD", 1, [0.1, 0.88, 0.91], 20.0, health=(stuck,)),
            outcome("<Adam>", 0, [0.1, 0.8]),
            outcome("<Adam>", 1, [0.1], failure="the gradient is not finite"),
        ]
    )


@pytest.mark.parametrize(
    "changed",
    [
        ("data.init_args.batch_size", 64),
        ("data.init_args.source.init_args.holdout", 5000),
        ("trainer.limit_train_batches", 10),
        ("model.init_args.optimizer.init_args.lr", 0.1),
        ("model.init_args.optimizer.init_args.momentum", 0.9),
    ],
)
def test_published_figures_stand_beside_nothing_else(changed):
    assert published_for(CONFIG)[1] == (0.8545, 0.012)
    config, (path, value) = copy.deepcopy(CONFIG), changed
    *above, last = path.split(".")
    inner = config
    for key in above:
        inner = inner[key]
    inner[last] = value
    assert published_for(config) == {}


def test_figures_by_definition():
    sgd, adam = rows()
    assert [one.epoch for one in sgd.listed] == [1, 2] and [one.epoch for one in sgd.curve] == [0, 1, 2]
    assert sgd.listed[0].mean == pytest.approx(0.87)
    assert sgd.listed[0].deviation == pytest.approx(np.std([0.86, 0.88], ddof=1))
    assert sgd.listed[0].apart == pytest.approx((0.87 - 0.8545) / 0.012)
    assert sgd.seconds == pytest.approx(7.5) and sgd.faults == {"stuck": 1} and sgd.failed == ()
    assert adam.seeds == 1 and adam.failed == ("the gradient is not finite",)
    assert adam.listed[0].deviation is None and adam.listed[0].apart is None


def test_an_epoch_counts_once_all_seeds_have_reached_it():
    (row,) = classifiers([outcome("SGD", 0, [0.1, 0.86, 0.88]), outcome("SGD", 1, [0.1, 0.88])])
    assert [one.epoch for one in row.curve] == [0, 1]


def test_the_table_says_mean_spread_published_failures_and_faults():
    text = as_markdown(rows())
    assert "| SGD, 2 seeds | 87.00 ± 1.41 | 89.50 ± 2.12 | 8 |" in text
    assert (
        "| published, 10 seeds | 85.45 ± 1.2 (+1.3 deviations from it) | 87.54 ± 0.9 (+2.2 deviations from it) | |"
        in text
    )
    assert "| <Adam>, 1 seed | 80.00 |  | 10 |" in text
    assert "| <Adam>: the gradient is not finite |" in text and "| SGD: stuck, 1 run |" in text


def test_the_page_shows_them_and_escapes_names(tmp_path):
    page = write_classifiers_page(tmp_path / "page.html", "grid", "data", rows()).read_text()
    assert "87.00 ± 1.41" in page and "published 85.45 ± 1.2" in page and "stuck in 1 run." in page
    assert "&lt;Adam&gt;" in page and "<Adam>" not in page
    series = set(re.findall(r'class="line (c\d+)', page))
    assert series and all(f".line.{one} {{ stroke: var(--{one}); }}" in page for one in series)
    alone = write_classifiers_page(tmp_path / "no.html", "g", "d", classifiers([outcome("a", 0, [], failure="x")]))
    assert "No run ended well." in alone.read_text()
