"""What was logged is read back from the files, and W&B may fail in every way without hurting the local record."""

import contextlib
import json
import math
import os
import signal
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from lossopt import tracking
from lossopt.errors import ConfigError, DataError, LossoptError
from lossopt.tracking import (
    Gallery,
    JsonLinesLogger,
    Neighbour,
    finish,
    log_galleries,
    loggers,
    read_metrics,
    read_offline_run,
    view,
)

ROOT = Path(tracking.__file__).parents[2]


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path_factory):
    """No account, no settings of the developer, no home worth the name."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


def start(run: Path, config: dict | None = None):
    return loggers(run, name="tiny", group="g1", tags=["test"], config=config or {"model": {"width": 8, "lr": [1, 2]}})


# ------------------------------------------------------------------------------------------------- the local record


def test_each_call_is_one_line_of_json_at_once(tmp_path):
    logger = JsonLinesLogger(tmp_path / "new")
    logger.log_metrics({"train/loss": torch.tensor(0.5), "n": 3}, step=7)
    lines = (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    assert len(lines) == 1
    assert row.pop("time") > 1e9
    assert row == {"step": 7, "train/loss": 0.5, "n": 3}


def test_nan_and_infinities_stay_json_and_come_back(tmp_path):
    JsonLinesLogger(tmp_path).log_metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32(1)}, step=0)
    written = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert (written["a"], written["b"], written["c"]) == ("NaN", "Infinity", "-Infinity")
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["a"])
    assert (row["b"], row["c"], row["d"]) == (math.inf, -math.inf, 1.0)


def test_steps_never_go_backwards(tmp_path):
    logger = JsonLinesLogger(tmp_path)
    for step in (3, 2, None, 5):
        logger.log_metrics({"x": 1.0}, step=step)
    assert [row["step"] for row in read_metrics(tmp_path)] == [3, 3, 3, 5]


def test_a_resumed_run_replaces_the_steps_it_repeats_and_a_half_line_is_left_out(tmp_path):
    first = JsonLinesLogger(tmp_path)
    for step in (1, 2, 3, 4):
        first.log_metrics({"x": 1.0}, step=step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "x": 1.')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    second = JsonLinesLogger(tmp_path)
    for step in (3, 4):
        second.log_metrics({"x": 2.0}, step=step)
    assert [(row["step"], row["x"]) for row in read_metrics(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_a_full_disk_is_an_error_with_path_and_free_bytes(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(LossoptError, match=r"metrics\.jsonl .*\d+ bytes free.*--resume"):
        JsonLinesLogger(tmp_path).log_metrics({"x": 1.0}, step=0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a Linux device")
def test_a_really_full_disk_is_noticed_at_the_first_line(tmp_path):
    logger = JsonLinesLogger(tmp_path)
    logger.path = Path("/dev/full")
    with pytest.raises(LossoptError, match="No space left on device"):
        logger.log_metrics({"x": 1.0}, step=0)


def test_reserved_names_and_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"\['step'\]; add a prefix"):
        JsonLinesLogger(tmp_path).log_metrics({"step": 1.0})
    with pytest.raises(DataError, match=r"There is no .*metrics\.jsonl"):
        read_metrics(tmp_path)


# --------------------------------------------------------------------------------------------------------- W&B offline


class Tiny(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, _index):
        loss = self.layer(batch).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, _index):
        self.log("val/recall@1", [0.2, 0.7, 0.4][self.current_epoch])
        self.log("val/loss", 1.0 - self.current_epoch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",  # Lightning 2.6 on torch 2.14
)
def test_a_training_run_is_the_same_in_both_records(tmp_path):
    both = start(tmp_path)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=both,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(torch.ones(4, 2), batch_size=2)
    trainer.fit(Tiny(), data, data)
    finish(both, {"best/recall@1": 0.7})
    finish(both, {"best/recall@1": 0.0})
    run, rows = read_offline_run(tmp_path), read_metrics(tmp_path)
    assert (run.name, run.group, run.tags, run.exit_code, run.complete) == ("tiny", "g1", ("test",), 0, True)
    assert run.config == {"model": {"width": 8, "lr": [1, 2]}}
    assert run.summary["val/recall@1"] == {"max": pytest.approx(0.7)}
    assert (run.summary["val/loss"], run.summary["best/recall@1"]) == (-1, 0.7)
    for key in ("train/loss", "val/recall@1"):
        here = [(row["step"], row[key]) for row in rows if key in row]
        there = [(row["trainer/global_step"], row[key]) for row in run.history if key in row]
        assert here == there
        assert len(here) == {"train/loss": 6, "val/recall@1": 3}[key]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert run.path.is_relative_to(tmp_path)


def test_long_records_nan_and_galleries_are_read_back(tmp_path):
    config = {f"key{k}": "x" * 9000 for k in range(12)}
    both = start(tmp_path, config)
    for logger in both:
        logger.log_metrics({"a": math.nan, "b": -math.inf}, step=5)
        logger.log_metrics({"a": 1.0}, step=4)
    image = np.zeros((6, 6), np.uint8)
    near = [Neighbour(np.full((6, 6, 3), k, np.uint8), f"n{k}", 0.25 * k, k % 2 == 0) for k in range(7)]
    log_galleries(both, "val/galleries", [Gallery(image, "q", near), Gallery(image, "q", near[:1])] * 101, step=6)
    with pytest.raises(ValueError, match=r"uint8 of shape .* got float64"):
        log_galleries(both, "val/galleries", [Gallery(np.zeros((6, 6)), "q", near)])
    finish(both, {}, exit_code=3)

    run = read_offline_run(tmp_path)
    assert run.config == config
    assert math.isnan(run.history[0]["a"])
    assert run.history[0]["b"] == -math.inf
    assert [row["trainer/global_step"] for row in run.history] == [5, 5, 6]
    assert run.exit_code == 3
    table = run.history[2]["val/galleries"]
    assert (table["nrows"], table["ncols"]) == (200, 8)
    (tmp_path / "moved").mkdir()
    run = read_offline_run((tmp_path / "wandb").rename(tmp_path / "moved" / "wandb"))
    rows = json.loads(run.files["val/galleries.table.json"].read_text())["data"]
    assert rows[0][1:3] == ["q", 0.6]
    assert [cell["caption"] for cell in rows[0][3:5]] == ["hit: n0 at 0", "miss: n1 at 0.25"]
    assert rows[1][4:] == [None] * 4
    images = [path for name, path in run.files.items() if name.endswith(".png")]
    assert len(images) == 6
    assert all(path.is_relative_to(tmp_path) and path.read_bytes()[1:4] == b"PNG" for path in images)
    assert "WANDB_DATA_DIR" not in os.environ


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory) -> Path:
    """A process that logged twelve rows, waited longer than the flush interval, and was killed."""
    folder = tmp_path_factory.mktemp("killed")
    script = f"""
        import os, sys, time
        sys.path.insert(0, {str(ROOT)!r})
        os.environ["HOME"] = {str(folder)!r}
        os.environ["WANDB_MODE"] = "offline"
        from lossopt.tracking import loggers
        both = loggers({str(folder / "run")!r}, name="k", config={{"a": 1}})
        for step in range(12):
            for logger in both:
                logger.log_metrics({{"x": step / 2}}, step=step)
        time.sleep(2.5)
        os.kill(os.getpid(), 9)
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert child.returncode == -signal.SIGKILL, child.stderr
    return folder / "run"


