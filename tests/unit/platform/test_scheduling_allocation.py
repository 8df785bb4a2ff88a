"""Giving out in order, the reservation of the head, backfill and growth."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from clusters import gpus, held, job, laid
from segfleet.queue.scheduling.allocation import Allocation, allocate
from segfleet.queue.scheduling.backfill import backfill, grow, reserve
from segfleet.queue.scheduling.pool import Pool
from segfleet.queue.scheduling.values import Candidate, Gang, Holding, Node, Policy, Quota

EIGHT = gpus(8)


def given_out(
    line: Sequence[Candidate],
    holdings: Sequence[Holding] = (),
    nodes: Sequence[Node] = EIGHT,
    policy: Policy | None = None,
) -> Allocation:
    return allocate(line, *laid(nodes, holdings, policy), 0.0)


def filled(
    line: Sequence[Candidate],
    holdings: Sequence[Holding] = (),
    nodes: Sequence[Node] = EIGHT,
    policy: Policy | None = None,
) -> Allocation:
    allocation = given_out(line, holdings, nodes, policy)
    grow(allocation, backfill(allocation, lambda _: False, 0.0), 0.0)
    return allocation


def started(allocation: Allocation) -> dict[int, int]:
    return {job.seq: workers for job, workers in allocation.starts.items()}


def test_gangs_start_whole_until_one_does_not_fit() -> None:
    found = given_out([job(1, workers=3), job(2, workers=4), job(3, workers=2), job(4)])
    assert started(found) == {1: 3, 2: 4}
    assert found.head is not None
    assert [job.seq for job in found.waiting] == [3, 4]
    assert found.reasons == {"job-3": "needs 2 CPUs, 1 of 8 free and 2 GPUs, 1 of 8 free"}


@pytest.mark.parametrize(
    ("gang", "why"),
    [
        (Gang(1, 1, 2), "needs 2 GPUs, 1 of 4 free"),
        (Gang(4, 1, 0), "needs 4 CPUs, 3 of 8 free"),
        (Gang(1, 3, 0), "needs 1 worker, the nodes have room for 0"),
    ],
)
def test_the_head_says_what_it_lacks(gang: Gang, why: str) -> None:
    running = [held(90, workers=3), held(91, cpus=2, gpus=0)]
    waiting = Candidate(job_id="job-1", seq=1, gang=gang)
    assert given_out([waiting], running, nodes=(Node(4, 4), Node(4, 0))).reasons == {"job-1": why}


def test_a_job_beyond_its_quota_is_passed_over_by_others_but_not_by_its_own() -> None:
    policy = Policy(projects={"a": Quota(max_gpus=4)})
    found = given_out(
        [job(1, workers=3, project="a"), job(2, project="a"), job(3, project="b")],
        [held(90, workers=2, project="a")],
        policy=policy,
    )
    assert started(found) == {3: 1}
    assert found.reasons == {
        "job-1": "quota: project a has 2 of 4 GPUs, this job needs 3",
        "job-2": "quota: what project a has left is kept for job-1",
    }


@pytest.mark.parametrize(
    ("workers", "at", "spare"),
    [(2, 100.0, 0), (3, 200.0, 1), (4, 200.0, 0), (5, 300.0, 0), (6, None, 0)],
)
def test_the_head_fits_when_enough_time_limits_are_over(workers: int, at: float | None, spare: int) -> None:
    running = [
        held(90, workers=1, ends_by=100.0),
        held(91, workers=2, ends_by=200.0),
        held(92, workers=1, ends_by=300.0),
        held(93, workers=3),
    ]
    found = reserve([job(1, workers=workers)], laid(EIGHT, running)[0], 0.0)
    assert (found.at, found.spare.gpus) == (at, spare)


@pytest.mark.parametrize("ends_by", [None, 50.0, 900.0])
def test_the_room_of_those_that_are_stopping_is_kept_from_the_moment_they_are_told(ends_by: float | None) -> None:
    """Else short jobs would slip in for as long as the others write their checkpoints."""
    running = [held(90, workers=4, ends_by=ends_by, is_stopping=True), held(91, workers=2, ends_by=1000.0)]
    found = filled([job(1, workers=6), job(2, time_left_s=20.0)], running)
    assert started(found) == {}
    assert reserve([job(1, workers=6)], found.layout, 0.0).at == 0.0


def test_an_attempt_beyond_its_limit_ends_now_at_the_latest() -> None:
    assert reserve([job(1, workers=8)], laid(EIGHT, [held(90, ends_by=-5.0)])[0], 0.0).at == 0.0


def test_several_jobs_are_kept_room_for() -> None:
    running = [held(90, workers=4, ends_by=100.0), held(91, workers=2, ends_by=200.0)]
    found = reserve([job(1, workers=5), job(2, workers=2)], laid(EIGHT, running)[0], 0.0)
    # At 100 the first leaves 1 of 6; at 200 both leave 1 of 8.
    assert (found.at, found.spare) == (100.0, Pool((Node(1, 1),)))


HEAD = job(1, workers=6)
RUNNING = [held(90, workers=4, ends_by=100.0)]


@pytest.mark.parametrize(
    ("others", "starts"),
    [
        ([job(2, workers=4, time_left_s=100.0)], {2: 4}),  # gone when the head starts
        ([job(2, workers=4, time_left_s=101.0)], {}),
        ([job(2, workers=4)], {}),
        ([job(2, workers=2)], {2: 2}),  # beside the head there are two to spare
        ([job(2), job(3, workers=2), job(4)], {2: 1, 4: 1}),
        ([job(2, workers=2, time_left_s=100.0), job(3, workers=2), job(4, time_left_s=9.0)], {2: 2, 3: 2}),
    ],
)
def test_backfill_does_not_delay_the_head(others: list[Candidate], starts: dict[int, int]) -> None:
    found = filled([HEAD, *others], RUNNING)
    assert started(found) == starts
    reasons = {why.partition(";")[0] for job_id, why in found.reasons.items() if job_id != "job-1"}
    assert reasons <= {"behind job-1", "reserved for job-1"}


def test_backfill_takes_the_nodes_that_the_head_will_not_need() -> None:
    """By the sums there is one GPU to spare, but not one on the only node where the head will fit."""
    nodes = (Node(4, 4), Node(2, 2))
    running = [held(90, cpus=3, gpus=3, ends_by=100.0), held(91, cpus=2, gpus=2, ends_by=900.0)]
    found = filled([job(1, cpus=4, gpus=4), job(2)], running, nodes)
    assert started(found) == {}
    found = filled([job(1, cpus=4, gpus=4), job(2)], running[:1], nodes)
    assert found.layout.pool.nodes == (Node(1, 1), Node(1, 1))


@pytest.mark.parametrize(
    ("other", "starts"),
    [
        (job(2, time_left_s=1.0), {}),  # whatever ends next may be what the head waits for
        (job(2, workers=3, gpus=0), {}),  # the head may need every CPU of the first node
        (job(2, workers=2, gpus=0), {2: 2}),  # and can never use the second
    ],
)
def test_without_time_limits_only_what_the_head_can_never_use_is_given_out(
    other: Candidate, starts: dict[int, int]
) -> None:
    running = [held(90, workers=3), held(91, gpus=0)]
    assert started(filled([job(1, workers=4), other], running, (Node(4, 4), Node(3, 0)))) == starts


def test_backfill_leaves_the_head_its_quota() -> None:
    policy = Policy(projects={"a": Quota(max_gpus=7)})
    line = [job(1, workers=6, project="a"), job(2, project="a"), job(3, project="a"), job(4, project="b")]
    found = filled(line, [held(90, workers=4, ends_by=100.0)], policy=policy)
    assert started(found) == {2: 1, 4: 1}
    assert found.reasons["job-3"] == "quota: what project a has left is kept for job-1"


@pytest.mark.parametrize(
    ("line", "starts"),
    [
        ([job(1, workers=2, most=6)], {1: 6}),
        ([job(1, workers=2, most=9)], {1: 8}),
        ([job(1, workers=2, most=6), job(2, workers=4)], {1: 4, 2: 4}),  # not at the cost of one that could start
        ([job(1, workers=2, most=6), job(2, workers=2, most=4)], {1: 6, 2: 2}),
        ([job(1, workers=2, most=6), job(2, workers=7)], {1: 2}),  # nor of the head
        ([job(1, workers=2, most=6, time_left_s=50.0), job(2, workers=7)], {1: 6}),  # which waits for this one anyway
    ],
)
def test_elastic_jobs_start_with_the_fewest_and_get_what_nobody_else_can_use(
    line: list[Candidate], starts: dict[int, int]
) -> None:
    assert started(filled(line)) == starts


def test_elastic_jobs_grow_into_what_the_head_waits_for_only_if_they_are_gone_by_then() -> None:
    running = [held(90, workers=2, ends_by=100.0)]
    line = [job(1, workers=2, most=9, time_left_s=100.0), job(2, workers=7)]
    assert started(filled(line, running)) == {1: 6}
    line = [job(1, workers=1, most=9, time_left_s=101.0), job(2, workers=7)]
    assert started(filled(line, running)) == {1: 1}


def test_growth_obeys_quotas_and_counts_as_one_job() -> None:
    policy = Policy(projects={"a": Quota(max_gpus=5, max_running=2)})
    found = filled([job(1, workers=2, most=8, project="a"), job(2, project="a")], policy=policy)
    assert started(found) == {1: 4, 2: 1}
    assert found.ledger.held["project"].running == {"a": 2}
    assert [(t.holding.job_id, t.holding.workers) for t in found.layout.tenants] == [("job-1", 4), ("job-2", 1)]
