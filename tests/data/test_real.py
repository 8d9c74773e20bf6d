"""Real data sets: counts, splits and floors that do not depend on our code being right."""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lossopt.data import MNIST, FashionMNIST, LabelledImages, Omniglot, OneShotRun, one_shot_runs
from lossopt.data.dataset import Splits
from lossopt.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def lake(data_root: Path) -> Splits:
    return Omniglot(str(data_root)).splits()


def _recall_at_1(images: torch.Tensor, labels: torch.Tensor) -> float:
    """Every image asks, all others answer; nearest by pixels."""
    flat = images.flatten(1).float()
    squares, hits = flat.square().sum(1), 0
    for start in range(0, len(flat), 2000):
        distance = torch.addmm(squares, flat[start : start + 2000], flat.T, alpha=-2)
        rows = torch.arange(len(distance))
        distance[rows, rows + start] = torch.inf
        hits += int((labels[distance.argmin(1)] == labels[start : start + 2000]).sum())
    return hits / len(flat)


def _alphabets(table: LabelledImages) -> set[str]:
    return {name.split("/")[0] for name in table.class_names}


def test_lake_split(lake: Splits) -> None:
    assert [len(part.class_names) for part in (lake.train, lake.validation, lake.test)] == [822, 142, 659]
    assert len(lake.train) + len(lake.validation) == 19_280
    assert len(lake.test) == 13_180
    assert len(_alphabets(lake.validation)) == 5
    assert len(_alphabets(lake.train) | _alphabets(lake.validation)) == 30
    for part in (lake.train, lake.validation, lake.test):
        assert list(part.names) == sorted(part.names)
        assert part.labels.bincount().eq(20).all()
        assert [part.class_names[label] for label in part.labels] == [name.rsplit("/", 1)[0] for name in part.names]
        assert [part.group_names[group] for group in part.groups] == [name.split("/")[0] for name in part.names]
    assert lake.test.names[0] == "Angelic/character01/0965_01"
    assert lake.test.pixels.images.shape == (13_180, 1, 28, 28)


def test_omniglot_pixels_are_the_files_inverted_and_averaged(lake: Splits, data_root: Path) -> None:
    with zipfile.ZipFile(data_root / "omniglot/omniglot-py/images_evaluation.zip") as archive:
        for row in (0, 5_000, 13_179):
            content = archive.read(f"images_evaluation/{lake.test.names[row]}.png")
            ink = 255.0 - np.array(Image.open(io.BytesIO(content)).convert("L"))
            fine = ink.repeat(28, axis=0).repeat(28, axis=1).reshape(28, 105, 28, 105)
            expected = np.round(fine.mean(axis=(1, 3))).astype(int)
            assert lake.test.pixels.images[row, 0].tolist() == expected.tolist()


def test_raw_pixel_recall_is_known(lake: Splits) -> None:
    assert _recall_at_1(lake.test.pixels.images, lake.test.labels) == pytest.approx(0.2427, abs=2e-4)


def test_lake_by_characters_keeps_every_alphabet(data_root: Path) -> None:
    splits = Omniglot(str(data_root), split="small1", validation="characters").splits()
    five = {"Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"}
    assert _alphabets(splits.train) == _alphabets(splits.validation) == five
    assert not set(splits.train.class_names) & set(splits.validation.class_names)
    assert len(splits.train.class_names) + len(splits.validation.class_names) == 136


def test_vinyals_split(data_root: Path) -> None:
    splits = Omniglot(str(data_root), split="vinyals").splits()
    lists = data_root / "omniglot/splits/vinyals"
    for part, name in ((splits.train, "train"), (splits.validation, "val"), (splits.test, "test")):
        listed = {line.removesuffix("/rot000") for line in (lists / f"{name}.txt").read_text().split()}
        assert set(part.class_names) == listed
        assert part.labels.bincount().eq(20).all()
    assert [len(part.class_names) for part in (splits.train, splits.validation, splits.test)] == [4112, 688, 1692]
    turned = splits.train.names.index(next(name for name in splits.train.names if name.endswith("/rot090")))
    upright = list(splits.train.names).index(splits.train.names[turned].removesuffix("/rot090"))
    images = splits.train.batch([upright, turned]).images[:, 0].numpy()
    assert images[1].tolist() == np.rot90(images[0]).tolist()


