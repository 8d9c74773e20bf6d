"""Every loss and activation as a curve of value and gradient, measured on the class that trains with it."""

from lossopt.lab.activation_entries import ACTIVATIONS
from lossopt.lab.entries import Entry, measured
from lossopt.lab.loss_entries import CLASSIFICATION, EMBEDDING, REGRESSION
from lossopt.lab.pieces import Curve

ENTRIES: tuple[Entry, ...] = (*REGRESSION, *CLASSIFICATION, *EMBEDDING, *ACTIVATIONS)


def curves() -> list[Curve]:
    """All of them, by family, in about a second."""
    return [measured(entry) for entry in ENTRIES]
