"""`lossopt compare`: a plan of variants and seeds, run and judged."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lossopt.commands.arguments import positive, printable

if TYPE_CHECKING:
    from lossopt.comparison.plan import Plan
    from lossopt.comparison.result import Comparison


def compare(words: list[str]) -> None:
    """`lossopt compare plan.yaml [--workers N] [--pair A B]`."""
    parser = argparse.ArgumentParser(
        prog="lossopt compare",
        description="Runs every variant of a plan with every seed, alike but for what it varies, and says which is "
        "better, by how much, and whether that is shown. Start it again after any interruption.",
    )
    parser.add_argument("plan", type=Path, help="a YAML file, such as configs/compare/quick.yaml")
    parser.add_argument("--workers", type=positive, help="runs side by side; default: cores / threads of the plan")
    parser.add_argument("--pair", nargs=2, metavar=("A", "B"), help="shown query by query; default: the best two")
    parser.add_argument("--dry-run", action="store_true", help="check the plan, say what would run, and stop")
    given = parser.parse_args(words)
    from tqdm import tqdm

    from lossopt.comparison.conduct import announce, conduct, prepare, workers_for
    from lossopt.comparison.plan import read_plan

    plan = read_plan(given.plan)
    workers = workers_for(plan, given.workers, os.cpu_count() or 1)
    prepared = prepare(plan)
    print(printable(announce(prepared, workers)))
    if given.dry_run:
        return
    found = conduct(prepared, workers, tqdm.write)
    _write(plan, found, given.pair)


def _write(plan: "Plan", found: "Comparison", pair: list[str] | None) -> None:
    """The tables and the page, into the plan's folder."""
    from lossopt.comparison.text import as_csv, as_markdown, as_text, costs_as_csv, pairs_as_csv
    from lossopt.durable import write_text

    print(printable(f"\n{as_text(found)}"))
    for name, text in (
        ("table.md", as_markdown(found)),
        ("ranking.csv", as_csv(found)),
        ("pairs.csv", pairs_as_csv(found)),
        ("costs.csv", costs_as_csv(found)),
    ):
        write_text(plan.folder / name, text)
    print(printable(f"tables: {plan.folder}/table.md, ranking.csv, pairs.csv, costs.csv"))
