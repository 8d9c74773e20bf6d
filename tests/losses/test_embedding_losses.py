"""Each loss against its definition typed out over itertools, in value and in gradient, on inputs full of ties."""

import itertools
import math

import pytest
import torch
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import reducers as pml_reducers

from lossopt.losses import (
    ContrastiveLoss,
    CosineEmbeddingLoss,
    HingeEmbeddingLoss,
    RankingHingeLoss,
    SoftMarginTripletLoss,
    TripletLoss,
    distances,
    triplets,
)
from lossopt.losses.all_tuples import graded_triplets, shared_levels
from lossopt.losses.classes import Classes
from lossopt.losses.distances import DISTANCES, distances_at, paired_distance
from lossopt.losses.tiles import Comparison

BIG = 2**24
LABELS = {
    "ties, unsorted, one alone": [1, 0, 1, 2, 0, 1, 7, 0],
    "negative": [-1, -2, -1, -1, -2, -3, -3, -1],
    "equal in float32": [BIG, BIG + 1, BIG, BIG + 1, BIG + 2, BIG + 3, BIG + 3, BIG],
    "one class": [4] * 8,
    "all distinct": [7, 6, 5, 4, 3, 2, 1, 0],
    "one row": [3],
    "none": [],
}
CASES = pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())


def grid(n, d=3, seed=0):
    """Small integers, so that many distances are equal and some rows are the same; float64."""
    points = torch.randint(-1, 3, (n, d), generator=torch.Generator().manual_seed(seed)).double()
    if n > 3:
        points[3] = points[0]
        points[2] = points[0]
    return points


def apart(u, v, distance):
    """The definition of each distance, with gradient 0 where a root or an absolute value has a corner."""
    if distance == "cosine":
        if not u.any() or not v.any():
            return 1 + 0 * (u.sum() + v.sum())
        return 1 - (u @ v) / ((u @ u).sqrt() * (v @ v).sqrt())
    if distance == "inner":
        return -(u @ v)
    if torch.equal(u, v):
        return 0 * (u.sum() + v.sum())
    if distance == "manhattan":
        return sum((a - b) * ((a > b).double() - (a < b).double()) for a, b in zip(u, v, strict=True))
    squared = sum((a - b) ** 2 for a, b in zip(u, v, strict=True))
    return squared if distance == "squared" else squared.sqrt()


def positive_part(value):
    return value if value > 0 else 0 * value


def pairs_of(labels):
    return itertools.permutations(range(len(labels)), 2)


def triplets_of(labels):
    return [
        (a, p, n)
        for a, p, n in itertools.permutations(range(len(labels)), 3)
        if labels[a] == labels[p] and labels[a] != labels[n]
    ]


def reduced(values, x, reduction="mean"):
    count = len(values) if reduction == "mean" else sum(bool(v != 0) for v in values)
    return sum(values, start=0 * x.sum()) / max(count, 1)


def same_value_and_gradient(loss_fn, definition, x, labels):
    """`definition(x) -> list of values per tuple`, reduced as the loss says."""
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    got = loss_fn(ours, torch.tensor(labels, dtype=torch.int64))
    values = definition(theirs)
    wanted = reduced(values, theirs, getattr(loss_fn, "reduction", "mean"))
    got.backward()
    wanted.backward()
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-9, rtol=1e-7)
    assert loss_fn.tuple_count == len(values)
    return values


@CASES
def test_contrastive(labels):
    def definition(x):
        def one(i, j):
            d = apart(x[i], x[j], "euclidean")
            return d**2 / 2 if labels[i] == labels[j] else positive_part(1.6 - d) ** 2 / 2

        return [one(i, j) for i, j in pairs_of(labels)]

    same_value_and_gradient(ContrastiveLoss(1.6), definition, grid(len(labels)), labels)


@CASES
def test_hinge_embedding(labels):
    def definition(x):
        def one(i, j):
            d = apart(x[i], x[j], "manhattan")
            return d if labels[i] == labels[j] else positive_part(3 - d)

        return [one(i, j) for i, j in pairs_of(labels)]

    loss_fn = HingeEmbeddingLoss(3.0)
    values = same_value_and_gradient(loss_fn, definition, grid(len(labels)), labels)
    assert loss_fn.share_active == pytest.approx(sum(bool(v != 0) for v in values) / max(len(values), 1))


