"""Losses by family; each class follows the field's call `loss_fn(embeddings, labels, indices_tuple)`."""

from lossopt.losses.embedding import ContrastiveLoss, CosineEmbeddingLoss, HingeEmbeddingLoss
from lossopt.losses.softmax import NTXentLoss, SupConLoss
from lossopt.losses.triplets import RankingHingeLoss, SoftMarginTripletLoss, TripletLoss

__all__ = [
    "ContrastiveLoss",
    "CosineEmbeddingLoss",
    "HingeEmbeddingLoss",
    "NTXentLoss",
    "RankingHingeLoss",
    "SoftMarginTripletLoss",
    "SupConLoss",
    "TripletLoss",
]
