"""Loss, miner and network agree on pairs or triplets: for ours, for pytorch-metric-learning's, and for a stranger's."""

import random

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners

from lossopt import losses, miners
from lossopt.errors import ConfigError
from lossopt.losses.embedding import EmbeddingLoss
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
OUR_MINERS = [getattr(miners, name) for name in miners.__all__ if name.endswith("Miner")]
OUR_PAIR_MINERS = ", ".join(sorted(m.__name__ for m in OUR_MINERS if m.tuples == "pairs"))
OUR_TRIPLET_MINERS = ", ".join(sorted(m.__name__ for m in OUR_MINERS if m.tuples == "triplets"))
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


@pytest.mark.parametrize("name", [name for name in losses.__all__ if issubclass(getattr(losses, name), EmbeddingLoss)])
def test_our_losses_declare_themselves_and_need_positives(name):
    loss_fn = getattr(losses, name)()
    assert tuples_of(loss_fn) == type(loss_fn).tuples
    assert needs_positives(loss_fn)
    for accepts in ("pairs", "triplets"):
        if loss_fn.tuples in (accepts, "batch"):
            check_agreement("Net", accepts, loss_fn, None)
            continue
        with pytest.raises(ConfigError, match=f"its loss {name} consumes"):
            check_agreement("Net", accepts, loss_fn, None)


def test_a_memory_consumes_what_its_loss_does():
    assert tuples_of(losses.CrossBatchMemory(losses.TripletLoss(), 8)) == "triplets"
    with pytest.raises(ConfigError, match="CrossBatchMemory consumes triplets"):
        check_agreement("Net", "pairs", losses.CrossBatchMemory(losses.TripletLoss(), 8), None)


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
            f".*Use one of {OUR_TRIPLET_MINERS}, or another miner that",
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
            f"TripletMarginMiner returns triplets .*Use one of {OUR_PAIR_MINERS}, or",
        ),
        (
            "triplets",
            losses.ContrastiveLoss(),
            None,
            "loss ContrastiveLoss consumes pairs .*RankingHingeLoss, SoftMarginTripletLoss, TripletLoss, or another "
            "loss that consumes triplets(; or one that looks at whole rows: .*SmoothAPLoss.*)?[.]$",
        ),
        ("pairs", losses.RankingHingeLoss(), None, "RankingHingeLoss consumes triplets .*ContrastiveLoss, Cosine"),
    ],
)
def test_disagreement_is_refused_with_the_choices(accepts, loss_fn, miner, message):
    with pytest.raises(ConfigError, match=message):
        check_agreement("Net", accepts, loss_fn, miner)


class WholeRows(torch.nn.Module):
    """A stranger's loss that declares to look at whole rows."""

    tuples = "batch"

    def forward(self, embeddings, labels, indices_tuple=None):
        return embeddings.sum()


@pytest.mark.parametrize("accepts", ["pairs", "triplets"])
def test_losses_on_whole_rows_go_with_every_network_and_no_miner(accepts):
    check_agreement("Net", accepts, WholeRows(), None)
    miner = miners.HardPairMiner() if accepts == "pairs" else miners.BatchHardMiner()
    fitting = "ContrastiveLoss" if accepts == "pairs" else "TripletLoss"
    message = (
        f"Net's loss WholeRows looks at whole rows.*takes no indices. Leave out the miner {type(miner).__name__}, "
    )
    with pytest.raises(ConfigError, match=f"{message}or take a loss that consumes {accepts}: .*{fitting}"):
        check_agreement("Net", accepts, WholeRows(), miner)


TAKES_NO_INDICES = {
    "InstanceLoss": pml_losses.InstanceLoss(),
    "MultipleLosses": pml_losses.MultipleLosses([pml_losses.NCALoss()], miners=[pml_miners.BatchHardMiner()]),
    "P2SGradLoss": pml_losses.P2SGradLoss(8, 4),
    "PNPLoss": pml_losses.PNPLoss(),
    "RankedListLoss": pml_losses.RankedListLoss(margin=1.0, Tn=1.0),
}
WEIGHED_BY_A_MINER = [
    pml_losses.SmoothAPLoss(),
    pml_losses.FastAPLoss(),
    pml_losses.NCALoss(),
    pml_losses.ProxyAnchorLoss(4, 8),
    pml_losses.ArcFaceLoss(4, 8),
    pml_losses.SoftTripleLoss(4, 8),
    pml_losses.NPairsLoss(),
    pml_losses.DynamicSoftMarginLoss(),
    pml_losses.CrossBatchMemory(pml_losses.ContrastiveLoss(), 8, 64),
]
TAKES_NO_LABELS = [
    pml_losses.VICRegLoss(),
    pml_losses.ManifoldLoss(l=8),
    pml_losses.SelfSupervisedLoss(pml_losses.TripletMarginLoss()),
]


def named(component):
    return type(component).__name__


@pytest.mark.parametrize(("name", "loss_fn"), TAKES_NO_INDICES.items())
@pytest.mark.parametrize(
    ("accepts", "miner"), [("pairs", miners.HardPairMiner()), ("triplets", miners.BatchHardMiner())]
)
def test_their_losses_that_take_no_indices_take_no_miner(name, loss_fn, accepts, miner):
    check_agreement("Net", accepts, loss_fn, None)
    with pytest.raises(
        ConfigError, match=f"{name} takes no {accepts} of a miner .* Leave out the miner {named(miner)}"
    ):
        check_agreement("Net", accepts, loss_fn, miner)


@pytest.mark.parametrize("loss_fn", WEIGHED_BY_A_MINER, ids=named)
def test_their_losses_that_a_miner_weighs_take_one(loss_fn):
    for accepts, miner in (("pairs", miners.HardPairMiner()), ("triplets", miners.BatchHardMiner())):
        check_agreement("Net", accepts, loss_fn, None)
        check_agreement("Net", accepts, loss_fn, miner)
        assert loss_fn(*batch(), miner(*batch())).isfinite()


@pytest.mark.parametrize("loss_fn", TAKES_NO_LABELS, ids=named)
def test_their_losses_on_two_views_are_refused(loss_fn):
    with pytest.raises(ConfigError, match=f"{named(loss_fn)} takes no labels.* Take a loss that consumes triplets: "):
        check_agreement("Net", "triplets", loss_fn, None)


def test_a_loss_that_nobody_can_tell_anything_about_is_accepted():
    class OfAnotherSize(torch.nn.Linear):
        def forward(self, embeddings, labels, indices_tuple=None):
            return super().forward(embeddings[:, :77]).sum()

    check_agreement("Net", "triplets", OfAnotherSize(77, 1), miners.BatchHardMiner())


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
