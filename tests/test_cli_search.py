"""`lossopt index` and `lossopt search`: images on disk, a run, its index and its answers, end to end."""

import io
import json
import re
import shutil
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lossopt.cli import main
from lossopt.data import Digits, Omniglot
from lossopt.data.module import RetrievalData
from lossopt.durable import digest_of
from lossopt.retrieval.foreign import read_vectors
from lossopt.retrieval.index import NeighbourIndex
from lossopt.retrieval.saved_index import load_index
from lossopt.retrieval.verification import Threshold
from lossopt.runs import images_like, load_run
from lossopt.search import search_index

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
HOSTILE = "x&<img src=q onerror=alert(1)>{{7*7}}"
CLASSES = [HOSTILE, *(f"class{number}" for number in range(11))]


def picture(path, seed, size=(40, 30), class_seed=0):
    """A few rectangles of colour, alike within a class; JPEG or PNG by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(class_seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST)
    noise = np.random.default_rng(seed).integers(0, 60, (size[1], size[0], 3))
    Image.fromarray(np.minimum(np.asarray(image).astype(int) + noise, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images in class folders, and a run that was trained on some of the classes; nobody changes these."""
    place = tmp_path_factory.mktemp("made")
    for number, name in enumerate(CLASSES):
        for each in range(6):
            ending = "jpg" if each % 2 else "png"
            picture(place / "images" / name / f"{each}.{ending}", 100 * number + each, class_seed=number)
    config = yaml.safe_load(QUICKSTART.read_text())
    config["model"]["init_args"]["encoder"]["init_args"] |= {"width": 8, "channels": 3}
    source = {"path": str(place / "images"), "image_size": 24, "shares": [0.4, 0.2, 0.4]}
    config["data"]["init_args"] |= {
        "source": {"class_path": "lossopt.data.Folder", "init_args": source},
        "classes_per_batch": 4,
        "images_per_class": 4,
        "batches_per_epoch": 3,
        "rotations_as_classes": False,
    }
    config |= {"trainer": {"max_epochs": 1}, "retrieval": {"test": False}}
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        assert main(["train", "--config", str(place / "config.yaml"), "--output", str(place / "runs")]) == 0
    (run,) = (place / "runs" / "quickstart").glob("*")
    assert main(["embed", str(run)]) == 0
    assert main(["index", "build", str(run / "embeddings" / "test")]) == 0
    return place, run


@pytest.fixture
def run(made, tmp_path):
    return Path(shutil.copytree(made[1], tmp_path / "run"))


@pytest.fixture
def index(run):
    return run / "embeddings" / "test-index"


def said(capsys, *words, expect=0):
    code = main([str(word) for word in words])
    output = capsys.readouterr()
    assert code == expect, output.err
    return output.out if expect == 0 else output.err


def answers(text):
    """(rank, distance, the rest) of every line that is an answer."""
    found = re.findall(r"^ *(\d+) +(\d+\.\d{4})  (.*)$", text, flags=re.MULTILINE)
    return [(int(rank), float(distance), rest) for rank, distance, rest in found]


# ---------------------------------------------------------------------------------------------------------- index


def test_an_index_is_built_and_says_what_it_finds(run, capsys):
    text = said(capsys, "index", "build", run / "embeddings" / "test", "--output", run / "mine")
    n = len(read_vectors(run / "embeddings" / "test"))
    first, second, third, fourth, last = text.splitlines()
    assert first == f"Flat: {n} x 32 vectors, euclidean distance"
    assert second == f"recall@10 against exact search 100.00 % ({n} queries of its own data; equally near ones count)"
    assert re.fullmatch(r"one query \d+\.\d{3} ms, in a batch [\d,]+ per second, \d+ threads?", third)
    assert re.fullmatch(r"0\.0 MB, built in \d+\.\d s", fourth) and last == f"written to {run / 'mine'}"


