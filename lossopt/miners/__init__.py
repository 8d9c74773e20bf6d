"""Which pairs or triplets are compared; each class follows the field's call `miner(embeddings, labels)`."""

from lossopt.miners.bands import AngularMiner, HardMiner, SemiHardMiner
from lossopt.miners.hardest import BatchHardMiner, EasyPositiveMiner, RankWindowMiner
from lossopt.miners.pairs import HardPairMiner, MultiSimilarityMiner
from lossopt.miners.sampled import (
    AllPairsMiner,
    AllTripletsMiner,
    DistanceWeightedMiner,
    RandomPairMiner,
    RandomTripletMiner,
)
from lossopt.miners.tuples import Pairs, Triplets

__all__ = [
    "AllPairsMiner",
    "AllTripletsMiner",
    "AngularMiner",
    "BatchHardMiner",
    "DistanceWeightedMiner",
    "EasyPositiveMiner",
    "HardMiner",
    "HardPairMiner",
    "MultiSimilarityMiner",
    "Pairs",
    "RandomPairMiner",
    "RandomTripletMiner",
    "RankWindowMiner",
    "SemiHardMiner",
    "Triplets",
]
