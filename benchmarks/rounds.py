"""Calls measured in turns, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


def medians_ms(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """CPU milliseconds of each call, in rounds that take turns; the first one warms up."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, seconds in zip(calls, times, strict=True):
            begin = time.process_time()
            call()
            if number:
                seconds.append(time.process_time() - begin)
    return [1000 * statistics.median(seconds) for seconds in times]
