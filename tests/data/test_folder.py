"""Folders of class folders: what is refused, what is left out and counted, and who goes where (A1-A3, A9, A14)."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from lossopt.data import Folder
from lossopt.errors import ConfigError, DataError


def _image(path: Path, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (value, value, value)).save(path)
    return path


def _classes(root: Path, names: str, images: int = 4) -> None:
    for number, name in enumerate(names):
        for image in range(images):
            _image(root / name / f"{image}.png", number * 20)


def test_classes_are_shared_out_whole(tmp_path: Path) -> None:
    _classes(tmp_path, "abcdefghij")
    splits = Folder(str(tmp_path), image_size=4).splits()
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part.class_names) for part in parts] == [6, 2, 2]
    assert set().union(*(part.class_names for part in parts)) == set("abcdefghij")
    batch = splits.test.batch(torch.arange(8))
    for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
        assert image.eq(20 * "abcdefghij".index(splits.test.class_names[label])).all()
    assert "class-disjoint" in splits.description


def test_images_of_each_class_can_be_shared_out_instead(tmp_path: Path) -> None:
    _classes(tmp_path, "ab", images=20)
    splits = Folder(str(tmp_path), class_disjoint=False).splits()
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [28, 6, 6]
    assert splits.train.class_names == splits.test.class_names == ("a", "b")
    assert "closed set" in splits.description


def test_missing_and_empty_folders_say_what_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSOPT_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(
        DataError, match=r"no folder at .*nowhere and .*elsewhere/nowhere\. Accepted: one folder per class"
    ):
        Folder("nowhere").splits()
    with pytest.raises(DataError, match=r"is empty\. Accepted"):
        Folder(str(tmp_path)).splits()
    (tmp_path / "loose.png").touch()
    with pytest.raises(DataError, match="has 1 files, but no class folder"):
        Folder(str(tmp_path)).splits()


def test_a_relative_folder_is_found_below_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _classes(tmp_path / "pets", "abcdef")
    monkeypatch.setenv("LOSSOPT_DATA", str(tmp_path))
    assert len(Folder("pets").splits().train) == 8


def test_empty_class_folders_are_refused_by_name(tmp_path: Path) -> None:
    _classes(tmp_path, "abcdef")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/readme.txt").touch()
    with pytest.raises(DataError, match=r"2 class folders .* hold no image: hollow, texts"):
        Folder(str(tmp_path)).splits()
    splits = Folder(str(tmp_path), allow_empty=True).splits()
    assert "2 empty class folders" in splits.description


def test_hidden_files_are_left_out_and_counted(tmp_path: Path) -> None:
    _classes(tmp_path, "abcdef")
    for hidden in (".ipynb_checkpoints/x.png", "__MACOSX/a/x.png", "a/._0.png", "a/.ipynb_checkpoints/x.png"):
        _image(tmp_path / hidden)
    (tmp_path / "a/Thumbs.db").touch()
    (tmp_path / "a/notes.txt").touch()
    splits = Folder(str(tmp_path)).splits()
    assert sum(len(part) for part in (splits.train, splits.validation, splits.test)) == 24
    assert "5 hidden files or folders, 1 files that are no images" in splits.description


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    _classes(root, "abcdef")
    outside = _image(tmp_path / "secret/x.png")
    (root / "a/inside.png").symlink_to(root / "b/0.png")
    Folder(str(root)).splits()
    (root / "a/out.png").symlink_to(outside)
    with pytest.raises(DataError, match=r"1 links lead out of .*a/out\.png -> .*secret/x\.png"):
        Folder(str(root)).splits()
    Folder(str(root), allow_outside=True).splits()
    (root / "a/out.png").unlink()
    (root / "g").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="1 links lead out"):
        Folder(str(root)).splits()


def test_links_in_circles_are_refused(tmp_path: Path) -> None:
    _classes(tmp_path, "abcdef")
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(DataError, match="leads back"):
        Folder(str(tmp_path)).splits()
    (tmp_path / "loop").unlink()
    (tmp_path / "a/loop").symlink_to(tmp_path / "b")
    with pytest.raises(DataError, match="link to a folder"):
        Folder(str(tmp_path)).splits()


def test_given_parts_are_taken_as_they_are(tmp_path: Path) -> None:
    for part, names in (("train", "abcd"), ("val", "ef"), ("test", "gh")):
        _classes(tmp_path / part, names)
    splits = Folder(str(tmp_path)).splits()
    assert splits.train.class_names == tuple("abcd")
    assert splits.validation.class_names == tuple("ef")
    assert splits.test.class_names == tuple("gh")


def test_a_single_evaluation_part_is_the_test(tmp_path: Path) -> None:
    _classes(tmp_path / "train", "abcdef")
    _classes(tmp_path / "val", "gh")
    splits = Folder(str(tmp_path)).splits()
    assert splits.test.class_names == tuple("gh")
    assert len(splits.validation.class_names) == 2
    assert set(splits.train.class_names) | set(splits.validation.class_names) == set("abcdef")
    assert "held out" in splits.description


def test_a_class_in_train_and_test_is_refused_by_name(tmp_path: Path) -> None:
    for part, names in (("train", "abcd"), ("validation", "ef"), ("test", "gb")):
        _classes(tmp_path / part, names)
    with pytest.raises(DataError, match="both train and test: b"):
        Folder(str(tmp_path)).splits()
    assert Folder(str(tmp_path), class_disjoint=False).splits().test.class_names == ("b", "g")


def test_bad_images_and_arguments_are_refused(tmp_path: Path) -> None:
    _classes(tmp_path, "abcdef")
    (tmp_path / "a/bad.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"(?s)1 of \d+ files.*bad\.png: this is a web page"):
        Folder(str(tmp_path)).splits()
    with pytest.raises(ConfigError, match="auto, folders or shares"):
        Folder(str(tmp_path), split="random")
    with pytest.raises(DataError, match="no folder train beside"):
        Folder(str(tmp_path), split="folders").splits()


def test_odd_file_names_are_text(tmp_path: Path) -> None:
    _classes(tmp_path, "abcdef")
    Image.new("L", (3, 3)).save(os.fsencode(tmp_path / "a") + b"/\xff<script>.png")
    table = Folder(str(tmp_path)).splits()
    names = [name for part in (table.train, table.validation, table.test) for name in part.names]
    assert "a/\\xff<script>.png" in names
    assert "\n".join(names).encode("utf-8")
