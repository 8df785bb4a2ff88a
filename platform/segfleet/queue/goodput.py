"""Where a job's time went, from its first start to its end: a pure split of the recorded history.

Every second belongs to exactly one part, whatever the clocks did: boundaries are brought into order first, and the
account of a process is laid into the time that the service knows it had.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from segfleet.queue.lives import OWN_PARTS
from segfleet.queue.model import Attempt, Document, Event, Job
from segfleet.queue.states import AttemptState, JobState

# In the order in which they are shown: what brings the job on, what it costs, what faults cost, what others decide.
PARTS = (
    "step",
    "validation",
    "work",
    "data",
    "checkpoint",
    "mlflow",
    "load",
    "other",
    "redone",
    "detection",
    "restart",
    "waiting",
    "paused",
    "stopped",
)
_PRODUCTIVE = ("step", "validation", "work")
# Nothing that the service or the cluster could do better.
_BY_CHOICE = ("paused", "stopped")
_FAULTY = (AttemptState.FAILED, AttemptState.LOST)
FAULT = "fault"
FAULT_KINDS = (FAULT, "straggler", "damage")
# What a job without a process is at, after these lines of its history; others change nothing of it.
_GAPS = {
    "retrying": "restart",
    "preempted": "waiting",
    "resumed": "waiting",
    "retry_requested": "waiting",
    "paused": "paused",
    "failed": "stopped",
    "cancelled": "stopped",
    "succeeded": "stopped",
}
GAP_KINDS = (*_GAPS, FAULT)


@dataclass(frozen=True, slots=True)
class Goodput:
    """The split of one job's time.

    Attributes:
        first_wait_s: From submission to the first start; no part of the split.
        wall_s: From the first start to the end, or to now.
        seconds: By part, in the order of `PARTS`; their sum is `wall_s`.
    """

    first_wait_s: float
    wall_s: float
    seconds: dict[str, float]

    @property
    def share(self) -> float | None:
        """Share of the time that brought the job on, 0 to 1, not counting pauses; None: there was no time yet."""
        base = self.wall_s - sum(self.seconds[part] for part in _BY_CHOICE)
        return sum(self.seconds[part] for part in _PRODUCTIVE) / base if base > 0 else None

    def to_document(self) -> Document:
        """As the service shows it; parts without any time are left out."""
        seconds = {part: round(value, 3) for part, value in self.seconds.items() if value >= 0.0005}
        share = None if self.share is None else round(self.share, 4)
        return {
            "share": share,
            "wall_s": round(self.wall_s, 3),
            "first_wait_s": round(self.first_wait_s, 3),
            "seconds": seconds,
        }


class _Ledger:
    """Time that only goes forward, from one boundary to the next."""

    def __init__(self, begin: float, end: float) -> None:
        self.at, self.end = begin, end
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def until(self, moment: float, part: str) -> float:
        """Give the time up to a moment to a part; how long that was."""
        moment = min(max(moment, self.at), self.end)
        length, self.at = moment - self.at, moment
        self.seconds[part] += length
        return length

    def move(self, source: str, target: str, seconds: float) -> None:
        """Give time of one part to another."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds


def split(job: Job, attempts: Sequence[Attempt], events: Iterable[Event], now: float) -> Goodput | None:
    """Split a job's time.

    Args:
        job: The job.
        attempts: All of them, oldest first.
        events: Its history, oldest first; those of `GAP_KINDS` will do.
        now: Seconds since the epoch.

    Returns:
        The split, or None before the first start.
    """
    if job.started_at is None:
        return None
    ledger = _Ledger(job.started_at, max(now if job.finished_at is None else job.finished_at, job.started_at))
    gaps = _Gaps(events)
    kept = _kept_steps(attempts)
    for attempt in attempts:
        if attempt.claimed_at is not None:
            gaps.fill(ledger, attempt.claimed_at, attempt.number)
            _fill_attempt(ledger, job, attempt, gaps.faults.get(attempt.number, []), kept)
    if not any(attempt.claimed_at is not None and attempt.is_alive for attempt in attempts):
        gaps.fill(ledger, ledger.end, None)
    first_wait_s = max(0.0, job.started_at - job.created_at)
    return Goodput(first_wait_s, ledger.end - job.started_at, {k: max(0.0, v) for k, v in ledger.seconds.items()})


