"""The order of the line: priority, then what a project has used, then age."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from segfleet.queue.scheduling.shares import dominant_share, weighted
from segfleet.queue.scheduling.values import Candidate, Gang, Holding, Node, Policy, Quota


@dataclass(slots=True)
class Tally:
    """What projects and users hold, counted up as jobs are taken."""

    workers: dict[str, int] = field(default_factory=dict)
    gpus: dict[str, int] = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, holdings: Iterable[Holding], *, of_users: bool = False) -> Tally:
        """What the holders hold, by project or by user."""
        tally = cls()
        for holder in holdings:
            tally.add(holder.user if of_users else holder.project, holder.gang, holder.workers)
        return tally

    def add(self, who: str, gang: Gang, workers: int, jobs: int = 1) -> None:
        """Count a job, or with none more the growth of one."""
        self.workers[who] = self.workers.get(who, 0) + workers
        self.gpus[who] = self.gpus.get(who, 0) + workers * gang.gpus
        self.running[who] = self.running.get(who, 0) + jobs

    def minus(self, holdings: Iterable[Holding]) -> Tally:
        """What projects hold when these holders are gone."""
        left = Tally(dict(self.workers), dict(self.gpus), dict(self.running))
        for holder in holdings:
            left.add(holder.project, holder.gang, -holder.workers, -1)
        return left

    def of_kind(self, who: str, what: str) -> int:
        """What somebody holds of running jobs, workers or GPUs, by the noun that reasons use."""
        held = {"running job": self.running, "worker": self.workers, "GPU": self.gpus}[what]
        return held.get(who, 0)

    def exceeds_guarantee(self, who: str, quota: Quota | None, gang: Gang, workers: int = 0) -> bool:
        """Whether a gang stands on borrowed room, with so many workers of it besides what is counted already.

        What no guarantee covers is borrowed: a project without one may use what others leave, but not keep it from
        them; and a guarantee of GPUs is none of CPUs alone.
        """
        if quota is None or (quota.workers is None and (quota.gpus is None or not gang.gpus)):
            return True
        gpus = self.gpus.get(who, 0) + workers * gang.gpus
        return _above(self.workers.get(who, 0) + workers, quota.workers) or (gang.gpus > 0 and _above(gpus, quota.gpus))


def order(
    jobs: Iterable[Candidate],
    holdings: Sequence[Holding],
    use: Mapping[str, float],
    nodes: Sequence[Node],
    now: float,
    policy: Policy,
    hindered: Collection[str] = (),
) -> list[Candidate]:
    """The line: bands of priority; inside a band jobs that were overtaken too often, then by share, then by age.

    A job that would borrow comes after those within a guarantee, however often it was overtaken: it would take back at
    once what it has just been made to give up. Each place in the line counts as the start of a job
    (`entry_penalty_s`), so that the jobs of projects with like use take turns.

    Args:
        jobs: Queued jobs, in any order.
        holdings: Attempts that hold resources.
        use: Decayed use of each project.
        nodes: The cluster.
        now: Seconds since the epoch.
        policy: The operator's rules.
        hindered: Ids of jobs that cannot start now in any case; they stand at the end of their band.
    """
    bands: dict[int, list[Candidate]] = {}
    for job in jobs:
        bands.setdefault(job.priority, []).append(job)
    cluster = [Node(sum(node.cpus for node in nodes), sum(node.gpus for node in nodes))]
    standing = _Standing(dict(use), Tally.of(holdings), cluster, policy)
    for holder in sorted(holdings, key=lambda holder: (holder.seq, holder.job_id)):
        standing.charge(holder.project, holder.gang, holder.workers, policy.entry_penalty_s - (now - holder.since))
    line: list[Candidate] = []
    for priority in sorted(bands, reverse=True):
        band = sorted(bands[priority], key=lambda job: job.seq)
        line += _band([job for job in band if job.job_id not in hindered], standing)
        line += [job for job in band if job.job_id in hindered]
    return line


@dataclass(slots=True)
class _Standing:
    """What counts for and against each project as the line is drawn up."""

    use: dict[str, float]
    tally: Tally
    cluster: list[Node]
    policy: Policy

    def charge(self, project: str, gang: Gang, workers: int, seconds: float) -> None:
        """Count use that is yet to come."""
        if seconds > 0:
            share = dominant_share(gang, workers, self.cluster)
            self.use[project] = self.use.get(project, 0.0) + share * min(seconds, self.policy.entry_penalty_s)

    def covers(self, job: Candidate) -> bool:
        """Whether a job stands within its project's guarantee, which is used up by it then."""
        quota = self.policy.projects.get(job.project)
        if self.tally.exceeds_guarantee(job.project, quota, job.gang, job.gang.workers):
            return False
        self.tally.add(job.project, job.gang, job.gang.workers)
        return True

    def key(self, first: Candidate) -> tuple[bool, float, int, str]:
        """Place of a project among the others, by its first job."""
        overtaken = first.overtaken >= self.policy.max_overtaken
        use = 0.0 if overtaken else weighted(self.use, self.policy.weights, first.project)
        return not overtaken, use, first.seq, first.project


def _band(jobs: list[Candidate], standing: _Standing) -> list[Candidate]:
    within: list[Candidate] = []
    beyond: list[Candidate] = []
    for job in sorted(jobs, key=lambda job: (job.overtaken < standing.policy.max_overtaken, job.seq)):
        # One by one: a gang larger than the guarantee must not keep its project's smaller jobs from it.
        (within if standing.covers(job) else beyond).append(job)
    for job in beyond:
        standing.tally.add(job.project, job.gang, job.gang.workers)
    return _taking_turns(within, standing) + _taking_turns(beyond, standing)


def _taking_turns(jobs: list[Candidate], standing: _Standing) -> list[Candidate]:
    waiting: dict[str, deque[Candidate]] = {}
    for job in jobs:
        waiting.setdefault(job.project, deque()).append(job)
    # A project's key changes only when one of its own jobs is taken, so the heap never holds an outdated one.
    heap = [standing.key(queue[0]) for queue in waiting.values()]
    heapq.heapify(heap)
    line: list[Candidate] = []
    while heap:
        queue = waiting[heapq.heappop(heap)[-1]]
        job = queue.popleft()
        line.append(job)
        standing.charge(job.project, job.gang, job.gang.workers, standing.policy.entry_penalty_s)
        if queue:
            heapq.heappush(heap, standing.key(queue[0]))
    return line


def _above(held: int, limit: int | None) -> bool:
    return limit is not None and held > limit
