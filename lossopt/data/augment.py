"""Augmentations work on whole uint8 or float batches, draw one set of parameters per image, and only from a generator.

torchvision's transforms v2 draw one set of parameters per *call*, so for a batch they are applied image by image; the
random affine map below, the one that small images need, is done for the whole batch in a single call.
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from lossopt.data.dataset import Batch
from lossopt.errors import ConfigError


class Augmentation(ABC):
    """Turns (b, c, h, w) float images in [0, 1] into others, using only the generator's randomness."""

    @abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """images: (b, c, h, w). Returns the changed images, on the same device."""

    def of_batch(self, batch: Batch, generator: torch.Generator) -> Batch:
        """A batch with its images changed; one that moves what the targets tell changes these, too."""
        return batch._replace(images=self(batch.images, generator))


class RandomAffine(Augmentation):
    """Rotates, scales, shears and shifts each image of a batch by its own random amount; what moves in is 0.

    Args:
        degrees: rotation is uniform in [-degrees, degrees].
        scale: (least, most) factor, uniform; more than 1 enlarges what is drawn.
        shear: horizontal shear factor, uniform in [-shear, shear] (0.3: the top edge moves by 0.3 of half the side).
        shift: uniform in [-shift, shift], as a share of the image's side, in both directions.
        fill: value in [0, 1] of what moves in.
    """

    def __init__(
        self,
        degrees: float = 15.0,
        scale: tuple[float, float] = (0.8, 1.2),
        shear: float = 0.25,
        shift: float = 0.12,
        fill: float = 0.0,
    ) -> None:
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be (least, most) with 0 < least <= most, got {tuple(scale)}.")
        self.degrees, self.scale, self.shear, self.shift, self.fill = degrees, tuple(scale), shear, shift, fill

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """images: (b, c, h, w) float. Returns the same shape."""
        maps = self.inverse_maps(len(images), generator).to(images.device, images.dtype)
        grid = F.affine_grid(maps, list(images.shape), align_corners=False)
        return F.grid_sample(images - self.fill, grid, align_corners=False) + self.fill

    def inverse_maps(self, b: int, generator: torch.Generator) -> Tensor:
        """(b, 2, 3) maps from places in the result to places in the image, in coordinates from -1 to 1."""
        uniform = torch.rand((5, b), generator=generator) * 2 - 1
        angle = uniform[0] * math.radians(self.degrees)
        least, most = self.scale
        zoom = (least + most) / 2 + uniform[1] * (most - least) / 2
        shear = uniform[2] * self.shear
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        rows = [
            cos,
            sin + cos * shear,
            uniform[3] * 2 * self.shift,
            -sin,
            cos - sin * shear,
            uniform[4] * 2 * self.shift,
        ]
        return torch.stack(rows, dim=1).view(b, 2, 3)


