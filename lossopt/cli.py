"""The `lossopt` command: one subcommand per job; heavy imports are inside them, so that --help is instant."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lossopt import __version__
from lossopt.errors import ConfigError, LossoptError

_JOBS = {
    "train": "train a retrieval model: lossopt train --config configs/quickstart.yaml",
    "evaluate": "recall@k of a run or a checkpoint: lossopt evaluate RUN",
    "report": "one page that shows a run: lossopt report RUN",
    "oneshot": "one-shot classification on Omniglot: lossopt oneshot RUN",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns its exit code: 0 done, 2 configuration, 3 data, 4 NaN in training, 5 no evaluation."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    top = argparse.ArgumentParser(prog="lossopt", description="Train retrieval models; read their recall@k.")
    top.add_argument("--version", action="version", version=f"lossopt {__version__}")
    jobs = top.add_subparsers(dest="job", metavar="COMMAND", required=True)
    for name, summary in _JOBS.items():
        jobs.add_parser(name, help=summary, add_help=False)
    chosen = top.parse_args(words[:1]).job
    try:
        {"train": train, "evaluate": evaluate, "report": report, "oneshot": oneshot}[chosen](words[1:])
    except LossoptError as error:
        print(f"lossopt {chosen}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"lossopt {chosen}: interrupted; `--resume` goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


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


def evaluate(words: list[str]) -> None:
    """`lossopt evaluate RUN_OR_CHECKPOINT [--split test]`."""
    parser = argparse.ArgumentParser(prog="lossopt evaluate", description="recall@k and MAP@R of a trained model.")
    parser.add_argument("run", type=Path, help="the folder of a run, or a .ckpt file")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test")
    parser.add_argument("--ks", type=int, nargs="+", help="cut-offs of recall@k; default: the run's own")
    parser.add_argument("--distance", choices=("euclidean", "cosine"), help="default: the run's own")
    given, overrides = _with_overrides(parser, words)
    from lossopt.retrieval.text import as_text
    from lossopt.runs import evaluate_split, load_run

    run = load_run(given.run, overrides)
    settings = run.config["retrieval"]
    ks, distance = given.ks or settings["ks"], given.distance or settings["distance"]
    found, _, _ = evaluate_split(run.model, run.data, given.split, ks, distance)
    print(f"{run.checkpoint}, {given.split} split\n{run.data.splits.description}\n\n{as_text(found)}")


def report(words: list[str]) -> None:
    """`lossopt report RUN`."""
    parser = argparse.ArgumentParser(prog="lossopt report", description="Writes RUN/report.html anew.")
    parser.add_argument("run", type=Path, help="the folder of a run")
    given, overrides = _with_overrides(parser, words)
    if not given.run.is_dir():
        raise ConfigError(f"{given.run} is no folder: a report is made of the folder of a run.")
    from lossopt.report.run import write_run_report
    from lossopt.runs import evaluate_split, load_run

    run = load_run(given.run, overrides)
    settings = run.config["retrieval"]
    found, table, _ = evaluate_split(run.model, run.data, "test", settings["ks"], settings["distance"])
    print(write_run_report(given.run, found, table, run.data.splits))


def oneshot(words: list[str]) -> None:
    """`lossopt oneshot RUN`."""
    parser = argparse.ArgumentParser(
        prog="lossopt oneshot", description="20-way one-shot classification within alphabets of Omniglot."
    )
    parser.add_argument("run", type=Path, help="the folder of a run trained on Omniglot, or a .ckpt file")
    parser.add_argument("--runs", type=int, default=1_000, help="randomly drawn runs beside the 20 official ones")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    given, overrides = _with_overrides(parser, words)
    from lossopt.runs import load_run, one_shot

    run = load_run(given.run, overrides)
    official, drawn = one_shot(run, given.runs, given.seed)
    print(f"{run.checkpoint}, 20-way one-shot within an alphabet")
    for name, result in (("20 official runs", official), (f"{given.runs:,} drawn runs", drawn)):
        error = f"s.e. {100 * result.standard_error:.2f}"
        print(f"{name:<18}{100 * result.accuracy:6.2f} %  ({result.trials:,} trials, {error})")


def _with_overrides(parser: argparse.ArgumentParser, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """A command's own words, and those that override the run's configuration: --data... and --model..."""
    parser.epilog = "--data.init_args.source.init_args.root and the like override the run's configuration."
    given, rest = parser.parse_known_args(words)
    if rest and not rest[0].startswith(("--data.", "--model.")):
        parser.error(f"unknown argument {rest[0]}")
    return given, rest


if __name__ == "__main__":
    sys.exit(main())
