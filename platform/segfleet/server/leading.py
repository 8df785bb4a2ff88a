"""The server's part in leading the queue: a thread that holds or seeks the lease, and one that dispatches under it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from segfleet.errors import QueueUnavailableError
from segfleet.queue.board import Mirror
from segfleet.queue.dispatcher import Dispatcher
from segfleet.queue.leadership import Office
from segfleet.queue.sending import ClusterDoor
from segfleet.queue.service import Queue
from segfleet.settings import Settings

_JOIN_S = 1.5
_log = logging.getLogger(__name__)


class Leading:
    """Dispatches while this server leads, and shows the leader's board while another does.

    If a thread dies the process ends too: a service that only answers would starve the queue.

    Args:
        queue: The jobs.
        office: The election.
        launcher: The cluster.
        settings: For the dispatcher.
    """

    def __init__(self, queue: Queue, office: Office, launcher: ClusterDoor, settings: Settings) -> None:
        self._queue, self._office, self._launcher, self._settings = queue, office, launcher, settings
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
            for name, work in (("leader", self._hold), ("dispatcher", self._dispatch))
        ]
        self._trouble = ""
        self.on_death: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let the current turn end, but not for ever, and give the lease back; the database survives being cut off."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_JOIN_S)
        try:
            self._office.release()
        except QueueUnavailableError as error:
            _log.warning("the leadership could not be given back: %s", error)

    def is_alive(self) -> bool:
        """Whether both threads live."""
        return all(thread.is_alive() for thread in self._threads)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            _log.exception("the dispatcher died; the service ends so that it can be started afresh")
            self.on_death()

    def _hold(self) -> None:
        is_away = False
        while not self._stop.is_set():
            try:
                self._office.turn()
                is_away = False
            except QueueUnavailableError as error:
                if not is_away:
                    _log.warning("leadership: %s", error)
                is_away = True
            self._stop.wait(self._office.look_every_s)

    def _dispatch(self) -> None:
        mirror = Mirror(self._queue.store)
        while not self._stop.is_set():
            term = self._office.term
            if term is not None and term.is_certain:
                Dispatcher(self._queue, term, self._launcher, self._settings).run(self._stop)
                mirror = Mirror(self._queue.store)
            else:
                self._look(mirror)
                self._stop.wait(self._settings.poll_s)

    def _look(self, mirror: Mirror) -> None:
        try:
            board = mirror.look()
        except QueueUnavailableError:
            return
        if board is not None:
            self._queue.board = board