@CASES
def test_cosine_embedding(labels):
    def definition(x):
        def one(i, j):
            d = apart(x[i], x[j], "cosine")
            return d if labels[i] == labels[j] else positive_part(1 - d - 0.3)

        return [one(i, j) for i, j in pairs_of(labels)]

    x = grid(len(labels)) + 0.37  # no zero rows: their gradient is a convention, tested apart
    same_value_and_gradient(CosineEmbeddingLoss(0.3), definition, x, labels)


@pytest.fixture(params=[32, 0], ids=["each positive in turn", "search among positives"])
def few(request, monkeypatch):
    """Both ways of counting: compare with each positive, or search among them."""
    monkeypatch.setattr(triplets, "_FEW", request.param)


@CASES
@pytest.mark.parametrize("reduction", ["mean", "mean_active"])
@pytest.mark.parametrize("distance", ["euclidean", "squared", "cosine", "manhattan"])
def test_triplet(labels, distance, reduction, few):
    def definition(x):
        d = {(i, j): apart(x[i], x[j], distance) for i, j in pairs_of(labels)}
        return [positive_part(d[a, p] - d[a, n] + 0.75) for a, p, n in triplets_of(labels)]

    x = grid(len(labels)) + (0.37 if distance == "cosine" else 0)
    loss_fn = TripletLoss(0.75, distance, reduction)
    values = same_value_and_gradient(loss_fn, definition, x, labels)
    assert loss_fn.share_active == pytest.approx(sum(bool(v != 0) for v in values) / max(len(values), 1))


@CASES
@pytest.mark.parametrize("margin", [0.75, 1.0, 2.5])
@pytest.mark.parametrize("select", ["semi-hard", "hard"])
def test_selected_triplets(labels, select, margin, few):
    """On whole numbers: a margin of 1 puts negatives on the edge, where the inequality is strict."""
    wanted = {
        "semi-hard": lambda positive, negative: positive < negative < positive + margin,
        "hard": lambda positive, negative: negative <= positive,
    }[select]

    def definition(x):
        d = {(i, j): apart(x[i], x[j], "squared") for i, j in pairs_of(labels)}
        return [d[a, p] - d[a, n] + margin for a, p, n in triplets_of(labels) if wanted(d[a, p], d[a, n])]

    same_value_and_gradient(TripletLoss(margin, "squared", select=select), definition, grid(len(labels)), labels)