def test_a_killed_run_keeps_its_rows(killed_run):
    run = read_offline_run(killed_run)
    assert [row["x"] for row in run.history] == [step / 2 for step in range(12)]
    assert [row["x"] for row in read_metrics(killed_run)] == [step / 2 for step in range(12)]
    assert (run.config, run.exit_code, run.complete) == ({"a": 1}, None, False)


def test_a_cut_tail_is_read_up_to_there_and_damage_is_refused(killed_run, tmp_path):
    content = read_offline_run(killed_run).path.read_bytes()
    path = tmp_path / "run-x.wandb"
    lengths = []
    for size in range(7, len(content) + 1, 11):
        path.write_bytes(content[:size])
        lengths.append(len(read_offline_run(path).history))
    assert lengths == sorted(lengths)
    assert {0, 6, 11} <= set(lengths)
    path.write_bytes(content + b"\0" * 100)
    assert len(read_offline_run(path).history) == 12
    for position in range(14, len(content) - 1, 97):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with contextlib.suppress(DataError):
            assert len(read_offline_run(path).history) < 12  # a longer length looks like a cut tail
    path.write_bytes(content[:40] + b"?" + content[41:])
    with pytest.raises(DataError, match="damaged at byte 7: the checksum is wrong"):
        read_offline_run(path)


