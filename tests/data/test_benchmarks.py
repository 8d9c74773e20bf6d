"""The benchmark readers on tiny folders in the official layouts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from lossopt.data import CUB200, Cars196, InShop, Splits, StanfordOnlineProducts
from lossopt.errors import ConfigError, DataError


def _image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2:6, 2:6] = value
    Image.fromarray(pixels).save(path, "PNG")


def _check_pixels(splits: Splits, value_of: dict[str, int]) -> None:
    for table in (splits.train, splits.validation, splits.test):
        batch = table.batch(torch.arange(len(table)))
        assert batch.images[:, 0, 4, 4].tolist() == [value_of[name] for name in table.names]


def _cub(root: Path) -> dict[str, int]:
    folder, values = root / "CUB_200_2011", {}
    kinds = [1, 2, 3, 4, 99, 100, 101, 102, 200]
    lists: dict[str, list[str]] = {"images": [], "image_class_labels": [], "classes": [], "bounding_boxes": []}
    for kind in kinds:
        lists["classes"].append(f"{kind} {kind:03d}.Bird")
        for image in range(2):
            number, name = len(values) + 1, f"{kind:03d}.Bird/{image}.jpg"
            values[name] = 10 * number
            _image(folder / "images" / name, values[name])
            lists["images"].append(f"{number} {name}")
            lists["image_class_labels"].append(f"{number} {kind}")
            lists["bounding_boxes"].append(f"{number} 2.0 2.0 6.0 6.0")
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return values


def test_cub_trains_on_the_first_hundred(tmp_path: Path) -> None:
    values = _cub(tmp_path)
    splits = CUB200(str(tmp_path), image_size=8).splits()
    assert splits.test.class_names == ("101.Bird", "102.Bird", "200.Bird")
    assert len(splits.validation.class_names) == 2
    seen = {f"{kind:03d}.Bird" for kind in (1, 2, 3, 4, 99, 100)}
    assert set(splits.train.class_names) | set(splits.validation.class_names) == seen
    _check_pixels(splits, values)
    assert splits.test.batch([0]).images[0, 0, 0, 0] == 0
    cropped = CUB200(str(tmp_path), image_size=6, crop_to_box=True).splits().test
    bird = torch.zeros(6, 6, dtype=torch.uint8)
    bird[:4, :4] = values[cropped.names[0]]
    assert torch.equal(cropped.batch([0]).images[0, 0], bird)


def test_cub_lists_must_fit_together(tmp_path: Path) -> None:
    _cub(tmp_path)
    path = tmp_path / "CUB_200_2011/image_class_labels.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(DataError, match="no line for 1 numbers: 18"):
        CUB200(str(tmp_path)).splits()
    path.write_text("1\n")
    with pytest.raises(DataError, match="1 lines do not have 2 columns"):
        CUB200(str(tmp_path)).splits()
    with pytest.raises(ConfigError, match="validation_share"):
        CUB200(validation_share=0.0)
    with pytest.raises(DataError, match=r"CUB-200-2011 .* was not found"):
        CUB200(str(tmp_path / "none")).splits()


_CAR_CLASSES = [1, 2, 3, 97, 98, 99, 100, 196]
_BOX = [("bbox_x1", 2), ("bbox_y1", 2), ("bbox_x2", 6), ("bbox_y2", 6)]


def _annotations(rows: list[tuple[str, int]], name_field: str) -> np.ndarray:
    fields = [(name_field, "O"), *((field, "O") for field, _ in _BOX), ("class", "O")]
    records = np.zeros((1, len(rows)), dtype=fields)
    for column, (name, number) in enumerate(rows):
        records[0, column] = (name, *(value for _, value in _BOX), number)
    return records


@pytest.mark.parametrize("layout", ["one", "devkit"])
def test_cars_train_on_the_first_98(tmp_path: Path, layout: str) -> None:
    names = np.array([f"Car {number}" for number in range(1, 197)], dtype="O")[None]
    values = {}
    rows: dict[str, list[tuple[str, int]]] = {"car_ims": [], "cars_train": [], "cars_test": []}
    for place, number in enumerate(number for number in _CAR_CLASSES for _ in range(2)):
        folder = "car_ims" if layout == "one" else ("cars_train", "cars_test")[place % 2]
        name = f"{folder}/{place:06d}.jpg"
        values[name] = 10 + place
        _image(tmp_path / name, values[name])
        rows[folder].append((name if layout == "one" else f"{place:06d}.jpg", number))
    if layout == "one":
        annotations = _annotations(rows["car_ims"], "relative_im_path")
        savemat(tmp_path / "cars_annos.mat", {"annotations": annotations, "class_names": names})
    else:
        (tmp_path / "devkit").mkdir()
        savemat(tmp_path / "devkit/cars_meta.mat", {"class_names": names})
        savemat(tmp_path / "devkit/cars_train_annos.mat", {"annotations": _annotations(rows["cars_train"], "fname")})
        with pytest.raises(DataError, match=r"no cars_test_annos_withlabels\.mat"):
            Cars196(str(tmp_path)).splits()
        labelled = tmp_path / "cars_test_annos_withlabels.mat"
        savemat(labelled, {"annotations": _annotations(rows["cars_test"], "fname")})
    splits = Cars196(str(tmp_path), image_size=8).splits()
    assert splits.test.class_names == ("099.Car 99", "100.Car 100", "196.Car 196")
    assert len(splits.train) + len(splits.validation) == 10
    _check_pixels(splits, values)
    cropped = Cars196(str(tmp_path), image_size=8, crop_to_box=True).splits().test
    assert cropped.batch([0]).images.eq(values[cropped.names[0]]).all()


def test_damaged_cars_annotations_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cars_annos.mat").write_bytes(b"no matlab")
    with pytest.raises(DataError, match="does not hold class_names as a MATLAB 5 file"):
        Cars196(str(tmp_path)).splits()


def test_online_products_follow_the_lists(tmp_path: Path) -> None:
    folder, values = tmp_path / "Stanford_Online_Products", {}
    for part, products in (("train", range(1, 7)), ("test", range(11319, 11321))):
        lines = ["image_id class_id super_class_id path"]
        for product in products:
            for image in range(2):
                name = f"{'bicycle' if product % 2 else 'sofa'}_final/{product}_{image}.JPG"
                values[name] = len(values) + 10
                _image(folder / name, values[name])
                lines.append(f"{len(values)} {product} 1 {name}")
        (folder / f"Ebay_{part}.txt").write_text("\n".join(lines) + "\n")
    splits = StanfordOnlineProducts(str(tmp_path), image_size=8).splits()
    assert splits.test.class_names == ("product 11319", "product 11320")
    assert [splits.test.group_names[group] for group in splits.test.groups] == ["bicycle"] * 2 + ["sofa"] * 2
    assert len(splits.train) + len(splits.validation) == 12
    _check_pixels(splits, values)


@pytest.mark.parametrize("layout", ["Eval", ""])
def test_in_shop_searches_queries_in_the_gallery(tmp_path: Path, layout: str) -> None:
    lists, values = [], {}
    images = tmp_path / "Img" if layout else tmp_path
    for item in range(8):
        for image in range(4):
            part = "train" if item < 6 else ("query", "gallery")[image % 2]
            name = f"img/WOMEN/Dresses/id_{item:08d}/{image}.jpg"
            values[name] = len(values) + 10
            _image(images / name, values[name])
            lists.append(f"{name}    id_{item:08d}    {part}")
    (tmp_path / layout).mkdir(exist_ok=True)
    listing = tmp_path / layout / "list_eval_partition.txt"
    listing.write_text("\n".join([str(len(lists)), "image_name item_id evaluation_status", *lists]) + "\n")
    splits = InShop(str(tmp_path), image_size=8).splits()
    assert splits.test.class_names == ("id_00000006", "id_00000007")
    assert splits.test.query.tolist() == [True, False] * 4
    assert splits.test.gallery.tolist() == [False, True] * 4
    assert splits.train.query is None
    assert len(splits.validation.class_names) == 2
    _check_pixels(splits, values)
    listing.write_text("1\nimage_name item_id evaluation_status\nx.jpg id_1 other\n")
    with pytest.raises(DataError, match="neither train, query nor gallery"):
        InShop(str(tmp_path)).splits()
