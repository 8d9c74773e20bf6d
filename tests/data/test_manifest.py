"""Manifests: labels stay exact, every named file is accounted for, nothing outside the folder is read (A9-A14, A17)."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from lossopt.data import Manifest, Splits
from lossopt.errors import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(40):
        Image.new("L", (4, 4), number).save(tmp_path / f"{number}.png")
    return tmp_path


def _read(folder: Path, text: str | bytes, **arguments: object) -> Splits:
    content = text.encode() if isinstance(text, str) else text
    (folder / "list.csv").write_bytes(content)
    return Manifest(str(folder / "list.csv"), image_size=4, channels=1, **arguments).splits()


def _labels(splits: Splits) -> dict[str, str]:
    tables = (splits.train, splits.validation, splits.test)
    return {
        name: table.class_names[label]
        for table in tables
        for name, label in zip(table.names, table.labels.tolist(), strict=True)
    }


def test_labels_are_text_and_exact(images: Path) -> None:
    labels = ["NA", "None", "null", "001", "1", "1.0", "-1", "16777216", "16777217", "9007199254740993", "1e3", "=1+1"]
    rows = {f"{number}.png": labels[number % 12] for number in range(36)}
    splits = _read(images, "path,label\n" + "".join(f"{path},{label}\n" for path, label in rows.items()))
    assert _labels(splits) == rows
    for table in (splits.train, splits.validation, splits.test):
        batch = table.batch(torch.arange(len(table)))
        assert batch.labels.dtype == torch.int64
        assert [f"{int(image[0, 0, 0])}.png" for image in batch.images] == list(table.names)


def test_near_equal_labels_stay_apart_and_are_warned_about(images: Path) -> None:
    labels = ["cat", "Cat", " cat", "dog", "cow", "hen"]
    text = "path,label\n" + "".join(f'{number}.png,"{labels[number % 6]}"\n' for number in range(12))
    with pytest.warns(UserWarning, match="' cat' / 'Cat' / 'cat'"):
        splits = _read(images, text)
    assert set(_labels(splits).values()) == set(labels)


SPLIT = ["0.png,a,train", "1.png,b,train", "2.png,c,val", "3.png,d,test"]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_dialects(images: Path, ending: str, delimiter: str, mark: bytes) -> None:
    text = ending.join(["path,label,split", *SPLIT, ""]).replace(",", delimiter)
    splits = _read(images, mark + text.encode())
    assert _labels(splits) == {"0.png": "a", "1.png": "b", "2.png": "c", "3.png": "d"}
    assert splits.validation.class_names == ("c",)


def test_quoted_line_breaks_belong_to_the_label(images: Path) -> None:
    text = "path,label,split\n" + '0.png,"two\nlines",train\n' + "\n".join(SPLIT[2:])
    assert _labels(_read(images, text))["0.png"] == "two\nlines"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\n0.png,a\n", r"lacks the column path, label; its columns are \['file', 'class'\]"),
        ("Path,label\n0.png,a\n", "lacks the column path;"),
        ("path,label,label\n0.png,a,b\n", "has a column twice"),
        ("path,label\n0.png,a,b\n", "line 2 has 3 cells"),
        ("path,label\n0.png,\n", "an empty path or label in line 2"),
        ("path,label\n", "no row below the header"),
        ("", r"its columns are \[\]"),
        ('path,label\n0.png,"a\n', "cannot be read as a CSV"),
        (b"path,label\n0.png,\xff\n", "cannot be read as a CSV in UTF-8"),
        ("path,label,split\n0.png,a,training\n", "unknown split in line 2: 'training'"),
        ("path,label,split\n0.png,a,train\n", "the split column has only train"),
        ("path,label,split,query\n0.png,a,train,\n1.png,b,test,yes\n", "line 3: query is 'yes'; allowed: 1, true"),
        ("path,label,query\n0.png,a,\n", "query is ''"),
    ],
)
def test_malformed_manifests_are_refused(images: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _read(images, text)


def test_missing_files_are_listed_with_the_total(images: Path) -> None:
    text = "path,label\n0.png,a\n" + "".join(f"gone{number}.png,b\n" for number in range(13))
    with pytest.raises(DataError, match=r"names 13 files \(of 14\) that do not exist.*and 3 more") as refusal:
        _read(images, text)
    assert str(refusal.value).count("gone") == 10
    with pytest.raises(DataError, match="no manifest at"):
        Manifest(str(images / "none.csv")).splits()


def test_paths_that_lead_out_are_refused(images: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "x.png"
    Image.new("L", (4, 4)).save(outside)
    (images / "link.png").symlink_to(outside)
    (images / "folder").symlink_to(outside.parent)
    relative = f"../{outside.parent.name}/x.png"
    for path in (str(outside), relative, "link.png", "folder/x.png", str(images / "5.png"), f"gone/../{relative}"):
        text = "\n".join(["path,label,split", *SPLIT, f"{path},e,test"])
        with pytest.raises(DataError, match="1 paths are absolute or lead out"):
            _read(images, text)
    text = "\n".join(["path,label,split", *SPLIT, f"{outside},e,test"])
    assert len(_read(images, text, allow_outside=True).test) == 2


def test_a_file_named_twice_is_refused(images: Path) -> None:
    with pytest.raises(DataError, match=r"1 files more than once: \./0\.png \(lines 2 and 6\)"):
        _read(images, "\n".join(["path,label,split", *SPLIT, "./0.png,d,test"]))


def test_a_class_on_both_sides_is_refused(images: Path) -> None:
    text = "\n".join(["path,label,split", *SPLIT, "4.png,a,test"])
    with pytest.raises(DataError, match="both train and test: a"):
        _read(images, text)
    assert not _read(images, text, class_disjoint=False).class_disjoint


def test_query_gallery_and_group(images: Path) -> None:
    text = "path,label,split,query,gallery,group\n0.png,a,train,,,x\n1.png,b,val,1,1,x\n"
    text += "2.png,c,test,1,0,x\n3.png,c,test,False,TRUE,y\n4.png,d,test,0,1,x\n"
    splits = _read(images, text)
    assert splits.train.query is None
    assert splits.test.query.tolist() == [True, False, False]
    assert splits.test.gallery.tolist() == [False, True, True]
    assert [splits.test.group_names[group] for group in splits.test.groups] == ["x", "y", "x"]


def test_the_order_of_rows_does_not_matter(images: Path) -> None:
    rows = [f"{number}.png,class{number % 10}" for number in range(40)]
    first = _read(images, "\n".join(["path,label", *rows]))
    second = _read(images, "\n".join(["path,label", *rows[::-1]]))
    for part in ("train", "validation", "test"):
        assert sorted(getattr(first, part).names) == sorted(getattr(second, part).names)
