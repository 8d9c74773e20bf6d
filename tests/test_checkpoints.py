"""Whatever can hurt a checkpoint is done to one here: kills, full disks, damaged files, NaN, misspelt monitors."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from lossopt import checkpoints, durable
from lossopt.checkpoints import (
    BEST,
    CONFIG_KEY,
    FOLDER,
    MANIFEST,
    Checkpoints,
    DurableCheckpointIO,
    WeightHistory,
    list_checkpoint,
    newest_good_checkpoint,
    promote,
    read_manifest,
    weight_history,
)
from lossopt.durable import run_lock, write_whole
from lossopt.errors import ConfigError, LossoptError

ROOT = Path(checkpoints.__file__).parents[1]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:GPU available but not used:UserWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",  # Lightning 2.6 on torch 2.14
)


class SeededOrder(Sampler[int]):
    """A permutation that depends on (seed, epoch) only; Lightning calls set_epoch."""

    def __init__(self, n: int) -> None:
        self.n, self.epoch = n, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self):
        return iter(torch.randperm(self.n, generator=torch.Generator().manual_seed(1000 + self.epoch)).tolist())


class Tiny(LightningModule):
    """Draws from all three global generators at every step, and has an epoch-wise scheduler."""

    def __init__(self, figures=None, kill_at_step=None) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
        self.figures, self.kill_at_step = figures, kill_at_step
        self.losses: dict[int, float] = {}

    def training_step(self, batch, _index):
        if self.global_step == self.kill_at_step:
            os.kill(os.getpid(), signal.SIGKILL)
        x, y = batch
        noise = random.random() + float(np.random.rand()) + torch.rand(())
        loss = ((self.net(x + 0.01 * noise) - y) ** 2).mean()
        self.losses[self.global_step] = loss.item()
        return loss

    def validation_step(self, batch, _index):
        torch.rand(3)
        figure = self.current_epoch if self.figures is None else self.figures[self.current_epoch]
        self.log("val/map@r", float(figure))

    def configure_optimizers(self):
        optimiser = torch.optim.Adam(self.parameters(), lr=0.05)
        return [optimiser], [torch.optim.lr_scheduler.StepLR(optimiser, 1, gamma=0.5)]


def loader(shuffled: bool = True) -> DataLoader:
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(torch.randn(24, 5, generator=generator), torch.randn(24, 1, generator=generator))
    return DataLoader(data, batch_size=4, sampler=SeededOrder(24) if shuffled else None, generator=generator)


def fit(run: Path, epochs: int, model: Tiny, resume: Path | None = None, **trainer_options) -> Checkpoints:
    callback = Checkpoints(run, {"seed": 1, "model": {"width": 8}}, **trainer_options.pop("callback", {}))
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[callback],
        plugins=[DurableCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer_options,
    )
    trainer.fit(model, loader(), loader(shuffled=False), ckpt_path=resume)
    return callback


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def bits(state: object) -> list:
    """All leaves of a nested state, tensors as bytes."""
    if isinstance(state, torch.Tensor):
        return [state.detach().numpy().tobytes()]
    if isinstance(state, dict):
        return [key_or_leaf for key in state for key_or_leaf in (key, *bits(state[key]))]
    if isinstance(state, list | tuple):
        return [leaf for item in state for leaf in bits(item)]
    return [state]


def files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / FOLDER).iterdir())


# ------------------------------------------------------------------------------------------------- a killed run goes on


@pytest.mark.parametrize("kill_at_step", [12, 15, 17])
def test_a_killed_and_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path, kill_at_step):
    """Six steps an epoch: kills at the first, a middle and the last step of epoch 3 of 4."""
    script = f"""
        import sys, torch
        sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
        from pathlib import Path
        import test_checkpoints as t
        torch.set_num_threads(1)
        t.seed_everything(1)
        t.fit(Path({str(tmp_path)!r}) / "killed", 4, t.Tiny(kill_at_step={kill_at_step}))
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120)
    assert child.returncode == -signal.SIGKILL, child.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seed_everything(1)
        straight = Tiny()
        fit(tmp_path / "straight", 4, straight)
        newest = newest_good_checkpoint(tmp_path / "killed")
        assert newest.name == "epoch=002-step=12.ckpt"
        seed_everything(99)
        resumed = Tiny()
        callback = fit(tmp_path / "killed", 4, resumed, resume=newest)
    finally:
        torch.set_num_threads(threads)
    assert resumed.losses == {step: loss for step, loss in straight.losses.items() if step >= 12}
    last = [torch.load(newest_good_checkpoint(tmp_path / name), weights_only=True) for name in ("straight", "killed")]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "lossopt_rng", "epoch", "global_step"):
        assert bits(last[0][key]) == bits(last[1][key]), key
    assert callback.best_value == 3.0
    assert files(tmp_path / "killed") == files(tmp_path / "straight")


