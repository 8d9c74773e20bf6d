"""Mining while a run trains: when it happens, what it leaves alone, what it costs, and what a resumed run knows."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lossopt.checkpoints import read_manifest
from lossopt.cli import main
from lossopt.data import Digits
from lossopt.data.module import RetrievalData
from lossopt.errors import ConfigError, NonFiniteError
from lossopt.miners.whole_set import WholeSetMining
from lossopt.mining import MiningRefresh, _embedded
from lossopt.samplers import PKSampler
from lossopt.tracking import read_metrics

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
MODEL, DATA = "--model.init_args", "--data.init_args"
STEPS = 24
SMALL = [f"{DATA}.batches_per_epoch", str(STEPS), "--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "5"]
SMALL += [f"{DATA}.source.init_args.image_size", "16", f"{MODEL}.encoder.init_args.width", "8"]
SMALL += [f"{DATA}.classes_per_batch", "6", f"{DATA}.images_per_class", "4", "--retrieval.test", "false"]
MINING = [f"{DATA}.mining", "lossopt.miners.whole_set.WholeSetMining", f"{DATA}.mining.confusable_classes", "3"]
EARLY = [f"{DATA}.mining.every_n_steps", "10", f"{DATA}.mining.warmup_steps", "2", f"{DATA}.mining.sample", "150"]
EARLY += [f"{DATA}.mining.absolute_margin", "0.01"]


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """The folder of a run that mines early and often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("mined"))
        patch.setenv("WANDB_MODE", "disabled")
        return train(*MINING, *EARLY).absolute()


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")


def train(*words):
    assert main(["train", "--config", str(CONFIG), *SMALL, *words]) == 0
    return max(Path("runs/quickstart").glob("*"), key=lambda folder: folder.stat().st_mtime_ns)


def last(folder):
    return torch.load(max((folder / "checkpoints").glob("epoch=*.ckpt")), weights_only=True)


def same_bits(one, other):
    one, other = last(one)["state_dict"], last(other)["state_dict"]
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refreshes(folder):
    return [row for row in read_metrics(folder) if "mining/seconds" in row]


def test_a_run_mines_when_it_is_told_to_and_logs_what_it_costs(mined):
    rows = refreshes(mined)
    assert [row["step"] for row in rows] == [2, 12, 22, 32, 42, 52, 62, 72]
    assert [row["mining/images_embedded"] for row in rows] == [150 * (number + 1) for number in range(8)]
    for row in rows:
        assert row["mining/candidates"] == 150 * 16 and row["mining/seconds"] > 0
        assert 0 < row["mining/dropped_absolute"] < row["mining/candidates"]
        assert row["mining/dropped_relative"] == row["mining/dropped_out_of_range"] == 0
        assert row["mining/mean_negative_distance"] > 0 and row["mining/mean_positive_distance"] > 0
    kept = last(mined)["callbacks"]["MiningRefresh"]
    assert kept["images_embedded"] == 1200 and kept["negative"].shape == (150, 16) and kept["since"] == 72
    labels = RetrievalData(Digits(image_size=16), rotations_as_classes=True).training_table().labels
    anchor, negative = kept["anchor"], kept["negative"]
    assert anchor.max() > 2000 and set(negative.unique().tolist()) <= {-1, *anchor.tolist()}
    assert (labels[anchor][:, None] != labels[negative])[negative >= 0].all()


def test_without_an_interval_it_mines_after_every_epoch_past_the_warm_up(capsys):
    folder = train(*MINING, f"{DATA}.mining.warmup_steps", "25")
    assert "3 of the 6 classes mined, after every epoch, among all training images" in capsys.readouterr().out
    train_images = 4 * len(Digits(image_size=16).splits().train)
    assert [row["step"] for row in refreshes(folder)] == [48, 72]
    assert [row["mining/images_embedded"] for row in refreshes(folder)] == [train_images, 2 * train_images]


def test_mining_alone_changes_no_bit_of_training_but_its_batches_do(mined, monkeypatch):
    plain = train()
    assert not same_bits(mined, plain)
    monkeypatch.setattr(PKSampler, "use", lambda self, lookalikes: None)
    assert same_bits(train(*MINING, *EARLY), plain)


def test_loader_processes_do_not_change_a_bit(mined):
    assert same_bits(mined, train(*MINING, *EARLY, f"{DATA}.workers", "2"))


def test_a_run_that_lost_its_last_epoch_goes_on_to_the_same_bits(mined):
    home = Path("killed").absolute()
    shutil.copytree(mined, home)
    (home / "results.json").unlink()
    for entry in read_manifest(home / "checkpoints"):
        if entry.epoch == 3:
            (home / "checkpoints" / entry.file).write_bytes(b"lost")
    with pytest.warns(UserWarning, match="bytes instead of"):
        assert main(["train", "--resume", str(home)]) == 0
    assert same_bits(mined, home)
    one, other = (last(folder)["callbacks"]["MiningRefresh"] for folder in (mined, home))
    assert one["images_embedded"] == other["images_embedded"] and one["since"] == other["since"]
    assert torch.equal(one["anchor"], other["anchor"]) and torch.equal(one["negative"], other["negative"])


def test_the_network_is_in_its_own_mode_afterwards_and_rows_come_in_order():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.norm, self.frozen = nn.BatchNorm2d(1), nn.Dropout().eval()

        def forward(self, images):
            return self.frozen(self.norm(images)).flatten(1)[:, 20:30] * self.scale

    data, network = RetrievalData(Digits(), 4, 3, evaluation_batch_size=7), Mean()
    table, rows = data.training_table(), np.array([3, 5, 8, 13, 21, 34, 55, 89, 144])
    network.norm.running_mean += 0.25
    found = _embedded(network, data, table, rows)
    assert network.training and network.norm.training and not network.frozen.training
    assert network.norm.running_mean.item() == 0.25 and network.norm.num_batches_tracked.item() == 0
    expected = (table.batch(rows.tolist()).images.float().flatten(1)[:, 20:30] / 255 - 0.25) / (1 + 1e-5) ** 0.5
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-6)


def test_images_without_a_finite_embedding_are_named():
    data = RetrievalData(Digits(), 4, 3)
    table, rows = data.training_table(), np.arange(10, 40)
    spoilt = table.batch([17]).images.float().div(255)

    class Spoils(nn.Linear):
        def forward(self, images):
            bad = (images == spoilt).flatten(1).all(dim=1)
            return torch.where(bad[:, None], torch.nan, images.flatten(1)[:, :3])

    with pytest.raises(NonFiniteError, match=f"1 of 30 training images .*: {table.names[17]}\\."):
        _embedded(Spoils(1, 1), data, table, rows)


def test_mining_that_does_not_fit_the_data_is_refused():
    many = WholeSetMining(confusable_classes=4, classes_per_seed=1)
    with pytest.raises(ConfigError, match=r"confusable_classes \(4\) come with 4 seed classes"):
        RetrievalData(Digits(), 4, 3, mining=many).setup("fit")
    grouped = WholeSetMining(confusable_classes=1, group_rule="other")
    with pytest.raises(ConfigError, match="'other' asks for groups, but this data set has none"):
        RetrievalData(Digits(), 4, 3, mining=grouped).setup("fit")


def test_other_data_modules_are_refused():
    refresh = MiningRefresh(WholeSetMining())
    with pytest.raises(TypeError, match="of RetrievalData, not SimpleNamespace"):
        refresh.on_train_batch_end(SimpleNamespace(datamodule=SimpleNamespace()), None, None, None, 0)
