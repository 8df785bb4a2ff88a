"""`make soak-queue`: thousands of jobs through a service that is killed a thousand times, on a cluster that misbehaves.

    python tests/soak_queue.py --jobs 10000 --kills 1000 --seed 1 [--database postgres]

Users submit, cancel, pause, resume and change priorities; drivers claim, beat, checkpoint, complete, fail, die without
a word, or live on as zombies when the head restarts; the cluster forgets everything now and then, is away, and loses
answers. The service is ended by SIGKILL before or after commits and in calls to the cluster, and by an unhandled signal
at any instruction. Then the faults stop, and every job must come to its one end. Exit code 1 if a job was lost, doubled
or got stuck.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factories import fresh_database, train_document
from fleet import Fleet
from segfleet.cluster.launcher import RayJobStatus, RayState
from segfleet.errors import AttemptFencedError, IllegalTransitionError, QueueError
from segfleet.queue.model import Grant, Job, gang_of
from segfleet.queue.states import JobState, is_terminal
from storm import Fate, KilledError, Storm

BACKLOG = 200
ROUND_S = 2.0
DRAIN_ROUNDS = 3000
POSTGRES_HELP = "a PostgreSQL whose public schema may be dropped; default: SQLite in a fresh folder"


@dataclass
class Driver:
    """A job's process on the cluster; the head may have forgotten it."""

    attempt_id: str
    code: str
    plan: str
    beats_left: int
    grant: Grant | None = None
    over: bool = False


