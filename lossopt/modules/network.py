"""What every network that `lossopt train` trains has: an optimiser, a schedule, and a memory of the last step.

Letters: b images of a batch.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from lossopt.data.dataset import Batch, Splits
from lossopt.errors import ConfigError
from lossopt.health import Kind, Sign
from lossopt.schedules import WarmupDecay


class TrainedNetwork(LightningModule):
    """Interface of the networks: the optimiser is made from the parameters, the schedule from the optimiser.

    Args:
        optimizer: made from the parameters; None: `torch.optim.AdamW`. It is no default of the signature, for of that
            another class would inherit arguments in a configuration: its weight decay, for one.
        lr_scheduler: made from the optimiser; None: a constant learning rate.
    """

    watched_by_plateau = "val/map@r"  # what ReduceLROnPlateau looks at, unless it says so itself

    def __init__(
        self, optimizer: OptimizerCallable | None = None, lr_scheduler: LRSchedulerCallable | None = None
    ) -> None:
        super().__init__()
        self.make_optimizer: OptimizerCallable = torch.optim.AdamW if optimizer is None else optimizer
        self.make_schedule = lr_scheduler

    @property
    def embedder(self) -> nn.Module:
        """(b, c, h, w) float images in [0, 1] to (b, d): what `lossopt embed` and `lossopt evaluate` search with.

        Raises:
            ConfigError: this network has no embeddings.
        """
        raise ConfigError(
            f"{type(self).__name__} has no embeddings to search. Give a run of a SiameseNetwork or a TripletNetwork, "
            "or of a network with an embedding."
        )

    def configure_optimizers(self) -> Any:
        """The optimiser, and the schedule stepped as its kind wants it: per step or per epoch."""
        optimizer = self.make_optimizer(self.parameters())
        if self.make_schedule is None:
            return optimizer
        scheduler = self.make_schedule(optimizer)
        if isinstance(scheduler, WarmupDecay):
            scheduler.total_steps = self.trainer.estimated_stepping_batches
        per_step = isinstance(scheduler, WarmupDecay | OneCycleLR | CyclicLR)
        settings = {"scheduler": scheduler, "interval": "step" if per_step else "epoch"}
        if isinstance(scheduler, ReduceLROnPlateau):
            settings["monitor"] = getattr(scheduler, "monitor", self.watched_by_plateau)
        return {"optimizer": optimizer, "lr_scheduler": settings}


class Step(NamedTuple):
    """What the last training step saw and made, for those who watch it. outputs: (b, ...), detached."""

    batch: Batch
    outputs: Tensor

    @property
    def ids(self) -> Tensor:
        """(b,) rows of the training table."""
        return self.batch.ids


class ImageNetwork(TrainedNetwork):
    """Interface of the networks that score themselves: `lossopt train` trains them on `ShuffledData`.

    One that is written below this gives `metrics`, `training_step` (which calls `keep` and returns the loss), and
    `validation_step` and `test_step` (which call `log_scores`).

    Args:
        optimizer, lr_scheduler: as for `TrainedNetwork`.
    """

    watched_by_plateau = "val/loss"

    def __init__(
        self, optimizer: OptimizerCallable | None = None, lr_scheduler: LRSchedulerCallable | None = None
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        self.last_step: Step | None = None

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures that are logged as `val/<name>` and `test/<name>`, the main one first."""

    def check_data(self, splits: Splits) -> None:
        """What the network asks of its data, before any training. Raises: ConfigError, DataError."""

    def keep(self, batch: Batch, outputs: Tensor) -> None:
        """To be called in `training_step`, with what the loss saw, (b, ...): the guard and the health watch look."""
        self.last_step = Step(batch, outputs.detach())

    def log_scores(self, part: Literal["val", "test"], scores: Mapping[str, Tensor | float], images: int) -> None:
        """To be called in `validation_step` or `test_step`: means over a batch of so many images, by metric.

        Called at the end of an epoch with images = 1 it logs figures of the whole split.
        """
        named = {f"{part}/{name}": torch.as_tensor(value, dtype=torch.float32) for name, value in scores.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=images, logger=False)

    def faults(self) -> Mapping[Kind, Sign | None]:
        """Faults of its own kind that the last step shows, asked at the logging steps; None: it does not show."""
        return {}
