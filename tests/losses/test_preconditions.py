"""Bad input for each loss is refused in words that name it, what was given and the next step; good input is not."""

import math

import pytest
import torch
from torch import nn

from lossopt.activations import SoftMinus
from lossopt.losses import ContrastiveLoss, HingeLoss, MSLELoss, MultiClassHingeLoss, SquaredHingeLoss
from lossopt.losses.preconditions import activation_range, check_first_batch, check_output_range, output_range

NUMBERS = [nn.MSELoss(), nn.MSELoss(reduction="sum"), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss(), MSLELoss()]
SIGNS = [nn.SoftMarginLoss(), HingeLoss(), SquaredHingeLoss()]
CLASSES = [nn.NLLLoss(), nn.CrossEntropyLoss(), nn.MultiMarginLoss(), MultiClassHingeLoss()]


def named(loss):
    return type(loss).__name__


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def log_rows(*shape, dim=1):
    return (rows(*shape) * 20).log_softmax(dim)


def one_hot(classes):
    return torch.eye(4)[torch.tensor(classes)]


GOOD = [
    *((loss, rows(6, 2).exp(), rows(6, 2, seed=1).exp()) for loss in NUMBERS),
    (nn.MSELoss(), torch.tensor([[-1e30], [1e30]]), torch.tensor([[0.0], [-5.0]])),
    (MSLELoss(), torch.tensor([-0.999, 1e30]), torch.tensor([0.0, -0.5])),
    (nn.BCELoss(), torch.tensor([0.0, 1.0, 0.3]), torch.tensor([1.0, 0.0, 0.5])),
    (nn.BCEWithLogitsLoss(), torch.tensor([-1e30, 99.0]), torch.tensor([0.0, 1.0])),
    *((loss, torch.tensor([[-1e30], [5.0], [0.0]]), torch.tensor([[1], [-1], [-1]])) for loss in SIGNS),
    *((loss, log_rows(3, 4), torch.tensor([0, 3, 3])) for loss in CLASSES),
    (nn.NLLLoss(), log_rows(3, 4, 2, 2), torch.zeros(3, 2, 2, dtype=torch.int64)),
    (nn.NLLLoss(), log_rows(3, 4), torch.tensor([0, -100, 3])),
    (nn.NLLLoss(ignore_index=255), log_rows(3, 4), torch.tensor([0, 255, 3])),
    (nn.NLLLoss(), log_rows(4, dim=0), torch.tensor(3)),
    (nn.NLLLoss(), torch.tensor([[0.0, -math.inf]]), torch.tensor([0])),
    (nn.NLLLoss(), rows(64, 1000).log_softmax(1).bfloat16(), torch.arange(64)),
    (nn.CrossEntropyLoss(), torch.tensor([[1.0, -math.inf, 2.0, 0.0]]), torch.tensor([2])),
    (nn.CrossEntropyLoss(), rows(3, 4) * 50, one_hot([0, 3, 3])),
    (nn.CrossEntropyLoss(), rows(3, 4), torch.full((3, 4), 0.25)),
    (nn.KLDivLoss(reduction="batchmean"), log_rows(3, 4), one_hot([0, 3, 3])),
    (nn.KLDivLoss(reduction="batchmean", log_target=True), log_rows(3, 4), log_rows(3, 4)),
    (nn.KLDivLoss(reduction="sum"), log_rows(2, 3, 5, dim=2), rows(2, 3, 5).softmax(2)),
    (nn.KLDivLoss(reduction="sum"), log_rows(2, 3, 5, dim=1), rows(2, 3, 5).softmax(1)),
]


@pytest.mark.parametrize(("loss", "prediction", "target"), GOOD, ids=lambda given: named(given))
def test_good_input_is_let_through_and_gives_a_number(loss, prediction, target):
    check_first_batch(loss, prediction, target)
    assert not loss(prediction, target).isnan()


