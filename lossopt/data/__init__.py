"""Where the images come from: each source is a class whose `splits()` returns three tables of labelled images."""

from lossopt.data.bccd import BCCD
from lossopt.data.benchmarks import CUB200, Cars196, InShop, StanfordOnlineProducts
from lossopt.data.canvas import CanvasDigits
from lossopt.data.dataset import Batch, ImageSource, InMemory, LabelledImages, OnDisk, Pixels, Splits, query_gallery
from lossopt.data.decode import check_headers, decode_image
from lossopt.data.digits import Digits
from lossopt.data.folder import Folder
from lossopt.data.manifest import Manifest
from lossopt.data.mnist import MNIST, FashionMNIST
from lossopt.data.omniglot import Omniglot, OneShotRun, one_shot_runs
from lossopt.data.shuffled import ShuffledData

__all__ = [
    "BCCD",
    "CUB200",
    "MNIST",
    "Batch",
    "CanvasDigits",
    "Cars196",
    "Digits",
    "FashionMNIST",
    "Folder",
    "ImageSource",
    "InMemory",
    "InShop",
    "LabelledImages",
    "Manifest",
    "Omniglot",
    "OnDisk",
    "OneShotRun",
    "Pixels",
    "ShuffledData",
    "Splits",
    "StanfordOnlineProducts",
    "check_headers",
    "decode_image",
    "one_shot_runs",
    "query_gallery",
]
