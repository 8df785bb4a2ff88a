"""Who has been silent for too long: the lease on an attempt, kept by watching for changes."""

from __future__ import annotations

from collections.abc import Iterable

from segfleet.queue.model import Attempt
from segfleet.queue.states import AttemptState


class LeaseWatch:
    """Tells which attempts have shown no sign of life for longer than they may.

    It remembers when it last *saw* an attempt change, so it compares no clock times of different processes. A service
    that has just started has seen nothing: every attempt gets a whole lease before it can be lost. The same grace is
    given after a pause of the service itself, during which no heartbeat could be received. The time from a look to the
    `rest` that follows it was the service's own work, however slow, and is no pause.

    Args:
        lease_s: Longest silence of a running attempt, seconds.
        start_deadline_s: Longest time from acceptance by Ray to the claim, seconds.
    """

    def __init__(self, lease_s: float, start_deadline_s: float) -> None:
        self._lease_s = lease_s
        self._start_deadline_s = start_deadline_s
        self._seen: dict[str, tuple[tuple[object, ...], float]] = {}
        self._awake_at: float | None = None

    def overdue(self, attempts: Iterable[Attempt], now: float) -> dict[str, str]:
        """Look at all living attempts.

        Args:
            attempts: Every attempt that is alive.
            now: Seconds of a clock that does not jump.

        Returns:
            Attempt id to the reason, for those whose time is up.
        """
        paused = self._awake_at is not None and now - self._awake_at > self._lease_s / 2
        self._awake_at = now
        seen: dict[str, tuple[tuple[object, ...], float]] = {}
        late: dict[str, str] = {}
        for attempt in attempts:
            sign = (attempt.state, attempt.beats, attempt.ray_session is None)
            before = self._seen.get(attempt.id)
            since = now if paused or before is None or before[0] != sign else before[1]
            seen[attempt.id] = (sign, since)
            if now - since > self._limit_s(attempt):
                late[attempt.id] = self._reason(attempt)
        self._seen = seen
        return late

    def excuse(self, attempt_id: str) -> None:
        """It cannot show a sign of life, since the cluster keeps it waiting: its time begins at the next look."""
        self._seen.pop(attempt_id, None)

    def rest(self, now: float) -> None:
        """The turn that began with the last look went through, and has ended now."""
        self._awake_at = now

    def _limit_s(self, attempt: Attempt) -> float:
        return self._lease_s if attempt.state == AttemptState.RUNNING else self._start_deadline_s

    def _reason(self, attempt: Attempt) -> str:
        if attempt.state == AttemptState.RUNNING:
            return f"no heartbeat for {self._lease_s:g} s"
        return f"did not start within {self._start_deadline_s:g} s"
