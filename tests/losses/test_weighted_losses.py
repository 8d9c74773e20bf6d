"""Multi-similarity, circle, the lifted structures and ranked list against their definitions and their peers."""

import math

import pytest
import torch
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning import reducers as pml_reducers

from lossopt.losses import (
    CircleLoss,
    GeneralizedLiftedStructureLoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    RankedListLoss,
)
from lossopt.miners import HardPairMiner


def rows_of(case):
    return [(i, case.positives(i), case.negatives(i)) for i in range(len(case.labels))]


def over_all_rows(case, one):
    terms = [one(*row) for row in rows_of(case)]
    return terms, len(terms), sum(bool(p or n) for _, p, n in rows_of(case))


def over_rows_with_both(case, one):
    return [one(*row) for row in rows_of(case) if row[1] and row[2]]


def test_multi_similarity(agrees, untidy_labels, reference):
    def definition(case):
        s = case.cosine

        def one(i, positives, negatives):
            pull = 1 + sum(torch.exp(-3 * (s[i, p] - 0.4)) for p in positives) + 0 * case.x.sum()
            push = 1 + sum(torch.exp(20 * (s[i, n] - 0.4)) for n in negatives) + 0 * case.x.sum()
            return torch.log(pull) / 3 + torch.log(push) / 20

        return over_all_rows(case, one)

    agrees(MultiSimilarityLoss(3.0, 20.0, 0.4), definition, untidy_labels, reference)


def test_circle(agrees, untidy_labels, reference):
    def definition(case):
        s, m = case.cosine, 0.3

        def one(i, positives, negatives):
            pull = sum(torch.exp(-10 * max(0, 1 + m - s[i, p].item()) * (s[i, p] - (1 - m))) for p in positives)
            push = sum(torch.exp(10 * max(0, s[i, n].item() + m) * (s[i, n] - m)) for n in negatives)
            return torch.log(1 + pull * push)

        return over_rows_with_both(case, one)

    agrees(CircleLoss(0.3, 10.0), definition, untidy_labels, reference)


def positive_part(value):
    return value if value > 0 else 0 * value


@pytest.mark.parametrize("margin", [1.0, -1.0])
def test_generalized_lifted_structure(agrees, untidy_labels, reference, margin):
    def definition(case):
        d = case.euclidean

        def one(i, positives, negatives):
            far = sum(d[i, p].exp() for p in positives)
            near = sum(torch.exp(margin - d[i, n]) for n in negatives)
            return positive_part(torch.log(far) + torch.log(near))

        return over_rows_with_both(case, one)

    agrees(GeneralizedLiftedStructureLoss(margin), definition, untidy_labels, reference)


@pytest.mark.parametrize("margin", [1.0, -1.0])
def test_lifted_structure(agrees, untidy_labels, reference, margin):
    def definition(case):
        d = case.euclidean
        anchors_not_of = {
            j: [i for i, own in enumerate(case.labels) if own != case.ref_labels[j]] for j in range(d.shape[1])
        }

        def one(i, p, negatives):
            near = sum(torch.exp(margin - d[i, n]) for n in negatives)
            near = near + sum(torch.exp(margin - d[k, p]) for k in anchors_not_of[p])
            return positive_part(d[i, p] + torch.log(near)) ** 2 / 2

        return [one(i, p, n) for i, positives, n in rows_of(case) for p in positives if n or anchors_not_of[p]]

    agrees(LiftedStructureLoss(margin), definition, untidy_labels, reference)


def test_lifted_structure_of_unordered_pairs_is_the_paper():
    """Equation 4 has each pair once: 1/(2 |P|) times the sum of squares."""
    x, labels = random_batch(4, 3, dtype=torch.float64)
    d = torch.cdist(x, x)
    total, count = 0.0, 0
    for i in range(12):
        for j in range(i):
            if labels[i] == labels[j]:
                near = torch.exp(1 - d[[i, j]])[:, labels != labels[i]].sum()
                total, count = total + positive_part(torch.log(near) + d[i, j]) ** 2, count + 1
    torch.testing.assert_close(LiftedStructureLoss()(x, labels), total / (2 * count))


