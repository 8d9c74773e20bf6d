"""The batches of all processes as one, in the order of their ranks; where there is one process nothing happens.

Letters: w processes, b images of a process, n = w b images of all, d embedding.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lossopt.data.dataset import Batch
from lossopt.errors import ConfigError


class WholeBatch(NamedTuple):
    """What the miner and the loss compare.

    embeddings: (n, d), with gradient. labels, ids, groups: (n,) int64; groups is None where the data has none.
    own: row at which the images of this process begin.
    """

    embeddings: Tensor
    labels: Tensor
    ids: Tensor
    groups: Tensor | None
    own: int


def process_count() -> int:
    """w; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_rows(rows: Tensor) -> Tensor:
    """(b, ...) of every process, of one shape, to (n, ...) on each of them; without gradient."""
    if process_count() == 1:
        return rows
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """(b, d) of every process to (n, d) on each of them. Own code, for torch 2.14 has deprecated its own.

    On the way back a process's rows get the sum of what all processes' losses ask of them. Every process computes the
    loss of the whole batch, so the sum is w times one gradient, and the mean over processes that DDP takes afterwards
    is that gradient exactly. A loss is never scaled.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.size = len(rows)
        return all_rows(rows)

    @staticmethod
    def backward(ctx: Any, of_whole: Tensor) -> Tensor:
        of_whole = of_whole.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(of_whole)  # not reduce_scatter, which older versions of gloo lack
        own = dist.get_rank() * ctx.size
        return of_whole[own : own + ctx.size]


def gather_batch(embeddings: Tensor, batch: Batch) -> WholeBatch:
    """Embeddings (b, d) and batch of this process, joined with those of the others; differentiable."""
    if process_count() == 1:
        return WholeBatch(embeddings, batch.labels, batch.ids, batch.groups, 0)
    columns = [batch.labels, batch.ids, *([] if batch.groups is None else [batch.groups])]
    labels, ids, *groups = all_rows(torch.stack(columns, dim=1).to(embeddings.device)).T.contiguous()
    whole = _Gather.apply(embeddings)
    return WholeBatch(whole, labels, ids, groups[0] if groups else None, dist.get_rank() * len(embeddings))


def check_equal_batches(size: int, device: torch.device) -> None:
    """Refuse batches of unequal size, which would abort the processes inside the communication library.

    Asked before each step, when the device has nothing queued, for any batch may be the odd one: a whole number from
    each process, far less than the gradients that they exchange.

    Raises:
        ConfigError: on every process, so that none waits for another.
    """
    if process_count() == 1:
        return
    sizes = all_rows(torch.tensor([size], device=device)).tolist()
    if len(set(sizes)) > 1:
        raise ConfigError(
            f"The processes have batches of {', '.join(map(str, sizes))} images. The loss compares them as one batch "
            "and needs as many from each: use RetrievalData, which deals equal shares, or drop_last in the loader."
        )
