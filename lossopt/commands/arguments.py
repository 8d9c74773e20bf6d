"""What several commands say and read alike: their arguments, and what a path among them stands for."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lossopt.report.thumbnails import Pictures
    from lossopt.retrieval.index import Distance
    from lossopt.retrieval.vectors import LabelledVectors

VECTORS = "a folder of embeddings, .npy, .npz, .parquet or .safetensors"
SPLITS = ("train", "validation", "test")


def positive(text: str) -> int:
    """For argparse: a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def file(text: str) -> Path:
    """For argparse: where a file can be written."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file in it")
    return path


def with_overrides(parser: argparse.ArgumentParser, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """A command's own words, and those that override the run's configuration: --data... and --model..."""
    parser.epilog = "--data.init_args.source.init_args.root and the like override the run's configuration."
    given, rest = parser.parse_known_args(words)
    if rest and not rest[0].startswith(("--data.", "--model.")):
        parser.error(f"unknown argument {rest[0]}")
    return given, rest


def vectors_of(
    path: Path, called: str, split: str, overrides: list[str]
) -> "tuple[LabelledVectors, Distance, Pictures, str]":
    """The vectors of a run's split, or of files; their own distance, their images, and what they are called."""
    from lossopt.report.thumbnails import FilePictures, TablePictures
    from lossopt.retrieval.foreign import read_vectors
    from lossopt.runs import load_run, table_of

    if path.suffix == ".ckpt" or (path / "checkpoints").is_dir():
        run = load_run(path, overrides)
        distance = run.config["retrieval"]["distance"]
        name = f"{run.config['name']}, seed {run.config['seed']} ({called}, {split} split)"
        return table_of(run, split), distance, TablePictures(getattr(run.data.splits, split)), name
    table = read_vectors(path)
    own: Distance = "cosine" if table.provenance.get("distance") == "cosine" else "euclidean"
    return table, own, FilePictures(table.paths), called


def printable(text: str) -> str:
    """File names need not be text: what no terminal can show becomes a visible escape."""
    return text.encode("utf-8", "backslashreplace").decode()
