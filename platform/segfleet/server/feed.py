"""What has changed in the database, noticed once for all streams of this server.

Several servers may share one database, so none can tell its listeners from memory what the others have written: a
thread looks, while anybody listens.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from segfleet.errors import QueueUnavailableError
from segfleet.queue.model import JobEvent
from segfleet.queue.service import Queue

LOOK_EVERY_S = 0.5
# Longer than any transaction of ours may take: its statements wait for locks and its connection idles for less.
SETTLE_S = 15.0
# Lines of history that a look takes, and that are kept for listeners which were cut off for a moment.
_MOST_LINES, _KEPT_LINES = 1000, 2000
_log = logging.getLogger(__name__)


class Horizon:
    """How far the history can be handed out, so that whoever goes on behind its last line misses none.

    PostgreSQL numbers a line when it is written and shows it when its transaction commits, so line 7 may be seen before
    line 6. What lies behind a missing number waits until that line comes, or can come no more.

    Args:
        position: Number of the last line handed out.
    """

    def __init__(self, position: int) -> None:
        self.position = position
        self._gap: tuple[int, float] | None = None

    def advance(self, numbers: Sequence[int], now: float) -> int:
        """The new position.

        Args:
            numbers: Of the lines that can be seen behind the position, rising.
            now: Monotonic seconds.
        """
        for number in numbers:
            if number > self.position + 1 and not self._has_settled(now):
                break
            self.position = number
        return self.position

    def _has_settled(self, now: float) -> bool:
        if self._gap is None or self._gap[0] != self.position:
            self._gap = self.position, now
        return now - self._gap[1] >= SETTLE_S


class Listener:
    """Somebody who wants to know when something has changed; belongs to one event loop."""

    def __init__(self) -> None:
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()

    def wake(self) -> None:
        """Let the waiting one look; from any thread."""
        with suppress(RuntimeError):  # its loop has ended, and so has it
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout_s: float) -> None:
        """Until something has changed, or the time is up."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), timeout_s)
        self._event.clear()


class Feed:
    """Looks into the database for all listeners; safe to share between threads.

    Attributes:
        lines: The newest lines of the history, up to the horizon.
        head: Number of the last of them; None: nobody has looked yet.
        versions: Of the jobs that somebody watches.
        is_closed: Whether all streams are to end.

    Args:
        queue: What is looked at.
        period_s: Between two looks.
        clock: Monotonic seconds.
    """

    def __init__(
        self, queue: Queue, period_s: float = LOOK_EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._queue, self._period_s, self._clock = queue, period_s, clock
        self.lines: tuple[JobEvent, ...] = ()
        self.head: int | None = None
        self.versions: Mapping[str, int] = {}
        self.is_closed = False
        self._horizon: Horizon | None = None
        self._listeners: set[Listener] = set()
        self._watched: Counter[str] = Counter()
        # Closed by a signal's handler, which may have interrupted whoever holds it.
        self._lock = threading.RLock()
        self._wanted, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """End all streams, and the thread."""
        self.is_closed = True
        self._stop.set()
        self._wanted.set()
        self._wake()

    @contextmanager
    def listening(self, job_id: str | None = None) -> Iterator[Listener]:
        """Be woken by changes of the history or, with a job's id, of the job; inside an event loop."""
        listener = Listener()
        with self._lock:
            self._listeners.add(listener)
            if job_id is not None:
                self._watched[job_id] += 1
            if self._thread is None and not self.is_closed:
                self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
                self._thread.start()
            self._wanted.set()
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)
                if job_id is not None:
                    self._watched -= Counter([job_id])
                if not self._listeners and not self.is_closed:
                    self._wanted.clear()

    def look(self) -> None:
        """Read what is new, and wake the listeners if there is anything.

        Raises:
            QueueUnavailableError: the database cannot be read.
        """
        with self._lock:
            watched = list(self._watched)
        with self._queue.store.read() as tx:
            if self._horizon is None:
                # Not from the newest: of those before it, some may not have come yet.
                self._horizon = Horizon(max(0, tx.events.newest() - _MOST_LINES))
            found = tx.events.after(self._horizon.position, _MOST_LINES)
            versions = tx.events.versions(watched)
        before = self._horizon.position
        head = self._horizon.advance([line.event.seq for line in found], self._clock())
        if head > before:
            self.lines = (*self.lines, *(line for line in found if line.event.seq <= head))[-_KEPT_LINES:]
        is_news = head != self.head or versions != self.versions
        self.head, self.versions = head, versions
        if is_news:
            self._wake()

    def since(self, number: int) -> tuple[JobEvent, ...] | None:
        """The lines behind this number up to the horizon; None: they reach back further than what is kept."""
        if self.head is None or number >= self.head:
            return ()
        lines = self.lines
        if not lines or lines[0].event.seq > number + 1:
            return None
        first = next((i for i in range(len(lines), 0, -1) if lines[i - 1].event.seq <= number), 0)
        return lines[first:]

    def read_since(self, number: int) -> tuple[JobEvent, ...]:
        """The next lines behind this number up to the horizon, from the database.

        Raises:
            QueueUnavailableError: it cannot be read.
        """
        with self._queue.store.read() as tx:
            found = tx.events.after(number, _MOST_LINES)
        return tuple(line for line in found if self.head is not None and line.event.seq <= self.head)

    def _run(self) -> None:
        board = None
        while not self._stop.is_set():
            if not self._wanted.is_set():
                # What is missed while nobody listens, the next one's first look need not go through.
                self._horizon, self.head, self.lines = None, None, ()
                self._wanted.wait()
                continue
            try:
                self.look()
                if board is not self._queue.board:
                    board = self._queue.board
                    self._wake()
            except QueueUnavailableError as error:
                _log.warning("streams wait for the database: %s", error)
            except Exception:
                _log.exception("a look for the streams failed")
            self._stop.wait(self._period_s)

    def _wake(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener.wake()
