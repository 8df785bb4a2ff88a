"""Who may start at all: limits of the cluster, of time, of dependencies and of quotas."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from segfleet.queue.retry import LONGEST_DELAY_S
from segfleet.queue.scheduling.line import Tally
from segfleet.queue.scheduling.pool import Pool
from segfleet.queue.scheduling.values import Candidate, Gang, Holding, Node, Policy, Quota


def hindrance(job: Candidate, misfit: str, now: float) -> str:
    """Why a job cannot start now however empty the cluster is; empty: it could.

    Args:
        job: Who asks.
        misfit: From `never_fits`; jobs of the same gang share it.
        now: Seconds since the epoch.
    """
    # A time further away than any back-off was written by a clock that has been set back since.
    if job.not_before is not None and now < job.not_before <= now + LONGEST_DELAY_S:
        return f"retry in {math.ceil(job.not_before - now)} s"
    return job.hindrance or misfit


def never_fits(gang: Gang, nodes: Sequence[Node]) -> str:
    """Why the cluster as it is can never run a gang, with the numbers; empty: it can."""
    room = Pool(tuple(nodes)).room(gang)
    if room >= gang.workers:
        return ""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    have = f"the cluster has {amount(cpus, gpus)} in all"
    needs = f"needs {amount(gang.workers * gang.cpus, gang.workers * gang.gpus)}"
    if gang.workers * gang.cpus <= cpus and gang.workers * gang.gpus <= gpus:
        each = amount(gang.cpus, gang.gpus)
        return f"needs {count(gang.workers, 'worker')} of {each} each, the nodes have room for {room}"
    return f"{needs}, {have}"


@dataclass(slots=True)
class Ledger:
    """What the quotas leave, as a pass gives out room.

    Attributes:
        held: What projects and users hold, by kind of quota.
        kept: What is kept of their quotas for jobs that come first but cannot start yet.
        first: The first of these jobs, by kind and name.
    """

    policy: Policy
    held: dict[str, Tally]
    kept: dict[str, Tally] = field(default_factory=lambda: {"project": Tally(), "user": Tally()})
    first: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def of(cls, holdings: Sequence[Holding], policy: Policy) -> Ledger:
        """Before anything is given out."""
        return cls(policy, {"project": Tally.of(holdings), "user": Tally.of(holdings, of_users=True)})

    def shortage(self, job: Candidate) -> str:
        """Which quota a job would break by starting now, with the numbers; empty: none."""
        for kind, name, quota in self._quotas(job):
            if why := self._short(kind, name, quota, job.gang):
                return why
        return ""

    def allowed_workers(self, job: Candidate) -> int:
        """How many more workers the quotas leave a job, up to its most; may be below 0."""
        most = job.gang.max_workers
        for kind, name, quota in self._quotas(job):
            taken = (self.held[kind], self.kept[kind])
            if quota.max_workers is not None:
                most = min(most, quota.max_workers - sum(tally.workers.get(name, 0) for tally in taken))
            if quota.max_gpus is not None and job.gang.gpus:
                left = quota.max_gpus - sum(tally.gpus.get(name, 0) for tally in taken)
                most = min(most, left // job.gang.gpus)
        return most

    def add(self, job: Candidate, workers: int, jobs: int = 1) -> None:
        """Count a start; with no job more, the growth of one."""
        self.held["project"].add(job.project, job.gang, workers, jobs)
        self.held["user"].add(job.user, job.gang, workers, jobs)

    def keep(self, job: Candidate, *, where_short: bool = False) -> None:
        """Keep of the quotas what a waiting job needs, so that later jobs of its own do not pass it for ever.

        Args:
            job: It waits for room, or for a quota.
            where_short: Only of those quotas that it waits for.
        """
        for kind, name, quota in list(self._quotas(job)):
            if where_short and not self._short(kind, name, quota, job.gang):
                continue
            # A job that is larger than the quota itself must not block the others for good.
            if all(more <= limit for _, more, limit in _bounds(quota, job.gang)):
                self.kept[kind].add(name, job.gang, job.gang.workers)
                self.first.setdefault((kind, name), job.job_id)

    def _quotas(self, job: Candidate) -> Iterator[tuple[str, str, Quota]]:
        if (quota := self.policy.projects.get(job.project)) is not None:
            yield "project", job.project, quota
        if (quota := self.policy.users.get(job.user)) is not None:
            yield "user", job.user, quota

    def _short(self, kind: str, name: str, quota: Quota, gang: Gang) -> str:
        for what, more, limit in _bounds(quota, gang):
            held, kept = self.held[kind].of_kind(name, what), self.kept[kind].of_kind(name, what)
            if more and held + more > limit:
                return f"quota: {kind} {name} has {held} of {count(limit, what)}, this job needs {more}"
            if more and held + kept + more > limit:
                return f"quota: what {kind} {name} has left is kept for {self.first[kind, name]}"
        return ""


def _bounds(quota: Quota, gang: Gang) -> list[tuple[str, int, int]]:
    """(what, wanted, limit) of each bound there is."""
    bounds = (
        ("running job", 1, quota.max_running),
        ("worker", gang.workers, quota.max_workers),
        ("GPU", gang.workers * gang.gpus, quota.max_gpus),
    )
    return [(what, wanted, limit) for what, wanted, limit in bounds if limit is not None]


def amount(cpus: int, gpus: int) -> str:
    """2 CPUs and 1 GPU."""
    return f"{count(cpus, 'CPU')} and {count(gpus, 'GPU')}" if gpus else count(cpus, "CPU")


def count(number: int, noun: str) -> str:
    """1 CPU, 2 CPUs."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
