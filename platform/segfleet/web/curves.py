"""What MLflow knows of jobs, kept for a while: no page ever waits for MLflow."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from segfleet.errors import SegfleetError

FRESH_S = 10.0
# Jobs remembered; the one asked for longest ago is forgotten first.
_MOST_JOBS = 500
_THREADS = 2
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Learning:
    """What a job's run shows.

    Attributes:
        state: `loading` | `none` (the job has no run) | `there` | `away` (MLflow does not answer; `found` is what it
            said before, if anything).
        found: As `RunWindow.curves` describes it.
    """

    state: str = "loading"
    found: dict[str, Any] | None = None


class Curves:
    """Reads curves in threads of its own; safe to share between threads.

    Args:
        read: Asks MLflow for a job's run; None: it has none.
        clock: Monotonic seconds.
    """

    def __init__(
        self, read: Callable[[str], dict[str, Any] | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read, self._clock, self._lock = read, clock, threading.Lock()
        self._known: OrderedDict[str, tuple[float, Learning]] = OrderedDict()
        self._asked: set[str] = set()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="curves")

    def of(self, job_id: str) -> Learning:
        """What is known now; if that is old, a thread asks anew for the next who looks."""
        with self._lock:
            at, learning = self._known.get(job_id, (float("-inf"), Learning()))
            if self._clock() - at >= FRESH_S and job_id not in self._asked and len(self._asked) < _MOST_JOBS:
                self._asked.add(job_id)
                self._threads.submit(self._ask, job_id)
        return learning

    def close(self) -> None:
        """Begin no further reading."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self, job_id: str) -> None:
        try:
            found = self._read(job_id)
            learning = Learning("none" if found is None else "there", found)
        except SegfleetError as error:
            _log.info("no curves of %s: %s", job_id, error)
            learning = Learning("away", self._last(job_id).found)
        except Exception:
            _log.exception("no curves of %s", job_id)
            learning = Learning("away", self._last(job_id).found)
        with self._lock:
            self._known.pop(job_id, None)
            self._known[job_id] = self._clock(), learning
            self._asked.discard(job_id)
            if len(self._known) > _MOST_JOBS:
                self._known.popitem(last=False)

    def _last(self, job_id: str) -> Learning:
        with self._lock:
            return self._known.get(job_id, (0.0, Learning()))[1]