@pytest.mark.parametrize("loss", [*NUMBERS, *SIGNS, nn.BCELoss(), nn.BCEWithLogitsLoss()], ids=named)
def test_a_column_beside_a_row_is_refused(loss):
    with pytest.raises(ValueError, match=rf"{named(loss)} compares.*\(5, 1\) do not fit targets of shape \(5,\)"):
        check_first_batch(loss, torch.ones(5, 1), torch.ones(5))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("loss", NUMBERS, ids=named)
def test_numbers_that_are_none(loss, bad):
    good, spoilt = rows(4, 3).exp(), rows(4, 3).exp()
    spoilt[2, 1] = bad
    with pytest.raises(ValueError, match=rf"{named(loss)}: targets that are NaN.*1 of 12.*\[2, 1\], is .*Fill"):
        check_first_batch(loss, good, spoilt)
    with pytest.raises(ValueError, match=rf"{named(loss)}: predictions that are NaN or infinite: 1 of 12"):
        check_first_batch(loss, spoilt, good)


@pytest.mark.parametrize("bad", [-1.0, -3.25])
def test_logarithms_that_do_not_exist(bad):
    good, spoilt = torch.tensor([0.0, 5.0, -0.9]), torch.tensor([0.0, bad, 2.0])
    with pytest.raises(
        ValueError, match=rf"MSLELoss: targets of -1 or less: 1 of 3, the first, at \[1\], is {bad:g}\."
    ):
        check_first_batch(MSLELoss(), good, spoilt)
    with pytest.raises(ValueError, match=r"MSLELoss: predictions of -1 or less.*Softplus"):
        check_first_batch(MSLELoss(), spoilt, good)


@pytest.mark.parametrize("bad", [-0.001, 1.001, 255.0, math.nan])
def test_probabilities_outside_0_and_1(bad):
    good, spoilt = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, bad]])
    with pytest.raises(ValueError, match=r"BCELoss: predictions outside \[0, 1\]: 1 of 2.*BCEWithLogitsLoss"):
        check_first_batch(nn.BCELoss(), spoilt, good)
    for loss in (nn.BCELoss(), nn.BCEWithLogitsLoss()):
        with pytest.raises(ValueError, match=rf"{named(loss)}: targets outside \[0, 1\]: 1 of 2.*Scale"):
            check_first_batch(loss, good, spoilt)


@pytest.mark.parametrize("bad", [0, 2, 0.5, -1.0001, math.nan])
@pytest.mark.parametrize("loss", SIGNS, ids=named)
def test_targets_that_are_no_sign(loss, bad):
    with pytest.raises(ValueError, match=rf"{named(loss)}: targets that are neither -1 nor 1: 1 of 3.*2 \* y - 1"):
        check_first_batch(loss, rows(3), torch.tensor([1, bad, -1]))


@pytest.mark.parametrize(
    "loss", [*SIGNS, nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss(), MultiClassHingeLoss()], ids=named
)
def test_scores_that_are_none(loss):
    many = loss in SIGNS or isinstance(loss, nn.BCEWithLogitsLoss)
    for bad in (math.nan, math.inf):
        scores = torch.tensor([[0.0, bad]])
        with pytest.raises(ValueError, match=rf"{named(loss)}: predictions that are NaN or infinite: 1 of 2"):
            check_first_batch(loss, scores, torch.ones(1, 2) if many else torch.tensor([0]))


@pytest.mark.parametrize(
    "scores",
    [
        rows(3, 4),
        rows(3, 4).softmax(1),
        log_rows(3, 4) + 0.01,
        torch.full((3, 4), -math.inf),
        log_rows(3, 4) * math.nan,
    ],
    ids=["scores", "probabilities", "a little off", "impossible", "nan"],
)
@pytest.mark.parametrize("loss", [nn.NLLLoss(), nn.KLDivLoss(reduction="batchmean")], ids=named)
def test_rows_that_are_no_log_probabilities(loss, scores):
    target = torch.tensor([0, 1, 3])
    with pytest.raises(ValueError, match=rf"{named(loss)}: sums of prediction rows.*not 1: 3 of 3.*log_?softmax"):
        check_first_batch(loss, scores, target if isinstance(loss, nn.NLLLoss) else one_hot([0, 1, 3]))


