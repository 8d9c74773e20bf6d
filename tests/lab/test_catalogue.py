"""Every curve beside its definition typed out in plain Python; every gradient beside differences of its own value."""

import inspect
import math
import pkgutil

import numpy as np
import pytest
import torch
from torch import nn

import lossopt.activations
import lossopt.losses
from lossopt.lab.catalogue import ENTRIES, curves
from lossopt.losses.embedding import EmbeddingLoss

H = 1e-5


@pytest.fixture(scope="module")
def catalogue():
    return {curve.name: curve for curve in curves()}


def xlog(share, value):
    return share * math.log(value) if share else 0.0


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax_cross_entropy(x, shares):
    scores = [x, 0.0, 0.0]
    total = math.log(sum(math.exp(score) for score in scores))
    return -sum(share * (score - total) for share, score in zip(shares, scores, strict=True))


DEFINITIONS = {
    "MSE": lambda e, _: e * e,
    "L2": lambda e, _: e * e,
    "MAE (L1)": lambda e, _: abs(e),
    "smooth L1": lambda e, beta: e * e / (2 * beta) if abs(e) < beta else abs(e) - beta / 2,
    "Huber": lambda e, delta: e * e / 2 if abs(e) <= delta else delta * (abs(e) - delta / 2),
    "MSLE": lambda p, base: (math.log(1 + p, base) - math.log(21, base)) ** 2,
    "binary cross-entropy": lambda p, y: -xlog(y, p) - xlog(1 - y, 1 - p),
    "binary cross-entropy with logits": lambda s, y: -xlog(y, sigmoid(s)) - xlog(1 - y, 1 - sigmoid(s)),
    "negative log-likelihood": lambda p, _: -math.log(p),
    "hinge (margin)": lambda s, margin: max(0, margin - s),
    "squared hinge": lambda s, margin: max(0, margin - s) ** 2,
    "soft margin": lambda s, _: math.log(1 + math.exp(-s)),
    "cross-entropy, class numbers": lambda s, _: softmax_cross_entropy(s, (1, 0, 0)),
    "cross-entropy, dense targets": lambda s, t: softmax_cross_entropy(s, (t, (1 - t) / 2, (1 - t) / 2)),
    "KL divergence": lambda p, t: xlog(t, t) + xlog(1 - t, 1 - t) - xlog(t, p) - xlog(1 - t, 1 - p),
    "multi-class hinge": lambda s, margin: max(0, 0 - s + margin) + max(0, 1 - s + margin),
    "multi-class hinge with L2 weight penalty": lambda w, penalty: 2 * max(0, 1 - w) + penalty * w * w,
    "L1 hinge, same class": lambda d, _: d,
    "L1 hinge, different classes": lambda d, margin: max(0, margin - d),
    "cosine, same class": lambda cos, _: 1 - cos,
    "cosine, different classes": lambda cos, margin: max(0, cos - margin),
    "contrastive, similar (Y = 0)": lambda d, _: d * d / 2,
    "contrastive, different (Y = 1)": lambda d, margin: max(0, margin - d) ** 2 / 2,
    "triplet": lambda d, margin: max(0, 1 - d + margin),
    "ranking with graded relevance": lambda d, gap: max(0, gap + 1 - d),
    "sigmoid": lambda x, _: sigmoid(x),
    "softmax": lambda x, _: math.exp(x) / (math.exp(x) + 2),
    "tanh": lambda x, _: (math.exp(x) - math.exp(-x)) / (math.exp(x) + math.exp(-x)),
    "identity": lambda x, _: x,
    "softplus": lambda x, beta: math.log(1 + math.exp(beta * x)) / beta,
    "softminus": lambda x, _: x - math.log(1 + math.exp(x)),
    "ReLU": lambda x, _: max(0, x),
    "leaky ReLU": lambda x, slope: x if x > 0 else slope * x,
    "parametric ReLU": lambda x, slope: x if x > 0 else slope * x,
    "concatenated ReLU": lambda x, output: max(0, (x, -x)[output]),
    "ReLU6": lambda x, _: min(6, max(0, x)),
    "ELU": lambda x, alpha: x if x > 0 else alpha * (math.exp(x) - 1),
}
SLIDERS = {  # what the reader turns, as the class or its call names it; a number on an axis of its own otherwise
    "smooth L1": "beta",
    "Huber": "delta",
    "MSLE": "base",
    "hinge (margin)": "margin",
    "squared hinge": "margin",
    "multi-class hinge": "margin",
    "multi-class hinge with L2 weight penalty": "weight_penalty",
    "L1 hinge, different classes": "margin",
    "cosine, different classes": "margin",
    "contrastive, different (Y = 1)": "margin",
    "triplet": "margin",
    "ranking with graded relevance": "gap",
    "softplus": "beta",
    "leaky ReLU": "negative_slope",
    "ELU": "alpha",
}
CORNERS = {  # at most so many points of the axis, for each place of the slider
    "MAE (L1)": 1,
    "hinge (margin)": 1,
    "multi-class hinge": 2,
    "multi-class hinge with L2 weight penalty": 1,
    "L1 hinge, different classes": 1,
    "cosine, different classes": 1,
    "triplet": 1,
    "ranking with graded relevance": 1,
    "ReLU": 1,
    "leaky ReLU": 1,
    "parametric ReLU": 1,
    "concatenated ReLU": 1,
    "ReLU6": 2,
    "ELU": 1,
}


