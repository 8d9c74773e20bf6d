"""The LightningDataModule: one source, P x K batches to train on, plain passes to evaluate on."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lossopt.data.augment import Augmentation
from lossopt.data.dataset import Batch, ImageSource, LabelledImages, Splits
from lossopt.errors import ConfigError, DataError
from lossopt.miners.whole_set import WholeSetMining
from lossopt.samplers import PKSampler, ShuffledSampler, SmallClasses


class ImageData(LightningDataModule):
    """Interface of what lies between a data set and the batches of a run.

    Images travel as uint8; on the device they become float in [0, 1] and are augmented, a batch at a time.

    Args:
        source: the data set and its splits.
        augment: applied in order to training batches only.
        evaluation_batch_size: images looked at at once, where no gradient is needed.
        workers: loader processes; 0 is right for data in memory, 2 or more for images on disk.
        seed: of sampling and augmentation; None: the run's seed (`lossopt train` fills it in), else 0.
    """

    def __init__(
        self,
        source: ImageSource,
        augment: list[Augmentation] | None,
        evaluation_batch_size: int,
        workers: int,
        seed: int | None,
    ) -> None:
        super().__init__()
        at_least("evaluation_batch_size", evaluation_batch_size, 1)
        at_least("workers", workers, 0)
        self.source, self.augment, self.seed = source, augment or [], seed
        self.evaluation_batch_size, self.workers = evaluation_batch_size, workers
        self._splits: Splits | None = None

    @property
    def splits(self) -> Splits:
        """The three tables; read on first use."""
        if self._splits is None:
            self._splits = self.source.splits()
        return self._splits

    @splits.setter
    def splits(self, given: Splits | None) -> None:
        """Tables that are there already, of an equal source; None: to be read."""
        self._splits = given

    @property
    @abstractmethod
    def images_per_batch(self) -> int:
        """Of a training batch, over all processes together."""

    @abstractmethod
    def training_table(self) -> LabelledImages:
        """The training images; a batch's ids are its rows."""

    @abstractmethod
    def batches(self) -> Sampler:
        """Deals the training batches: (rows, seed) of each."""

    @abstractmethod
    def describe(self) -> str:
        """A few lines for people: what is trained and evaluated on, and by which rule it was split."""

    def setup(self, stage: str) -> None:
        """Reads the data and checks that the batches can be made, before any training."""
        for name in ("validation", "test"):
            if not len(getattr(self.splits, name)):
                raise DataError(f"The {name} split is empty. A run needs images that it is not trained on.")
        if stage == "fit":
            self.batches()

    def sizes(self) -> list[str]:
        """A line for each split."""
        tables = {name: getattr(self.splits, name) for name in ("train", "validation", "test")}
        return [
            f"{name:<11}{len(table):>8,} images {len(table.class_names):>6,} classes" for name, table in tables.items()
        ]

    def train_dataloader(self) -> DataLoader:
        """The training batches."""
        return self._loader(self.training_table(), self.batches())

    def val_dataloader(self) -> DataLoader:
        """The validation table from first row to last."""
        return self.pass_over(self.splits.validation)

    def test_dataloader(self) -> DataLoader:
        """The test table from first row to last."""
        return self.pass_over(self.splits.test)

    def pass_over(self, table: LabelledImages, rows: Sequence[int] | np.ndarray | None = None) -> DataLoader:
        """Every image of a table once, in order, or those of some rows; for evaluation."""
        return self._loader(table, _InOrder(range(len(table)) if rows is None else rows, self.evaluation_batch_size))

    def _loader(self, table: LabelledImages, batches: Sampler) -> DataLoader:
        return DataLoader(
            _Batches(table),
            sampler=batches,
            batch_size=None,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed or 0),  # an iterator must not draw from the global one
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """uint8 to float in [0, 1]; training batches are augmented with the batch's own random stream."""
        batch = batch._replace(images=to_float(batch.images))
        if self.trainer is not None and self.trainer.training and self.augment:
            generator = torch.Generator().manual_seed(batch.seed)
            for augmentation in self.augment:
                batch = augmentation.of_batch(batch, generator)
        return batch


def at_least(name: str, given: int | None, least: int) -> None:
    """Raise ValueError if the argument of the data is given and below `least`."""
    if given is not None and given < least:
        raise ValueError(f"data.init_args.{name} is {given}; it must be {least} or more.")


