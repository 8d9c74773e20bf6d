"""Windows round blood cells against the plain program that the data set came with, and the targets that move along."""

import io
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from lossopt.data import BCCD, bccd
from lossopt.data.augment import TurnAndFlip
from lossopt.data.dataset import Batch
from lossopt.errors import ConfigError, DataError

CLASSES = ("RBC", "WBC", "Platelets")


def windows_by_definition(path, split, seed, per_cell=1, side=240, out=80, jitter=24, border="mirror"):
    """(n, s, s, 3) images, (n,) classes and (n, 4) targets, by the plainest program there is."""
    archive, generator = zipfile.ZipFile(path), np.random.default_rng(seed)
    images, classes, targets = [], [], []
    for name in archive.read(f"BCCD/ImageSets/Main/{split}.txt").decode().split():
        objects = list(ElementTree.fromstring(archive.read(f"BCCD/Annotations/{name}.xml")).iter("object"))
        keys = ("xmin", "ymin", "xmax", "ymax")
        box = np.array([[float(o.find("bndbox/" + key).text) for key in keys] for o in objects])
        kinds = np.array([CLASSES.index(o.find("name").text) for o in objects])
        keep = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
        box, kinds = box[keep], kinds[keep]
        centre, size = (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
        image = np.asarray(Image.open(io.BytesIO(archive.read(f"BCCD/JPEGImages/{name}.jpg"))).convert("RGB"))
        padded = np.zeros((image.shape[0] + 2 * side, image.shape[1] + 2 * side, 3), np.uint8)
        padded[side:-side, side:-side] = image
        if border == "mirror":
            padded = np.pad(image, ((side, side), (side, side), (0, 0)), mode="reflect")
        for c in np.repeat(centre, per_cell, axis=0):
            p = np.round(c + generator.uniform(-jitter, jitter, 2)).astype(int)
            i = ((centre - p) ** 2).sum(1).argmin()
            x0, y0 = p + side - side // 2
            cut = Image.fromarray(padded[y0 : y0 + side, x0 : x0 + side])
            images.append(np.asarray(cut.resize((out, out), Image.Resampling.BILINEAR)))
            classes.append(kinds[i])
            targets.append([*((centre[i] - p) / (side / 2)), *(size[i] / side)])
    return np.stack(images), np.array(classes), np.array(targets, dtype=np.float32)


def equal(table, expected):
    images, classes, targets = expected
    np.testing.assert_array_equal(table.pixels.images.permute(0, 2, 3, 1).numpy(), images)
    np.testing.assert_array_equal(table.labels.numpy(), classes)
    np.testing.assert_array_equal(table.targets.numpy(), targets)


def test_the_real_test_windows_are_those_of_the_definition_bit_for_bit(data_root):
    path = data_root / "bccd" / "BCCD.zip"
    with zipfile.ZipFile(path) as archive:
        members = bccd._members(archive, path)  # the splits as a whole take eight seconds
        table = BCCD(border="mirror")._table(archive, members, "test", 1, bccd._EVALUATION_SEED)
    assert len(table) == 945 and torch.bincount(table.labels).tolist() == [805, 71, 69]
    assert len(table.group_names) == 72 and table.targets.dtype == torch.float32
    equal(table, windows_by_definition(path, "test", seed=1))


def box(kind, xmin, ymin, xmax, ymax):
    corners = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
    inside = "".join(f"<{name}>{value}</{name}>" for name, value in corners.items())
    return f"<object><name>{kind}</name><bndbox>{inside}</bndbox></object>"


MICROGRAPHS = {
    "a": [box("RBC", 5, 8, 31, 29), box("WBC", 0, 0, 90, 70), box("RBC", 50, 20, 50, 60), box("RBC", 30, 12, 60, 33)],
    "b": [box("Platelets", 80, 60, 96, 64), box("RBC", 70, 9, 20, 9), box("RBC", 71, 40, 95, 63)],
    "c": [box("WBC", 10, 10, 60, 60)],
    "d": [box("RBC", 1, 1, 21, 25), box("Platelets", 40, 40, 44, 46)],
}
LISTS = {"train": "a b", "val": "c", "trainval": "a b c", "test": "d"}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The layout of the owner with four tiny micrographs, two of whose boxes have no area, in a folder of GitHub's."""
    (tmp_path / "bccd").mkdir()
    plain = tmp_path / "plain.zip"
    generator = np.random.default_rng(5)
    with zipfile.ZipFile(tmp_path / "bccd" / "BCCD.zip", "w") as archive, zipfile.ZipFile(plain, "w") as other:
        for name, boxes in MICROGRAPHS.items():
            picture = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (70, 96, 3), np.uint8)).save(picture, "JPEG", quality=95)
            for to, prefix in ((archive, "BCCD_Dataset-master/"), (other, "")):
                to.writestr(f"{prefix}BCCD/JPEGImages/{name}.jpg", picture.getvalue())
                to.writestr(f"{prefix}BCCD/Annotations/{name}.xml", f"<annotation>{''.join(boxes)}</annotation>")
        for name, members in LISTS.items():
            archive.writestr(f"BCCD_Dataset-master/BCCD/ImageSets/Main/{name}.txt", "\n".join(members.split()) + "\n")
            other.writestr(f"BCCD/ImageSets/Main/{name}.txt", "\n".join(members.split()) + "\n")
        archive.writestr("BCCD_Dataset-master/README.md", "not asked for")
    monkeypatch.setattr(bccd, "_members", lambda archive, path: dict(named(archive)))
    return tmp_path, plain


