"""The multitask network: its figures against scikit-learn's, its loss by definition, and what it refuses."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from pytorch_lightning import Trainer
from pytorch_metric_learning.losses import ArcFaceLoss, TripletMarginLoss
from sklearn.metrics import accuracy_score, balanced_accuracy_score, mean_absolute_error, r2_score
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from lossopt.cli import main
from lossopt.data import InMemory, LabelledImages, ShuffledData, Splits
from lossopt.encoders import ConvGrid, DenseEncoder
from lossopt.errors import ConfigError, DataError
from lossopt.losses import MSLELoss, SupConLoss
from lossopt.losses.balancing import FixedWeights, UncertaintyWeighting
from lossopt.miners import BatchHardMiner
from lossopt.modules import Classification, Embedding, MultitaskNetwork, Regression
from lossopt.modules.scores import accuracy, balanced_accuracy, r_squared
from lossopt.retrieval.evaluation import evaluate_retrieval

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")


class Blobs:
    """Bright squares on dark 16 x 16 images: three sizes are the classes, place and glow the targets."""

    names = ("x", "y", "glow")

    def table(self, n, seed):
        generator = np.random.default_rng(seed)
        images, labels = np.zeros((n, 1, 16, 16), np.uint8), np.arange(n) % 3
        targets = np.empty((n, 3), np.float32)
        for row in range(n):
            side, glow = 2 + 2 * labels[row], generator.integers(80, 256)
            x, y = generator.integers(0, 16 - side + 1, 2)
            images[row, 0, y : y + side, x : x + side] = glow
            targets[row] = x + side / 2, y + side / 2, 1e4 * glow
        return LabelledImages(
            pixels=InMemory(torch.from_numpy(images)),
            labels=torch.from_numpy(labels),
            class_names=("small", "middle", "large"),
            names=[f"{seed}/{row}" for row in range(n)],
            targets=torch.from_numpy(targets),
            target_names=self.names,
        )

    def splits(self):
        return Splits(self.table(192, 0), self.table(60, 1), self.table(50, 2), "Blobs.", class_disjoint=False)


SPLITS = Blobs().splits()


class Plain(nn.Module):
    """A user's own loss, without a `reduction`."""

    def forward(self, outputs, wanted):
        return F.cross_entropy(outputs, wanted)


def network(classification=True, regression=True, seed=0, **settings):
    torch.manual_seed(seed)
    return MultitaskNetwork(
        ConvGrid(12, channels=1, image_size=16, widths=[4, 6]),
        12,
        Classification(3) if classification is True else classification,
        Regression(["y", "x"], points={"centre": ["x", "y"]}) if regression is True else regression,
        **settings,
    )


def trainer(path, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**quiet, enable_checkpointing=False, default_root_dir=path, num_sanity_val_steps=0, **settings)


