"""Two servers on one database: who leads, what the one that led may still do, what the other one shows."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factories import fresh_database, make_queue, make_settings, train_document
from fakes import FakeClock, FakeLauncher
from segfleet.cli.local import _print_status
from segfleet.cluster.launcher import RayState
from segfleet.errors import LeadershipLostError, QueueUnavailableError
from segfleet.queue.board import PUBLISH_EVERY_S, Board, Mirror
from segfleet.queue.dispatcher import Dispatcher
from segfleet.queue.leader_rows import Leader
from segfleet.queue.leadership import Office, Silence
from segfleet.queue.logcopy import LogCopies
from segfleet.queue.machines import Machine
from segfleet.queue.model import Job
from segfleet.queue.reconcile import Stop, Submit
from segfleet.queue.scheduling.values import Node, Wait
from segfleet.queue.states import JobState
from segfleet.queue.store import Store
from serving import Service
from world import INSTANCE, World, lead

LEASE_S, LOOK_EVERY_S, RENEW_EVERY_S = 15.0, 1.0, 3.0


class Server:
    """One of several on a database, with a cluster in common."""

    def __init__(self, name: str, root: Path, url: str, clock: FakeClock, ray: FakeLauncher) -> None:
        self.queue, self.ray = make_queue(root, clock, url), ray
        self.settings = make_settings(root, lease_s=30.0, start_deadline_s=60.0)
        self.office = Office(self.queue.store, clock, name, LEASE_S)
        self.dispatcher: Dispatcher | None = None

    @property
    def leads(self) -> bool:
        return self.office.term is not None and self.office.term.is_certain

    def turn(self) -> None:
        self.office.turn()
        if self.office.term is None:
            self.dispatcher = None
        elif self.dispatcher is None:
            self.dispatcher = Dispatcher(self.queue, self.office.term, self.ray, self.settings)
        if self.dispatcher is not None and self.leads:
            self.dispatcher.step(self.queue.clock())


class Pair:
    """Two servers; `pass_time` lets only some of them live."""

    def __init__(self, root: Path, url: str) -> None:
        self.clock, self.ray = FakeClock(), FakeLauncher(cpus=4)
        self.ray.clock = self.clock
        self.root, self.url = root, url
        self.one, self.two = (self.server(name) for name in ("one", "two"))

    def server(self, name: str) -> Server:
        return Server(name, self.root, self.url, self.clock, self.ray)

    def pass_time(self, seconds: float, *alive: Server, every: float = LOOK_EVERY_S) -> None:
        for _ in range(int(seconds / every)):
            self.clock.advance(every)
            for server in alive:
                server.turn()

    def take_over(self) -> None:
        """The first leads, falls silent, and the second leads."""
        self.pass_time(2, self.one, self.two)
        assert self.one.leads
        assert not self.two.leads
        self.pass_time(LEASE_S + 6, self.two, every=6)
        assert self.two.leads

    def submit(self) -> Job:
        return self.one.queue.submit(train_document(), owner="ann")[0]


@pytest.fixture
def pair(tmp_path: Path, queue_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    # What two servers do to each other is the same on an embedded database, which a lock keeps to one server.
    monkeypatch.setattr(Store, "is_shared", True)
    return Pair(tmp_path, queue_url)  # type: ignore[return-value]


def leader(epoch: int = 1, beats: int = 0) -> Leader:
    return Leader(epoch, "x", beats, None, None)


def test_a_leader_is_silent_after_a_whole_lease_without_a_change() -> None:
    silence = Silence(lease_s=10)
    assert [silence.look(leader(), now) for now in (0, 4, 8, 10)] == [False] * 4
    assert silence.look(leader(), 10.5)
    assert not silence.look(leader(beats=1), 11)
    assert not silence.look(leader(epoch=2), 12)


def test_times_in_which_one_could_not_look_are_nobodys_silence() -> None:
    silence = Silence(lease_s=10)
    assert [silence.look(leader(), now) for now in (0, 4, 604, 608, 612, 614)] == [False] * 6
    assert silence.look(leader(), 614.5)


def test_one_leads_and_the_other_waits_while_it_renews(pair: Pair) -> None:
    pair.pass_time(3 * LEASE_S, pair.one, pair.two, every=RENEW_EVERY_S)
    assert pair.one.leads
    assert pair.two.office.term is None
    now = pair.two.office.leader()
    assert (now.holder, now.epoch) == ("one", 1)
    assert now.beats > LEASE_S / RENEW_EVERY_S


def test_a_dead_leader_is_replaced_in_bounded_time_under_the_next_epoch(pair: Pair) -> None:
    job = pair.submit()
    pair.pass_time(2, pair.one, pair.two)
    pair.pass_time(LEASE_S - 2, pair.two)
    assert not pair.two.leads
    pair.pass_time(4, pair.two)
    assert pair.two.leads
    assert (pair.two.office.leader().holder, pair.two.office.leader().epoch) == ("two", 2)
    assert pair.two.queue.get(job.id).state == JobState.STARTING
    assert pair.ray.runs == [f"{job.id}-a1"]


def test_a_lease_given_back_is_taken_at_once(pair: Pair) -> None:
    pair.pass_time(2, pair.one, pair.two)
    pair.one.office.release()
    pair.pass_time(LOOK_EVERY_S, pair.two)
    assert pair.two.leads
    assert pair.two.office.leader().epoch == 2
    pair.one.office.release()
    assert pair.two.office.leader().holder == "two", "who does not lead gives nothing back"


def test_a_server_started_again_under_its_name_leads_at_once_but_only_at_its_start(pair: Pair) -> None:
    pair.pass_time(2, pair.one, pair.two)
    again = pair.server("one")
    pair.pass_time(LOOK_EVERY_S, again, pair.two)
    assert again.leads
    assert again.office.leader().epoch == 2
    # Two of one name do not take it from each other in turns.
    pair.pass_time(3 * LEASE_S, pair.one, again, pair.two, every=RENEW_EVERY_S)
    assert again.office.leader().epoch == 2


def test_a_leader_that_wakes_up_writes_nothing_asks_nothing_and_follows(pair: Pair) -> None:
    pair.take_over()
    old = pair.one.dispatcher
    assert old is not None
    job = pair.submit()
    calls = len(pair.ray.stops), len(pair.ray.runs)
    with pytest.raises(LeadershipLostError, match="could not be renewed in time; another server may lead"):
        old.step(pair.clock())
    assert pair.one.queue.get(job.id).state == JobState.QUEUED
    assert (len(pair.ray.stops), len(pair.ray.runs)) == calls
    pair.pass_time(LOOK_EVERY_S, pair.one)
    assert pair.one.office.term is None
    pair.pass_time(3 * LEASE_S, pair.one, pair.two, every=RENEW_EVERY_S)
    assert pair.two.leads
    assert pair.two.office.leader().epoch == 2


WRITES = {
    "the end of an attempt": lambda d, job, attempt, now: d._end(attempt, "infra", "x", now),
    "a cancel": lambda d, job, attempt, now: d._end_cancelled(attempt, now),
    "the end of its grace": lambda d, job, attempt, now: d._end_preempted(attempt, now),
    "a closed attempt": lambda d, job, attempt, now: d._close(attempt, True, now),
    "an acceptance": lambda d, job, attempt, now: d._mark_accepted(attempt, "session_0"),
    "a new code": lambda d, job, attempt, now: d._post(job, attempt, now),
    "a start and all else of a turn": lambda d, job, attempt, now: d._dispatch(now),
    "a dependency": lambda d, job, attempt, now: d._planner.resolve_dependencies(now),
    "the board": lambda d, job, attempt, now: d._publisher.publish(Board(trouble="old"), now),
}


@pytest.mark.parametrize("what", WRITES)
def test_every_write_of_a_leader_in_the_middle_of_its_turn_is_refused_after_it_was_replaced(
    pair: Pair, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was suspended after its last look at the clock: nothing but the fence can tell."""
    parent = pair.submit()
    pair.pass_time(2, pair.one, pair.two)
    attempt_id = f"{parent.id}-a1"
    grant = pair.one.queue.claim(attempt_id, pair.ray.jobs[attempt_id].env["SEGFLEET_CODE"], INSTANCE)
    children = [
        pair.one.queue.submit(train_document(after=[f"{parent.id}:{how}"]), owner="ann")[0] for how in ("ok", "failed")
    ]
    pair.pass_time(LEASE_S + 6, pair.two, every=6)
    if what == "a dependency":
        pair.two.queue.complete(attempt_id, grant.token, {})
    else:
        pair.two.queue.cancel(parent.id, "ann")
    waiting = pair.submit()
    assert pair.one.dispatcher is not None
    assert pair.one.office.term is not None
    pair.one.office.term.renewed_at = pair.clock() + 1e6
    before = everything(pair, parent, waiting, *children)
    attempt = pair.one.queue.attempts(parent.id)[0]
    with pytest.raises(LeadershipLostError, match="epoch 1 has ended: epoch 2 leads; nothing was stored"):
        WRITES[what](pair.one.dispatcher, parent, attempt, pair.clock())  # type: ignore[no-untyped-call]
    assert everything(pair, parent, waiting, *children) == before
    assert not pair.one.leads