class RandomElastic(Augmentation):
    """Bends some images of a batch, each by its own smooth random field, as another hand would have drawn them.

    Bicubic, so that thin lines stay as sharp as they were: what is rebuilt from bent images is not blurred by them.
    Targets stay as they are, so it is not for places in an image.

    Args:
        amount: standard deviation of the shift at the knots, as a share of the image's side.
        knots: along each side; between them the field is cubic. Fewer bend the image as a whole.
        share: probability that an image is bent; the others stay bit for bit.
        fill: value in [0, 1] of what moves in.

    Source: Simard, Steinkraus & Platt 2003, Best Practices for Convolutional Neural Networks, ICDAR, section 3.
    """

    def __init__(self, amount: float = 0.03, knots: int = 5, share: float = 0.5, fill: float = 0.0) -> None:
        if not (0 <= amount < math.inf and 0 <= share <= 1):
            raise ValueError(f"amount is 0 or more and share from 0 to 1, got {amount} and {share}.")
        if knots < 2:
            raise ValueError(f"knots must be 2 or more, got {knots}.")
        self.amount, self.knots, self.share, self.fill = amount, knots, share, fill

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """images: (b, c, h, w) float. Returns the same shape."""
        bent = (torch.rand(len(images), generator=generator) < self.share).nonzero()[:, 0]
        if not len(bent):
            return images
        shifts = torch.randn((len(bent), 2, self.knots, self.knots), generator=generator) * (2 * self.amount)
        bent, some = bent.to(images.device), images[bent.to(images.device)]
        size = list(some.shape[2:])
        field = F.interpolate(shifts.to(some), size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        still = torch.eye(2, 3, device=some.device, dtype=some.dtype).expand(len(some), -1, -1)
        grid = F.affine_grid(still, list(some.shape), align_corners=False) + field
        sampled = F.grid_sample(some - self.fill, grid, mode="bicubic", align_corners=False) + self.fill
        return images.index_copy(0, bent, sampled.clamp(0, 1))


class RandomFlip(Augmentation):
    """Mirrors each image left to right with probability 1/2."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """images: (b, c, h, w). Returns the same shape."""
        flip = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
        return torch.where(flip[:, None, None, None], images.flip(-1), images)


class TurnAndFlip(Augmentation):
    """Turns each square image by 0, 90, 180 or 270 degrees and mirrors half of them: eight ways, equally likely.

    For things without an upper side (cells, tiles from above); a digit would become another one.

    Args:
        vectors: pairs (x, y) of target columns that are measured from the middle of the image, right and down.
        sizes: pairs (width, height) of target columns. All other targets stay as they are.
    """

    def __init__(
        self, vectors: list[tuple[int, int]] | None = None, sizes: list[tuple[int, int]] | None = None
    ) -> None:
        self.vectors, self.sizes = vectors or [], sizes or []

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """images: (b, c, s, s). Returns the same shape."""
        return self._images(images, torch.randint(8, (len(images),), generator=generator))

    def of_batch(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Images and targets, moved together.

        Raises:
            ConfigError: `vectors` or `sizes` name a column that the targets do not have.
        """
        ways = torch.randint(8, (len(batch.images),), generator=generator)
        return batch._replace(images=self._images(batch.images, ways), targets=self._targets(batch.targets, ways))

    def _images(self, images: Tensor, ways: Tensor) -> Tensor:
        """Way w: mirrored left to right where w is 4 or more, then w % 4 quarter turns against the clock."""
        changed = torch.empty_like(images)
        for way in range(8):
            rows = (ways == way).to(images.device)
            some = images[rows].flip(-1) if way >= 4 else images[rows]
            changed[rows] = torch.rot90(some, way % 4, dims=(2, 3))
        return changed

    def _targets(self, targets: Tensor | None, ways: Tensor) -> Tensor | None:
        columns = 0 if targets is None else targets.shape[1]
        used = [column for pair in (*self.vectors, *self.sizes) for column in pair]
        if used and not 0 <= min(used) <= max(used) < columns:
            raise ConfigError(
                f"TurnAndFlip moves the target columns {used}, but there are {columns}, counted from 0. Set vectors "
                "and sizes to the columns of target_names that are places and sizes."
            )
        if targets is None:
            return None
        changed, ways = targets.clone(), ways.to(targets.device)
        for x, y in self.vectors:
            right, down = torch.where(ways >= 4, -targets[:, x], targets[:, x]), targets[:, y]
            turns = ways % 4
            changed[:, x] = torch.stack([right, down, -right, -down], dim=1).gather(1, turns[:, None])[:, 0]
            changed[:, y] = torch.stack([down, -right, -down, right], dim=1).gather(1, turns[:, None])[:, 0]
        for width, height in self.sizes:
            lies = (ways % 2 == 1)[:, None]
            changed[:, [width, height]] = torch.where(lies, targets[:, [height, width]], targets[:, [width, height]])
        return changed


class RandomResizedCrop(Augmentation):
    """Cuts a random square out of each image and scales it back to the full size.

    Args:
        scale: (least, most) share of the image's area that is kept, uniform.
    """

    def __init__(self, scale: tuple[float, float] = (0.2, 1.0)) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be (least, most) shares of the area in (0, 1], got {tuple(scale)}.")
        self.scale = tuple(scale)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """images: (b, c, h, w) float. Returns the same shape."""
        uniform = torch.rand((3, len(images)), generator=generator)
        least, most = self.scale
        side = torch.sqrt(least + uniform[0] * (most - least))
        room = (uniform[1:] * 2 - 1) * (1 - side)
        zero = torch.zeros_like(side)
        maps = torch.stack([side, zero, room[0], zero, side, room[1]], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(maps.to(images.device, images.dtype), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False, padding_mode="border")


class PerImage(Augmentation):
    """Applies a torchvision transform (v2) to each image on its own: any transform works, at the price of a loop.

    Args:
        transform: called with a (c, h, w) float tensor. Its randomness is torch's global one, which is seeded from the
            generator for the duration of the call and then put back.
    """

    def __init__(self, transform: torch.nn.Module) -> None:
        self.transform = transform

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """images: (b, c, h, w) float. Returns the same shape, or the transform's own."""
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return torch.stack([self.transform(image) for image in images])
