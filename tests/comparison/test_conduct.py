"""A whole comparison by its command: what it leaves, what it makes again and what not, and what it refuses."""

import csv
import importlib
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml

from lossopt.cli import main
from lossopt.comparison.conduct import duration, prepare
from lossopt.comparison.plan import read_plan
from lossopt.config import instantiate, parse
from lossopt.data import Digits
from lossopt.retrieval.queries import read_queries
from lossopt.runs import RESULTS, result_of

from .conftest import MINER, PLAN, own_miner, tasks_of_plan, write_plan

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
interruption = importlib.import_module("interrupt_comparison")
sys.path.pop(0)

TABLES = interruption.TABLES
HOME = Path("runs/tiny")


@pytest.fixture(autouse=True)
def _here(here, finished):
    """Where the finished comparison lies."""


def compare(path, *words, expect=0):
    code = main(["compare", str(path), *words])
    assert code == expect


def rows(name):
    with (HOME / name).open(newline="") as file:
        return list(csv.DictReader(file))


def files(pattern):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in HOME.glob(pattern) if path.is_file()}


def map_at_r(vectors, labels):
    """(q,) by the definition of Musgrave et al. 2020, query by query."""
    found = []
    for row, label in enumerate(labels):
        distance = ((vectors - vectors[row]) ** 2).sum(axis=1)
        distance[row] = np.inf
        same = labels == label
        relevant = int(same.sum()) - 1
        hits = same[np.argsort(distance, kind="stable")[:relevant]]
        found.append(float((np.cumsum(hits) / np.arange(1, relevant + 1) * hits).sum() / relevant))
    return np.array(found)


def test_the_ranking_is_the_mean_of_the_runs_test_figures_and_names_every_baseline():
    ranking = {row["variant"]: row for row in rows("ranking.csv")}
    assert {name: row["role"] for name, row in ranking.items()} == {
        "all": "variant",
        "diverging": "variant",
        "collapsing": "variant",
        "random miner": "random miner",
        "untrained": "untrained",
        "raw pixels": "raw pixels",
    }
    means = [float(row["mean"]) for row in ranking.values()]
    assert means == sorted(means, reverse=True)
    for name in ("all", "random-miner", "collapsing"):
        results = [result_of(path.parent).test for path in (HOME / name).glob(f"*/{RESULTS}")]
        assert len(results) == 2
        row = ranking[name.replace("-", " ")]
        for metric in ("map@r", "recall@1", "recall@8", "r_precision", "mrr", "map"):
            wanted = np.mean([result[f"test/{metric}"] for result in results])
            assert float(row[metric]) == pytest.approx(wanted, abs=1e-12)
        assert float(row["mean"]) == float(row["map@r"])
    assert len(rows("pairs.csv")) == 6 and {row["verdict"] for row in rows("pairs.csv")} == {"too few seeds"}
    for name in TABLES:
        text = (HOME / name).read_text()
        assert str(Path.cwd()) not in text and "runs/" not in text


def test_failed_and_collapsed_runs_are_counted_and_failed_ones_count_as_untrained():
    ranking = {row["variant"]: row for row in rows("ranking.csv")}
    counted = {name: (row["failed"], row["collapsed"], row["runs"]) for name, row in ranking.items()}
    assert counted["diverging"] == ("2", "0", "2") and counted["collapsing"] == ("0", "2", "2")
    assert counted["all"] == ("0", "0", "2") and counted["raw pixels"] == ("0", "0", "1")
    assert ranking["diverging"]["mean"] == ranking["untrained"]["mean"] != ranking["all"]["mean"]
    table = (HOME / "table.md").read_text()
    assert "Runs that collapsed: collapsing 2 of 2" in table and "Runs that failed: diverging 2 of 2" in table
    assert table.count("2/2") == 2
    costs = [row for row in rows("costs.csv") if row["variant"] == "diverging"]
    assert [row["status"] for row in costs] == ["failed", "failed"] and {row["images"] for row in costs} == {"16"}


def test_the_baselines_are_those_of_the_definition():
    test = Digits(image_size=16).splits().test
    images = test.batch(range(len(test))).images.float() / 255
    labels = test.labels.numpy()
    pixels = read_queries(next(HOME.glob("raw-pixels/*/queries.npz")))
    assert pixels.names == tuple(test.names) and pixels.gallery == len(test)
    np.testing.assert_allclose(
        pixels.metrics["map@r"], map_at_r(images.flatten(1).double().numpy(), labels), atol=1e-12
    )
    for seed in (0, 1):
        config = dict(tasks_of_plan(Path("tiny.yaml"), seed)["all"].config)
        pl.seed_everything(seed, verbose=False)
        network = instantiate(parse([], config)).model.eval()
        with torch.no_grad():
            vectors = network(images).double().numpy()
        (folder,) = HOME.glob(f"untrained/seed{seed}-*")
        kept = read_queries(folder / "queries.npz").metrics["map@r"]
        wanted = map_at_r(vectors, labels)
        assert np.median(np.abs(kept - wanted)) < 1e-12  # one batch instead of some: near ties may turn round
        assert kept.mean() == pytest.approx(wanted.mean(), abs=1e-4)


