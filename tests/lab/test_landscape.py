"""The landscape against closed forms, its directions against their definition, and around a really trained network."""

import copy
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import TripletMarginLoss
from torch import nn

from lossopt.checkpoints import weight_history
from lossopt.config import parse
from lossopt.data import Digits
from lossopt.data.augment import RandomAffine
from lossopt.data.dataset import Batch
from lossopt.data.shuffled import ShuffledData
from lossopt.encoders import DenseEncoder
from lossopt.errors import ConfigError, LossoptError
from lossopt.lab import landscape as lab
from lossopt.lab.landscape import Plane, filter_normalised, landscape, losses_on_plane, project, training_loss
from lossopt.miners import BatchHardMiner, RandomTripletMiner
from lossopt.modules import Classification, Embedding, MultitaskNetwork, TripletNetwork
from lossopt.modules.network import TrainedNetwork
from lossopt.runs import load_run
from lossopt.training import train

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
MODEL, DATA = "--model.init_args", "--data.init_args"
WORDS = ["--config", str(CONFIG), f"{DATA}.batches_per_epoch", "6", "--trainer.max_epochs", "4"]
WORDS += [f"{DATA}.source.init_args.image_size", "16", f"{MODEL}.encoder.init_args.width", "8"]
WORDS += ["--retrieval.test", "false", "--trainer.callbacks", '[{"class_path": "lossopt.checkpoints.WeightHistory"}]']
FEW = {"points": 5, "images": 100}


