"""Rules of training health: each fault is named once, with its numbers, and healthy runs are left in peace."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lossopt.callbacks import FiniteGuard, TrainingHealth
from lossopt.data.dataset import Batch
from lossopt.errors import DataError, LossoptError, NonFiniteError
from lossopt.health import KINDS, TRY_FIRST, Bounds, HealthLog, Reading, Sign, read_health
from lossopt.losses import SoftMarginTripletLoss, TripletLoss
from lossopt.miners import BatchHardMiner
from lossopt.modules import TripletNetwork
from lossopt.modules.embedding import StepRecord

HEALTHY = Reading(
    step=0,
    idle_steps=0,
    images=128,
    loss=0.15,
    collapsed_loss=0.2,
    alike=(),
    spread=0.8,
    effective_rank=17.0,
    embedding_norm=1.0,
    gradient_norm=1.5,
    tuples=128,
    mined=True,
    share_active=1.0,
)


def followed(*changes, log=None, every=10):
    """A log after readings that differ from a healthy one; what began, with the number of the reading that began it."""
    log, begun = log or HealthLog(), []
    for number, change in enumerate(changes, start=1):
        found, _ = log.read(HEALTHY._replace(step=every * number, **change))
        begun += [(number, finding.kind) for finding in found]
    return log, begun


def test_a_healthy_run_is_left_in_peace():
    noisy = [{"loss": 0.1 + 0.1 * (n % 2), "gradient_norm": 0.5 + n % 7, "spread": 0.5 + n / 100} for n in range(50)]
    log, begun = followed(*noisy)
    assert begun == [] and log.findings == {} and log.readings == 50 and log.steps == 500


@pytest.mark.parametrize(
    ("kind", "fault", "begins"),
    [
        ("collapse", {"alike": ("the vectors are nearly equal (spread 0.001)",)}, 4),
        ("collapse", {"loss": 0.201, "spread": 0.03}, 4),
        ("collapse", {"loss": math.log(2) * 1.01, "collapsed_loss": math.log(2), "spread": 0.03}, 4),
        ("dead mining", {"tuples": 1, "share_active": 1.0}, 4),
        ("dead mining", {"tuples": 0, "share_active": None, "loss": None}, 4),
        ("dead mining", {"share_active": 0.005}, 4),
        ("dead mining", {"tuples": 47_616, "mined": False, "share_active": 0.002}, 4),
        ("stuck", {"gradient_norm": 0.0}, 4),
        ("stuck", {"gradient_norm": 1e-7}, 4),
        ("exploding embeddings", {"embedding_norm": 101.0}, 3),
        ("exploding gradient", {"gradient_norm": 151.0}, 3),
    ],
)
def test_a_fault_is_named_after_its_patience_and_once(kind, fault, begins):
    log, begun = followed({}, *[fault] * 6)
    assert begun == [(begins, kind)]
    finding = log.findings[kind]
    assert (finding.first_step, finding.last_step, finding.steps) == (20, 70, 6)
    assert finding.text.startswith("steps 20 to 70: ") and finding.text.endswith(f"Try first: {finding.try_first}.")


@pytest.mark.parametrize(
    "fault",
    [
        {"loss": 0.2},  # at the margin, but spread out: nothing learnt yet
        {"spread": 0.03},  # came nearer, with a loss that still tells classes apart
        {"loss": 0.18, "spread": 0.03},
        {"loss": 0.2, "collapsed_loss": None, "spread": 0.03},
        {"loss": 0.2, "spread": 0.09},
        {"share_active": 0.011},
        {"tuples": 1e8, "mined": False, "share_active": 1e-4},  # of very many a low share is plenty
        {"tuples": 2.0, "share_active": 1.0},
        {"tuples": None, "share_active": None},
        {"gradient_norm": 1e-5},
        {"gradient_norm": 149.0},
        {"embedding_norm": 99.0},
        {"gradient_norm": None},
    ],
)
def test_what_is_no_fault(fault):
    assert followed({}, *[fault] * 6)[1] == []


@pytest.mark.parametrize("fault", [{"alike": ("x",)}, {"share_active": 0.0}, {"gradient_norm": 0.0}])
def test_a_fault_that_does_not_last_is_not_named(fault):
    log, begun = followed({}, *[fault, fault, {}] * 5)
    assert begun == [] and not log.findings


def test_a_fault_that_ended_keeps_its_last_step():
    log, _ = followed({}, *[{"share_active": 0.0}] * 4, {}, {})
    assert (log.findings["dead mining"].first_step, log.findings["dead mining"].last_step, log.steps) == (20, 50, 70)


def test_small_norms_may_grow_a_hundredfold_without_exploding():
    small = [{"gradient_norm": 0.001, "embedding_norm": 0.001}] * 5
    assert followed(*small, *[{"gradient_norm": 1.0, "embedding_norm": 1.0}] * 5)[1] == []


def test_an_explosion_from_the_first_steps_is_seen():
    norms = [3.4, 154, 1058, 2736, 2965]
    assert followed(*({"embedding_norm": norm} for norm in norms))[1] == [(4, "exploding embeddings")]
    growing = [8, 1000, 2000, 3000, 4000]
    assert followed(*({"gradient_norm": norm} for norm in growing))[1] == [(3, "exploding gradient")]


def test_one_cause_is_one_finding():
    gone = {"gradient_norm": 0.0, "alike": ("equal",)}
    assert followed({}, *[gone] * 5)[1] == [(4, "collapse")]
    assert followed({}, *[{"gradient_norm": 0.0, "share_active": 0.0}] * 5)[1] == [(4, "dead mining")]
    empty = [{"tuples": 0, "loss": None, "share_active": None, "idle_steps": 30 * n} for n in range(6)]
    assert followed({}, *empty, every=50)[1] == [(4, "dead mining")]


def test_idle_steps_are_counted_over_all_steps():
    assert followed({"idle_steps": 2}, {"idle_steps": 2})[1] == []  # too few to judge
    log, begun = followed(*({"idle_steps": 11 * n} for n in (1, 2)), every=100)
    assert begun == [(1, "idle steps")] and log.findings["idle steps"].numbers["share"] == pytest.approx(0.11)
    assert followed(*({"idle_steps": 10 * n} for n in (1, 2)), every=100)[1] == []
    fresh = HealthLog()
    assert fresh.after_epoch(12, 1) == []
    assert "33% of the steps had nothing to compare (4 of 12)" in fresh.after_epoch(12, 4)[0].text
    assert fresh.after_epoch(12, 4) == []


def test_what_is_seen_elsewhere_begins_at_once_and_leaves_a_known_finding_its_words():
    log = HealthLog()
    sign = Sign({"spread": 0.0}, "the embeddings of the validation split have collapsed")
    assert [finding.kind for finding in log.add("collapse", sign, 30)] == ["collapse"]
    log, _ = followed({}, *[{"loss": 0.2, "spread": 0.01}] * 3)
    assert log.add("collapse", sign, 45) == []
    finding = log.findings["collapse"]
    assert (finding.last_step, finding.steps) == (45, 3) and "validation" not in finding.what
    assert finding.numbers["loss"] == 0.2 and finding.numbers["first_spread"] == 0.8


def test_it_goes_on_where_it_was_after_a_resume():
    changes = [{}, {}, *[{"alike": ("equal",), "embedding_norm": 150.0}] * 2]
    whole, resumed = followed(*changes, *[changes[-1]] * 3)[0], HealthLog()
    before, _ = followed(*changes)
    resumed.load_state_dict(json.loads(json.dumps(before.state_dict())))
    for number in range(5, 8):
        resumed.read(HEALTHY._replace(step=10 * number, **changes[-1]))
    assert resumed == whole and set(whole.findings) == {"collapse", "exploding embeddings"}


def test_bounds_may_be_others():
    log, begun = followed({}, {"share_active": 0.2}, log=HealthLog(Bounds(patience=1, active=0.3)))
    assert begun == [(2, "dead mining")] and "20.00% of 128 tuples" in log.findings["dead mining"].text


def test_every_kind_has_advice():
    assert set(TRY_FIRST) == set(KINDS)


def test_health_json_can_be_read_again(tmp_path):
    log, _ = followed({}, *[{"share_active": 0.0}] * 4)
    assert read_health(tmp_path) is None
    (tmp_path / "health.json").write_text(json.dumps(log.as_json()))
    record = read_health(tmp_path)
    assert (record.steps, record.readings, record.findings) == (50, 5, (log.findings["dead mining"],))
    (found,) = json.loads((tmp_path / "health.json").read_text())["findings"]
    assert {"kind", "first_step", "last_step", "steps", "numbers", "what", "try_first", "text"} == set(found)
    for broken in ("[]", "{", '{"findings": [{}]}'):
        (tmp_path / "health.json").write_text(broken)
        with pytest.raises(DataError, match=r"Cannot read .*health\.json"):
            read_health(tmp_path)


class Embedding(nn.Module):
    """What stands for an encoder: the images are the embeddings, times a weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return images.flatten(1) * self.weight


