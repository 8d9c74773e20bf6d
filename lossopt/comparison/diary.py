"""How long a comparison took, over all its sittings: a line for each run as it ends, so that a kill loses one run's."""

import json
import time
from contextlib import suppress
from pathlib import Path

from lossopt.comparison.workers import Ended

DIARY = "diary.jsonl"


class Diary:
    """Notes when runs of a plan end, and what time went into them.

    Args:
        folder: of the plan; lines are appended to diary.jsonl there.
        workers: side by side in this sitting.
        prepared: seconds that the command spent before.
    """

    def __init__(self, folder: Path, workers: int, prepared: float = 0.0) -> None:
        self.path, self.workers, self.prepared = folder / DIARY, workers, prepared
        self._began, self._sitting = time.perf_counter() - prepared, time.time()

    def note(self, ended: Ended) -> None:
        """A run has ended."""
        entry = {
            "sitting": self._sitting,
            "workers": self.workers,
            "prepared": self.prepared,
            "elapsed": time.perf_counter() - self._began,
            "variant": ended.task.variant,
            "seed": ended.task.seed,
            "ended": ended.how,
            "inside": ended.inside,
            "around": ended.around,
        }
        with suppress(OSError):  # where the disk is full, the runs say so
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def wall_seconds(self) -> float:
        """From start to end, over all sittings, each until its last run ended."""
        return sum(row["elapsed"] for row in self._last())

    def most_workers(self) -> int:
        """Side by side in the sittings that ran anything; else in this one."""
        return int(max((row["workers"] for row in self._rows()), default=self.workers))

    def overhead(self) -> float | None:
        """Seconds of cores that went into anything but trainings, by those that went into trainings.

        That is: to start and end a run's process, and what the command did before the first run while the cores waited.
        None: no run has ended yet.
        """
        rows = self._rows()
        inside = sum(row["inside"] for row in rows)
        waited = sum(row["prepared"] * row["workers"] for row in self._last())
        return (waited + sum(row["around"] - row["inside"] for row in rows)) / inside if inside else None

    def _last(self) -> list[dict[str, float]]:
        """The last line of each sitting."""
        return list({row["sitting"]: row for row in self._rows()}.values())

    def _rows(self) -> list[dict[str, float]]:
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:  # half a line, of a sitting that was killed
                continue
        return rows