def test_log_probabilities_along_the_wrong_axis():
    with pytest.raises(ValueError, match="NLLLoss: sums of prediction rows"):
        check_first_batch(nn.NLLLoss(), log_rows(3, 4, dim=0), torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match="NLLLoss: sums of prediction rows"):
        check_first_batch(nn.NLLLoss(), log_rows(2, 3, 5, dim=2), torch.zeros(2, 5, dtype=torch.int64))


def test_distributions_that_do_not_add_up():
    for loss in (nn.KLDivLoss(reduction="sum"), nn.CrossEntropyLoss()):
        with pytest.raises(ValueError, match=rf"{named(loss)}: sums of target rows that are not 1: 1 of 2.*is 0\.9"):
            check_first_batch(loss, log_rows(2, 4), torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.4, 0, 0]]))
        with pytest.raises(ValueError, match=rf"{named(loss)}: targets outside \[0, 1\]: 2 of 4"):
            check_first_batch(loss, log_rows(1, 4), torch.tensor([[1.5, -0.5, 0, 0]]))


def test_log_target_is_respected():
    log_target = nn.KLDivLoss(reduction="sum", log_target=True)
    with pytest.raises(ValueError, match=r"sums of target rows, read as logarithms.*log_target=False"):
        check_first_batch(log_target, log_rows(2, 4), rows(2, 4).softmax(1))
    with pytest.raises(ValueError, match=r"KLDivLoss: targets outside \[0, 1\]"):
        check_first_batch(nn.KLDivLoss(reduction="sum"), log_rows(2, 4), log_rows(2, 4))


@pytest.mark.parametrize("loss", CLASSES, ids=named)
def test_classes_that_there_are_not(loss):
    for bad in (4, -1, 255):
        with pytest.raises(ValueError, match=rf"{named(loss)}: targets that are no class: 1 of 3.*is {bad}\..*0 to 3"):
            check_first_batch(loss, log_rows(3, 4), torch.tensor([0, bad, 3]))


@pytest.mark.parametrize("loss", CLASSES, ids=named)
@pytest.mark.parametrize(
    "target", [torch.zeros(3, 1).long(), torch.zeros(3), one_hot([0, 1, 1]).long(), torch.zeros(2).long()]
)
def test_targets_of_another_shape_or_kind(loss, target):
    with pytest.raises(
        ValueError, match=rf"{named(loss)}: scores of shape \(3, 4\) need class indices of shape \(3,\)"
    ):
        check_first_batch(loss, log_rows(3, 4), target)


@pytest.mark.parametrize("loss", [*NUMBERS, *SIGNS, nn.BCELoss()], ids=named)
def test_an_empty_batch_breaks_no_rule(loss):
    check_first_batch(loss, torch.zeros(0, 2), torch.zeros(0, 2))


def test_subclasses_are_checked_and_strangers_are_not():
    class Mine(nn.MSELoss):
        pass

    with pytest.raises(ValueError, match="Mine: targets that are NaN"):
        check_first_batch(Mine(), torch.ones(1), torch.tensor([math.nan]))
    check_first_batch(nn.Linear(1, 1), torch.ones(1), torch.tensor([math.nan]))
    check_first_batch(ContrastiveLoss(), torch.ones(2, 3), torch.tensor([0, 1]))