class Toy(TrainedNetwork):
    """A loss of the weights and of the batch, whatever the test asks for."""

    def __init__(self, loss, weights=((1.0, -2.0, 0.5), (3.0, 0.0, -1.0))) -> None:
        super().__init__(torch.optim.SGD, None)
        self.matrix = nn.Parameter(torch.tensor(weights, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([0.7, -0.7], dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.loss = loss

    def training_step(self, batch, batch_idx):
        self.steps += 1
        self.log("train/loss", 0.0)
        return self.loss(self, batch)


def batches(*sizes):
    made = []
    for number, size in enumerate(sizes, start=1):
        rows = torch.arange(size)
        made.append(Batch(torch.full((size, 1, 2, 2), float(number)), rows, rows, 0))
    return made


def plane_of(model, kind="random", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Plane(kind, (filter_normalised(model, generator), filter_normalised(model, generator)), ("x", "y"))


# ------------------------------------------------------------------------------------------------------ directions


def test_each_filter_of_a_direction_is_as_long_as_the_networks_own_and_biases_and_batch_norm_stay():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 6, 5), nn.BatchNorm2d(6), nn.PReLU(6), nn.Flatten(), nn.Linear(6, 4))
    model[0].weight.data[2] *= 1000
    model[0].weight.data[4] = 0
    model[4].bias.requires_grad_(False)
    direction = filter_normalised(model, torch.Generator().manual_seed(5))
    assert set(direction) == {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "4.weight"}
    for name in ("0.weight", "4.weight"):
        weight = dict(model.named_parameters())[name]
        for row, drawn in zip(weight.detach(), direction[name], strict=True):
            assert float(drawn.norm()) == pytest.approx(float(row.norm()), rel=1e-6)
    assert not direction["0.weight"][4].any()
    assert not any(direction[name].any() for name in ("0.bias", "1.weight", "1.bias", "2.weight"))
    again = filter_normalised(model, torch.Generator().manual_seed(5))
    assert all(torch.equal(direction[name], again[name]) for name in direction)
    cosine = nn.functional.cosine_similarity(direction["0.weight"][0], model[0].weight[0], dim=0)
    assert cosine.abs().max() < 1  # drawn, not copied
    two = plane_of(model).directions
    assert not torch.equal(two[0]["4.weight"], two[1]["4.weight"])


def test_the_plane_of_the_training_is_that_of_the_two_principal_components():
    model = Toy(lambda toy, batch: toy.matrix.sum())
    away = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    away[3] = 0
    plane = lab._plane(model, None, list(away), seed=0)
    centred = away - away.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T.astype(float) @ centred)
    shares = values[::-1] / values.sum()
    assert plane.kind == "training"
    assert [f"{share:.0%}" in axis for share, axis in zip(shares, plane.axes, strict=False)] == [True, True]
    for number, direction in enumerate(plane.directions):
        found = np.concatenate([direction["matrix"].ravel(), direction["bias"]])
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
        assert abs(found @ vectors[:, -1 - number]) == pytest.approx(1, abs=1e-5)
    assert direction["matrix"].shape == (2, 3) and direction["matrix"].dtype == torch.float64


def test_too_few_checkpoints_elsewhere_than_the_centre_make_random_directions_and_a_refusal_if_others_are_asked_for():
    model, away = Toy(lambda toy, batch: toy.matrix.sum()), [np.zeros(8), np.zeros(8), np.ones(8)]
    assert lab._plane(model, None, away, 0).kind == "random"
    assert lab._plane(model, "random", [np.ones(8), np.arange(8.0)], 0).kind == "random"
    with pytest.raises(ConfigError, match=r"two checkpoints besides the centre, but this run has 1\. .*WeightHistory"):
        lab._plane(model, "training", away, 0)
    elsewhere = list(np.random.default_rng(0).normal(size=(4, 8)))
    kinds = [lab._plane(model, None, [np.zeros(8), *elsewhere[:many]], 0).kind for many in (2, 3, 4)]
    assert kinds == ["random", "random", "training"]
    assert lab._plane(model, "training", elsewhere[:2], 0).kind == "training"


def test_checkpoints_are_projected_by_least_squares_also_on_directions_that_are_not_orthogonal():
    first, second = torch.tensor([1.0, 0, 0, 0]), torch.tensor([3.0, 4.0, 0, 0])
    plane = Plane("random", ({"w": first}, {"w": second}), ("", ""))
    away = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [3, 4, 0, 0], [5, 4, 0, 0], [4, 4, 4, 4], [0, 0, 0, 2]], np.float32)
    path, apart = project(plane, away)
    np.testing.assert_allclose(path, [[0, 0], [1, 0], [0, 1], [2, 1], [1, 1], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(apart, [0, 0, 0, 0, 0.5, 1], atol=1e-6)


def test_the_plane_of_the_training_holds_the_whole_path_with_room_and_the_centre_as_a_place():
    path = np.array([[-7.3, 0.2], [-1.0, 3.1], [0, 0], [0.4, -0.1]])
    for points, reach in ((5, 0.5), (21, 1.0), (25, 3.0)):
        for side, along in zip(lab._sides("training", path, points, reach), path.T, strict=True):
            assert len(side) == points and (side == 0).sum() == 1
            np.testing.assert_allclose(np.diff(side), side[1] - side[0])
            room, step = np.ptp(along) * reach / 4, side[1] - side[0]
            assert along.min() - room - step <= side[0] <= along.min() - room + 1e-9
            assert along.max() + room - 1e-9 <= side[-1] <= along.max() + room + step
    flat = lab._sides("training", path * [1, 0], 5, 1.0)[1]
    assert np.ptp(flat) > 0.1 and 0 in flat
    side = lab._sides("random", path, 21, 0.7)[0]
    assert (side[0], side[10], side[-1]) == (pytest.approx(-0.7), 0, pytest.approx(0.7))


# ------------------------------------------------------------------------------------------------------ the loss


def test_on_a_quadratic_the_landscape_is_the_closed_form_and_the_model_is_left_as_it_was():
    target = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    model = Toy(lambda toy, batch: batch.images.mean() * (toy.matrix - target).square().sum() + toy.bias.sum())
    plane, given = plane_of(model), batches(3, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = np.array([-1.0, 0.0, 0.3]), np.array([-2.0, 0.0])
    found = losses_on_plane(model, given, plane, x, y)
    w, t = before["matrix"].numpy(), target.numpy()
    u, v = (direction["matrix"].numpy() for direction in plane.directions)
    scale = (3 * 1 + 5 * 2) / 8  # the mean over images, not over batches
    for row, column in np.ndindex(2, 3):
        expected = scale * np.square(w + x[column] * u + y[row] * v - t).sum() + 0.7 - 0.7
        assert found[row, column] == pytest.approx(expected, rel=1e-12)
    assert found[1, 1] == training_loss(model, given)
    model.load_state_dict(before)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_every_place_starts_from_the_state_of_the_centre_and_draws_the_same_numbers():
    model = Toy(lambda toy, batch: toy.steps + torch.rand(()))
    global_numbers = torch.get_rng_state()
    found = losses_on_plane(model, batches(2, 2), plane_of(model), np.arange(3.0), np.arange(2.0))
    assert len(np.unique(found)) == 1 and 1.5 < found[0, 0] < 2.5
    assert int(model.steps) == 0 and torch.equal(torch.get_rng_state(), global_numbers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(77)  # what was drawn before changes nothing
        assert losses_on_plane(model, batches(2, 2), plane_of(model), np.zeros(1), np.zeros(1))[0, 0] == found[0, 0]


def test_a_place_without_a_finite_loss_is_a_gap():
    def fragile(toy, batch):
        first = float(toy.matrix.detach()[0, 0])
        if first > 2:
            raise ValueError("probabilities must lie in [0, 1]")
        return None if first < 0 else torch.tensor(np.inf) if first > 1.5 else toy.matrix[0, 0]

    model = Toy(fragile)
    directions = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    first = {
        **directions,
        "matrix": directions["matrix"].clone().index_put_((torch.tensor(0),) * 2, torch.tensor(1.0).double()),
    }
    found = losses_on_plane(
        model, batches(2), Plane("random", (first, directions), ("", "")), np.linspace(-2, 2, 5), np.zeros(1)
    )
    np.testing.assert_array_equal(found, [[np.nan, 0, 1, np.nan, np.nan]])
    assert float(model.matrix.detach()[0, 0]) == 1


def test_a_step_that_gives_no_loss_is_refused():
    with pytest.raises(ConfigError, match="training step of Toy returns dict, not a loss"):
        training_loss(Toy(lambda toy, batch: {"loss": 1.0}), batches(2))
    with pytest.raises(ConfigError, match="returns Tensor, not a loss"):
        training_loss(Toy(lambda toy, batch: toy.bias * 1), batches(2))


def test_a_miner_is_left_out_although_checkpoints_hold_its_state():
    torch.manual_seed(0)
    encoder, loss_fn = DenseEncoder(4, [8], image_size=2), TripletMarginLoss(margin=1.0)
    network = TripletNetwork(encoder, loss_fn, RandomTripletMiner(1)).eval()
    batch = Batch(torch.rand(12, 1, 2, 2), torch.arange(12) % 3, torch.arange(12), 0)
    state = copy.deepcopy(network.state_dict())
    assert any(name.startswith("miner.") for name in state)
    assert "The miner, RandomTripletMiner, is left out" in lab.compare_everything(network)[0]
    every = loss_fn(network(batch.images), batch.labels).item()
    assert training_loss(network, [batch]) == pytest.approx(every)
    moved = {name: value + 1 if name == "encoder.project.bias" else value for name, value in state.items()}
    found = lab.loss_of_state(network, [batch], moved)
    network.encoder.project.bias.data += 1
    assert found == pytest.approx(loss_fn(network(batch.images), batch.labels).item()) and found != every
    assert lab.compare_everything(network) == []


def test_hard_examples_and_the_miner_of_a_head_are_left_out():
    torch.manual_seed(0)
    heads = {"classification": Classification(3), "embedding": Embedding(4, TripletMarginLoss(), BatchHardMiner())}
    trunk = DenseEncoder(5, [8], image_size=2)
    network = MultitaskNetwork(trunk, 5, **heads, hard_example_fraction=0.1).eval()
    batch = Batch(torch.rand(12, 1, 2, 2), torch.arange(12) % 3, torch.arange(12), 0)
    assert [note[:12] for note in lab.compare_everything(network)] == ["All examples", "The miner of"]
    assert lab.compare_everything(network) == []
    outputs = network(batch.images)
    every = F.cross_entropy(outputs["classification"], batch.labels)
    every = every + TripletMarginLoss()(outputs["embedding"], batch.labels)
    assert training_loss(network, [batch]) == pytest.approx(every.item())


def test_the_batches_are_the_runs_own_first_ones_without_augmentation():
    data = ShuffledData(Digits(split="closed"), batch_size=100, augment=[RandomAffine(degrees=90)])
    model = Toy(lambda toy, batch: toy.matrix.sum())
    found = lab.training_batches(model, data, 5, 150)
    assert [len(batch.labels) for batch in found] == [100, 100] and data.seed == 5
    table = data.training_table()
    for batch in found:
        stored = table.batch(batch.ids).images
        assert torch.equal(batch.images, stored.float() / 255) and torch.equal(batch.labels, table.labels[batch.ids])
    assert len(set(torch.cat([batch.ids for batch in found]).tolist())) == 200
    assert len(lab.training_batches(model, data, 5, 10**6)) == len(table) // 100


# ------------------------------------------------------------------------------------------------------ a trained run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        return train(parse([*WORDS, "--output", str(place)])).folder


@pytest.fixture(scope="module")
def around(folder):
    return landscape(folder, **FEW)


def loss_by_definition(run, state=None):
    """Mean over all triplets of the first batch (16 classes x 8 images) of max(0, d(a,p) - d(a,n) + 0.2)."""
    run.data.seed = 0
    rows = next(iter(run.data.sampler))
    table = run.data.training_table()
    if state is not None:
        run.model.load_state_dict(state)
    with torch.no_grad():
        embedded = run.model.eval()(table.batch(rows).images / 255).double()
    distance, labels = torch.cdist(embedded, embedded), table.labels[rows]
    same = labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(rows), dtype=torch.bool)
    hinge = (distance[:, :, None] - distance[:, None, :] + 0.2).clamp(min=0)
    return float(hinge[positive[:, :, None] & ~same[:, None, :]].mean())


def test_the_centre_is_the_loss_of_the_best_checkpoint_and_the_path_that_of_the_others(folder, around):
    run = load_run(folder)
    row, column = list(around.y).index(0), list(around.x).index(0)
    assert around.loss.shape == (5, 5) and np.isfinite(around.loss).all()
    assert around.loss[row, column] == pytest.approx(loss_by_definition(run), rel=1e-5)
    assert list(around.epochs) == [0, 1, 2, 3, 4]
    for epoch, path in weight_history(folder).items():
        expected = loss_by_definition(run, torch.load(path, weights_only=True))
        assert around.path_loss[epoch] == pytest.approx(expected, rel=1e-5)
    best = int(np.flatnonzero((around.path == 0).all(axis=1))[0])
    assert f"at epoch {best}" in around.title and around.path_loss[best] == around.loss[row, column]
    assert around.apart[best] == 0 and (around.apart <= 1 + 1e-6).all() and around.apart.max() > 0
    assert any("SemiHardMiner, is left out" in note for note in around.notes)
    assert any("running statistics" in note for note in around.notes)
    assert str(folder.parent) not in str(around)


def test_the_same_seed_gives_the_same_bits_and_a_file_of_the_run_does_as_well(folder, around):
    again = landscape(folder / "checkpoints" / "best.ckpt", **FEW)
    for one, other in zip(around, again, strict=True):
        np.testing.assert_array_equal(one, other)
    one, other, third = (
        landscape(folder, points=3, images=100, directions="random", seed=seed).loss for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, other)
    assert (one != third).sum() == 8 and one[1, 1] == third[1, 1]


def test_without_a_history_the_start_is_made_again_from_the_seed(folder, tmp_path):
    start = torch.load(weight_history(folder)[0], weights_only=True)
    config, drawn = load_run(folder).config, []
    for meanwhile in (lambda: None, lambda: drawn.append(lab.untrained(config))):
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        meanwhile()
        drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
    undisturbed, rebuilt, after = drawn
    assert rebuilt.keys() == start.keys() and all(torch.equal(rebuilt[name], start[name]) for name in start)
    assert after == undisturbed
    bare = tmp_path / "run"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("history"))
    found = landscape(bare, points=3, images=100)
    assert set(found.epochs) >= {0, 3, 4} and len(found.path) == len(found.epochs) == len(found.path_loss)
    assert any("made again from the seed" in note for note in found.notes)
    other = bare / "checkpoints" / "epoch=003-step=18.ckpt"  # not the best, for it would be the centre
    other.write_bytes(other.read_bytes()[:-200])
    damaged = landscape(bare, points=3, images=100)
    assert list(damaged.epochs) == [0, 4] and "Epoch 3 is left out: its file is damaged." in damaged.notes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": 4}, "points is 4; give an odd number"),
        ({"points": 1}, "points is 1"),
        ({"reach": 0.0}, "reach is 0.0"),
        ({"reach": float("nan")}, "reach is nan"),
        ({"images": 0}, "images is 0"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_is_read(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        landscape(tmp_path, **arguments)


def test_a_run_without_a_finite_loss_at_the_centre_is_refused(folder, monkeypatch):
    monkeypatch.setattr(lab, "training_loss", lambda model, batches: float("nan"))
    with pytest.raises(ConfigError, match=r"TripletNetwork at epoch \d gives no finite loss"):
        landscape(folder)


def test_what_is_no_run_or_has_no_good_checkpoint_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="There is no checkpoint at"):
        landscape(tmp_path)
    bare = tmp_path / "run"
    shutil.copytree(folder, bare)
    (bare / "checkpoints" / "best.ckpt").write_bytes(b"")
    with pytest.raises(LossoptError, match="empty"):
        landscape(bare)
