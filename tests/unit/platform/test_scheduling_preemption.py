from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters import gpus, held, holdings, job, laid, plain_gangs
from segfleet.queue.scheduling.allocation import Allocation, allocate
from segfleet.queue.scheduling.line import Tally
from segfleet.queue.scheduling.pool import Layout, Pool
from segfleet.queue.scheduling.preemption import MAX_SERVED, Eviction
from segfleet.queue.scheduling.values import Candidate, Gang, Holding, Node, Policy, Preempt, Quota

EIGHT = gpus(8)
URGENT = Policy(preempts_for_priority=True)
RECLAIMING = Policy(preempts_to_reclaim=True, projects={"a": Quota(gpus=4), "b": Quota(gpus=2)})


def evict(
    line: Sequence[Candidate], running: Sequence[Holding], policy: Policy, nodes: Sequence[Node] = EIGHT
) -> Eviction:
    allocation = allocate(line, *laid(nodes, running, policy), 0.0)
    eviction = Eviction(allocation, 0.0, policy)
    for waiting in allocation.waiting:
        eviction.serve(waiting)
    return eviction


def victims(line: Sequence[Candidate], running: Sequence[Holding], policy: Policy) -> list[int]:
    return sorted(int(stop.job_id.removeprefix("job-")) for stop in evict(line, running, policy).stops)


URGENT_JOB = job(1, workers=2, priority=70)


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        # One that frees enough rather than two.
        ([held(90), held(91, workers=2, since=-9e4), held(92), held(93), held(94), held(95), held(96)], [91]),
        # Of like ones the youngest.
        ([held(90, workers=4, since=-2000.0), held(91, workers=4, since=-1000.0)], [91]),
        ([held(90, workers=4), held(91, workers=4)], [91]),
        # Two of the lowest band rather than one of a higher band.
        ([held(90, priority=10), held(91, priority=10), held(92, workers=6, priority=60)], [90, 91]),
        # Not more than needed of those.
        ([held(90, priority=10), held(91, priority=20), held(92, workers=6, priority=60)], [90, 91]),
        # Never an equal.
        ([held(90, workers=8, priority=70)], []),
        # Not if all together would not do.
        ([held(90, workers=7, priority=70), held(91)], []),
        # Not within the minimum run time, and never what cannot go on later.
        ([held(90, workers=8, since=-599.0)], []),
        ([held(90, workers=8, since=-600.0)], [90]),
        ([held(90, workers=8, may_be_preempted=False)], []),
        # Not if it fits as soon as those are gone that leave anyway.
        ([held(90, workers=2, is_stopping=True), held(91, workers=6)], []),
        ([held(90, workers=2, ends_by=120.0), held(91, workers=6)], []),
        ([held(90, workers=2, ends_by=121.0), held(91, workers=6, since=-50.0)], [90]),
        ([held(90, is_stopping=True), held(91), held(92, workers=6, since=-9e4)], [91]),
    ],
)
def test_the_lowest_then_the_fewest_then_the_youngest(running: list[Holding], expected: list[int]) -> None:
    assert victims([URGENT_JOB], running, URGENT) == expected


def test_nobody_is_stopped_unless_the_policy_says_so() -> None:
    assert victims([URGENT_JOB], [held(90, workers=8)], Policy()) == []


@pytest.mark.parametrize(
    ("waiting", "running", "expected"),
    [
        # Borrowers give back, those without any guarantee too.
        (job(1, workers=2, project="a"), [held(90, workers=8, project="b")], [90]),
        (job(1, workers=2, project="a"), [held(90, workers=8, project="c")], [90]),
        # Not for a job that would borrow itself.
        (job(1, workers=5, project="a"), [held(90, workers=8, project="b")], []),
        (job(1, workers=2, project="c"), [held(90, workers=8, project="b")], []),
        # Not from those within their guarantee, only what is borrowed.
        (job(1, workers=2, project="a"), [held(90, workers=2, project="b"), held(91, workers=6, project="a")], []),
        (
            job(1, workers=2, project="a"),
            [*(held(seq, project="b") for seq in (90, 91, 92)), held(93, workers=5, priority=60, project="c")],
            [],
        ),
        (
            job(1, workers=2, project="a"),
            [*(held(seq, project="b") for seq in (90, 91, 92, 93)), held(94, workers=4, priority=60, project="c")],
            [92, 93],
        ),
        # Not from higher bands.
        (job(1, workers=2, project="a"), [held(90, workers=8, project="c", priority=60)], []),
        # A guarantee of GPUs is none of CPUs alone.
        (job(1, cpus=4, gpus=0, project="a"), [held(90, workers=8, project="c")], []),
    ],
)
def test_a_guarantee_is_reclaimed_from_borrowers(
    waiting: Candidate, running: list[Holding], expected: list[int]
) -> None:
    assert victims([waiting], running, RECLAIMING) == expected


def test_the_reasons_name_the_beneficiary() -> None:
    assert evict([URGENT_JOB], [held(90, workers=8)], URGENT).stops == [
        Preempt("job-90", "job-1", "makes room for job-1 of priority 70")
    ]
    assert evict([job(1, project="a")], [held(90, workers=8)], RECLAIMING).stops == [
        Preempt("job-90", "job-1", "gives back what project a is guaranteed, for job-1")
    ]


