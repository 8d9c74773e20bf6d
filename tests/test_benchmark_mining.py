"""The mining benchmark: its tasks are computed as they say, and what it makes of measurements."""

import importlib
import math
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
bench = importlib.import_module("benchmark_mining")
report = importlib.import_module("benchmark_mining_report")
sys.path.pop(0)

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("task", bench.TASKS)
def test_lossopt_and_pytorch_metric_learning_give_the_number_of_the_task(task):
    x, step = bench.prepare("lossopt", task, 64, 32)
    loss = step()
    assert 0 < loss < math.inf and x.grad.norm() > 0
    call = bench.TASKS[task].pml
    if call and call.same:
        theirs, their_step = bench.prepare("pml", task, 64, 32)
        torch.testing.assert_close(loss, their_step(), rtol=1e-5, atol=0)
        radial = (theirs.grad * theirs).sum(1, keepdim=True).detach() * theirs.detach()
        along = x.grad - (x.grad * x).sum(1, keepdim=True).detach() * x.detach()
        torch.testing.assert_close(along, theirs.grad - radial, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_compared_along_the_sphere():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert bench.along_sphere(torch.tensor([[9.0, 3.0], [4.0, -7.0]]), x) == pytest.approx(5.0)


def test_the_floor_is_three_products_however_many_blocks():
    x, _ = bench.inputs(2100, 8)
    run = bench.products(x)
    run()
    rows = x.detach()
    torch.testing.assert_close(run(), rows @ (rows.T @ rows), rtol=1e-4, atol=1e-4)


def measured(**peers):
    """Ours takes 10 ms and 50 MiB at each N, the floor 5 ms; a peer's (N, ms or why it failed) pairs."""
    sizes = (64, 512, 1024, 2048, 8192, 16384)
    results = {("", "gemm", n, 128): {"ms": 5.0, "mib": 1.0} for n in sizes}
    results |= {("triplet", "lossopt", n, 128): {"ms": 10.0, "mib": 50.0, "loss": 1.0} for n in sizes}
    for peer, found in peers.items():
        for n, ms in found.items():
            one = {"failed": ms} if isinstance(ms, str) else {"ms": ms, "mib": 9.0, "loss": 1.1}
            results["triplet", peer, n, 128] = one
    return results


def said(results):
    return {target.words: (target.kept, target.reached) for target in report.targets(results, ("triplet",))}


def test_targets_take_the_worst_figure_and_a_failed_peer_is_infinitely_slow():
    results = measured(pml={64: 9.0, 512: 400.0, 1024: 999.0, 8192: "over 16 GiB"}, st={512: 49.0, 1024: "not tried"})
    where = "triplet, D = 128: "
    assert said(results) == {
        where + "times faster than pml (worst at 1,024)": (False, 99.9),
        where + "times faster than pml (worst at 8,192)": (True, math.inf),
        where + "times faster than the best peer, N >= 512 (worst at 512)": (False, 4.9),
        where + "times faster than the best peer, N = 64 (worst at 64)": (False, 0.9),
        where + "times the floor, N >= 2,048 (worst at 2,048)": (True, 2.0),
        where + "MiB of growth (worst at 64)": (True, 50.0),
        where + "MiB of growth (worst at 16,384)": (True, 50.0),
    }
    results["triplet", "lossopt", 16384, 128] = {"ms": 20.1, "mib": 201.0}
    found = said(results)
    assert found[where + "times the floor, N >= 2,048 (worst at 16,384)"][0] is False
    assert found[where + "MiB of growth (worst at 16,384)"][0] is False
    assert "SHORT" in str(next(report.targets(results, ("triplet",))))


def test_a_row_says_how_many_times_and_how_far_apart():
    results = measured(pml={64: 30.0, 512: "over 60 s"}, st={64: 20.0, 512: "ValueError: too many rows for it"})
    engines = ("gemm", "lossopt", "pml", "st")
    row = report.table_row(results, "triplet", 64, 128, engines, ["pml"]).split()
    assert row[-3:] == ["2.0", "2.0", "9e-02"]
    row = report.table_row(results, "triplet", 512, 128, engines, ["pml"])
    assert "over 60 s" in row and "fails" in row and "all fail" in row and row.endswith(" -")
    assert report.best_peer(measured(st={64: "not tried"}), "triplet", 64, 128) is None


def test_the_figure_ends_curves_with_a_cross_where_the_next_size_fails():
    results = measured(pml={64: 30.0, 512: 1000.0, 1024: "over 16 GiB"}, st={64: 0.001, 16384: 9.0})
    drawn = ET.fromstring(report.figure(results, 128))
    crosses = [path for path in drawn.iter(SVG + "path") if "l10 10m0 -10l-10 10" in path.get("d")]
    assert [path.get("class") for path in crosses] == ["pml", "pml"]
    words = [text.text for text in drawn.iter(SVG + "text")]
    assert words.count("over 16 GiB at 1,024") == 2 and "10 ms at 16,384" in words and "50 MiB at 16,384" in words
    assert words.count("floor") == 1  # it has a time only


def test_enough_calls():
    assert not bench.enough([], 1)
    assert bench.enough([5.1], 3) and not bench.enough([4.9], 3)
    assert not bench.enough([0.01] * 29, 3) and bench.enough([0.01] * 31, 3) and bench.enough([1e-6] * 200, 3)