def test_another_factory_distance_and_k(run, capsys):
    words = ("index", "build", run / "embeddings" / "test", "--output", run / "mine")
    text = said(
        capsys, *words, "--factory", "HNSW8,Flat", "--parameters", "efSearch=9", "--distance", "cosine", "--k", 3
    )
    assert text.startswith("HNSW8,Flat efSearch=9: ") and "cosine distance\nrecall@3" in text
    assert "note       the vectors were made for euclidean distance; this index uses cosine." in text
    saved = load_index(run / "mine")
    assert (saved.index.factory, saved.index.parameters, saved.index.distance) == ("HNSW8,Flat", "efSearch=9", "cosine")
    assert "has not written" in said(capsys, *words[:-1], run / "embeddings" / "test", expect=2)
    assert "does not know the index 'IVFx'" in said(capsys, *words, "--factory", "IVFx", expect=2)
    assert "There is no file or folder" in said(capsys, "index", "build", run / "nothing", expect=3)


def test_an_index_of_anybodys_vectors_lies_beside_them(tmp_path, capsys):
    vectors = np.random.default_rng(0).normal(size=(50, 8))
    np.save(tmp_path / "mine.npy", vectors)
    assert f"written to {tmp_path / 'mine-index'}" in said(capsys, "index", "build", tmp_path / "mine.npy")
    saved = load_index(tmp_path / "mine-index")
    assert len(saved.index) == 50 and saved.run is None
    assert "not made by `lossopt embed`" in said(
        capsys, "search", tmp_path / "mine-index", picture(tmp_path / "a.png", 1), expect=2
    )
    np.save(tmp_path / "asked.npy", vectors[7:9])
    found = answers(said(capsys, "search", tmp_path / "mine-index", tmp_path / "asked.npy", "--k", 2))
    assert [found[0], found[2]] == [(1, 0.0, found[0][2]), (1, 0.0, found[2][2])]
    assert found[0][2].endswith("  7") and found[2][2].endswith("  8")
    np.save(tmp_path / "other.npy", vectors[:, :5])
    text = said(capsys, "search", tmp_path / "mine-index", tmp_path / "other.npy", expect=3)
    assert "holds vectors of 5 dimensions; the index has 8" in text
    spoilt = vectors.copy()
    spoilt[[2, 9]] = np.nan
    np.save(tmp_path / "nan.npy", spoilt)
    assert "2 of 50 gallery vectors are NaN" in said(capsys, "index", "build", tmp_path / "nan.npy", expect=5)
    assert "2 of 50 queries are NaN" in said(capsys, "search", tmp_path / "mine-index", tmp_path / "nan.npy", expect=5)


def test_tuning_prints_the_table_and_writes_the_page(run, capsys, tmp_path):
    page = tmp_path / "tune.html"
    text = said(capsys, "index", "tune", run / "embeddings" / "test", "--k", 3, "--output", page)
    assert re.search(r"^[* ]  100\.00 % +0\.\d{3} ms .* Flat$", text, flags=re.MULTILINE)
    assert "HNSW32,Flat efSearch=4" in text and f"page: {page}" in text
    assert "Recall against time" in page.read_text()
    only = said(capsys, "index", "tune", run / "embeddings" / "test", "--factories", "SQ8")
    assert re.findall(r"  (\S+)$", only.split("\n\n")[0], flags=re.MULTILINE) == ["index", "Flat", "SQ8"]


# ---------------------------------------------------------------------------------------------------------- search


def test_an_image_of_the_index_finds_itself_first_at_no_distance(made, run, index, capsys):
    table = read_vectors(run / "embeddings" / "test")
    for row in (0, 3, len(table) - 1):
        path = table.paths[row]
        text = said(capsys, "search", index, path, "--k", 4)
        assert text.splitlines()[0] == Path(path).name
        found = answers(text)
        assert [rank for rank, _, _ in found] == [1, 2, 3, 4]
        assert found[0][1] <= 1e-3 and found[0][2].endswith(path)
        class_name = table.class_names[table.labels[row]]
        assert found[0][2].startswith(class_name)
        nearest = NeighbourIndex(table.vectors).search(table.vectors[[row]], 4)
        assert [distance for _, distance, _ in found] == pytest.approx(nearest.distances[0], abs=2e-3)


def read_alike(run, source, image, tmp_path):
    """(c, s, s): an image file as a run on `source` would see it."""
    image.save(tmp_path / "image.png")
    table, _ = images_like(load_run(run)._replace(data=RetrievalData(source)), tmp_path / "image.png")
    return table.batch([0]).images[0]


