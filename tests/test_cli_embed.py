"""`lossopt embed` and `lossopt evaluate`: a run, a folder of images and somebody else's vectors, end to end."""

import getpass
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lossopt import data
from lossopt.cli import main
from lossopt.data import Folder, InMemory, LabelledImages, OnDisk, Splits, query_gallery
from lossopt.data.dataset import SquareImages
from lossopt.data.decode import decode_image
from lossopt.data.folder import read_images
from lossopt.data.module import RetrievalData, to_float
from lossopt.data.scale import scale_images
from lossopt.durable import digest_of, sha256
from lossopt.encoders import Conv4
from lossopt.errors import DataError, EvaluationError
from lossopt.losses import TripletLoss
from lossopt.miners import SemiHardMiner
from lossopt.modules import TripletNetwork
from lossopt.retrieval.evaluation import evaluate_retrieval
from lossopt.retrieval.store import read_embeddings
from lossopt.runs import LoadedRun, embed_images, embed_split, load_run
from lossopt.tables import evaluate_table

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
SMALL = {
    "--trainer.max_epochs": "1",
    "--data.init_args.batches_per_epoch": "4",
    "--data.init_args.source.init_args.image_size": "16",
    "--model.init_args.encoder.init_args.width": "8",
    "--retrieval.test": "false",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on real digits, a few batches long."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        words = [word for pair in SMALL.items() for word in pair]
        assert main(["train", "--config", str(CONFIG), "--output", str(place), *words]) == 0
    (folder,) = (place / "quickstart").glob("*")
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def said(capsys, *words, expect=0):
    code = main([str(word) for word in words])
    output = capsys.readouterr()
    assert code == expect, output.err
    return output.out if expect == 0 else output.err


def figures(text):
    """The lines of an evaluation below the two that say where from."""
    return text.split("\n\n", 1)[1]


def image(path, value=100, side=20, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


# -------------------------------------------------------------------------------------------------- of a run


def test_a_split_is_embedded_and_scores_as_the_run_does(run, trained, capsys):
    first, second = said(capsys, "embed", run).splitlines()
    assert first == "447 x 32 vectors (0.1 MB, 5 classes) of the test split"
    assert second.startswith("embedded in ") and second.endswith(f"written to {run / 'embeddings' / 'test'}")
    by_run = said(capsys, "evaluate", run)
    by_folder = said(capsys, "evaluate", run / "embeddings" / "test")
    assert figures(by_run) == figures(by_folder) and "map@r" in by_run
    table, loaded = read_embeddings(run / "embeddings" / "test"), load_run(run)
    images = loaded.data.splits.test
    with torch.inference_mode():
        expected = loaded.model(to_float(images.batch(range(len(images))).images)).numpy()
    np.testing.assert_allclose(table.vectors, expected, atol=1e-5)
    assert list(table.names) == list(images.names) and table.class_names == images.class_names
    np.testing.assert_array_equal(table.labels, images.labels.numpy())
    assert table.provenance["normalised"] is True and table.provenance["split"] == "test"
    assert table.provenance["checkpoint_sha256"] == sha256(run / "checkpoints" / "best.ckpt")
    assert trained.name.endswith(f"-{table.provenance['config_hash']}")


def test_another_split_another_place_and_again(run, capsys, tmp_path):
    checkpoint = run / "checkpoints" / "best.ckpt"
    said(capsys, "embed", checkpoint, "--split", "validation")
    assert len(read_embeddings(run / "checkpoints" / "best" / "embeddings" / "validation")) == 449
    for split in ("test", "validation"):
        assert str(tmp_path / "mine") in said(capsys, "embed", run, "--split", split, "--output", tmp_path / "mine")
        assert read_embeddings(tmp_path / "mine").provenance["split"] == split
    np.save(tmp_path / "vectors.npy", np.zeros((3, 3)))
    assert "has not written" in said(capsys, "embed", run, "--output", tmp_path, expect=2)
    assert np.load(tmp_path / "vectors.npy").shape == (3, 3)


def test_the_manifest_names_no_machine_and_no_person(run, capsys, tmp_path):
    for number in range(6):
        for name in ("a", "b"):
            image(tmp_path / "alice" / name / f"{number}.png", number)
    pets = RetrievalData(Folder(str(tmp_path / "alice"), image_size=16, channels=1, class_disjoint=False))
    loaded = load_run(run)._replace(data=pets)
    table = embed_split(loaded, "test", tmp_path / "out")
    embed_images(loaded, tmp_path / "alice", tmp_path / "also")
    assert table.paths[0].startswith(str(tmp_path))  # search needs them
    for folder in (tmp_path / "out", tmp_path / "also"):
        text = (folder / "manifest.json").read_text()
        for private in (str(tmp_path), os.sep + "tmp", platform.node(), f"/{getpass.getuser()}"):
            assert private not in text
    assert "shared out" in table.provenance["data"]


def test_a_network_that_gives_nan_is_refused_with_names(run, tmp_path):
    loaded = load_run(run)
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(float("nan"))
    with pytest.raises(EvaluationError, match=r"447 of 447 embeddings are NaN or infinite: digits/.* and 437 more"):
        embed_split(loaded, "test", tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


# ------------------------------------------------------------------------------------------- of a folder of images


def test_images_in_class_folders_are_embedded_as_the_run_sees_images(run, capsys, tmp_path, monkeypatch):
    def splits(self) -> Splits:
        pytest.fail("the run's data is not needed")

    monkeypatch.setattr("lossopt.data.digits.Digits.splits", splits)
    files = [image(tmp_path / "pets" / place, number, mode="RGB") for number, place in enumerate(
        ["cat/1.png", "cat/deep/2.png", "dog/1.png", "dog/2.JPG".replace("JPG", "jpg"), "ü/1.png", "loose.png"]
    )]  # fmt: skip
    (tmp_path / "pets" / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "pets" / "notes.txt").write_text("x")
    first, second = said(capsys, "embed", run, "--images", tmp_path / "pets").splitlines()
    assert first == (
        "6 x 32 vectors (0.0 MB, 3 classes) of 6 images of pets; left out: 1 hidden files or folders, "
        "1 files that are no images"
    )
    table = read_embeddings(Path(second.partition("written to ")[2]))
    assert table.names == ["cat/1.png", "cat/deep/2.png", "dog/1.png", "dog/2.jpg", "loose.png", "ü/1.png"]
    assert [table.class_names[label] for label in table.labels] == ["cat", "cat", "dog", "dog", "", "ü"]
    assert table.paths == sorted(map(str, files))
    model = load_run(run).model
    for row, path in enumerate(table.paths):
        with torch.inference_mode():
            pixels = scale_images(decode_image(Path(path), None, 1)[None], 16)  # as Digits scales its own
            expected = model(to_float(pixels)).numpy()
        np.testing.assert_allclose(table.vectors[row], expected[0], atol=1e-5)
    assert "1 of 6 vectors have no label" in said(
        capsys, "evaluate", run / "embeddings" / "images-pets", "--ks", 1, expect=5
    )


def test_a_flat_folder_or_one_image_has_no_labels_until_a_file_gives_them(run, capsys, tmp_path):
    for number in range(4):
        image(tmp_path / "flat" / f"{number}.png", number % 2)
    text = said(capsys, "embed", run, "--images", tmp_path / "flat", "--output", tmp_path / "out")
    assert text.startswith("4 x 32 vectors (0.0 MB, no labels) of 4 images of flat\n")
    assert "4 of 4 vectors have no label" in said(capsys, "evaluate", tmp_path / "out", "--ks", 1, expect=5)
    (tmp_path / "labels.txt").write_text("even\nodd\neven\nodd\n")
    words = ["evaluate", tmp_path / "out", "--ks", 1, "--labels", tmp_path / "labels.txt"]
    assert "100.0" in said(capsys, *words)
    said(capsys, "embed", run, "--images", tmp_path / "flat" / "3.png", "--output", tmp_path / "one")
    one = read_embeddings(tmp_path / "one")
    assert (one.names, one.class_names, len(one)) == (["3.png"], ("",), 1)


def test_images_that_cannot_be_embedded_are_answers(run, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for name in "xy":
        (tmp_path / "broken" / f"{name}.png").write_bytes(b"<html>")
    image(tmp_path / "split" / "train" / "a" / "1.png")
    image(tmp_path / "split" / "Test" / "a" / "1.png")
    image(tmp_path / "outside.png")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "x.png").symlink_to(tmp_path / "outside.png")
    for name, message in (
        ("nowhere", "There is no file or folder"),
        ("empty", "There is no image in"),
        ("broken", "2 of 2 files cannot be used as images"),
        ("split", "holds the parts of a split (Test, train): give one of these folders"),
        ("linked", "1 links lead out of"),
    ):
        assert message in said(capsys, "embed", run, "--images", tmp_path / name, expect=3)
    said(capsys, "embed", run, "--images", tmp_path / "linked", "--allow-outside", "--output", tmp_path / "out")
    assert read_embeddings(tmp_path / "out").names == ["x.png"]
    with pytest.raises(SystemExit):
        main(["embed", str(run), "--images", str(tmp_path), "--split", "test"])


def test_hostile_names_of_files_and_folders_survive(run, capsys, tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.makedirs(folder + b"/<b>&")
    source = image(tmp_path / "x.png")
    for name in (b"/<b>&/\xff\n.png", b"/<b>&/=1+1.png", b"/<b>&/\xe6\x97\xa5.png"):
        shutil.copy(source, folder + name)
    text = said(capsys, "embed", run, "--images", os.fsdecode(folder))
    assert "\\xe9" in text and "images-caf\\udce9" in text
    table = read_embeddings(run / "embeddings" / os.fsdecode(b"images-caf\xe9"))
    assert sorted(map(os.fsencode, table.paths)) == sorted(
        folder + name for name in (b"/<b>&/\xff\n.png", b"/<b>&/=1+1.png", b"/<b>&/\xe6\x97\xa5.png")
    )
    assert all(Path(path).is_file() for path in table.paths)
    assert table.class_names == ("<b>&",)


def test_light_on_dark_data_turns_dark_on_light_files(tmp_path):
    path = image(tmp_path / "x.png")
    plain, _ = read_images(path, 8, 1)
    turned, _ = read_images(path, 8, 1, inverted=True)
    rows = torch.tensor([0])
    assert torch.equal(turned.pixels.read(rows), 255 - plain.pixels.read(rows))
    with pytest.raises(DataError, match="There is no file"):
        read_images(tmp_path / "nowhere", 8, 1)


@pytest.mark.parametrize("given", ["Omniglot", "MNIST", "FashionMNIST", "Digits", "CUB200", "Cars196", "InShop"])
def test_every_source_says_how_its_images_look(given):
    source = getattr(data, given)()
    assert isinstance(source, SquareImages)
    grey = given in ("Omniglot", "MNIST", "FashionMNIST", "Digits")
    assert (source.channels, source.inverted, source.area) == (1 if grey else 3, given == "Omniglot", grey)


class Silent:
    """A source that says nothing of its images."""

    def __init__(self, splits):
        self._splits = splits

    def splits(self):
        return self._splits


def test_a_source_that_does_not_say_is_asked_for_an_image(run, tmp_path):
    for name in "ab":
        for number in range(6):
            image(tmp_path / "data" / name / f"{number}.png", number, mode="RGB")
    splits = Folder(str(tmp_path / "data"), image_size=16, channels=3, class_disjoint=False).splits()
    model = TripletNetwork(Conv4(embedding_size=8, channels=3, width=8), TripletLoss(0.2), SemiHardMiner(0.2))
    loaded = load_run(run)
    other = LoadedRun(model.train(), RetrievalData(Silent(splits)), loaded.checkpoint, loaded.config)
    found = embed_images(other, tmp_path / "data" / "a", tmp_path / "out")
    assert model.training  # as it was, though it embeds as it is used
    with torch.inference_mode():
        expected = model.eval()(to_float(decode_image(Path(found.paths[2]), 16, 3)[None])).numpy()
    np.testing.assert_allclose(found.vectors[2], expected[0], atol=1e-5)


def test_every_kind_of_pixels_knows_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [image(Path(f"{number}.png"), number) for number in range(3)]
    memory = LabelledImages(InMemory(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)), torch.zeros(2).long(), ("a",), "xy")
    disk = LabelledImages(OnDisk(files, 4, 1), torch.tensor([0, 1, 1]), ("a", "b"), [str(file) for file in files])
    there = [str(tmp_path / f"{number}.png") for number in range(3)]
    assert memory.paths() is None and disk.paths() == there
    assert disk.select(torch.tensor([2, 0])).paths() == [there[2], there[0]]
    assert disk.with_rotations().paths() == there * 4
    assert query_gallery(memory, disk).paths() == ["", "", *there]
    assert query_gallery(disk, memory).paths() == [*there, "", ""]
    assert query_gallery(memory, memory).paths() is None


@pytest.mark.parametrize("exclude", ["none", "same class", "all"])
def test_a_table_is_scored_with_all_its_columns(exclude):
    rng = np.random.default_rng(0)
    vectors, labels, groups = rng.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 5, rng.integers(0, 3, 60)
    query, gallery = rng.random(60) < 0.7, rng.random(60) < 0.8
    table = LabelledImages(
        InMemory(torch.zeros(60, 1, 4, 4, dtype=torch.uint8)),
        torch.from_numpy(labels),
        tuple("abcde"),
        [str(row) for row in range(60)],
        torch.from_numpy(groups),
        tuple("xyz"),
        torch.from_numpy(query),
        torch.from_numpy(gallery),
    )
    found = evaluate_table(vectors, table, (1, 2), "cosine", exclude)
    expected = evaluate_retrieval(vectors, labels, query, gallery, (1, 2), "cosine", groups=groups, exclude=exclude)
    assert found.metrics == expected.metrics and found.queries == expected.queries


# ------------------------------------------------------------------------------------- of somebody else's vectors


@pytest.fixture
def vectors(tmp_path):
    """Two clusters per camera; within a camera everything is near."""
    rng = np.random.default_rng(0)
    labels, cameras = np.arange(40) % 4, np.arange(40) // 4 % 2
    found = rng.normal(size=(4, 8))[labels] + 5 * rng.normal(size=(2, 8))[cameras] + 0.3 * rng.normal(size=(40, 8))
    np.savez(tmp_path / "v.npz", vectors=found, labels=labels, groups=cameras)
    np.save(tmp_path / "v.npy", found)
    return tmp_path / "v.npz"


def test_vectors_of_others_are_evaluated(vectors, capsys):
    text = said(capsys, "evaluate", vectors, "--ks", 1, 3)
    assert text.startswith(f"{vectors}\n") and "map@r" in text
    assert figures(text) != figures(said(capsys, "evaluate", vectors, "--ks", 1))
    cosine = said(capsys, "evaluate", vectors, "--ks", 1, 3, "--distance", "cosine")
    assert "cosine distance" in cosine and "euclidean distance" in text
    across = said(capsys, "evaluate", vectors, "--ks", 1, 3, "--exclude", "same-class")
    assert len({figures(text), figures(cosine), figures(across)}) == 3
    said(capsys, "evaluate", vectors, "--ks", 1, 3, "--exclude", "all")


def test_the_distance_of_a_folder_is_its_own(run, capsys):
    said(capsys, "embed", run)
    folder = run / "embeddings" / "test"
    content = json.loads((folder / "manifest.json").read_text())
    content["provenance"]["distance"] = "cosine"
    (folder / "manifest.json").write_text(json.dumps(content | {"sha256": digest_of(content)}))
    assert "cosine distance" in said(capsys, "evaluate", folder)
    assert "euclidean distance" in said(capsys, "evaluate", folder, "--distance", "euclidean")


def test_query_and_gallery_files_are_evaluated(vectors, capsys, tmp_path):
    with np.load(vectors) as content:
        found, labels = content["vectors"], content["labels"]
    np.save(tmp_path / "g.npy", found[10:])
    np.save(tmp_path / "q.npy", found[:10])
    (tmp_path / "g.json").write_text(json.dumps(labels[10:].tolist()))
    (tmp_path / "q.txt").write_text("\n".join(map(str, labels[:10])))
    words = ["--labels", tmp_path / "g.json", "--query", tmp_path / "q.npy", "--query-labels", tmp_path / "q.txt"]
    text = said(capsys, "evaluate", tmp_path / "g.npy", *words)
    assert "10 queries" in text and "30 gallery" in text


def test_words_that_do_not_belong_are_refused(vectors, run, capsys, tmp_path):
    for words, message in (
        ((run, "--labels", "x.npy"), "--labels, --query and --train belong to vectors"),
        ((run, "--query", "x.npy"), "--labels, --query and --train belong to vectors"),
        ((vectors, "--split", "test"), "belong to runs"),
        ((vectors, "--data.init_args.source.init_args.root=x"), "belong to runs"),
        ((vectors.with_suffix(".npy"),), None),
        ((run, "--exclude", "same-class"), "--exclude same-class leaves out .* but the test split has no groups"),
    ):
        text = said(capsys, "evaluate", *words, expect=2 if message else 5)
        assert message is None or re.search(message, text)
    labels = tmp_path / "l.txt"
    labels.write_text("a\nb\n" * 20)
    words = ["evaluate", vectors.with_suffix(".npy"), "--labels", labels, "--exclude", "all"]
    assert "v.npy has no groups" in said(capsys, *words, expect=2)
    assert "v.npy: 40 vectors, but 2 labels" in said(capsys, *words[:3], short(tmp_path), expect=3)
    assert "no file or folder" in said(capsys, "evaluate", tmp_path / "nowhere", expect=3)
    for wrong in (["--ks", "0"], ["--ks", "one"], ["--exclude", "some"], ["--frobnicate"]):
        with pytest.raises(SystemExit) as stopped:
            main(["evaluate", str(vectors), *wrong])
        assert stopped.value.code == 2


def short(folder):
    (folder / "short.txt").write_text("a\nb\n")
    return folder / "short.txt"


def test_evaluating_vectors_needs_no_torch(vectors):
    script = (
        "import sys; from lossopt.cli import main; main(sys.argv[1:]); print([m for m in sys.modules if m in HEAVY])"
    )
    script = script.replace("HEAVY", "('torch', 'pytorch_lightning', 'wandb', 'pyarrow')")
    done = subprocess.run(
        [sys.executable, "-c", script, "evaluate", str(vectors), "--ks", "1"], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