class _Gaps:
    """What a job is at between two attempts, from its history."""

    def __init__(self, events: Iterable[Event]) -> None:
        known = [event for event in events if event.kind in GAP_KINDS]
        self._changes = [event for event in known if event.kind != FAULT]
        self._place, self._part = 0, "waiting"
        self.faults: dict[int, list[float]] = {}
        for event in known:
            if event.kind == FAULT:
                self.faults.setdefault(event.attempt, []).append(event.at)

    def fill(self, ledger: _Ledger, until: float, attempt: int | None) -> None:
        """Account for the time until the claim of an attempt (None: of no attempt)."""
        while self._place < len(self._changes):
            event = self._changes[self._place]
            if attempt is not None and event.attempt >= attempt:
                break
            ledger.until(event.at, self._part)
            self._part = "paused" if event.target == JobState.PAUSED else _GAPS[event.kind]
            self._place += 1
        ledger.until(until, self._part)


def _fill_attempt(ledger: _Ledger, job: Job, attempt: Attempt, faults: list[float], kept: Iterator[float]) -> None:
    """Account for the time from an attempt's claim to its end."""
    end = ledger.end if attempt.finished_at is None else attempt.finished_at
    before, is_train = "load", job.kind == "train"
    for life in attempt.lives:
        begin = min(life["begin"], end)
        if before == "restart":
            ledger.until(_noticed(faults, ledger.at, begin), "detection")
        ledger.until(begin, before)
        _fill_life(ledger, life, end, next(kept))
        before = "restart"
    if attempt.lives and attempt.is_alive and (noticed := _noticed(faults, ledger.at, end)) > ledger.at:
        ledger.until(noticed, "detection")
        rest = "restart"
    elif attempt.lives:
        rest = str(attempt.lives[-1]["part"]) if attempt.is_alive else "other"
    else:
        rest = "load" if is_train else "work"
        if attempt.state in _FAULTY and attempt.heartbeat_at is not None:
            ledger.until(min(attempt.heartbeat_at, end), rest)
    ledger.until(end, "detection" if attempt.state in _FAULTY else rest)


def _noticed(faults: list[float], after: float, before: float) -> float:
    """When the loss of a group was noticed that was alive until `after`; unknown: at once."""
    return min((at for at in faults if after <= at <= before), default=after)


def _fill_life(ledger: _Ledger, life: Document, end: float, kept: float) -> None:
    """Lay a life's account into its time; `kept` is the step at which the next life that went back began."""
    elapsed, seconds = life["elapsed"], dict(life["seconds"])
    seconds["other"] = seconds.get("other", 0.0) + max(0.0, elapsed - sum(seconds.values()))
    length = ledger.until(min(life["begin"] + elapsed, end), "other")
    total = sum(seconds.values())
    scale = length / total if total > 0 else 0.0
    lost = _lost_shares(life, kept)
    for part in OWN_PARTS:
        own = seconds.get(part, 0.0) * scale
        ledger.move("other", part, own)
        if part != "load":
            unsaved = min(life["unsaved"].get(part, 0.0) * scale, own)
            ledger.move(part, "redone", lost[0] * unsaved + lost[1] * (own - unsaved))


def _lost_shares(life: Document, kept: float) -> tuple[float, float]:
    """How much of a life's work since its last checkpoint, and before that, a later life did again."""
    start, saved, step = life["start"], max(life["saved"], life["start"]), life["step"]

    def share(low: int, high: int) -> float:
        return min(max((high - kept) / (high - low), 0.0), 1.0) if high > low else 0.0

    return share(saved, step), share(start, min(saved, step))


def _kept_steps(attempts: Sequence[Attempt]) -> Iterator[float]:
    """For each life, oldest first, the lowest step at which a later one began."""
    starts = [life["start"] for life in chain.from_iterable(attempt.lives for attempt in attempts)]
    lowest, kept = math.inf, list[float]()
    for start in reversed(starts):
        kept.append(lowest)
        lowest = min(lowest, start)
    return reversed(kept)
