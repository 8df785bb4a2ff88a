"""The account of one process's time: every second since its begin belongs to exactly one part."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PARTS = ("load", "data", "step", "validation", "checkpoint", "mlflow", "other")


class Account:
    """Seconds by part. It begins in `load`; what is in no other part after that is `other`.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._begin = clock, clock()
        self._life, self._since = uuid.uuid4().hex, self._begin
        self._open = ["load"]
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._start = self._step = self._saved = 0
        self._at_save = dict(self._seconds)

    @property
    def seconds(self) -> dict[str, float]:
        """By part until now, the open part included."""
        return {**self._seconds, self._open[-1]: self._seconds[self._open[-1]] + self._clock() - self._since}

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """The block's time is the part's, but for what the block gives to other parts in turn."""
        self._switch()
        self._open.append(part)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def started(self, step: int) -> None:
        """All is loaded; the loop goes on after `step` steps."""
        self._switch()
        self._open[0] = "other"
        self._start = self._step = self._saved = step
        self._at_save = dict(self._seconds)

    def stepped(self, step: int) -> None:
        """`step` steps are done."""
        self._step = step

    def saved(self, step: int) -> None:
        """A checkpoint holds all up to here."""
        self._saved, self._at_save = step, self.seconds

    def to_document(self) -> dict[str, Any]:
        """As the service reads it."""
        seconds = self.seconds
        return {
            "life": self._life,
            "elapsed": round(self._clock() - self._begin, 3),
            "part": self._open[-1],
            "seconds": {part: round(value, 3) for part, value in seconds.items()},
            "unsaved": {part: round(value - self._at_save[part], 3) for part, value in seconds.items()},
            "start": self._start,
            "step": self._step,
            "saved": self._saved,
        }

    def _switch(self) -> None:
        now = self._clock()
        self._seconds[self._open[-1]] += now - self._since
        self._since = now