# -- figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    n = 37
    labels = torch.randint(0, 2 + seed, (n,), generator=generator) * 2  # gaps: some classes have no image
    predicted = torch.where(torch.rand(n, generator=generator) < 0.6, labels, torch.randint(0, 9, (n,)))
    assert accuracy(predicted, labels) == pytest.approx(accuracy_score(labels, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a predicted class is not among the true ones
        assert balanced_accuracy(predicted, labels) == pytest.approx(balanced_accuracy_score(labels, predicted))
    targets = torch.randn(n, 3, generator=generator) * torch.tensor([1e-3, 1.0, 1e5]) + torch.tensor([0.0, 5.0, 1e6])
    guess = targets + targets.std(dim=0) * torch.randn(n, 3, generator=generator) * torch.tensor([0.1, 1.0, 3.0])
    expected = r2_score(targets.double(), guess.double(), multioutput="raw_values")
    np.testing.assert_allclose(r_squared(guess, targets), expected, rtol=1e-9, atol=1e-12)


def test_undefined_figures_are_the_value_that_was_asked_for():
    none = torch.empty(0, dtype=torch.int64)
    assert math.isnan(accuracy(none, none)) and math.isnan(balanced_accuracy(none, none))
    assert balanced_accuracy(none, none, undefined=0.5) == accuracy(none, none, undefined=0.5) == 0.5
    constant = torch.tensor([[0.1, 1.0], [0.1, 2.0], [0.1, 4.0]])
    assert r_squared(constant, constant, undefined=-7).tolist() == [-7, 1]
    assert r_squared(torch.zeros(1, 2), torch.ones(1, 2)).isnan().all()
    assert r_squared(torch.zeros(0, 2), torch.ones(0, 2)).isnan().all()


def test_a_split_is_scored_as_a_whole_and_in_its_own_units(tmp_path):
    model = network()
    model.check_data(SPLITS)
    data = ShuffledData(Blobs(), batch_size=32, evaluation_batch_size=11)  # the last batch is smaller
    runner = trainer(tmp_path)
    runner.test(model, datamodule=data, verbose=False)
    found = {name: float(value) for name, value in runner.callback_metrics.items()}
    assert set(found) == {f"test/{name}" for name in model.metrics}
    assert model.metrics[:2] == ("accuracy", "balanced_accuracy") and model.metrics[-1] == "loss"
    table = SPLITS.test
    with torch.no_grad():
        scores, numbers = model.eval()(table.pixels.images.float() / 255).values()
    train, true = SPLITS.train.targets[:, [1, 0]].double().numpy(), table.targets[:, [1, 0]].double().numpy()
    mean, std = train.mean(axis=0), train.std(axis=0)
    guess = numbers.double().numpy() * std + mean
    named = scores.argmax(1)
    assert found["test/accuracy"] == pytest.approx(accuracy_score(table.labels, named))
    assert found["test/balanced_accuracy"] == pytest.approx(balanced_accuracy_score(table.labels, named))
    for column, name in enumerate(("y", "x")):
        assert found[f"test/r2/{name}"] == pytest.approx(r2_score(true[:, column], guess[:, column]), rel=1e-4)
        absolute = mean_absolute_error(true[:, column], guess[:, column])
        assert found[f"test/mae/{name}"] == pytest.approx(absolute, rel=1e-5)
    assert found["test/distance/centre"] == pytest.approx(np.hypot(*(guess - true).T).mean(), rel=1e-5)
    loss = F.cross_entropy(scores, table.labels)
    loss += F.smooth_l1_loss(numbers, torch.from_numpy((true - mean) / std).float())
    assert found["test/loss"] == pytest.approx(float(loss), rel=1e-5)


def test_recall_of_the_embedding_is_that_of_an_evaluation(tmp_path):
    model = network(embedding=Embedding(5, SupConLoss()))
    runner = trainer(tmp_path)
    runner.validate(model, datamodule=ShuffledData(Blobs(), evaluation_batch_size=7), verbose=False)
    with torch.no_grad():
        vectors = model.eval().embedder(SPLITS.validation.pixels.images.float() / 255)
    torch.testing.assert_close(torch.linalg.vector_norm(vectors, dim=1), torch.ones(60))
    expected = evaluate_retrieval(vectors.numpy(), SPLITS.validation.labels.numpy()).metrics
    for name in ("recall@1", "map@r"):
        assert float(runner.callback_metrics[f"val/{name}"]) == pytest.approx(expected[name], rel=1e-5)
    lone = Embedding(5, SupConLoss()).scores(vectors[:3], torch.arange(3))
    assert all(math.isnan(value) for value in lone.values())


# -- the loss ----------------------------------------------------------------------------------------------------------


def outputs_and_wanted(b=9, seed=3):
    generator = torch.Generator().manual_seed(seed)
    outputs = {"classification": torch.randn(b, 3, generator=generator), "regression": torch.randn(b, 2)}
    wanted = {"classification": torch.arange(b) % 3, "regression": torch.randn(b, 2, generator=generator)}
    return outputs, wanted


def hard_by_definition(outputs, wanted, weights, share):
    """The paper's: forward all, take the examples with the largest total loss, and average over these alone."""
    b = len(wanted["classification"])
    each = []
    for row in range(b):
        one = slice(row, row + 1)
        entropy = F.cross_entropy(outputs["classification"][one], wanted["classification"][one])
        smooth = F.smooth_l1_loss(outputs["regression"][one], wanted["regression"][one])
        each.append((float(weights[0] * entropy + weights[1] * smooth), row))
    rows = [row for _, row in sorted(each, reverse=True)[: math.ceil(share * b)]]
    entropy = F.cross_entropy(outputs["classification"][rows], wanted["classification"][rows])
    return weights[0] * entropy + weights[1] * F.smooth_l1_loss(outputs["regression"][rows], wanted["regression"][rows])


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.1, 3.0)])
def test_only_the_hardest_share_of_a_batch_counts(share, weights):
    model = network(balancing=FixedWeights(*weights), hard_example_fraction=share)
    outputs, wanted = outputs_and_wanted()
    torch.testing.assert_close(model.loss_of(outputs, wanted), hard_by_definition(outputs, wanted, weights, share))


