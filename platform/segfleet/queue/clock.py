"""The service's clock."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]


def steady_clock() -> Clock:
    """Seconds since the epoch that never jump: the wall clock read once, carried on by the monotonic clock.

    Setting the machine's clock while the service runs therefore moves no back-off, lease or time limit.
    """
    offset = time.time() - time.monotonic()
    return lambda: offset + time.monotonic()
