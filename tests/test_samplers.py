"""The P x K sampler: what every batch holds, that it is a pure function of its arguments, and what it refuses."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossopt.samplers import AHEAD, Lookalikes, PKSampler, _Pile

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


# ------------------------------------------------------------------------------------------ classes that are mined


def lookalikes(labels, since=0, width=6, seed=0, anchors=None):
    """Each anchor's negatives: rows of classes drawn at random, several of one class, some places empty."""
    rng = np.random.default_rng(seed)
    anchors = np.arange(len(labels)) if anchors is None else np.array(anchors)
    negative = rng.integers(0, len(labels), (len(anchors), width))
    negative[labels.numpy()[negative] == labels.numpy()[anchors][:, None]] = -1
    return Lookalikes(anchors, negative, since)


MINED = torch.arange(240) // 6  # 40 classes of 6


def mined_sampler(**changes):
    arguments = {"labels": MINED, "classes_per_batch": 12, "images_per_class": 3, "batches_per_epoch": 30, "seed": 5}
    return PKSampler(**arguments | {"confusable_classes": 7, "classes_per_seed": 3} | changes)


def by_definition(batch, table, k, seeds, confusable, per_seed, labels):
    """Walks a batch as it should have been made; returns how many classes followed a seed."""
    images = [batch[start : start + k] for start in range(0, len(batch), k)]
    window = dict(zip(table.anchor.tolist(), table.negative.tolist(), strict=True))
    place, taken, left = 0, set(), confusable
    for _ in range(seeds):
        taken.add(int(labels[images[place][0]]))
        followers, wanted, left = [], min(left, per_seed), left - min(left, per_seed)
        for row in (row for image in images[place] for row in window.get(image, ()) if row >= 0):
            if len(followers) < wanted and int(labels[row]) not in taken:
                followers.append(row)
                taken.add(int(labels[row]))
        place += 1
        assert [image[0] for image in images[place : place + len(followers)]] == followers
        place += len(followers)
    return len(taken) - seeds


@pytest.mark.parametrize("p", [10, 12])
def test_mined_batches_follow_their_seeds_and_stay_p_x_k(p):
    sampler, table = mined_sampler(classes_per_batch=p), lookalikes(MINED)
    sampler.use(table)
    followed = []
    for batch in sampler:
        assert sorted(Counter(MINED[batch].tolist()).values()) == [3] * p and len(set(batch)) == 3 * p
        followed.append(by_definition(batch, table, 3, 3, 7, 3, MINED))
    assert max(followed) == 7


def test_no_more_classes_follow_than_are_asked_for():
    following = 6 * ((MINED.numpy()[:, None] + np.arange(1, 4)) % 40)
    sampler = mined_sampler(confusable_classes=4)
    sampler.use(Lookalikes(np.arange(240), following, 0))
    second_of_second = [
        batch[18] == following[batch[12], 1] for batch in sampler
    ]  # seed, 3 of it, seed, 1 of it, others
    assert all(batch[3 * place] == following[batch[0], place - 1] for batch in sampler for place in (1, 2, 3))
    assert sum(second_of_second) < 10


def test_seed_classes_are_dealt_evenly_and_only_mined_ones_have_followers():
    table = lookalikes(MINED, anchors=range(0, 240, 7))
    sampler = mined_sampler(confusable_classes=2, classes_per_seed=1, classes_per_batch=4, batches_per_epoch=60)
    sampler.use(table)
    for batch in sampler:
        by_definition(batch, table, 3, 2, 2, 1, MINED)
    sampler.use(Lookalikes(np.empty(0, dtype=np.int64), np.empty((0, 6), dtype=np.int64), 0))
    dealt = Counter(int(MINED[batch[0]]) for batch in sampler)
    assert sum(dealt.values()) == 60 and max(dealt.values()) <= 8


def test_before_anything_is_mined_batches_are_as_without_mining():
    assert list(mined_sampler()) == list(mined_sampler(confusable_classes=0))
    assert list(mined_sampler()) == batches(
        labels=MINED, classes_per_batch=12, images_per_class=3, batches_per_epoch=30, seed=5
    )


