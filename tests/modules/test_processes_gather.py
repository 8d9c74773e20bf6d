"""Loss and gradient of several processes, each with a share of the batch, are those of one process with all of it."""

import subprocess
import sys

import pytest
import torch

SCRIPT = '''
import os, sys
import torch, torch.distributed as dist
from pytorch_metric_learning import losses as pml
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from lossopt.data.dataset import Batch
from lossopt.losses import ContrastiveLoss, CrossBatchMemory, TripletLoss
from lossopt.miners import BatchHardMiner, HardPairMiner, RandomTripletMiner
from lossopt.modules import SiameseNetwork, TripletNetwork
from lossopt.modules.gather import gather_batch

N = 24  # images of all processes

class Nothing(BatchHardMiner):
    def forward(self, embeddings, labels):
        return (torch.empty(0, dtype=torch.int64),) * 3

class Steps(nn.Module):
    """What Lightning does under DDP: the module's forward is the training step."""
    def __init__(self, network):
        super().__init__()
        self.network = network
    def forward(self, batch):
        return self.network.training_step(batch, 0)

def encoder():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 5))

def learned():
    loss = pml.ContrastiveLoss()
    loss.scale = nn.Parameter(torch.ones(()))
    plain = loss.forward
    loss.forward = lambda embeddings, labels, indices=None: plain(embeddings * loss.scale, labels, indices)
    return loss

CASES = {
    "triplets": (TripletNetwork, lambda: TripletLoss(margin=0.5), lambda: None),
    "hard pairs": (SiameseNetwork, ContrastiveLoss, HardPairMiner),
    "supcon": (SiameseNetwork, pml.SupConLoss, lambda: None),
    "random": (TripletNetwork, lambda: TripletLoss(margin=0.5), lambda: RandomTripletMiner(2, seed=5)),
    "groups": (TripletNetwork, lambda: TripletLoss(margin=0.5), lambda: BatchHardMiner(group_rule="other")),
    "weights of the loss": (SiameseNetwork, learned, lambda: None),
    "memory": (SiameseNetwork, lambda: CrossBatchMemory(ContrastiveLoss(), 5, 40, HardPairMiner()), lambda: None),
    "nothing": (TripletNetwork, TripletLoss, Nothing),
}

def batches(rank, world, steps=3):
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        images = torch.rand(N, 1, 4, 4, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 5, (N,), generator=generator)
        share = slice(rank * N // world, (rank + 1) * N // world)
        ids = torch.arange(N) + 100 * step + 2**40
        yield Batch(images[share], labels[share], ids[share], 0, (labels * 3 % 4)[share])

def run(rank, world, case, chunk_size):
    kind, loss, miner = CASES[case]
    torch.manual_seed(0)
    network = kind(encoder(), loss(), miner(), chunk_size=chunk_size).double()
    steps = Steps(network)
    steps = DistributedDataParallel(steps) if world > 1 else steps
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    found = []
    for batch in batches(rank, world):
        optimizer.zero_grad()
        loss = steps(batch)
        if loss is not None:
            loss.backward()
        optimizer.step()
        record = network.last_step
        assert torch.equal(record.ids[record.own : record.own + len(batch.ids)], batch.ids)
        assert record.batch is batch
        found.append({
            "loss": None if loss is None else loss.detach(), "embeddings": record.embeddings, "ids": record.ids,
            "labels": record.labels, "tuples": record.tuples, **dict(network.loss_fn.named_buffers()),
            "gradients": [None if p.grad is None else p.grad.clone() for p in network.parameters()],
        })
    return found

def refusal(rank, world):
    network = SiameseNetwork(encoder(), ContrastiveLoss())
    rows = 4 + (rank == 1)
    try:
        network.training_step(Batch(torch.rand(rows, 1, 4, 4), torch.arange(rows), torch.arange(rows), 0), 0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def shared_gradient(world):
    """The gradient of a sum belongs to both its parts; the way back through the gather must leave it alone."""
    rows, other = torch.zeros(2, 3, requires_grad=True), torch.zeros(2 * world, 3, requires_grad=True)
    empty, later = torch.zeros(2, dtype=torch.int64), other * 1  # whose turn on the way back is after the gather's
    (gather_batch(rows, Batch(empty, empty, empty, 0)).embeddings + later).backward(torch.ones(2 * world, 3))
    return float(rows.grad.mean()), float(other.grad.mean())

def process(rank, world, folder):
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
    found = {(case, chunk): run(rank, world, case, chunk) for case in CASES for chunk in (None, 3)}
    refused = refusal(rank, world) if world > 1 else None
    torch.save((found, (refused, *shared_gradient(world))), f"{folder}/{world}_{rank}.pt")
    if world > 1:
        dist.destroy_process_group()

def main(folder):
    for world in (1, 2, 3):
        children = []
        for rank in range(world):
            child = os.fork()  # all is imported already
            if not child:
                try:
                    process(rank, world, folder)
                except BaseException:
                    import traceback
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        codes = [os.waitpid(child, 0)[1] for child in children]
        if any(codes):
            sys.exit(1)

main(sys.argv[1])
'''


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{(processes, rank): ({(case, chunk_size): steps}, (refusal, gradient of rows, of what is added to them))}."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "steps.py").write_text(SCRIPT)
    words = [sys.executable, "-W", "error::FutureWarning", str(folder / "steps.py"), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        (world, rank): torch.load(folder / f"{world}_{rank}.pt", weights_only=True)
        for world in (1, 2, 3)
        for rank in range(world)
    }


