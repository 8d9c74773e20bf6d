"""The losses of the catalogue; those that measure the same thing share an axis, to be laid over one another."""

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from lossopt.lab.entries import Entry, slider
from lossopt.losses import (
    ContrastiveLoss,
    CosineEmbeddingLoss,
    HingeEmbeddingLoss,
    HingeLoss,
    MSLELoss,
    MultiClassHingeLoss,
    RankingHingeLoss,
    SquaredHingeLoss,
    TripletLoss,
)
from lossopt.losses.embedding import PairLoss

ERROR = np.linspace(-3, 3, 121)
SCORE = np.linspace(-4, 4, 129)
PROBABILITY = np.linspace(0.01, 0.99, 99)
DISTANCE = np.linspace(0, 3, 121)
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MARGINS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
DISTANCES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 2.0)
BENDS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5)
_ESL = "Hastie, Tibshirani & Friedman 2009, The elements of statistical learning, section 10.6"

_regression = partial(Entry, family="regression", x_label="error e = prediction − target", x=ERROR)
_scored = partial(Entry, family="classification", x_label="score s; the target y is 1", x=SCORE)
_embedding = partial(Entry, family="embedding", x_label="distance d of the pair", x=DISTANCE)


def _first_of_three(x: Tensor) -> Tensor:
    return torch.stack((x, torch.zeros_like(x), torch.zeros_like(x)), 1)


def _shares(first: float, x: Tensor) -> Tensor:
    """(n, 3): the first class's share, the rest in equal parts."""
    return torch.tensor([first, (1 - first) / 2, (1 - first) / 2], dtype=x.dtype).expand(len(x), 3)


def _zeros(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.int64)


def _multi_class_hinge(x: Tensor, margin: float) -> Tensor:
    scores = torch.stack((x, torch.zeros_like(x), torch.ones_like(x)), 1)
    return MultiClassHingeLoss(margin, reduction="none")(scores, _zeros(x))


def _penalised_hinge(x: Tensor, penalty: float) -> Tensor:
    """The penalty is one number for all weights: each point is a classifier of its own."""
    loss_fn, features = MultiClassHingeLoss(weight_penalty=penalty), torch.ones(1, 1, dtype=x.dtype)
    weights = [_first_of_three(weight[None]).T for weight in x]
    return torch.stack([loss_fn(features @ weight.T, _zeros(features), weight) for weight in weights])


def _divergence(x: Tensor, share: float) -> Tensor:
    target = torch.tensor([share, 1 - share], dtype=x.dtype).expand(len(x), 2)
    return nn.KLDivLoss(reduction="none")(torch.stack((x, 1 - x), 1).log(), target).sum(1)


def _pairs(loss: PairLoss, distance: Tensor, same: bool) -> Tensor:
    return loss.per_pair(distance, torch.full_like(distance, same, dtype=torch.bool))


