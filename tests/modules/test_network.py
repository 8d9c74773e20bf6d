"""Networks that score themselves, trained by the command on real digits: what a run leaves, and what is refused."""

import inspect
import json
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
import yaml
from torch.optim.lr_scheduler import CyclicLR, ReduceLROnPlateau, StepLR

from lossopt.cli import main
from lossopt.config import parse, resolved
from lossopt.data import Batch
from lossopt.decoders import DenseDecoder
from lossopt.encoders import DenseEncoder
from lossopt.losses import SupConLoss
from lossopt.modules import Autoencoder, SiameseNetwork
from lossopt.tracking import read_metrics

DENSE = {"embedding_size": 4, "widths": [16], "image_size": 8}
CONFIG = {
    "name": "rebuilt",
    "model": {
        "class_path": "lossopt.modules.Autoencoder",
        "init_args": {
            "encoder": {"class_path": "lossopt.encoders.DenseEncoder", "init_args": DENSE},
            "decoder": {"class_path": "lossopt.decoders.DenseDecoder", "init_args": DENSE},
            "lr_scheduler": {"class_path": "lossopt.schedules.WarmupDecay", "init_args": {"warmup_steps": 2}},
        },
    },
    "data": {
        "class_path": "lossopt.data.ShuffledData",
        "init_args": {
            "source": {"class_path": "lossopt.data.Digits", "init_args": {"split": "closed"}},
            "batch_size": 64,
        },
    },
    "trainer": {"max_epochs": 2, "log_every_n_steps": 4},
    "checkpoint": {"monitor": "val/error", "mode": "min"},
}

RATE = ["--model.init_args.optimizer.init_args.lr", "0.1"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG))


def train(*words, expect=0):
    assert main(["train", "--config", "config.yaml", *words]) == expect
    return max(Path("runs").glob("*/*"), key=lambda folder: folder.stat().st_mtime_ns, default=None)


def test_a_run_leaves_its_scores_and_the_same_seed_the_same_bits(capsys):
    folder = train()
    said = capsys.readouterr().out
    assert "untrained  error " in said and "test       error " in said
    results = json.loads((folder / "results.json").read_text())
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "val/error" in row]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert [row["train/images"] for row in rows] == [0, 1024, 2048]
    assert results["validation"]["val/error"] == min(row["val/error"] for row in rows[1:])
    assert results["test"].keys() >= {"test/error", "test/mse", "test/l1", "test/loss"}
    assert results["test"]["test/error"] == pytest.approx(64 * results["test"]["test/mse"], rel=1e-5)
    assert results["untrained"]["val/error"] > results["validation"]["val/error"]
    logged = [row for row in read_metrics(folder / "metrics.jsonl") if "train/gradient_norm" in row]
    assert logged and all("train/spread" not in row for row in logged)
    again = train("--name", "again")
    weights = [torch.load(one / "checkpoints/best.ckpt", weights_only=True)["state_dict"] for one in (folder, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_that_goes_on_has_the_bits_of_one_that_was_not_stopped():
    folder = train()
    results = json.loads((folder / "results.json").read_text())
    last = torch.load(max((folder / "checkpoints").glob("epoch=002*.ckpt")), weights_only=True)["state_dict"]
    for lost in (
        "results.json",
        "checkpoints/best.ckpt",
        *(f"checkpoints/{p.name}" for p in folder.glob("*/epoch=002*")),
    ):
        (folder / lost).unlink()  # as if it had been killed in its second epoch
    with pytest.warns(UserWarning, match="was passed over: the file is missing"):
        assert main(["train", "--resume", str(folder)]) == 0
    again = torch.load(max((folder / "checkpoints").glob("epoch=002*.ckpt")), weights_only=True)["state_dict"]
    assert all(torch.equal(last[name], again[name]) for name in last)
    assert json.loads((folder / "results.json").read_text())["test"] == results["test"]


@pytest.mark.parametrize("named", ["torch.optim.Adam", "torch.optim.Adagrad", "torch.optim.SGD", "torch.optim.RMSprop"])
def test_an_optimizer_that_is_named_has_its_own_defaults_and_none_of_another(named):
    made = resolved(parse(["--config", "config.yaml", "--model.init_args.optimizer", named, *RATE]))
    given = made["model"]["init_args"]["optimizer"]["init_args"]
    own = {name: one.default for name, one in inspect.signature(resolve_name(named)).parameters.items()}
    kept = {name: value for name, value in given.items() if name != "lr"}
    assert kept == {name: list(own[name]) if isinstance(own[name], tuple) else own[name] for name in kept}


def small(**given):
    shape = {"embedding_size": 4, "widths": [8], "image_size": 8}
    return Autoencoder(DenseEncoder(**shape), DenseDecoder(**shape), **given)


def test_without_an_optimizer_it_is_adamw_and_without_a_schedule_the_rate_stays():
    assert type(small().configure_optimizers()) is torch.optim.AdamW


@pytest.mark.parametrize(
    ("schedule", "interval"),
    [(lambda o: CyclicLR(o, 0.1, 0.2, cycle_momentum=False), "step"), (lambda o: StepLR(o, 3), "epoch")],
)
def test_a_schedule_steps_as_its_kind_wants_it(schedule, interval):
    made = small(lr_scheduler=schedule).configure_optimizers()["lr_scheduler"]
    assert made["interval"] == interval and "monitor" not in made


def test_a_plateau_is_seen_in_what_the_network_logs():
    for network, figure in (
        (small(lr_scheduler=ReduceLROnPlateau), "val/loss"),
        (SiameseNetwork(DenseEncoder(4, [8], 8), SupConLoss(), lr_scheduler=ReduceLROnPlateau), "val/map@r"),
    ):
        assert network.configure_optimizers()["lr_scheduler"]["monitor"] == figure


def test_what_a_step_keeps_holds_no_graph():
    network = small()
    loss = network.training_step(Batch(torch.rand(3, 1, 8, 8), torch.zeros(3), torch.arange(3), 0), 0)
    assert loss.requires_grad and network.last_step.outputs.shape == (3, 1, 8, 8)
    assert not network.last_step.outputs.requires_grad


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--checkpoint.monitor", "val/recall@1"],
            r"checkpoint.monitor is 'val/recall@1'; a validation logs val/error",
        ),
        (["--data.init_args.batch_size", "5000"], "batch_size is 5000; with 1,085 images it must be 1 to 1,085"),
        (
            [
                "--data.class_path",
                "lossopt.data.module.RetrievalData",
                "--data.init_args.source",
                "lossopt.data.Digits",
            ],
            "an Autoencoder or a MultitaskNetwork on ShuffledData; got Autoencoder on RetrievalData",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_training(words, said, capsys):
    train(*words, expect=2)
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


def test_the_codes_of_an_autoencoder_can_be_searched(capsys):
    folder = train()
    assert main(["evaluate", str(folder)]) == 0
    assert "recall" in capsys.readouterr().out
