"""Stacks of square uint8 images at another size: exact area means downwards, bilinear upwards; the same bits anywhere.

Letters: n images, c channels, h height and width before, s height and width after.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from lossopt.errors import ConfigError

_CHUNK_PIXELS = 4_000_000


def scale_images(images: Tensor, size: int) -> Tensor:
    """Scales square images; thin strokes keep their ink, because every pixel counts by the area it covers.

    The area sums are of whole numbers small enough to be exact in floating point, so that neither the number of
    threads nor the machine changes a pixel.

    Args:
        images: (n, c, h, h) uint8.
        size: s, in pixels.

    Returns:
        (n, c, s, s) uint8; halves are rounded to the even neighbour.

    Raises:
        ConfigError: `size` is not positive.
    """
    if size < 1:
        raise ConfigError(f"image_size must be at least 1 pixel, got {size}.")
    h = images.shape[-1]
    if size == h:
        return images
    chunk = max(1, _CHUNK_PIXELS // max(h, size) ** 2)
    scaled = torch.empty((*images.shape[:2], size, size), dtype=torch.uint8)
    if size > h:
        for part, target in zip(images.split(chunk), scaled.split(chunk), strict=True):
            target.copy_(interpolate(part.float(), size=(size, size), mode="bilinear").round_().clamp_(0, 255))
        return scaled
    exact = torch.float32 if 255 * h * h < 2**24 else torch.float64
    shares = overlaps(h, size).to(exact)
    for part, target in zip(images.split(chunk), scaled.split(chunk), strict=True):
        across = part.to(exact) @ shares.T
        target.copy_((shares @ across).div_(h * h).round_())
    return scaled


def overlaps(h: int, size: int) -> Tensor:
    """(size, h) int64: how much of pixel j lies in new pixel i, in units of 1/size of a pixel. Each row sums to h."""
    new, old = torch.arange(size)[:, None], torch.arange(h)[None, :]
    upper = torch.minimum((new + 1) * h, (old + 1) * size)
    lower = torch.maximum(new * h, old * size)
    return (upper - lower).clamp(min=0)