def test_kills_during_saves_leave_nothing_unreadable(tmp_path):
    """Eight processes are killed at random moments of a save loop; temporary files are on another file system."""
    shm = Path("/dev/shm")
    script = f"""
        import os, random, signal, sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        import torch, warnings
        from lossopt.checkpoints import *
        from lossopt.checkpoints import list_checkpoint, promote, read_manifest
        torch.set_num_threads(1)
        run, io, newest_step = Path({str(tmp_path)!r}), DurableCheckpointIO(), 0
        folder = run / "checkpoints"
        clock = random.Random(5)
        for kill in range(8):
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                for step in range(newest_step + 1, newest_step + 10**6):
                    name = f"epoch=001-step={{step}}.ckpt"
                    io.save_checkpoint({{"state_dict": {{"w": torch.full((200_000,), float(step))}}}}, folder / name)
                    entry = list_checkpoint(folder, name, step=step, epoch=1, metrics={{}}, keep=2)
                    os.write(writer, step.to_bytes(8, "little"))
                    if step % 2:
                        promote(folder, entry)
            os.close(writer)
            time.sleep(0.1 + 0.4 * clock.random())
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            said = b""
            while part := os.read(reader, 1 << 16):
                said += part
            os.close(reader)
            last_listed = int.from_bytes(said[-8:], "little") if said else newest_step
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # nothing newer may have to be passed over
                path = newest_good_checkpoint(run)
            newest_step = int(io.load_checkpoint(path)["state_dict"]["w"][0])
            assert newest_step in (last_listed, last_listed + 1), (newest_step, last_listed)
            best = folder / "best.ckpt"
            if best.exists():
                assert any(entry.file == best.name and not entry.fault(folder) for entry in read_manifest(folder))
            for whole in folder.glob("*.ckpt"):
                torch.load(whole, weights_only=True)
            assert len(list(folder.glob(".*.part"))) <= 1
        print("saves", newest_step)
    """
    environment = os.environ | ({"TMPDIR": str(shm)} if shm.is_dir() else {})
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 16


# ------------------------------------------------------------------------------------------------------ one save


def test_a_save_is_whole_has_the_umask_mode_and_removes_stale_parts(tmp_path):
    (tmp_path / ".dead.ckpt.part").write_bytes(b"half")
    before = os.umask(0o027)
    try:
        DurableCheckpointIO().save_checkpoint({"a": torch.ones(3)}, tmp_path / "x.ckpt")
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]
    assert stat.S_IMODE((tmp_path / "x.ckpt").stat().st_mode) == 0o640
    assert DurableCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")["a"].tolist() == [1.0, 1.0, 1.0]


def test_a_save_is_synced_before_it_replaces_the_old_file(tmp_path, monkeypatch):
    happened = []
    monkeypatch.setattr(durable.os, "fsync", lambda fd: happened.append(stat.S_ISDIR(os.fstat(fd).st_mode)))
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (happened.append("replace"), rename(self, to))[1])
    write_whole(tmp_path / "x", lambda file: file.write(b"1"))
    assert happened == [False, "replace", True]


def test_a_failed_save_keeps_the_old_file_and_names_path_and_free_bytes(tmp_path, monkeypatch):
    path = tmp_path / "x.ckpt"
    DurableCheckpointIO().save_checkpoint({"a": 1}, path)

    def full_disk(checkpoint, file):
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(LossoptError, match=r"x\.ckpt \(.*No space left on device; \d+ bytes free.*untouched"):
        DurableCheckpointIO().save_checkpoint({"a": 2}, path)
    assert DurableCheckpointIO().load_checkpoint(path) == {"a": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["x.ckpt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is a Linux device")
def test_a_really_full_disk_is_reported_by_torch_and_by_us(tmp_path, monkeypatch):
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *how: opened(Path("/dev/full") if "b" in how[0] else self, *how))
    with pytest.raises(LossoptError, match=r"Cannot save .*bytes free"):
        DurableCheckpointIO().save_checkpoint({"a": torch.ones(100_000)}, tmp_path / "x.ckpt")


def test_a_folder_that_cannot_be_made_is_an_error_not_silence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LossoptError, match=r"Cannot save .*x\.ckpt"):
        DurableCheckpointIO().save_checkpoint({}, tmp_path / "file" / "x.ckpt")


# ------------------------------------------------------------------------------------------------------ one load


