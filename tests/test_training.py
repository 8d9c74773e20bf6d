"""Whole runs on real digits: what they leave behind, that the seed decides every bit, and what stops them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lossopt import training
from lossopt.checkpoints import read_manifest
from lossopt.cli import main
from lossopt.config import parse
from lossopt.health import read_health
from lossopt.tracking import read_metrics, read_offline_run

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
MODEL, DATA = "--model.init_args", "--data.init_args"
SMALL = [f"{DATA}.batches_per_epoch", "6", "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "2"]
SMALL += [f"{DATA}.source.init_args.image_size", "16", f"{MODEL}.encoder.init_args.width", "8"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")


def train(*words, expect=0):
    code = main(["train", "--config", str(CONFIG), *SMALL, *words])
    assert code == expect
    folders = Path("runs/quickstart").glob("*")
    return max(folders, key=lambda folder: folder.stat().st_mtime_ns, default=None)


def validations(folder):
    return [row for row in read_metrics(folder) if "val/recall@1" in row]


def weights(folder):
    return torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]


def same_bits(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def last_weights(folder):
    return torch.load(max((folder / "checkpoints").glob("epoch=*.ckpt")), weights_only=True)["state_dict"]


def test_a_run_leaves_everything_in_its_folder_and_wandb_offline_says_the_same(monkeypatch, capsys):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    folder = train()
    said = capsys.readouterr().out
    assert "untrained  recall@1" in said and str(folder) in said.splitlines()[-1]
    for name in (
        "config.yaml",
        "environment.txt",
        "metrics.jsonl",
        "results.json",
        "health.json",
        "report.html",
        "checkpoints/best.ckpt",
    ):
        assert (folder / name).is_file(), name
    rows = validations(folder)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    results = json.loads((folder / "results.json").read_text())
    assert results["untrained"]["val/map@r"] == rows[0]["val/map@r"]
    assert results["validation"]["val/map@r"] == pytest.approx(max(row["val/map@r"] for row in rows[1:]))
    assert (
        results["images"]
        == 2
        * 6
        * yaml.safe_load((folder / "config.yaml").read_text())["data"]["init_args"]["classes_per_batch"]
        * yaml.safe_load((folder / "config.yaml").read_text())["data"]["init_args"]["images_per_class"]
    )
    logged = read_offline_run(folder)
    assert logged.exit_code == 0 and logged.config["seed"] == 0
    history = [row["val/recall@1"] for row in logged.history if "val/recall@1" in row]
    assert history == pytest.approx([row["val/recall@1"] for row in rows])
    for key in ("miner/tuples", "miner/share_active", "train/positive_distance", "train/negative_distance"):
        assert any(key in row for row in logged.history), key
    for key in ("train/embedding_norm", "train/gradient_norm", "train/images_per_second"):
        assert any(key in row for row in logged.history), key
    assert [row["health/collapse"] for row in logged.history if "health/collapse" in row] == [0] * 7
    assert results["notes"] == json.loads((folder / "health.json").read_text())["findings"] == []
    assert logged.summary["test/recall@1"] == pytest.approx(results["test"]["test/recall@1"])
    assert any("galleries" in name for name in logged.files)


def test_the_report_can_be_written_again(capsys):
    folder = train()
    page = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text() == page
    assert str(folder / "report.html") in capsys.readouterr().out


def test_one_seed_gives_the_same_bits_and_another_does_not():
    first, again, other = train(), train(), train("--seed", "1")
    assert same_bits(last_weights(first), last_weights(again))
    assert not same_bits(last_weights(first), last_weights(other))
    timeless = [
        [{k: v for k, v in row.items() if k.startswith("val/")} for row in validations(f)] for f in (first, again)
    ]
    assert timeless[0] == timeless[1]


def test_the_seed_of_the_run_decides_the_batches_unless_the_data_have_their_own(monkeypatch):
    dealt = []
    monkeypatch.setattr("lossopt.training._fit", lambda made, *rest: dealt.append(list(made.data.sampler)))

    def batches(*words):
        training.train(parse(["--config", str(CONFIG), *SMALL, *words]))
        return dealt[-1]

    own = [f"{DATA}.seed", "7"]
    assert batches("--seed", "3") == batches("--seed", "3") != batches("--seed", "4")
    assert batches("--seed", "3", *own) == batches("--seed", "4", *own)


def test_a_killed_run_goes_on_to_the_same_bits():
    words = ["--trainer.max_epochs", "6"]
    whole = train(*words)
    command = [
        sys.executable,
        "-m",
        "lossopt.cli",
        "train",
        "--config",
        str(CONFIG),
        *SMALL,
        *words,
        "--output",
        "killed",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    home = Path("killed/quickstart")
    for _ in range(600):
        time.sleep(0.1)
        if list(home.glob("*/checkpoints/epoch=002*")):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = home.iterdir()
    assert not (folder / "results.json").exists()
    newest = max((folder / "checkpoints").glob("epoch=*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:1000])  # as if the disk had lost its end
    with pytest.warns(UserWarning, match="bytes instead of"):
        assert main(["train", "--config", str(CONFIG), *SMALL, *words, "--output", "killed", "--resume"]) == 0
    assert list(home.iterdir()) == [folder]
    assert same_bits(last_weights(whole), last_weights(folder))
    values = [[row["val/map@r"] for row in validations(f)] for f in (whole, folder)]
    assert values[0] == values[1]


def test_resuming_a_finished_run_says_so(capsys):
    folder = train()
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    assert main(["train", "--resume", str(folder)]) == 0
    assert "finished already" in capsys.readouterr().out
    after = [(path, when) for path, when in sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))]
    assert [path for path, _ in before] == [path for path, _ in after if path.name != ".lock"] or before == after


def test_a_run_killed_between_its_last_epoch_and_its_results_is_finished_by_resuming():
    folder = train()
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").unlink()
    assert main(["train", "--resume", str(folder)]) == 0
    again = json.loads((folder / "results.json").read_text())
    cost = {"seconds", "peak_memory"}
    assert {k: v for k, v in again.items() if k not in cost} == {k: v for k, v in results.items() if k not in cost}


def test_resuming_under_another_configuration_is_refused_with_the_difference(capsys):
    folder = train()
    train("--trainer.max_epochs", "9", "--resume", str(folder), expect=2)
    assert "trainer.max_epochs was 2, is 9" in capsys.readouterr().err


def test_evaluate_finds_what_training_reported(capsys):
    folder = train("--trainer.precision", "bf16-mixed")
    results = json.loads((folder / "results.json").read_text())
    for split, key in (("test", "test"), ("validation", "val")):
        assert main(["evaluate", str(folder), "--split", split]) == 0
        said = capsys.readouterr().out
        recall = results[split][f"{key}/recall@1"]
        assert f"\n     1  {100 * recall:.2f} %" in said
    assert main(["evaluate", str(folder / "checkpoints" / "best.ckpt"), "--ks", "1", "100"]) == 0
    assert "\n   100  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        ([f"{DATA}.images_per_class", "1"], "TripletLoss needs positives: two or more images", 2),
        ([f"{DATA}.classes_per_batch", "60"], "classes_per_batch is 60, but the training data has", 2),
        ([f"{DATA}.images_per_class", "600"], "have fewer images", 2),
        ([f"{MODEL}.optimizer.init_args.lr", "-1"], "The optimiser refuses its arguments: Invalid learning rate", 2),
        ([f"{MODEL}.optimizer.init_args.lr", ".nan"], "learning rate", 2),
        ([f"{MODEL}.optimizer.init_args.lr", "0"], "The learning rate is 0.0; it must be a positive number", 2),
        (["--trainer.max_epochs", "-5"], "trainer.max_epochs is -5", 2),
        (["--checkpoint.monitor", "val/recall@one"], "val/recall@one", 2),
        (["--trainer.limit_train_batches", "0"], "trainer.limit_train_batches is 0", 2),
        (["--output", "/proc/nowhere"], "Choose another --output", 2),
        ([f"{DATA}.source", "lossopt.data.Folder", f"{DATA}.source.init_args.path", "nowhere"], "nowhere", 3),
        (["--retrieval.ks", "[1,5000]"], "Set --retrieval.ks to [1]", 2),
        (["--retrieval.ks", "[]"], "retrieval.ks is []", 2),
        (["--retrieval.ks", "[0]"], "retrieval.ks is [0]", 2),
        (["--checkpoint.monitor", "train/loss"], "a validation logs val/recall@1", 2),
        (["--trainer.limit_val_batches", "0"], "trainer.limit_val_batches is 0", 2),
        (["--trainer.accelerator", "gp"], "The trainer refuses its settings", 2),
        (["--trainer.devices", "0"], "The trainer refuses its settings", 2),
        (["--trainer.max_steps", "2"], "no best checkpoint", 2),
        (["--seed", "-1"], "seed", 2),
        ([f"{DATA}.workers", "-1"], "data.init_args.workers is -1", 2),
        ([f"{DATA}.batches_per_epoch", "0"], "batches_per_epoch is 0", 2),
    ],
)
def test_what_cannot_work_is_refused_without_a_traceback(words, message, code, capsys):
    train(*words, expect=code)
    said = capsys.readouterr()
    assert message in said.err and "Traceback" not in said.err
    assert "best " not in said.out


NAN_ROW = '''
import torch
from lossopt.data.augment import Augmentation

class SpoilOneImage(Augmentation):
    """One row of every batch from the fourth on becomes {value}."""
    calls = 0
    def __call__(self, images, generator):
        SpoilOneImage.calls += 1
        images = images.clone()
        if SpoilOneImage.calls > 3:
            images[5] = float("{value}")
        return images
'''


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_nan_image_stops_the_run_before_the_weights_and_is_named(value, capsys, monkeypatch):
    name = f"spoil_{value}"
    Path(f"{name}.py").write_text(NAN_ROW.format(value=value))
    words = [f"{DATA}.augment", yaml.safe_dump([{"class_path": f"{name}.SpoilOneImage"}], default_flow_style=True)]
    folder = train(*words, f"{MODEL}.miner", "null", expect=4)
    said = capsys.readouterr().err
    assert "Step 4: the gradient is not finite" in said and "nonfinite_batch.txt" in said
    batch = (folder / "nonfinite_batch.txt").read_text().splitlines()
    row, image = batch[5].split("\t")
    assert image in said and row.isdigit()
    (found,) = json.loads((folder / "health.json").read_text())["findings"]
    assert (found["kind"], found["first_step"]) == ("non-finite", 4) and image in found["text"]
    assert not list((folder / "checkpoints").glob("*.ckpt")) if (folder / "checkpoints").exists() else True
    assert not any(np.isnan(row.get("train/loss", 0.0)) for row in read_metrics(folder))


def test_a_miner_that_never_finds_anything_is_refused_at_the_end_of_the_epoch(capsys):
    train(f"{MODEL}.miner.init_args.margin", "1e-30", expect=3)
    assert "the miner found nothing to compare" in capsys.readouterr().err


def test_a_miner_that_often_finds_nothing_is_flagged(capsys):
    Path("sleepy.py").write_text(
        "import torch\nfrom lossopt.miners import BatchHardMiner, Triplets\n\n"
        "class SleepyMiner(BatchHardMiner):\n    calls = 0\n"
        "    def forward(self, embeddings, labels, ref_emb=None, ref_labels=None):\n"
        "        SleepyMiner.calls += 1\n        found = super().forward(embeddings, labels)\n"
        "        return Triplets(*(c[:0] for c in found)) if SleepyMiner.calls % 3 == 0 else found\n"
    )
    train(f"{MODEL}.miner", "{class_path: sleepy.SleepyMiner}")
    said = capsys.readouterr().out
    assert "note       steps 6 to 12: 33% of the steps had nothing to compare (4 of 12)" in said


def test_a_collapse_is_named_in_the_terminal_in_wandb_in_the_results_and_on_the_page(monkeypatch, capsys):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    words = [f"{MODEL}.miner", "lossopt.miners.BatchHardMiner", f"{MODEL}.optimizer.init_args.lr", "1.0"]
    folder = train(*words, f"{DATA}.batches_per_epoch", "20")
    said = capsys.readouterr().out.splitlines()
    (begun,) = (line for line in said if line.startswith("health "))
    (note,) = (line for line in said if line.startswith("note "))
    assert "the embeddings have collapsed, even if recall" in begun and "Try first: a lower learning rate" in begun
    (found,) = json.loads((folder / "health.json").read_text())["findings"]
    assert (found["kind"], found["last_step"]) == ("collapse", 40) and found["text"] == note.removeprefix("note       ")
    assert json.loads((folder / "results.json").read_text())["notes"] == [found["text"]]
    assert found["numbers"]["loss"] == pytest.approx(0.2, rel=0.05) and found["numbers"]["spread"] < 0.06
    assert "The embeddings collapsed" in (folder / "report.html").read_text()
    logged = read_offline_run(folder)
    assert {0, 1} == {row["health/collapse"] for row in logged.history if "health/collapse" in row}
    assert any("health/findings" in name for name in logged.files)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_every_precision_trains_and_reports_what_evaluate_finds(precision, capsys):
    folder = train("--trainer.precision", precision)
    assert (folder / "results.json").is_file()


def test_validation_every_other_epoch_reports_the_figures_of_the_weights_it_keeps(capsys):
    folder = train("--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "2")
    results = json.loads((folder / "results.json").read_text())
    assert results["epoch"] == 2
    (unseen,) = (entry for entry in read_manifest(folder / "checkpoints") if entry.epoch == 3)
    assert not any(name.startswith("val/") for name in unseen.metrics)
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--split", "validation"]) == 0
    assert f"map@r        {100 * results['validation']['val/map@r']:.2f} %" in capsys.readouterr().out


def test_one_validation_batch_is_one_batch():
    folder = train(f"{DATA}.evaluation_batch_size", "50", "--trainer.limit_val_batches", "1")
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["limit_val_batches"] == 1
    whole = train(f"{DATA}.evaluation_batch_size", "50")
    assert validations(folder)[0]["val/map@r"] != validations(whole)[0]["val/map@r"]


def test_a_trial_of_a_few_batches_keeps_nothing(capsys):
    assert train("--trainer.fast_dev_run", "true") is None
    assert "nothing was kept" in capsys.readouterr().out


def test_losses_with_class_weights_train_and_must_have_room_for_the_classes(capsys):
    loss = ["--model", "lossopt.modules.SiameseNetwork", f"{MODEL}.miner", "null", f"{MODEL}.loss_fn"]
    loss += ["pytorch_metric_learning.losses.ProxyAnchorLoss", f"{MODEL}.loss_fn.embedding_size", "32"]
    folder = train(*loss, f"{MODEL}.loss_fn.num_classes", "20", f"{DATA}.images_per_class", "1")
    assert weights(folder)["loss_fn.proxies"].shape == (20, 32)
    train(*loss, f"{MODEL}.loss_fn.num_classes", "5", expect=2)
    assert "num_classes 5, but the training data has 20 classes" in capsys.readouterr().err


def test_a_miners_rule_for_groups_needs_groups(capsys):
    train(f"{MODEL}.miner", "lossopt.miners.BatchHardMiner", f"{MODEL}.miner.group_rule", "other", expect=2)
    assert "BatchHardMiner chooses negatives by group, but the training data has no groups" in capsys.readouterr().err


MEMORY = ["--model", "lossopt.modules.SiameseNetwork", f"{MODEL}.miner", "null", f"{MODEL}.loss_fn"]
MEMORY += ["lossopt.losses.CrossBatchMemory", f"{MODEL}.loss_fn.loss"]
MINING = [f"{DATA}.mining", "lossopt.miners.whole_set.WholeSetMining", f"{DATA}.mining.confusable_classes", "4"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [*MEMORY, "lossopt.losses.ContrastiveLoss", f"{MODEL}.loss_fn.embedding_size", "16"],
            "embedding_size 16, but the encoder's embeddings have 32 numbers. Set .*embedding_size to 32",
        ),
        (
            [*MEMORY, "pytorch_metric_learning.losses.SmoothAPLoss", f"{MODEL}.loss_fn.embedding_size", "32"],
            "SmoothAPLoss takes no reference",
        ),
        ([*MINING, f"{DATA}.mining.skip", "100000"], "skips 100,000 negatives and takes 16, but mines among"),
        ([*MINING, f"{DATA}.mining.factory", "Foo"], "FAISS does not know the index 'Foo'"),
        ([*MINING, f"{DATA}.mining.parameters", "nprobe=x"], "got 'nprobe=x'"),
    ],
)
def test_what_cannot_work_with_these_embeddings_is_refused_before_the_run(words, message, capsys):
    train(*words, expect=2)
    assert re.search(message, capsys.readouterr().err)
    assert not list(Path("runs").rglob("config.yaml"))


def test_mining_that_leaves_nothing_says_so(capsys):
    folder = train(*MINING, f"{DATA}.mining.min_distance", "100", f"{DATA}.mining.every_n_steps", "2")
    (finding,) = [found for found in read_health(folder).findings if found.kind == "dead mining"]
    assert "negatives from the whole set none was left" in finding.what
    assert "none was left (out of range" in capsys.readouterr().out


def test_evaluate_takes_the_runs_own_settings_and_refuses_unknown_words(capsys):
    folder = train("--retrieval.ks", "[1,3]", "--retrieval.distance", "cosine")
    capsys.readouterr()
    assert main(["evaluate", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "\n     3  " in said and "\n     2  " not in said and "cosine distance" in said
    with pytest.raises(SystemExit):
        main(["evaluate", str(folder), "--splitt", "test"])
    assert "unknown argument --splitt" in capsys.readouterr().err
    assert main(["report", str(folder / "checkpoints" / "best.ckpt")]) == 2


def test_help_is_quick_and_loads_nothing_heavy():
    code = "import sys, lossopt.cli\nsys.exit(any(m in sys.modules for m in ('torch','numpy','faiss','wandb')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    answer = subprocess.run([sys.executable, "-m", "lossopt.cli", "--help"], capture_output=True, text=True, check=True)
    assert "train" in answer.stdout and "evaluate" in answer.stdout and "oneshot" in answer.stdout


def test_one_shot_on_omniglot(data_root, capsys):
    config = CONFIG.with_name("omniglot_triplet.yaml")
    words = [
        f"{DATA}.batches_per_epoch",
        "2",
        "--trainer.max_epochs",
        "1",
        f"{DATA}.source.init_args.root",
        str(data_root),
    ]
    assert main(["train", "--config", str(config), *words, "--retrieval.test", "false"]) == 0
    (folder,) = Path("runs/omniglot_triplet").iterdir()
    capsys.readouterr()
    assert main(["oneshot", str(folder), "--runs", "50"]) == 0
    said = capsys.readouterr().out
    official = float(said.split("20 official runs")[1].split()[0])
    assert 5 < official < 80 and "(400 trials" in said and "(1,000 trials" in said


def test_one_shot_on_other_data_is_refused(capsys):
    folder = train()
    assert main(["oneshot", str(folder)]) == 2
    assert "this run was trained on Digits" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_two_runs_in_one_folder_are_refused(capsys):
    from lossopt.durable import run_lock

    folder = train()
    with run_lock(folder):
        assert main(["train", "--resume", str(folder)]) == 2
    assert str(folder) in capsys.readouterr().err
