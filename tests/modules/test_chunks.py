"""Chunks change nothing but the memory: gradients, statistics and random numbers are those of the plain way."""

import copy
import subprocess
import sys

import pytest
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from torch import nn

from lossopt.data import Digits
from lossopt.data.dataset import Batch
from lossopt.data.module import RetrievalData
from lossopt.errors import ConfigError
from lossopt.losses import ContrastiveLoss, TripletLoss
from lossopt.modules import SiameseNetwork, TripletNetwork

B = 23


class Odd(nn.Module):
    """Two weights that get the same gradient tensor, one that is spread over all rows, one that is never used."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.everywhere, self.unused = nn.Parameter(torch.randn(())), nn.Parameter(torch.ones(2))

    def forward(self, x):
        return x * (self.one + self.two) + self.everywhere


def plain():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 6), Odd())


def dropping():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.Dropout(0.4), nn.Tanh(), nn.Linear(40, 6))


def normed():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 6),
        nn.BatchNorm1d(6, momentum=None),
    )  # fmt: skip


def spectral():
    """Its weight depends on a buffer that every forward pass in training changes."""
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    nn.utils.parametrizations.spectral_norm(layers[1])
    return layers


def made(encoder, chunk_size=None, network=TripletNetwork, dtype=torch.float64):
    torch.manual_seed(0)
    loss = TripletLoss(margin=1.0, distance="squared") if network is TripletNetwork else ContrastiveLoss()
    return network(encoder(), loss, chunk_size=chunk_size).to(dtype)


def batch(dtype=torch.float64, rows=B):
    images = torch.rand(B, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch(images[:rows].to(dtype), torch.arange(rows) % 5, torch.arange(rows), 0)


def step(network, given):
    torch.manual_seed(7)
    loss = network.training_step(given, 0)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in network.named_parameters()}


def chunk_by_chunk(network, given, sizes):
    """The same loss on embeddings made in pieces with the graph kept: what chunks have to equal."""
    torch.manual_seed(7)
    embeddings = torch.cat([network(part) for part in given.images.split(sizes)])
    loss = network.loss_fn(embeddings, given.labels)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in network.named_parameters()}


def assert_equal(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found[0], expected[0], rtol=tolerance, atol=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("chunk_size", [1, 5, 22, 23, 100])
@pytest.mark.parametrize("network", [TripletNetwork, SiameseNetwork])
def test_gradients_are_those_of_the_whole_batch(chunk_size, network):
    whole = step(made(plain, network=network), batch())
    assert max(gradient.abs().max() for gradient in whole[1].values() if gradient is not None) > 1e-3
    assert_equal(step(made(plain, chunk_size, network), batch()), whole)


def test_batch_norm_in_evaluation_mode_is_exact_too():
    networks = [made(normed, chunk_size) for chunk_size in (None, 4)]
    for network in networks:
        network.encoder.eval()
    assert_equal(step(networks[1], batch()), step(networks[0], batch()))


@pytest.mark.parametrize("encoder", [dropping, normed, spectral])
def test_whatever_a_chunk_depends_on_is_the_same_when_it_is_embedded_again(encoder):
    """Dropout draws the same numbers; batch norm is that of the chunk; buffers are updated once per chunk."""
    network, expected = made(encoder, 5), made(encoder)
    assert_equal(step(network, batch()), chunk_by_chunk(expected, batch(), [5, 5, 5, 4, 4]))
    buffers = dict(expected.encoder.named_buffers())
    for name, buffer in network.encoder.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    if encoder is normed:
        assert network.encoder[1].num_batches_tracked == 5


def test_the_buffers_are_the_same_tensors_afterwards_and_the_random_numbers_go_on():
    network = made(normed, 5)
    before = dict(network.encoder.named_buffers())
    step(network, batch())
    after_forward = copy.deepcopy(torch.get_rng_state())
    assert all(buffer is before[name] for name, buffer in network.encoder.named_buffers())
    dropout = made(dropping, 5)
    torch.manual_seed(7)
    loss = dropout.training_step(batch(), 0)
    torch.rand(3)
    drawn = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not torch.equal(drawn, after_forward)


def test_a_failing_second_pass_leaves_the_buffers_in_place():
    network = made(normed, 5)
    before = dict(network.encoder.named_buffers())
    loss = network.training_step(batch(), 0)
    network.encoder[4].weight.requires_grad_(False)
    network.encoder[4].register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        loss.backward()
    assert all(buffer is before[name] for name, buffer in network.encoder.named_buffers())


def test_bf16_autocast_is_repeated():
    found, precisions = [], []
    for chunk_size in (None, 5):
        network = made(plain, chunk_size, dtype=torch.float32)
        network.encoder[3].register_forward_hook(lambda module, given, answer: precisions.append(answer.dtype))
        with torch.autocast("cpu", torch.bfloat16):  # as Lightning does: the way back is outside
            loss = network.training_step(batch(torch.float32), 0)
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in network.named_parameters()}))
    assert precisions == [torch.bfloat16] * (1 + 5 + 5)
    assert_equal(found[1], found[0], 2e-3)  # sums of chunks are taken in float32, within the batch in bfloat16


def test_the_graph_of_weights_cast_for_a_chunk_is_not_missed_later():
    """Under autocast a weight is cast once; the cast of the pass without a graph must not serve one with a graph."""
    network = made(plain, 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        network.training_step(batch(torch.float32), 0)
        network(batch(torch.float32).images).sum().backward()
    assert network.encoder[3].weight.grad is not None


def test_without_gradients_and_in_validation_the_batch_is_embedded_at_once():
    network, seen = made(plain, 5), []
    network.encoder.register_forward_hook(lambda module, given, answer: seen.append(len(answer)))
    with torch.no_grad():
        network.training_step(batch(), 0)
        network.validation_step(batch(), 0)
    network.training_step(batch(rows=5), 0)
    assert seen == [B, B, 5]
    network.training_step(batch(), 0)
    assert seen[3:] == [5, 5, 5, 4, 4]


def test_frozen_weights_get_no_gradient():
    network = made(plain, 5)
    network.encoder[0].requires_grad_(False)
    _, gradients = step(network, batch())
    assert gradients["encoder.0.weight"] is None
    assert gradients["encoder.4.unused"] is None
    assert gradients["encoder.3.weight"].abs().sum() > 0


@pytest.mark.parametrize("chunk_size", [0, -3])
def test_a_chunk_has_an_image(chunk_size):
    with pytest.raises(ConfigError, match=rf"chunk_size is {chunk_size}; .* 1 or more"):
        made(plain, chunk_size)


class Gradients(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.found = {name: p.grad.clone() for name, p in pl_module.named_parameters()}


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_a_trainers_step_with_chunks_is_the_one_without(precision):
    found = []
    for chunk_size in (None, 7):
        seed_everything(0, verbose=False)
        watch = Gradients()
        data = RetrievalData(Digits(image_size=16), classes_per_batch=5, images_per_class=4)
        encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 14 * 14, 6))
        trainer = Trainer(
            max_steps=1, limit_val_batches=0, precision=precision, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[watch], accelerator="cpu",
        )  # fmt: skip
        network = TripletNetwork(encoder, TripletLoss(margin=2.0), chunk_size=chunk_size)
        trainer.fit(network, datamodule=data)
        found.append((network.last_step.embeddings, watch.found))
    tolerance = {"32-true": 1e-5, "64-true": 1e-10, "bf16-mixed": 2e-2}[precision]
    assert_equal(found[1], found[0], tolerance)
    assert found[0][0].dtype == (torch.float64 if precision == "64-true" else torch.float32)


PEAK = """
import ctypes
import torch
from torch import nn
from lossopt.modules.chunks import embed_in_chunks

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024

torch.set_num_threads(1)
encoder = nn.Sequential(
    nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3), nn.Flatten(),
    nn.Linear(32 * 121, 16),
)
for rows, chunk_size in ((32, None), (256, 32), (1024, 32), (256, None)):
    images = torch.rand(rows, 1, 28, 28)
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # pages that an earlier pass left free would hide what this one takes
    with open("/proc/self/clear_refs", "w") as marks:
        marks.write("5")  # the peak is counted from here
    before = status("VmRSS")
    embed_in_chunks(encoder, encoder, images, chunk_size).square().sum().backward()
    print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_is_that_of_a_chunk():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=300, check=True)
    _, short, long, whole = map(float, done.stdout.split())
    assert whole > 100, "the measure sees nothing"
    assert max(short, long) < 40
