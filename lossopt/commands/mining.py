"""The command that mines a whole data set; heavy imports are inside it."""

import argparse
from pathlib import Path

from lossopt.commands.arguments import SPLITS, VECTORS, file, positive, printable, vectors_of, with_overrides
from lossopt.errors import ConfigError


def mine(words: list[str]) -> None:
    """`lossopt mine RUN [--split train]`, `lossopt mine VECTORS [--output FILE.npz]`."""
    parser = argparse.ArgumentParser(prog="lossopt mine", description="Hard negatives out of a whole data set.")
    parser.add_argument("what", type=Path, help=f"a run, a .ckpt file, {VECTORS}")
    parser.add_argument("--split", choices=SPLITS, default="train", help="of a run's data; default: train")
    parser.add_argument("--output", type=file, help=".csv or .npz; default: triplets-WHAT.csv in this folder")
    parser.add_argument("--labels", type=Path, help="of vectors: .npy, .csv, .txt or .json, in their order")
    parser.add_argument("--skip", type=int, default=0, help="leave out so many nearest negatives (label noise)")
    parser.add_argument("--window", type=positive, default=3, help="mine the so many next ones; default: 3")
    parser.add_argument("--positive", choices=("nearest", "hardest", "random"), default="hardest", help="of each row")
    parser.add_argument("--min-distance", type=float, default=0.0, help="leave out nearer negatives")
    parser.add_argument("--max-distance", type=float, help="leave out farther ones")
    parser.add_argument("--absolute-margin", type=float, help="by which negatives are beyond the nearest positive")
    parser.add_argument("--relative-margin", type=float, help="0.05: at least 5 %% beyond the nearest positive")
    parser.add_argument(
        "--group-rule", choices=("any", "other", "same"), default="any", help="which groups negatives come from"
    )
    parser.add_argument("--distance", choices=("euclidean", "cosine"), help="default: the run's or the vectors' own")
    parser.add_argument("--factory", default="Flat", help="FAISS's factory string; default: Flat, which is exact")
    parser.add_argument("--parameters", default="", help="of the search, such as nprobe=8")
    parser.add_argument("--seed", type=int, default=0, help="of random positives")
    given, overrides = with_overrides(parser, words)
    from lossopt.miners.triplet_file import as_text, write_triplets
    from lossopt.miners.whole_set import WholeSetMining
    from lossopt.retrieval.foreign import read_vectors

    table, own, _, _ = vectors_of(given.what, "", given.split, overrides)
    table = read_vectors(given.what, given.labels) if given.labels else table
    table.require_labels()
    names = ("skip", "window", "positive", "min_distance", "max_distance", "absolute_margin", "relative_margin")
    chosen = {name: getattr(given, name) for name in (*names, "group_rule", "factory", "parameters")}
    try:
        mining = WholeSetMining(**chosen, distance=given.distance or own)
        found = mining.mine(table.vectors, table.labels, table.groups, seed=given.seed)
    except ValueError as unfit:
        raise ConfigError(str(unfit)) from unfit
    print(as_text(found, len(table)))
    output = given.output or Path(f"triplets-{given.what.resolve().stem}.csv")
    count = write_triplets(output, found, table.names)
    print(printable(f"{count:,} triplets written to {output}"))