ACTIVATIONS = [
    nn.Identity(), nn.PReLU(), nn.Sigmoid(), nn.Hardsigmoid(), nn.Softmax(1), nn.Tanh(), nn.Softsign(), nn.ReLU(),
    nn.ReLU6(), nn.Softplus(), nn.LogSigmoid(), SoftMinus(), nn.LogSoftmax(1), nn.GELU(), nn.SiLU(), nn.ELU(),
    nn.ELU(0.5), nn.LeakyReLU(), nn.LeakyReLU(0.0), nn.Hardtanh(-2, 3), nn.Sequential(nn.Identity(), nn.Tanh()),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_ranges_of_activations_are_those_they_take(activation):
    """Beside what they do to a fine grid: inside the range, and up to its ends."""
    found = activation_range(activation)
    with torch.no_grad():
        values = activation(torch.cat((torch.linspace(-30, 30, 6001), torch.tensor([-1e6, 1e6])))[None])
    for end, reached in ((found.low, float(values.min())), (found.high, float(values.max()))):
        assert reached == pytest.approx(end, abs=1e-3) if math.isfinite(end) else abs(reached) > 1e3
    assert found.low <= values.min() and values.max() <= found.high


FITS = [
    (nn.MSELoss(), nn.Tanh()), (nn.MSELoss(), nn.Identity()), (nn.MSELoss(), nn.ReLU()), (nn.L1Loss(), nn.Sigmoid()),
    (nn.SmoothL1Loss(), nn.ReLU6()), (nn.HuberLoss(), nn.ELU()), (nn.BCELoss(), nn.Sigmoid()),
    (nn.BCEWithLogitsLoss(), nn.Identity()), (nn.BCEWithLogitsLoss(), nn.LeakyReLU()), (MSLELoss(), nn.Sigmoid()),
    (MSLELoss(), nn.Softplus()), (MSLELoss(), nn.ELU(0.5)), (nn.CrossEntropyLoss(), nn.LogSoftmax(1)),
    (nn.BCELoss(), nn.Conv2d(1, 1, 1)), (nn.MSELoss(), nn.Sequential()),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "activation"), FITS, ids=named)
def test_losses_and_activations_that_fit(loss, activation):
    check_output_range(loss, activation)


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.Tanh(), nn.LeakyReLU(), nn.Softplus()], ids=named)
def test_bce_needs_probabilities(activation):
    with pytest.raises(
        ValueError, match=rf"BCELoss takes \[0, 1\], but an output through {named(activation)} is .*Sigmoid"
    ):
        check_output_range(nn.BCELoss(), activation)


@pytest.mark.parametrize("loss", [nn.KLDivLoss(), nn.NLLLoss()], ids=named)
@pytest.mark.parametrize("activation", [nn.LogSoftmax(1), nn.Sigmoid(), nn.Conv2d(1, 1, 1)], ids=named)
def test_pixels_are_no_distribution_over_classes(loss, activation):
    with pytest.raises(ValueError, match=f"{named(loss)} compares distributions over classes.*MSELoss"):
        check_output_range(loss, activation)


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.ReLU(), nn.Tanh(), SoftMinus(), nn.ELU()], ids=named)
def test_logits_must_not_be_bent(activation):
    with pytest.raises(ValueError, match=f"applies the sigmoid itself.*{named(activation)}.*torch.nn.Identity"):
        check_output_range(nn.BCEWithLogitsLoss(), activation)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Identity(), nn.ELU(), nn.PReLU()], ids=named)
def test_logarithmic_errors_need_more_than_minus_one(activation):
    with pytest.raises(
        ValueError, match=f"MSLELoss takes above -1, but an output through {named(activation)} is .*Softplus"
    ):
        check_output_range(MSLELoss(), activation)


def test_targets_that_an_activation_cannot_reach():
    with pytest.raises(ValueError, match=r"MSELoss: the targets lie in \[0, 1\].*SoftMinus is 0 and below and cannot"):
        check_output_range(nn.MSELoss(), SoftMinus())
    with pytest.raises(ValueError, match=r"L1Loss: the targets lie in \[0, 255\].*Sigmoid is \[0, 1\] and cannot"):
        check_output_range(nn.L1Loss(), nn.Sequential(nn.Flatten(), nn.Sigmoid()), (0, 255))
    with pytest.raises(ValueError, match=r"MSELoss: the targets lie in \[-1, 1\].*ReLU is 0 and above and cannot"):
        check_output_range(nn.MSELoss(), nn.ReLU(), (-1, 1))
    check_output_range(nn.MSELoss(), nn.Tanh(), (-1, 1))


def test_ranges_in_words():
    assert [str(output_range(loss)) for loss in (nn.MSELoss(), nn.BCELoss(), MSLELoss(), nn.KLDivLoss())] == [
        "any number",
        "[0, 1]",
        "above -1",
        "0 and below",
    ]