@pytest.mark.parametrize("call", ["stop", "submit"])
def test_a_leader_that_could_not_renew_in_time_makes_no_further_call_to_ray(pair: Pair, call: str) -> None:
    job = pair.submit()
    pair.ray.next_submits = ["lost"]
    pair.pass_time(1, pair.one)
    pair.clock.advance(LEASE_S)
    assert pair.one.dispatcher is not None
    pair.one.dispatcher._eye.session = "session_1"
    attempt = pair.one.queue.attempts(job.id)[0]
    with pytest.raises(LeadershipLostError, match="could not be renewed in time"):
        pair.one.dispatcher._apply({"stop": Stop(), "submit": Submit()}[call], job, attempt, pair.clock())
    assert (pair.ray.runs, pair.ray.stops) == ([], [])


def everything(pair: Pair, *jobs: Job) -> list[Any]:
    queue = pair.two.queue
    with queue.store.read() as tx:
        board = tx.leaders.board()
    ours = [[queue.events(job.id), queue.attempts(job.id), queue.get(job.id).state] for job in jobs]
    return [*ours, board, list(pair.ray.runs), list(pair.ray.stops)]


def test_what_an_old_leader_still_sends_is_harmless(pair: Pair) -> None:
    """It was suspended between its transaction and its call to Ray, which no fence can hold."""
    job = pair.submit()
    pair.ray.next_submits = ["lost"]
    pair.take_over()
    attempt_id = f"{job.id}-a1"
    new_code = pair.ray.jobs[attempt_id].env["SEGFLEET_CODE"]
    # Its late submission has the same id, and Ray knows that one.
    pair.ray.submit(attempt_id, "late", {"SEGFLEET_CODE": "old"}, {})
    assert pair.ray.runs == [attempt_id]
    grant = pair.two.queue.claim(attempt_id, new_code, INSTANCE)
    # Its late stop can only be of an attempt that has ended or must end; the next one has another id.
    pair.two.queue.fail(attempt_id, grant.token, {"class": "infra", "message": "x"})
    pair.ray.end(attempt_id, RayState.FAILED)
    pair.pass_time(10, pair.two)
    assert pair.ray.runs == [attempt_id, f"{job.id}-a2"]
    pair.ray.stop(attempt_id)
    assert pair.ray.jobs[f"{job.id}-a2"].state == RayState.RUNNING


