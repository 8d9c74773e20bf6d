"""LightningModules, wiring only."""

from lossopt.modules.siamese import SiameseNetwork
from lossopt.modules.triplet import TripletNetwork

__all__ = ["SiameseNetwork", "TripletNetwork"]
