"""How long a comparison took, over all its sittings: a line for each run as it ends, so that a kill loses one run's."""

import json
import time
from pathlib import Path

from lossopt.comparison.workers import Ended

DIARY = "diary.jsonl"


class Diary:
    """Notes when runs of a plan end, and what time went into them.

    Args:
        folder: of the plan; lines are appended to diary.jsonl there.
        workers: side by side in this sitting.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self.path, self.workers = folder / DIARY, workers
        self._began, self._sitting = time.perf_counter(), int(time.time() * 1000)
        self._running = 0.0

    def note(self, ended: Ended) -> None:
        """A run has ended."""
        self._running += ended.around
        self._write({"inside": ended.inside, "around": ended.around, "ended": ended.how, "variant": ended.task.variant})

    def close(self) -> None:
        """The end of a sitting: what it spent beside its runs."""
        self._write({"done": True})

    def _write(self, entry: dict[str, object]) -> None:
        now = {"sitting": self._sitting, "workers": self.workers, "elapsed": time.perf_counter() - self._began}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(now | entry) + "\n")

    def wall_seconds(self) -> float:
        """From start to end, over all sittings; of one that was killed, until its last run ended."""
        return sum(self._last().values())

    def overhead(self) -> float | None:
        """Share of the time inside trainings that their processes, and the command between them, took besides.

        None: no run has ended yet, or all were there before.
        """
        rows = [row for row in self._rows() if "inside" in row]
        inside = sum(row["inside"] for row in rows)
        return sum(row["around"] - row["inside"] for row in rows) / inside if inside else None

    def _last(self) -> dict[float, float]:
        """Sitting to the seconds that it lasted."""
        return {row["sitting"]: row["elapsed"] for row in self._rows()}

    def _rows(self) -> list[dict[str, float]]:
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:  # half a line, of a sitting that was killed
                continue
        return rows
