"""Broken and unusual image files: refused by name or converted by rule, also through loader workers (A4-A8)."""

import io
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lossopt.data.dataset import LabelledImages, OnDisk
from lossopt.data.decode import check_headers, decode_image
from lossopt.errors import ConfigError, DataError


def _noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_noise(200, 200)).save(buffer, kind)
    return buffer.getvalue()


def _zero_tail(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes(len(content) - len(content) // 2)


BROKEN = {
    "empty.jpg": (b"", "is empty"),
    "cut.jpg": (_encoded("JPEG")[:5000], "truncated"),
    "cut.png": (_encoded("PNG")[:5000], "truncated"),
    "zeros.jpg": (_zero_tail(_encoded("JPEG")), "filled with zeros|cannot be decoded|truncated"),
    "zeros.png": (_zero_tail(_encoded("PNG")), "cannot be decoded|truncated"),
    "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "text.png": (b"hello", "not an image"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_by_name_and_cause(tmp_path: Path, name: str) -> None:
    content, cause = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=cause) as refusal:
        decode_image(tmp_path / name, 16, 3)
    assert name in str(refusal.value)
    assert len(refusal.value.args) == 1


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(DataError, match=r"folder\.jpg: this is a folder"):
        decode_image(tmp_path / "folder.jpg", 16, 3)
    with pytest.raises(DataError, match=r"gone\.jpg: there is no such file"):
        decode_image(tmp_path / "gone.jpg", 16, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_stops_the_loader_with_its_name(tmp_path: Path, workers: int) -> None:
    Image.fromarray(_noise(20, 20)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(_encoded("PNG")[:5000])
    table = LabelledImages(
        OnDisk([tmp_path / "good.png", tmp_path / "bad.png"], 8), torch.tensor([0, 0]), ("a",), ["good", "bad"]
    )
    loader = DataLoader(range(2), batch_size=2, collate_fn=table.batch, num_workers=workers)
    with pytest.raises(DataError, match=r"bad\.png: the image is truncated"):
        next(iter(loader))


def _bomb(side: int) -> bytes:
    """A PNG that claims side x side pixels; nothing of it could be decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9_000, 12_000, 20_000])
def test_decompression_bombs_are_refused_from_the_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(_bomb(side))
    with pytest.raises(DataError, match=r"bomb\.png: (9000 x 9000 pixels; at most|12000 x|too large)"):
        decode_image(tmp_path / "bomb.png", 16, 3)
    with pytest.raises(DataError, match="1 of 1 files"):
        check_headers([tmp_path / "bomb.png"])


def test_sixteen_bit_grey_is_scaled_not_saturated(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "deep.png")
    decoded = decode_image(tmp_path / "deep.png", 8, 1)[0]
    assert decoded.tolist() == np.round(values / 257).astype(int).tolist()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    quadrants = np.kron(np.array([[10, 80], [160, 240]], np.uint8), np.ones((32, 32), np.uint8))
    upright = {1: [10, 80, 160, 240], 3: [240, 160, 80, 10], 6: [160, 10, 240, 80], 8: [80, 240, 10, 160]}
    for orientation, expected in upright.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(quadrants).save(tmp_path / "turned.jpg", exif=exif, quality=100)
        found = decode_image(tmp_path / "turned.jpg", 64, 1)[0, 16::32, 16::32].flatten()
        assert (found.int() - torch.tensor(expected)).abs().max() <= 2, orientation


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_becomes_grey_or_rgb(tmp_path: Path, mode: str) -> None:
    white = Image.new("RGB", (10, 10), "white").convert(mode)
    suffix = "tif" if mode == "CMYK" else "png"
    white.save(tmp_path / f"white.{suffix}")
    for channels in (1, 3):
        decoded = decode_image(tmp_path / f"white.{suffix}", 5, channels)
        assert decoded.shape == (channels, 5, 5)
        assert decoded.dtype == torch.uint8
        assert decoded.eq(255).all()


def test_alpha_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (6, 6), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (6, 6), (0, 0, 0, 128)).save(tmp_path / "half.png")
    assert decode_image(tmp_path / "clear.png", 6, 3).eq(255).all()
    assert decode_image(tmp_path / "half.png", 6, 1).eq(127).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (3, 7)])
def test_thin_images_are_squares_like_any_other(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (9, 99, 199)).save(tmp_path / "thin.png")
    assert decode_image(tmp_path / "thin.png", 32, 3)[:, 16, 16].tolist() == [9, 99, 199]


def test_the_centre_is_kept_and_the_crop_is_cut_first(tmp_path: Path) -> None:
    pixels = np.repeat(np.arange(30, dtype=np.uint8)[None], 10, axis=0)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert decode_image(tmp_path / "wide.png", 10, 1)[0, 0].tolist() == list(range(10, 20))
    assert decode_image(tmp_path / "wide.png", 10, 1, (20, 0, 99, 10))[0, 0].tolist() == list(range(20, 30))
    with pytest.raises(DataError, match="no area inside"):
        decode_image(tmp_path / "wide.png", 10, 1, (40, 0, 50, 10))


def test_large_jpegs_decode_alike_with_and_without_the_shortcut(tmp_path: Path) -> None:
    y, x = np.mgrid[0:400, 0:400]
    smooth = np.stack([(x / 2) % 256, y / 2, (x + y) / 4], axis=2).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "big.jpg", quality=95)
    Image.open(tmp_path / "big.jpg").save(tmp_path / "big.png")
    a, b = (decode_image(tmp_path / name, 32, 3).int() for name in ("big.jpg", "big.png"))
    assert (a - b).abs().float().mean() < 1.5


def test_headers_are_listed_up_to_ten_with_the_total(tmp_path: Path) -> None:
    paths = []
    for number in range(14):
        paths.append(tmp_path / f"{number:02d}.png")
        paths[-1].write_bytes(b"" if number < 12 else _encoded("PNG"))
    with pytest.raises(DataError, match=r"(?s)12 of 14 files.*and 2 more") as refusal:
        check_headers(paths)
    assert str(refusal.value).count("is empty") == 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_headers(paths[12:])


def test_impossible_arguments_are_configuration_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="channels 1 or 3"):
        decode_image(tmp_path / "x.png", 8, 2)


def test_without_a_size_the_short_side_stays_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert torch.equal(decode_image(tmp_path / "a.png", None, 1)[0], torch.from_numpy(pixels[:, 2:7]))
    assert torch.equal(decode_image(tmp_path / "a.png", None, 1, (0, 1, 4, 5))[0], torch.from_numpy(pixels[1:5, :4]))