CASES = ["triplets", "hard pairs", "supcon", "random", "groups", "weights of the loss", "memory"]
several = pytest.mark.parametrize(("world", "rank"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])


@several
@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("case", CASES)
def test_several_processes_take_the_step_of_one(found, world, rank, case, chunk_size):
    one, of_rank = found[1, 0][0][case, None], found[world, rank][0][case, chunk_size]
    for expected, step in zip(one, of_rank, strict=True):
        torch.testing.assert_close(step, expected, rtol=1e-10, atol=1e-12)
    assert max(gradient.abs().max() for gradient in one[0]["gradients"]) > 1e-3
    assert one[0]["loss"] != one[1]["loss"]


@pytest.mark.parametrize("case", CASES)
def test_chunks_in_one_process_change_nothing(found, case):
    torch.testing.assert_close(found[1, 0][0][case, 3], found[1, 0][0][case, None], rtol=1e-10, atol=1e-12)


@several
def test_every_process_sees_the_same_loss_to_the_last_bit(found, world, rank):
    for case in CASES:
        for first, step in zip(found[world, 0][0][case, 3], found[world, rank][0][case, 3], strict=True):
            assert torch.equal(step["loss"], first["loss"])
            assert torch.equal(step["ids"], first["ids"])
            assert all(torch.equal(a, b) for a, b in zip(step["gradients"], first["gradients"], strict=True))


def test_without_tuples_one_process_makes_no_step_and_several_a_step_of_nothing(found):
    for (world, _), (steps, _) in found.items():
        for step in steps["nothing", None]:
            assert step["tuples"] == 0
            if world == 1:
                assert step["loss"] is None
            else:
                assert step["loss"] == 0
                assert all((gradient == 0).all() for gradient in step["gradients"])


def test_batches_of_unequal_size_are_refused_on_every_process(found):
    for (world, _), (_, (refused, *_)) in found.items():
        if world == 1:
            assert refused is None
        else:
            sizes = {2: "4, 5", 3: "4, 5, 4"}[world]
            assert refused.startswith(f"ConfigError: The processes have batches of {sizes} images.")


def test_the_gradient_of_others_is_left_alone(found):
    for (world, _), (_, (_, of_rows, of_other)) in found.items():
        assert (of_rows, of_other) == (world, 1)
