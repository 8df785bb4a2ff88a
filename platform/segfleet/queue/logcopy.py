"""Copies of the attempts' logs, which outlive the cluster.

Ray serves a log only as a whole. So the copies are refreshed the more rarely the longer that takes, and end at a size.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from segfleet.queue.clock import Clock

LOG_EVERY_S = 2.0
# At most about this share of the dispatcher's time goes into fetching one log.
_SHARE = 1 / 20
MAX_LOG_BYTES = 64 << 20
_TRUNCATED = f"\n[truncated: only the first {MAX_LOG_BYTES >> 20} MiB of the log are kept]\n".encode()
_CUT_OFF = b"\n[the end of the log could not be had from the cluster]\n"

logger = logging.getLogger(__name__)


class LogCopies:
    """Keeps `ATTEMPT.log` files in step with the cluster.

    Args:
        folder: Where the copies lie.
        fetch: Gives all that an attempt has printed so far.
        clock: Seconds of a clock that does not jump.
    """

    def __init__(self, folder: Path, fetch: Callable[[str], str], clock: Clock) -> None:
        self._folder = folder
        self._fetch = fetch
        self._clock = clock
        self._due: dict[str, float] = {}
        self._failed: set[str] = set()

    def follow(self, attempt_id: str) -> None:
        """Bring the copy up to date, if it is time to.

        Raises:
            LaunchError: the cluster does not give the log; it is asked again when it is time to.
        """
        if self._is_due(attempt_id):
            self._copy(attempt_id)

    def finish(self, attempt_id: str) -> bool:
        """Copy the end of the log at once; after a failure, when it is time to.

        Returns:
            Whether the copy is complete now.

        Raises:
            LaunchError: the cluster does not give the log.
        """
        if attempt_id in self._failed and not self._is_due(attempt_id):
            return False
        self._copy(attempt_id)
        return True

    def give_up(self, attempt_id: str) -> None:
        """Note in the copy that its end is missing."""
        self._append(attempt_id, lambda _: _CUT_OFF)

    def forget(self, attempt_id: str) -> None:
        """The attempt prints nothing more."""
        self._due.pop(attempt_id, None)
        self._failed.discard(attempt_id)

    def _is_due(self, attempt_id: str) -> bool:
        return self._clock() >= self._due.get(attempt_id, float("-inf"))

    def _copy(self, attempt_id: str) -> None:
        path = log_path(self._folder, attempt_id)
        if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
            return
        began = self._clock()
        self._failed.add(attempt_id)
        try:
            data = self._fetch(attempt_id).encode("utf-8", errors="replace")
            self._failed.discard(attempt_id)
        finally:
            ended = self._clock()
            self._due[attempt_id] = ended + max(LOG_EVERY_S, (ended - began) / _SHARE)
        if len(data) > MAX_LOG_BYTES:
            data = data[:MAX_LOG_BYTES] + _TRUNCATED
        self._append(attempt_id, lambda size: data[size:])

    def _append(self, attempt_id: str, rest: Callable[[int], bytes]) -> None:
        path = log_path(self._folder, attempt_id)
        try:
            # At its place, not at the end: a server that no longer leads, and wakes up here, writes what is there.
            path.touch()
            with path.open("r+b") as file:
                file.write(rest(file.seek(0, os.SEEK_END)))
        except OSError as error:
            logger.warning("%s: its log cannot be written: %s", path, error.strerror)


def log_path(folder: Path, attempt_id: str) -> Path:
    """Where the copy of an attempt's log is kept."""
    return folder / f"{attempt_id}.log"
