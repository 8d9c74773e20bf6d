"""The triplet network: one encoder, applied to anchor, positive and negative; the loss sees triplets."""

from typing import ClassVar, Literal

from lossopt.modules.embedding import EmbeddingNetwork


class TripletNetwork(EmbeddingNetwork):
    """Learns from triplets of a batch: an anchor, an image of its class, an image of another class.

    The batch is embedded once and its triplets share those embeddings. Takes triplet losses and triplet miners.
    Arguments: see `EmbeddingNetwork`.

    Source: Hoffer & Ailon 2015, Deep Metric Learning using Triplet Network; Schroff et al. 2015, FaceNet.
    """

    compares: ClassVar[Literal["pairs", "triplets"]] = "triplets"
