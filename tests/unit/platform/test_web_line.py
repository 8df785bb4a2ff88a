"""The line of active jobs that the page keeps: after whatever has happened it is what the database says."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from fakes import FakeLauncher
from segfleet.errors import QueueError
from segfleet.queue.model import Job
from segfleet.queue.scheduling.values import Wait
from segfleet.queue.store import Store
from segfleet.web.line import Line, in_order
from segfleet.web.rows import PageRows
from world import World


def read(line: Line, store: Store) -> dict[int, object]:
    with store.read() as tx:
        return {entry.seq: entry for entry in line.read(tx.pages)}


def test_a_kept_line_never_differs_from_one_that_is_read_anew(tmp_path: Path, queue_url: str) -> None:
    world, dice, line = World(tmp_path, queue_url), random.Random(5), Line()
    jobs = [world.submit() for i in range(8)]

    def on_any(act: Callable[[Job], object]) -> None:
        with suppress(QueueError, KeyError):  # it is not in a state for that
            act(dice.choice(jobs))

    acts: list[Callable[[], object]] = [
        lambda: jobs.append(world.submit()),
        lambda: on_any(lambda job: world.queue.cancel(job.id, "ann")),
        lambda: on_any(lambda job: world.queue.pause(job.id, "ann")),
        lambda: on_any(lambda job: world.queue.resume(job.id, "ann")),
        lambda: on_any(lambda job: world.queue.retry(job.id, "ann")),
        lambda: on_any(lambda job: world.queue.set_priority(job.id, "otto", dice.randrange(100))),
        lambda: on_any(lambda job: world.claim(job, world.queue.get(job.id).attempt)),
        world.step,
    ]
    for _ in range(60):
        for _ in range(dice.randrange(4)):
            dice.choice(acts)()
        assert read(line, world.queue.store) == read(Line(), world.queue.store)


def test_only_what_has_changed_or_runs_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, line, asked = World(tmp_path), Line(), []
    jobs = [world.submit() for _ in range(6)]
    brief = PageRows.brief
    monkeypatch.setattr(PageRows, "brief", lambda self, seqs: asked.append(sorted(seqs)) or brief(self, seqs))
    numbers = [job.seq for job in jobs]
    read(line, world.queue.store)
    read(line, world.queue.store)
    assert asked == [numbers, []]
    world.queue.set_priority(jobs[3].id, "otto", 90)
    world.queue.cancel(jobs[4].id, "ann")
    read(line, world.queue.store)
    assert asked[2:] == [numbers[3:5]]
    world.step()
    running = [job.seq for job in jobs if world.state(job) == "starting"]
    assert running
    read(line, world.queue.store)
    read(line, world.queue.store)
    assert asked[3:] == [running, running]


def test_a_line_longer_than_a_statement_can_name_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segfleet.web.rows._MOST_NAMED", 2)
    world, line = World(tmp_path), Line()
    jobs = [world.submit() for _ in range(5)]
    world.queue.cancel(jobs[0].id, "ann")
    assert list(read(line, world.queue.store)) == [job.seq for job in jobs[1:]]


def test_those_that_run_come_first_then_places_then_who_has_none_then_who_is_paused(tmp_path: Path) -> None:
    world = World(tmp_path, ray=FakeLauncher(cpus=2))
    starts, runs, paused, early, late, urgent, second, first = (world.submit() for _ in range(8))
    for job in (starts, runs):
        world.queue.set_priority(job.id, "otto", 99)
    world.step()
    world.claim(runs)
    world.queue.pause(paused.id, "ann")
    world.queue.set_priority(urgent.id, "otto", 80)
    waits = {job.id: Wait(job.id, place, "") for place, job in ((1, first), (2, second))}
    with world.queue.store.read() as tx:
        order = in_order(Line().read(tx.pages), waits)
    wanted = [runs, starts, first, second, urgent, early, late, paused]
    assert [entry.id for entry in order] == [job.id for job in wanted]
