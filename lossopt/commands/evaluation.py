"""The commands that measure: a run or anybody's vectors, two of them, one shot; heavy imports are inside them."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossopt.commands.arguments import SPLITS, VECTORS, file, positive, printable, vectors_of, with_overrides
from lossopt.errors import ConfigError, EvaluationError

if TYPE_CHECKING:
    from lossopt.retrieval.evaluation import RetrievalResult
    from lossopt.retrieval.task import Exclusion
    from lossopt.retrieval.vectors import LabelledVectors

    Evaluated = tuple[LabelledVectors, LabelledVectors | None, RetrievalResult, str]


def evaluate(words: list[str]) -> None:
    """`lossopt evaluate RUN [--split test]`, `lossopt evaluate VECTORS [--labels FILE] [--query FILE]`."""
    parser = argparse.ArgumentParser(prog="lossopt evaluate", description="recall@k and its kin, and pairs told apart.")
    parser.add_argument("what", type=Path, help=f"a run, a .ckpt file, {VECTORS}")
    parser.add_argument("--split", choices=SPLITS, help="of a run's data; default: test")
    _add_evaluation_options(parser)
    parser.add_argument("--after", nargs="+", choices=("whiten", "expand", "rerank"), help="steps after the search")
    parser.add_argument("--train", type=Path, help="training vectors to learn whitening on; a run has its own")
    parser.add_argument("--json", type=file, help="write the figures there, too")
    given, overrides = with_overrides(parser, words)
    given.exclude = given.exclude and given.exclude.replace("-", " ")
    is_run = given.what.suffix == ".ckpt" or (given.what / "checkpoints").is_dir()
    if is_run and (given.labels or given.query or given.query_labels or given.train):
        raise ConfigError("--labels, --query and --train belong to vectors; a run has its own data (--split).")
    if not is_run and (given.split or overrides):
        raise ConfigError(f"--split, --data... and --model... belong to runs, but {given.what} is none.")
    whitens = bool(given.after) and "whiten" in given.after
    if not is_run and whitens != bool(given.train):
        raise ConfigError(
            "The step whiten learns on training vectors: give them with --train."
            if whitens
            else "--train names vectors for the step whiten (--after whiten), which is not asked for."
        )
    from lossopt.retrieval.intervals import RESAMPLES
    from lossopt.retrieval.text import as_text

    table, train_table, found, heading = (_evaluate_run if is_run else _evaluate_vectors)(given, overrides, RESAMPLES)
    print(printable(f"{heading}\n\n{as_text(found)}"))
    figures = {"retrieval": found.as_json(), **_verified(table, found)}
    if given.after:
        from lossopt.retrieval.after import after_search, after_text

        ks = tuple(int(name.removeprefix("recall@")) for name in found.metrics if name.startswith("recall@"))
        stages = after_search(table, train_table, given.after, ks, found.distance, found.exclude)
        print(f"\n{after_text(stages)}")
        figures["after"] = [stage._asdict() for stage in stages]
    if given.json:
        from lossopt.durable import write_text

        write_text(given.json, json.dumps(figures, indent=2) + "\n")


def _verified(table: "LabelledVectors", found: "RetrievalResult") -> dict[str, Any]:
    """Prints how well pairs are told apart, where there are pairs of both kinds."""
    from lossopt.retrieval.pairs import draw_pairs
    from lossopt.retrieval.verification import verify

    try:
        verification = verify(draw_pairs(table.vectors, table.task(found.exclude), found.distance))
    except EvaluationError as none:
        print(f"\n{none}")
        return {}
    print(f"\n{verification.as_text()}")
    return {"verification": verification.as_json()}


def _evaluate_run(given: argparse.Namespace, overrides: list[str], resamples: int) -> "Evaluated":
    from lossopt.retrieval.evaluation import evaluate_vectors
    from lossopt.runs import load_run, table_of

    run, split = load_run(given.what, overrides), given.split or "test"
    settings = run.config["retrieval"]
    table = table_of(run, split)
    exclude = given.exclude or settings["exclude"]
    _require_groups(exclude, table.groups, f"the {split} split")
    ks, distance = given.ks or settings["ks"], given.distance or settings["distance"]
    found = evaluate_vectors(table, ks, distance, exclude, resamples=resamples)
    train_table = table_of(run, "train") if given.after and "whiten" in given.after else None
    return table, train_table, found, f"{run.checkpoint}, {split} split\n{run.data.splits.description}"


def _evaluate_vectors(given: argparse.Namespace, overrides: list[str], resamples: int) -> "Evaluated":
    from lossopt.retrieval.evaluation import evaluate_vectors, fitting_ks
    from lossopt.retrieval.foreign import read_vectors
    from lossopt.retrieval.index import Distance

    table = read_vectors(given.what, given.labels, given.query, given.query_labels)
    exclude: Exclusion = given.exclude or "none"
    _require_groups(exclude, table.groups, given.what)
    own: Distance = "cosine" if table.provenance.get("distance") == "cosine" else "euclidean"
    ks = given.ks or fitting_ks(table.task(exclude))
    found = evaluate_vectors(table, ks, given.distance or own, exclude, resamples=resamples)
    train_table = read_vectors(given.train) if given.train else None
    return table, train_table, found, f"{given.what}\n{table.provenance.get('data', '')}"


def report(words: list[str]) -> None:
    """`lossopt report RUN`, `lossopt report VECTORS [--labels FILE] [--output PAGE]`."""
    parser = argparse.ArgumentParser(prog="lossopt report", description="One page that shows an evaluation.")
    parser.add_argument("what", type=Path, help=f"the folder of a run, {VECTORS}")
    parser.add_argument("--output", type=file, help="the page; default: RUN/report.html, or VECTORS.html")
    parser.add_argument("--umap", action="store_true", help="a third map; needs umap-learn")
    _add_evaluation_options(parser)
    given, overrides = with_overrides(parser, words)
    given.exclude = given.exclude and given.exclude.replace("-", " ")
    is_run = (given.what / "checkpoints").is_dir()
    if is_run and (given.labels or given.query or given.query_labels):
        raise ConfigError("--labels and --query belong to vectors; a run has its own data.")
    if not is_run and (overrides or given.what.suffix == ".ckpt"):
        raise ConfigError(f"A report is made of the folder of a run, or of vectors; {given.what} is no run.")
    print(printable(str(_report_run(given, overrides) if is_run else _report_vectors(given))))


def _report_run(given: argparse.Namespace, overrides: list[str]) -> Path:
    from lossopt.report.findings import examine
    from lossopt.report.run import write_run_report
    from lossopt.retrieval.evaluation import evaluate_vectors
    from lossopt.runs import load_run, table_of

    run = load_run(given.what, overrides)
    settings, splits = run.config["retrieval"], run.data.splits
    ks, distance = given.ks or settings["ks"], given.distance or settings["distance"]
    exclude = given.exclude or settings["exclude"]
    _require_groups(exclude, splits.test.groups, "the test split")
    vectors = table_of(run, "test")
    found = evaluate_vectors(vectors, ks, distance, exclude)
    findings = examine(vectors, found, trained_on=splits.train.class_names, with_umap=given.umap)
    return write_run_report(given.what, findings, splits.test, splits, given.output)


def _report_vectors(given: argparse.Namespace) -> Path:
    from lossopt.report.findings import examine
    from lossopt.report.run import write_vectors_report
    from lossopt.retrieval.evaluation import evaluate_vectors, fitting_ks
    from lossopt.retrieval.foreign import read_vectors
    from lossopt.retrieval.index import Distance

    table = read_vectors(given.what, given.labels, given.query, given.query_labels)
    exclude: Exclusion = given.exclude or "none"
    _require_groups(exclude, table.groups, given.what)
    own: Distance = "cosine" if table.provenance.get("distance") == "cosine" else "euclidean"
    found = evaluate_vectors(table, given.ks or fitting_ks(table.task(exclude)), given.distance or own, exclude)
    place = given.what.absolute()
    page = given.output or place.with_name(f"{place.name if place.is_dir() else place.stem}.html")
    return write_vectors_report(page, examine(table, found, with_umap=given.umap), place.name, place.parent)


def _add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ks", type=positive, nargs="+", help="cut-offs of recall@k; default: the run's own, or 1 2 4 8"
    )
    parser.add_argument("--distance", choices=("euclidean", "cosine"), help="default: the run's own")
    parser.add_argument(
        "--exclude",
        choices=("none", "same-class", "all"),
        help="what of its group (camera, alphabet) a query does not find: nothing, its class, all; default: the run's",
    )
    parser.add_argument("--labels", type=Path, help="of vectors: .npy, .csv, .txt or .json, in their order")
    parser.add_argument("--query", type=Path, help="vectors that ask; the others are only searched")
    parser.add_argument("--query-labels", type=Path, help="as --labels")


def _require_groups(exclude: str, groups: object, what: object) -> None:
    if exclude != "none" and groups is None:
        raise ConfigError(
            f"--exclude {exclude.replace(' ', '-')} leaves out items of the query's group, but {what} has no groups. "
            "Leave it out, or give a column of groups."
        )


def diff(words: list[str]) -> None:
    """`lossopt diff A B [--html diff.html]`."""
    parser = argparse.ArgumentParser(prog="lossopt diff", description="Two runs or sets of vectors, query by query.")
    parser.add_argument("a", type=Path, help=f"a run, a .ckpt file, {VECTORS}")
    parser.add_argument("b", type=Path, help="another one, of the same images")
    parser.add_argument("--html", type=file, help="write a page with galleries there, too")
    parser.add_argument("--split", choices=SPLITS, default="test", help="of a run's data")
    parser.add_argument("--ks", type=positive, nargs="+", help="cut-offs of recall@k; default: 1 2 4 8")
    parser.add_argument("--distance", choices=("euclidean", "cosine"), help="of both; default: each one's own")
    parser.add_argument(
        "--exclude", choices=("none", "same-class", "all"), default="none", help="see lossopt evaluate --help"
    )
    given, overrides = with_overrides(parser, words)
    from lossopt.report.difference import SomePictures, write_difference_page
    from lossopt.retrieval.difference import difference, difference_text, pair_by_name
    from lossopt.retrieval.evaluation import KS

    names = _told_apart(given.a, given.b)
    a, a_distance, a_images, a_name = vectors_of(given.a, names[0], given.split, overrides)
    b, b_distance, b_images, b_name = vectors_of(given.b, names[1], given.split, overrides)
    pair = pair_by_name(a, b)
    _require_groups(given.exclude, pair.a.groups, given.a)
    distances = (given.distance or a_distance, given.distance or b_distance)
    found = difference(pair, given.ks or KS, distances, given.exclude.replace("-", " "))
    print(printable(difference_text(found, str(given.a), str(given.b))))
    if given.html:
        pictures = [SomePictures(a_images, pair.rows_a), SomePictures(b_images, pair.rows_b)]
        page = write_difference_page(given.html, found, pair, (a_name, b_name), pictures)
        print(printable(f"page: {page}"))


def _told_apart(a: Path, b: Path) -> tuple[str, str]:
    """The shortest ends of two paths that differ: a page names no more of a machine's folders than it must."""
    one, other = a.absolute().parts, b.absolute().parts
    differing = (n for n in range(1, min(len(one), len(other)) + 1) if one[-n:] != other[-n:])
    n = next(differing, 1)
    return "/".join(one[-n:]), "/".join(other[-n:])


def oneshot(words: list[str]) -> None:
    """`lossopt oneshot RUN`."""
    parser = argparse.ArgumentParser(
        prog="lossopt oneshot", description="20-way one-shot classification within alphabets of Omniglot."
    )
    parser.add_argument("run", type=Path, help="the folder of a run trained on Omniglot, or a .ckpt file")
    parser.add_argument("--runs", type=int, default=1_000, help="randomly drawn runs beside the 20 official ones")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    given, overrides = with_overrides(parser, words)
    from lossopt.runs import load_run, one_shot

    run = load_run(given.run, overrides)
    official, drawn = one_shot(run, given.runs, given.seed)
    print(f"{run.checkpoint}, 20-way one-shot within an alphabet")
    for name, result in (("20 official runs", official), (f"{given.runs:,} drawn runs", drawn)):
        error = f"s.e. {100 * result.standard_error:.2f}"
        print(f"{name:<18}{100 * result.accuracy:6.2f} %  ({result.trials:,} trials, {error})")
