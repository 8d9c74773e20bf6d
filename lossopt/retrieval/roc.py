"""The ROC of two sets of distances: exact steps, straight lines between them.

A pair is accepted when its distance is at most the threshold. FAR is the share of negative pairs (two classes) that are
accepted, TAR the share of positive pairs (one class). Equal distances are accepted together and make one step. Letters:
s steps.
"""

from typing import NamedTuple

import numpy as np


class OperatingPoint(NamedTuple):
    """One step of a ROC.

    far, tar: shares accepted. threshold: accept up to this distance; None: nothing can be accepted at a FAR so low.
    """

    far: float
    tar: float
    threshold: float | None


class Roc(NamedTuple):
    """thresholds: (s,) ascending distances. far, tar: (s,) shares accepted up to each; the curve begins at (0, 0)."""

    thresholds: np.ndarray
    far: np.ndarray
    tar: np.ndarray

    def auc(self) -> float:
        """Chance that a positive pair is nearer than a negative one, ties counting half."""
        return float(np.trapezoid(np.append(0.0, self.tar), np.append(0.0, self.far)))

    def eer(self) -> float:
        """Where FAR = 1 - TAR, on the straight line between the steps on either side."""
        gap = np.append(-1.0, self.far + self.tar - 1)
        after = int(np.searchsorted(gap, 0.0))
        far = np.append(0.0, self.far)[after - 1 : after + 1]
        part = gap[after - 1] / (gap[after - 1] - gap[after])
        return float(far[0] + part * (far[1] - far[0]))

    def at_eer(self) -> OperatingPoint:
        """The step at which FAR and 1 - TAR differ least."""
        return self._step(int(np.argmin(np.abs(self.far + self.tar - 1))))

    def at_far(self, far: float) -> OperatingPoint:
        """The last step at which FAR does not exceed `far`: nothing is interpolated."""
        return self._step(int(np.searchsorted(self.far, far, side="right")) - 1)

    def _step(self, step: int) -> OperatingPoint:
        if step < 0:
            return OperatingPoint(0.0, 0.0, None)
        return OperatingPoint(float(self.far[step]), float(self.tar[step]), float(self.thresholds[step]))

    def curve(self, most: int = 500) -> np.ndarray:
        """(at most `most` + 1, 2) FAR and TAR for a picture: from (0, 0), evenly spaced along the curve's two axes."""
        along = self.far + self.tar
        chosen = np.searchsorted(along, np.linspace(along[0], along[-1], most))
        chosen = np.unique(np.minimum(chosen, len(along) - 1))
        return np.concatenate([np.zeros((1, 2)), np.column_stack([self.far[chosen], self.tar[chosen]])])
