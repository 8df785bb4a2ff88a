"""Every second of the loop is in one part, and the rank's own notes say where it is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from segfleet.queue.lives import OWN_PARTS, told
from segfleet_jobs.account import PARTS, Account
from segfleet_jobs.attempt import Credentials
from segfleet_jobs.faults import end_process
from segfleet_jobs.group import FaultTeller
from segfleet_jobs.pulse import Beater, Pulse, beat_file, read_beats, stack_file
from segfleet_jobs.watchdog import Beat
from segfleet_jobs.watching import Watcher, is_ended


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def test_loop_and_service_know_the_same_parts() -> None:
    assert PARTS == OWN_PARTS


def test_parts_in_parts_and_what_is_in_none() -> None:
    clock = Clock()
    account = Account(clock)
    clock.pass_(3.0)
    account.started(10)
    with account.timed("step"):
        clock.pass_(4.0)
    account.stepped(11)
    with account.timed("checkpoint"):
        clock.pass_(1.0)
        with account.timed("mlflow"):
            clock.pass_(0.5)
        clock.pass_(1.0)
    account.saved(11)
    clock.pass_(0.25)
    with account.timed("data"):
        clock.pass_(2.0)
        document = account.to_document()
    seconds = {
        "load": 3.0,
        "data": 2.0,
        "step": 4.0,
        "validation": 0.0,
        "checkpoint": 2.0,
        "mlflow": 0.5,
        "other": 0.25,
    }
    assert document["seconds"] == seconds
    assert document["elapsed"] == sum(seconds.values())
    assert document["part"] == "data"
    assert {part: value for part, value in document["unsaved"].items() if value} == {"data": 2.0, "other": 0.25}
    assert (document["start"], document["step"], document["saved"]) == (10, 11, 11)
    lives = told((), document, 100.0)
    assert lives is not None
    assert lives[0]["seconds"] == seconds


def test_a_part_ends_with_an_error_too() -> None:
    clock = Clock()
    account = Account(clock)
    account.started(0)
    with pytest.raises(StopIteration), account.timed("data"):
        clock.pass_(next(iter((1.0,))) + next(iter(())))
    with account.timed("data"):
        clock.pass_(1.0)
    clock.pass_(2.0)
    assert (account.seconds["data"], account.seconds["other"]) == (1.0, 2.0)


def test_a_ranks_own_time_is_without_what_it_waited_for_others() -> None:
    clock = Clock()
    pulse = Pulse(clock)
    pulse.begin_step(7)
    clock.pass_(1.0)
    pulse.enter("forward")
    clock.pass_(2.0)
    with pulse.waiting():
        assert (pulse.phase, pulse.is_waiting) == ("forward", True)
        clock.pass_(30.0)
    pulse.enter("backward")
    clock.pass_(4.0)
    pulse.end_step()
    assert list(pulse.steps) == [(37.0, 1.0, 2.0)]
    assert (pulse.step, pulse.phase, pulse.is_waiting) == (7, "read", False)
    for seconds in (1.0, 5.0):
        pulse.enter("validation")
        clock.pass_(seconds)
    pulse.enter("checkpoint")
    assert list(pulse.samples) == [1.0]


def test_beats_are_files_that_the_driver_reads(tmp_path: Path) -> None:
    pulse = Pulse()
    with Beater(pulse, tmp_path, 3, "node", interval_s=60.0):
        pulse.begin_step(4)
        (beat,) = read_beats(tmp_path)
        assert (beat.rank, beat.pid, beat.phase, beat.count) == (3, os.getpid(), "load", 1)
    (beat,) = read_beats(tmp_path)
    assert (beat.step, beat.phase) == (4, "done")
    beat_file(tmp_path, 4).write_text("{")
    assert len(read_beats(tmp_path)) == 1


def test_a_process_with_another_birth_is_not_ended(tmp_path: Path) -> None:
    with Beater(Pulse(), tmp_path, 0, "node", interval_s=60.0):
        (beat,) = read_beats(tmp_path)
    assert end_process(beat.pid, beat.created - 100.0) is False
    assert end_process(2**22 + 1, beat.created) is False


def stopped_rank(folder: Path, **changes: object) -> Beat:
    with Beater(Pulse(), folder, 0, "node", interval_s=60.0):
        pass
    document = {**json.loads(beat_file(folder, 0).read_text()), "phase": "forward", "step": 12, "step_s": 0.1}
    beat_file(folder, 0).write_text(json.dumps({**document, **changes}))
    return read_beats(folder)[0]


class Told:
    def __init__(self) -> None:
        self.faults: list[tuple[str, str, int | None, str | None, int | None]] = []
        self.killed: list[int] = []

    def __call__(self, kind: str, message: str, *, rank: int | None, phase: str | None, step: int | None) -> None:
        self.faults.append((kind, message, rank, phase, step))

    def kill(self, beat: Beat) -> None:
        self.killed.append(beat.rank)


def test_a_hang_is_told_with_all_stacks_and_ended_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segfleet_jobs.watching._DUMP_S", 0.0)
    beat, told_of = stopped_rank(tmp_path, for_s=65.0), Told()
    stack_file(tmp_path, 0).write_text("File x.py, line 7 in stuck\n")
    watcher = Watcher(tmp_path, told_of, told_of.kill)
    watcher.look(0.0)
    watcher.look(1.0)
    message = "rank 0 stood still for 65 s in forward at step 13"
    assert told_of.faults == [("fault", message, 0, "forward", 12)]
    assert told_of.killed == [0]
    assert is_ended(tmp_path, beat)
    assert "line 7 in stuck" in capsys.readouterr().out


def test_a_group_that_failed_is_not_called_silent_while_the_next_one_waits_for_its_place(tmp_path: Path) -> None:
    told_of, beat = Told(), stopped_rank(tmp_path, for_s=65.0)
    teller = FaultTeller(Credentials("http://127.0.0.1:9", "job-aaaaaaaa-a1", "secret"), str(tmp_path), True)
    said: list[int] = []
    teller._tell = lambda errors, _known: said.extend(errors)  # type: ignore[method-assign]
    teller.after_exception(None, {0: RuntimeError("killed")})
    teller.after_exception(None, {0: RuntimeError("killed")})
    assert said == [0]
    assert is_ended(tmp_path, beat)
    Watcher(tmp_path, told_of, told_of.kill).look(0.0)
    assert told_of.faults == []


def test_a_straggler_is_told_once_in_ten_minutes(tmp_path: Path) -> None:
    told_of = Told()
    fast = stopped_rank(tmp_path, num_steps=20, data_s=0.01, forward_s=0.1, phase="read")
    slow = {**json.loads(beat_file(tmp_path, 0).read_text()), "rank": 1, "forward_s": 1.0}
    beat_file(tmp_path, 1).write_text(json.dumps(slow))
    watcher = Watcher(tmp_path, told_of, told_of.kill)
    for now in (0.0, 2.0, 599.0, 601.0):
        watcher.look(now)
    assert [(kind, rank, phase) for kind, _, rank, phase, _ in told_of.faults] == [("straggler", 1, "forward")] * 2
    assert told_of.killed == []
    assert not is_ended(tmp_path, fast)
