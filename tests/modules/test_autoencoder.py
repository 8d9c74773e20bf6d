"""The autoencoder: its figures by definition, what it refuses before training, and the trap of one image for all."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer, seed_everything
from torch import nn

from lossopt.callbacks import FiniteGuard, KeepReconstructions, TrainingHealth
from lossopt.callbacks.reconstructions import RECONSTRUCTIONS, read_reconstructions
from lossopt.data import MNIST, Digits, ShuffledData
from lossopt.data.module import to_float
from lossopt.decoders import ConvDecoder, Decoder, DenseDecoder
from lossopt.encoders import Conv4, DenseEncoder
from lossopt.errors import ConfigError, DataError, NonFiniteError
from lossopt.losses import ContrastiveLoss, MSLELoss
from lossopt.modules import Autoencoder
from lossopt.modules.autoencoder import one_image, variation

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")


def digits(**settings):
    return ShuffledData(Digits(split="closed"), batch_size=64, seed=0, **settings)


def small(loss_fn=None, output=None, optimizer=torch.optim.Adam, batch_norm=True):
    torch.manual_seed(0)
    shape = {"image_size": 8, "batch_norm": batch_norm}
    encoder, decoder = DenseEncoder(8, [32], **shape), DenseDecoder(8, [32], **shape, output=output)
    return Autoencoder(encoder, decoder, loss_fn, optimizer)


def trainer(path, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**quiet, enable_checkpointing=False, default_root_dir=path, num_sanity_val_steps=0, **settings)


# -- networks ----------------------------------------------------------------------------------------------------------


def test_the_dense_pair_is_the_network_of_hinton_and_salakhutdinov():
    pair = [DenseEncoder(batch_norm=False), DenseDecoder(batch_norm=False)]
    assert sum(p.numel() for part in pair for p in part.parameters()) == 2_837_314
    widths = [784, 1000, 500, 250, 30, 250, 500, 1000, 784]
    linear = [layer for part in pair for layer in part.modules() if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in linear] == widths[:-1]
    assert [layer.out_features for layer in linear] == widths[1:]


@pytest.mark.parametrize(
    ("encoder", "decoder", "channels", "side"),
    [
        (DenseEncoder(5, [12, 7]), DenseDecoder(5, [7, 12]), 1, 28),
        (DenseEncoder(5, [12], 8, 3, nn.ELU(), False), DenseDecoder(5, [12], 8, 3, nn.ELU(), False), 3, 8),
        (Conv4(6, normalize=False), ConvDecoder(6), 1, 28),
        (Conv4(6, normalize=False, channels=3), ConvDecoder(6, 32, 3, 4), 3, 32),
    ],
)
def test_reconstructions_have_the_shape_of_the_images_and_lie_in_the_unit_interval(encoder, decoder, channels, side):
    network, images = Autoencoder(encoder, decoder).eval(), torch.rand(3, channels, side, side)
    made = network(images)
    assert made.shape == images.shape and made.min() >= 0 and made.max() <= 1
    torch.testing.assert_close(made, decoder(network.codes(images)))


def test_each_hidden_layer_has_an_activation_of_its_own():
    slopes = [m.weight for m in DenseEncoder(3, [5, 4], activation=nn.PReLU()).modules() if isinstance(m, nn.PReLU)]
    assert len(slopes) == 2 and slopes[0] is not slopes[1]


def test_impossible_sizes_are_named():
    with pytest.raises(ValueError, match="1 unit or more, got"):
        DenseEncoder(3, [5, 0])
    with pytest.raises(ValueError, match=r"image_size must be 4, 8, 12, \.\.\.; got 30"):
        ConvDecoder(3, image_size=30)


# -- figures -----------------------------------------------------------------------------------------------------------


def figures_by_definition(images, made):
    """Typed from the definitions, image by image and pixel by pixel, in float64."""
    images, made = (part.reshape(len(part), -1).astype(np.float64) for part in (images, made))
    gaps = np.abs(made - images)
    smooth = [g * g / 0.2 if g < 0.1 else g - 0.05 for g in gaps.ravel()]
    return {
        "error": np.mean([sum(g * g for g in row) for row in gaps]),
        "mse": np.mean(gaps**2),
        "l1": np.mean(gaps),
        "smooth_l1": np.mean(smooth),
        "variation": sum(np.var(made[:, p]) for p in range(made.shape[1])) / sum(np.var(images, axis=0)),
    }


@pytest.mark.parametrize("loss_fn", [nn.L1Loss(), nn.BCEWithLogitsLoss()])
def test_the_figures_are_those_of_the_definitions(loss_fn):
    network = small(loss_fn, nn.Identity() if isinstance(loss_fn, nn.BCEWithLogitsLoss) else None).eval()
    nn.init.normal_(network.decoder.layers[-2].weight, std=3)  # pixels all over the place
    images = torch.rand(7, 1, 8, 8)
    images[0], images[1] = 0, 1
    scores = network.scores(images)
    outputs = network.decoder(network.encoder(images)).detach()
    made = outputs.sigmoid() if isinstance(loss_fn, nn.BCEWithLogitsLoss) else outputs
    expected = figures_by_definition(images.numpy(), made.numpy())
    for name, value in expected.items():
        assert scores[name].item() == pytest.approx(value, rel=1e-5), name
    assert scores["loss"].item() == pytest.approx(loss_fn(outputs, images).item())
    assert tuple(scores) == network.metrics
    torch.testing.assert_close(network(images), made)


def test_smooth_l1_is_linear_beyond_a_tenth():
    images, network = torch.zeros(2, 1, 8, 8), small(output=nn.Identity()).eval()
    network.decoder.layers[-2].bias.data.fill_(5.0)
    nn.init.zeros_(network.decoder.layers[-2].weight)
    assert network.scores(images)["smooth_l1"].item() == pytest.approx(4.95)


def test_a_test_weighs_every_image_once_however_the_batches_fall(tmp_path):
    data, network = digits(evaluation_batch_size=100), small()
    run = trainer(tmp_path)
    run.test(network, datamodule=data, verbose=False)
    found = run.callback_metrics
    table = data.splits.test
    assert len(table) % 100
    images = to_float(table.batch(range(len(table))).images)
    made = network.eval()(images).detach()
    expected = figures_by_definition(images.numpy(), made.numpy())
    assert {f"test/{name}" for name in network.metrics} == set(found)
    for name in ("error", "mse", "l1", "smooth_l1"):
        assert found[f"test/{name}"] == pytest.approx(expected[name], rel=1e-4), name


@pytest.mark.parametrize(
    ("loss_fn", "output"),
    [
        (None, None),
        (nn.MSELoss(reduction="sum"), None),
        (nn.L1Loss(), nn.Identity()),
        (nn.SmoothL1Loss(), None),
        (nn.HuberLoss(delta=0.1), None),
        (nn.BCELoss(), None),
        (nn.BCEWithLogitsLoss(), nn.Identity()),
        (MSLELoss(), nn.Softplus()),
    ],
)
def test_every_reconstruction_loss_trains(tmp_path, loss_fn, output):
    network = small(loss_fn, output, lambda parameters: torch.optim.Adam(parameters, 0.01))
    data = digits()
    data.setup("fit")
    network.check_data(data.splits)
    run = trainer(tmp_path, max_epochs=3)
    run.validate(network, datamodule=data, verbose=False)
    before = dict(run.callback_metrics)
    run.fit(network.train(), datamodule=data)
    after = run.callback_metrics
    assert after["val/loss"] < before["val/loss"] and after["val/error"] < 0.6 * before["val/error"]


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            lambda: Autoencoder(DenseEncoder(8), DenseDecoder(8)),
            "images are 1 x 8 x 8, which does not fit .*image_size",
        ),
        (
            lambda: Autoencoder(DenseEncoder(8, image_size=8), DenseDecoder(9, image_size=8)),
            "does not fit the autoencoder .*embedding_size of both",
        ),
        (
            lambda: Autoencoder(DenseEncoder(8, image_size=8), DenseDecoder(8, image_size=12)),
            "images are 1 x 8 x 8, but the decoder makes 1 x 12 x 12",
        ),
        (lambda: small(nn.BCELoss(), nn.Identity()), "BCELoss takes .* an output through Identity is any number"),
        (lambda: small(nn.BCEWithLogitsLoss()), "applies the sigmoid itself"),
        (lambda: small(nn.MSELoss(), nn.LogSigmoid()), "cannot reach all of them"),
        (lambda: small(MSLELoss(), nn.Identity()), "MSLELoss takes above -1"),
        (
            lambda: small(nn.MSELoss(reduction="none")),
            "MSELoss gives 64 x 1 x 8 x 8 numbers .* reduction to mean or sum",
        ),
        (lambda: small(ContrastiveLoss()), "does not fit the autoencoder. embeddings must have two dimensions"),
        (lambda: small(nn.CosineEmbeddingLoss()), "CosineEmbeddingLoss cannot compare images with images"),
    ],
)
def test_what_cannot_fit_is_named_before_training(network, message):
    made = network()
    with pytest.raises(ConfigError, match=message):
        made.check_data(digits().splits)
    assert made.training


def test_the_output_of_a_decoder_of_ones_own_is_checked_too():
    encoder = DenseEncoder(8, image_size=8)
    own = nn.Sequential(nn.Linear(8, 64), nn.Unflatten(1, (1, 8, 8)), nn.Tanh())
    with pytest.raises(ConfigError, match=r"BCELoss takes \[0, 1\], but an output through"):
        Autoencoder(encoder, own, nn.BCELoss()).check_data(digits().splits)
    Autoencoder(encoder, Decoder(own[:2], nn.Tanh()), nn.MSELoss()).check_data(digits().splits)


# -- one image for all -------------------------------------------------------------------------------------------------


def untidy_images():
    """Skewed, so that mean and median differ, with pixels that never vary and two equal images."""
    images = np.random.default_rng(0).random((20, 1, 4, 5)) ** 6
    images[:, :, 0], images[3] = 0.0, images[4]
    return images


def trapped_by_definition(images, made):
    """If all are rebuilt as one image: the mean or median image, whichever is nearer, or worse by more than a fifth."""
    images, made = (part.reshape(len(part), -1) for part in (images, made))
    if not made.var(axis=0).sum() < 0.02 * images.var(axis=0).sum():
        return None
    own, mean, median = made.mean(axis=0), images.mean(axis=0), np.sort(images, axis=0)[9]  # of 20: the lower middle
    if ((own - mean) ** 2).sum() < ((own - median) ** 2).sum():
        near = ((images - own) ** 2).sum() <= 1.2 * ((images - mean) ** 2).sum()
        return ("the " if near else "worse than the ") + "mean image"
    near = np.abs(images - own).sum() <= 1.2 * np.abs(images - median).sum()
    return ("the " if near else "worse than the ") + "median image"


def trap_cases():
    images = untidy_images()
    mean, median = images.mean(axis=0), np.median(images, axis=0)
    for share in (0.0, 0.1, 0.15, 0.3, 1.0):
        yield mean + share * (images - mean)  # its variation is share squared
    yield from (np.broadcast_to(one, images.shape) for one in (mean, median, mean + 0.05, mean + 0.5))
    yield np.full(images.shape, 0.5)  # untrained: grey
    yield np.broadcast_to(median - 0.2, images.shape)
    yield images


def test_the_trap_is_named_as_its_definition_says():
    images, found = untidy_images(), []
    for made in trap_cases():
        sign = one_image(torch.tensor(images), torch.tensor(np.array(made)))
        found.append(trapped_by_definition(images, made))
        assert (sign is None) == (found[-1] is None)
        if sign is not None:
            assert f"{found[-1]}:" in sign.what and ("worse" in sign.what) == ("worse" in found[-1])
            flat, own = images.reshape(20, -1), np.array(made).reshape(20, -1).mean(axis=0)
            gaps = np.abs(flat - own)
            error = (gaps**2 if "mean image" in sign.what else gaps).sum(axis=1).mean()
            assert sign.numbers["error"] == pytest.approx(error) and f"{error:.2f}" in sign.what
    assert found.count("the mean image") >= 3 and "the median image" in found and found.count(None) >= 3
    assert {"worse than the mean image", "worse than the median image"} <= set(found)


def test_images_that_do_not_vary_show_no_trap():
    for images in (torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4).expand(5, 1, 4, 4)):
        assert one_image(images, torch.zeros_like(images)) is None and variation(images, images).isnan()
    assert one_image(torch.rand(4, 1, 2, 2), torch.full((4, 1, 2, 2), torch.nan)) is None


def watched(tmp_path, data_root, network, epochs=2):
    seed_everything(0, verbose=False)
    data = ShuffledData(MNIST(str(data_root), split="standard"), seed=0)
    health = TrainingHealth(tmp_path)
    run = trainer(
        tmp_path,
        max_epochs=epochs,
        limit_train_batches=165,
        limit_val_batches=1,
        log_every_n_steps=10,
        callbacks=[health, FiniteGuard(tmp_path, health)],
    )
    run.fit(network, datamodule=data)
    return health.history.findings, run.callback_metrics


def test_momentum_at_a_rate_too_large_ends_in_the_mean_image_and_is_named(tmp_path, data_root):
    shape = {"activation": nn.Sigmoid(), "batch_norm": False}
    seed_everything(0, verbose=False)
    network = Autoencoder(
        DenseEncoder(16, [64], **shape),
        DenseDecoder(16, [64], **shape),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=10.0, momentum=0.99),
    )
    findings, metrics = watched(tmp_path, data_root, network)
    found = findings["mean image"]
    assert found.first_step >= 300 and found.last_step == 330 and found.numbers["variation"] < 0.001
    assert "mean image" in found.text and "momentum" in found.try_first
    assert metrics["val/error"] > 50 and metrics["val/variation"] < 0.001
    kept = json.loads((tmp_path / "health.json").read_text())["findings"]
    assert [one["kind"] for one in kept] == ["mean image"]


def test_adam_with_batch_norm_is_not_trapped(tmp_path, data_root):
    seed_everything(0, verbose=False)
    network = Autoencoder(DenseEncoder(16, [64]), DenseDecoder(16, [64]))
    findings, metrics = watched(tmp_path, data_root, network)
    assert not findings and metrics["val/error"] < 30


# -- the strip of pictures ---------------------------------------------------------------------------------------------


def test_every_validation_leaves_a_row_of_pictures_and_a_resumed_run_goes_on_with_them(tmp_path):
    network, data = small(), digits()
    keep = KeepReconstructions(images=3)
    run = trainer(tmp_path, max_epochs=2, callbacks=[keep])
    run.validate(network, datamodule=data, verbose=False)
    run.fit(network, datamodule=data)
    rows = read_reconstructions(tmp_path, 8)
    assert rows.shape == (4, 8, 24) and rows.dtype == np.uint8
    images = to_float(data.splits.validation.batch(range(3)).images)
    for row, expected in ((0, images), (3, network.eval()(images).detach())):
        for place in range(3):
            wanted = (255 * expected[place, 0].numpy()).round()
            np.testing.assert_array_equal(rows[row][:, 8 * place : 8 * place + 8], wanted)
    assert (rows[1] != rows[2]).any() and (rows[2] != rows[3]).any()

    network.train()
    run.fit_loop.max_epochs = 3
    run.fit(network, datamodule=data)
    longer = read_reconstructions(tmp_path, 8)
    np.testing.assert_array_equal(longer[:4], rows)
    assert len(longer) == 5

    trainer(tmp_path, callbacks=[keep]).validate(network, datamodule=data, verbose=False)  # a new run: a new strip
    assert len(read_reconstructions(tmp_path, 8)) == 2


def test_a_run_that_validates_seldom_leaves_fewer_rows(tmp_path):
    run = trainer(tmp_path, max_epochs=4, check_val_every_n_epoch=2, callbacks=[KeepReconstructions(2)])
    run.fit(small(), datamodule=digits())
    rows = read_reconstructions(tmp_path, 8)
    assert len(rows) == 4 and not rows[1].any()  # the untrained network was not asked
    assert rows[2].any() and rows[3].any()


def test_the_strip_of_coloured_images_is_coloured(tmp_path):
    from lossopt.callbacks.reconstructions import _row

    row = _row(torch.tensor([0.0, 0.5, 2.0]).view(1, 3, 1, 1).expand(2, 3, 4, 5))
    assert row.shape == (4, 10, 3) and row[0, 0].tolist() == [0, 128, 255]


def test_a_strip_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"There is no .*reconstructions.png"):
        read_reconstructions(tmp_path, 8)
    Image.fromarray(np.zeros((9, 4), np.uint8)).save(tmp_path / RECONSTRUCTIONS)
    with pytest.raises(DataError, match="9 lines are no rows of 8"):
        read_reconstructions(tmp_path, 8)
    with pytest.raises(ValueError, match="images must be 1 or more"):
        KeepReconstructions(0)


class Says(nn.Module):
    """A user's own loss that gives what it is told to."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, outputs, images):
        return self.what(outputs, images)


@pytest.mark.parametrize(
    ("loss", "output", "says"),
    [
        (Says(lambda made, images: float((made - images).square().mean())), None, "Says gives a float"),
        (Says(lambda made, images: torch.log(made - images - 2).mean()), None, "Says is nan on the first images"),
        (None, nn.Softmax(dim=1), "gives 1 everywhere, whatever the image"),
    ],
)
def test_a_loss_or_an_output_that_can_teach_nothing_is_refused(loss, output, says):
    with pytest.raises(ConfigError, match=says):
        small(loss, output).check_data(digits().splits)


class NanLater(nn.Module):
    """NaN in value from its fourth call on, with a gradient that is finite."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, outputs, images):
        self.calls += 1
        nan = float("nan") if self.calls > 3 else 0.0
        return (outputs - images).square().mean() + nan


def test_a_loss_that_is_nan_with_a_finite_gradient_stops_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match="its gradient overflowed"):
        trainer(tmp_path, max_epochs=1, callbacks=[FiniteGuard(tmp_path)], limit_val_batches=0).fit(
            small(NanLater()), datamodule=digits()
        )
