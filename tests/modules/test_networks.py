"""The networks outside a run: what they embed, and how Lightning's own `predict` uses them."""

import pytest
import torch
from pytorch_lightning import Trainer

from lossopt.data import Digits
from lossopt.data.dataset import Batch, InMemory, LabelledImages
from lossopt.data.module import RetrievalData, to_float
from lossopt.encoders import Conv4
from lossopt.errors import ConfigError
from lossopt.losses import ContrastiveLoss, TripletLoss
from lossopt.miners import BatchHardMiner
from lossopt.modules import SiameseNetwork, TripletNetwork


def test_the_siamese_distance_is_that_of_its_two_embeddings():
    network = SiameseNetwork(Conv4(embedding_size=8, normalize=False), ContrastiveLoss()).eval()
    one, other = torch.rand(2, 5, 1, 28, 28)
    expected = [(network(a[None]) - network(b[None])).pow(2).sum().sqrt() for a, b in zip(one, other, strict=True)]
    torch.testing.assert_close(network.distance(one, other), torch.stack(expected))


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_lightnings_predict_embeds_the_test_table():
    data, network = (
        RetrievalData(Digits(image_size=16), evaluation_batch_size=200),
        TripletNetwork(Conv4(), TripletLoss()),
    )
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    found = torch.cat(trainer.predict(network, datamodule=data))
    table = data.splits.test
    images = to_float(table.batch(range(len(table))).images)
    torch.testing.assert_close(found, network.eval()(images), atol=1e-5, rtol=1e-4)


def test_a_batch_carries_the_groups_of_its_rows():
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1, 0])
    table = LabelledImages(
        InMemory(images), labels, ("a", "b"), list("wxyz"), torch.tensor([2, 0, 1, 2]), ("k", "l", "m")
    )
    assert table.batch([3, 1]).groups.tolist() == [2, 0]
    assert table.with_rotations().batch([4 + 1]).groups.tolist() == [3]
    assert LabelledImages(InMemory(images), labels, ("a", "b"), list("wxyz")).batch([3, 1]).groups is None


class Asking(BatchHardMiner):
    """Keeps what it is given."""

    def forward(self, embeddings, labels, ref_emb=None, ref_labels=None, own=None, groups=None, ref_groups=None):
        self.given = groups
        return super().forward(embeddings, labels, groups=groups)


def tiny_batch(groups=None):
    return Batch(torch.rand(6, 1, 28, 28), torch.arange(6) // 2, torch.arange(6) + 10, 0, groups)


def test_groups_go_to_a_miner_that_asks_for_them():
    groups = torch.tensor([5, 5, 0, 1, 1, 7])
    network = TripletNetwork(Conv4(), TripletLoss(), Asking(group_rule="other"))
    assert network.needs_groups
    network.training_step(tiny_batch(groups), 0)
    assert torch.equal(network.miner.given, groups)
    with pytest.raises(ConfigError, match=r"miner Asking chooses by group .* has no groups"):
        network.training_step(tiny_batch(), 0)


def test_other_miners_are_called_without_groups():
    for miner in (None, BatchHardMiner()):
        network = TripletNetwork(Conv4(), TripletLoss(), miner)
        assert not network.needs_groups
        assert network.training_step(tiny_batch(torch.zeros(6, dtype=torch.int64)), 0).isfinite()


def test_what_a_step_compared_is_kept():
    network = TripletNetwork(Conv4(), TripletLoss(), BatchHardMiner())
    batch = tiny_batch()
    network.training_step(batch, 0)
    record = network.last_step
    assert (record.batch, record.own, record.tuples) == (batch, 0, 6)
    assert record.labels is batch.labels
    assert record.ids is batch.ids
    assert record.embeddings.shape == (6, 64)
    assert not record.embeddings.requires_grad


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_embeddings_are_float32_or_wider(dtype, expected):
    network = TripletNetwork(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2)), TripletLoss()).to(dtype)
    assert network(torch.rand(3, 1, 3, 3)).dtype == expected
