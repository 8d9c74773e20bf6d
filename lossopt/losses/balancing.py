"""Many losses to one: how much each task of a network counts, and which examples of a batch count at all.

Letters: b examples of a batch.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Task = Literal["classification", "regression", "embedding"]


class FixedWeights(nn.Module):
    """Weighted sum of the tasks' losses; a task that a network does not have counts nothing.

    Args:
        classification, regression, embedding: weight of each, 0 or more.

    Raises:
        ValueError: a weight that is negative or not finite, or none above 0.
    """

    def __init__(self, classification: float = 1.0, regression: float = 1.0, embedding: float = 1.0) -> None:
        super().__init__()
        self.weights: dict[str, float] = {
            "classification": classification,
            "regression": regression,
            "embedding": embedding,
        }
        if not all(0 <= weight < math.inf for weight in self.weights.values()) or not any(self.weights.values()):
            raise ValueError(f"FixedWeights needs weights of 0 or more, one of them above 0; got {self.weights}.")

    def forward(self, losses: Mapping[Task, Tensor]) -> Tensor:
        """losses: task to its loss, all of one shape. Returns that shape."""
        return torch.stack([self.weights[task] * loss for task, loss in losses.items()]).sum(dim=0)


class UncertaintyWeighting(nn.Module):
    """Weighs each task by a noise level s that is learnt with the network: a task that stays uncertain counts less.

        L_regression / (2 s²) + log s        regression
        L / s² + log s                       classification, embedding

    What is learnt is log s², which starts at 0. At the best s the weight of a task is 1/(2 L), for either kind: every
    task then pulls equally, whatever its units. The sum may be negative, and without a lower bound where a loss can
    reach 0 exactly; the gradient stays that of the weighted losses.

    Source: Kendall, Gal & Cipolla 2018, Multi-Task Learning Using Uncertainty to Weigh Losses, CVPR, eqs. 7 and 10. The
    paper's L_regression is a squared error; any regression loss stands here for it, as a mean over its numbers. The
    paper has no embedding loss: it is taken like the cross-entropy. Optimisers with weight decay pull s towards 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_variances = nn.ParameterDict(
            {task: nn.Parameter(torch.zeros(())) for task in ("classification", "regression", "embedding")}
        )

    def forward(self, losses: Mapping[Task, Tensor]) -> Tensor:
        """losses: task to its loss, all of one shape. Returns that shape."""
        terms = []
        for task, loss in losses.items():
            log_variance = self.log_variances[task]
            share = 0.5 if task == "regression" else 1.0
            terms.append(share * torch.exp(-log_variance) * loss + 0.5 * log_variance)
        return torch.stack(terms).sum(dim=0)


def hardest_rows(losses: Tensor, share: float) -> Tensor:
    """The rows with the largest losses: `share` of them, rounded up, so one or more; of equal ones the first.

    Args:
        losses: (b,). A NaN counts as the largest, so that it is not passed over.
        share: in (0, 1].

    Returns:
        int64 rows, the hardest first.

    Source: Shrivastava, Gupta & Girshick 2016, Training Region-based Object Detectors with Online Hard Example Mining,
    CVPR, section 4. No suppression of overlapping regions: a row is an image of its own.
    """
    kept = max(1, math.ceil(share * len(losses) - 1e-9))  # 0.7 x 10 is 7.000000000000001 to a computer
    return losses.detach().argsort(descending=True, stable=True)[:kept]
