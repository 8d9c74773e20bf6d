"""LightningModules, wiring only."""

from lossopt.modules.autoencoder import Autoencoder
from lossopt.modules.heads import Classification, Embedding, Regression
from lossopt.modules.multitask import MultitaskNetwork
from lossopt.modules.siamese import SiameseNetwork
from lossopt.modules.triplet import TripletNetwork

__all__ = [
    "Autoencoder",
    "Classification",
    "Embedding",
    "MultitaskNetwork",
    "Regression",
    "SiameseNetwork",
    "TripletNetwork",
]
