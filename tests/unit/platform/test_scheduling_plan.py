"""A whole pass: what the old scheduler promised, and what must hold for any cluster, line and policy."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from clusters import candidates, clusters, gpus, held, holdings, job, policies, starts, stops, waits, works
from segfleet.queue.scheduling.plan import plan
from segfleet.queue.scheduling.pool import Layout
from segfleet.queue.scheduling.values import Candidate, Decision, Holding, Node, Policy, Preempt, Quota, Start, Wait
from simulation import Simulation, Work

TWO = (Node(2, 0),)
EIGHT = gpus(8)
uses = st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e5))


def cpu_job(seq: int, workers: int = 1, **changes: object) -> Candidate:
    return job(seq, workers=workers, gpus=0, **changes)


def test_priority_first_then_age() -> None:
    line = [cpu_job(1), cpu_job(2), cpu_job(3, priority=60)]
    assert plan(line, TWO, [], now=0.0) == [
        Start("job-3", 1),
        Start("job-1", 1),
        Wait("job-2", 1, "needs 1 CPU, 0 of 2 free"),
    ]


def test_jobs_start_whole_or_not_at_all() -> None:
    decisions = plan([cpu_job(1, workers=2)], TWO, [held(90, gpus=0)], now=0.0)
    assert decisions == [Wait("job-1", 1, "needs 2 CPUs, 1 of 2 free")]


def test_the_head_of_the_line_holds_back_what_would_fit() -> None:
    decisions = plan([cpu_job(1, workers=2), cpu_job(2)], TWO, [held(90, gpus=0)], now=0.0)
    assert decisions == [Wait("job-1", 1, "needs 2 CPUs, 1 of 2 free"), Wait("job-2", 2, KEPT)]


def test_back_off_oversize_and_a_lingering_attempt_hold_back_nobody() -> None:
    line = [
        cpu_job(1, not_before=100.0),
        cpu_job(2, workers=3),
        cpu_job(3, hindrance="waits until job-3-a1 is gone from the cluster"),
        cpu_job(4),
    ]
    assert plan(line, TWO, [], now=88.5) == [
        Start("job-4", 1),
        Wait("job-1", 1, "retry in 12 s"),
        Wait("job-2", 2, "needs 3 CPUs, the cluster has 2 CPUs in all"),
        Wait("job-3", 3, "waits until job-3-a1 is gone from the cluster"),
    ]


def test_back_off_ends_at_its_time() -> None:
    assert plan([cpu_job(1, not_before=100.0)], TWO, [], now=100.0) == [Start("job-1", 1)]


def test_a_back_off_of_a_clock_that_was_set_back_since_holds_nobody() -> None:
    assert plan([cpu_job(1, not_before=3 * 3600.0)], TWO, [], now=0.0) == [Start("job-1", 1)]
    assert plan([cpu_job(1, not_before=300.0)], TWO, [], now=0.0) == [Wait("job-1", 1, "retry in 300 s")]


def test_nothing_starts_on_a_cluster_out_of_reach() -> None:
    line = [cpu_job(1), cpu_job(2, priority=60)]
    assert plan(line, None, [], 0.0, unreachable="Ray cannot be reached") == [
        Wait("job-2", 1, "Ray cannot be reached"),
        Wait("job-1", 2, "Ray cannot be reached"),
    ]
    assert plan(line, None, [], 0.0)[0] == Wait("job-2", 1, "cluster unreachable")


KEPT = "reserved for job-1; a queue.time_limit may let it by"


def test_what_would_fit_but_is_kept_says_so_and_what_does_not_fit_is_behind() -> None:
    line = [cpu_job(1, workers=2), cpu_job(2, time_left_s=5.0), cpu_job(3, workers=2), cpu_job(4)]
    reasons = [wait.reason for wait in waits(plan(line, TWO, [held(90, gpus=0)], now=0.0))]
    assert reasons[1:] == ["reserved for job-1", "behind job-1", KEPT]


def test_gpus_are_counted_and_named() -> None:
    assert plan([job(1, cpus=2, gpus=2)], [Node(8, 2)], [held(90)], 0.0) == [
        Wait("job-1", 1, "needs 2 GPUs, 1 of 2 free")
    ]


def test_those_that_make_room_are_named() -> None:
    policy = Policy(preempts_for_priority=True)
    line = [job(1, workers=8, priority=70), job(2, priority=60), job(3)]
    running = [held(90, workers=4), held(91, workers=3), held(92, is_stopping=True)]
    assert [wait.reason for wait in waits(plan(line, EIGHT, running, 0.0, policy=policy))] == [
        "needs 8 CPUs, 0 of 8 free and 8 GPUs, 0 of 8 free; job-91, job-90, job-92 make room",
        "behind job-1",
        "behind job-1",
    ]


def test_a_job_that_starts_as_backfill_stops_nobody() -> None:
    """The second fits beside the head for the time being, so no room need be made for it."""
    policy = Policy(preempts_for_priority=True)
    line = [job(1, workers=8, priority=70), job(2, priority=60, time_left_s=100.0)]
    running = [held(90, workers=5, priority=70, ends_by=110.0), held(91, workers=2, ends_by=100.0)]
    decisions = plan(line, EIGHT, running, 0.0, policy=policy)
    assert (starts(decisions), stops(decisions)) == ({"job-2": 1}, [])


def test_nothing_is_given_out_that_is_freed_for_those_in_front() -> None:
    policy = Policy(preempts_for_priority=True)
    line = [job(1, workers=4, priority=70), job(2, time_left_s=10.0), job(3, time_left_s=10.0)]
    decisions = plan(line, EIGHT, [held(90, workers=3), held(91, workers=4)], 0.0, policy=policy)
    # The head takes the free one and three of the four: one is to spare.
    assert (starts(decisions), stops(decisions)) == ({"job-2": 1}, ["job-91"])


def test_a_forecast_sees_backfill_quotas_and_those_that_are_told_to_stop() -> None:
    policy = Policy(preempts_for_priority=True, projects={"b": Quota(max_gpus=1)})
    running = [
        held(90, workers=2, since=0.0, ends_by=500.0),
        held(91, workers=4),
        held(92, workers=2, project="b", ends_by=700.0),
    ]
    line = [
        job(1, workers=4, priority=70, time_left_s=1000.0),
        job(2, workers=3, time_left_s=100.0),
        job(3, project="b", time_left_s=100.0),
        job(4, workers=2, time_left_s=100.0),
    ]
    decisions = plan(line, EIGHT, running, 0.0, policy=policy)
    assert stops(decisions) == ["job-91"]
    # 120 s of grace for the first; the fourth beside it at 500, as the second needs one more, of 700; then all is free.
    assert {wait.job_id: wait.starts_at for wait in waits(decisions)} == {
        "job-1": 120.0,
        "job-2": 700.0,
        "job-3": 700.0,
        "job-4": 500.0,
    }


@settings(derandomize=True, deadline=None, max_examples=120)
@given(clusters, candidates(), holdings(), policies, uses, st.randoms())
def test_any_pass(
    nodes: list[Node],
    jobs: list[Candidate],
    running: list[Holding],
    policy: Policy,
    use: dict[str, float],
    rng: random.Random,
) -> None:
    decisions = plan(jobs, nodes, running, 100.0, use=use, policy=policy)
    # The same whatever the order of what is looked at.
    jobs, running = rng.sample(jobs, len(jobs)), rng.sample(running, len(running))
    use = dict(rng.sample(list(use.items()), len(use)))
    assert plan(jobs, nodes, running, 100.0, use=use, policy=policy) == decisions
    # Each job once; places without gaps; a reason for each wait.
    by_id = {job.job_id: job for job in jobs}
    assert sorted([*starts(decisions), *(wait.job_id for wait in waits(decisions))]) == sorted(by_id)
    assert [wait.place for wait in waits(decisions)] == list(range(1, len(waits(decisions)) + 1))
    assert all(wait.reason for wait in waits(decisions))
    # Bands are strict in the order of decisions.
    line = [by_id[decision.job_id].priority for decision in decisions if not isinstance(decision, Preempt)]
    assert line == sorted(line, reverse=True)
    _check_room(nodes, running, by_id, decisions)
    _check_quotas(running, by_id, decisions, policy)
    _check_stops(running, by_id, decisions, policy)


def _check_room(
    nodes: Sequence[Node], running: Sequence[Holding], jobs: dict[str, Candidate], decisions: list[Decision]
) -> None:
    layout = Layout.of(nodes, running)
    workers = []
    for job_id, count in starts(decisions).items():
        gang = jobs[job_id].gang
        assert gang.workers <= count <= gang.max_workers
        assert not gang.sizes or count in gang.sizes
        assert not jobs[job_id].hindrance
        workers += [(gang.cpus, gang.gpus)] * count
    if workers:
        cpus, gpus = (sum(of) for of in zip(*workers, strict=True))
        assert cpus <= max(layout.pool.cpus, 0)
        assert gpus <= max(layout.pool.gpus, 0)
    largest = sorted(workers, key=lambda worker: (worker[1], worker[0]), reverse=True)
    assert _packs([(max(node.cpus, 0), max(node.gpus, 0)) for node in layout.pool.nodes], largest)


def _packs(nodes: list[tuple[int, int]], workers: list[tuple[int, int]]) -> bool:
    """Whether some placement of single workers exists, by trying all."""
    if not workers:
        return True
    cpus, gpus = workers[0]
    for i in range(len(nodes)):
        if nodes[i] in nodes[:i] or nodes[i][0] < cpus or nodes[i][1] < gpus:
            continue
        if _packs([*nodes[:i], (nodes[i][0] - cpus, nodes[i][1] - gpus), *nodes[i + 1 :]], workers[1:]):
            return True
    return False


def _check_quotas(
    running: Sequence[Holding], jobs: dict[str, Candidate], decisions: list[Decision], policy: Policy
) -> None:
    for quotas, field in ((policy.projects, "project"), (policy.users, "user")):
        for name, quota in quotas.items():
            begun = [(jobs[j], workers) for j, workers in starts(decisions).items() if getattr(jobs[j], field) == name]
            if not begun:
                continue
            before = [h for h in running if getattr(h, field) == name]
            workers = sum(h.workers for h in before) + sum(count for _, count in begun)
            of_gpus = sum(h.workers * h.gang.gpus for h in before)
            more_gpus = sum(count * job.gang.gpus for job, count in begun)
            assert quota.max_running is None or len(before) + len(begun) <= quota.max_running
            assert quota.max_workers is None or workers <= quota.max_workers
            assert quota.max_gpus is None or not more_gpus or of_gpus + more_gpus <= quota.max_gpus


def _check_stops(
    running: Sequence[Holding], jobs: dict[str, Candidate], decisions: list[Decision], policy: Policy
) -> None:
    holders = {holder.job_id: holder for holder in running}
    told = [decision for decision in decisions if isinstance(decision, Preempt)]
    assert len({stop.job_id for stop in told}) == len(told)
    waiting = {wait.job_id for wait in waits(decisions)}
    for stop in told:
        victim, job = holders[stop.job_id], jobs[stop.beneficiary]
        assert stop.beneficiary in waiting
        assert victim.may_be_preempted
        assert not victim.is_stopping
        assert 100.0 - victim.since >= policy.min_run_s
        if not (policy.preempts_for_priority and victim.priority < job.priority):
            assert policy.preempts_to_reclaim
            assert victim.priority <= job.priority
            assert victim.project != job.project
            quota = policy.projects[job.project]
            assert quota.workers is not None or (job.gang.gpus and quota.gpus is not None)


@settings(derandomize=True, deadline=None, max_examples=80)
@given(clusters, candidates(), holdings(), policies)
def test_the_next_pass_stops_nobody_else_for_the_same_jobs(
    nodes: list[Node], jobs: list[Candidate], running: list[Holding], policy: Policy
) -> None:
    first = plan(jobs, nodes, running, 100.0, policy=policy)
    told, begun = set(stops(first)), starts(first)
    if begun or len(told) > 10:
        return
    after = [replace(h, is_stopping=True) if h.job_id in told else h for h in running]
    assert not stops(plan(jobs, nodes, after, 100.5, policy=policy))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(works())
def test_the_head_is_never_delayed_by_what_is_behind_it(found: list[Work]) -> None:
    """All at once and of one project, so that the line is fixed: whoever is behind a job never delays it as head."""
    at_once = [replace(work, arrives=0.0, job=replace(work.job, project="a")) for work in found]
    nodes = gpus(4, nodes=2)
    heads: dict[str, float] = {}

    def watch(now: float, _: object, __: object, decisions: Sequence[Decision]) -> None:
        for wait in waits(decisions):
            if wait.reason.startswith("needs"):
                heads.setdefault(wait.job_id, now)

    with_all = Simulation(nodes, at_once, Policy(), watch=watch).run().starts()
    line = sorted(at_once, key=lambda work: (-work.job.priority, work.job.seq))
    for job_id in list(heads)[:3]:
        position = next(i for i, work in enumerate(line) if work.job.job_id == job_id)
        # What had started by the time it became the head stays; of the rest only the head.
        begun = [work for work in line if with_all[work.job.job_id] < heads[job_id]]
        begun += [work for work in line[:position] if work not in begun]
        fixed = [replace(work, arrives=with_all[work.job.job_id]) for work in begun]
        head = replace(line[position], arrives=heads[job_id])
        alone = Simulation(nodes, [*fixed, head], Policy())
        assert with_all[job_id] <= alone.run().starts()[job_id] + 1e-6


@settings(derandomize=True, deadline=None, max_examples=60)
@given(works())
def test_forecasts_come_true_when_limits_are_true_and_nothing_new_arrives(found: list[Work]) -> None:
    at_once = [
        replace(work, arrives=0.0, job=replace(work.job, project="a", time_left_s=work.takes_s)) for work in found
    ]
    forecasts: list[dict[str, float | None]] = []

    def watch(_: float, __: object, ___: object, decisions: Sequence[Decision]) -> None:
        forecasts.append({wait.job_id: wait.starts_at for wait in waits(decisions)})

    begun = Simulation(gpus(4, nodes=2), at_once, Policy(), watch=watch, tick_s=1e9).run().starts()
    assert forecasts[0] == {job_id: begun[job_id] for job_id in forecasts[0]}


def test_ten_thousand_jobs_are_planned_well_within_a_second() -> None:
    line = [job(seq, workers=1 + seq % 8, priority=seq % 7, project=f"p{seq % 40}") for seq in range(1, 10_001)]
    running = [held(-seq, ends_by=100.0 * seq) for seq in range(200)]
    begin = time.process_time()
    plan(line, gpus(8, nodes=64), running, now=0.0, policy=Policy(preempts_for_priority=True))
    assert time.process_time() - begin < 1.0
