"""The `lossopt` command: the table of its jobs, and exit codes; a job's file is imported once it is asked for."""

import argparse
import os
import sys
from collections.abc import Sequence
from pkgutil import resolve_name

from lossopt import __version__
from lossopt.errors import LossoptError, Terminated

_JOBS = {  # where in lossopt.commands the job is, and what --help says of it
    "train": ("training:train", "train a retrieval model: lossopt train --config configs/quickstart.yaml"),
    "embed": ("search:embed", "vectors of a run's images or of a folder: lossopt embed RUN --images FOLDER"),
    "evaluate": (
        "evaluation:evaluate",
        "recall@k of a run, or of anybody's vectors: lossopt evaluate RUN, lossopt evaluate vectors.npz",
    ),
    "report": (
        "evaluation:report",
        "one page that shows an evaluation: lossopt report RUN, lossopt report vectors.npz",
    ),
    "diff": (
        "evaluation:diff",
        "which of two runs or sets of vectors is better, where, and for sure or not: lossopt diff A B",
    ),
    "compare": (
        "comparison:compare",
        "compare mining strategies, losses or any other key, over several seeds: lossopt compare plan.yaml",
    ),
    "index": (
        "search:index",
        "build and measure a search index: lossopt index build EMBEDDINGS, lossopt index tune EMBEDDINGS",
    ),
    "mine": (
        "mining:mine",
        "hard negatives out of a whole data set, as triplets: lossopt mine RUN, lossopt mine vectors.npz",
    ),
    "search": ("search:search", "the nearest images of an index: lossopt search INDEX IMAGE"),
    "lab": (
        "lab:lab",
        "one page that shows what losses, activations and optimisers do: lossopt lab, lossopt lab RUN",
    ),
    "oneshot": ("evaluation:oneshot", "one-shot classification on Omniglot: lossopt oneshot RUN"),
}

_GOES_ON = {
    "train": "; `--resume` goes on from the last checkpoint",
    "compare": "; what is done is kept, and the same command goes on",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        Its exit code: 0 done, 2 configuration, 3 data, 4 NaN in training, 5 no evaluation, 130 Ctrl-C, 143 SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    top = argparse.ArgumentParser(prog="lossopt", description="Train retrieval models; read their recall@k.")
    top.add_argument("--version", action="version", version=f"lossopt {__version__}")
    jobs = top.add_subparsers(dest="job", metavar="COMMAND", required=True)
    for name, (_, summary) in _JOBS.items():
        jobs.add_parser(name, help=summary, add_help=False)
    chosen = top.parse_args(words[:1]).job
    try:
        resolve_name(f"lossopt.commands.{_JOBS[chosen][0]}")(words[1:])
    except LossoptError as error:
        print(f"lossopt {chosen}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read the output has seen enough (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, Terminated) as ended:
        how, code = ("terminated", ended.exit_code) if isinstance(ended, Terminated) else ("interrupted", 130)
        hint = _GOES_ON.get(chosen, "")
        print(f"lossopt {chosen}: {how}{hint}.", file=sys.stderr)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
