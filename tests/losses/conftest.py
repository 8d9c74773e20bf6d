"""A loss beside its definition, typed out over rows, in value, in gradient and in the number of things compared."""

from typing import NamedTuple

import pytest
import torch

from lossopt.losses import tiles

BIG = 2**24
LABELS = {
    "ties, unsorted, one alone": [1, 0, 1, 2, 0, 1, 7, 0, 1, 1, 2],
    "pairs": [5, 3, 3, 9, 5, 9, 4, 4],
    "negative": [-1, -2, -1, -1, -2, -3, -3, -1],
    "equal in float32": [BIG, BIG + 1, BIG, BIG + 1, BIG + 2, BIG + 3, BIG + 3, BIG],
    "one class": [4] * 6,
    "all distinct": [7, 6, 5, 4, 3],
    "one row": [3],
    "none": [],
}
REFERENCES = (  # and whether a tile is one row only
    ("batch", False),
    ("batch", True),
    ("foreign", True),
    ("empty", False),
    ("memory before", True),
    ("memory after", False),
)


class Case(NamedTuple):
    """Rows x (n, d) against y (m, d); row i of x is row own + i of y, unless own is None."""

    x: torch.Tensor
    labels: list[int]
    y: torch.Tensor
    ref_labels: list[int]
    own: int | None

    def positives(self, i):
        return [j for j, label in enumerate(self.ref_labels) if label == self.labels[i] and j != self.itself(i)]

    def negatives(self, i):
        return [j for j, label in enumerate(self.ref_labels) if label != self.labels[i]]

    def itself(self, i):
        return None if self.own is None else self.own + i

    @property
    def cosine(self):
        x, y = (rows / rows.square().sum(1, keepdim=True).sqrt() for rows in (self.x, self.y))
        return x @ y.T

    @property
    def euclidean(self):
        squared = (self.x[:, None] - self.y).square().sum(2)
        return torch.where(squared > 0, squared, 1).sqrt() * (squared > 0)


def grid(n, d=3, seed=0):
    """Small integers, moved a little: many equal distances, some equal rows, none of them 0; float64."""
    points = torch.randint(-1, 3, (n, d), generator=torch.Generator().manual_seed(seed)).double() + 0.37
    if n > 3:
        points[3] = points[2] = points[0]
    return points


def case_of(labels, reference):
    x = grid(len(labels)).requires_grad_()
    if reference == "batch":
        return Case(x, labels, x, labels, 0), ()
    memory = grid(7, seed=1)
    kept = [*labels[:5], -9, -9][:7] + [-9] * max(0, 5 - len(labels))
    y, ref_labels, own = {
        "foreign": (memory, kept, None),
        "empty": (memory[:0], [], None),
        "memory before": (torch.cat((memory, x.detach())), kept + labels, 7),
        "memory after": (torch.cat((x.detach(), memory)), labels + kept, 0),
    }[reference]
    y = y.clone().requires_grad_()
    return Case(x, labels, y, ref_labels, own), (y, torch.tensor(ref_labels, dtype=torch.int64), own)


@pytest.fixture(params=LABELS, ids=lambda name: name)
def untidy_labels(request):
    return LABELS[request.param]


@pytest.fixture(params=REFERENCES, ids=lambda case: case[0] + ", row by row" * case[1])
def reference(request, monkeypatch):
    name, row_by_row = request.param
    if row_by_row:
        monkeypatch.setattr(tiles, "_CELLS_CPU", 1)
    return name


@pytest.fixture
def agrees():
    """Compares a loss with definition(case): a list of terms, or (terms, divisor, how many are compared)."""

    def check(loss_fn, definition, labels, reference):
        case, given = case_of(labels, reference)
        leaves = (case.x,) if case.y is case.x else (case.x, case.y)
        got = loss_fn(case.x, torch.tensor(labels, dtype=torch.int64), None, *given)
        found = definition(case)
        terms, divisor, tuples = found if isinstance(found, tuple) else (found, len(found), len(found))
        wanted = sum(terms, start=0 * sum(leaf.sum() for leaf in leaves)) / max(divisor, 1)
        torch.testing.assert_close(got, wanted)
        for ours, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(wanted, leaves), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-6)
        assert loss_fn.tuple_count == tuples

    return check