def places(curve):
    return curve.slider.values if curve.slider else (None,)


def test_every_entry_has_a_definition_here_and_every_name_is_used_once(catalogue):
    assert len(catalogue) == len(ENTRIES)
    assert set(catalogue) == set(DEFINITIONS)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_value_is_the_definition(catalogue, name):
    curve = catalogue[name]
    wanted = [[DEFINITIONS[name](x, v) for x in curve.x.tolist()] for v in places(curve)]
    np.testing.assert_allclose(curve.value, wanted, rtol=1e-9, atol=1e-8)  # softplus: torch's own shortcut, 2e-9


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_gradient_is_that_of_the_value(catalogue, entry):
    """Central differences; at a corner, where the one-sided ones differ, the gradient lies between these."""
    curve = catalogue[entry.name]
    x = torch.from_numpy(curve.x)
    for at, place in enumerate(places(curve)):
        with torch.no_grad():
            before, here, after = (
                entry.at((x + step).clamp(*inside(entry)), place or 0.0).numpy() for step in (-H, 0, H)
            )
        left, right, gradient = (here - before) / H, (after - here) / H, curve.gradient[at]
        inner = ((x - H >= inside(entry)[0]) & (x + H <= inside(entry)[1])).numpy()
        corner = inner & (np.abs(left - right) > 0.02 + 0.02 * np.abs(left))
        assert corner.sum() <= CORNERS.get(entry.name, 0), curve.x[corner]
        smooth = inner & ~corner
        assert smooth.sum() >= len(x) - 4
        np.testing.assert_allclose(gradient[smooth], ((left + right) / 2)[smooth], rtol=1e-4, atol=1e-4)
        low, high = np.minimum(left, right) - 1e-4, np.maximum(left, right) + 1e-4
        assert ((low <= gradient) & (gradient <= high))[corner].all()


def inside(entry):
    """Where x may be moved to: distances stay above 0, as their gradient at 0 is another convention."""
    return {"embedding": (entry.x[0], entry.x[-1])}.get(entry.family, (-math.inf, math.inf))