@dataclass
class Outcome:
    """What came of it; the first three must be 0."""

    lost: int = 0
    doubled: int = 0
    stuck: int = 0
    jobs: int = 0
    kills: int = 0
    head_restarts: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, doubled or stuck."""
        return not (self.lost or self.doubled or self.stuck)

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {state}" for state, count in sorted(self.ends.items()))
        return (
            f"{self.jobs} jobs in {self.attempts} attempts, {self.kills} kills, {self.head_restarts} head restarts: "
            f"{self.lost} lost, {self.doubled} doubled, {self.stuck} stuck ({ends}; {self.seconds:.0f} s)"
        )


class Soak:
    """One run; everything random comes from the seed."""

    def __init__(
        self, root: Path, url: str, *, jobs: int, kills: int, seed: int, servers: int = 1, cpus: int = 128
    ) -> None:
        self.random = random.Random(seed)
        timings = {"lease_s": 30.0, "start_deadline_s": 60.0}
        self.storm: Storm | Fleet = (
            Storm(root, url, cpus=cpus, **timings)
            if servers == 1
            else Fleet(root, url, servers=servers, dice=self.random, cpus=cpus, **timings)
        )
        self.num_jobs, self.kills = jobs, kills
        self.outcome = Outcome(jobs=jobs)
        self.acknowledged: dict[str, str] = {}
        self.open: set[str] = set()
        self.cancelled: set[str] = set()
        self.drivers: dict[str, Driver] = {}
        self.fences: dict[str, int] = {}
        self.completions: Counter[str] = Counter()
        self.calm = False

    def run(self, told: Any = None) -> Outcome:
        """Until every job has ended, or is seen to be stuck."""
        began = time.monotonic()
        self.start()
        rounds = after = 0
        while after < DRAIN_ROUNDS:
            self.round()
            rounds += 1
            all_in = len(self.acknowledged) == self.num_jobs
            self.calm = all_in and len(self.storm.deaths) >= self.kills
            after += self.calm
            if told is not None and rounds % 25 == 0:
                left = self.num_jobs - len(self.acknowledged) + len(self.open)
                told(f"round {rounds}: {left} jobs left, {len(self.storm.deaths)} kills")
            if all_in and not self.open:
                if len(self.storm.deaths) >= self.kills:
                    break
                self.storm.kill()
                self.start()
        self.judge()
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def start(self) -> None:
        """Begin a life of the service, with its end drawn already."""
        dice = self.random
        if self.calm or len(self.storm.deaths) >= self.kills:
            self.storm.start()
            return
        point, when = dice.choice(["", "", "ray.submit", "ray.status", "ray.stop"]), dice.choice(["before", "after"])
        self.storm.start(Fate(point, when, skip=dice.randrange(60), delay_s=dice.uniform(0.02, 2.0)))

    def ask(self, verb: str, *args: Any, **named: Any) -> Any:
        """As `Storm.insist`, but the next life has an end too."""
        while True:
            try:
                return self.storm.call(verb, *args, **named)
            except KilledError:
                self.start()

    def round(self) -> None:
        """Two seconds of everybody's life."""
        self.storm.clock.advance(ROUND_S)
        self._submit()
        self._cluster_mood()
        self.ask("step")
        for attempt_id, job in list(self.storm.ray.jobs.items()):
            if attempt_id not in self.drivers:
                plan = self.random.choices(["ok", "user", "silent", "infra"], [85, 3, 6, 6])[0]
                self.drivers[attempt_id] = Driver(
                    attempt_id, job.env["SEGFLEET_CODE"], "ok" if self.calm else plan, self.random.randrange(1, 5)
                )
        for driver in list(self.drivers.values()):
            self._act(driver)
            if driver.over:
                del self.drivers[driver.attempt_id]
        if not self.calm:
            self._meddle()
        self._look()

    def _submit(self) -> None:
        while len(self.acknowledged) < self.num_jobs and len(self.open) < BACKLOG:
            key = f"soak-{len(self.acknowledged)}"
            queue = {"priority": self.random.choice([40, 50, 60]), "max_retries": 100}
            workers = self.random.choice([1, 1, 2, 4, 8])
            document = {**train_document(workers, **queue), "name": key}
            if self.random.random() < 0.2:
                document["resources"] = {**document["resources"], "workers": {"min": 1, "max": workers + 1}}
            if self.random.random() < 0.1:
                document["queue"] = {**document["queue"], "start_within": self.random.choice(["5s", "5m"])}
            job = self.ask("submit", document, owner="ann", key=key)[0]
            self.acknowledged[job.id] = key
            self.open.add(job.id)

    def _cluster_mood(self) -> None:
        ray, dice = self.storm.ray, self.random
        ray.reachable = self.calm or (dice.random() < 0.3 if not ray.reachable else dice.random() > 0.01)
        ray.failing = not self.calm and dice.random() < 0.02
        ray.next_submits = [] if self.calm else dice.choices(["ok", "lost", "lost_answer"], [8, 1, 1], k=4)
        if not self.calm and dice.random() < 0.01:
            ray.restart_head()
            self.outcome.head_restarts += 1

    def _act(self, driver: Driver) -> None:
        ray_job = self.storm.ray.jobs.get(driver.attempt_id)
        if ray_job is not None and RayJobStatus(ray_job.state).is_terminal:
            driver.over = True
            return
        try:
            if driver.grant is None:
                driver.grant = self.ask("claim", driver.attempt_id, driver.code, "0123456789abcdef")
                granted = driver.grant.workers
                assert gang_of(driver.grant.spec).usable(granted) == granted <= self.storm.ray.cpus
                self._accepted(driver)
            elif driver.beats_left > 0:
                self._beat(driver)
            else:
                self._end(driver)
        except AttemptFencedError:
            self._leave(driver, RayState.FAILED)
        except QueueError:
            pass  # a checkpoint that is there already, after a lost answer

    def _beat(self, driver: Driver) -> None:
        grant = driver.grant
        assert grant is not None
        driver.beats_left -= 1
        command = self.ask("heartbeat", grant.attempt_id, grant.token, {"step": 1})
        self._accepted(driver)
        if command == "preempt":
            self.ask("yield_", grant.attempt_id, grant.token)
            self._leave(driver, RayState.SUCCEEDED)
        elif command == "cancel":
            self._leave(driver, RayState.STOPPED)
        elif self.random.random() < 0.5:
            step = (grant.checkpoint or {"step": 0})["step"] + 10 * (5 - driver.beats_left)
            document = {"path": f"/c/{grant.attempt_id}", "step": step, "sha256": "0", "bytes": 1}
            self.ask("set_checkpoint", grant.attempt_id, grant.token, document)
            self._accepted(driver)

    def _end(self, driver: Driver) -> None:
        grant = driver.grant
        assert grant is not None
        if driver.plan == "silent":
            self._leave(driver, RayState.FAILED)
            return
        if driver.plan == "ok":
            self.ask("complete", grant.attempt_id, grant.token, {"by": grant.fence})
            self.completions[grant.job_id] += 1
        else:
            self.ask("fail", grant.attempt_id, grant.token, {"class": driver.plan, "message": "x"})
        self._accepted(driver)
        self._leave(driver, RayState.SUCCEEDED)

    def _leave(self, driver: Driver, state: RayState) -> None:
        driver.over = True
        if driver.attempt_id in self.storm.ray.jobs:
            self.storm.ray.end(driver.attempt_id, state)

    def _accepted(self, driver: Driver) -> None:
        """A write that was taken must be of the latest attempt that anybody has heard of."""
        assert driver.grant is not None
        job_id, fence = driver.grant.job_id, driver.grant.fence
        self.outcome.doubled += fence < self.fences.get(job_id, 0)
        self.fences[job_id] = max(fence, self.fences.get(job_id, 0))

    def _meddle(self) -> None:
        """People change their minds."""
        for _ in range(2):
            if not self.open:
                return
            job_id = self.random.choice(sorted(self.open))
            verb = self.random.choice(["cancel", "pause", "resume", "resume", "set_priority"])
            more = (self.random.randrange(40, 61),) if verb == "set_priority" else ()
            try:
                self.ask(verb, job_id, "ann", *more)
            except IllegalTransitionError:
                continue
            if verb == "cancel":
                self.cancelled.add(job_id)

    def _look(self) -> None:
        for job_id in sorted(self.open):
            job = self.ask("get", job_id)
            if is_terminal(job.state):
                self.open.discard(job.id)
            elif (
                job.state == JobState.PAUSED and not job.cancel_requested and (self.calm or self.random.random() < 0.1)
            ):
                self.ask("resume", job.id, "ann")

    def _may_fail(self, job: Job) -> bool:
        """Whether the job was to fail: a driver has said so, or it was not to wait any longer and has not started."""
        if (job.error or {}).get("class") == "start_deadline":
            return job.spec["queue"]["start_within"] is not None and job.attempt == 0
        return (job.error or {}).get("class") == "user"

    def judge(self) -> None:
        """Count what must not be."""
        storm, outcome = self.storm, self.outcome
        if not storm.is_alive:
            storm.start()
        outcome.kills = len(storm.deaths)
        outcome.stuck = len(self.open)
        known = {job.id: job for job in storm.insist("list", limit=10 * self.num_jobs)}
        outcome.lost = len(self.acknowledged.keys() - known.keys())
        # A job that nobody knows of: one submission made two.
        outcome.doubled += len(known.keys() - self.acknowledged.keys())
        outcome.doubled += sum(count > 1 for count in Counter(storm.ray.runs).values())
        outcome.doubled += sum(count > 1 for count in self.completions.values())
        for job in known.values():
            outcome.ends[job.state] += 1
            outcome.attempts += job.attempt
            outcome.lost += (job.state == JobState.SUCCEEDED) != (self.completions[job.id] == 1)
            outcome.lost += job.state == JobState.CANCELLED and job.id not in self.cancelled
            outcome.lost += job.state == JobState.FAILED and not self._may_fail(job)
        storm.kill()


def soak(kind: str, *, jobs: int, kills: int, seed: int, servers: int = 1, told: Any = None) -> Outcome:
    """One run on a fresh database; `kind` is `sqlite` or `postgres`."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="segfleet-soak-", dir=memory))
    try:
        return Soak(folder, fresh_database(kind, folder), jobs=jobs, kills=kills, seed=seed, servers=servers).run(told)
    finally:
        shutil.rmtree(folder)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="The queue under a thousand kills.")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--servers", type=int, default=1, help="more than one only on postgres")
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite", help=POSTGRES_HELP)
    options = parser.parse_args()
    seed = random.randrange(2**31) if options.seed is None else options.seed
    print(f"seed {seed}, {options.database}", flush=True)
    outcome = soak(
        options.database, jobs=options.jobs, kills=options.kills, seed=seed, servers=options.servers, told=_tell
    )
    print(f"{options.database}, seed {seed}: {outcome}")
    return 0 if outcome.is_good else 1


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
