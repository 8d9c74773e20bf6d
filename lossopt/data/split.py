"""Who goes where depends on names and a seed alone: not on file order, the platform, or what else is there."""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import replace

import torch

from lossopt.data.dataset import LabelledImages
from lossopt.errors import ConfigError, DataError

Shares = tuple[float, float, float]
_FEWEST = 2  # held-out classes: with a single one, every retrieval would be right


def ranked(names: Iterable[str], seed: int) -> list[str]:
    """The distinct names in a shuffled order: by the SHA-256 of seed and name."""
    return sorted(set(names), key=lambda name: hashlib.sha256(f"{seed}/{name}".encode(errors="replace")).digest())


def hold_out(names: Iterable[str], share: float, seed: int, fewest: int = 1) -> frozenset[str]:
    """A share of the distinct names, rounded, but at least `fewest`.

    Raises:
        ConfigError: `share` is not between 0 and 1.
        DataError: nothing would be left.
    """
    if not 0 < share < 1:
        raise ConfigError(f"A share to hold out lies between 0 and 1, got {share}.")
    order = ranked(names, seed)
    count = max(fewest, round(share * len(order)))
    if count >= len(order):
        raise DataError(f"Of {len(order)} names, {count} would be held out and none left to train on; give more.")
    return frozenset(order[:count])


def by_class(table: LabelledImages, classes: Collection[str], keep: bool = True) -> LabelledImages:
    """The rows whose class is among `classes` (`keep=False`: is not)."""
    wanted = torch.tensor([(name in classes) == keep for name in table.class_names], dtype=torch.bool)
    return table.select(wanted[table.labels])


def training_only(table: LabelledImages) -> LabelledImages:
    """The table without query and gallery marks, which mean nothing in training."""
    return replace(table, query=None, gallery=None)


def share_out(
    table: LabelledImages, shares: Shares, seed: int, class_disjoint: bool
) -> tuple[LabelledImages, LabelledImages, LabelledImages]:
    """Train, validation and test: whole classes by their names, or (`class_disjoint=False`) images of each class.

    Args:
        table: everything.
        shares: of train, validation and test; positive; they are used in proportion to their sum.
        seed: of the shuffle.
        class_disjoint: whether a class stays whole.

    Raises:
        ConfigError: a share is not positive.
        DataError: too few classes; each held-out part needs two, since with one every retrieval is right.
    """
    if len(shares) != 3 or min(shares) <= 0:
        raise ConfigError(f"shares are three positive numbers (train, validation, test), got {list(shares)}.")
    validation, test = shares[1] / sum(shares), shares[2] / sum(shares)
    if not class_disjoint:
        kept, tested = _share_images(table, test, seed)
        trained, validated = _share_images(kept, validation / (1 - test), seed)
        return training_only(trained), validated, tested
    order = ranked(table.class_names, seed)
    n_validation, n_test = (max(_FEWEST, round(share * len(order))) for share in (validation, test))
    if len(order) - n_validation - n_test < _FEWEST:
        raise DataError(
            f"{len(order)} classes cannot be split into train, validation and test that share no class: each needs "
            f"{_FEWEST}. Add classes, or pass class_disjoint: false to share out the images of each class instead."
        )
    ends = (n_validation, n_validation + n_test)
    return (
        training_only(by_class(table, set(order[ends[1] :]))),
        by_class(table, set(order[: ends[0]])),
        by_class(table, set(order[ends[0] : ends[1]])),
    )


def hold_out_validation(
    table: LabelledImages, share: float, seed: int, class_disjoint: bool
) -> tuple[LabelledImages, LabelledImages]:
    """Train and validation from training images: whole classes, or images of each class. Raises as `hold_out`."""
    if not class_disjoint:
        kept, held = _share_images(table, share, seed)
        return training_only(kept), training_only(held)
    held_classes = hold_out(table.class_names, share, seed, _FEWEST)
    table = training_only(table)
    return by_class(table, held_classes, keep=False), by_class(table, held_classes)


def _share_images(table: LabelledImages, share: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """All but a share of each class's images, and that share (rounded; at least two of a class of six or more)."""
    held = torch.zeros(len(table), dtype=torch.bool)
    position = {name: row for row, name in enumerate(table.names)}
    for label in range(len(table.class_names)):
        rows = (table.labels == label).nonzero().flatten().tolist()
        fewest = 2 if len(rows) >= 6 else 0
        count = max(fewest, round(share * len(rows)))
        for name in ranked((table.names[row] for row in rows), seed)[:count]:
            held[position[name]] = True
    return table.select(~held), table.select(held)
