"""Batched augmentations against single-image definitions, and their randomness."""

import math

import pytest
import torch
from torchvision.transforms import v2

from lossopt.data.augment import PerImage, RandomAffine, RandomElastic, RandomFlip, RandomResizedCrop, TurnAndFlip

ALL = [
    RandomAffine(),
    RandomElastic(),
    RandomFlip(),
    RandomResizedCrop(),
    TurnAndFlip(),
    PerImage(v2.RandomRotation(20)),
]


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


def test_elastic_moves_the_knots_by_what_is_asked_and_what_lies_between_them_smoothly():
    across = (0.5 + (torch.arange(33) - 16) * 0.01).expand(33, 33)
    ramps = torch.stack([across, across.T]).expand(3_000, 2, 33, 33)  # an image that tells where each pixel is from
    moved = (RandomElastic(amount=0.04, knots=5, share=1.0)(ramps, seeded(0)) - ramps) / 0.01
    middle = moved[:, :, 16, 16]  # a knot, where the field is what was drawn
    torch.testing.assert_close(middle.std(dim=0), torch.full((2,), 0.04 * 33), rtol=0.05, atol=0)
    assert middle.mean(dim=0).abs().max() < 0.1 and abs(torch.corrcoef(middle.T)[0, 1]) < 0.06
    inner = moved[:, :, 8:25, 8:25]
    assert inner.diff(dim=-1).abs().mean() < 0.3 * inner.abs().mean()
    rough = (RandomElastic(amount=0.04, knots=17, share=1.0)(ramps, seeded(0)) - ramps)[:, :, 8:25, 8:25] / 0.01
    assert rough.diff(dim=-1).abs().mean() > 2 * inner.diff(dim=-1).abs().mean()


def test_elastic_leaves_its_share_and_stays_between_black_and_white():
    images = (torch.rand(2_000, 1, 12, 12, generator=seeded(5)) < 0.5).float()
    bent = RandomElastic(amount=0.05, share=0.25)(images, seeded(0))
    changed = (bent != images).flatten(1).any(dim=1)
    assert 0.22 < changed.float().mean() < 0.28
    assert bent.min() >= 0 and bent.max() <= 1
    assert torch.equal(RandomElastic(share=0.0)(images, seeded(0)), images)
    white = torch.ones(50, 1, 12, 12)
    torch.testing.assert_close(RandomElastic(amount=0.1, share=1.0, fill=1.0)(white, seeded(0)), white)
    torch.testing.assert_close(RandomElastic(amount=0.0, share=1.0)(images, seeded(0)), images)


@pytest.mark.parametrize(
    "settings", [{"amount": -0.1}, {"amount": math.nan}, {"share": 1.1}, {"share": -0.1}, {"knots": 1}]
)
def test_an_elastic_field_that_cannot_be_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RandomElastic(**settings)


def test_crop_stays_inside_the_image():
    crops = RandomResizedCrop(scale=(0.05, 1.0))(torch.ones(200, 1, 12, 12), seeded(0))
    torch.testing.assert_close(crops, torch.ones_like(crops))


@pytest.mark.parametrize("make", [lambda: RandomAffine(scale=(1.2, 0.8)), lambda: RandomResizedCrop(scale=(0.5, 2.0))])
def test_impossible_ranges_are_refused(make):
    with pytest.raises(ValueError, match="scale must be"):
        make()
