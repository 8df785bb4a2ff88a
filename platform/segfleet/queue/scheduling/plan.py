"""One scheduling pass: admit, order, allocate, preempt, backfill, grow, forecast. A pure function of its arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from segfleet.queue.scheduling.admission import Ledger, hindrance, never_fits
from segfleet.queue.scheduling.allocation import allocate
from segfleet.queue.scheduling.backfill import backfill, grow
from segfleet.queue.scheduling.forecast import forecast
from segfleet.queue.scheduling.line import order
from segfleet.queue.scheduling.pool import Layout
from segfleet.queue.scheduling.preemption import Eviction
from segfleet.queue.scheduling.values import Candidate, Decision, Holding, Node, Policy, Preempt, Start, Wait


def plan(
    jobs: Iterable[Candidate],
    nodes: Sequence[Node] | None,
    holdings: Sequence[Holding],
    now: float,
    *,
    use: Mapping[str, float] | None = None,
    policy: Policy | None = None,
    unreachable: str = "",
) -> list[Decision]:
    """Decide for every queued job whether it starts or why it waits, and who makes room for the first that waits.

    Args:
        jobs: All queued jobs, in any order.
        nodes: The cluster; None: not reachable.
        holdings: Every attempt that holds resources.
        now: Seconds since the epoch.
        use: Decayed use of each project, see `shares.decayed_use`.
        policy: The operator's rules.
        unreachable: What to tell about a cluster that is not reachable.

    Returns:
        One Start or Wait for each job, in the order of the line; then the Preempts.
    """
    jobs, policy, use = list(jobs), policy or Policy(), use or {}
    if nodes is None:
        reason = unreachable or "cluster unreachable"
        line = order(jobs, holdings, use, (), now, policy)
        return [Wait(job.job_id, place, reason) for place, job in enumerate(line, 1)]
    misfits = {gang: never_fits(gang, nodes) for gang in {job.gang for job in jobs}}
    hindered = {job.job_id: why for job in jobs if (why := hindrance(job, misfits[job.gang], now))}
    line = order(jobs, holdings, use, nodes, now, policy, hindered)
    ready = [job for job in line if job.job_id not in hindered]
    allocation = allocate(ready, Layout.of(nodes, holdings), Ledger.of(holdings, policy), now)
    eviction = Eviction(allocation, now, policy)
    grow(allocation, backfill(allocation, eviction.serve, now), now)
    times = forecast([job for job in ready if job not in allocation.starts], allocation, now, policy)
    reasons = allocation.reasons | hindered
    for job_id, stops in _room_made(eviction.stops, holdings, allocation.head).items():
        reasons[job_id] += f"; {', '.join(stops)} {'makes' if len(stops) == 1 else 'make'} room"
    starts = {job.job_id: workers for job, workers in allocation.starts.items()}
    decisions: list[Decision] = []
    place = 0
    for job in line:
        if job.job_id in starts:
            decisions.append(Start(job.job_id, starts[job.job_id]))
            continue
        place += 1
        decisions.append(Wait(job.job_id, place, reasons[job.job_id], times.get(job.job_id)))
    return [*decisions, *eviction.stops]


def hand_over(
    jobs: Iterable[Candidate], holdings: Sequence[Holding], now: float, *, use: Mapping[str, float], policy: Policy
) -> list[Decision]:
    """Start whatever waits for nothing but room: the cluster admits by quotas of its own, such as Kueue's.

    Args:
        jobs: All queued jobs, in any order.
        holdings: Every attempt that holds resources.
        now: Seconds since the epoch.
        use: Decayed use of each project.
        policy: Of it, only what orders the line counts; no quota holds and nobody is told to make room.

    Returns:
        One Start, with the fewest workers that will do, or Wait for each job, in the order of the line.
    """
    jobs = list(jobs)
    hindered = {job.job_id: why for job in jobs if (why := hindrance(job, "", now))}
    decisions: list[Decision] = []
    place = 0
    for job in order(jobs, holdings, use, (), now, policy, hindered):
        if job.job_id in hindered:
            place += 1
            decisions.append(Wait(job.job_id, place, hindered[job.job_id]))
        else:
            decisions.append(Start(job.job_id, job.gang.workers))
    return decisions


def _room_made(stops: Iterable[Preempt], holdings: Iterable[Holding], head: Candidate | None) -> dict[str, list[str]]:
    """Who makes room for whom: those that are told now, and for the head those that were told before."""
    makers: dict[str, list[str]] = {}
    for stop in stops:
        makers.setdefault(stop.beneficiary, []).append(stop.job_id)
    told = [holder.job_id for holder in sorted(holdings, key=lambda holder: holder.seq) if holder.is_stopping]
    if head is not None and told:
        makers.setdefault(head.job_id, []).extend(told)
    return makers