class RetrievalData(ImageData):
    """Everything between a data set and the batches of a metric-learning run.

    Args:
        source, augment, evaluation_batch_size, workers, seed: as for `ImageData`.
        classes_per_batch: P; images_per_class: K. A batch is P x K images, over all processes together.
        batches_per_epoch: batches between two validations; None: about one pass over the training images.
        rotations_as_classes: quarter turns of a training class become classes of their own (four times the classes).
        group_classes: how many of the P classes come from `groups_per_batch` groups (one alphabet, one category).
        groups_per_batch: see `PKSampler`.
        small_classes: "refuse", "drop" or "repeat" classes with fewer than K images.
        mining: makes batches of classes that the network takes for each other, mined from the whole training set again
            and again while it trains; None: no mining.

    Raises:
        ConfigError: P, K or the groups do not fit the data. DataError: from the source. Both in `setup`.
    """

    def __init__(
        self,
        source: ImageSource,
        classes_per_batch: int = 32,
        images_per_class: int = 4,
        batches_per_epoch: int | None = None,
        augment: list[Augmentation] | None = None,
        rotations_as_classes: bool = False,
        group_classes: int = 0,
        groups_per_batch: int = 1,
        small_classes: SmallClasses = "refuse",
        evaluation_batch_size: int = 512,
        workers: int = 0,
        seed: int | None = None,
        mining: WholeSetMining | None = None,
    ) -> None:
        super().__init__(source, augment, evaluation_batch_size, workers, seed)
        at_least("batches_per_epoch", batches_per_epoch, 1)
        self.classes_per_batch, self.images_per_class = classes_per_batch, images_per_class
        self.batches_per_epoch, self.rotations_as_classes = batches_per_epoch, rotations_as_classes
        self.group_classes, self.groups_per_batch = group_classes, groups_per_batch
        self.small_classes, self.mining = small_classes, mining
        self._sampler: PKSampler | None = None

    @property
    def images_per_batch(self) -> int:
        """P x K."""
        return self.classes_per_batch * self.images_per_class

    def batches(self) -> "SeededBatches":
        """P x K."""
        return SeededBatches(self.sampler)

    @property
    def sampler(self) -> PKSampler:
        """Deals the training batches: this process's share, if the trainer is one of several."""
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        made = self._sampler
        if made is None or (made.rank, made.world_size) != (rank, world_size):
            train = self.training_table()
            try:
                made = self._sampler = PKSampler(
                    train.labels,
                    self.classes_per_batch,
                    self.images_per_class,
                    self.batches_per_epoch,
                    self.seed or 0,
                    train.groups,
                    self.group_classes,
                    self.groups_per_batch,
                    self.small_classes,
                    self.mining.confusable_classes if self.mining else 0,
                    self.mining.classes_per_seed if self.mining else 1,
                    rank=rank,
                    world_size=world_size,
                )
            except ValueError as unfit:
                raise ConfigError(f"The batches do not fit the training data: {unfit}") from unfit
            if self.mining and self.mining.group_rule != "any" and train.groups is None:
                raise ConfigError(
                    f"mining.group_rule {self.mining.group_rule!r} asks for groups, but this data set has none. Set it "
                    "to 'any'."
                )
        return made

    def training_table(self) -> LabelledImages:
        """The training images, with their quarter turns as classes where that was asked for."""
        train = self.splits.train
        return train.with_rotations() if self.rotations_as_classes else train

    def describe(self) -> str:
        """A few lines for people: what is trained and evaluated on, and by which rule it was split."""
        lines = [self.splits.description, *self.sizes()]
        sampler = self.sampler
        lines.append(
            f"batches    {self.classes_per_batch} classes x {self.images_per_class} images, {len(sampler)} per epoch"
            + (", quarter turns as classes" if self.rotations_as_classes else "")
        )
        if self.mining:
            every, sample = self.mining.every_n_steps, self.mining.sample
            lines.append(
                f"           {self.mining.confusable_classes} of the {self.classes_per_batch} classes mined, "
                + (f"every {every:,} batches" if every else "after every epoch")
                + f", among {f'{sample:,} of the' if sample else 'all'} training images"
            )
        if sampler.left_out:
            lines.append(f"           {sampler.left_out} classes left out of training: too few images to form pairs")
        return "\n".join(lines)

    def predict_dataloader(self) -> DataLoader:
        """The test table from first row to last: `trainer.predict` embeds it."""
        return self.pass_over(self.splits.test)


def to_float(images: Tensor) -> Tensor:
    """(b, c, h, w) uint8 in 0..255 to float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


class _Batches(Dataset):
    """Hands out whole batches: an item is (rows, seed)."""

    def __init__(self, table: LabelledImages) -> None:
        self.table = table

    def __getitem__(self, item: tuple[Sequence[int], int]) -> Batch:
        rows, seed = item
        return self.table.batch(rows, seed)


class SeededBatches(Sampler):
    """The batches of a sampler, each with a seed that is a function of (seed, epoch, step, rank)."""

    def __init__(self, batches: PKSampler | ShuffledSampler) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.batches.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[list[int], int]]:
        sampler = self.batches
        for step, rows in enumerate(sampler):
            yield rows, stream(sampler.seed, sampler.epoch, step, sampler.rank)


def stream(*keys: int) -> int:
    """A 62-bit seed out of some small whole numbers: the same for the same numbers, unrelated for others."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> 2)


class _InOrder(Sampler):
    """Rows in the order given, in lists of `size`."""

    def __init__(self, rows: Sequence[int] | np.ndarray, size: int) -> None:
        self.rows, self.size = rows, size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __iter__(self) -> Iterator[tuple[Sequence[int] | np.ndarray, int]]:
        for start in range(0, len(self.rows), self.size):
            yield self.rows[start : start + self.size], 0
