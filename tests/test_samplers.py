"""The P x K sampler: what every batch holds, that it is a pure function of its arguments, and what it refuses."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossopt.samplers import PKSampler

LABELS = torch.tensor([7] * 9 + [-3] * 4 + [2**24 + 1] * 5 + [2**24] * 6 + [11])  # unsorted, huge, negative, one alone
GROUPS = torch.tensor([0] * 13 + [1] * 12)


def batches(**changes):
    arguments = {"labels": LABELS, "classes_per_batch": 2, "images_per_class": 3, "batches_per_epoch": 40} | changes
    epoch = arguments.pop("epoch", 0)
    sampler = PKSampler(**arguments)
    sampler.set_epoch(epoch)
    return list(sampler)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=3, max_size=12), st.integers(1, 3), st.integers(2, 5), st.integers(0, 99))
def test_every_batch_is_p_classes_of_k_different_images(sizes, p, k, seed):
    labels = torch.cat([torch.full((size,), 10 * number) for number, size in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    if sum(size >= k for size in sizes) < p:
        with pytest.raises(ValueError, match="classes_per_batch"):
            PKSampler(labels, p, k, seed=seed, small_classes="drop")
        return
    for batch in PKSampler(labels, p, k, batches_per_epoch=15, seed=seed, small_classes="drop"):
        assert sorted(Counter(labels[batch].tolist()).values()) == [k] * p
        assert len(set(batch)) == p * k


def test_classes_and_images_are_dealt_evenly():
    labels = torch.arange(120) // 10
    dealt = Counter(row for batch in PKSampler(labels, 3, 5, batches_per_epoch=80, seed=4) for row in batch)
    assert set(dealt.values()) == {10}  # 80 x 15 = 1,200 draws of 120 images


def test_the_stream_is_a_function_of_seed_and_epoch_only():
    assert batches(seed=1, epoch=2) == batches(seed=1, epoch=2)
    assert batches(seed=1, epoch=2) != batches(seed=1, epoch=3)
    assert batches(seed=1, epoch=2) != batches(seed=2, epoch=2)
    sampler = PKSampler(LABELS, 2, 3, seed=1)
    list(sampler)  # an epoch that was dealt leaves no trace
    sampler.set_epoch(2)
    assert list(sampler) == batches(seed=1, epoch=2, batches_per_epoch=len(sampler))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_classes_of_one_batch(world_size):
    labels = torch.arange(90) // 5
    whole = list(PKSampler(labels, 6, 4, seed=3))
    ranks = [list(PKSampler(labels, 6, 4, seed=3, rank=r, world_size=world_size)) for r in range(world_size)]
    assert [[row for part in parts for row in part] for parts in zip(*ranks, strict=True)] == whole


def test_group_batches_take_most_classes_from_few_groups():
    labels = torch.arange(400) // 5
    groups = torch.arange(400) // 50
    for batch in PKSampler(labels, 8, 2, groups=groups, group_classes=6, groups_per_batch=1, seed=0):
        assert max(Counter(groups[batch].tolist()).values()) >= 12
        assert len(set(labels[batch].tolist())) == 8


def test_a_group_with_fewer_classes_is_filled_up_from_all():
    for batch in batches(groups=GROUPS, classes_per_batch=3, group_classes=3):
        assert len(set(LABELS[batch].tolist())) == 3


def test_lone_images_are_left_out_and_counted():
    sampler = PKSampler(LABELS, 2, 3)
    assert sampler.left_out == 1
    assert all(24 not in batch for batch in sampler)


def test_small_classes_are_refused_dropped_or_repeated():
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    with pytest.raises(ValueError, match=r"1 of 3 classes have fewer images \(the smallest has 2\).*'drop'.*'repeat'"):
        PKSampler(labels, 2, 4)
    assert PKSampler(labels, 2, 4, small_classes="drop").left_out == 1
    repeated = [row for batch in PKSampler(labels, 3, 4, small_classes="repeat") for row in batch]
    assert Counter(repeated)[0] == Counter(repeated)[1] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes_per_batch": 5}, r"classes_per_batch is 5, but the training data has 4 classes .*1 left out"),
        ({"classes_per_batch": 0}, "classes_per_batch must be at least 1, got 0"),
        ({"images_per_class": 0}, "images_per_class must be at least 1, got 0"),
        ({"group_classes": 3, "groups": GROUPS}, r"group_classes \(3\) are part of the batch"),
        ({"group_classes": 1}, "group_classes needs groups"),
        ({"group_classes": 1, "groups_per_batch": 3, "groups": GROUPS}, "groups_per_batch is 3, but there are 2"),
        ({"world_size": 3}, "shared by 3 processes"),
    ],
)
def test_what_cannot_be_dealt_is_refused_with_the_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        batches(**changes)
