"""Training speed of `lossopt train` against a plain PyTorch loop, on Omniglot, in turn and in fresh processes.

    LOSSOPT_DATA=/path/to/data python scripts/benchmark_training.py

Three ways to train the same network (conv4-64, 28 pixels, batch 128, all triplets) on the same batches:
  default   a plain loop as one would first write it: float32, channels first
  tricks    the same loop with channels-last memory, bfloat16 autocast and an allocator that keeps freed pages
  lossopt   `lossopt train`, logging as in the shipped configs
Each round is one seed. Speed counts training only, after a warm-up, without validation. Quality is recall@1 of the
validation classes at the end.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lossopt import config as configuration
from lossopt.data.module import RetrievalData, to_float
from lossopt.retrieval.embeddings import embed
from lossopt.tables import evaluate_table
from lossopt.tracking import read_metrics
from lossopt.training import keep_freed_memory, train

WAYS = ("default", "tricks", "lossopt")
CONFIG = Path(__file__).parents[1] / "configs" / "omniglot_triplet.yaml"
WARM_UP = 50  # steps


def words(steps: int, seed: int, output: str) -> list[str]:
    """The shipped Omniglot triplet recipe, at 28 pixels, for one epoch of `steps` batches."""
    data = "--data.init_args"
    return [
        *("--config", str(CONFIG), "--output", output, "--seed", str(seed), "--trainer.max_epochs", "1"),
        *(f"{data}.batches_per_epoch", str(steps), f"{data}.source.init_args.image_size", "28"),
        *("--retrieval.test", "false"),
    ]


def plain_loop(steps: int, seed: int, tricks: bool) -> tuple[float, float]:
    """Images per second and recall@1 of an ordinary loop."""
    if tricks:
        keep_freed_memory()
    torch.manual_seed(seed)
    made = configuration.instantiate(configuration.parse(words(steps, seed, "")))
    data: RetrievalData = made.data
    data.seed = seed
    layout = torch.channels_last if tricks else torch.contiguous_format
    encoder, loss_fn = made.model.encoder.to(memory_format=layout), made.model.loss_fn
    optimizer = made.model.make_optimizer(encoder.parameters())
    schedule = made.model.make_schedule(optimizer)
    schedule.total_steps = steps
    began = 0.0
    for step, batch in enumerate(data.train_dataloader()):
        if step == WARM_UP:
            began = time.perf_counter()
        images, generator = to_float(batch.images), torch.Generator().manual_seed(batch.seed)
        for augmentation in data.augment:
            images = augmentation(images, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=tricks):
            embeddings = encoder(images.contiguous(memory_format=layout))
        loss = loss_fn(embeddings, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    speed = (steps - WARM_UP) * len(batch.labels) / (time.perf_counter() - began)
    table = data.splits.validation
    found = evaluate_table(embed(encoder, (to_float(b.images) for b in data.pass_over(table)), len(table)), table)
    return speed, found.metrics["recall@1"]


def with_lossopt(steps: int, seed: int) -> tuple[float, float]:
    """Images per second and recall@1 of `lossopt train`."""
    with tempfile.TemporaryDirectory() as output:
        result = train(configuration.parse(words(steps, seed, output)))
        rows: list[Any] = [row for row in read_metrics(result.folder) if "train/images" in row]
        first = next(row for row in rows if row["step"] >= WARM_UP)
        seconds = rows[-1]["time"] - first["time"]
        return (rows[-1]["train/images"] - first["train/images"]) / seconds, result.validation["val/recall@1"]


def main() -> None:
    """Runs the three ways in turn, a fresh process each, and prints the medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        run = with_lossopt if given.way == "lossopt" else plain_loop
        extra = () if given.way == "lossopt" else (given.way == "tricks",)
        print(json.dumps(run(given.steps, given.seed, *extra)))
        return
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for seed in range(given.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--seed", str(seed), "--steps", str(given.steps)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ))
            found[way].append(tuple(json.loads(answer.stdout.splitlines()[-1])))
            print(f"seed {seed}  {way:<8} {found[way][-1][0]:7.0f} images/s  recall@1 {100 * found[way][-1][1]:.1f}")
    speed = {way: statistics.median(one for one, _ in found[way]) for way in WAYS}
    recall = {way: statistics.mean(one for _, one in found[way]) for way in WAYS}
    print()
    for way in WAYS:
        print(f"{way:<8} {speed[way]:7.0f} images/s (median)   recall@1 {100 * recall[way]:.1f} (mean)")
    for other in ("default", "tricks"):
        ratios = [a / b for (a, _), (b, _) in zip(found["lossopt"], found[other], strict=True)]
        print(f"lossopt / {other:<8} {statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
