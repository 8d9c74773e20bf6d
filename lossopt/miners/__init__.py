"""Which pairs or triplets are compared; each class follows the field's call `miner(embeddings, labels)`."""

from lossopt.miners.in_batch import (
    BatchHardMiner,
    EasyPositiveMiner,
    HardPairMiner,
    RandomPairMiner,
    RandomTripletMiner,
    SemiHardMiner,
)
from lossopt.miners.tuples import Pairs, Triplets

__all__ = [
    "BatchHardMiner",
    "EasyPositiveMiner",
    "HardPairMiner",
    "Pairs",
    "RandomPairMiner",
    "RandomTripletMiner",
    "SemiHardMiner",
    "Triplets",
]
