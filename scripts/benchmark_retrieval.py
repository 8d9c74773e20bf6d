"""Retrieval metrics: time, memory and figures of lossopt beside its peers, each in a fresh process of the same run.

    python scripts/benchmark_retrieval.py                                    # 5k, 20k and 60k rows, 128 and 512 wide
    python scripts/benchmark_retrieval.py --sizes 200000x128 200000x512 --engines lossopt gemm
    python scripts/benchmark_retrieval.py --peers-python PEERS/bin/python    # an environment with open-metric-learning

Rows are unit vectors of classes as large as those of Stanford Online Products' test set (60,502 images of 11,316
products). Metrics: recall@{1,2,4,8,10,100,1000}, R-precision, MAP@R. Growth is peak memory above the state after import
with the vectors loaded. open-metric-learning 4.0 wants numpy below 2, so it needs an environment of its own, with
`pip install open-metric-learning`.
  lossopt   these metrics and a dozen more, exact under ties
  whole     the same with the health figures: what `lossopt evaluate` does
  pml       pytorch-metric-learning's AccuracyCalculator, k = 1,000 (it has no recall@k for k > 1)
  oml       open-metric-learning's batched_knn (1,000 deep) and calc_retrieval_metrics
  faiss     no metrics: the 1,001 nearest by a flat FAISS index
  gemm      no metrics: the float32 product of all vectors with all, in tiles
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

KS = (1, 2, 4, 8, 10, 100, 1000)
ENGINES = ("lossopt", "whole", "pml", "oml", "faiss", "gemm")
ROWS, CLASSES = 60_502, 11_316


def vectors(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) unit vectors, noisy enough that about two thirds of the queries succeed, and their labels, shuffled."""
    rng = np.random.default_rng(0)
    classes = max(2, n * CLASSES // ROWS)
    labels = np.concatenate(
        [np.repeat(np.arange(classes), 2), rng.integers(0, classes, n - 2 * classes)]
    )  # none is lone
    rng.shuffle(labels)
    made = np.empty((n, d), dtype=np.float32)
    centres = rng.standard_normal((labels.max() + 1, d), dtype=np.float32)
    noise = 1.0 * (d / 32) ** 0.25
    for start in range(0, n, 4096):
        part = centres[labels[start : start + 4096]]
        part += noise * rng.standard_normal(part.shape, dtype=np.float32)
        made[start : start + 4096] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return made, labels


def with_lossopt(x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of every query."""
    from lossopt.retrieval.evaluation import measure_task
    from lossopt.retrieval.task import make_task

    per_query = measure_task(x, make_task(len(x), labels), KS)
    return {name: float(values.mean()) for name, values in per_query.items()}


def with_whole(x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics and health."""
    from lossopt.retrieval.evaluation import evaluate_retrieval

    return evaluate_retrieval(x, labels, ks=KS).metrics


def with_pml(x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The three metrics that it has."""
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = {"precision_at_1": "recall@1", "r_precision": "r_precision", "mean_average_precision_at_r": "map@r"}
    found = AccuracyCalculator(include=tuple(names), k=max(KS)).get_accuracy(
        torch.from_numpy(x), torch.from_numpy(labels)
    )
    return {names[theirs]: float(value) for theirs, value in found.items()}


def with_oml(x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """CMC is recall@k; it has no metric at R."""
    import torch
    from oml.functional.knn import batched_knn
    from oml.functional.metrics import calc_retrieval_metrics

    rows, target = torch.arange(len(x)), torch.from_numpy(labels)
    _, retrieved, truth = batched_knn(torch.from_numpy(x), rows, rows, top_n=max(KS), labels_gt=target)
    found = calc_retrieval_metrics(
        retrieved, truth, cmc_top_k=KS, precision_top_k=(), map_top_k=(max(KS),), verbose=False
    )
    return {f"recall@{k}": float(value) for k, value in found["cmc"].items()}


def with_faiss(x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Lists only."""
    import faiss

    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x)
    index.search(x, max(KS) + 1)
    return {}


def with_gemm(x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The arithmetic that nobody can go below without using symmetry."""
    tile = np.empty((2040, 4096), dtype=np.float32)
    for start in range(0, len(x), 2040):
        for other in range(0, len(x), 4096):
            a, b = x[start : start + 2040], x[other : other + 4096]
            np.matmul(a, b.T, out=tile[: len(a), : len(b)])
    return {}


def peak() -> float:
    """Largest resident size of this process so far, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def measure(engine: str, n: int, d: int) -> None:
    """One engine in this process; prints a line of JSON."""
    ways = {"lossopt": with_lossopt, "whole": with_whole}
    run = {**ways, "pml": with_pml, "oml": with_oml, "faiss": with_faiss, "gemm": with_gemm}[engine]
    small, few = vectors(1_100, 8)
    run(small, few)  # imports, compilation, thread pools
    x, labels = vectors(n, d)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    began = time.perf_counter()
    found = run(x, labels)
    print(json.dumps({"seconds": time.perf_counter() - began, "growth": peak() - before, "metrics": found}))


def main() -> None:
    """Runs the engines in turn for every size and prints medians, ratios and differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [f"{n}x{d}" for n in (5_000, 20_000, ROWS) for d in (128, 512)]
    parser.add_argument("--sizes", nargs="+", default=sizes, help="ROWSxWIDTH")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peers-python", default=sys.executable, help="runs oml; left out where that is missing")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure[0], int(given.measure[1]), int(given.measure[2]))
        return
    for size in given.sizes:
        print(
            f"\n{size:<14}{'seconds':>9}{'growth MiB':>12}{'x lossopt':>11}{'x gemm':>8}   recall@1, R-precision, MAP@R"
        )
        found = {engine: answers(engine, size, given.rounds, given.peers_python) for engine in given.engines}
        times = {name: statistics.median(one["seconds"] for one in runs) for name, runs in found.items() if runs}
        for engine, runs in found.items():
            if not runs:
                print(f"{engine:<14}{'failed':>9}")
                continue
            figures = [runs[0]["metrics"].get(name) for name in ("recall@1", "r_precision", "map@r")]
            shown = "  ".join("-" if value is None else f"{value:.6f}" for value in figures)
            ratios = [f"{times[engine] / times[of]:.2f}" if of in times else "-" for of in ("lossopt", "gemm")]
            growth = max(one["growth"] for one in runs)
            print(
                f"{engine:<14}{times[engine]:>9.2f}{growth:>12.0f}{ratios[0]:>11}{ratios[1]:>8}   {shown}", flush=True
            )


def answers(engine: str, size: str, rounds: int, peers_python: str) -> list[dict]:
    """What each run of an engine printed; empty if one failed."""
    python = peers_python if engine == "oml" else sys.executable
    command = [python, __file__, "--measure", engine, *size.split("x")]
    runs = []
    for _ in range(rounds):
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
        if done.returncode:
            return []
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return runs


if __name__ == "__main__":
    main()
