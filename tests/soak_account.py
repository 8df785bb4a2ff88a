"""What a soak of the real stack comes to: a pure account of what the service, MLflow and the machine say at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TERMINAL = ("succeeded", "failed", "cancelled")


@dataclass
class Account:
    """Each list names what must not be; all must be empty.

    Attributes:
        lost: Jobs that have not come to an end that they may have, and curves with holes.
        doubled: Jobs, runs, versions and points that are there twice.
        human_acts: What a person would have to do now.
        leaked: Processes that nobody needs any more.
        goodput: Share of the jobs' time that brought them on.
        recoveries: Seconds from a fault to the first new step of a job that it struck.
        struck: How often each kind of fault has.
        usage: (file descriptors, MiB) of what lives through all jobs, at first and at last.
    """

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    human_acts: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    goodput: float = 0.0
    recoveries: list[float] = field(default_factory=list)
    struck: Counter[str] = field(default_factory=Counter)
    usage: dict[str, tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    attempts: int = 0

    @property
    def is_good(self) -> bool:
        """Whether nothing is there that must not be."""
        return not (self.lost or self.doubled or self.human_acts or self.leaked)

    def document(self) -> dict[str, Any]:
        """All of it for a script."""
        p50, p95 = percentiles(self.recoveries)
        return {
            **{name: getattr(self, name) for name in ("lost", "doubled", "human_acts", "leaked")},
            "jobs": dict(self.ends),
            "attempts": self.attempts,
            "goodput": round(self.goodput, 3),
            "recovery_s": {"count": len(self.recoveries), "p50": p50, "p95": p95},
            "faults": dict(self.struck),
            "usage": {name: {"first": first, "last": last} for name, (first, last) in self.usage.items()},
        }

    def lines(self) -> list[str]:
        """All of it for a person."""
        p50, p95 = percentiles(self.recoveries)
        lines = [f"{count:4d}  {kind}" for kind, count in sorted(self.struck.items())]
        lines += [
            f"{name}: {thing}" for name in ("lost", "doubled", "human_acts", "leaked") for thing in self._of(name)
        ]
        for name, (first, last) in self.usage.items():
            lines.append(f"{name}: {first[0]} -> {last[0]} file descriptors, {first[1]} -> {last[1]} MiB")
        ends = ", ".join(f"{count} {state}" for state, count in sorted(self.ends.items()))
        lines.append(f"{sum(self.ends.values())} jobs in {self.attempts} attempts ({ends}), goodput {self.goodput:.0%}")
        lines.append(f"recovery: {len(self.recoveries)} times, median {p50} s, 95 % within {p95} s")
        lines.append(f"{sum(self.struck.values())} faults of {len(self.struck)} kinds: {self._counts()}")
        return lines

    def _of(self, name: str) -> list[str]:
        return list(getattr(self, name))

    def _counts(self) -> str:
        return (
            f"{len(self.lost)} lost, {len(self.doubled)} doubled, {len(self.human_acts)} human acts, "
            f"{len(self.leaked)} processes leaked"
        )


def percentiles(seconds: Sequence[float]) -> tuple[float | None, float | None]:
    """Median and 95th percentile, to a tenth; None of nothing."""
    if not seconds:
        return None, None
    p50, p95 = np.percentile(seconds, (50, 95))
    return round(float(p50), 1), round(float(p95), 1)


def judge_job(account: Account, job: Mapping[str, Any], events: Iterable[Mapping[str, Any]], may_end: set[str]) -> None:
    """Whether a job has come to one end that it may have, by attempts of which no two lived at once."""
    account.ends[job["state"]] += 1
    account.attempts += len(job["attempts"])
    if job["state"] not in TERMINAL:
        account.human_acts.append(f"{job['id']} is {job['state']}: {job.get('reason')}")
    elif job["state"] not in may_end:
        account.lost.append(f"{job['id']} {job['state']}: {job.get('error')}")
    ended = [event for event in events if event["target"] in TERMINAL]
    if len(ended) > 1:
        account.doubled.append(f"{job['id']} ended {len(ended)} times")
    for earlier, later in zip(job["attempts"], job["attempts"][1:], strict=False):
        if earlier["finished_at"] is None or (later["claimed_at"] or later["created_at"]) < earlier["finished_at"]:
            account.doubled.append(f"{later['id']} began before {earlier['id']} was over")


def judge_record(
    account: Account, job_id: str, steps: Sequence[int], wanted: int, num_runs: int, versions: int
) -> None:
    """Whether MLflow has one run of a job that succeeded, with each point once, and one version.

    Args:
        account: Takes what must not be.
        job_id: The job.
        steps: Of the points of its loss, in any order.
        wanted: How many steps it had.
        num_runs: Runs of its own.
        versions: Versions of its model.
    """
    counts = Counter(steps)
    missing = [step for step in range(1, wanted + 1) if not counts[step]]
    if missing or num_runs == 0 or versions == 0:
        account.lost.append(f"{job_id}: {num_runs} runs, {versions} versions, no points of steps {missing}")
    twice = [step for step, count in counts.items() if count > 1]
    if twice or num_runs > 1 or versions > 1:
        account.doubled.append(f"{job_id}: {num_runs} runs, {versions} versions, points twice of steps {twice}")


def goodput_of(jobs: Iterable[Mapping[str, Any]]) -> float:
    """Share of all jobs' time, without that of a pause, that brought them on."""
    total = good = 0.0
    for job in jobs:
        seconds = (job.get("goodput") or {"seconds": {}})["seconds"]
        good += sum(seconds.get(part, 0.0) for part in ("step", "validation", "work"))
        total += sum(value for part, value in seconds.items() if part not in ("paused", "stopped"))
    return good / total if total else 0.0
