"""Images for a page: read once, made small, written into the page as data URIs; an image that is not there is None.

Letters: h height, w width, c channels.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from lossopt.data.dataset import LabelledImages
from lossopt.data.decode import decode_image
from lossopt.errors import DataError

SIDE = 128  # pixels of a thumbnail's longer side, at most: sharp at half that size on a dense screen
PIXELATED_UP_TO = 40  # pixels: such images are enlarged with hard edges, as they are
_READ_AT_ONCE = 256
_QUALITY, _SHEET_QUALITY = 82, 68  # of JPEG; a sheet has thousands of images, each seen one at a time


class Pictures(Protocol):
    """Where the images of a table's rows come from."""

    def read(self, rows: Sequence[int]) -> list[np.ndarray | None]:
        """(h, w, 1 or 3) uint8 per row, None where there is no image."""
        ...


@dataclass(frozen=True)
class TablePictures:
    """The images of a table, as the network sees them."""

    table: LabelledImages

    def read(self, rows: Sequence[int]) -> list[np.ndarray | None]:
        """See `Pictures`."""
        found: list[np.ndarray | None] = []
        for start in range(0, len(rows), _READ_AT_ONCE):
            images = self.table.batch(list(rows[start : start + _READ_AT_ONCE])).images
            found += list(images.permute(0, 2, 3, 1).numpy())
        return found


@dataclass(frozen=True)
class FilePictures:
    """Image files by their paths, "" or None where there is none; a file that is no image counts as none.

    Args:
        paths: one per row, or None.
        folder: what relative paths begin at.
    """

    paths: Sequence[str] | None
    folder: Path = Path()

    def read(self, rows: Sequence[int]) -> list[np.ndarray | None]:
        """See `Pictures`."""
        return [self._read_one(self.paths[row]) if self.paths is not None else None for row in rows]

    def _read_one(self, path: str) -> np.ndarray | None:
        try:
            place = self.folder / path
            if not path or not place.is_file():  # a device or a pipe could be read for ever
                return None
            return decode_image(place, SIDE, 3).permute(1, 2, 0).numpy()
        except (DataError, OSError, ValueError):  # ValueError: a path with a zero byte
            return None


class Thumbnail(NamedTuple):
    """A data URI; pixelated: so small that it is enlarged with hard edges."""

    uri: str
    pixelated: bool


class Thumbnails:
    """Thumbnails of rows, each made once.

    Args:
        pictures: where images come from.
        side: of a thumbnail, in pixels, at most.
    """

    def __init__(self, pictures: Pictures, side: int = SIDE) -> None:
        self.pictures, self.side = pictures, side
        self._made: dict[int, Thumbnail | None] = {}

    def prepare(self, rows: Sequence[int]) -> None:
        """Makes those of many rows at a time, which is quicker than one by one."""
        missing = [row for row in dict.fromkeys(rows) if row not in self._made]
        for row, image in zip(missing, self.pictures.read(missing), strict=True):
            self._made[row] = None if image is None else thumbnail(image, self.side)

    def of(self, row: int) -> Thumbnail | None:
        """The thumbnail of a row, None where it has no image."""
        self.prepare([row])
        return self._made[row]


def thumbnail(image: np.ndarray, side: int = SIDE) -> Thumbnail:
    """A (h, w, 1 or 3) uint8 image, at most `side` long: PNG while that is not much larger than JPEG."""
    picture = _as_picture(image)
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return Thumbnail(_uri(picture), max(image.shape[:2]) <= PIXELATED_UP_TO)


class Sprites(NamedTuple):
    """Many images as one, row by row of `columns` square tiles; the n-th image is the n-th tile."""

    uri: str
    columns: int
    tile: int
    across: int
    down: int


def sprite_sheet(pictures: Pictures, rows: Sequence[int], tile: int = 48) -> Sprites | None:
    """One image of many, each inside a square of at most `tile` pixels; None if not one of them is there."""
    columns = max(1, int(np.ceil(np.sqrt(len(rows)))))
    down = -(-len(rows) // columns)
    sheet: Image.Image | None = None
    for start in range(0, len(rows), _READ_AT_ONCE):
        for number, image in enumerate(pictures.read(rows[start : start + _READ_AT_ONCE]), start):
            if image is None:
                continue
            picture = _as_picture(image)
            if sheet is None:
                tile = min(tile, max(picture.size))
                sheet = Image.new(picture.mode, (columns * tile, down * tile))
            scale = tile / max(picture.size)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
            left, top = (tile - size[0]) // 2, (tile - size[1]) // 2
            sheet.paste(picture, (number % columns * tile + left, number // columns * tile + top))
    return None if sheet is None else Sprites(_uri(sheet, _SHEET_QUALITY), columns, tile, columns * tile, down * tile)


def _as_picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _uri(picture: Image.Image, quality: int = _QUALITY) -> str:
    best, kind = _written(picture, "PNG"), "png"
    if len(best) > 2_000:
        smaller = _written(picture, "JPEG", quality)
        if 1.3 * len(smaller) < len(best):
            best, kind = smaller, "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(best).decode("ascii")


def _written(picture: Image.Image, kind: str, quality: int = _QUALITY) -> bytes:
    file = io.BytesIO()
    if kind == "PNG":
        picture.save(file, "PNG", compress_level=9)
    else:
        picture.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()
