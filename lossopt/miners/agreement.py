"""Whether a loss, a miner and a network speak of the same tuples; asked before training starts.

Ours declare what they are (`tuples`); anybody else's are called on a few rows: a miner's columns are counted, a loss is
offered indices. The choices that a message names are found by looking through lossopt.losses and lossopt.miners.
"""

import copy
import importlib
import inspect
import random
import warnings
from collections.abc import Callable
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lossopt.errors import ConfigError
from lossopt.losses.all_tuples import COLUMNS, TupleKind
from lossopt.losses.embedding import EmbeddingLoss

_ROWS, _CLASSES = 60, 4  # divisible by three, for miners that take rows in threes
_DIMENSION = 4


class _Answer(NamedTuple):
    """What a call returned, or the error that it raised."""

    value: object
    error: Exception | None


def _declared(component: object) -> TupleKind | None:
    kind = getattr(component, "tuples", None)
    return kind if kind in get_args(TupleKind) else None


def tuples_of(component: Callable[..., object]) -> TupleKind | None:
    """What a miner returns or a loss consumes; None if it cannot be told, or if it takes both.

    A component (ours, or a user's) may declare it as the attribute `tuples`. Others are asked: a deep copy is called on
    60 rows, with every random state put back, and the index tensors it returns are counted (3: triplets, 4: pairs). A
    loss returns none; most of pytorch-metric-learning's take both kinds.
    """
    kinds: dict[int, TupleKind] = {3: "triplets", 4: "pairs"}
    if (declared := _declared(component)) is not None:
        return declared
    answer = _answer(component, *_made_up_batch(_DIMENSION)).value
    return kinds.get(len(answer)) if isinstance(answer, tuple | list) else None


def _made_up_batch(dimension: int) -> tuple[Tensor, Tensor]:
    """Rows of one class after another, none far from the others: extremes are beyond what some losses can count."""
    noise = torch.randn(_ROWS, dimension, generator=torch.Generator().manual_seed(0))
    return nn.functional.normalize(1 + noise / 2), torch.arange(_ROWS) // (_ROWS // _CLASSES)


def _made_up_indices(kind: TupleKind) -> tuple[Tensor, ...]:
    """One tuple of each kind for every row of the batch."""
    anchor, each = torch.arange(_ROWS), _ROWS // _CLASSES
    positive, negative = (anchor + 1) % each + anchor // each * each, (anchor + each) % _ROWS
    return (anchor, positive, negative) if kind == "triplets" else (anchor, positive, anchor, negative)


def _answer(component: Callable[..., object], *given: object) -> _Answer:
    """What a copy says; it leaves no trace in any random state."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            probe = copy.deepcopy(component)
            return _Answer((probe.cpu() if isinstance(probe, nn.Module) else probe)(*given), None)
    except Exception as error:  # whatever a stranger's code does on a made-up batch says little about a real one
        return _Answer(None, error)
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _refusal(loss: Callable[..., object], miner: Callable[..., object] | None, kind: TupleKind) -> str | None:
    """Why a foreign loss can never train here, in a clause; None if it can, or if that cannot be told.

    Told is only what the loss itself shows: it works without indices and fails with them, or works without labels and
    fails with them. Class weights and proxies fit one embedding size, which is among the sizes of its parameters.
    """
    matrices = [p for p in loss.parameters() if p.ndim >= 2] if isinstance(loss, nn.Module) else []
    without_labels = False
    for dimension in sorted({_DIMENSION, *(size for matrix in matrices for size in matrix.shape)}):
        embeddings, labels = _made_up_batch(dimension)
        if _answer(loss, embeddings, labels).error is None:
            if miner is None or (error := _answer(loss, embeddings, labels, _made_up_indices(kind)).error) is None:
                return None
            return f"takes no {kind} of a miner ({type(error).__name__}: {' '.join(str(error).split())})"
        calls = ((embeddings, None), (embeddings, None, None, embeddings), (embeddings, embeddings))
        without_labels |= any(_answer(loss, *given).error is None for given in calls)
    return "takes no labels: it compares two views of an image" if without_labels else None


def needs_positives(loss: object) -> bool:
    """Whether a batch must hold two rows of a class: true unless a foreign loss has class weights or proxies instead.

    Those are parameters of two dimensions; a learnt scale or margin, per class or not, has fewer.
    """
    if isinstance(loss, EmbeddingLoss) or not isinstance(loss, nn.Module):
        return True
    return not any(parameter.ndim >= 2 for parameter in loss.parameters())


def choices(package: str, kind: TupleKind) -> list[str]:
    """Names of the public classes of a package of lossopt ("lossopt.miners") that declare `tuples` of this kind."""
    members = inspect.getmembers(importlib.import_module(package), inspect.isclass)
    return [name for name, member in members if _declared(member) == kind and not inspect.isabstract(member)]


def check_agreement(
    network: str, accepts: TupleKind, loss: Callable[..., object], miner: Callable[..., object] | None
) -> None:
    """Refuse a loss or a miner of the other kind; those whose kind cannot be told are accepted.

    Losses that look at whole rows of the batch ("batch") go with every network, and with no miner.

    Args:
        network: name of the network, for the message.
        accepts: the kind it trains on, "pairs" or "triplets".
        loss: any loss in the field's call.
        miner: any miner in the field's call; None compares everything.

    Raises:
        ConfigError: the miner returns, or the loss consumes, the other kind; the loss takes no miner; the loss takes no
            labels. Names those of lossopt that fit.
    """
    returned = None if miner is None else tuples_of(miner)
    if returned is not None and returned != accepts:
        raise ConfigError(
            f"{_other_kind(network, accepts, 'miner', miner, 'returns', returned)} Use one of "
            f"{', '.join(choices('lossopt.miners', accepts))}, or another miner that returns {accepts}, or no miner, "
            "which compares all of them."
        )
    consumed, name = tuples_of(loss), type(loss).__name__
    if miner is not None and consumed == "batch":
        refused: str | None = "looks at whole rows of the batch and takes no indices"
    else:
        refused = None if _declared(loss) is not None else _refusal(loss, miner, accepts)
    fitting = ", ".join(choices("lossopt.losses", accepts))
    if refused is not None:
        without = "" if miner is None else f"Leave out the miner {type(miner).__name__}, or t"
        raise ConfigError(
            f"{network}'s loss {name} {refused}. {without or 'T'}ake a loss that consumes {accepts}: {fitting}."
        )
    if consumed not in (None, "batch", accepts):
        rows = "" if miner is not None else ", ".join(choices("lossopt.losses", "batch"))
        raise ConfigError(
            f"{_other_kind(network, accepts, 'loss', loss, 'consumes', consumed)} Use one of {fitting}, or another "
            f"loss that consumes {accepts}{f'; or one that looks at whole rows: {rows}' if rows else ''}."
        )


def _other_kind(network: str, accepts: TupleKind, part: str, component: object, verb: str, kind: TupleKind) -> str:
    return (
        f"{network} trains on {accepts} {COLUMNS[accepts]}, but its {part} {type(component).__name__} {verb} {kind} "
        f"{COLUMNS[kind]}."
    )