def test_nothing_is_taken_over_because_the_database_was_away(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.pass_time(5, pair.one, pair.two)

    def away(*_: object) -> None:
        raise QueueUnavailableError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_transaction", away)
        for server in (pair.one, pair.two):
            pair.clock.advance(10 * LEASE_S)
            with pytest.raises(QueueUnavailableError):
                server.office.turn()
        assert not pair.one.leads, "it may not lead while it cannot know"
    for _ in range(5):
        pair.clock.advance(LOOK_EVERY_S)
        pair.two.turn()
        pair.one.turn()
    assert pair.one.leads
    assert pair.one.office.leader().epoch == 1


def test_the_dispatchers_loop_ends_with_the_leadership(pair: Pair) -> None:
    pair.take_over()
    assert pair.one.dispatcher is not None
    stop = threading.Event()
    too_late = threading.Timer(10, stop.set)
    too_late.start()
    pair.one.dispatcher.run(stop)
    too_late.cancel()
    assert not stop.is_set()


def test_followers_show_what_the_leader_sees(pair: Pair) -> None:
    jobs = [pair.one.queue.submit(train_document(workers=3), owner="ann")[0] for _ in range(2)]
    mirror = Mirror(pair.two.queue.store)
    assert mirror.look() == Board()
    pair.pass_time(PUBLISH_EVERY_S + 1, pair.one, pair.two)
    board = mirror.look()
    assert board == pair.one.queue.board
    assert board is not None
    assert board.nodes == (Node(4, 0),)
    assert board.machines == (Machine("head", "head", 4, 0),)
    pair.two.queue.board = board
    assert pair.two.queue.get(jobs[1].id) == pair.one.queue.get(jobs[1].id)
    assert pair.two.queue.get(jobs[1].id).place == 1
    pair.pass_time(3, pair.one)
    assert mirror.look() is None, "a board that has not changed is not stored again"
    pair.ray.reachable = False
    pair.pass_time(PUBLISH_EVERY_S + 1, pair.one)
    board = mirror.look()
    assert board is not None
    assert "cannot be reached" in board.trouble


def test_a_board_of_another_version_is_no_board() -> None:
    board = Board((Node(1, 2),), "", {"job-a": Wait("job-a", 1, "why", 2.5)})
    assert Board.of_document(board.as_document() | {"columns": [["cpus"], []]}) == Board()


def test_an_embedded_database_stores_no_board_and_needs_no_lease_to_run_out(tmp_path: Path) -> None:
    pair = Pair(tmp_path, fresh_database("sqlite", tmp_path))
    pair.submit()
    pair.pass_time(2, pair.one)
    with pair.one.queue.store.read() as tx:
        assert tx.leaders.board() == {}
    pair.pass_time(LOOK_EVERY_S, pair.two)
    assert pair.two.leads


def test_servers_that_start_together_make_the_tables_once(database_url: str) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("one server each")
    stores: list[Store] = []
    threads = [threading.Thread(target=lambda: stores.append(Store(database_url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4
    for store in stores:
        store.close()


def test_a_leader_suspended_inside_a_transaction_gives_its_locks_back(
    queue_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if queue_url.startswith("sqlite"):
        pytest.skip("has one server")
    monkeypatch.setattr("segfleet.queue.database.IDLE_TIMEOUT_MS", 200)
    clock = FakeClock()
    one, two = Store(queue_url), Store(queue_url)
    first, second = Office(one, clock, "one", LEASE_S), Office(two, clock, "two", LEASE_S)
    first.turn()
    assert first.term is not None
    suspended = first.term.write()
    suspended.__enter__()
    for _ in range(5):
        # The last of these waits for the lock, no longer than the database keeps it for the other one.
        second.turn()
        clock.advance(LEASE_S / 2.5)
    assert second.term is not None
    with pytest.raises(QueueUnavailableError):
        suspended.__exit__(None, None, None)
    for store in (one, two):
        store.close()


def test_jobs_are_told_where_to_report_to(tmp_path: Path, queue_url: str) -> None:
    world = World(tmp_path, queue_url)
    settings = replace(world.settings, attempts_url="https://fleet.example.org")
    job = world.submit()
    Dispatcher(world.queue, lead(world.queue), world.ray, settings).step(world.clock())
    assert world.ray.jobs[f"{job.id}-a1"].env["SEGFLEET_URL"] == "https://fleet.example.org"


def test_the_status_says_who_leads_and_who_was_asked(service: Service) -> None:
    def status() -> dict[str, Any]:
        return dict(service.http.get("/api/v1/status", headers=service.bearer).json())

    nobody, name = status(), f"{socket.gethostname()[:64]}:8700"
    assert nobody["server"] == {"name": name, "role": "follower"}
    assert nobody["leader"] == {"name": "", "epoch": 0, "since": None}
    Office(service.queue.store, lambda: 5.0, "other:1", LEASE_S).turn()
    assert status()["leader"] == {"name": "other:1", "epoch": 1, "since": 5.0}
    assert status()["server"]["role"] == "follower"


def test_the_status_command_says_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    storage = {"ok": False, "path": "/s", "free_bytes": 3_000_000_000, "total_bytes": 80_000_000_000}
    status = {
        "jobs": {},
        "server": {"name": "a:1", "role": "leader"},
        "leader": {"name": "a:1", "epoch": 4},
        "database": {"kind": "sqlite", "answered_in_s": 0.002},
        "storage": storage,
    }
    _print_status([], status)
    gone = {"storage": storage | {"free_bytes": None}}
    _print_status([], status | gone | {"server": {"name": "b:2", "role": "follower"}})
    assert capsys.readouterr().out.splitlines() == [
        "jobs: none",
        "database: sqlite, answers in 2 ms",
        "storage: 3 of 80 GB free, which is little",
        "leader: this server, a:1, epoch 4",
        "jobs: none",
        "database: sqlite, answers in 2 ms",
        "storage: /s cannot be reached",
        "leader: a:1, epoch 4; asked: b:2, a follower",
    ]


def test_a_log_is_copied_to_its_place_by_whoever_copies_it(tmp_path: Path) -> None:
    """The second copier goes on where the first one is; the first one, suspended with what it had, changes nothing."""
    clock, log = FakeClock(), "abc"
    copies = [LogCopies(tmp_path, lambda _: log, clock) for _ in range(2)]
    copies[0].finish("a")
    log = "abcdef"
    with pytest.MonkeyPatch.context() as patch:
        # While the first writes, at the place where it found the end, the second one writes too.
        seek_end = Path.open

        def open_late(path: Path, *mode: Any, **more: Any) -> Any:
            file = seek_end(path, *mode, **more)
            file.seek(0, os.SEEK_END)
            end = file.tell()
            patch.undo()
            copies[1].finish("a")
            file.seek = lambda *_: file.__class__.seek(file, end)
            return file

        patch.setattr(Path, "open", open_late)
        copies[0].finish("a")
    assert (tmp_path / "a.log").read_text() == "abcdef"