def test_a_second_call_runs_nothing_and_gives_the_same_bytes(capsys):
    before, diary = files("*.*"), (HOME / "diary.jsonl").read_bytes()
    runs = files("*/*/*")
    compare("tiny.yaml")
    assert "8 runs, 8 done already\n" in capsys.readouterr().out
    assert files("*/*/*") == runs and (HOME / "diary.jsonl").read_bytes() == diary
    after = files("*.*")
    for name in (*TABLES, "costs.csv", "report.html"):
        assert after[HOME / name][1] == before[HOME / name][1], name


def test_a_changed_plan_makes_only_what_is_new(capsys):
    """One variant more, one seed more, one variant renamed, one taken out."""
    before = files("*/*/results.json") | files("*/*/failure.json")
    variants = {"every triplet": {}, "semi-hard": {MINER: "lossopt.miners.SemiHardMiner"}}
    compare(write_plan("changed", name="tiny", variants=variants, seeds=[2, 0, 1]))
    assert re.search(r"9 runs, 4 done already", capsys.readouterr().out)
    after = files("*/*/results.json") | files("*/*/failure.json")
    assert before.items() <= after.items() and len(after) == len(before) + 5
    ranking = {row["variant"]: row for row in rows("ranking.csv")}
    assert set(ranking) == {*variants, "random miner", "untrained", "raw pixels"}
    assert {row["runs"] for row in ranking.values()} == {"3", "1"}
    costs = [row["seed"] for row in rows("costs.csv") if row["variant"] == "every triplet"]
    assert costs == ["2", "0", "1"]
    compare("tiny.yaml")  # and back


def test_a_run_of_another_version_is_refused_by_name(capsys):
    folder = tasks_of_plan(Path("tiny.yaml"))["all"].found()
    path = folder / "environment.txt"
    kept = path.read_text()
    try:
        path.write_text(re.sub(r"torch==.*", "torch==1.13", kept, count=1))
        compare("tiny.yaml", expect=2)
        said = capsys.readouterr().err
        assert str(folder) in said and f"torch was 1.13, is {torch.__version__.split('+')[0]}" in said
        assert "Set another output in the plan" in said
        path.write_text(kept.replace("threads=1", "threads=7"))
        compare("tiny.yaml", expect=2)
        assert "threads was 7, is 1" in capsys.readouterr().err
    finally:
        path.write_text(kept)


def test_more_workers_than_cores_are_refused(capsys):
    cores = os.cpu_count()
    compare("tiny.yaml", "--workers", str(cores + 1), expect=2)
    assert f"--workers {cores + 1} with threads: 1 each need {cores + 1} cores, but there are {cores}" in (
        capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        main(["compare", "tiny.yaml", "--workers", "0"])


def test_a_pair_that_the_plan_has_not_is_refused(capsys):
    compare("tiny.yaml", "--pair", "all", "some", expect=2)
    assert "--pair names 'some'; the variants of the plan are all, diverging" in capsys.readouterr().err


def test_a_dry_run_says_what_would_run_and_trains_nothing(capsys):
    compare(write_plan("dry", seeds=3), "--dry-run")
    said = capsys.readouterr().out
    assert "dry: 4 variants x 3 seeds, 128 images each, by test map@r" in said
    assert re.search(r"12 runs, 0 done already; about \d+ (s|min) with \d+ side by side, 1 thread each", said)
    assert not Path("runs/dry").exists()


def test_a_full_disk_ends_the_command_in_words_and_nothing_is_lost(capsys):
    variants = {"a": own_miner("FullDisk", "full-here"), "b": {}}
    compare(write_plan("stopped", variants=variants), expect=1)
    said = capsys.readouterr().err
    assert "1 run could not be made, first 'a' with seed 0: OSError: [Errno 28] No space left on device. What" in said
    assert "is kept in runs/stopped; the same command goes on with what is missing" in said
    assert not Path("runs/stopped/table.md").exists() and "Traceback" not in said


def test_a_run_folder_that_a_kill_left_empty_is_no_hindrance(here):
    """The process was killed between making the folder and writing its configuration."""
    task = tasks_of_plan(write_plan("hollow", variants={"a": {}, "b": {MINER: "HardMiner"}}))["a"]
    (task.folder / f"20200101-000000-{task.digest}").mkdir(parents=True)
    assert task.found() is None


@pytest.mark.parametrize(("seconds", "words"), [(3.4, "3 s"), (89.6, "90 s"), (90, "2 min"), (5400, "1.5 h")])
def test_durations_are_said_as_people_say_them(seconds, words):
    assert duration(seconds) == words


def test_a_comparison_that_is_killed_and_resumed_ends_with_the_same_bytes(here):
    took = [json.loads(line)["around"] for line in (HOME / "diary.jsonl").read_text().splitlines()]
    seconds = 3 * np.median(took)  # eight runs and three baselines take about twice as long on two cores
    copy = interruption.elsewhere(here / "tiny.yaml", here / "interrupted")
    sittings = interruption.interrupt(copy, 2, 7, None, seconds)
    assert len(sittings) == 2 and sittings[0].done < 6
    compare(copy)
    assert interruption.differing(HOME, here / "interrupted" / "tiny") == []
    assert yaml.safe_load((here / "tiny.yaml").read_text()) == PLAN


def test_preparing_leaves_the_threads_of_the_process_as_they_were():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        prepare(read_plan(write_plan("threads", threads=1)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