def test_balancing_is_trained_and_the_embedding_sees_the_whole_batch():
    metric = TripletMarginLoss()
    model = network(
        embedding=Embedding(4, metric), balancing=UncertaintyWeighting(), hard_example_fraction=0.5, lr_scheduler=None
    )
    assert {id(p) for p in model.balancing.parameters()} <= {id(p) for p in model.parameters()}
    outputs, wanted = outputs_and_wanted()
    outputs["embedding"], wanted["embedding"] = F.normalize(torch.randn(9, 4)), wanted["classification"]
    rest = {task: outputs[task] for task in ("classification", "regression")}
    expected = hard_by_definition(rest, wanted, (1.0, 0.5), 0.5) + metric(outputs["embedding"], wanted["embedding"])
    torch.testing.assert_close(model.loss_of(outputs, wanted).detach(), expected)


def test_a_miner_that_finds_nothing_leaves_the_other_tasks():
    head = Embedding(4, TripletMarginLoss(), BatchHardMiner())
    head.attach(6)
    made = head(torch.randn(5, 6))
    loss = head.loss(made, torch.zeros(5, dtype=torch.int64))  # one class: no negative
    loss.backward()
    assert float(loss.detach()) == 0 and float(head.layer.weight.grad.abs().sum()) == 0


def test_class_weights_are_those_of_scikit_learn_and_travel_with_the_weights():
    rows = torch.tensor([0, 3, 6, 9, 12, 1, 4, 2])  # 5, 2 and 1 images of the three classes
    splits = replace(SPLITS, train=SPLITS.train.select(rows))
    model = network(Classification(3, class_weights="balanced"))
    model.check_data(splits)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=splits.train.labels.numpy())
    np.testing.assert_allclose(model.classification.loss_fn.weight, expected, rtol=1e-6)
    again = network(Classification(3, class_weights="balanced"), seed=1)
    again.load_state_dict(model.state_dict())
    np.testing.assert_allclose(again.classification.loss_fn.weight, expected, rtol=1e-6)
    torch.testing.assert_close(again.regression.mean, splits.train.targets[:, [1, 0]].mean(dim=0))
    with pytest.raises(ConfigError, match="BCEWithLogitsLoss takes no weights of classes"):
        Classification(3, nn.BCEWithLogitsLoss(), "balanced")


def test_targets_are_standardised_so_that_units_do_not_matter():
    model = network(regression=Regression(["glow", "x"]))
    model.check_data(SPLITS)
    wanted = model.regression.wanted(SPLITS.train.batch(range(192))).double()
    torch.testing.assert_close(wanted.mean(dim=0), torch.zeros(2).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(wanted.std(dim=0, correction=0), torch.ones(2).double(), atol=1e-5, rtol=0)
    own = model.regression.in_own_units(wanted.float())
    torch.testing.assert_close(own, SPLITS.train.targets[:, [2, 0]], rtol=1e-4, atol=1e-3)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"classification": None, "regression": None}, "needs a classification or a regression"),
        ({"hard_example_fraction": 0.0}, r"a share in \(0, 1\], got 0.0"),
        ({"hard_example_fraction": 1.5}, "got 1.5"),
        (
            {
                "classification": Classification(3, Plain()),
                "hard_example_fraction": 0.5,
            },
            "needs the loss of each example, which Plain does not give",
        ),
    ],
)
def test_networks_that_cannot_be_trained_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        network(**settings)


def test_heads_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match="2 or more classes, got 1"):
        Classification(1)
    for targets in ([], ["x", "x"]):
        with pytest.raises(ConfigError, match="one or more different targets, got"):
            Regression(targets)
    with pytest.raises(ConfigError, match=r"The point 'centre' has the targets \['x', 'z'\]"):
        Regression(["x", "y"], points={"centre": ["x", "z"]})
    with pytest.raises(ConfigError, match="embedding_size is 0"):
        Embedding(0, SupConLoss())


