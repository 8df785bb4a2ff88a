from __future__ import annotations

import random
import time

from hypothesis import given
from hypothesis import strategies as st

from segfleet.queue.model import Needs
from segfleet.queue.scheduler import Candidate, Capacity, Start, Wait, never_fits, plan

TWO = Capacity(cpus=2, gpus=0, nodes=1)


def candidate(seq: int, cpus: int = 1, priority: int = 50, **changes: object) -> Candidate:
    return Candidate(f"job-{seq}", seq, priority, Needs(cpus, 0), **changes)  # type: ignore[arg-type]


def test_priority_first_then_age() -> None:
    line = [candidate(1), candidate(2), candidate(3, priority=60)]
    decisions = plan(line, TWO, [], now=0.0)
    assert decisions == [Start("job-3"), Start("job-1"), Wait("job-2", 1, "needs 1 CPU, 0 of 2 free")]


def test_jobs_start_whole_or_not_at_all() -> None:
    assert plan([candidate(1, cpus=2)], TWO, [Needs(1, 0)], now=0.0) == [Wait("job-1", 1, "needs 2 CPUs, 1 of 2 free")]


def test_the_head_of_the_line_holds_back_what_would_fit() -> None:
    decisions = plan([candidate(1, cpus=2), candidate(2, cpus=1)], TWO, [Needs(1, 0)], now=0.0)
    assert decisions == [Wait("job-1", 1, "needs 2 CPUs, 1 of 2 free"), Wait("job-2", 2, "behind job-1")]


def test_back_off_oversize_and_a_lingering_attempt_hold_back_nobody() -> None:
    line = [
        candidate(1, not_before=100.0),
        candidate(2, cpus=3),
        candidate(3, blocked_by="job-3-a1"),
        candidate(4),
    ]
    assert plan(line, TWO, [], now=88.5) == [
        Wait("job-1", 1, "retry in 12 s"),
        Wait("job-2", 2, "needs 3 CPUs, the cluster has 2 CPUs in all"),
        Wait("job-3", 3, "waits until job-3-a1 is gone from the cluster"),
        Start("job-4"),
    ]


def test_back_off_ends_at_its_time() -> None:
    assert plan([candidate(1, not_before=100.0)], TWO, [], now=100.0) == [Start("job-1")]


def test_nothing_starts_on_a_cluster_out_of_reach() -> None:
    assert plan([candidate(1)], None, [], 0.0, "Ray cannot be reached") == [Wait("job-1", 1, "Ray cannot be reached")]


def test_gpus_are_counted_and_named() -> None:
    mixed = Capacity(cpus=8, gpus=2, nodes=1)
    job = Candidate("job-1", 1, 50, Needs(2, 2))
    assert plan([job], mixed, [Needs(1, 1)], 0.0) == [Wait("job-1", 1, "needs 2 GPUs, 1 of 2 free")]
    assert never_fits(Needs(1, 3), mixed) == "needs 1 CPU and 3 GPUs, the cluster has 8 CPUs and 2 GPUs in all"
    assert never_fits(Needs(8, 2), mixed) == ""


candidates = st.lists(
    st.builds(
        Candidate,
        job_id=st.uuids().map(str),
        seq=st.integers(1, 10**6),
        priority=st.integers(0, 100),
        needs=st.builds(Needs, cpus=st.integers(1, 6), gpus=st.integers(0, 3)),
        not_before=st.none() | st.floats(0, 200),
    ),
    max_size=12,
    unique_by=lambda c: c.seq,
)


@given(candidates, st.lists(st.builds(Needs, cpus=st.integers(0, 3), gpus=st.integers(0, 2)), max_size=3), st.randoms())
def test_never_more_than_the_cluster_and_never_out_of_turn(
    line: list[Candidate], active: list[Needs], rng: random.Random
) -> None:
    capacity = Capacity(cpus=6, gpus=3, nodes=2)
    decisions = plan(line, capacity, active, now=100.0)
    shuffled = list(line)
    rng.shuffle(shuffled)
    assert plan(shuffled, capacity, active, now=100.0) == decisions
    by_id = {job.job_id: job for job in line}
    assert sorted(d.job_id for d in decisions) == sorted(by_id)
    started = [by_id[d.job_id] for d in decisions if isinstance(d, Start)]
    if started:
        assert sum(n.cpus for n in [*active, *(job.needs for job in started)]) <= 6
        assert sum(n.gpus for n in [*active, *(job.needs for job in started)]) <= 3
    heads = [i for i, d in enumerate(decisions) if isinstance(d, Wait) and "free" in d.reason]
    assert len(heads) <= 1
    if heads:
        assert not any(isinstance(d, Start) for d in decisions[heads[0] :])


def test_ten_thousand_jobs_are_planned_well_within_a_second() -> None:
    line = [candidate(seq, priority=seq % 7) for seq in range(10_000)]
    begin = time.perf_counter()
    plan(line, TWO, [], now=0.0)
    assert time.perf_counter() - begin < 1.0


def test_a_back_off_of_a_clock_that_was_set_back_since_holds_nobody() -> None:
    assert plan([candidate(1, not_before=3 * 3600.0)], TWO, [], now=0.0) == [Start("job-1")]
    assert plan([candidate(1, not_before=300.0)], TWO, [], now=0.0) == [Wait("job-1", 1, "retry in 300 s")]