def test_many_positives_are_counted_as_few_are(monkeypatch):
    """Two classes of 150: more positives than are compared one by one."""
    x = torch.randint(-3, 4, (300, 5), generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    labels = torch.arange(300) % 2
    for select in ("all", "semi-hard", "hard"):
        loss_fn = TripletLoss(2.5, "squared", "mean_active", select)
        found = loss_fn(x, labels), loss_fn.tuple_count
        (gradient,) = torch.autograd.grad(found[0], x)
        with monkeypatch.context() as each:
            each.setattr(triplets, "_FEW", 1000)
            loss = loss_fn(x, labels)
        torch.testing.assert_close((loss, loss_fn.tuple_count), found)
        torch.testing.assert_close(torch.autograd.grad(loss, x)[0], gradient)


@CASES
@pytest.mark.parametrize("distance", ["euclidean", "squared"])
def test_soft_margin_triplet(labels, distance):
    def definition(x):
        d = {(i, j): apart(x[i], x[j], distance) for i, j in pairs_of(labels)}
        return [torch.log(1 + torch.exp(d[a, p] - d[a, n])) for a, p, n in triplets_of(labels)]

    same_value_and_gradient(SoftMarginTripletLoss(distance), definition, grid(len(labels)), labels)


LEVELS = [[0, 0, 5], [0, 0, 5], [0, 1, 5], [1, 0, 5], [0, 0, 6], [1, 0, 5], [-3, 0, 5], [0, 1, 5]]


def relevance_by_definition(r, s):
    shared = 0
    for a, b in zip(r, s, strict=True):
        if a != b:
            break
        shared += 1
    return shared


@pytest.mark.parametrize("labels", [LEVELS, *LABELS.values()])
def test_ranking_hinge(labels, few):
    levels = [label if isinstance(label, list) else [label] for label in labels]

    def definition(x):
        return [
            positive_part(1 + apart(x[a], x[i], "squared") - apart(x[a], x[j], "squared"))
            for a, i, j in itertools.permutations(range(len(labels)), 3)
            if relevance_by_definition(levels[a], levels[i]) > relevance_by_definition(levels[a], levels[j])
        ]

    same_value_and_gradient(RankingHingeLoss(1.0), definition, grid(len(labels)), labels)


def test_ranking_hinge_with_one_level_is_the_triplet_loss_on_the_same_distance():
    x, labels = grid(8), torch.tensor(LABELS["negative"])
    assert RankingHingeLoss(0.7)(x, labels) == TripletLoss(0.7, "squared")(x, labels)


def test_shared_levels_by_definition():
    wanted = [[relevance_by_definition(r, s) for s in LEVELS] for r in LEVELS]
    assert shared_levels(torch.tensor(LEVELS), torch.tensor(LEVELS)).tolist() == wanted


@pytest.mark.parametrize("own", [True, False])
def test_graded_triplets_by_definition(own):
    relevance = torch.randint(0, 4, (7, 7), generator=torch.Generator().manual_seed(3)) / 4
    found = list(zip(*(column.tolist() for column in graded_triplets(relevance, own)), strict=True))
    wanted = {
        (a, i, j)
        for a, i, j in itertools.product(range(7), repeat=3)
        if relevance[a, i] > relevance[a, j] and not (own and a in (i, j))
    }
    assert set(found) == wanted
    assert len(found) == len(wanted)


def in_tiles(x, y, distance):
    nobody = torch.zeros(len(x)), torch.ones(len(y))
    return torch.cat([tile.distances for tile in Comparison(x, y, distance, Classes(*nobody, None)).tiles()])


every_distance = pytest.mark.parametrize("distance", DISTANCES)


@every_distance
def test_distances_by_definition_in_all_forms(distance):
    x, y = grid(8), grid(6, seed=1)
    x[4] = y[5] = 0
    wanted = torch.stack([torch.stack([apart(u, v, distance) for v in y]) for u in x])
    torch.testing.assert_close(in_tiles(x, y, distance), wanted)
    rows, columns = torch.cartesian_prod(torch.arange(8), torch.arange(6)).unbind(1)
    torch.testing.assert_close(paired_distance(x[rows], y[columns], distance), wanted.flatten())
    torch.testing.assert_close(distances_at(x, y, rows, columns, distance), wanted.flatten())
    if distance in ("euclidean", "squared", "manhattan"):
        assert (in_tiles(x[:1], x[2:4], distance) == 0).all()


@every_distance
def test_listed_distances_have_the_gradient_of_the_definition_in_any_parts(distance, monkeypatch):
    monkeypatch.setattr(distances, "_CELLS", 9)  # three tuples at a time
    x, y = grid(8).requires_grad_(), grid(6, seed=1).requires_grad_()
    rows, columns = torch.tensor([0, 7, 0, 3, 3, 2, 0, 5]), torch.tensor([1, 1, 5, 0, 0, 4, 1, 2])
    weight = torch.arange(1.0, 9).double()
    found = torch.autograd.grad((distances_at(x, y, rows, columns, distance) * weight).sum(), (x, y))
    wanted = torch.stack([apart(x[i], y[j], distance) for i, j in zip(rows, columns, strict=True)])
    for one, other in zip(found, torch.autograd.grad((wanted * weight).sum(), (x, y)), strict=True):
        torch.testing.assert_close(one, other)
    assert distances_at(x, y, rows[:0], columns[:0], distance).shape == (0,)


@every_distance
def test_gradient_at_distance_zero_and_at_zero_rows_is_finite(distance):
    x = torch.zeros(4, 3)
    x[2:] = 1e3
    leaf = x.clone().requires_grad_()
    paired_distance(leaf, leaf, distance).sum().backward()
    assert leaf.grad.isfinite().all()
    assert distance == "inner" or (leaf.grad == 0).all()


def test_near_duplicates_keep_their_distance_in_float32():
    x = torch.full((1, 64), 100.0)
    y = x.clone()
    y[0, 0] += 2**-7
    assert in_tiles(x, y, "euclidean").item() == pytest.approx(2**-7, rel=1e-4)


@pytest.mark.parametrize("length", [1e3, 1e7, 1e12])
@pytest.mark.parametrize("distance", ["euclidean", "squared", "cosine"])
def test_one_long_row_leaves_the_distances_of_the_others(length, distance):
    x = torch.nn.functional.normalize(torch.randn(16, 8, generator=torch.Generator().manual_seed(2)))
    with_it = torch.cat((x, torch.full((1, 8), length), torch.zeros(1, 8)))
    torch.testing.assert_close(in_tiles(with_it, with_it, distance)[:16, :16], in_tiles(x, x, distance))
    assert in_tiles(with_it, with_it, distance)[16, 16] == 0


@pytest.mark.parametrize("width", [1e-2, 1e-4])
def test_a_narrow_cone_in_float32_has_the_loss_and_gradient_of_float64(width):
    """Nearly collapsed: |x|² - 2xy + |y|² in float32 would have no correct digit left."""
    generator = torch.Generator().manual_seed(3)
    centre = torch.nn.functional.normalize(torch.randn(1, 32, generator=generator))
    x = centre + width * torch.randn(40, 32, generator=generator)
    labels, exact = torch.arange(40) // 4, x.double().requires_grad_()
    x.requires_grad_()
    loss, wanted = TripletLoss(width)(x, labels), TripletLoss(width)(exact, labels)
    torch.testing.assert_close(loss, wanted.float(), rtol=1e-4, atol=0)
    (found,), (gradient,) = torch.autograd.grad(loss, x), torch.autograd.grad(wanted, exact)
    torch.testing.assert_close(found, gradient.float(), rtol=0, atol=2e-3 * gradient.abs().max().item())


LOSSES = [
    ContrastiveLoss(1.3),
    HingeEmbeddingLoss(3.3),
    CosineEmbeddingLoss(0.2),
    TripletLoss(0.4),
    TripletLoss(0.4, "squared", "mean_active"),
    TripletLoss(0.4, "cosine"),
    SoftMarginTripletLoss(),
    RankingHingeLoss(0.7),
]


@pytest.mark.parametrize("loss_fn", LOSSES, ids=lambda loss_fn: type(loss_fn).__name__)
def test_gradcheck(loss_fn):
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5), requires_grad=True)
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 5])
    assert torch.autograd.gradcheck(lambda rows: loss_fn(rows, labels), (x,))
    y = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6), requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda rows, refs: loss_fn(rows, labels, ref_emb=refs, ref_labels=torch.tensor([0, 1, 2, 0])), (x, y)
    )