class Payload:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "truncated"),
        (lambda path: path.write_text("<html>404"), "not a checkpoint .*<htm"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: torch.save(Payload(), path), "could run code"),
    ],
)
def test_a_bad_file_is_refused_with_its_cause(tmp_path, damage, message):
    path = tmp_path / "x.ckpt"
    torch.save({"a": torch.ones(500)}, path)
    damage(path)
    with pytest.raises(LossoptError, match=message):
        DurableCheckpointIO().load_checkpoint(path)


def test_code_and_urls_are_refused(tmp_path):
    with pytest.raises(LossoptError, match="is a URL"):
        DurableCheckpointIO().load_checkpoint("https://example.org/x.ckpt")
    with pytest.raises(LossoptError, match="would run code"):
        DurableCheckpointIO().load_checkpoint(tmp_path / "x.ckpt", weights_only=False)


def test_a_flipped_bit_is_refused_by_sha256(tmp_path):
    save(tmp_path, 1)
    flip_a_bit(tmp_path / FOLDER / "epoch=001-step=1.ckpt")
    with pytest.raises(LossoptError, match="sha256"):
        DurableCheckpointIO().load_checkpoint(tmp_path / FOLDER / "epoch=001-step=1.ckpt")


# ------------------------------------------------------------------------------------------------------ the manifest


def save(run: Path, step: int, keep: int = 2, **metrics: float) -> checkpoints.Entry:
    folder, name = run / FOLDER, f"epoch={step:03d}-step={step}.ckpt"
    DurableCheckpointIO().save_checkpoint({"w": torch.full((2000,), float(step))}, folder / name)
    return list_checkpoint(folder, name, step=step, epoch=step, metrics=metrics, keep=keep)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_manifest_lists_the_newest_two_and_the_best(tmp_path):
    promote(tmp_path / FOLDER, save(tmp_path, 1, good=2.0, bad=float("nan")))
    for step in (2, 3, 4):
        save(tmp_path, step, good=1.0)
    assert files(tmp_path) == [BEST, "epoch=003-step=3.ckpt", "epoch=004-step=4.ckpt", MANIFEST]
    entries = read_manifest(tmp_path / FOLDER)
    assert [(entry.file, entry.step) for entry in entries] == [
        (BEST, 1),
        ("epoch=003-step=3.ckpt", 3),
        ("epoch=004-step=4.ckpt", 4),
    ]
    assert not any(entry.fault(tmp_path / FOLDER) for entry in entries)
    assert entries[0].metrics["good"] == 2.0
    assert np.isnan(entries[0].metrics["bad"])
    json.loads((tmp_path / FOLDER / MANIFEST).read_text(), parse_constant=pytest.fail)
    assert newest_good_checkpoint(tmp_path).name == "epoch=004-step=4.ckpt"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: os.truncate(path, 100), "100 bytes instead of"),
        (flip_a_bit, "sha256"),
        (lambda path: path.unlink(), "missing"),
    ],
)
def test_a_damaged_newest_is_passed_over_and_named(tmp_path, damage, reason):
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / FOLDER / "epoch=002-step=2.ckpt")
    with pytest.warns(UserWarning, match=rf"step=2\.ckpt was passed over: .*{reason}.*Using epoch=001"):
        assert newest_good_checkpoint(tmp_path).name == "epoch=001-step=1.ckpt"
    os.truncate(tmp_path / FOLDER / "epoch=001-step=1.ckpt", 0)
    with pytest.raises(LossoptError, match=r"No checkpoint in .* is good .*step=2.*step=1.*afresh"):
        newest_good_checkpoint(tmp_path)


def test_no_manifest_is_none_and_a_damaged_one_an_error(tmp_path):
    assert newest_good_checkpoint(tmp_path) is None
    save(tmp_path, 1)
    (tmp_path / FOLDER / MANIFEST).write_text("{")
    with pytest.raises(LossoptError, match=r"manifest\.json is unreadable"):
        newest_good_checkpoint(tmp_path)


