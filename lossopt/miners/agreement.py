"""Whether a loss, a miner and a network speak of the same tuples; asked before training starts.

Ours declare what they are (`tuples`); anybody else's miner is called on a few rows and its columns are counted. The
choices that a message names are found by looking through lossopt.losses and lossopt.miners.
"""

import copy
import importlib
import inspect
import random
import warnings
from collections.abc import Callable
from typing import get_args

import numpy as np
import torch
from torch import nn

from lossopt.errors import ConfigError
from lossopt.losses.all_tuples import COLUMNS, TupleKind
from lossopt.losses.embedding import EmbeddingLoss


def _declared(component: type) -> TupleKind | None:
    kind = getattr(component, "tuples", None)
    return kind if kind in get_args(TupleKind) else None


def tuples_of(component: Callable[..., object]) -> TupleKind | None:
    """What a miner returns or a loss consumes; None if it cannot be told, or if it takes both.

    A class (ours, or a user's) may declare it as the class attribute `tuples`. Others are asked: a deep copy is called
    on 12 rows, with every random state put back, and the index tensors it returns are counted (3: triplets, 4: pairs).
    A loss returns none; pytorch-metric-learning's take both kinds.
    """
    return _declared(type(component)) or _answer_of_a_copy(component)


def _answer_of_a_copy(component: Callable[..., object]) -> TupleKind | None:
    labels = torch.arange(12) // 3
    embeddings = nn.functional.normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)))
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            probe = copy.deepcopy(component)
            answer = (probe.cpu() if isinstance(probe, nn.Module) else probe)(embeddings, labels)
    except Exception:  # whatever a stranger's code does on a made-up batch says nothing about a real one
        return None
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
    kinds: dict[int, TupleKind] = {3: "triplets", 4: "pairs"}
    return kinds.get(len(answer)) if isinstance(answer, tuple | list) else None


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

    Args:
        network: name of the network, for the message.
        accepts: the kind it trains on.
        loss: any loss in the field's call.
        miner: any miner in the field's call; None compares all tuples.

    Raises:
        ConfigError: the miner returns, or the loss consumes, the other kind; names those of lossopt that fit.
    """
    for part, package, verb, component in (
        ("miner", "lossopt.miners", "returns", miner),
        ("loss", "lossopt.losses", "consumes", loss),
    ):
        kind = None if component is None else tuples_of(component)
        if kind is not None and kind != accepts:
            raise ConfigError(
                f"{network} trains on {accepts} {COLUMNS[accepts]}, but its {part} {type(component).__name__} {verb} "
                f"{kind} {COLUMNS[kind]}. Use one of {', '.join(choices(package, accepts))}, or another {part} "
                f"that {verb} {accepts}{', or no miner, which compares all of them' if part == 'miner' else ''}."
            )
