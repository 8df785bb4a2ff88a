"""Stand-ins for the world outside: a clock that moves when told, and a cluster that misbehaves when told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from segfleet.cluster.launcher import ClusterUnreachableError, RayJobStatus, RayState, SubmissionRefusedError
from segfleet.cluster.needs import Needs
from segfleet.errors import LaunchError
from segfleet.queue.machines import Machine
from segfleet.queue.scheduling.values import Node


@dataclass
class FakeClock:
    """Seconds since the epoch that pass only by `advance`."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        self.now += seconds
        return self.now


@dataclass
class FakeJob:
    """A Ray job of a `FakeLauncher`; `state` and `log` are the test's to change."""

    command: str
    env: dict[str, str]
    metadata: dict[str, str]
    needs: Needs | None = None
    state: RayState = RayState.RUNNING
    message: str = ""
    log: str = ""
    is_held: bool = False


@dataclass
class FakeLauncher:
    """A cluster in memory.

    Attributes:
        jobs: What the present head knows.
        runs: Every id that was really started, once for each start; a repeated id ran twice.
        reachable: False: every call fails.
        next_submits: Behaviour of the coming submissions, first first: ok | lost (not taken, no answer) |
            lost_answer (taken, no answer) | refused.
        obeys_stop: False: a stopped job goes on.
        failing: True: no status is to be had.
        broken: What a call about this id raises, instead of answering.
        broken_logs: True: no log is to be had.
        clock: Goes on by `log_takes_s` while a log is fetched.
        fetches: Ids of the logs that were asked for.
    """

    cpus: int = 2
    gpus: int = 0
    jobs: dict[str, FakeJob] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    reachable: bool = True
    failing: bool = False
    next_submits: list[str] = field(default_factory=list)
    obeys_stop: bool = True
    life: int = 1
    more: dict[str, Node] = field(default_factory=dict)
    broken: dict[str, Exception] = field(default_factory=dict)
    broken_logs: bool = False
    clock: FakeClock = field(default_factory=FakeClock)
    log_takes_s: float = 0.0
    fetches: list[str] = field(default_factory=list)

    def submit(
        self,
        submission_id: str,
        command: str,
        env: Mapping[str, str],
        metadata: Mapping[str, str],
        needs: Needs | None = None,
    ) -> None:
        self._reach()
        behaviour = self.next_submits.pop(0) if self.next_submits else "ok"
        if behaviour == "refused":
            raise SubmissionRefusedError(f"Ray refuses {submission_id}: bad runtime_env")
        if behaviour == "lost":
            raise ClusterUnreachableError("Ray cannot be reached (ReadTimeout)")
        if submission_id not in self.jobs:
            self.jobs[submission_id] = FakeJob(command, dict(env), dict(metadata), needs)
            self.runs.append(submission_id)
        if behaviour == "lost_answer":
            raise ClusterUnreachableError("Ray cannot be reached (ReadTimeout)")

    def status(self, submission_id: str) -> RayJobStatus | None:
        self._reach()
        if submission_id in self.broken:
            raise self.broken[submission_id]
        if self.failing:
            raise LaunchError("Ray answers with HTTP 500")
        job = self.jobs.get(submission_id)
        return None if job is None else RayJobStatus(job.state, job.message, job.is_held)

    def stop(self, submission_id: str) -> None:
        self._reach()
        self.stops.append(submission_id)
        job = self.jobs.get(submission_id)
        if job is not None and self.obeys_stop and not RayJobStatus(job.state).is_terminal:
            job.state = RayState.STOPPED

    def logs(self, submission_id: str) -> str:
        self._reach()
        self.fetches.append(submission_id)
        self.clock.advance(self.log_takes_s)
        if self.broken_logs:
            raise LaunchError("Ray answers with HTTP 500")
        job = self.jobs.get(submission_id)
        return "" if job is None else job.log

    def session(self) -> str:
        self._reach()
        return f"session_{self.life}"

    def machines(self) -> tuple[Machine, ...]:
        self._reach()
        nodes = {"head": Node(self.cpus, self.gpus), **self.more}
        return tuple(Machine(name, name, node.cpus, node.gpus) for name, node in nodes.items())

    def restart_head(self) -> None:
        """The head dies and comes back: it has forgotten every job."""
        self.life += 1
        self.jobs.clear()

    def end(self, submission_id: str, state: RayState, message: str = "") -> None:
        """A job's process ends."""
        self.jobs[submission_id].state, self.jobs[submission_id].message = state, message

    def _reach(self) -> None:
        if not self.reachable:
            raise ClusterUnreachableError("Ray cannot be reached (ConnectError); is the cluster up?")
