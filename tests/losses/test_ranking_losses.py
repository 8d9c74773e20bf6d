"""Smooth-AP and the recall@k surrogate against their definitions; where pytorch-metric-learning is right, and not."""

import math

import pytest
import torch
from pytorch_metric_learning import losses as pml_losses

from lossopt.losses import RecallAtKLoss, SmoothAPLoss
from lossopt.losses.ranking import soft_ranks


def rank(s, i, k, among, temperature):
    """1 + how many of the others are nearer to i than k is, by half where they are level."""
    return 1 + sum(1 / (1 + torch.exp(-(s[i, j] - s[i, k]) / temperature)) for j in among if j != k)


def ranked_rows(case):
    return [i for i in range(len(case.labels)) if case.positives(i) and case.negatives(i)]


def smooth_ap_by_definition(case, temperature):
    s = case.cosine

    def one(i):
        itself = [] if case.own is None else [case.itself(i)]
        positives = case.positives(i) + itself
        everything = positives + case.negatives(i)
        of_each = [rank(s, i, k, positives, temperature) / rank(s, i, k, everything, temperature) for k in positives]
        return 1 - sum(of_each) / len(positives)

    return [one(i) for i in ranked_rows(case)]


def test_smooth_ap(agrees, untidy_labels, reference):
    def definition(case):
        return smooth_ap_by_definition(case, 0.05)

    agrees(SmoothAPLoss(0.05), definition, untidy_labels, reference)


@pytest.mark.parametrize(("ks", "k_temperature"), [((1, 2, 4, 8, 16), 1.0), ((2,), 0.1)])
def test_recall_at_k(agrees, untidy_labels, reference, ks, k_temperature):
    def definition(case):
        s = case.cosine

        def one(i):
            positives = case.positives(i)
            ranks = [rank(s, i, p, positives + case.negatives(i), 0.3) for p in positives]
            recalls = []
            for k in ks:
                found = sum(1 / (1 + torch.exp(-(k - r) / k_temperature)) for r in ranks)
                recalls.append((found if found < k else k) / min(k, len(positives)))
            return 1 - sum(recalls) / len(ks)

        return [one(i) for i in ranked_rows(case)]

    agrees(RecallAtKLoss(ks, k_temperature, 0.3), definition, untidy_labels, reference)


def test_recall_does_not_exceed_one_where_positives_are_level():
    """Six equal positives share rank 3.5, so all six are found at k = 4: cut at 4 of 4, without a gradient."""
    x = torch.cat((torch.ones(7, 2), -torch.eye(2))).requires_grad_()
    labels = torch.tensor([0] * 7 + [1, 2])
    loss = RecallAtKLoss((4,), k_temperature=0.01)(x, labels)
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()


def test_ranks_become_whole_numbers():
    distances = torch.tensor([[0.3, 0.1, 0.2, 0.9], [0.5, 0.5, 0.5, 0.1]])
    columns = torch.tensor([[0, 3], [1, 2]])
    ranks = soft_ranks(distances, columns, 1e-3)
    torch.testing.assert_close(ranks, torch.tensor([[3.0, 4.0], [3.0, 3.0]]))


def p_by_k(classes, per_class, shuffled=False):
    labels = torch.arange(classes).repeat_interleave(per_class)
    if shuffled:
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    return labels


@pytest.mark.parametrize(("classes", "per_class", "of_peer"), [(4, 4, 0.0), (8, 4, 0.32), (2, 4, 0.40), (16, 2, 0.40)])
def test_classes_apart_have_a_smooth_ap_of_one(classes, per_class, of_peer):
    """A perfect ranking has a loss of 0 at every P x K; pytorch-metric-learning 2.9 only where P = K."""
    labels = p_by_k(classes, per_class)
    x = torch.eye(classes)[labels]
    assert SmoothAPLoss()(x, labels).item() == pytest.approx(0, abs=1e-6)
    assert pml_losses.SmoothAPLoss()(x, labels).item() == pytest.approx(of_peer, abs=0.01)
    mixed = p_by_k(classes, per_class, shuffled=True)
    assert SmoothAPLoss()(torch.eye(classes)[mixed], mixed).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("per_class", [3, 4, 8])
def test_smooth_ap_is_pytorch_metric_learnings_where_that_is_right(per_class):
    labels = p_by_k(per_class, per_class)
    x = torch.randn(len(labels), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(per_class))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, wanted = SmoothAPLoss(0.05)(ours, labels), pml_losses.SmoothAPLoss(0.05)(theirs, labels)
    got.backward()
    wanted.backward()
    torch.testing.assert_close(got, wanted.double(), rtol=1e-6, atol=1e-7)  # it sums in float32
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


def test_smooth_ap_of_64_rows_by_definition():
    """The paper's formula over whole matrices, 16 classes of 4 rows, in any order."""
    labels = p_by_k(16, 4, shuffled=True)
    x = torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    unit = x / x.norm(dim=1, keepdim=True)
    s, same = unit @ unit.T, (labels[:, None] == labels).double()
    others = 1 - torch.eye(64, dtype=torch.float64)
    level = torch.sigmoid((s[:, None] - s[:, :, None]) / 0.1) * others  # row i, positive k, column j
    precision = (1 + (level * same[:, None]).sum(2)) / (1 + level.sum(2))
    wanted = 1 - (same * precision).sum(1).div(4).mean()
    got = SmoothAPLoss(0.1)(x, labels)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(torch.autograd.grad(got, x)[0], torch.autograd.grad(wanted, x)[0])


@pytest.mark.parametrize("make", [SmoothAPLoss, lambda t: RecallAtKLoss(rank_temperature=t, k_temperature=t)])
@pytest.mark.parametrize("temperature", [1e-20, 1e-6, 1e6])
def test_no_temperature_overflows(make, temperature):
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    x[1] = x[4]
    x.requires_grad_()
    loss = make(temperature)(x, labels)
    loss.backward()
    assert 0 <= loss <= 1
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf])
def test_temperatures_must_be_positive(bad):
    with pytest.raises(ValueError, match=f"SmoothAPLoss temperature must be a finite number > 0, got {bad}"):
        SmoothAPLoss(bad)
    for name in ("k_temperature", "rank_temperature"):
        with pytest.raises(ValueError, match=f"RecallAtKLoss {name} must be a finite number > 0, got {bad}"):
            RecallAtKLoss(**{name: bad})


@pytest.mark.parametrize("bad", [(), (0, 1), (1, -2)])
def test_ks_are_one_or_more(bad):
    with pytest.raises(ValueError, match=r"RecallAtKLoss ks must be whole numbers of 1 or more, got \("):
        RecallAtKLoss(bad)