class Trainer(SimpleNamespace):
    """What callbacks ask of a trainer, without one."""

    def __init__(self, callbacks=(), **known):
        logged = []
        logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.append(metrics))
        group = SimpleNamespace(param_groups=[{"lr": 0.1, "params": []}])
        names = SimpleNamespace(training_table=lambda: SimpleNamespace(names=[f"{n}.png" for n in range(100)]))
        super().__init__(
            **dict(
                callbacks=callbacks, log_every_n_steps=2, world_size=1, current_epoch=0, global_step=0, logged=logged
            ),
            **dict(loggers=[logger], optimizers=[group], datamodule=names, is_global_zero=True),
            **dict(precision_plugin=SimpleNamespace(), **known),
        )


def network(embeddings, loss_fn=None, tuples=8, images=None):
    """A network whose last step compared these (n, d) embeddings, classes of four."""
    labels, ids = torch.arange(len(embeddings)) // 4, torch.arange(len(embeddings)) + 10
    made = TripletNetwork(Embedding(), loss_fn or TripletLoss(), BatchHardMiner())
    made.all_gather = lambda values: values
    made.loss_fn.share_active = torch.ones(())
    batch = Batch(embeddings[:, :, None, None] if images is None else images, labels, ids, 0)
    made.last_step = StepRecord(batch, embeddings, labels, ids, 0, tuples)
    return made


