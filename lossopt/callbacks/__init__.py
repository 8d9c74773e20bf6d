"""What watches a run: scores at every validation, the health of each step, and the guard in front of the weights."""

from lossopt.callbacks.guard import FiniteGuard
from lossopt.callbacks.health import TrainingHealth
from lossopt.callbacks.progress import ProgressBar
from lossopt.callbacks.reconstructions import KeepReconstructions
from lossopt.callbacks.validation import RetrievalAtValidation, ScoresAtValidation

__all__ = [
    "FiniteGuard",
    "KeepReconstructions",
    "ProgressBar",
    "RetrievalAtValidation",
    "ScoresAtValidation",
    "TrainingHealth",
]