def test_the_conventions_that_the_text_states(catalogue):
    def gradient(name, x, place=None):
        curve = catalogue[name]
        row = curve.slider.values.index(place) if place is not None else 0
        return curve.gradient[row][curve.x.tolist().index(x)]

    assert gradient("MAE (L1)", 0) == 0
    assert gradient("ReLU", 0) == 0
    assert gradient("leaky ReLU", 0, 0.1) == 0.1
    assert [gradient("concatenated ReLU", 0, half) for half in (0, 1)] == [0, 0]
    assert gradient("ReLU6", 0) == gradient("ReLU6", 6) == 0
    assert gradient("hinge (margin)", 1, 1.0) == 0
    assert gradient("sigmoid", 0) == 0.25
    assert gradient("tanh", 0) == 1


def test_every_loss_and_activation_of_the_course_is_there(catalogue):
    wanted = {
        "regression": "MSE, L2, MAE, L1, smooth L1, Huber, MSLE",
        "classification": "binary cross-entropy, with logits, negative log-likelihood, margin, hinge, squared hinge, "
        "soft margin, cross-entropy, dense, class numbers, KL divergence, multi-class hinge, L2 weight penalty",
        "embedding": "L1 hinge, cosine, contrastive, similar (Y = 0), different (Y = 1), triplet, ranking, graded",
        "activation": "sigmoid, softmax, tanh, identity, softplus, softminus, ReLU, leaky ReLU, parametric ReLU, "
        "concatenated ReLU, ReLU6, ELU",
    }
    for family, words in wanted.items():
        names = " | ".join(curve.name for curve in catalogue.values() if curve.family == family)
        for word in words.split(", "):
            assert word in names, word


def test_what_is_our_own_is_in_it(catalogue):
    """Those that torch.nn lacks; of the losses on embeddings only the course's five."""
    mine = {
        f"{package.__name__}.{name}"
        for package in (lossopt.losses, lossopt.activations)
        for name, kind in inspect.getmembers(package, inspect.isclass)
        if issubclass(kind, nn.Module) and not issubclass(kind, EmbeddingLoss) and name != "CrossBatchMemory"
    }
    assert mine <= {curve.where for curve in catalogue.values()}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_an_entry_is_whole(catalogue, name):
    curve = catalogue[name]
    assert issubclass(pkgutil.resolve_name(curve.where), nn.Module)
    assert curve.value.shape == curve.gradient.shape == (len(places(curve)), len(curve.x))
    assert np.isfinite(curve.value).all() and np.isfinite(curve.gradient).all()  # no entry declares a gap
    assert 99 <= len(curve.x) <= 129 and (np.diff(curve.x) > 0).all()
    for text in (curve.formula, curve.says, curve.source, curve.x_label):
        assert text.strip() == text and text
        assert "—" not in text
    assert curve.says.endswith(".")
    assert not curve.edge or curve.edge.endswith(".")


def test_sliders_stand_on_ascending_values_and_are_named_as_in_the_code(catalogue):
    for name, argument in SLIDERS.items():
        curve = catalogue[name]
        assert curve.slider.name == argument
        assert argument in inspect.signature(pkgutil.resolve_name(curve.where)).parameters
    for curve in catalogue.values():
        if curve.slider:
            assert list(curve.slider.values) == sorted(set(curve.slider.values))
            assert 0 <= curve.slider.start < len(curve.slider.values)
            assert 2 <= len(curve.slider.values) <= 15


def test_a_slider_moves_its_curve(catalogue):
    for curve in catalogue.values():
        for one, other in zip(curve.value, curve.value[1:], strict=False):
            assert not np.array_equal(one, other), curve.name


def test_curves_of_one_axis_can_be_laid_over_one_another(catalogue):
    for names in (
        ("MSE", "MAE (L1)", "smooth L1", "Huber"),
        ("binary cross-entropy with logits", "hinge (margin)", "squared hinge", "soft margin"),
        ("binary cross-entropy", "negative log-likelihood", "KL divergence"),
        tuple(curve.name for curve in catalogue.values() if curve.family == "activation"),
    ):
        first, *others = (catalogue[name].x for name in names)
        assert all(np.array_equal(first, other) for other in others)
