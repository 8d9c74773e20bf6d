"""Kills `lossopt compare PLAN` with SIGKILL at random moments, resumes it, and compares its tables with untouched ones.

The untouched comparison lies where the plan says; it is made first if it is not there. The killed one lies beside it.
"""

import argparse
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import yaml

from lossopt.comparison.plan import read_plan

TABLES = ("table.md", "ranking.csv", "pairs.csv")
_SHARE = 0.9  # of the time at work, which varies: the last kill is to find something to kill


class Kill(NamedTuple):
    """One sitting: seconds at work until it was killed, and how many runs had begun and were done by then."""

    after: float
    ended_before: bool
    begun: int
    done: int


def command(plan: Path, workers: int | None) -> list[str]:
    """`lossopt compare` in a process of its own."""
    words = [sys.executable, "-m", "lossopt.cli", "compare", str(plan)]
    return words if workers is None else [*words, "--workers", str(workers)]


def elsewhere(plan: Path, output: Path) -> Path:
    """The same plan with another output folder."""
    content = yaml.safe_load(plan.read_text(encoding="utf-8"))
    bases = content["base"] if isinstance(content["base"], list) else [content["base"]]
    content |= {"name": read_plan(plan).name, "base": [str((plan.parent / base).absolute()) for base in bases]}
    copy = output / plan.name
    output.mkdir(parents=True, exist_ok=True)
    copy.write_text(yaml.safe_dump(content | {"output": str(output)}, sort_keys=False), encoding="utf-8")
    return copy


def worked(folder: Path) -> float:
    """Seconds from the first file of a run to the last one's results."""
    times = [file.stat().st_mtime for file in _files(folder)]
    return max(times) - min(times)


def kill_after(words: list[str], seconds: float, folder: Path) -> Kill:
    """Starts the command, waits until a run is at work, and so many seconds more, and kills it."""
    started = time.time()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as one:
        while one.poll() is None and not any(file.stat().st_mtime > started for file in _files(folder)):
            time.sleep(0.05)
        began = time.perf_counter()
        try:
            one.wait(seconds)
        except subprocess.TimeoutExpired:
            one.kill()
        lasted = time.perf_counter() - began
    if one.returncode > 0:
        raise SystemExit(f"The command ended by itself with exit code {one.returncode}.")
    begun, done = len(list(folder.glob("*/*/config.yaml"))), len(list(folder.glob("*/*/results.json")))
    return Kill(lasted, one.returncode == 0, begun, done)


def _files(folder: Path) -> list[Path]:
    """Of runs and baselines, but for those that are being written: they come and go."""
    return [file for file in folder.glob("*/*/*") if file.is_file() and not file.name.endswith(".part")]


def interrupt(copy: Path, kills: int, seed: int, workers: int | None, seconds: float) -> list[Kill]:
    """A comparison that is killed again and again.

    Args:
        copy: its plan.
        kills: how many.
        seed: of the moments.
        workers: side by side; None: as the command has it.
        seconds: that an untouched comparison works; the moments are spread over them.
    """
    folder, words = read_plan(copy).folder, command(copy, workers)
    draw = random.Random(seed)
    moments = sorted(draw.uniform(0, _SHARE * seconds) for _ in range(kills))
    return [kill_after(words, b - a, folder) for a, b in zip([0.0, *moments], moments, strict=False)]


def differing(one: Path, other: Path) -> list[str]:
    """Names of the tables that are not the same, byte by byte."""
    return [name for name in TABLES if (one / name).read_bytes() != (other / name).read_bytes()]


def main() -> int:
    """0: the tables are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int)
    given = parser.parse_args()
    folder = read_plan(given.plan).folder
    subprocess.run(command(given.plan, given.workers), check=True, stdout=subprocess.DEVNULL)
    seconds = worked(folder)
    output = folder.with_name(f"{folder.name}-interrupted")
    shutil.rmtree(output, ignore_errors=True)
    copy = elsewhere(given.plan, output)
    sittings = interrupt(copy, given.kills, given.seed, given.workers, seconds)
    subprocess.run(command(copy, given.workers), check=True, stdout=subprocess.DEVNULL)
    print(f"untouched: {seconds:.0f} s")
    for number, one in enumerate(sittings, 1):
        how = "had ended" if one.ended_before else "killed"
        print(f"{number:>3}: {how} after {one.after:.1f} s at work; runs begun {one.begun}, done {one.done}")
    unlike = differing(folder, output / folder.name)
    print(f"different: {', '.join(unlike)}" if unlike else f"the same bytes: {', '.join(TABLES)}")
    return len(unlike)


if __name__ == "__main__":
    sys.exit(main())
