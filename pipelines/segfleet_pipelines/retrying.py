"""When to try again what a network has spoilt."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")


class TransientError(Exception):
    """A failure that may pass by itself: the reason, for people."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Pauses that double, with jitter, so that many processes do not come back at once.

    Attributes:
        attempts: Tries in a row without progress before giving up.
        first_s: First pause, seconds.
        longest_s: Longest pause, seconds.
        sleep: Takes seconds.
    """

    attempts: int = 6
    first_s: float = 0.5
    longest_s: float = 20.0
    sleep: Callable[[float], None] = time.sleep

    def pause(self, failures: int) -> None:
        """Wait after so many failures in a row."""
        # Not the global generator: training draws from that.
        share = random.SystemRandom().uniform(0.5, 1.0)
        self.sleep(share * min(self.first_s * 2.0 ** (failures - 1), self.longest_s))

    def run(self, work: Callable[[], _T], describe: Callable[[str, int], Exception]) -> _T:
        """Do `work` until it raises no TransientError.

        Args:
            work: What to do.
            describe: Makes the final error of the last reason and the number of attempts.

        Raises:
            Exception: what `describe` makes, after the last attempt.
        """
        for failures in range(1, self.attempts + 1):
            try:
                return work()
            except TransientError as error:
                if failures == self.attempts:
                    raise describe(str(error), failures) from error
            self.pause(failures)
        raise AssertionError("attempts is at least 1")
