"""`lossopt compare`: a plan of variants and seeds, run and judged."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lossopt.commands.arguments import positive, printable
from lossopt.errors import ConfigError

if TYPE_CHECKING:
    from lossopt.comparison.conduct import Prepared
    from lossopt.comparison.result import Comparison
    from lossopt.report.comparison_changes import Changes


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
    parser.add_argument("--retry-failed", action="store_true", help="run again what failed, instead of counting it")
    given = parser.parse_args(words)
    from tqdm import tqdm

    from lossopt.comparison.conduct import announce, conduct, prepare, workers_for
    from lossopt.comparison.plan import read_plan
    from lossopt.comparison.workers import set_failures_aside

    plan = read_plan(given.plan)
    workers = workers_for(plan, given.workers, os.cpu_count() or 1)
    if given.retry_failed and not given.dry_run:
        print(f"{set_failures_aside(plan.folder)} failed runs are to run again")
    prepared = prepare(plan)
    _require(given.pair, [one.name for one in prepared.variants])
    print(printable(announce(prepared, workers)))
    if not given.dry_run:
        _write(prepared, conduct(prepared, workers, tqdm.write), given.pair)


def _require(pair: list[str] | None, variants: list[str]) -> None:
    for name in pair or ():
        if name not in variants:
            raise ConfigError(f"--pair names {name!r}; the variants of the plan are {', '.join(variants)}.")
    if pair and pair[0] == pair[1]:
        raise ConfigError(f"--pair names {pair[0]!r} twice; give two variants.")


def _write(prepared: "Prepared", found: "Comparison", pair: list[str] | None) -> None:
    """The tables and the page, into the plan's folder."""
    from lossopt.comparison.text import as_csv, as_markdown, as_text, costs_as_csv, pairs_as_csv
    from lossopt.durable import write_text
    from lossopt.report.comparison import write_comparison_page

    folder = prepared.plan.folder
    print(printable(f"\n{as_text(found)}"))
    for name, text in (
        ("table.md", as_markdown(found)),
        ("ranking.csv", as_csv(found)),
        ("pairs.csv", pairs_as_csv(found)),
        ("costs.csv", costs_as_csv(found)),
    ):
        write_text(folder / name, text)
    page = write_comparison_page(folder / "report.html", found, _changes(prepared, found, pair))
    print(printable(f"report     {page}\ntables     {folder}/table.md, ranking.csv, pairs.csv, costs.csv"))


def _changes(prepared: "Prepared", found: "Comparison", pair: list[str] | None) -> "Changes | None":
    """What changed query by query between two variants, with the pictures of the first seed that both finished."""
    from lossopt.report.comparison_changes import changes_between
    from lossopt.report.difference import SomePictures
    from lossopt.report.thumbnails import TablePictures
    from lossopt.retrieval.difference import difference, pair_by_name
    from lossopt.retrieval.queries import QUERIES, read_queries
    from lossopt.retrieval.store import read_embeddings
    from lossopt.runs import EMBEDDINGS

    runs = {one.variant: one.runs for one in found.standings if one.role in ("variant", "random miner")}
    names = pair or list(runs)[:2]
    both = [
        (a, b, a.folder, b.folder)
        for a, b in zip(runs[names[0]], runs[names[1]], strict=True)
        if a.folder and b.folder and "failed" not in (a.status, b.status)
    ]
    if not both:
        return None
    one, _, *folders = both[0]
    tables = pair_by_name(*(read_embeddings(folder / EMBEDDINGS / "test") for folder in folders))
    settings = {v.name: v.config["retrieval"] for v in prepared.variants}
    a, b = (settings[name] for name in names)
    first = difference(tables, a["ks"], (a["distance"], b["distance"]), a["exclude"])
    per_seed = [(read_queries(one_a / QUERIES), read_queries(one_b / QUERIES)) for _, _, one_a, one_b in both]
    shown = TablePictures(prepared.splits.test)
    pictures = [SomePictures(shown, rows) for rows in (tables.rows_a, tables.rows_b)]
    return changes_between((names[0], names[1]), tables, first, one.seed, per_seed, pictures)
