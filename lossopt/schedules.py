"""Learning-rate schedules that torch lacks; they are ordinary torch schedulers, stepped once per optimiser step."""

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupDecay(LambdaLR):
    """Rises linearly over `warmup_steps`, then falls to zero at the end of training.

    The length of the training is not an argument: the module that owns the schedule fills `total_steps` in, so that
    changing the number of epochs cannot leave a schedule that ends too early or too late.

    Args:
        optimizer: whose learning rates are scaled.
        warmup_steps: optimiser steps until the full learning rate is reached.
        shape: of the fall: "linear" or "cosine".
    """

    def __init__(
        self, optimizer: Optimizer, warmup_steps: int = 100, shape: Literal["linear", "cosine"] = "linear"
    ) -> None:
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must be 0 or more, got {warmup_steps}.")
        if shape not in ("linear", "cosine"):
            raise ValueError(f"shape must be 'linear' or 'cosine', got {shape!r}.")
        self.warmup_steps, self.shape = warmup_steps, shape
        self.total_steps: float = math.inf
        super().__init__(optimizer, self.factor)

    def factor(self, step: int) -> float:
        """The share of the full learning rate at optimiser step `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        left = max(0.0, 1 - (step - self.warmup_steps) / max(1.0, self.total_steps - self.warmup_steps))
        return left if self.shape == "linear" else (1 - math.cos(math.pi * left)) / 2
