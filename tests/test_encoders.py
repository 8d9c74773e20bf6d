"""Encoders: shapes, unit length, pooling by definition, and names that do not exist."""

import pytest
import torch
from torch import nn

from lossopt.encoders import Conv4, Encoder, GeM, SmallResNet, TimmEncoder, TorchvisionEncoder


@pytest.mark.parametrize(
    ("encoder", "channels", "side", "d"),
    [
        (Conv4(), 1, 28, 64),
        (Conv4(embedding_size=0), 1, 28, 64),
        (Conv4(embedding_size=16, pooling="gem", channels=3), 3, 40, 16),
        (SmallResNet(), 3, 32, 128),
        (SmallResNet(channels=1, widths=[8, 16], blocks=1), 1, 64, 128),
        (TorchvisionEncoder("resnet18"), 3, 64, 128),
        (TorchvisionEncoder("mobilenet_v3_small", embedding_size=32), 1, 64, 32),
        (TorchvisionEncoder("vit_b_16", embedding_size=8), 3, 224, 8),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_images_become_unit_vectors(encoder, channels, side, d):
    embeddings = encoder.eval()(torch.rand(2, channels, side, side))
    assert embeddings.shape == (2, d) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))


def test_conv4_is_the_network_of_the_literature():
    weights = sum(p.numel() for p in Conv4(embedding_size=0).parameters())
    # four blocks: 3x3 kernels without bias, and scale and shift of batch norm
    assert weights == 9 * (1 * 64 + 3 * 64 * 64) + 4 * 2 * 64


def test_without_normalisation_lengths_differ():
    lengths = Conv4(normalize=False).eval()(torch.rand(3, 1, 28, 28)).norm(dim=1)
    assert not torch.allclose(lengths, torch.ones(3))


def test_gem_is_the_mean_at_p_1_and_nearly_the_maximum_at_large_p():
    maps = torch.rand(2, 3, 5, 5) + 0.1
    torch.testing.assert_close(GeM(p=1.0)(maps), maps.mean(dim=(2, 3)))
    torch.testing.assert_close(GeM(p=200.0)(maps), maps.amax(dim=(2, 3)), rtol=0.03, atol=0)


def test_images_are_standardised_once_by_the_encoder():
    plain = Encoder(nn.Identity(), 1, embedding_size=0, normalize=False, mean=[0.25], std=[0.5])
    assert plain(torch.full((1, 1, 2, 2), 0.75)).item() == pytest.approx(1.0)


def test_timm_models_are_taken_whole_or_named_as_an_extra():
    pytest.importorskip("timm")
    for name, side in (("resnet10t", 64), ("vit_tiny_patch16_224", 224)):
        assert TimmEncoder(name, embedding_size=8).eval()(torch.rand(1, 3, side, side)).shape == (1, 8)


def test_a_missing_extra_names_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ImportError, match=r'pip install "lossopt\[timm\]"'):
        TimmEncoder("resnet10t")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TorchvisionEncoder("resnet81"), "no classification model 'resnet81'. Nearest: resnet18"),
        (lambda: Conv4(pooling="max"), "pooling must be 'average' or 'gem', got 'max'"),
        (lambda: Conv4(embedding_size=-1), "embedding_size must be 0"),
    ],
)
def test_wrong_arguments_are_answered_with_the_choice(make, message):
    with pytest.raises(ValueError, match=message):
        make()
