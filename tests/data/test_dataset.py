"""Tables of images: selecting, turning and joining checked against plain lists."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lossopt.data import Digits, InMemory, LabelledImages, OnDisk, Splits, query_gallery
from lossopt.data.scale import scale_images
from lossopt.data.split import hold_out, ranked, share_out
from lossopt.errors import ConfigError, DataError


def _table(labels: list[int], classes: str = "abcdef", side: int = 4, prefix: str = "") -> LabelledImages:
    n = len(labels)
    images = torch.randint(0, 256, (n, 1, side, side), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    return LabelledImages(
        InMemory(images),
        torch.tensor(labels),
        tuple(classes),
        [f"{prefix}{row}" for row in range(n)],
        groups=torch.tensor([label % 2 for label in labels]),
        group_names=("even", "odd"),
        query=torch.tensor([row % 3 == 0 for row in range(n)]),
    )


def test_select_keeps_rows_and_renumbers_classes() -> None:
    table = _table([5, 3, 3, 0, 5])
    for rows in (torch.tensor([4, 1, 1]), torch.tensor([False, True, False, False, True])):
        chosen = rows.nonzero().flatten().tolist() if rows.dtype == torch.bool else rows.tolist()
        part = table.select(rows)
        assert part.class_names == ("d", "f")
        assert [part.class_names[label] for label in part.labels] == ["abcdef"[table.labels[row]] for row in chosen]
        assert part.names == [str(row) for row in chosen]
        assert part.query.tolist() == [row % 3 == 0 for row in chosen]
        assert part.groups.tolist() == [table.groups[row] for row in chosen]
        assert torch.equal(part.pixels.read(torch.arange(len(part))), table.pixels.images[chosen])


def test_rotations_are_counter_clockwise_quarter_turns_and_classes_of_their_own() -> None:
    table = _table([0, 1, 1])
    original = table.pixels.images.clone()
    turned = table.select(torch.arange(3)).with_rotations()
    assert len(turned) == 12
    assert len(turned.class_names) == len(set(turned.class_names)) == 8
    batch = turned.batch([11, 0, 4, 7, 8])
    for image, row in zip(batch.images, batch.ids.tolist(), strict=True):
        expected = np.array(Image.fromarray(original[row % 3, 0].numpy()).rotate(90 * (row // 3)))
        assert image[0].tolist() == expected.tolist()
        suffix = ["", "/rot090", "/rot180", "/rot270"][row // 3]
        assert turned.class_names[turned.labels[row]] == "ab"[min(row % 3, 1)] + suffix
        assert turned.group_names[turned.groups[row]] == ["even", "odd"][min(row % 3, 1)] + suffix
        assert turned.names[row] == f"{row % 3}{suffix}"
    assert torch.equal(table.pixels.images, original)


def test_rotations_can_be_selected() -> None:
    turned = _table([0, 1, 1]).with_rotations()
    part = turned.select(turned.labels == turned.class_names.index("b/rot270"))
    assert part.class_names == ("b/rot270",)
    assert torch.equal(part.batch([1]).images, turned.batch([11]).images)


def test_query_and_gallery_meet_by_class_name() -> None:
    query, gallery = _table([1, 0], "xz"), _table([0, 1, 2], "zyx")
    joined = query_gallery(query, gallery)
    assert [joined.class_names[label] for label in joined.labels] == ["z", "x", "z", "y", "x"]
    assert joined.query.tolist() == [True, True, False, False, False]
    assert joined.gallery.tolist() == [False, False, True, True, True]
    assert len(set(joined.names)) == 5
    everything = torch.cat([query.pixels.images, gallery.pixels.images])
    order = torch.tensor([4, 0, 2, 1, 3, 0])
    assert torch.equal(joined.pixels.read(order), everything[order])


def test_columns_and_labels_are_checked() -> None:
    pixels = InMemory(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="2 images, but names has 1"):
        LabelledImages(pixels, torch.tensor([0, 0]), ("a",), ["x"])
    for labels in ([0, 1], [-1, 0]):
        with pytest.raises(ValueError, match="position of its class name"):
            LabelledImages(pixels, torch.tensor(labels), ("a",), ["x", "y"])


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_class_on_both_sides_is_refused_by_name(part: str) -> None:
    tables = {name: _table([0], name[0]) for name in ("train", "validation")} | {"test": _table([0], "q")}
    Splits(**tables, description="", class_disjoint=True)
    tables[part] = _table([0, 1], "ut")
    with pytest.raises(DataError, match=f"1 classes are in both train and {part}: t"):
        Splits(**tables, description="", class_disjoint=True)
    Splits(**tables, description="", class_disjoint=False)


def test_files_are_read_as_asked(tmp_path: Path) -> None:
    for value in (10, 20, 30):
        Image.new("L", (6, 9), value).save(tmp_path / f"{value}.png")
    pixels = OnDisk([tmp_path / f"{value}.png" for value in (10, 20, 30)], 5, 1)
    assert pixels.read(torch.tensor([2, 0])).flatten(1)[:, 0].tolist() == [30, 10]


@pytest.mark.parametrize(("before", "after"), [(105, 28), (9, 4), (8, 8), (10, 5)])
def test_scaling_down_is_the_mean_over_the_area(before: int, after: int) -> None:
    images = torch.randint(0, 256, (3, 1, before, before), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    fine = images.numpy().repeat(after, axis=2).repeat(after, axis=3).astype(float)
    means = fine.reshape(3, 1, after, before, after, before).mean(axis=(3, 5))
    assert scale_images(images, after).tolist() == np.round(means).astype(int).tolist()


def test_scaling_up_keeps_the_range() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(32).reshape(1, 1, 8, 8)
    assert scale_images(images, 28).shape == (1, 1, 28, 28)
    assert scale_images(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8), 28).eq(255).all()
    with pytest.raises(ConfigError, match="at least 1"):
        scale_images(images, 0)


def test_holding_out_depends_on_names_alone() -> None:
    names = [f"class{number}" for number in range(30)]
    held = hold_out(names, 1 / 6, seed=0)
    assert len(held) == 5
    assert held == hold_out(reversed(names * 2), 1 / 6, seed=0)
    assert held != hold_out(names, 1 / 6, seed=1)
    without_one = [name for name in names if name != "class7"]
    assert ranked(without_one, 0) == [name for name in ranked(names, 0) if name != "class7"]
    with pytest.raises(DataError, match="none left"):
        hold_out(["a"], 0.5, seed=0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        hold_out(names, 1.0, seed=0)


@pytest.mark.parametrize("class_disjoint", [True, False])
def test_sharing_out_uses_every_row_once(class_disjoint: bool) -> None:
    table = _table([label for label in range(6) for _ in range(10)])
    parts = share_out(table, (0.6, 0.2, 0.2), 0, class_disjoint)
    assert sorted(name for part in parts for name in part.names) == sorted(table.names)
    classes = [set(part.class_names) for part in parts]
    if class_disjoint:
        assert [len(names) for names in classes] == [2, 2, 2]
        assert len(set.union(*classes)) == 6
    else:
        assert [len(part) for part in parts] == [36, 12, 12]
        assert all(len(names) == 6 for names in classes)
    assert parts[0].query is None
    with pytest.raises(DataError, match="5 classes cannot be split"):
        share_out(table.select(table.labels > 0), (0.6, 0.2, 0.2), 0, True)
    with pytest.raises(ConfigError, match="three positive"):
        share_out(table, (0.6, 0.0, 0.4), 0, True)


def test_digits_are_real_and_disjoint() -> None:
    splits = Digits().splits()
    assert splits.class_disjoint
    assert splits.train.class_names == tuple("01234")
    assert splits.validation.class_names == splits.test.class_names == tuple("56789")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (901, 449, 447)
    assert not set(splits.validation.names) & set(splits.test.names)
    images = splits.train.pixels.images
    assert images.shape == (901, 1, 8, 8)
    assert int(images.max()) == 255
    assert "class-disjoint" in splits.description


def test_digits_closed_and_enlarged() -> None:
    splits = Digits(image_size=28, split="closed").splits()
    parts = (splits.train, splits.validation, splits.test)
    assert not splits.class_disjoint
    assert len({name for part in parts for name in part.names}) == sum(len(part) for part in parts) == 1797
    assert all(len(part.class_names) == 10 for part in parts)
    assert parts[0].pixels.images.shape[1:] == (1, 28, 28)
    with pytest.raises(ConfigError, match="8 or more"):
        Digits(image_size=7)
