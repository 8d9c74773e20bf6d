"""Losses and miners: time, memory and values of a step beside the peers and the GEMM floor, all in the same run.

    python scripts/benchmark_mining.py --peers-python PEERS/bin/python                    # D = 128, about 15 minutes
    python scripts/benchmark_mining.py --tasks triplet --dimensions 512 --json found.json --figure found.svg
    python scripts/benchmark_mining.py --read found.json --targets                        # no run: tables and targets

A step is forward and backward of a loss, with its miner if it has one, on N unit-length float32 rows of 4 per class in
random order, on one thread. Time: median of at least 3 calls (1 if it takes over 5 s). Memory: growth of the process's
peak over the state after import, a first small call and the inputs; each measurement has a process of its own, forked
from one that has only imported. What needs more memory or seconds than the limits fails, and is not tried at larger N;
a peer whose call took longer than the patience is not tried at larger N either, except in the first two tasks.
  lossopt   losses and miners of this package
  pml       pytorch-metric-learning
  oml       open-metric-learning, which wants numpy below 2: an environment of its own, with
            `pip install open-metric-learning sentence-transformers`, whose python is --peers-python
  st        sentence-transformers' batch losses; not MultipleNegativesRankingLoss, which takes pairs instead of labels
  gemm      the floor: three float32 products, x x' and G x and G' x, G in blocks of 1,024 rows
Difference: the largest relative one of loss, and of the norm of the gradient along the sphere (pml normalises rows
itself), between lossopt and the peers that define the same number.
"""

import argparse
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmark_mining_report import PEERS, Found, Results, figure, table_head, table_row, targets
from torch import Tensor

ENGINES = ("gemm", "lossopt", "pml", "oml", "st")
SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
ROWS_PER_CLASS = 4
PACKAGES = {
    "gemm": ("torch", "torch", "torch"),
    "lossopt": ("lossopt", "lossopt.losses", "lossopt.miners"),
    "pml": ("pytorch-metric-learning", "pytorch_metric_learning.losses", "pytorch_metric_learning.miners"),
    "oml": ("open-metric-learning", "oml.losses", "oml.miners"),
    "st": (
        "sentence-transformers",
        "sentence_transformers.sentence_transformer.losses",
        "sentence_transformers.sentence_transformer.losses",
    ),
}


class Call(NamedTuple):
    """A loss by name, with its miner; `same`: defines the number that lossopt's call of the task defines."""

    loss: str
    settings: dict[str, Any]
    miner: str = ""
    miner_settings: dict[str, Any] = {}  # noqa: RUF012  (a default that nobody writes to)
    same: bool = True


class Task(NamedTuple):
    """What is computed, in words, and by whom."""

    words: str
    lossopt: Call
    pml: Call | None = None
    oml: Call | None = None
    st: Call | None = None