REGRESSION: tuple[Entry, ...] = (
    _regression(
        name="MSE",
        formula="mean of e²",
        says="Twice the error costs four times as much, so a few bad targets rule the fit. The best constant is the "
        "mean.",
        source=_ESL,
        kind=nn.MSELoss,
        at=lambda x, _: nn.MSELoss(reduction="none")(x, torch.zeros_like(x)),
        edge="The gradient goes to 0 with the error: the last steps are small by themselves.",
    ),
    _regression(
        name="L2",
        formula="sum of e²",
        says="The squared error summed instead of averaged. For one number it is the MSE; for n numbers it is n times "
        "as large, and so is its gradient: the learning rate has to know the size of batch and image.",
        source=_ESL,
        kind=nn.MSELoss,
        at=lambda x, _: torch.stack([nn.MSELoss(reduction="sum")(e, torch.zeros_like(e)) for e in x]),
        edge='torch.nn.MSELoss with reduction "sum".',
    ),
    _regression(
        name="MAE (L1)",
        formula="mean of |e|",
        says="Every error pulls with the same strength, so a bad target weighs no more than another. The best "
        "constant is the median.",
        source=_ESL,
        kind=nn.L1Loss,
        at=lambda x, _: nn.L1Loss(reduction="none")(x, torch.zeros_like(x)),
        edge="At error 0 torch takes slope 0; beside it the slope is −1 or 1, so steps of one size jump about the "
        "target.",
    ),
    _regression(
        name="smooth L1",
        formula="e² / (2 β) if |e| < β, else |e| − β / 2",
        says="Squared near 0, absolute far away; the slope far away stays 1, whatever β.",
        source="Girshick 2015, ICCV, Fast R-CNN, eq. 3 (β = 1)",
        kind=nn.SmoothL1Loss,
        at=lambda x, beta: nn.SmoothL1Loss(reduction="none", beta=beta)(x, torch.zeros_like(x)),
        slider=slider("beta", BENDS, 1.0),
        edge="Huber's loss divided by β. With β = 0 it is the MAE.",
    ),
    _regression(
        name="Huber",
        formula="e² / 2 if |e| ≤ δ, else δ (|e| − δ / 2)",
        says="Squared up to δ, straight beyond it: errors larger than δ are taken for outliers and pull with strength "
        "δ.",
        source="Huber 1964, Annals of mathematical statistics 35, Robust estimation of a location parameter",
        kind=nn.HuberLoss,
        at=lambda x, delta: nn.HuberLoss(reduction="none", delta=delta)(x, torch.zeros_like(x)),
        slider=slider("delta", BENDS, 1.0),
        edge="A large δ makes it half the squared error; a small one δ times the absolute error.",
    ),
    _regression(
        name="MSLE",
        formula="mean of (log(1 + prediction) − log(1 + target))²",
        says="Ratios count, not differences: 30000 for 20000 costs about as much as 30 for 20. Too little costs more "
        "than too much.",
        source="scikit-learn user guide, mean squared logarithmic error",
        kind=MSLELoss,
        x_label="prediction; the target is 20",
        x=np.linspace(0, 60, 121),
        at=lambda x, base: MSLELoss(base, "none")(x, torch.full_like(x, 20)),
        slider=slider("base", (1.5, 2.0, math.e, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0), 10.0),
        edge="Another base only scales it. At a prediction of −1 it is infinite, below that it does not exist.",
    ),
)

