"""The command that draws what losses, activations and optimisers do; heavy imports are inside it."""

import argparse
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from lossopt.commands.arguments import file, positive, printable
from lossopt.errors import ConfigError

if TYPE_CHECKING:
    from lossopt.lab.pieces import Landscape

_GRIDS = {  # `lossopt lab NAME` hands its words to this function, whose file is imported once it is asked for
    "autoencoder": "lossopt.commands.grids:autoencoder",
    "multitask": "lossopt.commands.grids:multitask",
    "optimizers": "lossopt.commands.grids:optimizers",
}
_OF_A_RUN = ("points", "reach", "directions")


def lab(words: list[str]) -> None:
    """`lossopt lab [RUN] [--out lab.html]`, `lossopt lab autoencoder`, `lossopt lab multitask`, ..."""
    if words and words[0] in _GRIDS:
        resolve_name(_GRIDS[words[0]])(words[1:])
        return
    parser = argparse.ArgumentParser(
        prog="lossopt lab",
        description="One page: what losses, activations and optimisers do, with sliders.",
        epilog=f"lossopt lab {', '.join(_GRIDS)}: grids of small trainings, each with --help. (A run of such a name: "
        f"lossopt lab ./{next(iter(_GRIDS))})",
    )
    parser.add_argument(
        "run", type=Path, nargs="?", help="a run, or a .ckpt file in one: shows the loss around it, too"
    )
    parser.add_argument("--out", type=file, default=Path("lab.html"), help="the page to write; default: lab.html")
    parser.add_argument("--points", type=positive, help="along each side of the map of the loss; odd, default: 21")
    parser.add_argument("--reach", type=float, help="how far the map goes; default: 1")
    parser.add_argument(
        "--directions",
        choices=("random", "training"),
        help="of the map; default: training, if four checkpoints or more were kept",
    )
    given = parser.parse_args(words)
    chosen = {name: getattr(given, name) for name in _OF_A_RUN if getattr(given, name) is not None}
    if chosen and given.run is None:
        raise ConfigError(
            f"--{next(iter(chosen))} belongs to the map of a run: lossopt lab RUN --{next(iter(chosen))} ..."
        )
    if given.run is not None and not given.run.exists():
        raise ConfigError(
            f"There is no run at {given.run}, and no grid of that name. Give the folder of a run, a .ckpt file, or one "
            f"of {', '.join(_GRIDS)}."
        )
    if given.run is not None:
        from lossopt.lab.landscape import check_extent

        check_extent(**{name: value for name, value in chosen.items() if name != "directions"})
    print("Computing curves, paths and small networks: half a minute ...", flush=True)
    around = None if given.run is None else _around(given.run, chosen)
    print(printable(f"page: {_write(given.out, around)}"))


def _around(run: Path, chosen: dict[str, Any]) -> "Landscape":
    from lossopt.lab.landscape import landscape

    return landscape(run, **chosen)


def _write(out: Path, around: "Landscape | None") -> Path:
    from lossopt.lab.activity import activities
    from lossopt.lab.catalogue import curves
    from lossopt.lab.lines import optimisation_lines
    from lossopt.lab.paths import batch_against_stochastic, optimizer_paths
    from lossopt.lab.surfaces import surfaces
    from lossopt.lab.triplet_step import triplet_step
    from lossopt.report.lab import Lab, write_lab_page

    shown = Lab(
        curves=curves(),
        surfaces=surfaces(),
        paths=optimizer_paths(),
        descent=batch_against_stochastic(),
        lines=optimisation_lines(),
        triplet=triplet_step(),
        activity=activities(),
        landscape=around,
    )
    return write_lab_page(out, shown)
