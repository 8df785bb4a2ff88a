"""The driver's eye on its group of workers: it reads their beats, names who hangs or lags, and ends who hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from segfleet_jobs.evacuation import Evacuation
from segfleet_jobs.pulse import BEAT_S, DUMP_REQUEST, read_beats, stack_file
from segfleet_jobs.watchdog import Beat, Hang, Rules, Straggler, Watch

LOOK_S = 2.0
# Ranks that still can dump their stacks within a few beats.
_DUMP_S = 3 * BEAT_S
_MAX_STACK_CHARS = 12_000
# A straggler is told of once in so long.
_TELL_AGAIN_S = 600.0


class Tell(Protocol):
    """Writes a fault to the job's history."""

    def __call__(self, kind: str, message: str, *, rank: int | None, phase: str | None, step: int | None) -> None:
        """Tell; must not raise."""


class Watcher:
    """Watches while it is open.

    Args:
        folder: Where the ranks beat.
        tell: Writes to the job's history.
        kill: Ends a rank's process on its machine; the group is then started anew by Ray.
        rules: When it is too long.
        evacuation: Looks at the machines below the group; None: it stays where it is, come what may.
        look_s: Between two looks.
    """

    def __init__(
        self,
        folder: Path,
        tell: Tell,
        kill: Callable[[Beat], None],
        rules: Rules | None = None,
        evacuation: Evacuation | None = None,
        look_s: float = LOOK_S,
    ) -> None:
        self._folder, self._tell, self._kill, self._look_s = folder, tell, kill, look_s
        self._evacuation = evacuation
        self._watch = Watch(rules or Rules())
        self._told: dict[int, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._look_s):
            try:
                self.look(time.monotonic())
            except Exception as error:
                # Whatever it trips over, training goes on and the next look comes.
                print(f"segfleet: a look at the workers failed: {error!r}", flush=True)

    def look(self, now: float) -> None:
        """One look at all ranks, and what follows."""
        ended, beats = list[Beat](), list[Beat]()
        for beat in read_beats(self._folder):
            (ended if is_ended(self._folder, beat) else beats).append(beat)
        if self._evacuation is not None:
            self._evacuation.look({beat.node for beat in beats}, {beat.node for beat in ended}, now)
        found = self._watch.look(beats, now)
        if isinstance(found, Straggler):
            self._warn(found, now)
        elif isinstance(found, Hang):
            self._end(found, beats)

    def _warn(self, straggler: Straggler, now: float) -> None:
        beat = straggler.beat
        if now - self._told.get(beat.rank, -_TELL_AGAIN_S) < _TELL_AGAIN_S:
            return
        self._told[beat.rank] = now
        print(f"segfleet: {straggler}", flush=True)
        self._tell("straggler", str(straggler), rank=beat.rank, phase=straggler.phase, step=max(beat.step, 0))

    def _end(self, hang: Hang, group: Iterable[Beat]) -> None:
        print(f"segfleet: {hang}; the stacks of all ranks:", flush=True)
        self._print_stacks()
        first = hang.beats[0]
        self._tell("fault", str(hang), rank=first.rank, phase=first.phase_name, step=max(first.step, 0))
        for beat in group:
            mark_ended(self._folder, beat)  # the others wait for who is ended now, and are not to blame
        for beat in hang.beats:
            self._kill(beat)

    def _print_stacks(self) -> None:
        (self._folder / DUMP_REQUEST).write_text("", encoding="utf-8")
        self._done.wait(_DUMP_S)
        for beat in read_beats(self._folder):
            try:
                stacks = stack_file(self._folder, beat.rank).read_text(encoding="utf-8", errors="replace")
            except OSError:
                stacks = ""
            text = stacks[-_MAX_STACK_CHARS:] or "no answer: the process does not run"
            print(f"segfleet: rank {beat.rank}, {beat.phase_name}, process {beat.pid}:\n{text}", flush=True)


def mark_ended(folder: Path, beat: Beat) -> None:
    """Note that a rank's process is over, for a reason that the history tells of: its silence says nothing new."""
    _mark(folder, beat.rank).write_text(f"{beat.pid} {beat.created}", encoding="utf-8")


def is_ended(folder: Path, beat: Beat) -> bool:
    """Whether the rank's process is over, and the history tells why."""
    try:
        return _mark(folder, beat.rank).read_text(encoding="utf-8") == f"{beat.pid} {beat.created}"
    except OSError:
        return False


def _mark(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.ended"
