"""What one step down the gradient of a triplet loss does to the points of a small embedding, for nine margins."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from lossopt.lab.pieces import Slider, TripletStep
from lossopt.losses import TripletLoss

MARGINS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0)
RATE = 2.0  # of the step, in the units of the points: large enough to be seen
_DIGITS, _OF_EACH = (3, 5, 8), 5


def embedding() -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) points of mean 0 and mean squared length 1, float64, and their (n,) classes.

    The first five images of three digits that look alike, on the two principal components of these images.
    """
    digits = load_digits()
    rows = np.concatenate([np.flatnonzero(digits.target == digit)[:_OF_EACH] for digit in _DIGITS])
    points = PCA(n_components=2, svd_solver="full").fit_transform(digits.data[rows])
    return points / np.sqrt(np.square(points).sum(axis=1).mean()), digits.target[rows]


def triplet_step() -> TripletStep:
    """One gradient step of the points themselves on `TripletLoss` over all their triplets, for each margin."""
    points, classes = embedding()
    labels = torch.from_numpy(classes)
    moved, before, after, active = [], [], [], []
    for margin in MARGINS:
        loss_fn = TripletLoss(margin)
        x = torch.tensor(points, requires_grad=True)
        loss = loss_fn(x, labels)
        active.append(round(float(loss_fn.share_active) * int(loss_fn.tuple_count)))
        (gradient,) = torch.autograd.grad(loss, x)
        stepped = x.detach() - RATE * gradient
        before.append(float(loss.detach()))
        after.append(float(loss_fn(stepped, labels)))
        moved.append(stepped.numpy())
    return TripletStep(
        points=points,
        classes=classes,
        margin=Slider("margin", MARGINS, MARGINS.index(0.4)),
        moved=np.stack(moved),
        loss_before=np.array(before),
        loss_after=np.array(after),
        active=np.array(active),
        triplets=int(loss_fn.tuple_count),
    )