@pytest.mark.parametrize("size", [8, 12])
def test_a_file_is_decoded_as_the_images_that_are_held_in_memory(made, size, tmp_path):
    grey = Digits().splits().test.batch([5]).images[0, 0]
    expected = Digits(image_size=size).splits().test.batch([5]).images[0]
    seen = read_alike(made[1], Digits(image_size=size), Image.fromarray(grey.numpy()), tmp_path)
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("size", [28, 105])
def test_a_drawing_of_omniglot_is_decoded_to_the_pixel(made, size, tmp_path, data_root):
    source = Omniglot(str(data_root), image_size=size)
    name = "Kannada/character11/1215_01"
    table = source.splits().test
    (archive,) = data_root.rglob("images_evaluation.zip")
    with zipfile.ZipFile(archive) as packed:
        image = Image.open(io.BytesIO(packed.read(f"images_evaluation/{name}.png")))
        seen = read_alike(made[1], source, image, tmp_path)
    assert torch.equal(seen, table.batch([table.names.index(name)]).images[0])


def test_a_folder_asks_for_all_its_images(made, index, capsys, tmp_path):
    for number in range(3):
        picture(tmp_path / "asked" / f"{number}.png", number, class_seed=5)
    text = said(capsys, "search", index, tmp_path / "asked", "--k", 1000)
    assert [line for line in text.splitlines() if not line.startswith(" ")] == ["0.png", "1.png", "2.png"]
    n = len(load_index(index).rows)
    assert [rank for rank, _, _ in answers(text)] == 3 * list(range(1, n + 1))  # k is cut to the gallery
    distances = [distance for _, distance, _ in answers(text)]
    assert distances[:n] == sorted(distances[:n])


def test_the_run_is_the_one_that_made_the_vectors(made, run, index, capsys, tmp_path):
    asked = picture(tmp_path / "a.png", 1)
    assert load_index(index).run == run  # the copy, not the run that it was built in
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint = tmp_path / "other.ckpt"
    torch.save(content | {"epoch": 99}, checkpoint)
    text = said(capsys, "search", index, asked, "--run", checkpoint, expect=2)
    digest = load_index(index).provenance["checkpoint_sha256"][:12]
    assert f"made with a best.ckpt of sha256 {digest}" in text and str(checkpoint) in text
    (run / "checkpoints" / "best.ckpt").unlink()
    assert "There is no checkpoint" in said(capsys, "search", index, asked, expect=2)
    shutil.move(run / "embeddings", tmp_path / "embeddings")
    shutil.rmtree(run)
    text = said(capsys, "search", tmp_path / "embeddings" / "test-index", asked, expect=2)
    assert "is not at" in text and "--run RUN" in text
    assert answers(said(capsys, "search", tmp_path / "embeddings" / "test-index", asked, "--run", made[1]))


def test_an_index_that_remembers_no_run_asks_for_it(made, run, capsys, tmp_path):
    shutil.copytree(run / "embeddings" / "test", tmp_path / "away" / "test")
    said(capsys, "index", "build", tmp_path / "away" / "test")
    asked = picture(tmp_path / "a.png", 1)
    text = said(capsys, "search", tmp_path / "away" / "test-index", asked, expect=2)
    assert "does not say which run" in text and "--run RUN" in text
    said(capsys, "index", "build", tmp_path / "away" / "test", "--run", run)
    assert answers(said(capsys, "search", tmp_path / "away" / "test-index", asked))


def test_what_is_no_image_or_no_index_is_refused(index, capsys, tmp_path):
    (tmp_path / "text.png").write_text("<html>")
    assert "web page" in said(capsys, "search", index, tmp_path / "text.png", expect=3)
    assert "There is no file or folder" in said(capsys, "search", index, tmp_path / "nothing.png", expect=3)
    assert "is no index" in said(capsys, "search", tmp_path, tmp_path / "nothing.png", expect=3)
    content = bytearray((index / "index.faiss").read_bytes())
    content[-1] ^= 1
    (index / "index.faiss").write_bytes(content)
    assert "its sha256 is not that" in said(capsys, "search", index, tmp_path / "nothing.png", expect=3)


# ---------------------------------------------------------------------------------------------------------- the page


class Page(HTMLParser):
    """Tags, attributes and words of a page."""

    def __init__(self, path):
        super().__init__()
        self.raw, self.tags, self.attributes, self.words, self.items = path.read_text(), [], [], [], 0
        self.feed(self.raw)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attrs]

    def handle_data(self, data):
        self.words.append(data)


