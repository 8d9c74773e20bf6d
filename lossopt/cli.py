"""The `lossopt` command: one subcommand per job; heavy imports are inside them, so that --help is instant."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossopt import __version__
from lossopt.errors import ConfigError, EvaluationError, LossoptError

if TYPE_CHECKING:
    from lossopt.report.thumbnails import Pictures
    from lossopt.retrieval.evaluation import RetrievalResult
    from lossopt.retrieval.index import Distance
    from lossopt.retrieval.task import Exclusion
    from lossopt.retrieval.vectors import LabelledVectors

    Evaluated = tuple[LabelledVectors, LabelledVectors | None, RetrievalResult, str]

VECTORS = "a folder of embeddings, .npy, .npz, .parquet or .safetensors"
SPLITS = ("train", "validation", "test")
_JOBS = {
    "train": "train a retrieval model: lossopt train --config configs/quickstart.yaml",
    "embed": "vectors of a run's images or of a folder: lossopt embed RUN --images FOLDER",
    "evaluate": "recall@k of a run, or of anybody's vectors: lossopt evaluate RUN, lossopt evaluate vectors.npz",
    "report": "one page that shows an evaluation: lossopt report RUN, lossopt report vectors.npz",
    "diff": "which of two runs or sets of vectors is better, where, and for sure or not: lossopt diff A B",
    "index": "build and measure a search index: lossopt index build EMBEDDINGS, lossopt index tune EMBEDDINGS",
    "mine": "hard negatives out of a whole data set, as triplets: lossopt mine RUN, lossopt mine vectors.npz",
    "search": "the nearest images of an index: lossopt search INDEX IMAGE",
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
        jobs_by_name = {"train": train, "embed": embed, "evaluate": evaluate, "report": report, "oneshot": oneshot}
        jobs_by_name |= {"diff": diff, "index": index, "mine": mine, "search": search}
        jobs_by_name[chosen](words[1:])
    except LossoptError as error:
        print(f"lossopt {chosen}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read the output has seen enough (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        hint = "; `--resume` goes on from the last checkpoint" if chosen == "train" else ""
        print(f"lossopt {chosen}: interrupted{hint}.", file=sys.stderr)
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


def embed(words: list[str]) -> None:
    """`lossopt embed RUN [--split test | --images FOLDER] [--output DIR]`."""
    parser = argparse.ArgumentParser(prog="lossopt embed", description="Writes vectors, labels and names to a folder.")
    parser.add_argument("run", type=Path, help="the folder of a run, or a .ckpt file")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--split", choices=SPLITS, help="of the run's own data; default: test")
    what.add_argument("--images", type=Path, help="a folder of images, in class folders or not, or one image")
    parser.add_argument("--output", type=Path, help="default: RUN/embeddings/SPLIT, RUN/embeddings/images-FOLDER")
    parser.add_argument("--allow-outside", action="store_true", help="follow links that lead out of the folder")
    given, overrides = _with_overrides(parser, words)
    from lossopt.runs import embed_images, embed_split, load_run

    run = load_run(given.run, overrides)
    home, split = given.run if given.run.is_dir() else given.run.with_suffix(""), given.split or "test"
    part = f"images-{given.images.absolute().name}" if given.images else split
    out = given.output or home / "embeddings" / part
    began = time.perf_counter()
    table = embed_images(run, given.images, out, given.allow_outside) if given.images else embed_split(run, split, out)
    seconds, known = time.perf_counter() - began, [name for name in table.class_names if name]
    origin = table.provenance["data"] if given.images else f"the {split} split"
    n, d = table.vectors.shape
    size, classes = table.vectors.nbytes / 1e6, f"{len(known):,} classes" if known else "no labels"
    print(_printable(f"{n:,} x {d} vectors ({size:.1f} MB, {classes}) of {origin}"))
    print(_printable(f"embedded in {seconds:.1f} s, written to {out}"))


def evaluate(words: list[str]) -> None:
    """`lossopt evaluate RUN [--split test]`, `lossopt evaluate VECTORS [--labels FILE] [--query FILE]`."""
    parser = argparse.ArgumentParser(prog="lossopt evaluate", description="recall@k and its kin, and pairs told apart.")
    parser.add_argument("what", type=Path, help=f"a run, a .ckpt file, {VECTORS}")
    parser.add_argument("--split", choices=SPLITS, help="of a run's data; default: test")
    _add_evaluation_options(parser)
    parser.add_argument("--after", nargs="+", choices=("whiten", "expand", "rerank"), help="steps after the search")
    parser.add_argument("--train", type=Path, help="training vectors to learn whitening on; a run has its own")
    parser.add_argument("--json", type=_file, help="write the figures there, too")
    given, overrides = _with_overrides(parser, words)
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
    print(_printable(f"{heading}\n\n{as_text(found)}"))
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


def _add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ks", type=_positive, nargs="+", help="cut-offs of recall@k; default: the run's own, or 1 2 4 8"
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


def _require_groups(exclude: str, groups: object, what: object) -> None:
    if exclude != "none" and groups is None:
        raise ConfigError(
            f"--exclude {exclude.replace(' ', '-')} leaves out items of the query's group, but {what} has no groups. "
            "Leave it out, or give a column of groups."
        )


def _positive(text: str) -> int:
    """For argparse: a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def _file(text: str) -> Path:
    """For argparse: where a file can be written."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file in it")
    return path


def _printable(text: str) -> str:
    """File names need not be text: what no terminal can show becomes a visible escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def report(words: list[str]) -> None:
    """`lossopt report RUN`, `lossopt report VECTORS [--labels FILE] [--output PAGE]`."""
    parser = argparse.ArgumentParser(prog="lossopt report", description="One page that shows an evaluation.")
    parser.add_argument("what", type=Path, help=f"the folder of a run, {VECTORS}")
    parser.add_argument("--output", type=_file, help="the page; default: RUN/report.html, or VECTORS.html")
    parser.add_argument("--umap", action="store_true", help="a third map; needs umap-learn")
    _add_evaluation_options(parser)
    given, overrides = _with_overrides(parser, words)
    given.exclude = given.exclude and given.exclude.replace("-", " ")
    is_run = (given.what / "checkpoints").is_dir()
    if is_run and (given.labels or given.query or given.query_labels):
        raise ConfigError("--labels and --query belong to vectors; a run has its own data.")
    if not is_run and (overrides or given.what.suffix == ".ckpt"):
        raise ConfigError(f"A report is made of the folder of a run, or of vectors; {given.what} is no run.")
    print(_printable(str(_report_run(given, overrides) if is_run else _report_vectors(given))))


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