CLASSIFICATION: tuple[Entry, ...] = (
    _scored(
        name="binary cross-entropy",
        formula="−y ln p − (1 − y) ln(1 − p)",
        says="The surprise at the truth: sure and wrong costs without bound. Least where p is y.",
        source="Bishop 2006, Pattern recognition and machine learning, eq. 4.90",
        kind=nn.BCELoss,
        x_label="predicted probability p",
        x=PROBABILITY,
        at=lambda x, y: nn.BCELoss(reduction="none")(x, torch.full_like(x, y)),
        slider=slider("target", SHARES, 1.0),
        edge="At p = 0 or 1 torch cuts the logarithm at −100; a p outside [0, 1] is an error.",
    ),
    _scored(
        name="binary cross-entropy with logits",
        formula="−y ln σ(s) − (1 − y) ln(1 − σ(s)),  σ the sigmoid",
        says="The same, from the score instead of the probability: its gradient is σ(s) − y, which is large wherever "
        "the answer is wrong and does not vanish with the sigmoid.",
        source="Bishop 2006, Pattern recognition and machine learning, eq. 4.90 and 4.91",
        kind=nn.BCEWithLogitsLoss,
        x_label="score s",
        at=lambda x, y: nn.BCEWithLogitsLoss(reduction="none")(x, torch.full_like(x, y)),
        slider=slider("target", SHARES, 1.0),
        edge="ln 2 at s = 0. Computed without ln(0), however large the score. Not after a sigmoid.",
    ),
    _scored(
        name="negative log-likelihood",
        formula="−ln p of the true class",
        says="Only the probability of the true class counts. The class takes logarithms of probabilities, as "
        "log-softmax gives them; it does not check that they are.",
        source="Goodfellow, Bengio & Courville 2016, Deep learning, section 5.5",
        kind=nn.NLLLoss,
        x_label="predicted probability p of the true class",
        x=PROBABILITY,
        at=lambda x, _: nn.NLLLoss(reduction="none")(torch.stack((x, 1 - x), 1).log(), _zeros(x)),
        edge="Given scores that are not normalised it falls without end, below 0: there is nothing to learn in that.",
    ),
    _scored(
        name="hinge (margin)",
        formula="max(0, margin − y s)",
        says="A score on the right side by the margin costs nothing and pulls no more; only the hard examples count.",
        source="Cortes & Vapnik 1995, Machine learning 20, Support-vector networks",
        kind=HingeLoss,
        at=lambda x, margin: HingeLoss(margin, "none")(x, torch.ones_like(x)),
        slider=slider("margin", MARGINS, 1.0),
        edge="y is −1 or 1, not 0 or 1. At the corner the slope is 0.",
    ),
    _scored(
        name="squared hinge",
        formula="max(0, margin − y s)²",
        says="The hinge without a corner: the pull fades as the margin is reached, and grows with how wrong the score "
        "is.",
        source="Tang 2013, arXiv:1306.0239, Deep learning using linear support vector machines",
        kind=SquaredHingeLoss,
        at=lambda x, margin: SquaredHingeLoss(margin, "none")(x, torch.ones_like(x)),
        slider=slider("margin", MARGINS, 1.0),
        edge="One far outlier can outweigh a batch.",
    ),
    _scored(
        name="soft margin",
        formula="ln(1 + e^(−y s))",
        says="A hinge with no margin to choose: always a little more to gain, ever less. It is the binary "
        "cross-entropy written for y of −1 and 1.",
        source=_ESL,
        kind=nn.SoftMarginLoss,
        at=lambda x, _: nn.SoftMarginLoss(reduction="none")(x, torch.ones_like(x)),
        edge="ln 2 at s = 0. torch computes e^(−y s) itself: beyond a wrong score of 88, float32 gives infinity.",
    ),
    _scored(
        name="cross-entropy, class numbers",
        formula="−s_y + ln Σ_j e^(s_j)",
        says="Softmax and negative log-likelihood in one. The gradient is the probability, minus 1 for the true "
        "class. The target is the number of the class (sparse).",
        source="Bishop 2006, Pattern recognition and machine learning, eq. 4.108 and 4.109",
        kind=nn.CrossEntropyLoss,
        x_label="score of the true class; the two others stay at 0",
        at=lambda x, _: nn.CrossEntropyLoss(reduction="none")(_first_of_three(x), _zeros(x)),
        edge="ln c when all c scores are equal. It takes scores: no softmax before it.",
    ),
    _scored(
        name="cross-entropy, dense targets",
        formula="−Σ_j t_j ln softmax(s)_j",
        says="The same for targets that are shares of every class: one-hot rows, or softened ones. Least where the "
        "predicted probability is the share, so softened targets bring the scores to rest.",
        source="Bishop 2006, Pattern recognition and machine learning, eq. 4.108",
        kind=nn.CrossEntropyLoss,
        x_label="score of the first class; the two others stay at 0",
        at=lambda x, share: nn.CrossEntropyLoss(reduction="none")(_first_of_three(x), _shares(share, x)),
        slider=slider("target", SHARES, 1.0),
        edge="One-hot rows (target 1) give the value for class numbers. The shares of a row add to 1.",
    ),
    _scored(
        name="KL divergence",
        formula="Σ_j t_j (ln t_j − ln p_j)",
        says="Cross-entropy without what the target itself is unsure of: 0 where the prediction is the target. The "
        "gradient is the cross-entropy's.",
        source="Kullback & Leibler 1951, Annals of mathematical statistics 22, On information and sufficiency",
        kind=nn.KLDivLoss,
        x_label="predicted probability p of the first of two classes",
        x=PROBABILITY,
        at=_divergence,
        slider=slider("target", SHARES, 0.7),
        edge='Not symmetric. The class takes ln p, and only reduction "batchmean" divides by the rows alone. 0 ln 0 '
        "is 0.",
    ),
    _scored(
        name="multi-class hinge",
        formula="Σ_(j≠y) max(0, s_j − s_y + margin)",
        says="The true class has to lead every other by the margin Delta. One corner for each of the other classes; "
        "beyond the last one nothing is left to learn.",
        source="Weston & Watkins 1999, ESANN; the notes of Stanford's CS231n, Linear classification",
        kind=MultiClassHingeLoss,
        x_label="score of the true class; the others stay at 0 and 1",
        at=_multi_class_hinge,
        slider=slider("margin", MARGINS, 1.0),
        edge="margin · (c − 1) when all scores are equal. torch.nn.MultiMarginLoss is this divided by c.",
    ),
    _scored(
        name="multi-class hinge with L2 weight penalty",
        formula="Σ_(j≠y) max(0, s_j − s_y + 1) + λ Σ W²",
        says="The hinge alone is content with any weights that are large enough; the penalty picks small ones. A "
        "large λ stops before the margin is reached.",
        source="The notes of Stanford's CS231n, Linear classification",
        kind=MultiClassHingeLoss,
        x_label="the one weight w of the true class; feature 1, the other weights 0",
        at=_penalised_hinge,
        slider=slider("weight_penalty", (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0), 0.5),
        edge="With SGD, a weight_decay of 2 λ makes the same steps.",
    ),
)

