"""What a rank is at, told once a second to a file that the driver reads: cheap for the step, and there if all hangs.

The main thread only sets attributes; a thread of its own writes the file, and dumps the stacks of all threads when the
driver asks for it, or when it could not run for so long that something must hold the interpreter.
"""

from __future__ import annotations

import faulthandler
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median

import psutil

from segfleet_jobs.faults import count_memory_kills
from segfleet_jobs.watchdog import Beat

BEAT_S = 1.0
# Just below the silence after which the driver acts: the dump must be there by then.
STUCK_S = 50.0
_WINDOW = 20
# A rank outlives its loader's process, which may be what the kernel killed, by some beats.
_MEMORY_BEATS = 5
DUMP_REQUEST = "dump"


class Pulse:
    """The rank's own notes; to set them takes less than a microsecond.

    Args:
        clock: Seconds of a clock that does not jump.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.step, self.phase, self.is_waiting = -1, "load", False
        self.since = clock()
        self._own = {"data": 0.0, "forward": 0.0}
        self.steps: deque[tuple[float, float, float]] = deque(maxlen=_WINDOW)
        self.samples: deque[float] = deque(maxlen=_WINDOW)
        self._step_began: float | None = None

    def begin_step(self, step: int) -> None:
        """The step's data are asked for; what is due after the step before is over."""
        now = self._clock()
        self._leave(now)
        self._own = {"data": 0.0, "forward": 0.0}
        self.step, self.phase, self._step_began = step, "data", now

    def end_step(self) -> None:
        """All work of the step is launched; what follows is due only after some steps."""
        now = self._clock()
        self._leave(now)
        if self._step_began is not None:
            self.steps.append((now - self._step_began, self._own["data"], self._own["forward"]))
        self.phase, self._step_began = "read", None

    def enter(self, phase: str) -> None:
        """Go on to another phase, or to the next sample of the same."""
        now = self._clock()
        if phase == self.phase == "validation":
            self.samples.append(now - self.since)
        self._leave(now)
        self.phase = phase

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """In the block this rank waits for the others."""
        self.wait()
        try:
            yield
        finally:
            self.go_on()

    def wait(self) -> None:
        """From here on this rank waits for the others."""
        self._leave(self._clock())
        self.is_waiting = True

    def go_on(self) -> None:
        """The others have come, if this rank waited for them."""
        if self.is_waiting:
            self.is_waiting, self.since = False, self._clock()

    def _leave(self, now: float) -> None:
        if self.phase in self._own and not self.is_waiting:
            self._own[self.phase] += now - self.since
        self.since = now


class Beater:
    """Writes a rank's beats while it is open.

    Args:
        pulse: Of the rank.
        folder: Where the driver looks, on storage that both share.
        rank: Which one this is.
        node: Ray's id of its machine.
        interval_s: Between two beats.
    """

    def __init__(self, pulse: Pulse, folder: Path, rank: int, node: str, interval_s: float = BEAT_S) -> None:
        self._pulse, self._folder, self._rank, self._node = pulse, folder, rank, node
        self._interval_s, self._count, self._seen_request = interval_s, 0, 0.0
        self._memory_kills: deque[int] = deque(maxlen=_MEMORY_BEATS)
        self._created = psutil.Process().create_time()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beater", daemon=True)

    def __enter__(self) -> Beater:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stacks = stack_file(self._folder, self._rank).open("w", encoding="utf-8")
        self._seen_request = _modified(self._folder / DUMP_REQUEST)
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._pulse.enter("done")
        self._write()
        self._stacks.close()

    def _run(self) -> None:
        while not self._done.wait(self._interval_s):
            # Fires from a thread that needs no interpreter lock, unless the next beat comes in time.
            faulthandler.dump_traceback_later(STUCK_S, file=self._stacks)
            self._write()
            request = _modified(self._folder / DUMP_REQUEST)
            if request > self._seen_request:
                self._seen_request = request
                faulthandler.dump_traceback(self._stacks, all_threads=True)

    def _write(self) -> None:
        self._count += 1
        path = beat_file(self._folder, self._rank)
        draft = path.with_suffix(".new")
        try:
            draft.write_text(json.dumps(asdict(self._beat())), encoding="utf-8")
            draft.replace(path)
        except OSError as error:
            print(f"segfleet: rank {self._rank} could not write its beat: {error}", flush=True)

    def _beat(self) -> Beat:
        self._memory_kills.append(count_memory_kills())
        pulse, steps = self._pulse, list(self._pulse.steps)
        return Beat(
            rank=self._rank,
            node=self._node,
            pid=os.getpid(),
            created=self._created,
            count=self._count,
            step=pulse.step,
            phase=pulse.phase,
            is_waiting=pulse.is_waiting,
            for_s=max(0.0, time.monotonic() - pulse.since),
            num_steps=len(steps),
            step_s=median(step[0] for step in steps) if steps else 0.0,
            data_s=median(step[1] for step in steps) if steps else 0.0,
            forward_s=median(step[2] for step in steps) if steps else 0.0,
            sample_s=max(pulse.samples, default=0.0),
            memory_kills=self._memory_kills[0],
        )


def beat_file(folder: Path, rank: int) -> Path:
    """Where a rank beats."""
    return folder / f"rank-{rank:05d}.json"


def stack_file(folder: Path, rank: int) -> Path:
    """Where a rank's stacks are dumped."""
    return folder / f"rank-{rank:05d}.stack"


def read_beats(folder: Path) -> list[Beat]:
    """The latest beat of each rank that has one to read."""
    beats = []
    for path in sorted(folder.glob("rank-*.json")):
        try:
            beats.append(Beat(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue  # being written, on storage where that shows
    return beats


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
