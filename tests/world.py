"""A whole service in memory: queue, dispatcher and a cluster that misbehaves when told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factories import make_queue, make_settings, train_document
from fakes import FakeClock, FakeLauncher
from segfleet.queue.dispatcher import Dispatcher
from segfleet.queue.leadership import Office, Term
from segfleet.queue.model import Grant, Job
from segfleet.queue.sending import ClusterDoor
from segfleet.queue.service import Queue
from segfleet.queue.states import JobState

INSTANCE = "0123456789abcdef"


def lead(queue: Queue) -> Term:
    """The leadership of a queue's database, for ever."""
    office = Office(queue.store, queue.clock, "server", lease_s=float("inf"))
    office.turn()
    assert office.term is not None
    return office.term


class World:
    """A service with its cluster; `restart` is a kill -9 of the service."""

    def __init__(
        self,
        root: Path,
        url: str | None = None,
        ray: FakeLauncher | None = None,
        door: ClusterDoor | None = None,
        **settings: Any,
    ) -> None:
        self.root, self.url = root, url
        self.clock = FakeClock()
        self.ray = FakeLauncher(clock=self.clock) if ray is None else ray
        self.door = self.ray if door is None else door
        self.settings = make_settings(root, lease_s=30.0, start_deadline_s=60.0, **settings)
        self._open()

    def restart(self) -> None:
        self.queue.store.close()
        self._open()

    def _open(self) -> None:
        self.queue = make_queue(self.root, self.clock, self.url)
        self.dispatcher = Dispatcher(self.queue, lead(self.queue), self.door, self.settings)

    def submit(self, workers: int = 1, **queue: object) -> Job:
        return self.queue.submit(train_document(workers=workers, **queue), owner="ann")[0]

    def step(self, seconds: float = 0.5) -> None:
        self.dispatcher.step(self.clock.advance(seconds))

    def pass_time(self, seconds: float, beat: Grant | None = None) -> None:
        for _ in range(int(seconds / 5)):
            self.step(5.0)
            if beat is not None:
                self.queue.heartbeat(beat.attempt_id, beat.token)

    def claim(self, job: Job, number: int = 1) -> Grant:
        attempt_id = f"{job.id}-a{number}"
        return self.queue.claim(attempt_id, self.ray.jobs[attempt_id].env["SEGFLEET_CODE"], INSTANCE)

    def state(self, job: Job) -> JobState:
        return self.queue.get(job.id).state

    def log(self, attempt_id: str) -> bytes:
        return (self.settings.home.logs / f"{attempt_id}.log").read_bytes()
