"""How often one may ask: buckets that refill with time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

# Keys remembered; the one unused for longest is forgotten first, and begins anew with a full bucket.
_MOST_KEYS = 10_000


@dataclass(frozen=True, slots=True)
class Rate:
    """So many at once, and so many a second in the long run."""

    burst: int
    per_s: float


# Of one token: far above what people and scripts need, below what would keep the service from heartbeats.
REQUESTS = Rate(burst=1000, per_s=200.0)
# Of one address, without a valid token.
FAILURES = Rate(burst=100, per_s=1.0)


class Buckets:
    """One bucket for each key; safe to share between threads.

    Args:
        rate: Size and refill of each bucket.
        clock: Monotonic seconds.
    """

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock, self._lock = rate, clock, threading.Lock()
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> bool:
        """Take one; False: the bucket is empty."""
        with self._lock:
            now = self._clock()
            level, then = self._levels.pop(key, (float(self._rate.burst), now))
            level = min(self._rate.burst, level + (now - then) * self._rate.per_s)
            is_allowed = level >= 1.0
            self._levels[key] = (level - 1.0 if is_allowed else level, now)
            if len(self._levels) > _MOST_KEYS:
                self._levels.popitem(last=False)
            return is_allowed