def test_padding_at_the_end_of_a_block_is_skipped(tmp_path):
    """A record that ends three bytes before a block does, which real runs meet only by chance."""
    from wandb.proto.wandb_internal_pb2 import Record

    def chunk(data: bytes) -> bytes:
        return struct.pack("<IHB", zlib.crc32(b"\x01" + data), len(data), 1) + data

    fill = Record()
    fill.output.line = "x"
    while (missing := 32768 - 7 - 7 - 3 - fill.ByteSize()) > 0:
        fill.output.line += "x" * max(1, missing - 8)
    rest = Record()
    rest.exit.exit_code = 4
    content = b":W&B\xe1\xbe\0" + chunk(fill.SerializeToString()) + b"\0" * 3
    assert len(content) == 32768
    (tmp_path / "x.wandb").write_bytes(content + chunk(rest.SerializeToString()))
    assert read_offline_run(tmp_path / "x.wandb").exit_code == 4


def test_what_is_no_offline_run_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no \.wandb file below"):
        read_offline_run(tmp_path)
    (tmp_path / "x.wandb").write_text("hello")
    with pytest.raises(DataError, match="does not begin with :W&B"):
        read_offline_run(tmp_path / "x.wandb")


# --------------------------------------------------------------------------------------------------- W&B in trouble


def only_the_record_goes_on(both: list, run: Path) -> None:
    for logger in both:
        logger.log_metrics({"x": 1.0}, step=1)
    finish(both, {"x": 1})
    assert [row["x"] for row in read_metrics(run)] == [1.0]


def test_without_wandb_there_is_one_warning(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(UserWarning, match=r"W&B did not start .*wandb.*figures are in metrics\.jsonl") as said:
        both = start(tmp_path)
    assert (len(said), len(both)) == (1, 1)
    only_the_record_goes_on(both, tmp_path)
    log_galleries(both, "x", [Gallery(np.zeros((2, 2), np.uint8), "q", [])])


def test_a_failing_start_is_one_warning(tmp_path, monkeypatch):
    def refuse(**_settings):
        raise RuntimeError("no helper")

    monkeypatch.setattr("wandb.init", refuse)
    with pytest.warns(UserWarning, match=r"RuntimeError: no helper") as said:
        both = start(tmp_path)
    assert len(said) == 1
    only_the_record_goes_on(both, tmp_path)


def test_a_helper_that_dies_is_one_warning(tmp_path, monkeypatch):
    both = start(tmp_path)
    run = both[1].experiment

    def gone(*_given, **_named):
        raise ConnectionResetError("Connection lost")

    with monkeypatch.context() as dead:
        dead.setattr(run, "log", gone)
        with pytest.warns(UserWarning, match=r"stopped answering .*Connection lost") as said:
            both[1].log_metrics({"x": 1.0}, step=0)
        assert len(said) == 1
        only_the_record_goes_on(both, tmp_path)
    run.finish()


def test_the_mode_is_offline_unless_a_key_is_configured(tmp_path):
    home = {"HOME": str(tmp_path)}
    assert view._wandb_mode(home) == "offline"
    assert view._wandb_mode(home | {"WANDB_API_KEY": "k"}) == "online"
    assert view._wandb_mode(home | {"WANDB_API_KEY": "k", "WANDB_MODE": "dryrun"}) == "offline"
    assert view._wandb_mode(home | {"WANDB_DISABLED": "true"}) == "disabled"
    with pytest.raises(ConfigError, match="WANDB_MODE is 'ofline'; allowed: online, offline"):
        view._wandb_mode(home | {"WANDB_MODE": "ofline"})
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password k\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert view._wandb_mode(home) == "online"
    assert view._wandb_mode(home | {"WANDB_BASE_URL": "https://own.example:8080"}) == "offline"
    assert view._wandb_mode({"HOME": "/nowhere", "NETRC": str(tmp_path / ".netrc")}) == "online"


def test_disabled_writes_only_the_record(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    both = start(tmp_path)
    only_the_record_goes_on(both, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_importing_tracking_does_not_import_wandb():
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import lossopt.tracking; print('wandb' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert child.stdout == "False\n", child.stderr


def test_a_relative_run_folder_is_found_from_any_working_directory(tmp_path, monkeypatch):
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        logs = loggers(Path("runs"), name=place, config={})
        finish(logs, {"done": 1})  # warns, and here fails, if the file has no end
        assert read_offline_run(Path("runs")).summary["done"] == 1
