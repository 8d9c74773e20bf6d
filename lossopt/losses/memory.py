"""Cross-batch memory: the embeddings of earlier batches, kept as further rows to compare a batch with.

Letters: n rows of a batch, s rows of the memory, m reference rows, d embedding.
"""

import copy
import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lossopt.losses.classes import Classes


def _takes_own(component: nn.Module) -> bool:
    return "own" in inspect.signature(component.forward).parameters


class CrossBatchMemory(nn.Module):
    """Any loss, with positives and negatives from the batch and from the last `size` embeddings before it.

    The reference of the loss is the batch itself, with gradient, followed by the memory, without; a row is never
    compared with itself. After the loss the batch enters the memory, the oldest rows leave it. The memory, its place
    and its fill are in the state dict: a resumed run goes on with the very same numbers.

    With several processes the batches of all of them enter the memory of each, so all have the same.

    Args:
        loss: any loss of lossopt, or one of pytorch-metric-learning that takes `ref_emb` (with a miner of lossopt, or
            with every pair: n (n + size) index numbers).
        embedding_size: d.
        size: rows kept; 4,096 rows of 128 numbers are 2 MiB. Of a batch larger than this its last rows are kept.
        miner: of lossopt, of the kind that the loss takes; it chooses among the batch and the memory. None: everything
            is compared.
        start_after: training steps before the memory is used; it is filled meanwhile. Early on embeddings drift too
            fast for old ones to be of use (the authors wait for 1,000 steps).

    Raises:
        ValueError: a size below 1, a loss that takes no reference, or a miner that cannot leave out self-pairs, looks
            at groups, or goes with a loss that takes no tuples.

    Source: Wang, Zhang, Huang & Scott 2020, CVPR, "Cross-batch memory for embedding learning", algorithm 1.
    """

    memory: Tensor
    memory_labels: Tensor

    def __init__(
        self,
        loss: nn.Module,
        embedding_size: int,
        size: int = 4096,
        miner: nn.Module | None = None,
        start_after: int = 0,
    ) -> None:
        super().__init__()
        for name, given, least in (("embedding_size", embedding_size, 1), ("size", size, 1)):
            if given < least:
                raise ValueError(f"CrossBatchMemory {name} must be {least} or more, got {given}.")
        if start_after < 0:
            raise ValueError(f"CrossBatchMemory start_after must be 0 or more steps, got {start_after}.")
        _check_loss(loss, embedding_size)
        _check_miner(loss, miner)
        self.loss, self.miner, self.size, self.start_after = loss, miner, size, start_after
        self.register_buffer("memory", torch.zeros(size, embedding_size))
        self.register_buffer("memory_labels", torch.zeros(size, dtype=torch.int64))
        self.place = self.filled = self.steps = 0

    @property
    def embedding_size(self) -> int:
        """d."""
        return self.memory.shape[1]

    @property
    def tuples(self) -> str | None:
        """What the wrapped loss consumes; None where it does not say."""
        return getattr(self.loss, "tuples", None)

    @property
    def tuple_count(self) -> Tensor | None:
        """Of the wrapped loss, at the last step."""
        return getattr(self.loss, "tuple_count", None)

    @property
    def share_active(self) -> Tensor | None:
        """Of the wrapped loss, at the last step."""
        return getattr(self.loss, "share_active", None)

    @property
    def collapsed_value(self) -> float | None:
        """Of the wrapped loss."""
        return getattr(self.loss, "collapsed_value", None)

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: Sequence[Tensor] | None = None) -> Tensor:
        """Loss of the batch against itself and the memory, 0-dim; in training the batch then enters the memory.

        Args:
            embeddings: (n, d).
            labels: (n,) int64.
            indices_tuple: None; the field's call has it, but a miner outside sees the batch alone.

        Raises:
            ValueError: indices are given, or the embeddings do not have `embedding_size` columns.
        """
        if indices_tuple is not None:
            raise ValueError(
                "CrossBatchMemory compares the batch with its memory, which a miner outside does not see; give the "
                "miner to CrossBatchMemory(miner=...), and no indices."
            )
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_size:
            raise ValueError(
                f"CrossBatchMemory has embedding_size {self.embedding_size}, but the embeddings are of shape "
                f"{tuple(embeddings.shape)}; set embedding_size to that of the encoder."
            )
        if labels.ndim != 1:
            raise ValueError(f"CrossBatchMemory keeps one label of each row, got labels {tuple(labels.shape)}.")
        labels = labels.to(embeddings.device, torch.int64)
        found = self._compare(embeddings, labels)
        if self.training:
            self._enqueue(embeddings.detach(), labels)
        return found

    def _compare(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        used = self.filled if self.steps >= self.start_after else 0
        reference = torch.cat((embeddings, self.memory[:used]))  # in the wider of their two types
        ref_labels = torch.cat((labels, self.memory_labels[:used]))
        indices = None
        if self.miner is not None:
            indices = self.miner(embeddings, labels, reference, ref_labels, own=0)
        if _takes_own(self.loss):
            return self.loss(embeddings, labels, indices, reference, ref_labels, own=0)
        if indices is None:
            relation, rows = Classes(labels, ref_labels, own=0), len(labels)
            same, different = relation.same(0, rows), relation.different(0, rows)
            indices = (*same.nonzero(as_tuple=True), *different.nonzero(as_tuple=True))
        return self.loss(embeddings, labels, indices, reference, ref_labels)

    @torch.no_grad()
    def _enqueue(self, embeddings: Tensor, labels: Tensor) -> None:
        kept = min(len(embeddings), self.size)
        places = (torch.arange(kept, device=self.memory.device) + self.place) % self.size
        self.memory[places] = embeddings[-kept:].to(self.memory.dtype)
        self.memory_labels[places] = labels[-kept:]
        self.place = (self.place + kept) % self.size
        self.filled = min(self.filled + kept, self.size)
        self.steps += 1

    def get_extra_state(self) -> Tensor:
        """(3,) int64: place of the next row, rows filled, training steps."""
        return torch.tensor([self.place, self.filled, self.steps])

    def set_extra_state(self, state: Tensor) -> None:
        """Continue where `get_extra_state` was taken."""
        self.place, self.filled, self.steps = state.tolist()


def _check_loss(loss: nn.Module, embedding_size: int) -> None:
    """Asks a copy of a loss that is not ours, on a few rows, whether it takes a reference."""
    if isinstance(loss, CrossBatchMemory):
        raise ValueError("CrossBatchMemory wraps a loss, not another CrossBatchMemory; give it that one's loss.")
    if _takes_own(loss):
        return
    rows, labels, none = torch.ones(4, embedding_size), torch.arange(4) // 2, torch.empty(0, dtype=torch.int64)
    try:
        copy.deepcopy(loss)(rows, labels, (none,) * 4, rows.clone(), labels)
    except (ValueError, TypeError, NotImplementedError) as refused:
        if isinstance(refused, TypeError) or "ref_" in str(refused):
            raise ValueError(
                f"CrossBatchMemory compares a batch with earlier ones, but {type(loss).__name__} takes no reference "
                f"({refused}). Take a loss of pairs or triplets."
            ) from refused
    except Exception:  # what else a stranger's loss does with made-up rows says nothing about real ones
        return


def _check_miner(loss: nn.Module, miner: nn.Module | None) -> None:
    if miner is None:
        return
    name, kind, needed = type(miner).__name__, getattr(miner, "tuples", None), getattr(loss, "tuples", None)
    if not _takes_own(miner):
        raise ValueError(
            f"CrossBatchMemory needs a miner of lossopt, got {name}: others cannot leave out the pair of an image with "
            "itself, for the batch is part of the reference here."
        )
    if getattr(miner, "needs_groups", False):
        raise ValueError(f"CrossBatchMemory keeps no groups, but {name} chooses by them; leave out its group rule.")
    if needed is not None and kind != needed:
        compares = "whole rows" if needed == "batch" else needed
        other = "Leave it out" if needed == "batch" else f"Take one that returns {needed}, or leave it out"
        raise ValueError(f"The miner {name} returns {kind}, but {type(loss).__name__} compares {compares}. {other}.")
