"""The data module: batches are a function of seed, epoch and step; augmentation touches training batches only."""

from types import SimpleNamespace

import pytest
import torch

from lossopt.data import Digits
from lossopt.data.augment import RandomAffine
from lossopt.data.module import RetrievalData, stream, to_float
from lossopt.errors import ConfigError


def module(**changes):
    settings = {"classes_per_batch": 4, "images_per_class": 3, "batches_per_epoch": 5} | changes
    return RetrievalData(Digits(), **settings)


def test_a_stream_is_its_own_for_every_seed_epoch_step_and_rank():
    keys = [(seed, epoch, step, rank) for seed in (0, 1) for epoch in (0, 1) for step in (0, 1) for rank in (0, 1)]
    streams = [stream(*key) for key in keys]
    assert len(set(streams)) == len(keys)
    assert streams == [stream(*key) for key in keys]
    assert all(0 <= one < 2**62 for one in streams)


def test_batches_and_their_streams_follow_the_epoch():
    data = module(seed=3)
    loader = data.train_dataloader()

    def deal(epoch):
        loader.sampler.set_epoch(epoch)
        return [(batch.ids.tolist(), batch.seed) for batch in loader]

    first = deal(0)
    assert first != deal(1)
    assert first == deal(0)
    before = torch.random.get_rng_state()
    deal(2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_workers_deal_the_same_batches():
    alone, helped = ([b.ids.tolist() for b in module(workers=w).train_dataloader()] for w in (0, 2))
    assert alone == helped


def test_evaluation_passes_over_every_image_once_in_order_and_unchanged():
    data = module(evaluation_batch_size=100, augment=[RandomAffine()])
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.predict_dataloader()]
    assert torch.cat([batch.ids for batch in batches]).tolist() == list(range(len(data.splits.test)))
    stored = data.splits.test.batch(range(len(data.splits.test))).images
    assert torch.equal(torch.cat([batch.images for batch in batches]), to_float(stored))


def test_augmentation_touches_training_batches_only():
    data = module(augment=[RandomAffine()])
    (batch, *_) = data.train_dataloader()
    plain = to_float(batch.images)
    for training, changed in ((False, False), (True, True)):
        data.trainer = SimpleNamespace(training=training)
        assert torch.equal(data.on_after_batch_transfer(batch, 0).images, plain) != changed


def test_rotations_are_classes_of_their_own():
    data = module(rotations_as_classes=True, classes_per_batch=20)
    (batch, *_) = data.train_dataloader()
    assert len(batch.labels.unique()) == 20
    assert "quarter turns as classes" in data.describe()


@pytest.mark.parametrize("changes", [{"workers": -1}, {"evaluation_batch_size": 0}, {"batches_per_epoch": 0}])
def test_numbers_out_of_range_are_refused(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"data.init_args.{name} is {changes[name]}"):
        module(**changes)


def test_batches_that_do_not_fit_the_data_are_refused_with_the_numbers():
    with pytest.raises(ConfigError, match="classes_per_batch is 6, but the training data has 5 classes"):
        module(classes_per_batch=6).setup("fit")
