"""Losses that ask which row is the positive: the softmax of similarities over an anchor's rows.

With s = cos / temperature (or minus another distance). Letters: b rows of a tile, m reference rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lossopt.losses.distances import Distance
from lossopt.losses.embedding import RowLoss, positive_number
from lossopt.losses.tiles import Tile

_NEVER = -1e30  # of a masked similarity: finite, so that a row without any has a finite gradient


def log_sum_exp(scores: Tensor, allowed: Tensor) -> Tensor:
    """(b, 1) log of the sum of exp over the allowed of (b, m) scores; about -1e30 where none is."""
    return torch.logsumexp(scores.masked_fill(~allowed, _NEVER), dim=1, keepdim=True)


class _SoftmaxLoss(RowLoss):
    def __init__(self, temperature: float, distance: Distance) -> None:
        super().__init__(distance)
        positive_number(f"{type(self).__name__} temperature", temperature, "similarities are divided by it")
        self.temperature = temperature


class NTXentLoss(_SoftmaxLoss):
    """-log exp(s_p) / (exp(s_p) + sum over negatives of exp(s_n)), the mean over all positive pairs: InfoNCE.

    Other positives of the anchor are in nobody's way. With one positive per anchor this is the cross-entropy of
    InfoNCE, SimCLR and CLIP; give the other view as `ref_emb` for the one-sided forms.

    Source: van den Oord, Li & Vinyals 2018, arXiv:1807.03748, eq. 4; Chen et al. 2020, ICML, eq. 1.
    """

    def __init__(self, temperature: float = 0.07, distance: Distance = "cosine") -> None:
        super().__init__(temperature, distance)

    def per_anchor(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """See `RowLoss`; what counts is each positive pair."""
        scores = tile.distances / -self.temperature
        columns, filled = tile.positives
        of_positives = scores.gather(1, columns)
        losses = F.softplus(log_sum_exp(scores, tile.different) - of_positives)
        counted = filled & tile.different.any(1, keepdim=True)
        return torch.where(counted, losses, 0).flatten(), counted.flatten()


class SupConLoss(_SoftmaxLoss):
    """-log exp(s_p) / (sum over all other rows of exp(s)), the mean over an anchor's positives, then over anchors.

    Anchors without positives do not count.

    Source: Khosla et al. 2020, NeurIPS, "Supervised contrastive learning", eq. 2 (L_out).
    """

    def __init__(self, temperature: float = 0.1, distance: Distance = "cosine") -> None:
        super().__init__(temperature, distance)

    def per_anchor(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """See `RowLoss`."""
        scores = tile.distances / -self.temperature
        columns, filled = tile.positives
        positives = filled.sum(1)
        mean = torch.where(filled, scores.gather(1, columns), 0).sum(1) / positives.clamp(min=1)
        counted = positives > 0
        losses = log_sum_exp(scores, tile.same | tile.different)[:, 0] - mean
        return torch.where(counted, losses, 0), counted
