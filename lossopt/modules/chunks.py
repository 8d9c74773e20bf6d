"""Gradient caching: a batch of any size is embedded with the memory of one chunk, and the loss still sees all of it.

Own code instead of torch.utils.checkpoint: that leaves small pieces of a graph between the large tensors of each chunk,
which keep the C library from using that memory again (17 to 20 MiB a chunk of 128 were lost). Here all that outlives a
chunk is allocated before the second. Letters: b images of a batch, d embedding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states


class _Conditions:
    """What embeddings depend on besides images and weights: random states, precision, and the network's buffers."""

    def __init__(self, images: Tensor, encoder: nn.Module, chunks: int) -> None:
        self.like, self.kind = images[:0], images.device.type
        self.autocast = torch.get_autocast_dtype(self.kind), torch.is_autocast_enabled(self.kind)
        self.devices, _ = get_device_states(self.like)
        self.owners = [
            (module, name) for module in encoder.modules() for name, _ in module.named_buffers(recurse=False)
        ]
        self.noted = [state.new_empty(chunks, *state.shape) for state in self._now()]

    def _buffers(self) -> list[Tensor]:
        return [module.get_buffer(name) for module, name in self.owners]

    def _now(self) -> list[Tensor]:
        return [torch.get_rng_state(), *get_device_states(self.like)[1], *self._buffers()]

    def note(self, chunk: int) -> None:
        """As they are now."""
        for noted, state in zip(self.noted, self._now(), strict=True):
            noted[chunk] = state

    def _set_buffers(self, buffers: list[Tensor]) -> None:
        for (module, name), buffer in zip(self.owners, buffers, strict=True):
            setattr(module, name, buffer)

    @contextmanager
    def again(self, chunk: int) -> Iterator[None]:
        """As they were noted; afterwards as they were just now, the same buffers untouched."""
        cpu, *states = [noted[chunk].clone() for noted in self.noted]
        of_devices, buffers, before = states[: len(self.devices)], states[len(self.devices) :], self._buffers()
        dtype, enabled = self.autocast
        try:
            self._set_buffers(buffers)
            with (
                torch.random.fork_rng(self.devices, device_type=self.kind),
                torch.autocast(self.kind, dtype=dtype, enabled=enabled),
            ):
                torch.set_rng_state(cpu)
                set_device_states(self.devices, of_devices, device_type=self.kind)
                yield
        finally:
            self._set_buffers(before)


class _Cached(torch.autograd.Function):
    """Embeds without a graph; on the way back embeds each chunk once more, with one, and drops it."""

    @staticmethod
    def forward(
        ctx: Any, network: nn.Module, encoder: nn.Module, images: Tensor, parts: tuple[Tensor, ...], *weights: Tensor
    ) -> Tensor:
        ctx.network, ctx.parts, ctx.conditions = network, parts, _Conditions(images, encoder, len(parts))
        ctx.save_for_backward(*weights)
        embeddings, start = images.new_empty(0), 0
        for number, part in enumerate(parts):
            ctx.conditions.note(number)
            found = network(part)
            embeddings = embeddings if number else found.new_empty(len(images), *found.shape[1:])
            embeddings[start : start + len(part)] = found
            start += len(part)
        torch.clear_autocast_cache()  # older versions of torch keep weights that were cast without their graph
        return embeddings

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_embeddings: Tensor) -> tuple[Tensor | None, ...]:
        weights = ctx.saved_tensors
        total: list[Tensor | None] = [None] * len(weights)
        start = 0
        for number, part in enumerate(ctx.parts):
            with ctx.conditions.again(number), torch.enable_grad():
                embeddings = ctx.network(part)
            found = torch.autograd.grad(
                embeddings, weights, of_embeddings[start : start + len(part)], allow_unused=True
            )
            total = [_sum(before, more) for before, more in zip(total, found, strict=True)]
            start += len(part)
        return (None, None, None, None, *total)


def _sum(before: Tensor | None, more: Tensor | None) -> Tensor | None:
    return more if before is None else before if more is None else before + more  # not in place: two may share one


def embed_in_chunks(network: nn.Module, encoder: nn.Module, images: Tensor, chunk_size: int | None) -> Tensor:
    """`network(images)`, at most `chunk_size` images at a time: (b, c, h, w) to (b, d), differentiable once.

    Embeds each chunk without a graph. On the way back, when the loss has said what it asks of every embedding, each
    chunk is embedded once more, differentiated and dropped before the next, with the random numbers (dropout) and the
    precision (autocast) of the first time: a third more work. Without gradients, or with a batch that is no larger than
    a chunk, nothing of this happens.

    Buffers, such as batch norm's running statistics, are updated by the first pass alone, once per chunk; the second
    starts from copies of what the first started from. Batch norm normalises each chunk by itself.

    Args:
        network: from images to embeddings, each image by itself apart from batch norm; gradients go to all its weights.
        encoder: the part of it whose buffers its answers depend on.
        images: the batch.
        chunk_size: None: all at once.

    Source: Gao, Zhang, Han & Callan 2021, arXiv:2101.06983, section 3.2; batch norm: Hoffer, Hubara & Soudry 2017,
    arXiv:1705.08741, algorithm 1 (ghost batch normalisation).
    """
    if chunk_size is None or len(images) <= chunk_size or not torch.is_grad_enabled():
        embeddings: Tensor = network(images)
        return embeddings
    count = -(-len(images) // chunk_size)  # of nearly equal size, for batch norm would make little of a last odd image
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    cached: Tensor = _Cached.apply(network, encoder, images, images.tensor_split(count), *weights)
    return cached
