"""Runs side by side: each ends in words, none takes another with it, and none outlives the command."""

import errno
import hashlib
import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from lossopt.cli import main
from lossopt.comparison.diary import Diary
from lossopt.comparison.outcomes import is_done, outcome_of, score_of
from lossopt.comparison.workers import FAILURE, Ended, _is_no_result, execute, failure_of
from lossopt.durable import run_lock
from lossopt.errors import ConfigError, DataError, LossoptError, NonFiniteError
from lossopt.retrieval.queries import QUERIES, read_queries
from lossopt.runs import RESULTS, result_of

from .conftest import own_miner, tasks_of_plan, write_plan

LOOKING = {"trainer.callbacks": [{"class_path": "clumsy_components.Threads"}]}
VARIANTS = {
    "looking": LOOKING,
    "raising": own_miner("Deed", "raised"),
    "killed": own_miner("Killed", "killed"),
    "killed once": own_miner("KilledOnce", "killed-once"),
}


@pytest.fixture(scope="module")
def ended(place, server):
    """Variant to how its run ended, the order in which they ended, and what was told of the images on the way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        tasks = tasks_of_plan(write_plan("workers", variants=VARIANTS))
        told = []
        running = execute(list(tasks.values()), 2, 1, lambda task, images: told.append((task.variant, images)))
        return tasks, {one.task.variant: one for one in running}, told


@pytest.fixture(autouse=True)
def _here(here):
    """Where the runs lie."""


def test_every_task_ends_once_and_says_how(ended):
    tasks, found, _ = ended
    assert {name: one.how for name, one in found.items()} == {
        "looking": "finished",
        "raising": "failed",
        "killed": "stopped",
        "killed once": "finished",
    }
    assert all(found[name].task == task for name, task in tasks.items())
    assert all(one.around >= one.inside >= 0 for one in found.values())
    assert [one.everyones for one in found.values()] == [False] * 4
    assert found["looking"].words == "" and found["looking"].inside > 0


def test_a_finished_run_leaves_what_the_comparison_reads(ended):
    task = ended[0]["looking"]
    folder = task.found()
    assert is_done(task) and failure_of(folder) is None and not (folder / "report.html").exists()
    result, figures = result_of(folder), read_queries(folder / QUERIES)
    assert score_of(task, "map@r") == result.validation["val/map@r"]
    assert result.peak_memory > 50e6 and result.images == 128 and result.seconds > 0
    for name in ("map@r", "map", "mrr", "r_precision", "recall@1", "recall@8"):
        assert figures.means[name] == pytest.approx(result.test[f"test/{name}"], abs=1e-9)
    run, queries = outcome_of(task, untrained=figures)
    assert run.status == "finished" and run.figures == figures.means and queries.names == figures.names
    assert [point.images for point in run.curve] == [0, 64, 128]
    assert run.curve[0].seconds == 0 < run.curve[1].seconds < run.curve[2].seconds <= run.seconds
    assert run.curve[0].figures["map@r"] == result.untrained["val/map@r"]
    assert [one.images for one in run.activity] == [16.0 * step for step in range(1, 9)]
    assert all(0 <= one.share <= 1 and one.tuples > 0 for one in run.activity) and run.images_per_second > 0


def test_the_images_seen_are_told_up_to_the_budget(ended):
    told = [images for variant, images in ended[2] if variant == "looking"]
    assert told == sorted(told) and told[0] == 0 and told[-1] == 128


def test_a_failure_is_a_result_that_is_kept_in_words(ended):
    tasks, found, _ = ended
    assert found["raising"].words == "RuntimeError: the miner has lost its lamp"
    folder = tasks["raising"].found()
    assert is_done(tasks["raising"]) and not (folder / RESULTS).exists()
    kept = json.loads((folder / FAILURE).read_text())
    assert kept["error"] == failure_of(folder) == found["raising"].words and kept["kind"] == "RuntimeError"
    assert "in act" in kept["trace"]
    assert score_of(tasks["raising"], "map@r") is None
    untrained = read_queries(tasks["looking"].found() / QUERIES)
    run, queries = outcome_of(tasks["raising"], untrained)
    assert (run.status, run.error, run.images) == ("failed", kept["error"], 48)
    assert run.figures == untrained.means and queries is untrained and run.folder == folder
    assert len(Path("raised").read_text().splitlines()) == 1


def test_a_killed_process_is_tried_once_more_and_then_given_up_in_words(ended):
    tasks, found, _ = ended
    assert found["killed"].words.startswith("its process was killed by SIGKILL, 2 times (often: out of memory;")
    assert len(set(Path("killed").read_text().splitlines())) == 2
    assert not is_done(tasks["killed"])
    assert len(Path("killed-once").read_text().splitlines()) == 1 and is_done(tasks["killed once"])


def test_a_run_has_the_threads_of_the_plan_whichever_library_asks(ended):
    counts = Path("threads").read_text().split()
    assert len(counts) > 3 and set(counts) == {"1"}  # the environment of the server says 3


def test_a_run_of_other_code_of_ones_own_does_not_count(ended, here):
    for name, run in (("looking", ended[0]["looking"]), ("killed once", ended[0]["killed once"])):
        path = run.found() / "environment.txt"
        kept = path.read_text()
        digest = hashlib.sha256((here / "clumsy_components.py").read_bytes()).hexdigest()[:8]
        assert f"code clumsy_components={digest}\n" in kept, name  # "looking" names a class within a list
        try:
            path.write_text(kept.replace(digest, "00000000"))
            assert run.found() is None and not is_done(run)
        finally:
            path.write_text(kept)
        assert is_done(run)


def test_a_full_disk_stops_the_others_and_is_no_result(server):
    variants = {"full": own_miner("FullDisk", "full"), "next": {}, "last": {"model.init_args.miner": "HardMiner"}}
    tasks = tasks_of_plan(write_plan("full", variants=variants))
    running = execute(list(tasks.values()), 1, 1)
    first = next(running)
    running.close()
    assert (first.task.variant, first.how, first.everyones) == ("full", "stopped", True)
    assert first.words == f"OSError: [Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}"
    assert not is_done(tasks["full"]) and not (tasks["full"].found() / FAILURE).exists()
    assert tasks["last"].found() is None  # with one worker the third never began


def test_what_is_at_work_ends_when_the_command_does_not_want_more(server):
    variants = {"sleeping": own_miner("Sleeping", "slept"), "failing": own_miner("Deed", "failed")}
    tasks = tasks_of_plan(write_plan("closed", variants=variants))
    running = execute(list(tasks.values()), 2, 1)
    assert next(running).task.variant == "failing"
    sleeper = process_in("slept")
    running.close()
    assert not is_alive(sleeper)


def test_nothing_outlives_a_command_that_is_killed(server):
    write_plan("outlived", variants={"a": own_miner("Sleeping", "outlived"), "b": {}}, seeds=[0, 1])
    command = multiprocessing.get_context("forkserver").Process(target=main, args=(["compare", "outlived.yaml"],))
    command.start()
    sleeper = process_in("outlived")
    assert is_alive(sleeper)
    folder = tasks_of_plan(Path("outlived.yaml"))["a"].found()
    with pytest.raises(ConfigError, match="Another run is at work"), run_lock(folder):
        pass
    command.kill()
    command.join()
    wait_for(lambda: not is_alive(sleeper), 20)  # an idle machine takes milliseconds
    wait_for(lambda: is_free(folder), 20)  # its other threads end a moment after the first one


def is_free(folder):
    try:
        with run_lock(folder):
            return True
    except ConfigError:
        return False


def process_in(file):
    wait_for(lambda: Path(file).is_file() and Path(file).read_text().endswith("\n"), 300)
    return int(Path(file).read_text().split()[0])


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0] != "Z"  # dead, not yet buried
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "full"), True),
        (PermissionError(errno.EACCES, "no"), True),
        (OSError(errno.ENOMEM, "no memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."), True),
        (LossoptError("Cannot save x (No space left on device)."), True),
        (ConfigError("Another run is at work in x."), True),
        (NonFiniteError("NaN"), False),
        (DataError("the miner found nothing"), False),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (RuntimeError("shapes do not match"), False),
        (ZeroDivisionError(), False),
    ],
)
def test_what_says_nothing_about_a_variant_is_no_result(error, expected):
    assert _is_no_result(error) is expected


def ending(how="finished", inside=8.0, around=9.0):
    task = type("T", (), {"variant": "a", "seed": 0})()
    return Ended(task, how, "", inside, around)


def test_the_diary_adds_sittings_up_and_a_kill_loses_one_line_at_most(tmp_path):
    assert Diary(tmp_path, 2).overhead() is None and Diary(tmp_path, 2).wall_seconds() == 0
    first = Diary(tmp_path, workers=2, prepared=3.0)
    first.note(ending())
    first.note(ending("failed", 2.0, 2.5))
    (tmp_path / "diary.jsonl").open("a").close()
    second = Diary(tmp_path, workers=1, prepared=5.0)
    second.note(ending(inside=10.0, around=10.5))
    assert second.wall_seconds() == pytest.approx(8.0, abs=0.5)
    assert second.overhead() == pytest.approx((3 * 2 + 5 * 1 + 1 + 0.5 + 0.5) / 20)
    lines = (tmp_path / "diary.jsonl").read_text()
    (tmp_path / "diary.jsonl").write_text(lines[:-20])
    assert Diary(tmp_path, 1).overhead() == pytest.approx((3 * 2 + 1 + 0.5) / 10)


def test_a_diary_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "diary.jsonl").symlink_to("/dev/full")
    Diary(tmp_path, 1).note(ending())
