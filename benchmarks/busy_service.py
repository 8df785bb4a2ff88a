"""A service with a long queue that never stands still, as a process of its own: `bench_pages.py` looks at its pages.

Run: python benchmarks/busy_service.py JOBS; it prints one line with what a visitor needs, and ends with its input.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from factories import train_document  # noqa: E402 - they lie beside the tests
from lively import Past, Site, lively  # noqa: E402
from segfleet.queue import intake  # noqa: E402
from segfleet.queue.board import Board  # noqa: E402
from segfleet.queue.machines import usable  # noqa: E402
from segfleet.queue.model import Grant, Job  # noqa: E402
from segfleet.queue.scheduling.values import Wait  # noqa: E402

NUM_RUNNING = 10
_STEPS = 80_000
_DOCUMENTS = [train_document(project=f"project-{number}") for number in range(20)]


class Bustle:
    """What goes on in a second: every running job gets on, one job comes and one is cancelled, places are told anew.

    Args:
        past: With the queue.
        running: Jobs that run, and who works on them.
        waiting: Jobs in their line.
    """

    def __init__(self, past: Past, running: list[tuple[Job, Grant]], waiting: list[Job]) -> None:
        self._past, self._running, self._waiting, self._step = past, running, deque(waiting), 1_000

    def second(self) -> None:
        """Let a second's worth happen."""
        queue = self._past.queue
        self._step = self._step % (_STEPS - 100) + 100
        for job, grant in self._running:
            self._past.learn(job, grant, self._step, self._step / 10_000, 0.7)
        queue.cancel(self._waiting.pop().id, "ann")
        self._waiting.append(queue.submit(_DOCUMENTS[self._step // 100 % 20], owner="ann")[0])
        waits = {job.id: Wait(job.id, place, "waits behind others") for place, job in enumerate(self._waiting, start=1)}
        machines = self._past.ray.machines()
        queue.board = Board(usable(machines), "", waits, machines)


def fill(past: Past, site: Site, num_jobs: int) -> Bustle:
    """Put so many jobs into the queue of a site; some of them run."""
    queue = past.queue
    past.at(1.0)
    jobs = [past.submit(f"busy-{number}", "ann", "streets", 2, _STEPS) for number in range(NUM_RUNNING)]
    past.at(0.9)
    running = [(job, past.claim(job)) for job in jobs if queue.get(job.id).attempt]
    past.at(0.0)
    with queue.store.write() as tx:
        users = [f"user-{number}" for number in range(50)]
        waiting = [
            intake.create(tx, _DOCUMENTS[i % 20], users[i % 50], 1_700_000_000.0 + i)
            for i in range(num_jobs - len(running))
        ]
    site.jobs = {job.name: job.id for job, _ in running}
    return Bustle(past, running, waiting)


def main(num_jobs: int) -> None:
    """Serve until there is no more input."""
    over = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        over.set()

    made: list[Bustle] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        lively(Path(folder), lambda past, site: made.append(fill(past, site, num_jobs))) as site,
    ):
        made[0].second()
        print(json.dumps({"url": site.url, "token": site.tokens["ann"], "jobs": list(site.jobs.values())}), flush=True)
        threading.Thread(target=wait_for_end, daemon=True).start()
        while not over.wait(1.0):
            made[0].second()


if __name__ == "__main__":
    main(int(sys.argv[1]))
