"""Shuffled batches against their definition: every row once an epoch, the same for the same seed, shared by ranks."""

import pytest
import torch

from lossopt.data import Digits, InMemory, LabelledImages, ShuffledData, Splits, query_gallery
from lossopt.data.augment import RandomFlip
from lossopt.errors import ConfigError
from lossopt.samplers import ShuffledSampler


def table(classes, images_each=2, targets=None):
    n = len(classes) * images_each
    return LabelledImages(
        pixels=InMemory(torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1)),
        labels=torch.arange(len(classes)).repeat_interleave(images_each),
        class_names=tuple(classes),
        names=[str(row) for row in range(n)],
        targets=targets,
        target_names=("x", "y") if targets is not None else (),
    )


class Source:
    def __init__(self, train, validation, test):
        self.parts = (train, validation, test)

    def splits(self):
        return Splits(*self.parts, "made up", class_disjoint=False)


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (12, 4), (5, 5), (7, 1)])
def test_every_row_once_an_epoch_but_for_what_fills_no_batch(rows, size):
    sampler = ShuffledSampler(rows, size, seed=3)
    epochs = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        dealt = [row for batch in batches for row in batch]
        assert len(batches) == len(sampler) == rows // size and {len(batch) for batch in batches} == {size}
        assert len(set(dealt)) == len(dealt) and set(dealt) <= set(range(rows))
        epochs.append(dealt)
    assert len({tuple(one) for one in epochs}) > 1  # another order every time
    again = ShuffledSampler(rows, size, seed=3)
    again.set_epoch(2)
    assert [row for batch in again for row in batch] == epochs[2]
    assert ShuffledSampler(rows, size, seed=4).seed == 4


def test_another_seed_is_another_order():
    assert list(ShuffledSampler(50, 10, seed=0)) != list(ShuffledSampler(50, 10, seed=1))


def test_the_ranks_share_the_batch_of_one_process():
    whole = list(ShuffledSampler(30, 6, seed=1))
    shares = [list(ShuffledSampler(30, 6, seed=1, rank=rank, world_size=3)) for rank in range(3)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert sorted(row for part in parts for row in part) == sorted(batch)
        assert {len(part) for part in parts} == {2}


@pytest.mark.parametrize(
    ("size", "world", "said"), [(0, 1, "1 to 6"), (7, 1, "batch_size is 7; with 6 images"), (5, 2, "2 processes")]
)
def test_batches_that_cannot_be(size, world, said):
    with pytest.raises(ValueError, match=said):
        ShuffledSampler(6, size, world_size=world)


def test_classes_are_numbered_as_in_training_and_unseen_ones_come_after():
    data = ShuffledData(Source(table("abc"), table("cab"), table("cxb")), batch_size=2)
    validation, test = data.splits.validation, data.splits.test
    assert validation.labels.tolist() == [2, 2, 0, 0, 1, 1] and validation.class_names == ("a", "b", "c")
    assert test.labels.tolist() == [2, 2, 3, 3, 1, 1] and test.class_names == ("a", "b", "c", "x")


def test_of_queries_and_gallery_the_queries_are_the_test():
    asked = query_gallery(table("ab"), table("abc"))
    data = ShuffledData(Source(table("abc"), table("abc"), asked), batch_size=2)
    assert len(data.splits.test) == 4 and data.splits.test.class_names == ("a", "b", "c")
    assert all(name.startswith("query/") for name in data.splits.test.names)


def test_targets_travel_with_their_images():
    targets = torch.arange(12.0).view(6, 2)
    whole = table("abc", targets=targets)
    batch = whole.batch([5, 0])
    assert torch.equal(batch.targets, targets[[5, 0]])
    assert torch.equal(whole.select(torch.tensor([4, 1])).targets, targets[[4, 1]])
    assert whole.with_rotations().targets is None
    assert table("ab").batch([0]).targets is None


@pytest.mark.parametrize(
    ("targets", "said"), [(torch.zeros(5, 2), "targets has 5"), (torch.zeros(6, 3), "3 columns, but there are 2")]
)
def test_targets_that_do_not_fit(targets, said):
    with pytest.raises(ValueError, match=said):
        table("abc", targets=targets)


def test_batches_too_large_for_the_data_are_refused_in_setup():
    with pytest.raises(ConfigError, match=r"do not fit the training data: batch_size is 1086; with 1,085 images"):
        ShuffledData(Digits(split="closed"), batch_size=1086).setup("fit")


def test_an_augmentation_changes_images_and_leaves_targets():
    data = ShuffledData(Source(*[table("abc", targets=torch.rand(6, 2))] * 3), batch_size=2, augment=[RandomFlip()])
    batch = data.splits.train.batch([0, 1])
    changed = RandomFlip().of_batch(batch._replace(images=batch.images.float()), torch.Generator())
    assert torch.equal(changed.targets, batch.targets) and changed.ids is batch.ids
