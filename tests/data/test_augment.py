"""Batched augmentations against single-image definitions, and their randomness."""

import math

import pytest
import torch
from torchvision.transforms import v2

from lossopt.data.augment import PerImage, RandomAffine, RandomFlip, RandomResizedCrop, TurnAndFlip

ALL = [RandomAffine(), RandomFlip(), RandomResizedCrop(), TurnAndFlip(), PerImage(v2.RandomRotation(20))]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
def test_same_generator_same_images_and_each_image_its_own_draw(augmentation):
    image = torch.zeros(1, 1, 28, 28)
    image[:, :, 8:20, 10:14] = 1
    image[:, :, 8:11, 10:20] = 1
    images = image.repeat(16, 1, 1, 1)
    first = augmentation(images, seeded(1))
    assert first.shape == images.shape
    assert torch.equal(first, augmentation(images, seeded(1)))
    assert not torch.equal(first, augmentation(images, seeded(2)))
    assert len({tuple(one.flatten().tolist()) for one in first}) > 1
    before = torch.random.get_rng_state()
    augmentation(images, seeded(3))
    assert torch.equal(before, torch.random.get_rng_state())


def test_affine_that_does_nothing_changes_nothing():
    images = torch.rand(3, 2, 9, 9)
    same = RandomAffine(degrees=0, scale=(1, 1), shear=0, shift=0)(images, seeded(0))
    torch.testing.assert_close(same, images)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"degrees": 90, "shear": 0, "shift": 0, "scale": (1, 1)}, "rotation"),
        ({"degrees": 0, "shear": 0, "shift": 0, "scale": (0.5, 2.0)}, "zoom"),
        ({"degrees": 0, "shear": 0, "shift": 0.3, "scale": (1, 1)}, "shift"),
        ({"degrees": 0, "shear": 0.3, "shift": 0, "scale": (1, 1)}, "shear"),
    ],
)
def test_affine_maps_are_what_their_names_say_and_stay_in_range(settings, expected):
    maps = RandomAffine(**settings).inverse_maps(4_000, seeded(0))
    linear, moved = maps[:, :, :2], maps[:, :, 2]
    determinant = torch.linalg.det(linear)
    if expected == "rotation":
        torch.testing.assert_close(linear @ linear.mT, torch.eye(2).expand(4_000, 2, 2), atol=1e-5, rtol=0)
        angle = torch.atan2(linear[:, 0, 1], linear[:, 0, 0])
        assert angle.abs().max() <= math.pi / 2 + 1e-6 and angle.abs().max() > 1.5
    if expected == "zoom":
        zoom = determinant.rsqrt()
        assert 0.5 <= zoom.min() < 0.52 and 1.98 < zoom.max() <= 2.0001
    if expected == "shift":
        assert 0.58 < moved.abs().max() <= 0.6  # 0.3 of a side that is 2 long
        torch.testing.assert_close(linear, torch.eye(2).expand(4_000, 2, 2))
    if expected == "shear":
        torch.testing.assert_close(determinant, torch.ones(4_000))
        assert 0.29 < linear[:, 0, 1].abs().max() <= 0.3 and not linear[:, 1, 0].any()


def test_what_moves_in_is_the_fill():
    moved = RandomAffine(degrees=0, scale=(0.5, 0.5), shear=0, shift=0, fill=1.0)(torch.zeros(2, 1, 8, 8), seeded(0))
    assert moved[:, :, 0, 0].eq(1).all() and moved[:, :, 4, 4].eq(0).all()


def test_crop_stays_inside_the_image():
    crops = RandomResizedCrop(scale=(0.05, 1.0))(torch.ones(200, 1, 12, 12), seeded(0))
    torch.testing.assert_close(crops, torch.ones_like(crops))


@pytest.mark.parametrize("make", [lambda: RandomAffine(scale=(1.2, 0.8)), lambda: RandomResizedCrop(scale=(0.5, 2.0))])
def test_impossible_ranges_are_refused(make):
    with pytest.raises(ValueError, match="scale must be"):
        make()
