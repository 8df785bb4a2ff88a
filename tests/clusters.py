"""Makers and strategies of what the scheduler looks at; each test states only what it is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from segfleet.queue.scheduling.admission import Ledger
from segfleet.queue.scheduling.pool import Layout
from segfleet.queue.scheduling.values import (
    Candidate,
    Decision,
    Gang,
    Holding,
    Node,
    Policy,
    Preempt,
    Quota,
    Start,
    Wait,
)
from simulation import Work

PROJECTS = ("a", "b", "c")


def gpus(count: int, nodes: int = 1) -> tuple[Node, ...]:
    """Equal nodes with so many GPUs each, and a CPU for each GPU."""
    return (Node(count, count),) * nodes


def job(seq: int, workers: int = 1, cpus: int = 1, gpus: int = 1, most: int = 0, **changes: Any) -> Candidate:
    """A queued job, of one CPU and one GPU unless told."""
    return Candidate(job_id=f"job-{seq}", seq=seq, gang=Gang(workers, cpus, gpus, most), **changes)


def held(seq: int, workers: int = 1, cpus: int = 1, gpus: int = 1, since: float = -1e4, **changes: Any) -> Holding:
    """A running attempt, long past any minimum run time."""
    return Holding(
        job_id=f"job-{seq}", seq=seq, gang=Gang(workers, cpus, gpus), workers=workers, since=since, **changes
    )


def laid(
    nodes: Sequence[Node], holdings: Iterable[Holding] = (), policy: Policy | None = None
) -> tuple[Layout, Ledger]:
    """What a pass begins with."""
    holdings = list(holdings)
    return Layout.of(nodes, holdings), Ledger.of(holdings, policy or Policy())


def starts(decisions: Iterable[Decision]) -> dict[str, int]:
    """Workers of the jobs that start."""
    return {decision.job_id: decision.workers for decision in decisions if isinstance(decision, Start)}


def waits(decisions: Iterable[Decision]) -> list[Wait]:
    """Jobs that wait."""
    return [decision for decision in decisions if isinstance(decision, Wait)]


def stops(decisions: Iterable[Decision]) -> list[str]:
    """Jobs that are told to make room."""
    return [decision.job_id for decision in decisions if isinstance(decision, Preempt)]


quotas = st.builds(
    Quota,
    gpus=st.none() | st.integers(0, 6),
    workers=st.none() | st.integers(0, 6),
    max_gpus=st.none() | st.integers(0, 8),
    max_workers=st.none() | st.integers(0, 8),
    max_running=st.none() | st.integers(0, 4),
)
policies = st.builds(
    Policy,
    projects=st.dictionaries(st.sampled_from(PROJECTS), quotas),
    users=st.dictionaries(st.sampled_from(("ann", "bob")), st.builds(Quota, max_gpus=st.integers(0, 8))),
    weights=st.dictionaries(st.sampled_from(PROJECTS), st.floats(0.1, 10)),
    preempts_for_priority=st.booleans(),
    preempts_to_reclaim=st.booleans(),
    min_run_s=st.sampled_from((0.0, 600.0)),
    max_overtaken=st.integers(1, 5),
)
clusters = st.lists(st.builds(Node, st.integers(0, 8), st.integers(0, 4)), min_size=1, max_size=4)
_sizes = st.lists(st.integers(1, 6), min_size=1, max_size=4, unique=True).map(sorted)
gangs = st.builds(Gang, st.integers(1, 4), st.integers(0, 4), st.integers(0, 2), st.integers(0, 6)) | st.builds(
    lambda sizes, cpus, gpus: Gang(sizes[0], cpus, gpus, sizes[-1], tuple(sizes)),
    _sizes,
    st.integers(0, 4),
    st.integers(0, 2),
)
# Workers of one CPU and one GPU cannot leave holes, so that what fits is a matter of sums and results are exact.
plain_gangs = st.builds(Gang, st.sampled_from((1, 1, 2, 3, 4, 6)), st.just(1), st.just(1))
_names = {
    "priority": st.sampled_from((40, 50, 60)),
    "project": st.sampled_from(PROJECTS),
    "user": st.sampled_from(("ann", "bob")),
}


def candidates(gangs: st.SearchStrategy[Gang] = gangs, size: int = 10) -> st.SearchStrategy[list[Candidate]]:
    """Queued jobs with seq from 1."""
    one = st.builds(
        Candidate,
        job_id=st.just(""),
        seq=st.just(0),
        gang=gangs,
        **_names,
        not_before=st.none() | st.floats(0, 200),
        hindrance=st.sampled_from(("", "", "", "after job-0 (running)")),
        time_left_s=st.none() | st.sampled_from((60.0, 100.0, 600.0)),
        overtaken=st.integers(0, 6),
    )
    return st.lists(one, max_size=size).map(lambda jobs: [_numbered(job, seq) for seq, job in enumerate(jobs, 1)])


def holdings(gangs: st.SearchStrategy[Gang] = gangs, size: int = 6) -> st.SearchStrategy[list[Holding]]:
    """Running attempts with seq from 1001; they may hold more than there is."""
    one = st.builds(
        Holding,
        job_id=st.just(""),
        seq=st.just(0),
        gang=gangs,
        workers=st.just(0),
        since=st.sampled_from((-1000.0, -500.0, -100.0, 90.0)),
        **_names,
        ends_by=st.none() | st.sampled_from((90.0, 150.0, 400.0, 900.0)),
        is_stopping=st.sampled_from((False, False, True)),
        may_be_preempted=st.sampled_from((True, True, False)),
    )
    return st.lists(one, max_size=size).map(
        lambda found: [_numbered(holder, seq, workers=holder.gang.workers) for seq, holder in enumerate(found, 1001)]
    )


def works(gangs: st.SearchStrategy[Gang] = plain_gangs, size: int = 12) -> st.SearchStrategy[list[Work]]:
    """Jobs for the simulator that arrive within 300 s and take exactly their time limit, if they have one."""

    def build(drawn: list[tuple[Gang, dict[str, Any], float, float, bool]]) -> list[Work]:
        found = []
        for seq, (gang, names, arrives, takes_s, limited) in enumerate(sorted(drawn, key=lambda one: one[2]), 1):
            limit_s = takes_s if limited else None
            queued = Candidate(job_id=f"job-{seq}", seq=seq, gang=gang, time_left_s=limit_s, **names)
            found.append(Work(job=queued, arrives=arrives, takes_s=takes_s))
        return found

    one = st.tuples(
        gangs,
        st.fixed_dictionaries(_names),
        st.integers(0, 30).map(lambda tens: 10.0 * tens),
        st.integers(1, 40).map(lambda tens: 10.0 * tens),
        st.sampled_from((True, True, False)),
    )
    return st.lists(one, min_size=1, max_size=size).map(build)


def _numbered(one: Any, seq: int, **changes: Any) -> Any:
    return replace(one, seq=seq, job_id=f"job-{seq}", **changes)
