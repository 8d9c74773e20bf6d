"""The cross-batch memory against a list of rows and the definition of the loss; and what a checkpoint brings back."""

import copy
import io
from collections import deque

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch import nn
from torch.utils.data import DataLoader

from lossopt.data.dataset import Batch
from lossopt.errors import ConfigError
from lossopt.losses import ContrastiveLoss, CrossBatchMemory, SmoothAPLoss, SupConLoss, TripletLoss
from lossopt.miners import BatchHardMiner, HardPairMiner, Pairs
from lossopt.modules import SiameseNetwork, TripletNetwork

D = 3
LABELS = [2**60, 2**60 + 1, -5, 0]  # two that are one in float64, one below zero


def batches(count, rows, seed=0, dtype=torch.float64):
    """Rows on a coarse grid, so that many are equal and many distances tie; a row of its own class at times."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        x = torch.randint(-2, 3, (rows, D), generator=generator).to(dtype) / 2
        labels = torch.tensor(LABELS)[torch.randint(0, 4, (rows,), generator=generator)]
        if number % 2:
            labels[-1] = 1000 + number
        yield x.requires_grad_(), labels


def contrastive_by_definition(x, labels, kept, margin=1.0):
    """Mean over every ordered pair of a batch row with another batch row or a row of the memory."""
    losses = []
    for i in range(len(x)):
        others = [(x[j], labels[j]) for j in range(len(x)) if j != i] + list(kept)
        for other, label in others:
            difference = x[i] - other
            distance = difference.norm() if difference.detach().abs().sum() else difference.sum() * 0
            losses.append((distance**2 if label == labels[i] else (margin - distance).clamp(min=0) ** 2) / 2)
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("rows", "size"), [(4, 10), (5, 10), (7, 7), (9, 6), (3, 1)])
def test_loss_and_gradient_are_those_of_the_definition(rows, size):
    memory, kept = CrossBatchMemory(ContrastiveLoss(), D, size).double(), deque(maxlen=size)
    for x, labels in batches(5, rows):
        loss = memory(x, labels)
        expected = contrastive_by_definition(x, labels, kept)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(*(torch.autograd.grad(value, x)[0] for value in (loss, expected)))
        assert memory.tuple_count == rows * (rows - 1 + len(kept))
        kept.extend((x[i].detach(), int(labels[i])) for i in range(rows))
        found = [(row.tolist(), int(label)) for row, label in zip(memory.memory, memory.memory_labels, strict=True)]
        assert sorted(found[: memory.filled]) == sorted((row.tolist(), label) for row, label in kept)


def test_the_oldest_rows_leave_first():
    memory = CrossBatchMemory(ContrastiveLoss(), 1, size=5)
    for start, stop, expected in (
        (0, 2, {0, 1}),
        (2, 6, {1, 2, 3, 4, 5}),
        (6, 7, {2, 3, 4, 5, 6}),
        (7, 20, set(range(15, 20))),
    ):
        rows = torch.arange(start, stop)
        memory(rows[:, None].float(), rows)
        assert set(memory.memory_labels[: memory.filled].tolist()) == expected
        assert torch.equal(memory.memory[: memory.filled, 0], memory.memory_labels[: memory.filled].float())


@pytest.mark.parametrize("loss", [ContrastiveLoss(), TripletLoss(), SupConLoss(), SmoothAPLoss()])
def test_an_empty_memory_is_the_loss_alone(loss):
    (x, labels), *_ = batches(1, 9)
    other = x.detach().clone().requires_grad_()
    found, expected = CrossBatchMemory(loss, D)(x, labels), loss(other, labels)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(x.grad, other.grad)


def test_it_is_filled_in_training_only_and_used_after_a_while():
    memory, alone = CrossBatchMemory(ContrastiveLoss(), D, 50, start_after=2).double(), ContrastiveLoss()
    for number, (x, labels) in enumerate(batches(4, 8)):
        memory.eval()
        before = memory(x, labels)
        assert memory.filled == 8 * number
        memory.train()
        loss = memory(x, labels)
        assert torch.equal(before, loss)
        assert torch.equal(loss, CrossBatchMemory(alone, D)(x, labels)) == (number < 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_is_seen_from_the_batch_and_from_the_memory(bad):
    memory = CrossBatchMemory(ContrastiveLoss(), D)
    (x, labels), (y, others) = batches(2, 6)
    spoilt = x.detach().clone()
    spoilt[-1, 0] = bad
    assert memory(spoilt, labels).isnan()
    assert memory(y, others).isnan()


@pytest.mark.parametrize("labels", [[7] * 5, [1, 2, 3, 4, 5], []])
def test_one_class_all_different_and_none(labels):
    memory = CrossBatchMemory(ContrastiveLoss(), D, 8)
    for _ in range(2):
        x = torch.randn(len(labels), D, requires_grad=True)
        memory(x, torch.tensor(labels, dtype=torch.int64)).backward()
        assert x.grad.isfinite().all()
    assert memory.filled == min(8, 2 * len(labels))


def test_half_precision_is_kept_and_computed_in_float32():
    memory = CrossBatchMemory(ContrastiveLoss(), D)
    exact = CrossBatchMemory(ContrastiveLoss(), D)
    for x, labels in batches(3, 6, dtype=torch.bfloat16):
        loss = memory(x, labels)
        loss.backward()
        assert loss.dtype == memory.memory.dtype == torch.float32
        assert x.grad.dtype == torch.bfloat16
        torch.testing.assert_close(loss, exact(x.detach().float(), labels))


class HardestByDefinition(nn.Module):
    """For each row the farthest positive and the nearest negative, by trying every reference row."""

    tuples = "pairs"

    @torch.no_grad()
    def forward(self, embeddings, labels, ref_emb=None, ref_labels=None, own=None, groups=None, ref_groups=None):
        assert own == 0
        assert torch.equal(ref_emb[: len(embeddings)], embeddings)
        found = ([], [], [], [])
        for i in range(len(embeddings)):
            distance = [(float((embeddings[i] - other).norm()), j) for j, other in enumerate(ref_emb)]
            same = [(d, -j) for d, j in distance if ref_labels[j] == labels[i] and j != i]
            different = [(d, j) for d, j in distance if ref_labels[j] != labels[i]]
            if same:
                found[0].append(i)
                found[1].append(-max(same)[1])
            if different:
                found[2].append(i)
                found[3].append(min(different)[1])
        return Pairs(*(torch.tensor(column, dtype=torch.int64) for column in found))


def test_the_miner_chooses_among_batch_and_memory_and_never_a_row_for_itself():
    ours = CrossBatchMemory(ContrastiveLoss(), D, 20, HardPairMiner()).double()
    slow = CrossBatchMemory(ContrastiveLoss(), D, 20, HardestByDefinition()).double()
    beyond = 0
    for x, labels in batches(5, 8):
        torch.testing.assert_close(ours(x, labels), slow(x, labels))
        beyond += ours.tuple_count
    assert beyond > 0
    triplets = CrossBatchMemory(TripletLoss(), D, 20, BatchHardMiner())
    assert all(triplets(x.float(), labels).isfinite() for x, labels in batches(3, 8))


@pytest.mark.parametrize("make", [pml.ContrastiveLoss, pml.SupConLoss, pml.TripletMarginLoss, pml.MultiSimilarityLoss])
def test_losses_of_pytorch_metric_learning_give_what_its_own_memory_gives(make):
    """As long as nothing leaves: its memory counts the batch among its rows, without their gradient."""
    ours, theirs = CrossBatchMemory(make(), D, 100), pml.CrossBatchMemory(make(), D, 100)
    for x, labels in batches(4, 8, dtype=torch.float32):
        torch.testing.assert_close(ours(x + 0.1, labels), theirs(x + 0.1, labels))


def test_a_foreign_loss_that_takes_no_reference_says_so_at_the_first_step():
    (x, labels), *_ = batches(1, 8)
    with pytest.raises(ValueError, match="ref_emb is not supported"):
        CrossBatchMemory(pml.ProxyAnchorLoss(4, D), D)(x.float(), labels.clamp(0, 3))


@pytest.mark.parametrize("before", [1, 4])  # batches: when it is partly filled, and when it has gone round
def test_the_state_dict_goes_on_to_the_last_bit_where_pytorch_metric_learnings_forgets(before):
    steps = list(batches(9, 7, dtype=torch.float32))
    ours, resumed = (CrossBatchMemory(ContrastiveLoss(), D, 20, start_after=1) for _ in range(2))
    theirs, forgetful = (pml.CrossBatchMemory(pml.ContrastiveLoss(), D, 20) for _ in range(2))
    for x, labels in steps[:before]:
        ours(x, labels), theirs(x, labels)
    saved = io.BytesIO()
    torch.save([ours.state_dict(), theirs.state_dict()], saved)
    saved.seek(0)
    states = torch.load(saved, weights_only=True)
    resumed.load_state_dict(states[0])
    forgetful.load_state_dict(states[1])
    assert forgetful.queue_idx == 0
    assert not forgetful.has_been_filled
    assert not torch.equal(forgetful(*steps[before]), theirs(*steps[before]))
    for x, labels in steps[before:]:
        assert torch.equal(resumed(x, labels), ours(x, labels))
        assert torch.equal(resumed.memory, ours.memory)
    assert (resumed.place, resumed.filled, resumed.steps) == (ours.place, ours.filled, ours.steps) == (3, 20, 9)


def train(epochs, checkpoint=None, save=None):
    """Three batches of 12 an epoch."""
    torch.manual_seed(0)
    images = torch.rand(3, 12, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    steps = [Batch(x, torch.arange(12) // 3, torch.arange(12), 0) for x in images]
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, D))
    network = SiameseNetwork(encoder, CrossBatchMemory(ContrastiveLoss(), D, 30), chunk_size=5)
    trainer = Trainer(
        max_epochs=epochs, limit_val_batches=0, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(network, DataLoader(steps, batch_size=None), ckpt_path=checkpoint, weights_only=True)
    if save:
        trainer.save_checkpoint(save)
    return network


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning")
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    whole = train(4)
    train(2, save=tmp_path / "half.ckpt")
    resumed = train(4, checkpoint=tmp_path / "half.ckpt")
    assert resumed.loss_fn.steps == whole.loss_fn.steps == 12
    assert resumed.loss_fn.filled == 30
    for name, state in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], state), name


def test_it_is_of_its_losses_kind():
    memory = CrossBatchMemory(ContrastiveLoss(), D)
    assert memory.tuples == "pairs"
    assert memory.collapsed_value == ContrastiveLoss().collapsed_value
    foreign = CrossBatchMemory(pml.SupConLoss(), D)
    assert foreign.tuples is foreign.tuple_count is foreign.share_active is foreign.collapsed_value is None
    SiameseNetwork(nn.Identity(), memory)
    SiameseNetwork(nn.Identity(), foreign)
    with pytest.raises(ConfigError, match="TripletNetwork"):
        TripletNetwork(nn.Identity(), memory)
    with pytest.raises(ConfigError, match=r"miner HardPairMiner .* Move it to loss_fn.init_args.miner"):
        SiameseNetwork(nn.Identity(), memory, HardPairMiner())
    copy.deepcopy(memory)


class ByGroup(HardestByDefinition):
    needs_groups = True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be 1 or more, got 0"),
        ({"embedding_size": 0}, "embedding_size must be 1 or more, got 0"),
        ({"start_after": -1}, "start_after must be 0 or more steps, got -1"),
        ({"miner": MultiSimilarityMiner()}, "a miner of lossopt, got MultiSimilarityMiner"),
        ({"miner": ByGroup()}, "keeps no groups, but ByGroup"),
        ({"loss": TripletLoss(), "miner": HardestByDefinition()}, "returns pairs, but TripletLoss compares triplets"),
        (
            {"loss": SmoothAPLoss(), "miner": HardestByDefinition()},
            "returns pairs, but SmoothAPLoss compares whole rows",
        ),
    ],
)
def test_refused_when_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrossBatchMemory(**{"loss": ContrastiveLoss(), "embedding_size": D, **arguments})


def test_refused_when_called():
    memory = CrossBatchMemory(ContrastiveLoss(), D)
    with pytest.raises(ValueError, match=r"embedding_size 3, .* \(4, 5\)"):
        memory(torch.zeros(4, 5), torch.zeros(4))
    with pytest.raises(ValueError, match="miner to CrossBatchMemory"):
        memory(torch.zeros(4, D), torch.zeros(4), (torch.zeros(0),) * 4)
