"""Batches for networks that score themselves: every training image once an epoch, in an order drawn anew."""

from dataclasses import replace

from torch.utils.data import Sampler

from lossopt.data.augment import Augmentation
from lossopt.data.dataset import ImageSource, LabelledImages, Splits
from lossopt.data.module import ImageData, SeededBatches
from lossopt.errors import ConfigError
from lossopt.samplers import ShuffledSampler


class ShuffledData(ImageData):
    """Shuffled mini-batches of a data set: what an autoencoder, a classifier or a multitask network trains on.

    Labels are numbered as in the training split everywhere; classes that it does not have come after its own. Where the
    test split is a set of queries and a gallery, the queries alone are the test.

    Args:
        source, augment, evaluation_batch_size, workers, seed: as for `ImageData`.
        batch_size: images of a batch, over all processes together; those that fill no batch wait for the next epoch.

    Raises:
        ConfigError: the training images fill no batch. DataError: from the source. Both in `setup`.
    """

    def __init__(
        self,
        source: ImageSource,
        batch_size: int = 128,
        augment: list[Augmentation] | None = None,
        evaluation_batch_size: int = 512,
        workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(source, augment, evaluation_batch_size, workers, seed)
        self.batch_size = batch_size

    @property
    def splits(self) -> Splits:
        """The three tables; read on first use."""
        if self._splits is None:
            read = self.source.splits()
            names = read.train.class_names
            validation, test = (_asking(table).numbered_as(names) for table in (read.validation, read.test))
            self._splits = replace(read, validation=validation, test=test, class_disjoint=False)
        return self._splits

    @splits.setter
    def splits(self, given: Splits | None) -> None:
        self._splits = given

    @property
    def images_per_batch(self) -> int:
        """The batch size."""
        return self.batch_size

    def training_table(self) -> LabelledImages:
        """The training images."""
        return self.splits.train

    def batches(self) -> Sampler:
        """This process's share of the shuffled batches."""
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        try:
            sampler = ShuffledSampler(len(self.training_table()), self.batch_size, self.seed or 0, rank, world_size)
        except ValueError as unfit:
            raise ConfigError(f"The batches do not fit the training data: {unfit}") from unfit
        return SeededBatches(sampler)

    def describe(self) -> str:
        """A few lines for people: what is trained and evaluated on, and by which rule it was split."""
        batches = (
            f"batches    {self.batch_size} images, shuffled, {len(self.training_table()) // self.batch_size} per epoch"
        )
        return "\n".join([self.splits.description, *self.sizes(), batches])


def _asking(table: LabelledImages) -> LabelledImages:
    """Those rows of a table that are queries."""
    return table if table.query is None or bool(table.query.all()) else table.select(table.query)