def test_the_gallery_shows_images_and_acts_on_nothing(run, index, capsys, tmp_path):
    table = read_vectors(run / "embeddings" / "test")
    path = tmp_path / "gallery.html"
    hostile = picture(tmp_path / "asked" / f"{HOSTILE.replace('/', '')}.png", 1)
    shutil.copy(table.paths[0], tmp_path / "asked" / "known.png")
    text = said(capsys, "search", index, tmp_path / "asked", "--k", 1000, "--html", path)
    assert f"page: {path}" in text
    page = Page(path)
    sources = [value for tag, name, value in page.attributes if name == "src"]
    assert len(sources) == 2 * (1 + len(table)) and all(source.startswith("data:image/") for source in sources)
    assert not {"script", "iframe", "link", "object", "form"} & set(page.tags)
    assert not any(name.startswith("on") or name == "href" for _, name, _ in page.attributes)
    assert any(name == "content" and value.startswith("default-src 'none'") for _, name, value in page.attributes)
    for name in {table.class_names[label] for label in table.labels}:
        assert name in page.text  # as text, also what would be a tag
    assert hostile.name in page.text and str(tmp_path) not in page.raw and "{{7*7}}" in page.text
    assert path.stat().st_size < 20e6


def test_the_same_file_and_what_is_beyond_the_threshold_are_marked(run, index, capsys, tmp_path):
    table = read_vectors(run / "embeddings" / "test")
    distances = NeighbourIndex(table.vectors).search(table.vectors[[0]], 6).distances[0]
    threshold = float(distances[2:4].mean())
    manifest = run / "embeddings" / "test" / "manifest.json"
    content = json.loads(manifest.read_text())
    kept = Threshold(threshold, None, None, 0.01, 0.9, 0.01, "euclidean", True, 1_000)
    content["provenance"]["threshold"] = kept.as_json()
    manifest.write_text(json.dumps(content | {"sha256": digest_of(content)}))
    said(capsys, "index", "build", run / "embeddings" / "test")
    text = said(capsys, "search", index, table.paths[0], "--k", 6, "--html", tmp_path / "page.html")
    assert [rest.endswith("(beyond the threshold)") for _, _, rest in answers(text)] == [False] * 3 + [True] * 3
    page = Page(tmp_path / "page.html")
    assert page.text.count("this very file") == 1 and page.text.count("beyond the threshold") == 3
    assert [value for tag, name, value in page.attributes if (tag, name) == ("li", "class")] == ["beyond"] * 3
    content["provenance"]["threshold"]["value"] = 1e-9
    manifest.write_text(json.dumps(content | {"sha256": digest_of(content)}))
    said(capsys, "index", "build", run / "embeddings" / "test", "--distance", "cosine")
    text = said(capsys, "search", index, table.paths[0], "--k", 6)
    assert len(answers(text)) == 6 and "beyond" not in text  # it was chosen for another distance


def test_images_that_are_gone_leave_their_names(made, run, index, capsys, tmp_path):
    gone = tmp_path / "gone"
    saved = load_index(index)
    saved.rows.paths[:] = [str(gone / Path(path).name) for path in saved.rows.paths]
    from lossopt.report.search import write_search_page
    from lossopt.search import as_text, pictures

    found = search_index(saved, picture(tmp_path / "a.png", 1), 5, run)
    page = Page(write_search_page(tmp_path / "page.html", found.queries, found.neighbours, saved, pictures(found)))
    missing = [value for _, name, value in page.attributes if name == "class" and "no-image" in value]
    assert page.tags.count("img") == 1 and len(missing) == 5
    assert len(answers(as_text(found))) == 5


def test_a_page_shows_as_many_queries_as_fit(made, run, index, monkeypatch, tmp_path):
    monkeypatch.setattr("lossopt.report.search.MOST_IMAGES", 12)
    from lossopt.report.search import write_search_page
    from lossopt.search import pictures

    for number in range(4):
        picture(tmp_path / "asked" / f"{number}.png", number)
    saved = load_index(index)
    found = search_index(saved, tmp_path / "asked", 5)
    page = Page(write_search_page(tmp_path / "page.html", found.queries, found.neighbours, saved, pictures(found)))
    assert page.tags.count("article") == 2 and "Shown: the first 2 queries of 4." in page.text
