"""The queue as its page shows it: looked at once a second for all who look."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from segfleet.queue.board import Board
from segfleet.queue.model import Job, Wanted
from segfleet.queue.policy import policy_of
from segfleet.queue.scheduling.values import Quota
from segfleet.queue.service import Queue
from segfleet.queue.states import HOLDING, TERMINAL, JobState
from segfleet.web.curves import Curves
from segfleet.web.figures import DASH, progress_of
from segfleet.web.line import Entry, Line, in_order

FRESH_S = 1.0
PAGE_JOBS = 50


@dataclass(frozen=True, slots=True)
class Wish:
    """What of the queue somebody wants to see.

    Attributes:
        show: `active` | `ended`.
        text: In the name, or the begin of the id.
        page: Of the active jobs, from 1.
        before: Of the ended jobs: submitted before the job of this `seq`.
    """

    show: str = "active"
    text: str = ""
    project: str = ""
    owner: str = ""
    state: str = ""
    page: int = 1
    before: int | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """How much of the cluster is in use.

    Attributes:
        nodes: (how many, CPUs of each, GPUs of each) of each kind of machine.
        projects: {"name", "workers", "gpus", "running", "waiting", "quota"} of each.
    """

    cpus: int = 0
    gpus: int = 0
    all_cpus: int = 0
    all_gpus: int = 0
    nodes: Sequence[tuple[int, int, int]] = ()
    projects: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Picture:
    """The queue at one moment.

    Attributes:
        active: Jobs that have not ended: those that run, those that wait in their order, those that are paused.
        held: Workers of the jobs that run.
    """

    at: float
    active: Sequence[Entry]
    held: Mapping[str, int]
    board: Board
    use: Use
    counts: Mapping[JobState, int]


class Overview:
    """Looks at the queue for all pages; safe to share between threads.

    Args:
        queue: The jobs.
        curves: Of the jobs.
    """

    def __init__(self, queue: Queue, curves: Curves) -> None:
        self._queue, self._curves, self._lock = queue, curves, threading.Lock()
        self._picture: tuple[float, Picture] | None = None
        self._line = Line()

    def look(self) -> Picture:
        """The queue as it was at most a second ago.

        Raises:
            QueueUnavailableError: the database cannot be read.
        """
        with self._lock:
            if self._picture is None or time.monotonic() - self._picture[0] >= FRESH_S:
                self._picture = time.monotonic(), self._take()
            return self._picture[1]

    def rows(self, picture: Picture, wish: Wish) -> tuple[list[dict[str, Any]], int]:
        """The jobs of one page of the list, and how many there are in all pages."""
        is_all = not (wish.project or wish.owner or wish.state or wish.text)
        found = picture.active if is_all else [row for row in picture.active if _is_wanted(row, wish)]
        ids = [row.id for row in found[(wish.page - 1) * PAGE_JOBS :][:PAGE_JOBS]]
        with self._queue.store.read() as tx:
            jobs = tx.pages.jobs(ids)
        return [self._row(jobs[job_id], picture) for job_id in ids if job_id in jobs], len(found)

    def ended(self, picture: Picture, wish: Wish) -> list[dict[str, Any]]:
        """A page of the jobs that have ended, the latest submitted first."""
        states = tuple(state for state in TERMINAL if not wish.state or state == wish.state) or tuple(TERMINAL)
        wanted = Wanted(states, wish.project or None, wish.owner or None, None, wish.text or None, wish.before)
        return [self._row(job, picture) for job in self._queue.list(wanted, PAGE_JOBS)]

    def _take(self) -> Picture:
        board = self._queue.board
        with self._queue.store.read() as tx:
            active, held = in_order(self._line.read(tx.pages), board.waits), tx.pages.held_workers()
            quotas, counts = policy_of(tx.policies())[0].projects, tx.count_jobs()
        use = _use_of(active, held, board, quotas)
        return Picture(self._queue.clock(), active, held, board, use, counts)

    def _row(self, job: Job, picture: Picture) -> dict[str, Any]:
        wait = picture.board.waits.get(job.id) if job.state == JobState.QUEUED else None
        progress = progress_of(job.progress)
        learning = self._curves.of(job.id) if job.state in HOLDING and job.kind == "train" else None
        series = learning.found["series"].get("val/miou", []) if learning and learning.found else []
        result = (job.result or {}).get("miou")
        return {
            "job": job,
            "progress": progress,
            "miou": progress["miou"] if result is None else result,
            "points": series,
            "workers": _workers(job, picture.held),
            "place": None if wait is None else wait.place,
            "starts_at": None if wait is None else wait.starts_at,
            "reason": job.reason if wait is None else wait.reason,
        }


def _use_of(active: Sequence[Entry], held: Mapping[str, int], board: Board, quotas: Mapping[str, Quota]) -> Use:
    """Add up what the running jobs hold, and count those that wait."""
    cpus = gpus = 0
    workers: Counter[str] = Counter()
    project_gpus: Counter[str] = Counter()
    running: Counter[str] = Counter()
    for entry in active:
        if entry.state not in HOLDING:
            break  # all that follow wait
        number = held.get(entry.id, entry.workers)
        cpus, gpus = cpus + number * entry.cpus, gpus + number * entry.gpus
        running[entry.project] += 1
        workers[entry.project] += number
        project_gpus[entry.project] += number * entry.gpus
    waiting = Counter(entry.project for entry in active if entry.state == JobState.QUEUED)
    names = sorted({*running, *waiting, *quotas})
    projects = [
        {
            "name": name,
            "workers": workers[name],
            "gpus": project_gpus[name],
            "running": running[name],
            "waiting": waiting[name],
            "quota": quotas.get(name, Quota()),
        }
        for name in names
    ]
    nodes = board.nodes or ()
    alike = Counter((node.cpus, node.gpus) for node in nodes)
    kinds = [(number, *size) for size, number in sorted(alike.items(), reverse=True)]
    all_cpus, all_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    return Use(cpus, gpus, all_cpus, all_gpus, kinds, projects)


def _is_wanted(row: Entry, wish: Wish) -> bool:
    return (
        (not wish.project or row.project == wish.project)
        and (not wish.owner or row.owner == wish.owner)
        and (not wish.state or row.state == wish.state)
        and (not wish.text or wish.text in row.name or row.id.startswith(wish.text))
    )


def _workers(job: Job, held: Mapping[str, int]) -> str:
    bounds = f"{job.gang.workers}{DASH}{job.gang.max_workers}" if job.gang.max_workers > job.gang.workers else ""
    if job.state in HOLDING and job.id in held:
        return f"{held[job.id]} of {bounds}" if bounds else str(held[job.id])
    return bounds or str(job.gang.workers)