@pytest.mark.parametrize("stop_before", range(3))
def test_a_kill_at_any_point_of_a_promotion_leaves_a_listed_best(tmp_path, monkeypatch, stop_before):
    folder = tmp_path / FOLDER
    promote(folder, save(tmp_path, 1))
    entry = save(tmp_path, 2)
    writes, whole = [], checkpoints.write_whole

    def killed(path, write):
        if len(writes) == stop_before:
            raise KeyboardInterrupt
        writes.append(path)
        whole(path, write)

    monkeypatch.setattr(checkpoints, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        promote(folder, entry)
    listed = [found for found in read_manifest(folder) if found.file == BEST and not found.fault(folder)]
    assert [found.step for found in listed] == [2 if stop_before == 2 else 1]
    assert newest_good_checkpoint(tmp_path).name == "epoch=002-step=2.ckpt"
    DurableCheckpointIO().load_checkpoint(folder / BEST)


# ------------------------------------------------------------------------------------------------------ the callback


@pytest.mark.parametrize(
    ("mode", "figures", "best_epoch", "best_value"),
    [
        ("max", [0.2, float("nan"), 0.5, float("inf"), 0.5], 3, 0.5),
        ("min", [0.2, float("nan"), 0.1, float("-inf"), 0.1], 3, 0.1),
        ("max", [float("nan")] * 5, None, None),
    ],
)
def test_the_best_is_the_best_finite_one(tmp_path, mode, figures, best_epoch, best_value):
    callback = fit(tmp_path, 5, Tiny(figures), callback={"mode": mode})
    kept = ["epoch=004-step=24.ckpt", "epoch=005-step=30.ckpt", MANIFEST]
    if best_epoch is None:
        assert (files(tmp_path), callback.best_path, callback.best_model_path) == (kept, None, "")
        return
    assert files(tmp_path) == [BEST, *kept]
    assert callback.best_value == pytest.approx(best_value)
    assert callback.best_path == tmp_path / FOLDER / BEST
    stored = torch.load(callback.best_path, weights_only=True)
    assert stored["global_step"] == 6 * best_epoch
    assert stored[CONFIG_KEY] == {"seed": 1, "model": {"width": 8}}


def test_a_monitor_that_is_never_logged_is_refused_at_the_first_validation(tmp_path):
    model = Tiny()
    with pytest.raises(ConfigError, match=r"'val/mapr'.*Logged are: val/map@r"):
        fit(tmp_path, 3, model, val_check_interval=3, callback={"monitor": "val/mapr"})
    assert max(model.losses) == 2
    with pytest.raises(ConfigError, match="no such metric"):
        fit(tmp_path / "none", 1, Tiny(), limit_val_batches=0)


def test_epochs_without_validation_are_saved_but_never_best(tmp_path):
    callback = fit(tmp_path, 3, Tiny([9, 1, 9]), check_val_every_n_epoch=2)
    assert callback.best_value == 1.0
    assert torch.load(callback.best_path, weights_only=True)["global_step"] == 12


def test_without_a_monitor_only_the_newest_are_kept(tmp_path):
    fit(tmp_path, 3, Tiny(), callback={"monitor": None, "keep": 1})
    assert files(tmp_path) == ["epoch=003-step=18.ckpt", MANIFEST]


def test_a_resumed_run_keeps_the_best_of_the_part_before(tmp_path):
    fit(tmp_path, 2, Tiny([5, 1]))
    callback = fit(tmp_path, 4, Tiny([0, 0, 2, 3]), resume=newest_good_checkpoint(tmp_path))
    assert (callback.best_value, callback.best_path) == (5.0, tmp_path / FOLDER / BEST)
    assert torch.load(callback.best_path, weights_only=True)["global_step"] == 6


def test_a_best_that_was_saved_but_not_yet_copied_is_copied_on_resume(tmp_path, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(checkpoints, "promote", lambda folder, entry: sys.exit(9))
        with pytest.raises(SystemExit):
            fit(tmp_path, 2, Tiny([5, 1]))
    assert BEST not in files(tmp_path)
    fit(tmp_path, 3, Tiny([0, 1, 2]), resume=newest_good_checkpoint(tmp_path))
    assert torch.load(tmp_path / FOLDER / BEST, weights_only=True)["global_step"] == 6


def test_a_fresh_start_among_old_checkpoints_is_refused_and_a_finished_run_is_finished(tmp_path):
    fit(tmp_path, 2, Tiny())
    with pytest.raises(ConfigError, match="--resume"):
        fit(tmp_path, 2, Tiny())
    model = Tiny()
    fit(tmp_path, 2, model, resume=newest_good_checkpoint(tmp_path))
    assert not model.losses


def test_a_config_that_could_not_be_loaded_again_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="JSON types only"):
        Checkpoints(tmp_path, {"path": tmp_path})
    with pytest.raises(ConfigError, match="'max' and 'min'"):
        Checkpoints(tmp_path, {}, mode="highest")


def test_a_fast_development_run_saves_nothing(tmp_path):
    fit(tmp_path, 1, Tiny(), fast_dev_run=True)
    assert not (tmp_path / FOLDER).exists()


# ------------------------------------------------------------------------------------------------------ the lock


def test_a_second_run_in_the_folder_is_refused_until_the_first_dies(tmp_path):
    script = f"""
        import sys, time, os
        sys.path.insert(0, {str(ROOT)!r})
        from lossopt.durable import run_lock
        with run_lock({str(tmp_path)!r}):
            child = os.fork()  # a loading worker, which outlives its parent for a while
            if not child:  # tells by itself that it is up and has let go of the lock
                print(os.getpid(), flush=True)
            time.sleep(60)
    """
    first = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    worker = int(first.stdout.readline())
    try:
        with pytest.raises(ConfigError, match="Another run is at work in"), run_lock(tmp_path):
            pytest.fail("two runs in one folder")
        first.kill()
        first.wait()
        with run_lock(tmp_path):
            pass
    finally:
        first.stdout.close()
        os.kill(worker, signal.SIGKILL)
    with run_lock(tmp_path), pytest.raises(ConfigError), run_lock(tmp_path):
        pytest.fail("two runs in one process")


def test_the_lock_is_released_after_a_failure(tmp_path):
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        raise ZeroDivisionError
    with warnings.catch_warnings(), run_lock(tmp_path):
        warnings.simplefilter("error")


# ------------------------------------------------------------------------------------------------------ all weights


class Recorded(Tiny):
    """Remembers its weights at the start and after each epoch."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.seen: dict[int, dict[str, torch.Tensor]] = {}

    def note(self, epoch: int) -> None:
        self.seen[epoch] = {name: value.clone() for name, value in self.state_dict().items()}

    def on_train_start(self):
        if self.global_step == 0:
            self.note(0)

    def on_train_epoch_end(self):
        self.note(self.current_epoch + 1)


def fit_with_history(run: Path, epochs: int, model: Tiny, resume: Path | None = None, **options) -> Trainer:
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        default_root_dir=run,
        callbacks=[Checkpoints(run, {}), WeightHistory()],
        plugins=[DurableCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, loader(), loader(shuffled=False), ckpt_path=resume)
    return trainer


def test_the_history_holds_the_weights_of_every_epoch_and_the_manifest_none_of_them(tmp_path):
    model = Recorded()
    fit_with_history(tmp_path, 4, model)
    kept = weight_history(tmp_path)
    assert list(kept) == [0, 1, 2, 3, 4]
    assert [path.name for path in kept.values()] == [f"epoch=00{epoch}.pt" for epoch in range(5)]
    for epoch, path in kept.items():
        loaded = torch.load(path, weights_only=True)
        assert bits(loaded) == bits(model.seen[epoch]), epoch
        assert bits(DurableCheckpointIO().load_checkpoint(path)) == bits(loaded)
    assert {entry.file for entry in read_manifest(tmp_path / FOLDER)} == {
        BEST,
        "epoch=003-step=18.ckpt",
        "epoch=004-step=24.ckpt",
    }
    assert weight_history(tmp_path / "none") == {}


def test_a_resumed_run_has_no_gap_in_its_history_and_no_second_start(tmp_path):
    straight, first, resumed = Recorded(), Recorded(), Recorded()
    seed_everything(1)
    fit_with_history(tmp_path / "straight", 4, straight)
    seed_everything(1)
    fit_with_history(tmp_path / "again", 2, first)
    start = weight_history(tmp_path / "again")[0].stat().st_mtime_ns
    seed_everything(9)
    fit_with_history(tmp_path / "again", 4, resumed, resume=newest_good_checkpoint(tmp_path / "again"))
    one, other = (weight_history(tmp_path / name) for name in ("straight", "again"))
    assert list(other) == [0, 1, 2, 3, 4] and other[0].stat().st_mtime_ns == start
    for epoch in one:
        assert bits(torch.load(one[epoch], weights_only=True)) == bits(torch.load(other[epoch], weights_only=True))


def test_the_history_of_an_epoch_is_there_before_its_checkpoint(tmp_path, monkeypatch):
    def killed(*_args, **_names):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "list_checkpoint", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit_with_history(tmp_path, 1, Tiny())
    assert list(weight_history(tmp_path)) == [0, 1]


def test_the_history_is_in_float32_and_a_trial_leaves_none(tmp_path):
    model = Tiny().double()
    model.register_buffer("count", torch.tensor(3))
    trainer = Trainer(default_root_dir=tmp_path, logger=False, enable_checkpointing=False, accelerator="cpu")
    WeightHistory().on_train_start(trainer, model)
    kept = torch.load(weight_history(tmp_path)[0], weights_only=True)
    assert {str(value.dtype) for value in kept.values()} == {"torch.float32", "torch.int64"}
    fit_with_history(tmp_path / "trial", 1, Tiny(), fast_dev_run=True)
    assert not (tmp_path / "trial").exists()