def spoilt(column, row, value):
    targets = SPLITS.train.targets.clone()
    targets[row, column] = value
    return targets


BARE = replace(SPLITS.train, targets=None, target_names=())
REFUSED = [
    ({}, {"train": replace(SPLITS.train, targets=spoilt(1, 17, math.nan))}, DataError, "y of row 17, 0/17"),
    (
        {},
        {"validation": replace(SPLITS.train, targets=spoilt(0, 4, math.inf))},
        DataError,
        "of the validation split.*x of row 4",
    ),
    (
        {},
        {"train": replace(SPLITS.train, targets=SPLITS.train.targets * 0 + 3)},
        DataError,
        "the same y, x: there is nothing",
    ),
    ({}, dict.fromkeys(("train", "validation", "test"), BARE), DataError, "have no targets, which a regression needs"),
    ({}, {"test": replace(SPLITS.test, target_names=("y", "x", "glow"))}, DataError, "have different targets"),
    ({"regression": Regression(["x", "z"])}, {}, ConfigError, "no target z; they have x, y, glow"),
    ({"classification": Classification(4)}, {}, ConfigError, "has 4 classes, but the training images have 3: small,"),
    (
        {"classification": Classification(2)},
        {"train": SPLITS.train.select(SPLITS.train.labels < 2)},
        DataError,
        "1 classes of the validation split have no training image.*: large",
    ),
    (
        {},
        {"train": SPLITS.train.select(SPLITS.train.labels < 2).numbered_as(("small", "middle", "large"))},
        DataError,
        "no training image.*: large",
    ),
    (
        {"regression": Regression(["x"], nn.BCELoss(), standardize=False)},
        {},
        ConfigError,
        r"does not fit the targets of the train split. BCELoss: targets outside",
    ),
]


@pytest.mark.parametrize(("settings", "changed", "kind", "says"), REFUSED)
def test_data_that_do_not_fit_are_named_before_training(settings, changed, kind, says):
    with pytest.raises(kind, match=says):
        network(**settings).check_data(replace(SPLITS, **changed))


class Float(nn.Module):
    """A user's own loss that gives no tensor."""

    def forward(self, outputs, wanted):
        return float(F.mse_loss(outputs, wanted))


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        ({"classification": Classification(3, nn.CosineEmbeddingLoss())}, r"loss of the classification does not fit"),
        ({"classification": Classification(3, nn.CrossEntropyLoss(reduction="none"))}, "no single number"),
        ({"regression": Regression(["x"], nn.GaussianNLLLoss())}, r"called as GaussianNLLLoss\(outputs, wanted\)"),
        ({"regression": Regression(["x"], Float())}, "Float gives no single number"),
        ({"regression": Regression(["x"], nn.MSELoss(reduction="none"))}, "MSELoss gives no single number"),
        ({"embedding": Embedding(8, ArcFaceLoss(2, 8))}, "has num_classes 2, but training has 3 classes"),
        ({"embedding": Embedding(8, ArcFaceLoss(3, 9))}, "loss of the embedding does not fit"),
        ({"embedding": Embedding(8, nn.TripletMarginLoss())}, "loss of the embedding does not fit"),
    ],
)
def test_a_loss_that_does_not_fit_its_head_is_named_before_training(heads, says):
    made = MultitaskNetwork(DenseEncoder(8, [8], 16), 8, **{"classification": Classification(3)} | heads)
    with pytest.raises(ConfigError, match=says):
        made.check_data(SPLITS)


def test_a_loss_in_a_targets_own_unit_sees_it_so_and_every_target_is_looked_at():
    with pytest.raises(
        ConfigError, match=r"MSLELoss means nothing on standardised targets\. Set .*standardize to false"
    ):
        Regression(["glow"], MSLELoss())
    regression = Regression(["glow"], MSLELoss(), standardize=False)
    made = MultitaskNetwork(DenseEncoder(8, [8], 16), 8, regression=regression)
    late = SPLITS.train.targets.clone()
    late[150, 2] = -1000.0
    spoilt = replace(SPLITS, train=replace(SPLITS.train, targets=late))
    with pytest.raises(ConfigError, match=r"targets of the train split.*-1"):
        made.regression.check(spoilt)
    made.regression.check(SPLITS)
    batch = SPLITS.train.batch([3, 4])
    assert torch.equal(made.regression.wanted(batch), batch.targets[:, 2:])