def named(archive):
    return ((name.removeprefix("BCCD_Dataset-master/"), name) for name in archive.namelist())


@pytest.mark.parametrize(("train", "border"), [("train", "black"), ("train", "mirror"), ("trainval", "black")])
@pytest.mark.parametrize(("per_cell", "seed", "window", "size", "jitter"), [(1, 0, 40, 20, 9), (3, 7, 41, 41, 0)])
def test_splits_windows_and_numbers_are_as_asked(small, train, border, per_cell, seed, window, size, jitter):
    root, plain = small
    splits = BCCD(str(root), size, window, jitter, per_cell, border, train, seed).splits()
    shape = {"side": window, "out": size, "jitter": jitter, "border": border}
    equal(splits.train, windows_by_definition(plain, train, seed, per_cell, **shape))
    equal(splits.validation, windows_by_definition(plain, "val", 1, **shape))
    equal(splits.test, windows_by_definition(plain, "test", 1, **shape))
    assert len(splits.train) == per_cell * {"train": 5, "trainval": 6}[train]
    assert len(set(splits.train.names)) == len(splits.train)
    assert splits.train.group_names == tuple(LISTS[train].split())
    assert ("say nothing" in splits.description) == (train == "trainval")
    assert splits.train.target_names == ("dx", "dy", "width", "height")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"windows_per_cell": 0}, "windows_per_cell is 0"),
        ({"window": 40, "jitter": 20}, "less than half the window of 40, got 20"),
        ({"jitter": -1}, "jitter is 0 or more"),
        ({"border": "grey"}, "black or mirror, not 'grey'"),
        ({"train": "val"}, "train or trainval, not 'val'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        BCCD(**settings)


def test_a_zip_that_is_another_or_damaged_or_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"BCCD was not found: .* Looked for BCCD.zip"):
        BCCD(str(tmp_path)).splits()
    with zipfile.ZipFile(tmp_path / "BCCD.zip", "w") as archive:
        archive.writestr("BCCD/ImageSets/Main/test.txt", "BloodImage_00007")
    with pytest.raises(
        DataError, match=r"does not hold the BCCD folder of https.*: 1 of its kind of files, expected 732"
    ):
        BCCD(str(tmp_path)).splits()
    (tmp_path / "BCCD.zip").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(DataError, match="is damaged"):
        BCCD(str(tmp_path)).splits()


# -- targets that move with the image ----------------------------------------------------------------------------------


def rectangle(side, x, y, width, height):
    """A bright rectangle whose middle is (x, y) right of and below that of the image, in pixels."""
    image = torch.zeros(1, side, side)
    left, top = int(side / 2 + x - width / 2), int(side / 2 + y - height / 2)
    image[:, top : top + height, left : left + width] = 1
    return image


def measured(image):
    rows, columns = image[0].nonzero().unbind(1)
    middle = image.shape[-1] / 2
    x, y = (float(columns.min() + columns.max() + 1) / 2 - middle, float(rows.min() + rows.max() + 1) / 2 - middle)
    return [x, y, float(columns.max() - columns.min() + 1), float(rows.max() - rows.min() + 1)]


def test_places_and_sizes_move_with_the_image():
    side, generator = 40, torch.Generator().manual_seed(0)
    images, targets = [], []
    for width, height, x, y in ((4, 10, 5, -7), (8, 2, -3, 11), (6, 6, 0, 9), (2, 12, -12, 0)) * 40:
        images.append(rectangle(side, x, y, width, height))
        targets.append([7.0, x, y, width, height])  # the first one has nothing to do with places
    images, targets = torch.stack(images), torch.tensor(targets, dtype=torch.float32)
    augment = TurnAndFlip(vectors=[(1, 2)], sizes=[(3, 4)])
    batch = Batch(images, torch.zeros(160, dtype=torch.int64), torch.arange(160), 0, None, targets)
    moved = augment.of_batch(batch, generator)
    assert torch.equal(images, batch.images) and torch.equal(targets, batch.targets)
    expected = [[7.0, *measured(image)] for image in moved.images]
    torch.testing.assert_close(moved.targets, torch.tensor(expected), atol=0, rtol=0)
    ways = {tuple(row) for row in moved.targets[::4].tolist()}
    assert len(ways) == 8, "eight ways to lay a rectangle that is neither square nor centred"
    alone = augment(images, torch.Generator().manual_seed(0))
    assert torch.equal(alone, moved.images)


def test_without_targets_only_the_images_move_and_unknown_columns_are_named():
    images = torch.rand(6, 3, 8, 8)
    plain = Batch(images, torch.zeros(6), torch.arange(6), 0)
    moved = TurnAndFlip().of_batch(plain, torch.Generator().manual_seed(2))
    assert moved.targets is None and not torch.equal(moved.images, images)
    for given in (plain, plain._replace(targets=torch.zeros(6, 2))):
        with pytest.raises(ConfigError, match=r"moves the target columns \[1, 2\], but there are [02]"):
            TurnAndFlip(vectors=[(1, 2)]).of_batch(given, torch.Generator())
