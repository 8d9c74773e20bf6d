"""`lossopt lab NAME`: grids of small trainings, each with a page of its own; heavy imports are inside."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from lossopt.commands.arguments import positive, printable
from lossopt.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from lossopt.lab.grid import Grid, Outcome


def optimizers(words: list[str]) -> None:
    """`lossopt lab optimizers [GRID]`: one network under several optimisers, beside published curves."""
    what = "One network under several optimisers, epoch by epoch."
    trained = _trained("optimizers", what, words, ("classification",))
    if trained is None:
        return
    from lossopt.lab.classifiers import as_markdown, classifiers
    from lossopt.report.lab_classifiers import write_classifiers_page

    grid, outcomes = trained
    found = classifiers(outcomes)
    data = _made(outcomes).data.splits.description
    _leave(grid, as_markdown(found), lambda path: write_classifiers_page(path, grid.name, data, found))


def autoencoder(words: list[str]) -> None:
    """`lossopt lab autoencoder [GRID]`: losses under optimisers at several rates, the same images epoch by epoch."""
    what = "Reconstruction losses under several optimisers and learning rates."
    needs = ("loss_fn", "optimizer.init_args.lr", "decoder")
    trained = _trained("autoencoder", what, words, needs, rule="lossopt.lab.autoencoder:check_variants")
    if trained is None:
        return
    from lossopt.lab.autoencoder import as_markdown, autoencoders, code_size
    from lossopt.report.lab_autoencoder import write_autoencoder_page

    grid, outcomes = trained
    made = _made(outcomes)
    splits = made.data.splits
    found = autoencoders(outcomes, splits, code_size(made.model, splits.test))
    _leave(grid, as_markdown(found), lambda path: write_autoencoder_page(path, grid.name, splits.description, found))


def multitask(words: list[str]) -> None:
    """`lossopt lab multitask [GRID]`: one network for several tasks against one for each."""
    what = "One network for several tasks against one for each, seed by seed."
    trained = _trained("multitask", what, words, ("trunk",), variant="multitask")
    if trained is None:
        return
    from lossopt.lab.multitask import as_markdown, sharing
    from lossopt.report.lab_multitask import write_multitask_page

    grid, outcomes = trained
    found = sharing(outcomes)
    data = _made(outcomes).data.splits.description
    _leave(grid, as_markdown(found), lambda path: write_multitask_page(path, grid.name, data, found))


def _leave(grid: "Grid", table: str, write: Callable[[Path], Path]) -> None:
    """Shows the table and leaves it beside the page."""
    from lossopt.durable import write_text

    print(printable(table))
    write_text(grid.folder / "table.md", table)
    print(printable(f"page: {write(grid.folder / 'report.html')}"))


def _made(outcomes: "list[Outcome]") -> "Namespace":
    """Data and untrained network of the first run."""
    from lossopt.config import instantiate, parse

    return instantiate(parse([], dict(outcomes[0].config)))


def _trained(
    name: str,
    what: str,
    words: list[str],
    needs: tuple[str, ...],
    variant: str | None = None,
    rule: str | None = None,
) -> "tuple[Grid, list[Outcome]] | None":
    """Runs what is missing of a grid; None: it was only to be checked.

    Args:
        name: of the command.
        what: it is for.
        words: of the command line.
        needs: arguments that the model of every variant must have, for the page is made of them.
        variant: that must be there.
        rule: module and function that refuses the configurations of a grid which the page cannot show.
    """
    parser = argparse.ArgumentParser(
        prog=f"lossopt lab {name}", description=f"{what} Start it again after any interruption."
    )
    default = Path("configs/lab") / f"{name}.yaml"
    parser.add_argument("grid", type=Path, nargs="?", default=default, help=f"a YAML file; default: {default}")
    parser.add_argument("--workers", type=positive, help="runs side by side; default: cores / threads of the grid")
    parser.add_argument("--dry-run", action="store_true", help="check the grid, say how many runs it has, and stop")
    given = parser.parse_args(words)
    from tqdm import tqdm

    from lossopt.comparison.outcomes import is_done
    from lossopt.lab.grid import check, read_grid, tasks_of, train_grid
    from lossopt.runs import flattened

    if given.grid == default and not default.is_file():
        raise ConfigError(f"There is no {default} here. Start `lossopt lab {name}` in the repository, or give a grid.")
    grid = read_grid(given.grid)
    tasks = tasks_of(grid)
    if variant is not None and variant not in grid.variants:
        raise ConfigError(f"{grid.path}: one of the variants must be {variant!r}; they are {', '.join(grid.variants)}.")
    for task in tasks:
        own = flattened(dict(task.config["model"]["init_args"]))
        for key in needs:
            if not any(
                found == key or found.startswith(f"{key}.") for found, value in own.items() if value is not None
            ):
                raise ConfigError(
                    f"{grid.path}, variant {task.variant!r}: `lossopt lab {name}` needs model.init_args.{key}; set it."
                )
    if rule is not None:
        try:
            resolve_name(rule)([task.config for task in tasks])
        except ConfigError as wrong:
            raise ConfigError(f"{grid.path}: {wrong}") from wrong
    most = max(1, (os.cpu_count() or 1) // grid.threads)
    if (given.workers or 1) > most:
        raise ConfigError(f"--workers {given.workers} with threads: {grid.threads} need more cores than there are.")
    if given.dry_run:
        check(grid, tasks)
        done = sum(map(is_done, tasks))
        print(printable(f"{grid.name}: {len(tasks)} runs, {done} done already, into {grid.folder}"))
        return None
    return grid, train_grid(grid, given.workers or most, tqdm.write)