HINGE = {"margin": 0.2}
ACTIVE = {"margin": 0.2, "reduction": "mean_active"}
SIMILARITY = {"alpha": 2.0, "beta": 50.0, "base": 0.5}
CIRCLE = {"m": 0.4, "gamma": 80.0}
WARM = {"temperature": 0.1}
SHARP = {"temperature": 0.01}
LISTED = {"margin": 0.4, "alpha": 1.2, "Tn": 10.0}
ANGLE = {"angle": 29.0}
BAND = {"margin": 0.2, "type_of_triplets": "semihard"}
TASKS = {
    "triplet": Task(
        "all triplets, hinge, mean over the active ones",
        lossopt=Call("TripletLoss", ACTIVE),
        pml=Call("TripletMarginLoss", HINGE),
        oml=Call("TripletLossWithMiner", HINGE, "AllTripletsMiner"),
        st=Call("BatchAllTripletLoss", HINGE),
    ),
    "semi-hard": Task(
        "all triplets that are semi-hard within the margin (st: only the nearest negative of each pair)",
        lossopt=Call("TripletLoss", {**ACTIVE, "select": "semi-hard"}),
        pml=Call("TripletMarginLoss", HINGE, "TripletMarginMiner", BAND),
        st=Call("BatchSemiHardTripletLoss", HINGE, same=False),
    ),
    "soft-margin": Task(
        "all triplets, soft margin",
        lossopt=Call("SoftMarginTripletLoss", {}),
        pml=Call("TripletMarginLoss", {"margin": 0.0, "smooth_loss": True}),
        oml=Call("TripletLossWithMiner", {"margin": None}, "AllTripletsMiner"),
    ),
    "batch-hard": Task(
        "batch-hard miner and triplet loss (st: mean over all, so equal only while all are active)",
        lossopt=Call("TripletLoss", ACTIVE, "BatchHardMiner"),
        pml=Call("TripletMarginLoss", HINGE, "BatchHardMiner"),
        oml=Call("TripletLossWithMiner", HINGE, "HardTripletsMiner"),
        st=Call("BatchHardTripletLoss", HINGE, same=False),
    ),
    "facenet": Task(
        "of each pair the nearest semi-hard negative (st: mean over all pairs, the farthest negative if none)",
        lossopt=Call("TripletLoss", ACTIVE, "SemiHardMiner", {"margin": 0.2, "negatives": "hardest"}),
        st=Call("BatchSemiHardTripletLoss", HINGE, same=False),
    ),
    "easy-positive": Task(
        "nearest positive, nearest negative beyond it, and triplet loss",
        lossopt=Call("TripletLoss", ACTIVE, "EasyPositiveMiner"),
        pml=Call("TripletMarginLoss", HINGE, "BatchEasyHardMiner"),
    ),
    "distance-weighted": Task(
        "distance-weighted miner and triplet loss (drawn, so no two values agree)",
        lossopt=Call("TripletLoss", ACTIVE, "DistanceWeightedMiner"),
        pml=Call("TripletMarginLoss", HINGE, "DistanceWeightedMiner", same=False),
    ),
    "angular": Task(
        "angular miner and triplet loss",
        lossopt=Call("TripletLoss", ACTIVE, "AngularMiner", ANGLE),
        pml=Call("TripletMarginLoss", HINGE, "AngularMiner", ANGLE),
    ),
    "random": Task(
        "one random triplet per anchor and triplet loss (drawn, so no two values agree)",
        lossopt=Call("TripletLoss", ACTIVE, "RandomTripletMiner"),
        pml=Call("TripletMarginLoss", {"margin": 0.2, "triplets_per_anchor": 1}, same=False),
    ),
    "contrastive": Task(
        "all pairs, contrastive (squared in lossopt, linear in pml)",
        lossopt=Call("ContrastiveLoss", {"margin": 1.4}),
        pml=Call("ContrastiveLoss", {"neg_margin": 1.4}, same=False),
    ),
    "multi-similarity": Task(
        "multi-similarity loss of all pairs",
        lossopt=Call("MultiSimilarityLoss", SIMILARITY),
        pml=Call("MultiSimilarityLoss", SIMILARITY),
    ),
    "multi-similarity-miner": Task(
        "multi-similarity miner and loss",
        lossopt=Call("MultiSimilarityLoss", SIMILARITY, "MultiSimilarityMiner"),
        pml=Call("MultiSimilarityLoss", SIMILARITY, "MultiSimilarityMiner"),
    ),
    "supcon": Task("SupCon", lossopt=Call("SupConLoss", WARM), pml=Call("SupConLoss", WARM)),
    "nt-xent": Task("NT-Xent", lossopt=Call("NTXentLoss", WARM), pml=Call("NTXentLoss", WARM)),
    "circle": Task("circle", lossopt=Call("CircleLoss", CIRCLE), pml=Call("CircleLoss", CIRCLE)),
    "lifted": Task("lifted structure", lossopt=Call("LiftedStructureLoss", {}), pml=Call("LiftedStructureLoss", {})),
    "generalized-lifted": Task(
        "generalized lifted structure",
        lossopt=Call("GeneralizedLiftedStructureLoss", {}),
        pml=Call("GeneralizedLiftedStructureLoss", {}),
    ),
    "n-pairs": Task(
        "N-pairs (pml: of two rows per class only)",
        lossopt=Call("NPairsLoss", {}),
        pml=Call("NPairsLoss", {}, same=False),
    ),
    "ranked-list": Task(
        "ranked list (pml differentiates its weights, too)",
        lossopt=Call("RankedListLoss", LISTED),
        pml=Call("RankedListLoss", LISTED, same=False),
    ),
    "smooth-ap": Task(
        "smooth-AP (pml groups the rows wrongly unless P = K and they are in order)",
        lossopt=Call("SmoothAPLoss", SHARP),
        pml=Call("SmoothAPLoss", SHARP, same=False),
    ),
    "recall-at-k": Task(
        "recall@k surrogate (oml: precision@k)",
        lossopt=Call("RecallAtKLoss", {}),
        oml=Call("SurrogatePrecision", {"k": 4}, same=False),
    ),
}
TO_THE_END = ("triplet", "semi-hard")  # tasks with targets against one peer: peers are tried until they fail


