"""Every shipped config trains a batch or two: on real data where it is at hand, else on a tiny copy of its layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from lossopt.cli import main
from lossopt.lab.grid import check, read_grid, tasks_of

CONFIGS = Path(__file__).parents[1] / "configs"
SCORED = sorted(path.stem for path in CONFIGS.glob("*.yaml") if "ShuffledData" in path.read_text())  # score themselves
NAMED = {path.stem for path in CONFIGS.glob("*.yaml") if "omniglot" in path.stem or "mnist" in path.stem}
REAL = sorted(NAMED - set(SCORED))
GRIDS = sorted(path.stem for path in (CONFIGS / "lab").glob("*.yaml"))
DATA, SOURCE = "--data.init_args", "--data.init_args.source.init_args"
SHORT = ["--trainer.max_epochs", "1", f"{DATA}.batches_per_epoch", "2", "--trainer.log_every_n_steps", "1"]
TINY = [f"{SOURCE}.image_size", "32", "--model.init_args.encoder.init_args.name", "resnet18", f"{DATA}.workers", "1"]
TINY += [f"{DATA}.classes_per_batch", "2", f"{DATA}.images_per_class", "2", "--retrieval.ks", "[1,2]"]


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 255, (40, 50, 3), np.uint8)).save(path)


def images(root, classes, each=4):
    """`each` pictures in a folder per class, under `root`; returns their paths and classes."""
    rows = [(root / str(kind) / f"{kind}_{number}.jpg", kind) for kind in classes for number in range(each)]
    for path, _ in rows:
        write(path)
    return rows


def folder(root):
    images(root / "images", [f"kind{n}" for n in range(10)])
    return ["path", str(root / "images")]


def manifest(root):
    rows = images(root, [f"kind{n}" for n in range(10)])
    lines = [f"{path.relative_to(root)},{kind}" for path, kind in rows]
    (root / "images.csv").write_text("\n".join(["path,label", *lines]))
    return ["path", str(root / "images.csv")]


def cub200(root):
    home = root / "CUB_200_2011"
    rows = images(home / "images", [*range(1, 7), *range(101, 105)])
    lists = {"images": [], "image_class_labels": [], "bounding_boxes": [], "classes": []}
    for number, (path, kind) in enumerate(rows, start=1):
        lists["images"].append(f"{number} {path.relative_to(home / 'images')}")
        lists["image_class_labels"].append(f"{number} {kind}")
        lists["bounding_boxes"].append(f"{number} 1.0 1.0 30.0 30.0")
    lists["classes"] = [f"{kind} {kind:03d}.Bird" for kind in sorted({kind for _, kind in rows})]
    for name, lines in lists.items():
        (home / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return ["root", str(root)]


def cars196(root):
    kinds = [*range(1, 7), *range(99, 103)]
    boxes = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    fields = [(name, "O") for name in ("relative_im_path", *boxes, "class", "test")]
    records = np.zeros((1, 4 * len(kinds)), dtype=fields)
    for number, kind in enumerate(np.repeat(kinds, 4).tolist()):
        write(root / "car_ims" / f"{number:06d}.jpg")
        records[0, number] = (f"car_ims/{number:06d}.jpg", 1, 1, 30, 30, kind, 0)
    names = np.array([f"Car {number}" for number in range(1, 197)], dtype="O")[None]
    savemat(root / "cars_annos.mat", {"annotations": records, "class_names": names})
    return ["root", str(root)]


def stanford_online_products(root):
    home = root / "Stanford_Online_Products"
    for name, kinds in (("train", range(1, 7)), ("test", range(7, 11))):
        rows = images(home, [f"chair_final/{kind}" for kind in kinds])
        lines = ["image_id class_id super_class_id path"]
        for number, (path, kind) in enumerate(rows, start=1):
            lines.append(f"{number} {kind.split('/')[1]} 1 {path.relative_to(home)}")
        (home / f"Ebay_{name}.txt").write_text("\n".join(lines) + "\n")
    return ["root", str(root)]


def inshop(root):
    rows = images(root / "img", [f"id_{kind:08d}" for kind in range(10)])
    lines = [str(len(rows)), "image_name item_id evaluation_status"]
    for number, (path, kind) in enumerate(rows):
        status = "train" if int(kind[3:]) < 6 else ("query", "gallery")[number % 2]
        lines.append(f"{path.relative_to(root)} {kind} {status}")
    (root / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return ["root", str(root)]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.mark.parametrize("make", [folder, manifest, cub200, cars196, stanford_online_products, inshop])
def test_a_config_for_photos_trains_on_a_tiny_folder_of_its_layout(make, tmp_path, capsys):
    key, value = make(tmp_path / "data")
    words = ["train", "--config", str(CONFIGS / f"{make.__name__}.yaml"), *SHORT, *TINY, f"{SOURCE}.{key}", value]
    assert main(words) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "disjoint" in said and "test       recall@1" in said
    (run,) = Path("runs", make.__name__).iterdir()
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("name", REAL)
def test_a_config_for_real_data_trains(name, data_root, capsys):
    words = ["train", "--config", str(CONFIGS / f"{name}.yaml"), *SHORT, f"{SOURCE}.root", str(data_root)]
    assert main([*words, "--retrieval.test", "false"]) == 0, capsys.readouterr().err
    assert "untrained  recall@1" in capsys.readouterr().out


@pytest.mark.parametrize("name", SCORED)
def test_a_config_of_a_network_that_scores_itself_trains(name, data_root, capsys):
    few = [f"--trainer.limit_{part}_batches" for part in ("train", "val")]
    words = ["train", "--config", str(CONFIGS / f"{name}.yaml"), few[0], "2", few[1], "2", "--trainer.max_epochs", "1"]
    assert main([*words, f"{SOURCE}.root", str(data_root), "--retrieval.test", "false"]) == 0, capsys.readouterr().err
    assert "untrained  " in capsys.readouterr().out


@pytest.mark.parametrize("name", GRIDS)
def test_the_variants_of_a_grid_could_train(name, data_root, monkeypatch):
    monkeypatch.setenv("LOSSOPT_DATA", str(data_root))
    grid = read_grid(CONFIGS / "lab" / f"{name}.yaml")
    tasks = tasks_of(grid)
    check(grid, tasks[:: max(1, len(tasks) // 5)])  # all are parsed, some put through their first batch


def test_no_config_is_left_out():
    here = {"folder", "manifest", "cub200", "cars196", "stanford_online_products", "inshop", "quickstart"}
    assert here | {*REAL, *SCORED} == {path.stem for path in CONFIGS.glob("*.yaml")}