def test_a_class_without_a_training_image_is_named_first():
    kept = SPLITS.train.select(SPLITS.train.labels != 1)
    with pytest.raises(DataError, match=r"have no training image.*middle"):
        Classification(3).check(replace(SPLITS, train=kept, validation=SPLITS.validation.numbered_as(kept.class_names)))


def test_a_trunk_that_does_not_fit_is_named_before_training():
    wrong_size = MultitaskNetwork(DenseEncoder(5, [8], 16), 6, Classification(3))
    with pytest.raises(ConfigError, match=r"gives 5 numbers for an image, but model.init_args.features is 6"):
        wrong_size.check_data(SPLITS)
    wrong_images = MultitaskNetwork(DenseEncoder(5, [8], 28), 5, Classification(3))
    with pytest.raises(ConfigError, match=r"The images are 1 x 16 x 16, which does not fit the trunk"):
        wrong_images.check_data(SPLITS)
    with pytest.raises(ConfigError, match="has no embeddings to search"):
        _ = wrong_size.embedder


def test_a_nan_in_a_target_that_is_not_asked_for_does_no_harm():
    network().check_data(replace(SPLITS, train=replace(SPLITS.train, targets=spoilt(2, 5, math.nan))))
    network(regression=None).check_data(replace(SPLITS, train=BARE))


# -- training ----------------------------------------------------------------------------------------------------------


def test_it_learns_what_and_where_at_once(tmp_path):
    model = network(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01))
    model.check_data(SPLITS)
    runner = trainer(tmp_path, max_epochs=20)
    runner.fit(model, datamodule=ShuffledData(Blobs(), batch_size=32, seed=0))
    found = runner.callback_metrics
    assert float(found["val/balanced_accuracy"]) > 0.9
    assert min(float(found["val/r2/x"]), float(found["val/r2/y"])) > 0.8


def test_the_command_trains_a_plain_classifier(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    trunk = {
        "class_path": "lossopt.encoders.DenseEncoder",
        "init_args": {"embedding_size": 8, "widths": [16], "image_size": 8},
    }
    model = {
        "trunk": trunk,
        "features": 8,
        "classification": {"class_path": "lossopt.modules.Classification", "init_args": {"classes": 10}},
    }
    config = {
        "model": {"class_path": "lossopt.modules.MultitaskNetwork", "init_args": model},
        "data": {
            "class_path": "lossopt.data.ShuffledData",
            "init_args": {
                "source": {"class_path": "lossopt.data.Digits", "init_args": {"split": "closed"}},
                "batch_size": 64,
            },
        },
        "trainer": {"max_epochs": 1},
        "checkpoint": {"monitor": "val/balanced_accuracy", "mode": "max"},
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--config", "config.yaml"]) == 0
    results = json.loads(next(Path("runs").rglob("results.json")).read_text())
    assert set(results["test"]) == {"test/accuracy", "test/balanced_accuracy", "test/loss"}
    assert results["untrained"]["val/loss"] > results["validation"]["val/loss"]


def test_the_grid_of_maps_keeps_places_and_refuses_sizes_that_do_not_halve():
    torch.manual_seed(0)
    encoder = ConvGrid(6, channels=1, image_size=32, widths=[4, 5, 7]).eval()
    image = torch.zeros(1, 1, 32, 32)
    image[..., 2:6, 2:6] = 1
    here, there = encoder(image), encoder(image.roll(16, dims=-1))
    assert here.shape == (1, 6) and not torch.allclose(here, there, atol=1e-3)
    assert encoder.project.in_features == 7 * 2 * 2
    for wrong in ({"image_size": 40}, {"image_size": 0}, {"widths": [8]}, {"widths": [8, 0]}):
        with pytest.raises(ValueError, match=r"a multiple of 16, not|two or more widths of 1 or more, got"):
            ConvGrid(**wrong)