def steps(health, trainer, net, count, loss):
    for number in range(count):
        health.on_train_batch_end(
            trainer, net, {"loss": loss} if loss is not None else None, net.last_step.batch, number
        )


def test_collapsed_embeddings_are_said_once_written_and_logged_as_flags(tmp_path):
    said = []
    health, trainer = TrainingHealth(tmp_path, said.append), Trainer()
    spread_out = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    steps(health, trainer, network(spread_out), 2, torch.tensor(0.1))
    alike = 1 + 1e-5 * spread_out
    steps(health, trainer, network(alike, SoftMarginTripletLoss()), 12, torch.tensor(math.log(2)))
    (line,) = said
    assert line.startswith("health     steps 4 to 8: the embeddings have collapsed") and "0.6931 when all are" in line
    assert [row["health/collapse"] for row in trainer.logged] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert all(row["health/dead_mining"] == row["health/stuck"] == 0 for row in trainer.logged)
    (found,) = read_health(tmp_path).findings
    assert (found.kind, found.first_step) == ("collapse", 4)
    assert health.close(trainer) == [health.history.findings["collapse"].text]
    assert read_health(tmp_path).findings[0].last_step == 14
    again = TrainingHealth()
    again.load_state_dict(json.loads(json.dumps(health.state_dict())))
    assert again.history == health.history


def test_a_miner_that_finds_nothing_is_dead_though_no_step_is_made(tmp_path):
    said = []
    health, trainer = TrainingHealth(tmp_path, said.append), Trainer()
    steps(health, trainer, network(torch.randn(16, 6), tuples=0), 8, None)
    assert len(said) == 1 and "the miner finds 0 tuples in a batch of 16 images" in said[0]
    assert all("train/loss" not in row and row["miner/tuples"] == 0 for row in trainer.logged)


def test_nothing_is_read_from_the_device_between_logging_steps(monkeypatch):
    health, trainer, net = TrainingHealth(), Trainer(), network(torch.randn(16, 6))
    trainer.log_every_n_steps = 100
    steps(health, trainer, net, 1, torch.tensor(0.1))

    def never(self, *_given):
        raise AssertionError("a read from the device")

    for name in ("item", "tolist", "__float__", "__bool__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, never)
    steps(health, trainer, net, 50, torch.tensor(0.1))
    assert health.steps == 51


def bad_rows(rows, count=8):
    values = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    values[rows] = math.nan
    return values


@pytest.mark.parametrize(
    ("images", "embeddings", "words"),
    [
        (bad_rows([2]), bad_rows(range(8)), r"1 of 8 images hold a NaN or an infinity, first 12\.png"),
        (bad_rows([]), bad_rows([1, 5]), r"2 of 8 images become NaN, first 11\.png, 15\.png"),
        (bad_rows([]), bad_rows([]), "what the loss saw is finite, so the loss or its gradient overflowed"),
    ],
)
def test_non_finite_gradients_stop_the_run_name_the_images_and_stay_a_finding(tmp_path, images, embeddings, words):
    health = TrainingHealth(tmp_path)
    guard = FiniteGuard(tmp_path, health)
    health.steps = 41
    net = network(embeddings, images=images[:, :, None, None])
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, math.nan])
    trainer, optimizer = Trainer(), SimpleNamespace(param_groups=[{"params": [weight]}])
    with pytest.raises(NonFiniteError, match=words) as stopped:
        guard.on_before_optimizer_step(trainer, net, optimizer)
    health.on_exception(trainer, net, stopped.value)
    (found,) = read_health(tmp_path).findings
    assert (found.kind, found.first_step) == ("non-finite", 42)
    assert (tmp_path / "nonfinite_batch.txt").read_text().splitlines()[2] == "12\t12.png"


def test_nan_embeddings_do_not_hide_behind_a_miner_that_finds_nothing(tmp_path):
    guard, trainer = FiniteGuard(tmp_path), Trainer()
    fine, bad = network(torch.randn(8, 3), tuples=0), network(bad_rows([3]), tuples=0)
    guard.on_train_batch_end(trainer, fine, None, fine.last_step.batch, 0)
    guard.on_train_batch_end(trainer, bad, {"loss": torch.tensor(0.0)}, bad.last_step.batch, 0)
    with pytest.raises(NonFiniteError, match=r"13\.png"):
        guard.on_train_batch_end(trainer, bad, None, bad.last_step.batch, 0)


def test_a_failure_to_write_does_not_hide_what_stopped_the_run(tmp_path):
    (tmp_path / "file").touch()
    health = TrainingHealth(tmp_path / "file")
    with pytest.raises(LossoptError, match=r"health\.json"):
        health.close(Trainer())
    health.on_exception(Trainer(), None, ValueError("the cause"))
