"""Losses by family; each class follows the field's call `loss_fn(embeddings, labels, indices_tuple)`."""

from lossopt.losses.embedding import (
    ContrastiveLoss,
    CosineEmbeddingLoss,
    HingeEmbeddingLoss,
    RankingHingeLoss,
    SoftMarginTripletLoss,
    TripletLoss,
)

__all__ = [
    "ContrastiveLoss",
    "CosineEmbeddingLoss",
    "HingeEmbeddingLoss",
    "RankingHingeLoss",
    "SoftMarginTripletLoss",
    "TripletLoss",
]
