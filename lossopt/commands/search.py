"""The commands from images to their neighbours: embed, index, search; heavy imports are inside them."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lossopt.commands.arguments import SPLITS, VECTORS, file, positive, printable, with_overrides

if TYPE_CHECKING:
    from lossopt.retrieval.vectors import LabelledVectors


def embed(words: list[str]) -> None:
    """`lossopt embed RUN [--split test | --images FOLDER] [--output DIR]`."""
    parser = argparse.ArgumentParser(prog="lossopt embed", description="Writes vectors, labels and names to a folder.")
    parser.add_argument("run", type=Path, help="the folder of a run, or a .ckpt file")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--split", choices=SPLITS, help="of the run's own data; default: test")
    what.add_argument("--images", type=Path, help="a folder of images, in class folders or not, or one image")
    parser.add_argument("--output", type=Path, help="default: RUN/embeddings/SPLIT, RUN/embeddings/images-FOLDER")
    parser.add_argument("--allow-outside", action="store_true", help="follow links that lead out of the folder")
    given, overrides = with_overrides(parser, words)
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
    print(printable(f"{n:,} x {d} vectors ({size:.1f} MB, {classes}) of {origin}"))
    print(printable(f"embedded in {seconds:.1f} s, written to {out}"))


def index(words: list[str]) -> None:
    """`lossopt index build EMBEDDINGS [--factory STRING]`, `lossopt index tune EMBEDDINGS [--output tune.html]`."""
    top = argparse.ArgumentParser(prog="lossopt index", description="Indexes for search, measured on your vectors.")
    jobs = top.add_subparsers(dest="job", metavar="build | tune", required=True)
    build = jobs.add_parser("build", help="build an index and say what it finds of the exact answer, and how fast")
    tune = jobs.add_parser("tune", help="measure several indexes: recall, time and memory")
    for parser in (build, tune):
        parser.add_argument("embeddings", type=Path, help=VECTORS)
        parser.add_argument("--distance", choices=("euclidean", "cosine"), help="default: the vectors' own")
        parser.add_argument("--k", type=positive, default=10, help="neighbours that the recall is measured with")
        parser.add_argument("--seed", type=int, default=0, help="of the queries and the training rows that are drawn")
    build.add_argument("--factory", default="Flat", help="FAISS's factory string; default: Flat, which is exact")
    build.add_argument("--parameters", default="", help="of the search, such as nprobe=8")
    build.add_argument("--output", type=Path, help="default: EMBEDDINGS-index")
    build.add_argument("--run", type=Path, help="that made the vectors; default: the one whose folder holds them")
    tune.add_argument("--factories", nargs="+", help="FAISS's factory strings; default: some that suit the vectors")
    tune.add_argument("--output", type=file, help="write a page with the picture there, such as tune.html")
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
    print(printable(f"{as_text(saved)}\nwritten to {out}"))


def _index_tune(given: argparse.Namespace, table: "LabelledVectors") -> None:
    from tqdm import tqdm

    from lossopt.retrieval.index import Distance
    from lossopt.retrieval.tuning import as_text, tune

    own: Distance = "cosine" if table.provenance.get("distance") == "cosine" else "euclidean"
    with tqdm(desc="measuring", unit=" indexes", disable=None, leave=False) as bar:
        found = tune(table, given.distance or own, given.factories, given.k, seed=given.seed, say=bar.set_postfix_str)
    print(printable(as_text(found)))
    if given.output:
        from lossopt.report.tuning import write_tuning_page

        print(printable(f"page: {write_tuning_page(given.output, found, str(given.embeddings.absolute().name))}"))


def search(words: list[str]) -> None:
    """`lossopt search INDEX IMAGE_OR_FOLDER [--k 10] [--html gallery.html]`."""
    parser = argparse.ArgumentParser(prog="lossopt search", description="The nearest images of an index.")
    parser.add_argument("index", type=Path, help="a folder written by lossopt index build")
    parser.add_argument("what", type=Path, help=f"an image, a folder of images, or vectors: {VECTORS}")
    parser.add_argument("--run", type=Path, help="that made the vectors; default: as the index remembers")
    parser.add_argument("--k", type=positive, default=10, help="neighbours")
    parser.add_argument("--html", type=file, help="write a page with the images there, too")
    parser.add_argument("--allow-outside", action="store_true", help="follow links that lead out of the folder")
    given, overrides = with_overrides(parser, words)
    from lossopt.retrieval.saved_index import load_index
    from lossopt.search import as_text, pictures, search_index

    saved = load_index(given.index)
    found = search_index(saved, given.what, given.k, given.run, overrides, given.allow_outside)
    print(printable(as_text(found)))
    if given.html:
        from lossopt.report.search import write_search_page

        page = write_search_page(given.html, found.queries, found.neighbours, saved, pictures(found), found.threshold)
        print(printable(f"page: {page}"))
