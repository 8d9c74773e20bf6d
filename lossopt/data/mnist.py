"""MNIST and Fashion-MNIST, read from their four original files, packed or not, and checked against what they claim."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lossopt.data.dataset import InMemory, LabelledImages, Splits, query_gallery
from lossopt.data.locate import Remote, find_folder, present, shown
from lossopt.data.scale import scale_images
from lossopt.errors import ConfigError, DataError

_TRAIN, _TEST = 60_000, 10_000
_FILES = {
    "train-images-idx3-ubyte": (_TRAIN, 28, 28),
    "train-labels-idx1-ubyte": (_TRAIN,),
    "t10k-images-idx3-ubyte": (_TEST, 28, 28),
    "t10k-labels-idx1-ubyte": (_TEST,),
}
_DISJOINT_TRAIN = 50_000


class MNIST:
    """Handwritten digits, 28 x 28, grey.

    Args:
        root: the data folder; None: LOSSOPT_DATA, else ./data.
        split: "disjoint": train on classes 0-4 of the first 50,000 training images; validation is classes 5-9 of the
            last 10,000; test is classes 5-9 of the 10,000 test images. "closed": all ten classes; train is the
            60,000 training images but the last `holdout`, which are the validation; in the test, the 10,000 test
            images are searched among all 60,000 training images (pytorch-metric-learning's "test against train").
            "standard": as "closed", but the test is the 10,000 test images and nothing else; for networks that score
            themselves. With holdout 0 they are the validation, too: right for repeating a published curve, wrong for
            choosing anything.
        download: fetch the files (with checksums) when they are not there.
        image_size: side in pixels.
        holdout: validation images of the closed and the standard split.

    Raises:
        ConfigError: an unknown split, or an impossible holdout.

    Source: LeCun, Bottou, Bengio & Haffner 1998. Licence: CC BY-SA 3.0.
    """

    title = "MNIST"
    channels = 1
    inverted = False
    area = True
    layouts: tuple[str, ...] = ("mnist/MNIST/raw", "MNIST/raw", "mnist/raw", "mnist", "")
    class_names: tuple[str, ...] = tuple(str(digit) for digit in range(10))
    mirrors: tuple[str, ...] = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
    checksums: tuple[str, ...] = (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    )

    def __init__(
        self,
        root: str | None = None,
        split: Literal["disjoint", "closed", "standard"] = "disjoint",
        download: bool = False,
        image_size: int = 28,
        holdout: int = 5000,
    ) -> None:
        if split not in ("disjoint", "closed", "standard"):
            raise ConfigError(f"{self.title} has split disjoint, closed or standard, not {split!r}.")
        least = 0 if split == "standard" else 1
        if not least <= holdout < _TRAIN:
            raise ConfigError(f"holdout is a number of training images, {least} to {_TRAIN - 1:,}; got {holdout}.")
        self.root, self.split, self.download = root, split, download
        self.image_size, self.holdout = image_size, holdout

    def splits(self) -> Splits:
        """The three tables, in memory. Raises: DataError: files missing, damaged or of another size."""
        remotes = [
            Remote(f"{name}.gz", tuple(f"{mirror}{name}.gz" for mirror in self.mirrors), md5)
            for name, md5 in zip(_FILES, self.checksums, strict=True)
        ]
        folder = find_folder(self.title, self.root, self.layouts, list(_FILES), remotes, self.download)
        train, test = self._table(folder, "train"), self._table(folder, "t10k")
        if self.split == "standard":
            return self._standard(train, test)
        return self._disjoint(train, test) if self.split == "disjoint" else self._closed(train, test)

    def _disjoint(self, train: LabelledImages, test: LabelledImages) -> Splits:
        seen, early = train.labels < 5, torch.arange(_TRAIN) < _DISJOINT_TRAIN
        return Splits(
            train.select(seen & early),
            train.select(~seen & ~early),
            test.select(test.labels >= 5),
            f"{self.title}: train on classes 0-4 of the first 50,000 training images, retrieve the unseen classes 5-9 "
            "(class-disjoint): validation from the last 10,000 training images, test from the 10,000 test images.",
            class_disjoint=True,
        )

    def _closed(self, train: LabelledImages, test: LabelledImages) -> Splits:
        kept = torch.arange(_TRAIN) < _TRAIN - self.holdout
        return Splits(
            train.select(kept),
            train.select(~kept),
            query_gallery(test, train),
            f"{self.title}: closed set, all ten classes in training and test. Train: the first "
            f"{_TRAIN - self.holdout:,} training images; validation: the last {self.holdout:,}, among themselves; "
            f"test: the {_TEST:,} test images searched among all {_TRAIN:,} training images.",
            class_disjoint=False,
        )

    def _standard(self, train: LabelledImages, test: LabelledImages) -> Splits:
        kept = torch.arange(_TRAIN) < _TRAIN - self.holdout
        last = f"the last {self.holdout:,} of the 60,000" if self.holdout else f"the {_TEST:,} test images themselves"
        return Splits(
            train.select(kept),
            train.select(~kept) if self.holdout else test,
            test,
            f"{self.title}: all ten classes. Train: the first {_TRAIN - self.holdout:,} training images; validation: "
            f"{last}; test: the {_TEST:,} test images.",
            class_disjoint=False,
        )

    def _table(self, folder: Path, part: str) -> LabelledImages:
        images = read_idx(folder, f"{part}-images-idx3-ubyte")
        labels = read_idx(folder, f"{part}-labels-idx1-ubyte").to(torch.int64)
        if int(labels.max()) > 9:
            raise DataError(f"{self.title} in {shown(folder)}: a label is {int(labels.max())}, but 9 is the largest.")
        return LabelledImages(
            pixels=InMemory(scale_images(images[:, None], self.image_size)),
            labels=labels,
            class_names=self.class_names,
            names=[f"{part}/{row:05d}" for row in range(len(labels))],
        )


class FashionMNIST(MNIST):
    """Pictures of clothing, 28 x 28, grey; arguments and splits as for MNIST.

    Source: Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747. Licence: MIT.
    """

    title = "Fashion-MNIST"
    layouts = ("fashion_mnist/FashionMNIST/raw", "FashionMNIST/raw", "fashion_mnist/raw", "fashion_mnist", "")
    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    mirrors = (
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    )
    checksums = (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    )


def read_idx(folder: Path, name: str) -> Tensor:
    """One file of unsigned bytes in LeCun's idx format, packed by gzip or not.

    Returns:
        uint8, of the shape that `name` must have.

    Raises:
        DataError: damaged, truncated, or of another shape; never reads more than the shape allows.
    """
    path, shape = present(folder, name), _FILES[name]
    if path is None:
        raise DataError(f"There is no {name} or {name}.gz in {shown(folder)}; restore it, or pass download: true.")
    header = b"\0\0\x08" + bytes([len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    wanted = len(header) + math.prod(shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(wanted + 1)
    except (OSError, EOFError, zlib.error) as failure:
        raise DataError(f"{shown(path)} is damaged ({failure}). Delete it and fetch it again.") from failure
    if not content.startswith(header) or len(content) != wanted:
        raise DataError(
            f"{shown(path)} does not hold {' x '.join(map(str, shape))} bytes in the idx format (it has "
            f"{min(len(content), wanted)} of {wanted} bytes). Delete it and fetch it again."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=len(header)).copy()).reshape(shape)
