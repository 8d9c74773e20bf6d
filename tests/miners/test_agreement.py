"""Loss, miner and network agree on pairs or triplets: for ours, for pytorch-metric-learning's, and for a stranger's."""

import random

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners

from lossopt import losses, miners
from lossopt.errors import ConfigError
from lossopt.miners.agreement import check_agreement, needs_positives, tuples_of

PML_MINERS = {
    "AngularMiner": "triplets",
    "BatchEasyHardMiner": "pairs",
    "BatchHardMiner": "triplets",
    "DistanceWeightedMiner": "triplets",
    "HDCMiner": "pairs",
    "MultiSimilarityMiner": "pairs",
    "PairMarginMiner": "pairs",
    "TripletMarginMiner": "triplets",
    "UniformHistogramMiner": "pairs",
}
OUR_MINERS = [
    miners.BatchHardMiner,
    miners.EasyPositiveMiner,
    miners.HardPairMiner,
    miners.RandomPairMiner,
    miners.RandomTripletMiner,
    miners.SemiHardMiner,
]
TUPLE_LOSSES = [
    pml_losses.AngularLoss,
    pml_losses.CircleLoss,
    pml_losses.ContrastiveLoss,
    pml_losses.GeneralizedLiftedStructureLoss,
    pml_losses.LiftedStructureLoss,
    pml_losses.MarginLoss,
    pml_losses.MultiSimilarityLoss,
    pml_losses.NTXentLoss,
    pml_losses.SignalToNoiseRatioContrastiveLoss,
    pml_losses.SupConLoss,
    pml_losses.TripletMarginLoss,
    pml_losses.TupletMarginLoss,
]


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 8, generator=generator), torch.arange(16) % 4


def test_every_miner_of_pytorch_metric_learning_is_known():
    """EmbeddingsAlreadyPackagedAsTriplets ignores labels and wants rows in threes; it returns triplets."""
    known = {*PML_MINERS, "BaseMiner", "EmbeddingsAlreadyPackagedAsTriplets"}
    assert {name for name in dir(pml_miners) if isinstance(getattr(pml_miners, name), type)} == known
    assert tuples_of(pml_miners.EmbeddingsAlreadyPackagedAsTriplets()) == "triplets"


@pytest.mark.parametrize(("name", "kind"), PML_MINERS.items())
def test_their_miners_are_asked_and_drop_into_our_losses(name, kind):
    miner = getattr(pml_miners, name)()
    assert tuples_of(miner) == kind
    x, labels = batch()
    loss_fn = losses.ContrastiveLoss() if kind == "pairs" else losses.TripletLoss()
    check_agreement("Network", kind, loss_fn, miner)
    assert loss_fn(x, labels, miner(x, labels)).isfinite()


@pytest.mark.parametrize("make", OUR_MINERS)
@pytest.mark.parametrize("make_loss", TUPLE_LOSSES)
def test_our_miners_drop_into_their_losses(make, make_loss):
    x, labels = batch()
    x.requires_grad_()
    loss_fn, miner = make_loss(), make()
    assert tuples_of(loss_fn) is None
    assert needs_positives(loss_fn)
    check_agreement("Network", miner.tuples, loss_fn, miner)
    loss_fn(x, labels, miner(x, labels)).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", losses.__all__)
def test_our_losses_declare_themselves_and_need_positives(name):
    loss_fn = getattr(losses, name)()
    assert tuples_of(loss_fn) == type(loss_fn).tuples
    assert needs_positives(loss_fn)


@pytest.mark.parametrize(
    "loss_fn",
    [
        pml_losses.ArcFaceLoss(4, 8),
        pml_losses.CosFaceLoss(4, 8),
        pml_losses.NormalizedSoftmaxLoss(4, 8),
        pml_losses.ProxyAnchorLoss(4, 8),
        pml_losses.ProxyNCALoss(4, 8),
        pml_losses.SoftTripleLoss(4, 8),
    ],
    ids=lambda loss_fn: type(loss_fn).__name__,
)
def test_losses_with_class_weights_need_no_positives(loss_fn):
    assert not needs_positives(loss_fn)
    check_agreement("Network", "triplets", loss_fn, None)


def test_a_learnt_margin_is_no_proxy():
    assert needs_positives(pml_losses.MarginLoss(learn_beta=True, num_classes=4))
    assert needs_positives(lambda embeddings, labels: embeddings.sum())


@pytest.mark.parametrize(
    ("accepts", "loss_fn", "miner", "message"),
    [
        (
            "triplets",
            losses.TripletLoss(),
            miners.HardPairMiner(),
            r"^Net trains on triplets \(anchor, positive, negative\), but its miner HardPairMiner returns pairs "
            ".*Use one of BatchHardMiner, EasyPositiveMiner, RandomTripletMiner, SemiHardMiner, or another miner that",
        ),
        (
            "triplets",
            losses.TripletLoss(),
            pml_miners.MultiSimilarityMiner(),
            "miner MultiSimilarityMiner returns pairs",
        ),
        (
            "pairs",
            losses.ContrastiveLoss(),
            pml_miners.TripletMarginMiner(),
            "TripletMarginMiner returns triplets .*Use one of HardPairMiner, RandomPairMiner, or",
        ),
        (
            "triplets",
            losses.ContrastiveLoss(),
            None,
            "loss ContrastiveLoss consumes pairs .*RankingHingeLoss, SoftMarginTripletLoss, TripletLoss, or another "
            "loss that consumes triplets.$",
        ),
        ("pairs", losses.RankingHingeLoss(), None, "RankingHingeLoss consumes triplets .*ContrastiveLoss, Cosine"),
    ],
)
def test_disagreement_is_refused_with_the_choices(accepts, loss_fn, miner, message):
    with pytest.raises(ConfigError, match=message):
        check_agreement("Net", accepts, loss_fn, miner)


class Restless(torch.nn.Module):
    """A stranger's miner: draws from every global generator, counts its calls, and warns."""

    def __init__(self, columns):
        super().__init__()
        self.columns, self.calls = columns, 0

    def forward(self, embeddings, labels, ref_emb=None, ref_labels=None):
        import warnings

        self.calls += 1
        warnings.warn("restless", stacklevel=1)
        torch.rand(3), np.random.rand(3), random.random()
        return [torch.tensor([0])] * self.columns


@pytest.mark.parametrize(("columns", "kind"), [(2, None), (3, "triplets"), (4, "pairs")])
def test_asking_a_stranger_leaves_no_trace(columns, kind):
    miner = Restless(columns)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert tuples_of(miner) == kind
    assert miner.calls == 0
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_what_cannot_be_told_is_accepted():
    def raises(embeddings, labels):
        raise RuntimeError("not on 12 rows")

    assert tuples_of(raises) is None
    check_agreement("Net", "pairs", raises, raises)


def test_a_class_may_declare_itself():
    class Mine(Restless):
        tuples = "pairs"

    assert tuples_of(Mine(3)) == "pairs"