def random_batch(n=12, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator), torch.randint(0, 4, (n,), generator=generator)


def test_reference_rows_by_definition():
    x, labels = random_batch()
    y, ref_labels = random_batch(9, seed=1)
    y[0] = x[0]
    values = [
        positive_part(apart(x[a], y[p], "euclidean") - apart(x[a], y[n], "euclidean") + 0.5)
        for a, p, n in itertools.product(range(12), range(9), range(9))
        if labels[a] == ref_labels[p] != ref_labels[n]
    ]
    torch.testing.assert_close(TripletLoss(0.5)(x, labels, None, y, ref_labels), sum(values) / len(values))


def all_pairs(n):
    return torch.cartesian_prod(torch.arange(n), torch.arange(n)).unbind(1)


def test_hinge_embedding_is_torchs_on_l1_distance():
    x, labels = random_batch()
    i, j = all_pairs(12)
    i, j = i[i != j], j[i != j]
    sign = (labels[i] == labels[j]).float() * 2 - 1
    wanted = torch.nn.HingeEmbeddingLoss(margin=4.0)((x[i] - x[j]).abs().sum(1), sign)
    torch.testing.assert_close(HingeEmbeddingLoss(4.0)(x, labels), wanted)


@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.4])
def test_cosine_embedding_is_torchs(margin):
    x, labels = random_batch()
    i, j = all_pairs(12)
    i, j = i[i != j], j[i != j]
    sign = (labels[i] == labels[j]).float() * 2 - 1
    wanted = torch.nn.CosineEmbeddingLoss(margin=margin)(x[i], x[j], sign)
    torch.testing.assert_close(CosineEmbeddingLoss(margin)(x, labels), wanted)


def test_triplet_is_torchs_on_given_triplets():
    x, labels = random_batch()
    indices = torch.tensor(triplets_of(labels.tolist())).unbind(1)
    for chosen in (indices, [column[:3] for column in indices]):  # read off the matrix, and row by row
        wanted = torch.nn.TripletMarginLoss(margin=0.5, eps=0)(*(x[column] for column in chosen))
        torch.testing.assert_close(TripletLoss(0.5)(x, None, chosen), wanted)


