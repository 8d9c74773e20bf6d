"""Losses by family. Those on embeddings follow the field's call `loss_fn(embeddings, labels, indices_tuple)`.

Those on numbers and classes follow torch.nn's, `loss_fn(prediction, target)`; most of them are torch.nn's own.
"""

from lossopt.losses.classification import HingeLoss, MultiClassHingeLoss, SquaredHingeLoss
from lossopt.losses.embedding import ContrastiveLoss, CosineEmbeddingLoss, HingeEmbeddingLoss
from lossopt.losses.memory import CrossBatchMemory
from lossopt.losses.ranking import RecallAtKLoss, SmoothAPLoss
from lossopt.losses.regression import MSLELoss
from lossopt.losses.softmax import NPairsLoss, NTXentLoss, SupConLoss
from lossopt.losses.triplets import RankingHingeLoss, SoftMarginTripletLoss, TripletLoss
from lossopt.losses.weighted import (
    CircleLoss,
    GeneralizedLiftedStructureLoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    RankedListLoss,
)

__all__ = [
    "CircleLoss",
    "ContrastiveLoss",
    "CosineEmbeddingLoss",
    "CrossBatchMemory",
    "GeneralizedLiftedStructureLoss",
    "HingeEmbeddingLoss",
    "HingeLoss",
    "LiftedStructureLoss",
    "MSLELoss",
    "MultiClassHingeLoss",
    "MultiSimilarityLoss",
    "NPairsLoss",
    "NTXentLoss",
    "RankedListLoss",
    "RankingHingeLoss",
    "RecallAtKLoss",
    "SmoothAPLoss",
    "SoftMarginTripletLoss",
    "SquaredHingeLoss",
    "SupConLoss",
    "TripletLoss",
]