EMBEDDING: tuple[Entry, ...] = (
    _embedding(
        name="L1 hinge, same class",
        formula="d",
        says="A pair of one class is pulled together with the same strength at any distance.",
        source="torch.nn.HingeEmbeddingLoss, y = 1",
        kind=HingeEmbeddingLoss,
        at=lambda x, _: _pairs(HingeEmbeddingLoss(), x, True),
        edge="d is the L1 distance and grows with the number of features.",
    ),
    _embedding(
        name="L1 hinge, different classes",
        formula="max(0, margin − d)",
        says="A pair of different classes is pushed apart with the same strength, up to the margin.",
        source="torch.nn.HingeEmbeddingLoss, y = −1",
        kind=HingeEmbeddingLoss,
        at=lambda x, margin: _pairs(HingeEmbeddingLoss(margin), x, False),
        slider=slider("margin", DISTANCES, 1.0),
        edge="At the margin and beyond nothing is pushed; nor are two equal rows, for want of a direction.",
    ),
    _embedding(
        name="cosine, same class",
        formula="1 − cos",
        says="A pair of one class is turned to one direction; lengths do not count.",
        source="torch.nn.CosineEmbeddingLoss, y = 1",
        kind=CosineEmbeddingLoss,
        x_label="cosine of the pair",
        x=np.linspace(-1, 1, 121),
        at=lambda x, _: _pairs(CosineEmbeddingLoss(), 1 - x, True),
        edge="Opposite rows are not moved: there the cosine is flat in the angle.",
    ),
    _embedding(
        name="cosine, different classes",
        formula="max(0, cos − margin)",
        says="A pair of different classes is turned apart until its cosine is the margin.",
        source="torch.nn.CosineEmbeddingLoss, y = −1",
        kind=CosineEmbeddingLoss,
        x_label="cosine of the pair",
        x=np.linspace(-1, 1, 121),
        at=lambda x, margin: _pairs(CosineEmbeddingLoss(margin), 1 - x, False),
        slider=slider("margin", (-0.5, -0.3, -0.1, 0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9), 0.0),
        edge="Two rows of one direction are not moved: there the cosine is flat in the angle.",
    ),
    _embedding(
        name="contrastive, similar (Y = 0)",
        formula="d² / 2",
        says="A similar pair is pulled together, the harder the farther it is apart: a spring.",
        source="Hadsell, Chopra & LeCun 2006, CVPR, eq. 4",
        kind=ContrastiveLoss,
        at=lambda x, _: _pairs(ContrastiveLoss(), x, True),
        edge="Never at rest above distance 0, so a class may shrink to a point.",
    ),
    _embedding(
        name="contrastive, different (Y = 1)",
        formula="max(0, margin − d)² / 2",
        says="A different pair is pushed apart, ever less, up to the margin.",
        source="Hadsell, Chopra & LeCun 2006, CVPR, eq. 4",
        kind=ContrastiveLoss,
        at=lambda x, margin: _pairs(ContrastiveLoss(margin), x, False),
        slider=slider("margin", DISTANCES, 1.0),
        edge="At the margin and beyond nothing is pushed; nor are two equal rows, for want of a direction.",
    ),
    _embedding(
        name="triplet",
        formula="max(0, d(a, p) − d(a, n) + margin)",
        says="The negative has to be farther from the anchor than the positive, by the margin (the gap g of courses). "
        "Only the difference counts.",
        source="Schroff, Kalenichenko & Philbin 2015, CVPR, FaceNet, eq. 3",
        kind=TripletLoss,
        x_label="distance from anchor to negative; the positive is at 1",
        at=lambda x, margin: TripletLoss(margin).per_triplet(torch.ones_like(x), x),
        slider=slider("margin", DISTANCES, 0.2),
        edge="Left of 1 the negative is hard, then semi-hard up to 1 + margin, then it counts for nothing.",
    ),
    _embedding(
        name="ranking with graded relevance",
        formula="max(0, gap + D(p, p+) − D(p, p−)) wherever r(p, p+) > r(p, p−)",
        says="What is more relevant to the query has to be nearer to it, by the gap: a triplet for every pair of "
        "grades, not only for same and different.",
        source="Wang et al. 2014, CVPR, Learning fine-grained image similarity with deep ranking, eq. 3",
        kind=RankingHingeLoss,
        x_label="squared distance D from query to the less relevant; the more relevant is at 1",
        at=lambda x, gap: RankingHingeLoss(gap).per_triplet(torch.ones_like(x), x),
        slider=slider("gap", DISTANCES, 1.0),
        edge="Equal relevance is not compared.",
    ),
)
