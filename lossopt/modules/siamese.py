"""The Siamese network: one encoder, applied to both images of a pair; the loss sees pairs."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from lossopt.modules.embedding import EmbeddingNetwork


class SiameseNetwork(EmbeddingNetwork):
    """Learns from pairs of a batch: the same class, or not.

    The batch is embedded once and its pairs share those embeddings, which gives the same gradient as two towers with
    tied weights at a fraction of the work. Takes pair losses and pair miners, and every loss of
    pytorch-metric-learning that compares a whole batch. Arguments: see `EmbeddingNetwork`.

    Source: Bromley et al. 1993, Signature Verification using a Siamese Time Delay Neural Network; Hadsell et al. 2006.
    """

    compares: ClassVar[Literal["pairs", "triplets"]] = "pairs"

    def distance(self, images_1: Tensor, images_2: Tensor) -> Tensor:
        """(b, c, h, w) twice. Returns (b,) Euclidean distances between the images' embeddings."""
        return torch.linalg.vector_norm(self(images_1) - self(images_2), dim=1)
