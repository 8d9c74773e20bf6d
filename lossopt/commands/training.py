"""The command that trains; heavy imports are inside it, so that other commands and --version are instant."""

import argparse
from pathlib import Path


def train(words: list[str]) -> None:
    """`lossopt train --config X.yaml [--key value ...] [--resume [RUN]]`."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--resume", nargs="?", const="auto")
    own_values, rest = own.parse_known_args(words)
    from tqdm import tqdm

    from lossopt.config import parse
    from lossopt.runs import config_of
    from lossopt.training import train as run

    resume = own_values.resume
    own_config = config_of(Path(resume)) if resume not in (None, "auto") and "--config" not in rest else None
    result = run(parse(rest, own_config), resume, say=tqdm.write)  # above a progress bar, if there is one
    for note in result.notes:
        print(f"note       {note}")
    print(f"{result.images:,} images in {result.seconds:.0f} s. Everything lies in {result.folder}")