def _nearest(run: OneShotRun) -> int:
    flat = [images.flatten(1).double() for images in (run.query, run.support)]
    return int((torch.cdist(*flat).argmin(1) == run.answers).sum())


def test_official_one_shot_runs(data_root: Path, lake: Splits) -> None:
    runs = one_shot_runs(str(data_root), image_size=105)
    assert len(runs) == 20
    assert sum(_nearest(run) for run in runs) == 76
    small = one_shot_runs(str(data_root))
    known = {
        image.numpy().tobytes(): name for image, name in zip(lake.test.pixels.images, lake.test.names, strict=True)
    }
    for run in small:
        for image in (*run.query, *run.support):
            assert known[image.numpy().tobytes()].split("/")[0] == run.alphabet
        drawn = [known[image.numpy().tobytes()].rsplit("/", 1)[0] for image in run.support]
        asked = [known[image.numpy().tobytes()].rsplit("/", 1)[0] for image in run.query]
        assert [drawn[answer] for answer in run.answers] == asked


def test_repacked_and_foreign_zips(data_root: Path, tmp_path: Path) -> None:
    original = data_root / "omniglot/one-shot-classification/all_runs.zip"
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(tmp_path / "all_runs.zip", "w") as packed:
        for name in sorted(source.namelist(), reverse=True):
            packed.writestr(name, source.read(name))
        packed.writestr("__MACOSX/._run01", b"junk")
    assert len(one_shot_runs(str(tmp_path))) == 20
    with zipfile.ZipFile(tmp_path / "all_runs.zip", "w") as packed:
        packed.writestr("run01/test/item01.png", b"x")
    with pytest.raises(DataError, match="it holds 1 of its kind of files, expected 820"):
        one_shot_runs(str(tmp_path))
    (tmp_path / "all_runs.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="not a readable zip"):
        one_shot_runs(str(tmp_path))


@pytest.mark.parametrize("source", [MNIST, FashionMNIST])
def test_mnist_disjoint(data_root: Path, source: type[MNIST]) -> None:
    splits = source(str(data_root)).splits()
    assert splits.train.class_names == source.class_names[:5]
    assert splits.validation.class_names == splits.test.class_names == source.class_names[5:]
    assert max(int(name.split("/")[1]) for name in splits.train.names) < 50_000
    assert min(int(name.split("/")[1]) for name in splits.validation.names) >= 50_000
    assert all(name.startswith("t10k/") for name in splits.test.names)
    sizes = {MNIST: (25_538, 4_942, 4_861), FashionMNIST: (24_910, 4_910, 5_000)}
    assert (len(splits.train), len(splits.validation), len(splits.test)) == sizes[source]


def test_mnist_closed_is_test_against_train(data_root: Path) -> None:
    splits = MNIST(str(data_root), split="closed", image_size=14).splits()
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (55_000, 5_000, 70_000)
    assert not set(splits.train.names) & set(splits.validation.names)
    assert int(splits.test.query.sum()) == 10_000
    assert int(splits.test.gallery.sum()) == 60_000
    batch = splits.test.batch([0, 10_000])
    assert [splits.test.class_names[label] for label in batch.labels] == ["7", "5"]
    assert batch.images.shape == (2, 1, 14, 14)
    with pytest.raises(ConfigError, match="holdout"):
        MNIST(holdout=0)


def test_damaged_mnist_is_refused(data_root: Path, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST/raw"
    shutil.copytree(data_root / "mnist/MNIST/raw", raw)
    labels = raw / "t10k-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:2000])
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz is damaged"):
        MNIST(str(tmp_path)).splits()
    labels.write_bytes((raw / "train-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(DataError, match="does not hold 10000 bytes"):
        MNIST(str(tmp_path)).splits()