def diff(words: list[str]) -> None:
    """`lossopt diff A B [--html diff.html]`."""
    parser = argparse.ArgumentParser(prog="lossopt diff", description="Two runs or sets of vectors, query by query.")
    parser.add_argument("a", type=Path, help=f"a run, a .ckpt file, {VECTORS}")
    parser.add_argument("b", type=Path, help="another one, of the same images")
    parser.add_argument("--html", type=_file, help="write a page with galleries there, too")
    parser.add_argument("--split", choices=SPLITS, default="test", help="of a run's data")
    parser.add_argument("--ks", type=_positive, nargs="+", help="cut-offs of recall@k; default: 1 2 4 8")
    parser.add_argument("--distance", choices=("euclidean", "cosine"), help="of both; default: each one's own")
    parser.add_argument(
        "--exclude", choices=("none", "same-class", "all"), default="none", help="see lossopt evaluate --help"
    )
    given, overrides = _with_overrides(parser, words)
    from lossopt.report.difference import SomePictures, write_difference_page
    from lossopt.retrieval.difference import difference, difference_text, pair_by_name
    from lossopt.retrieval.evaluation import KS

    names = _told_apart(given.a, given.b)
    a, a_distance, a_images, a_name = _vectors_of(given.a, names[0], given.split, overrides)
    b, b_distance, b_images, b_name = _vectors_of(given.b, names[1], given.split, overrides)
    pair = pair_by_name(a, b)
    _require_groups(given.exclude, pair.a.groups, given.a)
    distances = (given.distance or a_distance, given.distance or b_distance)
    found = difference(pair, given.ks or KS, distances, given.exclude.replace("-", " "))
    print(_printable(difference_text(found, str(given.a), str(given.b))))
    if given.html:
        pictures = [SomePictures(a_images, pair.rows_a), SomePictures(b_images, pair.rows_b)]
        page = write_difference_page(given.html, found, pair, (a_name, b_name), pictures)
        print(_printable(f"page: {page}"))


def _told_apart(a: Path, b: Path) -> tuple[str, str]:
    """The shortest ends of two paths that differ: a page names no more of a machine's folders than it must."""
    one, other = a.absolute().parts, b.absolute().parts
    differing = (n for n in range(1, min(len(one), len(other)) + 1) if one[-n:] != other[-n:])
    n = next(differing, 1)
    return "/".join(one[-n:]), "/".join(other[-n:])


