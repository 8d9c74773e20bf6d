"""The networks outside a run: what they embed, and how Lightning's own `predict` uses them."""

import pytest
import torch
from pytorch_lightning import Trainer

from lossopt.data import Digits
from lossopt.data.module import RetrievalData, to_float
from lossopt.encoders import Conv4
from lossopt.losses import ContrastiveLoss, TripletLoss
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
