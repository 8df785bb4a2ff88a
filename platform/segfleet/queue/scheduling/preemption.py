"""Who makes room for those that are first in the line: the lowest, the fewest, the youngest, and whole gangs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice

from segfleet.queue.scheduling.allocation import Allocation
from segfleet.queue.scheduling.line import Tally
from segfleet.queue.scheduling.pool import Pool, Tenant, vacated
from segfleet.queue.scheduling.values import Candidate, Holding, Policy, Preempt

# Room is made for so many jobs in one pass; the next ones are served in the next pass.
MAX_SERVED = 16
# Sets of victims that are looked at for one job before the search for the fewest is given up for few.
MAX_SETS = 1000


@dataclass(slots=True)
class Eviction:
    """Makes room for the first jobs that wait, one after the other, until one of them cannot be helped.

    For priority it stops attempts of lower priority; to reclaim, attempts on borrowed room, of no higher priority, for
    a job within its project's guarantee. It never stops an attempt that has run less than `min_run_s`, and none where
    waiting for `grace_s` does as well.

    Attributes:
        stops: Decisions.
        served: Jobs for which room is being made, now or since an earlier pass, in the order of the line.
    """

    allocation: Allocation
    now: float
    policy: Policy
    stops: list[Preempt] = field(default_factory=list)
    served: list[Candidate] = field(default_factory=list)
    gave_up: bool = False

    def serve(self, job: Candidate) -> bool:
        """Make room for the next job of the line. What leaves anyway is counted first."""
        policy, layout = self.policy, self.allocation.layout
        if not (policy.preempts_for_priority or policy.preempts_to_reclaim) or len(self.served) == MAX_SERVED:
            self.gave_up = True
        if self.gave_up:
            return False
        leaving = [tenant for tenant in layout.tenants if _leaves(tenant.holding, self.now, policy)]
        staying = [tenant for tenant in layout.tenants if not _leaves(tenant.holding, self.now, policy)]
        pool, tally = vacated(layout.pool, leaving), Tally.of(tenant.holding for tenant in staying)
        for other in self.served:
            pool = pool.without(other.gang, other.gang.workers) or pool
            tally.add(other.project, other.gang, other.gang.workers)
        if pool.place(job.gang, job.gang.workers) is None:
            started = {start.job_id for start in self.allocation.starts}
            able = [t for t in staying if t.holding.job_id not in started and _may_stop(t.holding, self.now, policy)]
            victims = _Choice(job, pool, tally, policy).among(able)
            self.gave_up = not victims
            self.stops.extend(Preempt(tenant.holding.job_id, job.job_id, why) for tenant, why in victims)
            layout.stop({tenant.holding.job_id for tenant, _ in victims})
        if not self.gave_up:
            self.served.append(job)
        return not self.gave_up


Victims = list[tuple[Tenant, str]]


@dataclass(frozen=True, slots=True)
class _Choice:
    """The search for those that make room for one job.

    Attributes:
        pool: What is free once all are gone that leave anyway.
        tally: What those hold that stay.
    """

    job: Candidate
    pool: Pool
    tally: Tally
    policy: Policy

    def among(self, tenants: Sequence[Tenant]) -> Victims:
        """Whom to stop, with the reasons; empty: nothing would help. No higher band where lower ones will do."""
        youngest_first = sorted(tenants, key=lambda t: (-t.holding.since, -t.holding.seq, t.holding.job_id))
        eligible = [tenant for tenant in youngest_first if self._reasons([tenant])]
        for band in sorted({tenant.holding.priority for tenant in eligible}):
            able = [tenant for tenant in eligible if tenant.holding.priority <= band]
            if self._fits(able) and (victims := self._fewest(able) or self._few(able)):
                return victims
        return []

    def _fewest(self, able: Sequence[Tenant]) -> Victims:
        """The smallest set that makes enough room, of these the youngest; empty if none was found among so many."""
        sets = (chosen for size in range(self._at_least(able), len(able) + 1) for chosen in combinations(able, size))
        for chosen in islice(sets, MAX_SETS):
            if self._suffices(chosen) and (why := self._reasons(chosen)) and self._fits(chosen):
                return list(zip(chosen, why, strict=True))
        return []

    def _few(self, able: Sequence[Tenant]) -> Victims:
        """Some set that makes enough room, largest attempts first, without those that turn out needless."""
        chosen: list[Tenant] = []
        for tenant in sorted(able, key=lambda tenant: _size(tenant.holding), reverse=True):
            if self._fits(chosen):
                break
            if self._reasons([*chosen, tenant]):
                chosen.append(tenant)
        if not self._fits(chosen):
            return []
        for spared in reversed(chosen):
            rest = [tenant for tenant in chosen if tenant is not spared]
            chosen = rest if self._fits(rest) else chosen
        return list(zip(chosen, self._reasons(chosen), strict=True))

    def _at_least(self, able: Sequence[Tenant]) -> int:
        """No set smaller than this can make enough room."""
        by_cpus = sorted(able, key=lambda t: t.holding.workers * t.holding.gang.cpus, reverse=True)
        by_gpus = sorted(able, key=lambda t: t.holding.workers * t.holding.gang.gpus, reverse=True)
        return next(
            (n for n in range(1, len(able)) if self._lacks(by_cpus[:n])[0] <= 0 and self._lacks(by_gpus[:n])[1] <= 0),
            len(able),
        )

    def _suffices(self, chosen: Sequence[Tenant]) -> bool:
        """Whether the sums would do: cheap to ask before `_fits`."""
        return max(self._lacks(chosen)) <= 0

    def _lacks(self, chosen: Sequence[Tenant]) -> tuple[int, int]:
        """CPUs and GPUs that are still missing."""
        gang, freed = self.job.gang, [(t.holding.workers, t.holding.gang) for t in chosen]
        cpus = gang.workers * gang.cpus - self.pool.cpus - sum(workers * of.cpus for workers, of in freed)
        gpus = gang.workers * gang.gpus - self.pool.gpus - sum(workers * of.gpus for workers, of in freed)
        return cpus, gpus

    def _fits(self, chosen: Iterable[Tenant]) -> bool:
        return vacated(self.pool, chosen).place(self.job.gang, self.job.gang.workers) is not None

    def _reasons(self, chosen: Sequence[Tenant]) -> list[str]:
        """Why each of these may be stopped, if all are; empty: one may not."""
        job, policy = self.job, self.policy
        lower = {
            tenant.holding.job_id
            for tenant in chosen
            if policy.preempts_for_priority and tenant.holding.priority < job.priority
        }
        rest = [tenant.holding for tenant in chosen if tenant.holding.job_id not in lower]
        if rest and not self._may_reclaim(rest, without=[t.holding for t in chosen if t.holding.job_id in lower]):
            return []
        for_priority = f"makes room for {job.job_id} of priority {job.priority}"
        to_reclaim = f"gives back what project {job.project} is guaranteed, for {job.job_id}"
        return [for_priority if tenant.holding.job_id in lower else to_reclaim for tenant in chosen]

    def _may_reclaim(self, victims: Sequence[Holding], without: Iterable[Holding]) -> bool:
        """Whether these stand on borrowed room, each of them even after the smaller ones have gone."""
        job, projects = self.job, self.policy.projects
        if not self.policy.preempts_to_reclaim:
            return False
        if self.tally.exceeds_guarantee(job.project, projects.get(job.project), job.gang, job.gang.workers):
            return False
        left = self.tally.minus(without)
        for victim in sorted(victims, key=_size):
            borrows = left.exceeds_guarantee(victim.project, projects.get(victim.project), victim.gang)
            if victim.project == job.project or victim.priority > job.priority or not borrows:
                return False
            left = left.minus([victim])
        return True


def _leaves(holder: Holding, now: float, policy: Policy) -> bool:
    """Whether it will be gone as soon as one that is told now to make room."""
    return holder.is_stopping or (holder.ends_by is not None and holder.ends_by <= now + policy.grace_s)


def _may_stop(holder: Holding, now: float, policy: Policy) -> bool:
    return holder.may_be_preempted and now - holder.since >= policy.min_run_s


def _size(holder: Holding) -> tuple[int, int, float, int]:
    """Order of size, of like ones the older first."""
    return holder.workers * holder.gang.gpus, holder.workers * holder.gang.cpus, holder.since, holder.seq
