"""What a grid of autoencoders is boiled down to: best rates, faults that enter no mean, and PCA as published."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lossopt.data import MNIST
from lossopt.data.dataset import InMemory, LabelledImages, Splits
from lossopt.errors import ConfigError
from lossopt.health import Finding
from lossopt.lab.autoencoder import as_markdown, autoencoders, baselines, check_variants, code_size
from lossopt.lab.grid import Outcome
from lossopt.modules import Autoencoder
from lossopt.runs import RunResult


def config(loss, optimizer, rate, code=2):
    model = {
        "encoder": {"class_path": "lossopt.encoders.DenseEncoder", "init_args": {"embedding_size": code}},
        "loss_fn": {"class_path": f"torch.nn.{loss}"},
        "optimizer": {"class_path": f"torch.optim.{optimizer}", "init_args": {"lr": rate}},
    }
    return {"model": {"class_path": "lossopt.modules.Autoencoder", "init_args": model}}


def outcome(loss, optimizer, rate, seed=0, error=10.0, val_loss=None, variation=0.9, failure=None, health=()):
    """A run of two epochs: 180 untrained, 60, then `error`."""
    errors = [180.0, 60.0, error]
    rows = [{"epoch": 0, "val/error": 180.0, "val/loss": 9.0, "val/variation": 0.0}, {"train/loss": 1.0, "epoch": 0}]
    rows += [
        {
            "epoch": epoch,
            "val/error": errors[epoch],
            "val/loss": errors[epoch] / 100 if val_loss is None else val_loss,
            "val/variation": variation,
            "train/seconds": 4.0 * epoch,
        }
        for epoch in (1, 2)
    ]
    test = {"test/error": error + 1, "test/mse": error / 784, "test/l1": error / 500, "test/smooth_l1": error / 1568}
    result = RunResult(Path("r"), Path("r/best.ckpt"), 2, {}, {}, test, 100, 8.0, [])
    broken = failure is not None
    return Outcome(
        f"{loss} {optimizer} {rate}",
        seed,
        Path("r"),
        config(loss, optimizer, rate),
        None if broken else result,
        rows[:2] if broken else rows,
        tuple(health),
        failure,
    )


def table(images):
    n = len(images)
    pixels = InMemory(torch.from_numpy(images))
    return LabelledImages(pixels, torch.zeros(n, dtype=torch.int64), ("a",), [str(row) for row in range(n)])


@pytest.fixture(scope="module")
def splits():
    draw = np.random.default_rng(0)
    parts = (draw.integers(0, 256, (n, 1, 3, 4), dtype=np.uint8) for n in (30, 9, 11))
    return Splits(*(table(part) for part in parts), "noise", class_disjoint=False)


def mean_image_finding():
    words = "every image is rebuilt as nearly the same one, the mean image"
    return Finding("mean image", 300, 800, 5, {"variation": 0.0}, words, "another rate")


def test_baselines_are_the_mean_image_and_the_eigenvectors_of_the_covariance(splits):
    train, validation, test = (
        part.pixels.images.flatten(1).double().numpy() / 255 for part in (splits.train, splits.validation, splits.test)
    )
    centre = train.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(train.T))
    kept = vectors[:, -3:]

    def error(images, made):
        return np.mean(
            [sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) for pair in zip(images, made, strict=True)]
        )

    found = baselines(splits, 3)
    assert found.components == 3
    assert found.mean_image == pytest.approx(error(test, [centre] * len(test)), rel=1e-5)
    for part, value in ((test, found.pca), (validation, found.pca_validation)):
        assert value == pytest.approx(error(part, centre + (part - centre) @ kept @ kept.T), rel=1e-5)


def test_pca_of_mnist_is_as_published(data_root):
    """13.87: Hinton & Salakhutdinov 2006, Science 313, caption of figure 2; trained on all 60,000 images."""
    found = baselines(MNIST(str(data_root), split="standard", holdout=0).splits(), 30)
    assert found.pca == pytest.approx(13.87, abs=0.005)
    assert found.mean_image == pytest.approx(52.90, abs=0.005)


def test_the_best_rate_has_the_fewest_faults_and_then_the_least_validation_loss(splits):
    outcomes = [
        outcome("MSELoss", "SGD", 0.1, 0, 20.0),
        outcome("MSELoss", "SGD", 0.1, 1, 24.0),
        outcome("MSELoss", "SGD", 1.0, 0, 5.0),  # better, but its other seed is trapped
        outcome("MSELoss", "SGD", 1.0, 1, 52.9, variation=0.001),
        outcome("MSELoss", "SGD", 0.01, 0, 30.0),
        outcome("MSELoss", "SGD", 0.01, 1, 30.0),
        outcome("L1Loss", "Adam", 0.1, 0, 9.0, val_loss=0.5),  # chosen by its own loss, not by the squared error
        outcome("L1Loss", "Adam", 0.2, 0, 12.0, val_loss=0.4),
    ]
    found = autoencoders(outcomes, splits, 2)
    assert found.losses == ("MSELoss", "L1Loss") and found.optimizers == ("SGD", "Adam")
    assert set(found.cells) == {("MSELoss", "SGD"), ("L1Loss", "Adam")}
    best = found.cells["MSELoss", "SGD"]
    assert best.rate == 0.1 and [run.seed for run in best.runs] == [0, 1] and best.faulty == 0
    assert best.scores["error"] == pytest.approx((21 + 25) / 2) and best.scores["mse"] == pytest.approx(22 / 784)
    assert found.cells["L1Loss", "Adam"].rate == 0.2
    assert found.baselines.components == 2


def test_a_fault_enters_no_mean_and_is_named(splits):
    outcomes = [
        outcome("MSELoss", "SGD", 1.0, 0, 5.0),
        outcome("MSELoss", "SGD", 1.0, 1, 52.9, variation=0.0199, health=[mean_image_finding()]),
        outcome("MSELoss", "SGD", 1.0, 2, failure="A NaN or an infinity in step 7."),
        outcome("L1Loss", "SGD", 1.0, 0, 70.0, variation=0.0),
        outcome("L1Loss", "SGD", 2.0, 0, failure="NaN"),
    ]
    found = autoencoders(outcomes, splits, 2)
    cell = found.cells["MSELoss", "SGD"]
    assert cell.faulty == 2 and cell.scores["error"] == 6.0
    assert [run.fault for run in found.faults] == [
        "every image is rebuilt as nearly the same one, the mean image",
        "A NaN or an infinity in step 7.",
        "every image is rebuilt as nearly the same one",
        "NaN",
    ]
    assert found.cells["L1Loss", "SGD"].scores == {}
    text = as_markdown(found)
    assert "| SGD | MSELoss | 1 (2 of 3 seeds failed) | 6.00 |" in text
    assert "4 of 5 runs failed:" in text and "- SGD at 1 on L1Loss, seed 0: every image" in text
    assert "| SGD | L1Loss | 1 (1 of 1 seeds failed) | failed | failed | failed | failed | 4.0 |" in text


def test_a_plateau_that_was_left_is_no_fault(splits):
    one = outcome("MSELoss", "SGD", 1.0, 0, 20.0, variation=0.02, health=[mean_image_finding()])
    assert not autoencoders([one], splits, 2).faults


def test_the_pictures_are_those_that_the_first_seed_of_the_best_rate_left(splits, tmp_path):
    rows = np.arange(4 * 3 * 8, dtype=np.uint8).reshape(4 * 3, 8)  # four rows of images 3 high
    Image.fromarray(rows).save(tmp_path / "reconstructions.png")
    outcomes = [
        outcome("MSELoss", "SGD", 0.1, 0, 9.0)._replace(folder=tmp_path),
        outcome("MSELoss", "SGD", 0.1, 1, 9.0),
        outcome("L1Loss", "SGD", 0.1, 0, 9.0),
    ]
    cells = autoencoders(outcomes, splits, 2).cells
    np.testing.assert_array_equal(cells["MSELoss", "SGD"].strip, rows.reshape(4, 3, 8))
    assert len(cells["L1Loss", "SGD"].strip) == 0


def test_times_are_those_of_training(splits):
    good, bad, broken = autoencoders(
        [
            outcome("MSELoss", "SGD", 1.0, 0, 20.0),
            outcome("MSELoss", "SGD", 1.0, 1, 20.0, variation=0.0),
            outcome("MSELoss", "SGD", 1.0, 2, failure="NaN"),
        ],
        splits,
        2,
    ).runs
    assert good.seconds_per_epoch == 4.0 and math.isnan(broken.seconds_per_epoch)
    assert [good.seconds_to(target) for target in (200.0, 60.0, 59.9, 20.0, 19.0)] == [4.0, 4.0, 8.0, 8.0, math.inf]
    assert bad.seconds_to(60.0) == broken.seconds_to(500.0) == math.inf
    assert (good.at_end, broken.at_end) == (20.0, math.inf)
    assert good.curve == ((0, 180.0), (1, 60.0), (2, 20.0))


def test_losses_and_optimisers_of_one_name_are_told_apart_by_what_differs(splits):
    outcomes = [outcome("SmoothL1Loss", "SGD", 0.1) for _ in range(4)]
    outcomes += [outcome("L1Loss", "Adam", 0.1) for _ in range(2)]
    models = [one.config["model"]["init_args"] for one in outcomes]
    models[0]["loss_fn"]["init_args"] = {"beta": 0.1, "reduction": "mean"}
    for one in models[1:4]:
        one["loss_fn"]["init_args"] = {"beta": 1.0, "reduction": "mean"}
    models[3]["optimizer"]["init_args"]["momentum"] = 0.9
    models[5]["loss_fn"]["class_path"] = "mine.L1Loss"
    found = autoencoders(outcomes, splits, 2)
    assert found.losses == ("SmoothL1Loss (beta 0.1)", "SmoothL1Loss (beta 1.0)", "torch.nn.L1Loss", "mine.L1Loss")
    assert found.optimizers == ("SGD (momentum None)", "SGD (momentum 0.9)", "Adam")
    assert sorted(len(cell.runs) for cell in found.cells.values()) == [1, 1, 1, 1, 2]


def test_variants_that_differ_in_more_are_refused():
    configs = [config("MSELoss", "SGD", 0.1), config("L1Loss", "Adam", 0.3)]
    check_variants([*configs, {**configs[0], "seed": 1, "name": "other"}])
    with pytest.raises(ConfigError, match=r"differ in model.init_args.encoder.init_args.embedding_size, too"):
        check_variants([*configs, config("MSELoss", "SGD", 0.1, code=5)])


def test_the_code_is_measured_and_pca_has_no_more_components_than_there_are(splits):
    network = Autoencoder(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5)), nn.Identity())
    assert code_size(network, splits.test) == 5
    assert baselines(splits, 900).components == 12
    assert baselines(splits, 900).pca == pytest.approx(0, abs=1e-6)