def test_room_is_made_for_all_that_come_first_at_once() -> None:
    """Else a guarantee of eight GPUs would take eight times the grace to come back."""
    line = [job(seq, project="a") for seq in range(1, 7)]
    found = evict(line, [held(seq, project="c", since=-1e4 + seq) for seq in range(90, 98)], RECLAIMING)
    assert [(stop.job_id, stop.beneficiary) for stop in found.stops] == [
        ("job-97", "job-1"),
        ("job-96", "job-2"),
        ("job-95", "job-3"),
        ("job-94", "job-4"),  # the fifth would be beyond the guarantee
    ]
    assert [job.seq for job in found.served] == [1, 2, 3, 4]


def test_room_that_was_made_for_the_first_is_not_counted_for_the_second() -> None:
    line = [job(1, workers=2, priority=70), job(2, workers=2, priority=60)]
    running = [held(90, workers=2, is_stopping=True), held(91, workers=2), held(92, workers=4, since=-9e4)]
    assert victims(line, running, URGENT) == [91]


def test_nobody_behind_one_that_cannot_be_helped_is_served() -> None:
    line = [job(1, workers=8, priority=60), job(2, priority=55)]
    assert victims(line, [held(90, workers=4, priority=60), held(91, workers=4)], URGENT) == []


def test_a_pass_serves_only_so_many() -> None:
    line = [job(seq, priority=70) for seq in range(1, 40)]
    found = evict(line, [held(seq) for seq in range(100, 140)], URGENT, gpus(40))
    assert len(found.served) == len(found.stops) == MAX_SERVED


def test_few_are_found_where_there_are_too_many_sets_to_look_for_the_fewest() -> None:
    running = [held(seq, workers=1 + seq % 3) for seq in range(100, 140)]
    total = sum(holder.workers for holder in running)
    # Nodes of three: sums alone do not say which attempts free a whole node.
    nodes = [Node(3, 3)] * -(-total // 3)
    found = evict([job(1, workers=8, cpus=3, gpus=3, priority=70)], running, URGENT, nodes)
    gone = {stop.job_id for stop in found.stops}
    left = Layout.of(nodes, running).pool
    for tenant in Layout.of(nodes, running).tenants:
        left = left.plus(tenant.holding.gang, tenant.places) if tenant.holding.job_id in gone else left
    assert left.room(Gang(8, 3, 3)) == 8
    assert 8 <= len(gone) <= 16


policies = st.builds(
    Policy,
    projects=st.dictionaries(st.sampled_from("abc"), st.builds(Quota, gpus=st.integers(0, 8)), min_size=1),
    preempts_for_priority=st.booleans(),
    preempts_to_reclaim=st.booleans(),
    min_run_s=st.just(600.0),
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    holdings(plain_gangs, size=7),
    st.builds(job, st.just(1), workers=st.integers(1, 6), priority=st.sampled_from((50, 60, 70)), project=st.just("a")),
    policies,
)
def test_victims_are_those_that_trying_all_sets_would_choose(
    running: list[Holding], waiting: Candidate, policy: Policy
) -> None:
    nodes = gpus(5, nodes=2)
    layout = Layout.of(nodes, running)
    allocation = Allocation(layout, laid(nodes, running, policy)[1], waiting=[waiting])
    if layout.pool.room(waiting.gang) >= waiting.gang.workers:
        return
    eviction = Eviction(allocation, 100.0, policy)
    is_served = eviction.serve(waiting)
    chosen = {stop.job_id for stop in eviction.stops}
    leaving = {h.job_id for h in running if h.is_stopping or (h.ends_by is not None and h.ends_by <= 220.0)}

    def frees(gone: set[str]) -> bool:
        pool = Pool(nodes)
        tenants = Layout.of(nodes, running).tenants
        for tenant in tenants:
            if tenant.holding.job_id not in gone:
                pool = pool.minus(tenant.holding.gang, tenant.places)
        return pool.place(waiting.gang, waiting.gang.workers) is not None

    if frees(leaving):
        assert not chosen
        return
    possible = [
        subset
        for size in range(1, len(running) + 1)
        for subset in combinations([h for h in running if h.job_id not in leaving], size)
        if _is_allowed(subset, [h for h in running if h.job_id not in leaving], waiting, policy)
        and frees(leaving | {h.job_id for h in subset})
    ]
    if not possible:
        assert not chosen
        assert not is_served or not (policy.preempts_for_priority or policy.preempts_to_reclaim)
        return
    best = min(
        possible,
        key=lambda subset: (
            max(h.priority for h in subset),
            len(subset),
            sorted((-h.since, -h.seq) for h in subset),
        ),
    )
    assert chosen == {h.job_id for h in best}


def _is_allowed(subset: Sequence[Holding], staying: Sequence[Holding], waiting: Candidate, policy: Policy) -> bool:
    if any(not h.may_be_preempted or 100.0 - h.since < 600.0 for h in subset):
        return False
    by_priority = [h for h in subset if policy.preempts_for_priority and h.priority < waiting.priority]
    tally = Tally.of(staying)
    rest = [h for h in subset if h not in by_priority]
    if not rest:
        return True
    own = policy.projects.get(waiting.project)
    if not policy.preempts_to_reclaim or own is None or own.gpus is None:
        return False
    if tally.gpus.get(waiting.project, 0) + waiting.gang.workers > own.gpus:
        return False
    if any(h.priority > waiting.priority or h.project == waiting.project for h in rest):
        return False
    for project in {h.project for h in rest}:
        mine = [h.workers for h in rest if h.project == project]
        before = tally.gpus[project] - sum(h.workers for h in by_priority if h.project == project)
        guarantee = policy.projects.get(project, Quota()).gpus
        # Even the last and largest of them stands on borrowed room when the others have gone.
        if guarantee is not None and before - sum(mine) + max(mine) <= guarantee:
            return False
    return True