def test_lookalikes_are_used_from_their_batch_on_and_no_earlier():
    plain, sampler = list(mined_sampler()), mined_sampler()
    sampler.use(lookalikes(MINED, since=12))
    assert list(sampler)[:12] == plain[:12] and list(sampler)[12] != plain[12]
    sampler.use(lookalikes(MINED, since=20, seed=1))
    both = list(sampler)
    only_first = mined_sampler()
    only_first.use(lookalikes(MINED, since=12))
    assert both[:20] == list(only_first)[:20] and both[20] != list(only_first)[20]
    sampler.set_epoch(1)
    later = mined_sampler()
    later.use(lookalikes(MINED, since=0, seed=1))
    later.set_epoch(1)
    assert list(sampler) == list(later)


def test_what_is_mined_reaches_batches_that_no_loader_has_asked_for_and_always_the_next_epoch():
    sampler = mined_sampler()
    assert [sampler.takes_effect(0, 0), sampler.takes_effect(2, 5)] == [1 + AHEAD, 60 + 6 + AHEAD]
    assert [sampler.takes_effect(0, 20), sampler.takes_effect(1, 29)] == [30, 60]


def test_only_those_that_can_still_be_needed_are_kept():
    sampler = mined_sampler(batches_per_epoch=1000)
    for step in range(300):
        sampler.use(lookalikes(MINED, since=sampler.takes_effect(0, step)))
    assert len(sampler.lookalikes) == AHEAD + 1
    for step in range(400, 900, 100):
        sampler.use(lookalikes(MINED, since=sampler.takes_effect(0, step)))
    assert [some.since for some in sampler.lookalikes] == [701 + AHEAD, 801 + AHEAD]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_classes_of_one_mined_batch(world_size):
    samplers = [mined_sampler(), *(mined_sampler(rank=r, world_size=world_size) for r in range(world_size))]
    for sampler in samplers:
        sampler.use(lookalikes(MINED, since=4))
    whole, *ranks = (list(sampler) for sampler in samplers)
    assert [[row for part in parts for row in part] for parts in zip(*ranks, strict=True)] == whole


def test_mined_images_of_classes_that_are_left_out_are_passed_over():
    negative = np.full((len(LABELS), 3), 24)  # the lone image
    negative[:, 2] = 0
    sampler = PKSampler(LABELS, 3, 3, batches_per_epoch=40, confusable_classes=1)
    sampler.use(Lookalikes(np.arange(len(LABELS)), negative, 0))
    for batch in sampler:
        assert 24 not in batch and len(set(LABELS[batch].tolist())) == 3
        assert batch[3] == 0 or LABELS[batch[0]] == LABELS[0]


def test_a_mined_image_of_a_small_class_comes_first():
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    sampler = PKSampler(labels, 2, 4, batches_per_epoch=100, confusable_classes=1, small_classes="repeat")
    sampler.use(Lookalikes(np.arange(2, 10), np.zeros((8, 1), dtype=np.int64), 0))
    for batch in sampler:
        assert batch[4] == 0 or labels[batch[0]] == 0
        assert len(set(labels[batch].tolist())) == 2


def test_a_pile_does_not_grow_with_what_it_keeps_back():
    pile = _Pile(np.arange(2), np.random.default_rng(0))
    assert [pile.deal(3, but={0}) for _ in range(50)] == [[1, 1, 1]] * 50
    assert len(pile.left) <= 4


def test_groups_and_mined_classes_share_a_batch():
    groups = torch.arange(240) // 60
    sampler = mined_sampler(groups=groups, group_classes=3, confusable_classes=4, classes_per_seed=2)
    sampler.use(lookalikes(MINED))
    for batch in sampler:
        assert len(set(groups[batch[:9]].tolist())) == 1 and len(set(MINED[batch].tolist())) == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confusable_classes": 10}, r"confusable_classes \(10\) come with 4 seed classes \(one for each 3\) beside 0"),
        ({"confusable_classes": -1}, "confusable_classes must be at least 0"),
        ({"classes_per_seed": 0}, "classes_per_seed must be at least 1"),
        ({"group_classes": 4, "groups": MINED}, "beside 4 group_classes, but classes_per_batch is 12"),
    ],
)
def test_mined_classes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        mined_sampler(**changes)
