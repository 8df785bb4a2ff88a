"""When each waiting job would start if everything took as long as its time limit."""

from __future__ import annotations

from collections.abc import Sequence

from segfleet.queue.scheduling.admission import Ledger
from segfleet.queue.scheduling.allocation import Allocation, allocate
from segfleet.queue.scheduling.backfill import backfill, grow
from segfleet.queue.scheduling.pool import Layout, Tenant, vacated
from segfleet.queue.scheduling.values import Candidate, Holding, Policy

# Only so many jobs are asked about, and only so many moments at which something ends are looked at.
MAX_FORECASTS = 50
MAX_MOMENTS = 100


def forecast(line: Sequence[Candidate], allocation: Allocation, now: float, policy: Policy) -> dict[str, float]:
    """Start times of the first waiting jobs, by id.

    The passes to come are gone through, one at each end of an attempt, with the line as it stands. What has no time
    limit stays for ever, so nobody can tell about those that need its place.

    Args:
        line: Jobs that wait for room or for a quota.
        allocation: What this pass has given out.
        now: Seconds since the epoch.
        policy: The operator's rules.

    Returns:
        Seconds since the epoch; jobs without an answer are missing.
    """
    nodes, pool, tenants = allocation.layout.nodes, allocation.layout.pool, allocation.layout.tenants
    waiting = list(line[:MAX_FORECASTS])
    times: dict[str, float] = {}
    for _ in range(MAX_MOMENTS):
        ends = [end for tenant in tenants if (end := _end(tenant, now, policy)) is not None]
        if not waiting or not ends:
            break
        time = min(ends)
        gone = [tenant for tenant in tenants if _end(tenant, now, policy) == time]
        staying = [tenant for tenant in tenants if _end(tenant, now, policy) != time]
        layout = Layout(nodes, vacated(pool, gone), staying)
        held: list[Holding] = [tenant.holding for tenant in staying]
        result = allocate(waiting, layout, Ledger.of(held, policy), time)
        grow(result, backfill(result, lambda _: False, time), time)
        times.update({job.job_id: time for job in result.starts})
        waiting = [job for job in waiting if job not in result.starts]
        pool, tenants = layout.pool, layout.tenants
    return times


def _end(tenant: Tenant, now: float, policy: Policy) -> float | None:
    """When it is gone; the time is always that of the pass, so that the order of ends stays what it was."""
    ends_by = tenant.holding.ends_by
    if tenant.holding.is_stopping:
        return now + policy.grace_s if ends_by is None else max(now, min(ends_by, now + policy.grace_s))
    return None if ends_by is None else max(ends_by, now)
