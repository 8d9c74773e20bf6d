"""What several processes agree on before they start: whose batches are whose, and what cannot work."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from lossopt import config as configuration
from lossopt.cli import main

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def data_of(rank, world_size):
    words = ["--config", str(CONFIG), "--data.init_args.seed", "3"]
    data = configuration.instantiate(configuration.parse(words)).data
    data.setup("fit")  # before there is a trainer, as `train` and scripts do
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
    return data


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_deal_disjoint_classes_of_the_batch_that_one_process_deals(world_size):
    alone = data_of(0, 1)
    labels = alone.training_table().labels
    shares = [list(data_of(rank, world_size).sampler) for rank in range(world_size)]
    assert {len(share) for share in shares} == {len(alone.sampler)}
    for whole, *parts in zip(alone.sampler, *shares, strict=True):
        assert sorted(row for part in parts for row in part) == sorted(whole) and len(whole) == 16 * 8
        classes = [set(labels[part].tolist()) for part in parts]
        assert [len(own) for own in classes] == [16 // world_size] * world_size
        assert len(set.union(*classes)) == 16


@pytest.mark.parametrize(
    ("devices", "strategy", "refusal"),
    [
        ("3", "ddp", r"classes_per_batch (16) is shared by 3 processes; make it a multiple of 3."),
        ("2", "ddp_spawn", "start_method 'spawn'"),
        ("2", "ddp_fork", "--trainer.strategy ddp"),
        ("1", "ddp_notebook", "in a notebook, --trainer.devices 1"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(devices, strategy, refusal, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--trainer.accelerator", "cpu", "--trainer.devices", devices, "--trainer.strategy", strategy]
    assert main(["train", "--config", str(CONFIG), *words]) == 2
    said = capsys.readouterr()
    assert refusal in said.err and said.out == ""
    assert not list(tmp_path.iterdir())
