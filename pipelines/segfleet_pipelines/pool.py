"""Run units of work here or in processes of their own, with progress by the sample."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

from segfleet.errors import SegfleetError

Advance = Callable[[int], None]
Progress = Callable[[int, int], None]

_REPORT_S = 0.2


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How a unit of work has ended.

    Attributes:
        reused: It was done already.
        bad: A line for each sample that cannot be used.
        changed: A line for each sample that is not the one in the base any more.
    """

    reused: bool = False
    bad: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


class Task(Protocol):
    """A unit of work that can be sent to another process."""

    @property
    def num_samples(self) -> int:
        """How many steps of progress it has."""
        ...

    def run(self, advance: Advance) -> TaskResult:
        """Do it; tells how many samples are done as it goes."""
        ...


class _StoppedError(Exception):
    """The run is over; nobody waits for this work any more."""


def run_tasks(tasks: Sequence[Task], processes: int, lock: Path, report: Progress) -> list[TaskResult]:
    """Results of the tasks, in their order.

    Args:
        tasks: Each is done by one process, so no data cross between them.
        processes: How many; 1 works in this one.
        lock: A file that each process holds locked (shared) while it lives.
        report: Called with samples done and samples in all.

    Raises:
        SegfleetError: a process was killed.
    """
    total = sum(task.num_samples for task in tasks)
    if min(processes, len(tasks)) <= 1:
        return _run_here(tasks, total, report)
    # Fresh processes, not forked ones: the caller may hold threads and locks that a fork would copy in mid-use.
    context = multiprocessing.get_context("spawn")
    # One writer for each number, so that no process can die with a lock that others wait for.
    counts, stop = context.RawArray("q", len(tasks)), context.RawValue("b", 0)
    pool = ProcessPoolExecutor(
        min(processes, len(tasks)), mp_context=context, initializer=_begin_process, initargs=(lock, counts, stop)
    )
    try:
        futures = [pool.submit(_run_in_process, place, task) for place, task in enumerate(tasks)]
        pending: set[Future[TaskResult]] = set(futures)
        while pending:
            finished, pending = wait(pending, _REPORT_S, FIRST_EXCEPTION)
            for future in finished:
                future.result()
            report(sum(counts), total)
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise SegfleetError("a process was killed, perhaps for lack of memory; use fewer processes") from error
    finally:
        stop.value = 1
        pool.shutdown(cancel_futures=True)


def silent(_done: int, _total: int) -> None:
    """Progress that nobody wants to know of."""


def _run_here(tasks: Sequence[Task], total: int, report: Progress) -> list[TaskResult]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    return [task.run(advance) for task in tasks]


_shared: tuple[Any, Any] | None = None


def _begin_process(lock: Path, counts: Any, stop: Any) -> None:
    """In a fresh process: leave Ctrl-C to the parent, and end with it whatever ends it."""
    global _shared
    _shared = counts, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Held until the process is gone: a next run waits for what a killed one has left behind.
    fcntl.flock(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), fcntl.LOCK_SH)
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        os._exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _run_in_process(place: int, task: Task) -> TaskResult:
    assert _shared is not None
    counts, stop = _shared

    def advance(count: int) -> None:
        counts[place] += count
        if stop.value:
            raise _StoppedError

    return task.run(advance)
