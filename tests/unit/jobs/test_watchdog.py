"""Which rank is named when a group stands still or is slow, with beats and a clock in hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from segfleet_jobs.faults import count_memory_kills, name_fault, name_memory
from segfleet_jobs.watchdog import Beat, Hang, Rules, Seen, Straggler, Watch, verdict

RULES = Rules()
BEAT = Beat(
    rank=0,
    node="n",
    pid=100,
    created=1.0,
    count=1,
    step=30,
    phase="forward",
    is_waiting=False,
    for_s=0.0,
    num_steps=20,
    step_s=0.5,
    data_s=0.1,
    forward_s=0.2,
    sample_s=0.0,
    memory_kills=0,
)


def at(rank: int, phase: str, for_s: float, *, waits: bool = False, silent_s: float = 0.0, **changes: float) -> Seen:
    beat = replace(BEAT, rank=rank, phase=phase, for_s=for_s, is_waiting=waits, **changes)  # type: ignore[arg-type]
    return Seen(beat, silent_s)


def named(*seen: Seen) -> list[tuple[int, str]]:
    found = verdict(seen, RULES)
    assert isinstance(found, Hang), found
    return [(beat.rank, beat.phase_name) for beat in found.beats]


def test_a_group_that_works_is_left_alone() -> None:
    assert verdict([], RULES) is None
    assert verdict([at(0, "forward", 1.0), at(1, "backward", 2.0, waits=True)], RULES) is None
    assert verdict([at(0, "done", 1e6), at(1, "done", 1e6, silent_s=1e6)], RULES) is None


def test_a_stopped_process_is_named_and_not_the_one_that_waits_for_it() -> None:
    waiting = at(0, "forward", 61.0, waits=True)
    assert named(waiting, at(1, "backward", 0.1, silent_s=61.0)) == [(1, "backward")]
    found = verdict([waiting, at(1, "backward", 0.1, silent_s=61.0)], RULES)
    assert str(found) == "rank 1 gave no sign of life for 61 s in backward at step 31"


@pytest.mark.parametrize("phase", ["data", "forward", "backward", "read"])
def test_a_phase_that_does_not_end_is_named(phase: str) -> None:
    assert named(at(0, "forward", 70.0, waits=True, step=31), at(1, phase, 70.0)) == [(1, phase)]


def test_who_waits_is_not_to_blame_while_the_last_one_may_still_take_its_time() -> None:
    assert verdict([at(0, "forward", 90.0, waits=True), at(1, "data", 30.0)], RULES) is None
    slow = at(1, "data", 90.0, step_s=10.0)
    assert verdict([at(0, "forward", 90.0, waits=True, step_s=10.0), slow], RULES) is None
    assert named(at(0, "forward", 190.0, waits=True), at(1, "data", 201.0, step_s=10.0)) == [(1, "data")]


def test_a_validation_waits_for_its_slowest_sample() -> None:
    waits = at(0, "validation", 500.0, waits=True)
    assert verdict([waits, at(1, "validation", 500.0)], RULES) is None  # its first sample
    assert verdict([waits, at(1, "validation", 50.0, sample_s=1.0)], RULES) is None
    assert named(waits, at(1, "validation", 61.0, sample_s=1.0)) == [(1, "validation")]


def test_loading_first_steps_and_checkpoints_have_more_time() -> None:
    for seen in (at(0, "load", 800.0, step=-1), at(0, "forward", 800.0, step_s=0.0), at(0, "checkpoint", 500.0)):
        assert verdict([seen], RULES) is None
    assert named(at(0, "load", 901.0, step=-1)) == [(0, "load")]
    assert named(at(0, "checkpoint", 601.0)) == [(0, "checkpoint")]
    assert verdict([at(0, "load", 1.0, step=-1, silent_s=200.0)], RULES) is None
    assert str(verdict([at(0, "load", 901.0, step=-1)], RULES)) == "rank 0 stood still for 901 s in load"


def test_a_deadlock_names_all() -> None:
    both = at(0, "forward", 70.0, waits=True), at(1, "forward", 70.0, waits=True)
    assert named(*both) == [(0, "all-reduce"), (1, "all-reduce")]
    assert str(verdict(both, RULES)).startswith("ranks 0, 1 stood still for 70 s in all-reduce")


def test_a_straggler_is_named_with_its_phase_and_the_worst_comes_first() -> None:
    even = [at(rank, "forward", 0.1) for rank in range(3)]
    assert verdict(even, RULES) is None
    slow = verdict([*even, at(3, "data", 0.1, data_s=1.5)], RULES)
    assert isinstance(slow, Straggler)
    assert (slow.beat.rank, slow.phase) == (3, "data")
    assert slow.ratio == pytest.approx(1.7 / 0.3)
    two = verdict([*even, at(3, "data", 0.1, data_s=1.5), at(4, "forward", 0.1, forward_s=3.0)], RULES)
    assert isinstance(two, Straggler)
    assert (two.beat.rank, two.phase) == (4, "forward")


def test_no_straggler_alone_or_by_a_hair_or_in_the_first_steps() -> None:
    assert verdict([at(0, "data", 0.1, data_s=9.0)], RULES) is None
    tiny = at(1, "data", 0.1, data_s=0.004, forward_s=0.001)
    assert verdict([at(0, "data", 0.1, data_s=0.0005, forward_s=0.001), tiny], RULES) is None
    assert verdict([at(0, "data", 0.1), at(1, "data", 0.1, data_s=9.0, num_steps=5)], RULES) is None


def test_silence_is_counted_by_the_watching_sides_clock() -> None:
    watch = Watch(RULES)
    assert watch.look([BEAT], 0.0) is None
    for now in range(10, 61, 10):
        assert watch.look([BEAT], float(now)) is None
    assert isinstance(watch.look([BEAT], 62.0), Hang)
    # A later beat, or another process under the same rank, begins anew.
    assert watch.look([replace(BEAT, count=2)], 63.0) is None
    assert watch.look([replace(BEAT, count=2, pid=101)], 64.0) is None


def test_a_pause_of_the_watching_side_is_nobodys_silence() -> None:
    watch = Watch(RULES)
    watch.look([BEAT], 0.0)
    assert watch.look([BEAT], 3600.0) is None
    assert watch.look([BEAT], 3610.0) is None


def test_the_rank_that_failed_by_itself_is_named_with_its_phase() -> None:
    beats = {1: replace(BEAT, rank=1)}
    broken = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
    died = RuntimeError("The actor died unexpectedly before finishing this task.\nmore")
    assert name_fault({0: broken, 1: died}, beats) == (
        1,
        "rank 1 failed in forward at step 31: RuntimeError: The actor died unexpectedly before finishing this task.",
    )
    assert name_fault({0: broken, 1: MemoryError()}, {})[1] == "rank 1 failed: MemoryError"
    assert name_fault({0: broken}, {})[0] == 0


def test_a_rank_that_the_kernel_killed_for_want_of_memory_is_told_of_as_that() -> None:
    died = ConnectionError("The actor died unexpectedly before finishing this task.")
    assert name_memory(died, before=3, after=3) is None
    assert "the kernel killed it; set train.micro_batch" in str(name_memory(died, before=3, after=4))
    # An error of its own is not the kernel's doing, whatever else the kernel does.
    assert name_memory(ValueError("the weights do not fit"), before=3, after=4) is None
    assert str(name_memory(MemoryError(), before=0, after=0)).startswith("out of memory; ")


def test_ray_s_own_watch_over_the_memory_is_heard_through_what_wraps_it() -> None:
    class OutOfMemoryError(Exception):
        """Named like Ray's."""

    class WorkerHealthCheckFailedError(Exception):
        """Like Ray Train's."""

        health_check_failure = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.")

    assert name_memory(WorkerHealthCheckFailedError("A worker health check failed."), 0, 0) is not None


def test_the_kernel_s_count_is_read(tmp_path: Path) -> None:
    counters = tmp_path / "vmstat"
    assert count_memory_kills(counters) == 0
    counters.write_text("nr_free_pages 5\noom_kill 12\noom_kill_else 3\n")
    assert count_memory_kills(counters) == 12
