"""NT-Xent, SupCon and N-pairs against their definitions and against pytorch-metric-learning."""

import math

import pytest
import torch
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import reducers as pml_reducers

from lossopt.losses import NPairsLoss, NTXentLoss, SupConLoss
from lossopt.miners import HardPairMiner


def test_nt_xent(agrees, untidy_labels, reference):
    def definition(case):
        s = case.cosine / 0.2
        return [
            -torch.log(s[i, p].exp() / (s[i, p].exp() + sum(s[i, n].exp() for n in case.negatives(i))))
            for i in range(len(s))
            for p in case.positives(i)
            if case.negatives(i)
        ]

    agrees(NTXentLoss(0.2), definition, untidy_labels, reference)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_sup_con(agrees, untidy_labels, reference, distance):
    def definition(case):
        s = {"cosine": case.cosine, "euclidean": -case.euclidean}[distance] / 0.7

        def one(i):
            total = sum(s[i, j].exp() for j in case.positives(i) + case.negatives(i))
            return -sum(torch.log(s[i, p].exp() / total) for p in case.positives(i)) / len(case.positives(i))

        return [one(i) for i in range(len(s)) if case.positives(i)]

    agrees(SupConLoss(0.7, distance), definition, untidy_labels, reference)


def n_pairs_by_definition(case, s):
    """Every pair of places i < j is a batch of the paper: an anchor and a positive of each class."""
    own = case.own
    rows = range(len(case.ref_labels))
    mine = [] if own is None else range(own, own + len(case.labels))
    of_class = {}
    for j in [*mine, *(j for j in rows if j not in mine)]:
        of_class.setdefault(case.ref_labels[j], []).append(j)
    terms = []
    for i, label in enumerate(case.labels):
        for place, p in enumerate(of_class.get(label, [])):
            rivals = [members[place] for members in of_class.values() if len(members) > place]
            later = own is None or place > of_class[label].index(own + i)
            if later and len(rivals) > 1:
                terms.append(torch.log(1 + sum(torch.exp(s[i, q] - s[i, p]) for q in rivals if q != p)))
    return terms


def test_n_pairs(agrees, untidy_labels, reference):
    agrees(NPairsLoss(), lambda case: n_pairs_by_definition(case, case.x @ case.y.T), untidy_labels, reference)


def test_n_pairs_with_short_rows(agrees, untidy_labels):
    def definition(case):
        terms = n_pairs_by_definition(case, case.x @ case.y.T)
        length = sum(row @ row for row in case.x) / max(len(case.x), 1)
        return [term + 0.02 * length for term in terms]

    agrees(NPairsLoss(0.02), definition, untidy_labels, "batch")


def test_n_pairs_on_cosine(agrees):
    agrees(
        NPairsLoss(distance="cosine"), lambda case: n_pairs_by_definition(case, case.cosine), [0, 1, 1, 0, 1], "batch"
    )


def random_batch(classes, per_class, d=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(classes)
    labels = torch.arange(classes).repeat_interleave(per_class)[
        torch.randperm(classes * per_class, generator=generator)
    ]
    return torch.randn(len(labels), d, generator=generator, dtype=dtype), labels


def same_as_peer(ours, peer, x, labels, indices=None):
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, wanted = ours(mine, labels, indices), peer(theirs, labels, indices)
    got.backward()
    wanted.backward()
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [16, 256])
def test_n_pairs_is_pytorch_metric_learnings_for_two_rows_per_class(rows):
    """Its inner product is of unit rows, against the paper's advice, unless told otherwise."""
    peer = pml_losses.NPairsLoss(distance=pml_distances.DotProductSimilarity(normalize_embeddings=False))
    same_as_peer(NPairsLoss(), peer, *random_batch(rows // 2, 2))
    same_as_peer(NPairsLoss(distance="cosine"), pml_losses.NPairsLoss(), *random_batch(rows // 2, 2))


def test_n_pairs_of_two_views_is_the_paper():
    """Rows and reference are the pairs of the paper; also what pytorch-metric-learning makes of the two together."""
    x, labels = random_batch(10, 1)
    y = x + torch.randn(10, 16, generator=torch.Generator().manual_seed(3))
    wanted = torch.nn.functional.cross_entropy(x @ y.T, torch.arange(10))
    torch.testing.assert_close(NPairsLoss()(x, labels, None, y, labels), wanted)
    torch.testing.assert_close(NPairsLoss()(torch.cat((x, y)), labels.repeat(2)), wanted)


@pytest.mark.parametrize("rows", [24, 96])
def test_nt_xent_is_pytorch_metric_learnings(rows):
    same_as_peer(NTXentLoss(0.3), pml_losses.NTXentLoss(0.3), *random_batch(rows // 3, 3))


def test_nt_xent_of_listed_pairs_is_pytorch_metric_learnings():
    x, labels = random_batch(8, 3)
    same_as_peer(NTXentLoss(0.3), pml_losses.NTXentLoss(0.3), x, labels, HardPairMiner()(x, labels))


@pytest.mark.parametrize("rows", [24, 256])
def test_sup_con_is_pytorch_metric_learnings(rows):
    """Its mean is over the losses that are not 0: the same where every row has a positive."""
    same_as_peer(SupConLoss(0.2), pml_losses.SupConLoss(0.2), *random_batch(rows // 4, 4))


def test_sup_con_of_listed_pairs_is_pytorch_metric_learnings():
    x, labels = random_batch(8, 3)
    peer = pml_losses.SupConLoss(0.2, reducer=pml_reducers.AvgNonZeroReducer())
    same_as_peer(SupConLoss(0.2), peer, x, labels, HardPairMiner()(x, labels))


def test_nt_xent_of_two_views_is_the_cross_entropy_of_info_nce():
    x, labels = random_batch(12, 1)
    y = torch.randn(12, 16, generator=torch.Generator().manual_seed(1))
    unit = torch.nn.functional.normalize
    wanted = torch.nn.functional.cross_entropy(unit(x) @ unit(y).T / 0.07, torch.arange(12))
    torch.testing.assert_close(NTXentLoss()(x, labels, None, y, labels), wanted)


@pytest.mark.parametrize("make", [NTXentLoss, SupConLoss])
@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e6])
def test_no_temperature_overflows(make, temperature):
    x, labels = random_batch(4, 4)
    x.requires_grad_()
    loss = make(temperature)(x, labels)
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("loss_fn", [NTXentLoss(), SupConLoss(), NPairsLoss()])
def test_classes_far_apart(loss_fn):
    """All that is left underflows: NT-Xent and N-pairs go to 0, SupCon to the logarithm of the number of positives."""
    x = (torch.eye(4).repeat(3, 1) * 100).requires_grad_()
    loss = loss_fn(x, torch.arange(4).repeat(3))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2) if isinstance(loss_fn, SupConLoss) else 0, abs=5e-4)
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf])
def test_bad_arguments(bad):
    for make in (NTXentLoss, SupConLoss):
        with pytest.raises(ValueError, match=f"{make.__name__} temperature must be a finite number > 0, got {bad}"):
            make(bad)
    if bad != 0:
        with pytest.raises(ValueError, match=f"NPairsLoss l2_weight must be a finite number > 0, got {bad}"):
            NPairsLoss(bad)
