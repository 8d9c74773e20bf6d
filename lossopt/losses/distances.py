"""Distances between embeddings, smaller is closer, of rows one by one; those of all rows with all are in tiles.py.

Computed in float32 or wider. Letters: n rows, m reference rows, d embedding, t tuples.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Distance = Literal["euclidean", "squared", "cosine", "manhattan", "inner"]
DISTANCES: tuple[Distance, ...] = get_args(Distance)
_CELLS = 2**22  # numbers gathered at a time


def one_of(name: str, given: str, valid: object) -> None:
    """Raise ValueError, listing the valid words, unless `given` is one of those of the Literal `valid`."""
    if given not in get_args(valid):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(valid)))}; got {given!r}.")


def unit_rows(x: Tensor) -> Tensor:
    """(n, d) rows scaled to unit length; a zero row stays zero, with a finite gradient."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.masked_fill(norm == 0, 1)


def wide(x: Tensor) -> Tensor:
    """In float64, in which distances are measured; as it is on devices that have none."""
    return x if x.device.type == "mps" else x.double()


def half_if_zero(unit: Tensor) -> Tensor:
    """0 for a row of length 1 and 1/2 for a zero row, (b,): what makes the cosine distance of a zero row 1."""
    return (unit.detach().square().sum(-1) < 0.5).to(unit.dtype) / 2


def paired_distance(x: Tensor, y: Tensor, distance: Distance) -> Tensor:
    """Distance of row i of x to row i of y: (t, d), (t, d) -> (t,).

    Euclidean and Manhattan have gradient 0 at distance 0. Cosine is 1 - cos, in [0, 2], computed as |x/|x| - y/|y||²/2
    so that equal rows are at exactly 0; a zero row is at 1 from every row (cos taken as 0). Inner is -x·y, of any sign.
    """
    if distance == "cosine":
        x, y = unit_rows(x), unit_rows(y)
        return (x - y).square().sum(-1) / 2 + half_if_zero(x) + half_if_zero(y)
    if distance == "squared":
        return (x - y).square().sum(-1)
    if distance == "inner":
        return -(x * y).sum(-1)
    return torch.linalg.vector_norm(x - y, ord=1 if distance == "manhattan" else 2, dim=-1)


class _TupleDistance(torch.autograd.Function):
    """`paired_distance` of listed rows, some at a time in both directions: (t, d) numbers are never held at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, distance: Distance) -> Tensor:
        ctx.save_for_backward(x, y, rows, columns)
        ctx.distance = distance
        step = max(1, _CELLS // max(1, x.shape[1]))
        parts = [
            paired_distance(x[i], y[j], distance) for i, j in zip(rows.split(step), columns.split(step), strict=True)
        ]
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_distance: Tensor) -> tuple[Tensor | None, ...]:
        x, y, rows, columns = ctx.saved_tensors
        of_x, of_y = torch.zeros_like(x), torch.zeros_like(y)
        step = max(1, _CELLS // max(1, x.shape[1]))
        for i, j, given in zip(rows.split(step), columns.split(step), of_distance.split(step), strict=True):
            with torch.enable_grad():
                left, right = x.detach()[i].requires_grad_(), y.detach()[j].requires_grad_()
                of_left, of_right = torch.autograd.grad(
                    paired_distance(left, right, ctx.distance), (left, right), given
                )
            of_x.index_add_(0, i, of_left)
            of_y.index_add_(0, j, of_right)
        return of_x, of_y, None, None, None


def distances_at(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, distance: Distance) -> Tensor:
    """Distances of x[rows] to y[columns], (t,); memory: the t numbers, not their rows. Differentiable once."""
    if not torch.is_grad_enabled():
        x, y = x.detach(), y.detach()
    found: Tensor = _TupleDistance.apply(x, y, rows, columns, distance)
    return found


def float32_or_wider(embeddings: Tensor, ref_emb: Tensor | None) -> tuple[Tensor, Tensor]:
    """Embeddings (n, d) and their reference (m, d), the embeddings themselves if None, in one dtype >= float32."""
    for given in (embeddings, ref_emb):
        if given is not None and given.ndim != 2:
            raise ValueError(f"embeddings must have two dimensions (rows, features), got shape {tuple(given.shape)}.")
    if ref_emb is not None and ref_emb.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"ref_emb has {ref_emb.shape[1]} numbers a row, but embeddings have {embeddings.shape[1]}; give the same."
        )
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    if ref_emb is None or ref_emb is embeddings:
        x = embeddings.to(dtype)
        return x, x
    dtype = torch.promote_types(dtype, ref_emb.dtype)
    return embeddings.to(dtype), ref_emb.to(embeddings.device, dtype)