def _vectors_of(
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


def index(words: list[str]) -> None:
    """`lossopt index build EMBEDDINGS [--factory STRING]`, `lossopt index tune EMBEDDINGS [--output tune.html]`."""
    top = argparse.ArgumentParser(prog="lossopt index", description="Indexes for search, measured on your vectors.")
    jobs = top.add_subparsers(dest="job", metavar="build | tune", required=True)
    build = jobs.add_parser("build", help="build an index and say what it finds of the exact answer, and how fast")
    tune = jobs.add_parser("tune", help="measure several indexes: recall, time and memory")
    for parser in (build, tune):
        parser.add_argument("embeddings", type=Path, help=VECTORS)
        parser.add_argument("--distance", choices=("euclidean", "cosine"), help="default: the vectors' own")
        parser.add_argument("--k", type=_positive, default=10, help="neighbours that the recall is measured with")
        parser.add_argument("--seed", type=int, default=0, help="of the queries and the training rows that are drawn")
    build.add_argument("--factory", default="Flat", help="FAISS's factory string; default: Flat, which is exact")
    build.add_argument("--parameters", default="", help="of the search, such as nprobe=8")
    build.add_argument("--output", type=Path, help="default: EMBEDDINGS-index")
    build.add_argument("--run", type=Path, help="that made the vectors; default: the one whose folder holds them")
    tune.add_argument("--factories", nargs="+", help="FAISS's factory strings; default: some that suit the vectors")
    tune.add_argument("--output", type=_file, help="write a page with the picture there, such as tune.html")
    given = top.parse_args(words)
    from lossopt.retrieval.foreign import read_vectors

    table = read_vectors(given.embeddings)
    (_index_build if given.job == "build" else _index_tune)(given, table)


def _index_build(given: argparse.Namespace, table: "LabelledVectors") -> None:
    from lossopt.retrieval.saved_index import as_text, build_index, save_index

    saved = build_index(table, given.distance, given.factory, given.parameters, given.k, given.seed)
    homes = [folder for folder in given.embeddings.absolute().parents if (folder / "checkpoints").is_dir()]
    run = given.run or (homes[0] if homes and "checkpoint_sha256" in table.provenance else None)
    plain = given.embeddings.with_suffix("") if given.embeddings.is_file() else given.embeddings.absolute()
    out = given.output or plain.with_name(f"{plain.name}-index")
    save_index(out, saved, run)
    print(_printable(f"{as_text(saved)}\nwritten to {out}"))


def _index_tune(given: argparse.Namespace, table: "LabelledVectors") -> None:
    from tqdm import tqdm

    from lossopt.retrieval.index import Distance
    from lossopt.retrieval.tuning import as_text, tune

    own: Distance = "cosine" if table.provenance.get("distance") == "cosine" else "euclidean"
    with tqdm(desc="measuring", unit=" indexes", disable=None, leave=False) as bar:
        found = tune(table, given.distance or own, given.factories, given.k, seed=given.seed, say=bar.set_postfix_str)
    print(_printable(as_text(found)))
    if given.output:
        from lossopt.report.tuning import write_tuning_page

        print(_printable(f"page: {write_tuning_page(given.output, found, str(given.embeddings.absolute().name))}"))


def mine(words: list[str]) -> None:
    """`lossopt mine RUN [--split train]`, `lossopt mine VECTORS [--output FILE.npz]`."""
    parser = argparse.ArgumentParser(prog="lossopt mine", description="Hard negatives out of a whole data set.")
    parser.add_argument("what", type=Path, help=f"a run, a .ckpt file, {VECTORS}")
    parser.add_argument("--split", choices=SPLITS, default="train", help="of a run's data; default: train")
    parser.add_argument("--output", type=_file, help=".csv or .npz; default: triplets-WHAT.csv in this folder")
    parser.add_argument("--labels", type=Path, help="of vectors: .npy, .csv, .txt or .json, in their order")
    parser.add_argument("--skip", type=int, default=0, help="leave out so many nearest negatives (label noise)")
    parser.add_argument("--window", type=_positive, default=3, help="mine the so many next ones; default: 3")
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
    given, overrides = _with_overrides(parser, words)
    from lossopt.miners.triplet_file import as_text, write_triplets
    from lossopt.miners.whole_set import WholeSetMining
    from lossopt.retrieval.foreign import read_vectors

    table, own, _, _ = _vectors_of(given.what, "", given.split, overrides)
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
    print(_printable(f"{count:,} triplets written to {output}"))


def search(words: list[str]) -> None:
    """`lossopt search INDEX IMAGE_OR_FOLDER [--k 10] [--html gallery.html]`."""
    parser = argparse.ArgumentParser(prog="lossopt search", description="The nearest images of an index.")
    parser.add_argument("index", type=Path, help="a folder written by lossopt index build")
    parser.add_argument("what", type=Path, help=f"an image, a folder of images, or vectors: {VECTORS}")
    parser.add_argument("--run", type=Path, help="that made the vectors; default: as the index remembers")
    parser.add_argument("--k", type=_positive, default=10, help="neighbours")
    parser.add_argument("--html", type=_file, help="write a page with the images there, too")
    parser.add_argument("--allow-outside", action="store_true", help="follow links that lead out of the folder")
    given, overrides = _with_overrides(parser, words)
    from lossopt.retrieval.saved_index import load_index
    from lossopt.search import as_text, pictures, search_index

    saved = load_index(given.index)
    found = search_index(saved, given.what, given.k, given.run, overrides, given.allow_outside)
    print(_printable(as_text(found)))
    if given.html:
        from lossopt.report.search import write_search_page

        page = write_search_page(given.html, found.queries, found.neighbours, saved, pictures(found), found.threshold)
        print(_printable(f"page: {page}"))


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
