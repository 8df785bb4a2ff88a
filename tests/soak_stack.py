"""`make soak`: a real stack that trains while every few seconds something real goes wrong.

    PYTHONPATH=tests python tests/soak_stack.py --minutes 5 [--every 15] [--seed 1] [--json]

Service, a Ray cluster of a head and two nodes that asks for its token, MLflow behind a relay, small trainings. A fault
of one of the kinds of `soak_faults.py` every `--every` seconds, in an order that the seed gives. Then the faults stop,
and every job must come to its end by itself. Exit code 1 if anything was lost, doubled or left behind, or would need a
person; the same seed gives the same faults again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient

from soak_account import TERMINAL, Account, goodput_of, judge_job, judge_record
from soak_faults import KINDS, draws
from soak_world import World, world

# One at work and one that waits, as the cluster has room for one of two workers.
BACKLOG = 2
POLL_S = 0.5
# Between the last fault and the last job's end; a machine that comes back takes half a minute alone.
DRAIN_S = 480.0
# What ended jobs leave is gone within that.
SETTLE_S = 30.0

Tell = Callable[[str], None]


@dataclass
class Wait:
    """A job that was struck, and has not taken a new step since."""

    job_id: str
    step: int
    since: float


@dataclass
class Soak:
    """One run on a world."""

    world: World
    seed: int
    tell: Tell
    account: Account = field(default_factory=Account)
    waits: list[Wait] = field(default_factory=list)
    furthest: dict[str, int] = field(default_factory=dict)

    def run(self, minutes: float, every_s: float) -> None:
        """Faults for so many minutes, then calm until every job has ended."""
        world, dice, draw = self.world, random.Random(self.seed), draws(self.seed)
        world.client.set_policy("cluster", "cluster", {"preempt_for_priority": True, "min_run": "1s", "grace": "1m"})
        self._warm_up()
        first = world.usage()
        end = time.monotonic() + 60 * minutes
        due, number = time.monotonic(), 1
        while time.monotonic() < end:
            number = self._keep_busy(number)
            self._look()
            if time.monotonic() >= due:
                due += every_s
                self._strike(draw, dice, end)
            time.sleep(POLL_S)
        self._drain()
        self._settle()
        self.account.usage = {name: (first[name], last) for name, last in world.usage().items()}
        self._judge()

    def _warm_up(self) -> None:
        """One training undisturbed, so that what a first one costs is not taken for growth."""
        self.tell("an undisturbed training first")
        job = self.world.client.wait(self.world.submit(0), timeout_s=300.0)
        assert job["state"] == "succeeded", job
        self.furthest[job["id"]] = 0

    def _keep_busy(self, number: int) -> int:
        jobs = self.world.jobs()
        while sum(job["state"] not in TERMINAL for job in jobs) < BACKLOG:
            jobs.append(self.world.client.job(self.world.submit(number)))
            number += 1
        return number

    def _look(self) -> list[dict[str, Any]]:
        """How far the jobs are; who has come further than when it was struck has recovered."""
        jobs = self.world.jobs()
        for job in jobs:
            step = int((job.get("progress") or {}).get("step") or 0)
            self.furthest[job["id"]] = max(step, self.furthest.get(job["id"], 0))
        ended = {job["id"] for job in jobs if job["state"] in TERMINAL}
        for wait in list(self.waits):
            if self.furthest[wait.job_id] > wait.step or wait.job_id in ended:
                self.waits.remove(wait)
                if self.furthest[wait.job_id] > wait.step:
                    self.account.recoveries.append(time.monotonic() - wait.since)
        return jobs

    def _strike(self, draw: Callable[[], str], dice: random.Random, end: float) -> None:
        for _ in range(len(KINDS)):
            kind = draw()
            self._look()
            began = time.monotonic()
            struck = KINDS[kind](self.world, dice)
            if struck is None:
                continue
            self.account.struck[kind] += 1
            whom = f" of {struck}" if struck else ""
            self.tell(f"{kind}{whom}; {max(0.0, end - began):.0f} s of faults left")
            # What the relay or a person does stops no training.
            if struck and struck in self.furthest and struck not in {wait.job_id for wait in self.waits}:
                self.waits.append(Wait(struck, self.furthest[struck], began))
            return

    def _drain(self) -> None:
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline:
            left = sum(job["state"] not in TERMINAL for job in self._look())
            if not left:
                return
            self.tell(f"no more faults; {left} jobs to come to their end")
            time.sleep(5.0)

    def _settle(self) -> None:
        """What ended jobs leave must go by itself."""
        deadline = time.monotonic() + SETTLE_S
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.5)
        for process in left:
            with suppress(psutil.Error):
                self.account.leaked.append(" ".join(process.cmdline())[:200])

    def _left(self) -> list[psutil.Process]:
        return self.world.processes("RayTrainWorker", "-m segfleet_jobs.", "ray::JobSupervisor", "TrainController")

    def _judge(self) -> None:
        account, client = self.account, self.world.client
        if self.world.doubled_submits:
            account.doubled.append(f"{self.world.doubled_submits} submissions sent twice made two jobs")
        accepted = {job["id"] for job in client.jobs(limit=1000)}
        account.lost += [f"{job_id} is not known" for job_id in self.world.accepted.keys() - accepted]
        account.doubled += [f"{job_id} was not submitted" for job_id in accepted - self.world.accepted.keys()]
        jobs = self.world.jobs()
        for job in jobs:
            judge_job(account, job, client.events(job["id"]), self.world.ends[job["id"]])
            if job["state"] == "succeeded":
                self._judge_record(job)
        account.goodput = goodput_of(jobs)

    def _judge_record(self, job: dict[str, Any]) -> None:
        spec, mlflow = self.world.accepted[job["id"]], MlflowClient(self.world.mlflow_url)
        experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
        runs = mlflow.search_runs(experiments, f"tags.`segfleet.job` = '{job['id']}'")
        points = mlflow.get_metric_history(job["result"]["mlflow_run"], "train/loss")
        versions = mlflow.search_model_versions(f"name = '{spec['register']['model']}'")
        steps = [point.step for point in points]
        judge_record(self.account, job["id"], steps, spec["train"]["steps"], len(runs), len(versions))


def soak(minutes: float, every_s: float, seed: int, tell: Tell) -> Account:
    """One run on a stack of its own; the logs of a bad one stay where `tell` says."""
    folder = Path(tempfile.mkdtemp(prefix="segfleet-soak-"))
    with world(folder, seed) as stack:
        found = Soak(stack, seed, tell)
        found.run(minutes, every_s)
    found.account.leaked += json.loads((folder / "left_behind.json").read_text())
    if found.account.is_good:
        shutil.rmtree(folder)
    else:
        tell(f"logs and databases: {folder}")
    return found.account


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="The real stack under a fault every few seconds.")
    parser.add_argument("--minutes", type=float, default=5.0, help="of faults; starting and ending come on top")
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seed = random.randrange(2**31) if options.seed is None else options.seed
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {line}", file=sys.stderr, flush=True)

    tell(f"seed {seed}")
    account = soak(options.minutes, options.every, seed, tell)
    if options.json:
        print(json.dumps({"seed": seed, **account.document()}))
    else:
        print("\n".join([*account.lines(), f"seed {seed}: {'good' if account.is_good else 'BAD'}"]))
    return 0 if account.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