@pytest.mark.parametrize(
    ("distance", "peer"),
    [
        ("euclidean", pml_distances.LpDistance(normalize_embeddings=False)),
        ("squared", pml_distances.LpDistance(normalize_embeddings=False, power=2)),
        ("cosine", pml_distances.CosineSimilarity()),
    ],
)
@pytest.mark.parametrize(
    ("reduction", "reducer"),
    [("mean", pml_reducers.MeanReducer()), ("mean_active", pml_reducers.AvgNonZeroReducer())],
)
def test_triplet_is_pytorch_metric_learnings(distance, peer, reduction, reducer):
    x, labels = random_batch(24)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    got = TripletLoss(0.3, distance, reduction)(ours, labels)
    wanted = pml_losses.TripletMarginLoss(0.3, distance=peer, reducer=reducer)(theirs, labels)
    got.backward()
    wanted.backward()
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_soft_margin_is_pytorch_metric_learnings():
    x, labels = random_batch(24)
    peer = pml_losses.TripletMarginLoss(
        0.0,
        smooth_loss=True,
        distance=pml_distances.LpDistance(normalize_embeddings=False),
        reducer=pml_reducers.MeanReducer(),
    )
    torch.testing.assert_close(SoftMarginTripletLoss()(x, labels), peer(x, labels))


def test_hinge_embedding_has_the_terms_of_pytorch_metric_learnings_contrastive_loss():
    """Its hinge is linear, not squared as Hadsell's, and it averages positives and negatives apart."""
    x, labels = random_batch(16)
    same = labels[:, None] == labels
    positives, negatives = int(same.sum()) - 16, int((~same).sum())
    peer = pml_losses.ContrastiveLoss(
        neg_margin=4.0,
        distance=pml_distances.LpDistance(p=1, normalize_embeddings=False),
        reducer=pml_reducers.DoNothingReducer(),
    )
    parts = peer(x, labels)
    total = parts["pos_loss"]["losses"].sum() + parts["neg_loss"]["losses"].sum()
    torch.testing.assert_close(HingeEmbeddingLoss(4.0)(x, labels), total / (positives + negatives))


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (ContrastiveLoss, "ContrastiveLoss margin"),
        (HingeEmbeddingLoss, "HingeEmbeddingLoss margin"),
        (TripletLoss, "TripletLoss margin"),
        (RankingHingeLoss, "RankingHingeLoss gap"),
    ],
)
def test_margin_must_be_positive(make, name, bad):
    with pytest.raises(ValueError, match=f"{name} must be a finite number > 0, got {bad}"):
        make(bad)


@pytest.mark.parametrize("bad", [1.0, -1.5, math.nan, math.inf])
def test_cosine_margin_is_a_cosine(bad):
    with pytest.raises(ValueError, match=r"CosineEmbeddingLoss margin is a cosine in \[-1, 1\), got"):
        CosineEmbeddingLoss(bad)


def test_unknown_words_are_answered_with_the_valid_ones():
    with pytest.raises(ValueError, match="one of 'euclidean', 'squared', 'cosine', 'manhattan', 'inner'; got 'l2'"):
        TripletLoss(0.2, "l2")
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'mean_active'; got 'sum'"):
        TripletLoss(0.2, reduction="sum")


def test_the_other_kind_of_tuples_is_refused():
    x, labels = random_batch()
    one = torch.tensor([0])
    with pytest.raises(ValueError, match=r"TripletLoss needs triplets \(anchor, positive, negative\), got pairs"):
        TripletLoss()(x, labels, (one, one, one, one))
    with pytest.raises(ValueError, match=r"ContrastiveLoss needs pairs .*, got triplets"):
        ContrastiveLoss()(x, labels, (one, one, one))
    with pytest.raises(ValueError, match=r"got neither pairs nor triplets \(2 index tensors\)"):
        ContrastiveLoss()(x, labels, (one, one))


def test_labels_that_do_not_fit_are_refused():
    x, labels = random_batch()
    with pytest.raises(ValueError, match=r"labels must be one per embedding: 12 rows, but labels of shape \(11,\)"):
        TripletLoss()(x, labels[:11])
    with pytest.raises(ValueError, match="ref_labels are needed"):
        TripletLoss()(x, labels, None, x.clone())
    with pytest.raises(ValueError, match="labels are needed"):
        ContrastiveLoss()(x, None)
    with pytest.raises(ValueError, match="use RankingHingeLoss"):
        TripletLoss()(x, labels[:, None].expand(12, 2))
    with pytest.raises(ValueError, match="labels have 2 levels but ref_labels have 1"):
        RankingHingeLoss()(x, labels[:, None].expand(12, 2), None, x.clone(), labels)
    with pytest.raises(ValueError, match=r"two dimensions \(rows, features\), got shape \(60,\)"):
        TripletLoss()(x.flatten(), labels)
