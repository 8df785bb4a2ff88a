"""Which worker of a failed group failed by itself and of what, and how a worker that hangs is ended."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import psutil

from segfleet_jobs.failure import HINTS, cause, classify
from segfleet_jobs.watchdog import Beat

# What the others of a group say when one of them has gone: their connection to it broke.
_BROKEN_BY_PEER = re.compile(r"closed by peer|reset by peer|connection (was )?(closed|refused)|gloo", re.IGNORECASE)
_MAX_CHARS = 300
_KERNEL_COUNTERS = Path("/proc/vmstat")


def name_fault(exceptions: Mapping[int, Exception], beats: Mapping[int, Beat]) -> tuple[int, str]:
    """The rank whose failure brought the others down, and a sentence that names it, where it was, and why.

    A rank that only lost its connection to another is named last. If none is left but those, the one that Ray has not
    heard of is the likelier cause, but its own words are not known.

    Args:
        exceptions: By rank, at least one.
        beats: The last ones, by rank.
    """

    def order(rank: int) -> tuple[bool, bool, int]:
        error = cause(exceptions[rank])
        is_infra = classify(error)[0] == "infra"
        return bool(_BROKEN_BY_PEER.search(str(error))) and is_infra, is_infra, rank

    rank = min(exceptions, key=order)
    error = cause(exceptions[rank])
    beat = beats.get(rank)
    where = "" if beat is None else f" in {beat.phase_name}" + (f" at step {beat.step + 1}" if beat.step >= 0 else "")
    text = next((line for line in str(error).splitlines() if line.strip()), "").strip()[:_MAX_CHARS]
    return rank, f"rank {rank} failed{where}: {type(error).__name__}{': ' + text if text else ''}"


def name_memory(error: Exception, before: int, after: int) -> str | None:
    """What to tell of a rank that died for want of memory; None: it did not.

    The kernel kills a process without a word, and Ray sees no more than that it has gone. What tells of it is the
    machine's own count; so a worker that dies of something else in the seconds in which the kernel kills another
    process of the machine is told of wrongly.

    Args:
        error: Of the rank.
        before: Processes that its machine had killed for want of memory some seconds before its last beat.
        after: The same now.
    """
    failure_class, _ = classify(cause(error))
    if failure_class == "oom":
        return f"out of memory; {HINTS['oom']}"
    if failure_class == "infra" and after > before:
        return f"its machine ran out of memory and the kernel killed it; {HINTS['oom']}"
    return None


def count_memory_kills(counters: Path = _KERNEL_COUNTERS) -> int:
    """Processes that this machine's kernel has killed for want of memory since it started; 0 where it does not say."""
    try:
        lines = counters.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def end_process(pid: int, created: float) -> bool:
    """Kill the process of this number that was made at this time; whether it was there. Runs on its machine."""
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - created) > 1.0:
            return False
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True