@pytest.mark.parametrize(("Tn", "Tp"), [(10.0, 0.0), (0.0, 4.0)])
def test_ranked_list(agrees, untidy_labels, reference, Tn, Tp):
    def definition(case):
        d, alpha, margin = case.euclidean, 3.1, 1.3

        def weighted(values, weights):
            return (
                sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights) if values else 0 * case.x.sum()
            )

        def one(i, positives, negatives):
            far = [d[i, p] - (alpha - margin) for p in positives if d[i, p] > alpha - margin]
            near = [alpha - d[i, n] for n in negatives if d[i, n] < alpha]
            pull = weighted(far, [math.exp(Tp * v.item()) for v in far])
            return 0.3 * pull + 0.7 * weighted(near, [math.exp(Tn * v.item()) for v in near])

        return over_all_rows(case, one)

    agrees(RankedListLoss(1.3, 3.1, Tn, Tp, 0.7), definition, untidy_labels, reference)


def random_batch(classes, per_class, d=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(classes)
    labels = torch.arange(classes).repeat_interleave(per_class)[
        torch.randperm(classes * per_class, generator=generator)
    ]
    x = torch.randn(classes, d, generator=generator)[labels] + torch.randn(len(labels), d, generator=generator)
    return torch.nn.functional.normalize(x).to(dtype), labels


EUCLIDEAN = pml_distances.LpDistance(normalize_embeddings=False)
MEAN = pml_reducers.MeanReducer()
PEERS = {
    "multi-similarity": (MultiSimilarityLoss(), pml_losses.MultiSimilarityLoss()),
    "circle": (CircleLoss(), pml_losses.CircleLoss(reducer=MEAN)),
    "lifted": (LiftedStructureLoss(), pml_losses.LiftedStructureLoss(distance=EUCLIDEAN)),
    "generalized lifted": (
        GeneralizedLiftedStructureLoss(),
        pml_losses.GeneralizedLiftedStructureLoss(distance=EUCLIDEAN),
    ),
}


def value_and_gradient(loss_fn, x, labels, indices=None):
    x = x.clone().requires_grad_()
    loss = loss_fn(x, labels, indices)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def same_numbers(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-5 * theirs[1].abs().max().item())


@pytest.mark.parametrize("classes", [6, 64])
@pytest.mark.parametrize("name", PEERS)
def test_pytorch_metric_learning_gives_the_same(name, classes):
    if name == "lifted":
        classes = min(classes, 24)  # its memory is positive times negative pairs
    x, labels = random_batch(classes, 4)
    same_numbers(*(value_and_gradient(loss_fn, x, labels) for loss_fn in PEERS[name]))


@pytest.mark.parametrize("name", PEERS)
def test_pytorch_metric_learning_gives_the_same_on_listed_pairs(name):
    """Multi-similarity also where the miner leaves anchors out, which stay in the mean."""
    x, labels = random_batch(6, 4)
    indices = HardPairMiner()(x, labels)
    if name == "multi-similarity":
        indices = pml_miners.MultiSimilarityMiner(epsilon=-0.4)(x, labels)
        assert 0 < len(torch.cat((indices[0], indices[2])).unique()) < 24
    same_numbers(*(value_and_gradient(loss_fn, x, labels, indices) for loss_fn in PEERS[name]))


def test_ranked_list_is_pytorch_metric_learnings_but_for_its_small_numbers():
    """It adds 1e-5 per row to the sum of weights, and differentiates the weights unless they are all 1."""
    x, labels = random_batch(6, 4)
    peer = pml_losses.RankedListLoss(0.4, 5.0, distance=EUCLIDEAN)
    torch.testing.assert_close(RankedListLoss(Tn=5.0)(x, labels), peer(x, labels), rtol=3e-4, atol=0)
    flat = pml_losses.RankedListLoss(0.4, 0.0, distance=EUCLIDEAN)
    (got, ours), (wanted, theirs) = (value_and_gradient(fn, x, labels) for fn in (RankedListLoss(Tn=0.0), flat))
    torch.testing.assert_close(got, wanted, rtol=3e-4, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["lifted", "foreign lifted"])
def test_lifted_pairs_listed_against_a_reference(name):
    """All pairs listed are all pairs, also where the reference is other rows."""
    x, labels = random_batch(4, 3, dtype=torch.float64)
    y, ref_labels = (x, labels) if name == "lifted" else (x[:7] * 1.1 + 0.1, labels[:7])
    same = labels[:, None] == ref_labels
    if y is x:
        same.fill_diagonal_(False)
    listed = (*same.nonzero(as_tuple=True), *(labels[:, None] != ref_labels).nonzero(as_tuple=True))
    reference = () if y is x else (y, ref_labels)
    whole, again = (LiftedStructureLoss()(x, labels, indices, *reference) for indices in (None, listed))
    torch.testing.assert_close(whole, again)


EXTREME = [
    MultiSimilarityLoss(1e6, 1e6),
    CircleLoss(0.4, 1e6),
    LiftedStructureLoss(50.0, "inner"),
    GeneralizedLiftedStructureLoss(50.0, "inner"),
    RankedListLoss(Tn=1e6, Tp=1e6),
]


@pytest.mark.parametrize("loss_fn", EXTREME, ids=lambda loss_fn: type(loss_fn).__name__)
def test_nothing_overflows_or_is_lost(loss_fn):
    x, labels = random_batch(5, 3)
    for rows in (x, torch.eye(16)[labels] * 30):  # the second: nothing but underflow
        loss, gradient = value_and_gradient(loss_fn, rows, labels)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("margin", [0.4, 1.2])
def test_ranked_list_collapsed(margin):
    """pytorch-metric-learning gives 0: it passes over negatives at distance 0."""
    labels = torch.arange(12) // 3
    loss_fn = RankedListLoss(margin, imbalance=0.3)
    assert loss_fn(torch.ones(12, 4), labels).item() == pytest.approx(loss_fn.collapsed_value)
    assert loss_fn.collapsed_value == pytest.approx(0.36)


NAN_OR_INFINITE = [math.nan, math.inf]
BAD = [
    *((MultiSimilarityLoss, {name: bad}, name) for name in ("alpha", "beta") for bad in (0, -1.0, math.nan, math.inf)),
    *((MultiSimilarityLoss, {"base": bad}, "base") for bad in NAN_OR_INFINITE),
    *((CircleLoss, {"gamma": bad}, "gamma") for bad in (0, -1.0, math.nan, math.inf)),
    *((CircleLoss, {"m": bad}, "m must be a finite") for bad in NAN_OR_INFINITE),
    *((make, {"margin": math.nan}, "margin") for make in (LiftedStructureLoss, GeneralizedLiftedStructureLoss)),
    *((RankedListLoss, {"margin": bad}, "margin") for bad in (0, -1.0, math.nan, math.inf)),
    *((RankedListLoss, {"alpha": bad}, "alpha must be finite and at least the margin, 0.4") for bad in (0.3, math.inf)),
    *((RankedListLoss, {name: bad}, name) for name in ("Tn", "Tp") for bad in (-1.0, math.nan, math.inf)),
    *((RankedListLoss, {"imbalance": bad}, "imbalance") for bad in (-0.1, 1.1, math.nan)),
]


@pytest.mark.parametrize(("make", "arguments", "message"), BAD)
def test_bad_arguments(make, arguments, message):
    with pytest.raises(ValueError, match=f"{make.__name__} {message}.*got {next(iter(arguments.values()))}"):
        make(**arguments)
