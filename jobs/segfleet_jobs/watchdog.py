"""Which rank hangs or holds the others up: a pure decision on what the ranks tell of themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

# In this order a rank goes through a step and what is due after it; the least advanced rank holds the others up.
_PHASES = ("load", "data", "forward", "backward", "read", "validation", "checkpoint")


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank has told of itself.

    Attributes:
        node: Ray's id of its machine.
        pid: Its process, with the time at which that was made, seconds since the epoch.
        count: Beats of this process so far.
        step: The step that it is at, from 0; -1 before the first.
        phase: load, data, forward, backward, read, validation, checkpoint, or done.
        is_waiting: It waits in that phase for the other ranks.
        for_s: Seconds in that phase, or at that sample of a validation.
        num_steps: Steps behind the following medians.
        step_s, data_s, forward_s: Median seconds of a step, of its data and forward without waiting for others.
        sample_s: Longest of the latest samples of a validation; 0: none yet.
        memory_kills: Processes that the kernel of its machine had killed for want of memory some beats before.
    """

    rank: int
    node: str
    pid: int
    created: float
    count: int
    step: int
    phase: str
    is_waiting: bool
    for_s: float
    num_steps: int
    step_s: float
    data_s: float
    forward_s: float
    sample_s: float
    memory_kills: int

    @property
    def place(self) -> tuple[int, int, bool]:
        """How far it is, to compare with other ranks."""
        return self.step, _PHASES.index(self.phase), self.is_waiting

    @property
    def phase_name(self) -> str:
        """The phase for a person."""
        return "all-reduce" if self.is_waiting else self.phase


@dataclass(frozen=True, slots=True)
class Seen:
    """A beat, and for how long the watching side has seen no later one, seconds."""

    beat: Beat
    silent_s: float


@dataclass(frozen=True, slots=True)
class Rules:
    """When a rank has stood still for too long, seconds.

    Attributes:
        still_s: At least so long in one phase of a step, or at one sample of a validation.
        times: At least so many times what it usually takes.
        first_s: Where nothing is known of what is usual: loading, the first steps (they may compile), the first sample.
        checkpoint_s: Writing a checkpoint.
        silent_s: No beat at all.
        slow_ratio: A straggler's data and forward take so many times those of the others' median,
        slow_s: and so many seconds more.
        slow_steps: So many steps must show it.
    """

    still_s: float = 60.0
    times: float = 20.0
    first_s: float = 900.0
    checkpoint_s: float = 600.0
    silent_s: float = 60.0
    slow_ratio: float = 3.0
    slow_s: float = 0.05
    slow_steps: int = 10


@dataclass(frozen=True, slots=True)
class Hang:
    """These ranks stand still; with them all others.

    Attributes:
        beats: Their last ones.
        for_s: For how long.
        is_silent: Their processes do not even beat: stopped, swapped out, or cut off.
    """

    beats: tuple[Beat, ...]
    for_s: float
    is_silent: bool

    def __str__(self) -> str:
        first = self.beats[0]
        ranks = ", ".join(str(beat.rank) for beat in self.beats)
        who = f"rank{'s' if len(self.beats) > 1 else ''} {ranks}"
        where = f"in {first.phase_name} at step {first.step + 1}" if first.step >= 0 else f"in {first.phase_name}"
        how = "gave no sign of life" if self.is_silent else "stood still"
        return f"{who} {how} for {self.for_s:.0f} s {where}"


@dataclass(frozen=True, slots=True)
class Straggler:
    """A rank whose own work takes much longer than the others'; each step waits for it.

    Attributes:
        beat: Its last one.
        phase: data or forward, whichever takes more of the excess.
        ratio: To the median of the others.
    """

    beat: Beat
    phase: str
    ratio: float

    def __str__(self) -> str:
        return (
            f"rank {self.beat.rank} is a straggler: its {self.phase} is slow, its own work takes {self.ratio:.1f} "
            f"times the others'"
        )


def verdict(seen: Sequence[Seen], rules: Rules) -> Hang | Straggler | None:
    """What is wrong with a group, if anything.

    A rank that does not beat is named before one that beats; among those that beat, the least advanced ones: the
    others only wait for them.

    Args:
        seen: One for each rank that has begun and not ended.
        rules: When it is too long.
    """
    working = [one for one in seen if one.beat.phase != "done"]
    silent = [one for one in working if one.silent_s > _silence_limit(one.beat, rules)]
    if silent:
        return Hang(tuple(one.beat for one in silent), max(one.silent_s for one in silent), is_silent=True)
    last = min((one.beat.place for one in working), default=None)
    behind = [one for one in working if one.beat.place == last]
    if behind and all(_still_s(one) > _limit(one.beat, rules) for one in behind):
        return Hang(tuple(one.beat for one in behind), max(map(_still_s, behind)), is_silent=False)
    return _straggler([one.beat for one in working], rules)


class Watch:
    """Remembers when it last saw each rank beat, by its own clock; a pause of its own is nobody's silence.

    Args:
        rules: When it is too long.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._seen: dict[int, tuple[tuple[int, float, int], float]] = {}
        self._looked_at: float | None = None

    def look(self, beats: Iterable[Beat], now: float) -> Hang | Straggler | None:
        """Judge the latest beats.

        Args:
            beats: Of all ranks that have one.
            now: Seconds of a clock that does not jump.
        """
        paused = self._looked_at is not None and now - self._looked_at > self._rules.silent_s / 4
        self._looked_at = now
        seen = []
        for beat in beats:
            sign, known = (beat.pid, beat.created, beat.count), self._seen.get(beat.rank)
            since = now if paused or known is None or known[0] != sign else known[1]
            self._seen[beat.rank] = (sign, since)
            seen.append(Seen(beat, now - since))
        return verdict(seen, self._rules)


def _still_s(one: Seen) -> float:
    return one.beat.for_s + one.silent_s


def _silence_limit(beat: Beat, rules: Rules) -> float:
    return rules.first_s if beat.phase == "load" else rules.silent_s


def _limit(beat: Beat, rules: Rules) -> float:
    if beat.phase == "checkpoint":
        return rules.checkpoint_s
    usual_s = beat.sample_s if beat.phase == "validation" else beat.step_s
    return max(rules.still_s, rules.times * usual_s) if usual_s > 0 and beat.phase != "load" else rules.first_s


def _straggler(beats: Sequence[Beat], rules: Rules) -> Straggler | None:
    beats = [beat for beat in beats if beat.num_steps >= rules.slow_steps]
    found = []
    for beat in beats:
        others = [other for other in beats if other is not beat]
        if not others:
            return None
        data_s, forward_s = median(one.data_s for one in others), median(one.forward_s for one in others)
        own_s, usual_s = beat.data_s + beat.forward_s, median(one.data_s + one.forward_s for one in others)
        if own_s > rules.slow_ratio * usual_s and own_s - usual_s > rules.slow_s:
            phase = "data" if beat.data_s - data_s > beat.forward_s - forward_s else "forward"
            found.append(Straggler(beat, phase, own_s / max(usual_s, 1e-6)))
    return max(found, key=lambda one: one.ratio, default=None)
