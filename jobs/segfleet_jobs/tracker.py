"""What a training says of itself to MLflow: told to the spool at once, written to MLflow when it can be had."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from segfleet_jobs.run_plan import RunPlan, metric_name
from segfleet_jobs.spool import Entry, Spool

CONFUSION_FILE = "confusion.json"
CLOSE_S = 10.0
# How long the writer stays with one call, so that `close` is heard soon.
_TRY_S = 2.0


class Tracker:
    """Rank 0's curves and pictures: no call waits for MLflow, which a thread of its own writes to.

    What an earlier writer of the job has left is written first. To make a tracker ends every earlier one's writing.

    Args:
        folder: Of the job's or trial's spool.
        plan: The run; it is opened when there is something to write and MLflow answers.
    """

    def __init__(self, folder: Path, plan: RunPlan) -> None:
        self._folder, self._plan = folder, plan
        self._spool = Spool(folder)
        self._told, self._closing = threading.Event(), threading.Event()
        self._told.set()  # there may be something of an earlier writer
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        finite = {metric_name(name): float(value) for name, value in values.items() if np.isfinite(value)}
        self._spool.append(Entry(step, _now_ms(), finite))
        self._told.set()

    def picture(self, step: int, png: bytes) -> None:
        """Store a sheet of sample predictions."""
        self._spool.append_file(step, _now_ms(), f"step-{step:08d}.png", png, "predictions")
        self._told.set()

    def confusion(self, step: int, matrix: list[list[int]], class_names: Sequence[str]) -> None:
        """Store the confusion matrix of the best validation so far, (K, K), rows are the truth."""
        document = {"step": step, "class_names": list(class_names), "matrix": matrix}
        self._spool.append_file(step, _now_ms(), CONFUSION_FILE, json.dumps(document).encode(), "")
        self._told.set()

    def sync(self) -> None:
        """Have all that was told so far on the disk; a checkpoint makes its steps final."""
        self._spool.sync()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what is left, if MLflow takes it in this time; otherwise `settle` or the next attempt does."""
        self._closing.set()
        self._told.set()
        self._thread.join(timeout_s)
        self._spool.close()

    def _run(self) -> None:
        # MLflow's client takes a second or more to load: beside the first steps, not before them.
        from segfleet_jobs.patience import LONGEST_PAUSE_S, Patience
        from segfleet_jobs.replay import Replay, TakenOverError

        replay = Replay(self._folder, self._plan, self._spool.name, Patience(_TRY_S))
        pause_s = 0.0
        while True:
            self._closing.wait(pause_s)
            is_last = self._closing.is_set()
            self._told.clear()
            try:
                while replay.advance():
                    pass
                pause_s = 0.0
            except TakenOverError as error:
                return print(f"segfleet: MLflow is told no more: {error}", flush=True)
            except Exception as error:
                # Whatever it is, the points are safe, and the training goes on.
                if not pause_s:
                    print(f"segfleet: points for MLflow wait on disk: {error!r}", flush=True)
                pause_s = min(max(0.5, 2 * pause_s), LONGEST_PAUSE_S)
            if is_last:
                return None
            if not pause_s:
                self._told.wait()


def _now_ms() -> int:
    return int(time.time() * 1000)
