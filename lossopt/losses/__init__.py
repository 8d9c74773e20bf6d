"""Losses by family; each class follows the field's call `loss_fn(embeddings, labels, indices_tuple)`."""

from lossopt.losses.embedding import ContrastiveLoss, CosineEmbeddingLoss, HingeEmbeddingLoss
from lossopt.losses.memory import CrossBatchMemory
from lossopt.losses.ranking import RecallAtKLoss, SmoothAPLoss
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
    "LiftedStructureLoss",
    "MultiSimilarityLoss",
    "NPairsLoss",
    "NTXentLoss",
    "RankedListLoss",
    "RankingHingeLoss",
    "RecallAtKLoss",
    "SmoothAPLoss",
    "SoftMarginTripletLoss",
    "SupConLoss",
    "TripletLoss",
]