def inputs(n: int, d: int) -> tuple[Tensor, Tensor]:
    """(n, d) unit rows that leave some triplets active and others not, and their labels, in random order."""
    draw = torch.Generator().manual_seed(n)
    labels = (torch.arange(n) // ROWS_PER_CLASS)[torch.randperm(n, generator=draw)]
    x = torch.randn(int(labels.max()) + 1, d, generator=draw)[labels]
    x += 1.5 * torch.randn(n, d, generator=draw)
    return torch.nn.functional.normalize(x).requires_grad_(), labels


def products(x: Tensor) -> Callable[[], Tensor]:
    """The arithmetic of distances and of their gradient, into buffers that exist already; gives the last product."""
    rows = x.detach()
    block, left, right = torch.empty(min(1024, len(rows)), len(rows)), torch.empty_like(rows), torch.empty_like(rows)

    def run() -> Tensor:
        for start in range(0, len(rows), 1024):
            some = rows[start : start + 1024]
            torch.mm(some, rows.T, out=block[: len(some)])
            torch.mm(block[: len(some)], rows, out=left[start : start + 1024])
            right.addmm_(block[: len(some)].T, some, beta=1.0 if start else 0.0)
        return right

    return run


def loss_of(engine: str, call: Call) -> Callable[[Tensor, Tensor], Tensor]:
    """The call as a function of embeddings and labels."""
    losses, miners = (importlib.import_module(name) for name in PACKAGES[engine][1:])
    miner = getattr(miners, call.miner)(**call.miner_settings) if call.miner else None
    make = getattr(losses, call.loss)
    if engine == "st":
        loss = make(None, **call.settings)
        return lambda x, labels: loss.compute_loss_from_embeddings([x], labels)
    if engine == "oml" and miner:
        loss = make(miner=miner, reduction="none", **call.settings)
        return lambda x, labels: mean_active(loss(x, labels))
    loss = make(**call.settings)
    return lambda x, labels: loss(x, labels, *([miner(x, labels)] if miner else []))


def mean_active(losses: Tensor) -> Tensor:
    """Mean of those that are not 0."""
    return losses[losses > 0].mean()


def along_sphere(gradient: Tensor, x: Tensor) -> float:
    """Norm of what remains of the gradient without its part along the unit rows."""
    radial = torch.einsum("nd,nd->n", gradient, x)
    return float((gradient.square().sum() - radial.square().sum()).clamp(min=0).sqrt())


def in_status(name: str) -> float:
    """A line of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def prepare(engine: str, task: str, n: int, d: int) -> tuple[Tensor, Callable[[], Tensor]]:
    """Rows, and a step over them that gives the loss."""
    x, labels = inputs(n, d)
    if engine == "gemm":
        return x, products(x)
    loss_fn = loss_of(engine, getattr(TASKS[task], engine))

    def step() -> Tensor:
        x.grad = None
        loss = loss_fn(x, labels)
        loss.backward()
        return loss.detach()

    return x, step


def measure(engine: str, task: str, n: int, d: int, repeat: int, gib: float) -> Found:
    """One measurement in this process."""
    prepare(engine, task, 64, d)[1]()
    x, step = prepare(engine, task, n, d)
    allowed = int((in_status("VmData") + 1024 * gib) * 2**20)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    Path("/proc/self/clear_refs").write_text("5")
    times: list[float] = []
    before, found = in_status("VmHWM"), Found()
    while not enough(times, repeat):
        began = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - began)
        if x.grad is not None and not found:
            found = {"loss": loss.item(), "gradient": along_sphere(x.grad, x.detach())}
    growth = in_status("VmHWM") - before
    return {**found, "ms": 1000 * statistics.median(times), "mib": growth, "calls": len(times)}


def enough(times: list[float], repeat: int) -> bool:
    """At least `repeat` calls and 0.3 s of them, up to 200; one that took over 5 s is enough."""
    return bool(times) and (times[0] > 5 or len(times) >= 200 or (len(times) >= repeat and sum(times) > 0.3))


def answer(pipe: Connection, engine: str, task: str, n: int, d: int, repeat: int, gib: float) -> None:
    """`measure`, or why it failed, into the pipe."""
    try:
        pipe.send(measure(engine, task, n, d, repeat, gib))
    except Exception as error:  # whatever a peer raises is its result
        words = f"{type(error).__name__}: {error}"
        memory = any(sign in words for sign in ("MemoryError", "allocate memory", "bad_alloc"))
        pipe.send({"failed": f"over {gib:g} GiB" if memory else words})


def serve(engine: str) -> None:
    """Import once; fork a process for every line asked on standard input; answer on standard output."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    torch.set_num_threads(1)
    for name in PACKAGES[engine][1:]:
        importlib.import_module(name)
    print(json.dumps(importlib.metadata.version(PACKAGES[engine][0])), file=out, flush=True)
    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        *asked, seconds = json.loads(line)
        ours, theirs = fork.Pipe(duplex=False)
        process = fork.Process(target=answer, args=(theirs, engine, *asked))
        process.start()
        theirs.close()
        found: Found = {"failed": f"over {seconds:g} s"}
        try:
            if ours.poll(seconds):
                found = ours.recv()
        except EOFError:
            found = {"failed": "ended by the system"}
        process.kill()
        process.join()
        print(json.dumps(found), file=out, flush=True)


class Engine:
    """A process that answers measurements of one engine."""

    def __init__(self, name: str, python: str) -> None:
        one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
        self.process = subprocess.Popen(
            [python, __file__, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **one_thread},
        )

    def version(self) -> str:
        """Of the package, once it is imported; empty if it cannot be. To be read first."""
        return self._answer() or ""

    def _answer(self) -> Any:
        line = self.process.stdout.readline() if self.process.stdout else ""
        return json.loads(line) if line else None

    def ask(self, *asked: Any) -> Found:
        """The answer to one line."""
        if self.process.stdin is None or self.process.poll() is not None:
            return {"failed": "its process ended"}
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return self._answer() or {"failed": "its process ended"}


def run(given: argparse.Namespace) -> Results:
    """Every measurement, task by task, with a table of each."""
    pythons = {name: given.peers_python if name in ("oml", "st") else sys.executable for name in given.engines}
    engines = {name: Engine(name, python) for name, python in pythons.items()}
    for name in list(engines):
        version = engines[name].version()
        print(f"{name:<8} {PACKAGES[name][0]} {version or 'is not installed for ' + pythons[name]}")
        if not version:
            del engines[name]
    results: Results = {}
    for d in given.dimensions:
        for task in given.tasks:
            run_task(task, d, engines, given, results)
    return results


def run_task(task: str, d: int, engines: dict[str, Engine], given: argparse.Namespace, results: Results) -> None:
    """One table: all sizes of a task, every engine in turn, into the results."""
    calls = TASKS[task]
    doing = [name for name in engines if name == "gemm" or getattr(calls, name)]
    same = [name for name in PEERS if name in doing and getattr(calls, name).same]
    print(table_head(task, calls.words, d, doing))
    ended: set[str] = set()
    for n in given.sizes:
        for name in doing:
            key = ("" if name == "gemm" else task, name, n, d)
            if key in results:
                continue
            tried = name not in ended
            asked = (task, n, d, given.repeat, given.gib, given.seconds)
            found = results[key] = engines[name].ask(*asked) if tried else {"failed": "not tried"}
            failed = found.get("failed", "")
            if tried and ":" in failed:
                print(f"{name}: {failed}")
            if name == "lossopt" and "no attribute" in failed:
                print("skipped")
                return
            slow = name in PEERS and task not in TO_THE_END and found.get("ms", 0) > 1000 * given.patience
            if slow or "failed" in found:
                ended.add(name)
        print(table_row(results, task, n, d, doing, same), flush=True)


def main() -> None:
    """Measures, or reads measurements, and prints and draws what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="batch sizes N, ascending")
    parser.add_argument("--dimensions", nargs="+", type=int, default=[128])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--repeat", type=int, default=3, help="calls at least, of those that take up to 5 s")
    parser.add_argument("--seconds", type=float, default=60, help="limit of one measurement")
    parser.add_argument("--gib", type=float, default=16, help="limit of memory that one measurement may ask for")
    parser.add_argument("--patience", type=float, default=3, help="seconds of a call after which a peer is left alone")
    parser.add_argument("--peers-python", default=sys.executable, help="runs oml and st; left out where missing")
    parser.add_argument("--json", type=Path, help="write the measurements")
    parser.add_argument("--read", type=Path, help="read measurements instead of taking them")
    parser.add_argument("--figure", type=Path, help="draw all triplets, D the first of --dimensions, as SVG")
    parser.add_argument("--targets", action="store_true", help="print which targets are met")
    parser.add_argument("--serve", choices=ENGINES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    if not shutil.which(given.peers_python):
        parser.error(f"--peers-python {given.peers_python} is not a program; give the python of an environment")
    read = json.loads(given.read.read_text()) if given.read else []
    results = {tuple(key): found for key, found in read} or run(given)
    if given.json:
        given.json.write_text(json.dumps([[key, found] for key, found in results.items()], indent=0))
    if given.figure:
        given.figure.write_text(figure(results, given.dimensions[0]))
    if given.targets:
        print("\n" + "\n".join(str(target) for target in targets(results, TO_THE_END)))


if __name__ == "__main__":
    main()
