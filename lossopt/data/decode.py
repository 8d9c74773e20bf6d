"""One image file becomes one square uint8 tensor by a stated rule, or a DataError that names the file and the cause."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from lossopt.data.locate import shown
from lossopt.errors import ConfigError, DataError

MAX_PIXELS = 64_000_000
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
Box = tuple[int, int, int, int]

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_NEXT_STEP = "Replace the file, or remove it from the data."


def decode_image(path: Path, image_size: int | None, channels: int, crop: Box | None = None) -> Tensor:
    """Reads an image, turns it upright, scales its short side to `image_size` (Lanczos) and crops the centre.

    The first frame counts. 16-bit grey is scaled to 8 bit; alpha is laid on white; palettes, CMYK and 1 bit are
    converted to grey or RGB.

    Args:
        path: the file; BMP, GIF, JPEG, JPEG 2000, PNG, PGM/PPM, TIFF or WebP by content, whatever its name.
        image_size: s, in pixels; None: as long as the short side, not scaled.
        channels: 1 (grey) or 3 (RGB).
        crop: (left, top, right, bottom) in pixels of the file as stored, cut out first; None: the whole image.

    Returns:
        (channels, s, s) uint8.

    Raises:
        DataError: the file cannot be read as an image, or has more than 64 million pixels (refused from its header).
        ConfigError: `channels` or `image_size` is not possible.
    """
    if channels not in (1, 3) or (image_size is not None and image_size < 1):
        raise ConfigError(f"Images have channels 1 or 3 and image_size >= 1; got {channels} and {image_size}.")
    try:
        with _open(path) as image:
            _refuse_zero_tail(image, path)
            return _square(image, image_size, "L" if channels == 1 else "RGB", crop)
    except (DataError, MemoryError):
        raise
    except Exception as failure:  # the decoders raise whatever a broken file leads them into
        raise DataError(_message(path, failure)) from failure


def check_headers(paths: Sequence[Path], what: str = "images") -> None:
    """Opens the header of every file, without decoding; a bar on stderr shows when there are more than 2,000.

    Raises:
        DataError: lists the first 10 files that are not images (or too large), with the cause, and the total.
    """
    faults = []
    for path in tqdm(paths, desc=f"checking {what}", unit=" files", disable=len(paths) <= 2000):
        try:
            _open(path).close()
        except DataError as fault:
            faults.append(str(fault).removesuffix(_NEXT_STEP).rstrip())
        except Exception as failure:  # as in decode_image
            faults.append(_message(path, failure).removesuffix(_NEXT_STEP).rstrip())
    if faults:
        listed = "\n  ".join(faults[:10])
        raise DataError(
            f"{len(faults)} of {len(paths)} files cannot be used as images:\n  {listed}"
            + (f"\n  ... and {len(faults) - 10} more." if len(faults) > 10 else "")
            + "\nReplace these files, or remove them from the data."
        )


def _open(path: Path) -> Image.Image:
    """The image with its header read and its size checked, but not yet decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower and refuses
        try:
            image = Image.open(path, formats=FORMATS)
        except Image.DecompressionBombError as bomb:
            raise DataError(f"{shown(path)}: too large to decode safely ({bomb}). {_NEXT_STEP}") from bomb
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        image.close()
        raise DataError(
            f"{shown(path)}: {size} pixels; at most {MAX_PIXELS:,} are decoded, as a guard against decompression "
            f"bombs. Scale the file down, or remove it from the data."
        )
    return image


def _square(image: Image.Image, image_size: int | None, mode: str, crop: Box | None) -> Tensor:
    """Decodes, converts, turns and scales; the crop happens inside the scaling, so thin images stay small."""
    turn = _TURNS.get(_orientation(image))
    if crop is None and image_size is not None:
        image.draft(
            image.mode, (2 * image_size, 2 * image_size)
        )  # JPEG only: decodes at a half, a quarter or an eighth
    elif crop is not None:
        image = _cut(image, crop)
    image = _convert(image, mode)
    if turn is not None:
        image = image.transpose(turn)
    short = min(image.size)
    side = short if image_size is None else image_size
    left, top = (image.width - short) / 2, (image.height - short) / 2
    box = (left, top, left + short, top + short)
    pixels = np.array(image.resize((side, side), Image.Resampling.LANCZOS, box=box))
    return torch.from_numpy(pixels).reshape(side, side, -1).permute(2, 0, 1).contiguous()


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """To 8-bit grey or RGB."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its integers are outside 0 to 65535, so their scale is unknown; save it as 8 or 16 bit")
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown scale; save it as 8 or 16 bit")
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque.convert("RGB")
    return image if image.mode == mode else image.convert("RGB").convert(mode)


def _cut(image: Image.Image, crop: Box) -> Image.Image:
    """The part of the box that lies inside the image."""
    left, top = max(crop[0], 0), max(crop[1], 0)
    right, bottom = min(crop[2], image.width), min(crop[3], image.height)
    if left >= right or top >= bottom:
        raise ValueError(f"its box {tuple(crop)} has no area inside the {image.width} x {image.height} pixels")
    return image.crop((left, top, right, bottom))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; damaged EXIF counts as upright, since the pixels are still good."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # the EXIF reader, too, raises whatever it meets
        return 1


def _refuse_zero_tail(image: Image.Image, path: Path) -> None:
    """An interrupted copy can leave a JPEG whose end is zeros; libjpeg would paint it grey without a word."""
    if image.format not in ("JPEG", "MPO"):
        return
    with path.open("rb") as file:
        file.seek(-min(64, file.seek(0, 2)), 2)
        if not any(file.read()):
            file.seek(0)
            if not file.read().rstrip(b"\0").endswith(b"\xff\xd9"):
                raise OSError("its end is filled with zeros, as an interrupted copy leaves it")


def _message(path: Path, failure: Exception) -> str:
    return f"{shown(path)}: {_cause(path, failure)}. {_NEXT_STEP}"


def _cause(path: Path, failure: Exception) -> str:
    """What is wrong with the file, in plain words."""
    if isinstance(failure, FileNotFoundError):
        return "there is no such file"
    if path.is_dir():
        return "this is a folder, not an image file"
    if isinstance(failure, PermissionError):
        return "no permission to read the file"
    if path.is_file() and path.stat().st_size == 0:
        return "the file is empty (0 bytes)"
    if isinstance(failure, UnidentifiedImageError):
        with path.open("rb") as file:
            start = file.read(512).lstrip().lower()
        if start.startswith((b"<!doctype html", b"<html")) or b"<html" in start:
            return "this is a web page (HTML), not an image; a download has probably failed"
        return f"this is not an image in a format that is read here ({', '.join(FORMATS)})"
    text = str(failure) or type(failure).__name__
    if "truncated" in text or isinstance(failure, EOFError):
        return f"the image is truncated ({text})"
    return f"the image cannot be decoded ({text})"
