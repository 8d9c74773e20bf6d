"""Within-alphabet one-shot classification on Omniglot: the 20 official runs, and as many more as one likes to draw.

Letters: q test images, s support images, d embedding.
"""

from typing import NamedTuple

import numpy as np

from lossopt.errors import EvaluationError
from lossopt.retrieval.metrics import one_shot_accuracy


class OneShotResult(NamedTuple):
    """accuracy: share of trials answered rightly; trials: how many; per_run: (runs,) accuracy of each run."""

    accuracy: float
    trials: int
    per_run: np.ndarray

    @property
    def standard_error(self) -> float:
        """Of the accuracy over trials (binomial): says nothing of how trainings differ."""
        return float(np.sqrt(self.accuracy * (1 - self.accuracy) / self.trials))


def score_runs(runs: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> OneShotResult:
    """Nearest support image in Euclidean distance; a tie counts as the chance of guessing among the nearest.

    Args:
        runs: per run (q, d) test embeddings, (s, d) support embeddings, (q,) position of the right support image.
    """
    correct = [one_shot_accuracy(_distances(test, support), answers) for test, support, answers in runs]
    every = np.concatenate(correct)
    return OneShotResult(float(every.mean()), len(every), np.array([one.mean() for one in correct]))


def _distances(test: np.ndarray, support: np.ndarray) -> np.ndarray:
    difference = test[:, None, :].astype(np.float64) - support[None, :, :].astype(np.float64)
    return (difference**2).sum(axis=2)


def draw_runs(
    embeddings: np.ndarray, labels: np.ndarray, groups: np.ndarray, runs: int = 1_000, ways: int = 20, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Runs like the official ones, drawn at random: one alphabet, `ways` of its characters, two different drawers.

    One drawer's images are the support, the other's the test. The official runs are easier by several points: their
    characters and drawers were chosen by hand.

    Args:
        embeddings: (n, d) of all images, those of a class in the order of their drawers.
        labels: (n,) character. groups: (n,) alphabet.
        runs: how many. ways: characters in a run. seed: of the drawing.

    Returns:
        What `score_runs` takes.

    Raises:
        EvaluationError: no alphabet has that many characters, or the characters differ in their number of drawers.

    Source: the protocol of Lake, Salakhutdinov & Tenenbaum 2015, Science 350, with random draws.
    """
    order = np.argsort(labels, kind="stable")
    rows = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    drawers = {len(one) for one in rows}
    if len(drawers) != 1:
        raise EvaluationError(f"Characters have {sorted(drawers)} images each; a run needs the same drawers for all.")
    table = np.stack(rows)
    alphabet = groups[table[:, 0]]
    large = [one for one in np.unique(alphabet) if (alphabet == one).sum() >= ways]
    if not large:
        raise EvaluationError(f"No alphabet has {ways} characters. Ask for fewer ways.")
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(runs):
        characters = rng.choice(np.flatnonzero(alphabet == rng.choice(large)), ways, replace=False)
        test, support = rng.choice(table.shape[1], 2, replace=False)
        chosen = table[characters]
        drawn.append((embeddings[chosen[:, test]], embeddings[chosen[:, support]], np.arange(ways)))
    return drawn
