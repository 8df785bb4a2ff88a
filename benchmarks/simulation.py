"""The scheduler in virtual time: jobs that arrive, run as long as they truly take, are stopped and come back.

Benchmarks find this module beside them; tests through `pythonpath` in pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from segfleet.queue.scheduling.plan import plan
from segfleet.queue.scheduling.shares import HALF_LIFE_S, Usage, decayed_use, dominant_share
from segfleet.queue.scheduling.values import Candidate, Decision, Holding, Node, Policy, Preempt, Start

# Called at each pass with the time, what waited, what ran, and what was decided.
Watch = Callable[[float, Sequence[Candidate], Sequence[Holding], Sequence[Decision]], None]
# Times that differ by less are the same moment, whatever sums of floats led there.
_MOMENT_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A job, and what nobody knows beforehand.

    Attributes:
        job: As it is submitted.
        arrives: When it is submitted.
        takes_s: How long it runs with its fewest workers; with twice as many half as long.
        is_resumable: It may be stopped, and goes on where it was.
    """

    job: Candidate
    arrives: float
    takes_s: float
    is_resumable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of time in which a job ran.

    Attributes:
        outcome: `done`, `limit` (its time was up), `preempted` or `running` (at the end of the simulation).
    """

    holding: Holding
    end: float
    outcome: str


@dataclass(slots=True)
class _Run:
    holding: Holding
    stop_by: float | None = None


class Simulation:
    """A cluster and its queue; `run` it once.

    Args:
        nodes: The cluster.
        works: What is submitted.
        policy: The operator's rules.
        checkpoint_s: How long an attempt that is told to stop takes for it; never longer than the policy's grace.
        tick_s: At least so often there is a pass while jobs wait; otherwise only when something has happened.
        half_life_s: Of the projects' use.
        watch: Sees each pass.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        works: Iterable[Work],
        policy: Policy,
        *,
        checkpoint_s: float = float("inf"),
        tick_s: float = 30.0,
        half_life_s: float = HALF_LIFE_S,
        watch: Watch | None = None,
    ) -> None:
        self.nodes, self.policy = tuple(nodes), policy
        self.works = {work.job.job_id: work for work in works}
        self.now = 0.0
        self.use: dict[str, float] = {}
        self.spans: list[Span] = []
        self._checkpoint_s = min(checkpoint_s, policy.grace_s)
        self._tick_s, self._half_life_s, self._watch = tick_s, half_life_s, watch
        self._coming = sorted(self.works.values(), key=lambda work: (work.arrives, work.job.seq), reverse=True)
        self._waiting: dict[str, Candidate] = {}
        self._running: dict[str, _Run] = {}
        self._left_s = {job_id: work.takes_s for job_id, work in self.works.items()}

    def run(self, until: float = float("inf")) -> Simulation:
        """Go on until all is done, nothing can happen any more, or the time has come."""
        while (moment := self._next_moment()) is not None and moment <= until:
            self._go_to(moment)
            self._end_runs()
            while self._coming and self._coming[-1].arrives <= self.now + _MOMENT_S:
                work = self._coming.pop()
                self._waiting[work.job.job_id] = work.job
            self._pass()
        if until < float("inf"):
            self._go_to(until)
        for run in self._running.values():
            self.spans.append(Span(holding=run.holding, end=self.now, outcome="running"))
        return self

    def starts(self) -> dict[str, float]:
        """When each job first started."""
        found: dict[str, float] = {}
        for span in self.spans:
            job_id = span.holding.job_id
            found[job_id] = min(span.holding.since, found.get(job_id, span.holding.since))
        return found

    def _next_moment(self) -> float | None:
        moments = [self._ends_at(run)[0] for run in self._running.values()]
        if self._coming:
            moments.append(self._coming[-1].arrives)
        if self._waiting and self._running:
            moments.append(self.now + self._tick_s)
        return max(self.now, min(moments)) if moments else None

    def _ends_at(self, run: _Run) -> tuple[float, str]:
        holding = run.holding
        speed = holding.workers / holding.gang.workers
        ends = [(holding.since + self._left_s[holding.job_id] / speed, "done")]
        if holding.ends_by is not None:
            ends.append((holding.ends_by, "limit"))
        if run.stop_by is not None:
            ends.append((run.stop_by, "preempted"))
        return min(ends, key=lambda end: end[0])

    def _go_to(self, moment: float) -> None:
        fading = 2.0 ** ((self.now - moment) / self._half_life_s)
        recent = decayed_use(
            [
                Usage(
                    run.holding.project,
                    dominant_share(run.holding.gang, run.holding.workers, self.nodes),
                    self.now,
                    moment,
                )
                for run in self._running.values()
            ],
            moment,
            self._half_life_s,
        )
        self.use = {
            project: self.use.get(project, 0.0) * fading + recent.get(project, 0.0) for project in {*self.use, *recent}
        }
        self.now = moment

    def _end_runs(self) -> None:
        for job_id, run in list(self._running.items()):
            end, outcome = self._ends_at(run)
            if end > self.now + _MOMENT_S:
                continue
            del self._running[job_id]
            holding = run.holding
            self.spans.append(Span(holding=holding, end=self.now, outcome=outcome))
            if outcome != "preempted":
                continue
            ran_s = self.now - holding.since
            self._left_s[job_id] -= ran_s * holding.workers / holding.gang.workers
            limit_s = holding.ends_by
            job = self.works[job_id].job
            self._waiting[job_id] = replace(job, time_left_s=None if limit_s is None else limit_s - self.now)

    def _pass(self) -> None:
        jobs = list(self._waiting.values())
        holdings = [
            run.holding
            if run.stop_by is None
            else replace(run.holding, is_stopping=True, ends_by=min(run.stop_by, run.holding.ends_by or run.stop_by))
            for run in self._running.values()
        ]
        decisions = plan(jobs, self.nodes, holdings, self.now, use=self.use, policy=self.policy)
        for decision in decisions:
            if isinstance(decision, Start):
                self._start(self._waiting.pop(decision.job_id), decision.workers)
            elif isinstance(decision, Preempt):
                self._running[decision.job_id].stop_by = self.now + self._checkpoint_s
        if self._watch is not None:
            self._watch(self.now, jobs, holdings, decisions)

    def _start(self, job: Candidate, workers: int) -> None:
        self._running[job.job_id] = _Run(
            Holding(
                job_id=job.job_id,
                seq=job.seq,
                gang=job.gang,
                workers=workers,
                since=self.now,
                priority=job.priority,
                project=job.project,
                user=job.user,
                ends_by=None if job.time_left_s is None else self.now + job.time_left_s,
                may_be_preempted=self.works[job.job_id].is_resumable,
            )
        )
        firsts: dict[str, Candidate] = {}
        for other in self._waiting.values():
            first = firsts.get(other.project)
            if other.priority == job.priority and (first is None or other.seq < first.seq):
                firsts[other.project] = other
        for first in firsts.values():
            if first.seq < job.seq:
                self._waiting[first.job_id] = replace(first, overtaken=first.overtaken + 1)
