"""The queue as one scheduling pass looks at it, read in one transaction; and what a pass would say of one job more."""

from __future__ import annotations

from dataclasses import dataclass

from segfleet.queue.candidates import candidates, holdings, judge, live_usages, usages
from segfleet.queue.model import Dependency, Document, gang_of, lane_of
from segfleet.queue.policy import policy_of
from segfleet.queue.scheduling.plan import plan
from segfleet.queue.scheduling.shares import Usage, decayed_use
from segfleet.queue.scheduling.values import Candidate, Holding, Node, Policy, Start, Wait
from segfleet.queue.store import Transaction
from segfleet.spec.sections import duration_s

# Older use counts less than half a percent.
_HALF_LIVES = 8
# A pass over more takes longer than somebody who types wants to wait.
MOST_WAITING = 1000


@dataclass(frozen=True, slots=True)
class Scene:
    """What a pass decides on, but for the cluster and the use that has ended.

    Attributes:
        line: All queued jobs.
        held: Attempts that hold resources.
        lanes: By lane, the job that is in it or is the first to come into it.
        policy: The operator's rules.
        half_life_s: Of use.
    """

    line: list[Candidate]
    held: list[Holding]
    lanes: dict[str, str]
    policy: Policy
    half_life_s: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """Where a job would stand if it were submitted now.

    Attributes:
        place: In the line, from 1; 0: it would start at once.
        reason: Why it would wait; empty: it would not.
        starts_at: When it would start if everything took as long as its limit; None: nobody can tell.
    """

    place: int
    reason: str
    starts_at: float | None


def read_scene(tx: Transaction, now: float) -> Scene:
    """The queue as it is.

    Args:
        tx: For reading.
        now: Seconds since the epoch.
    """
    rows, dependencies, attempts = tx.line.queued(), tx.open_dependencies(), tx.open_attempts()
    jobs = {job.id: job for job in tx.holding_jobs()}
    policy, half_life_s = policy_of(tx.policies())
    limited = [row for row in rows if row.time_limit_s is not None and row.attempt > row.budget_from]
    used_s = {row.id: tx.used_s(row.id, row.budget_from, now) for row in limited}
    used_s |= {job.id: tx.used_s(job.id, job.budget_from, now) for job in jobs.values()}
    lanes = {lane: job.id for job in jobs.values() if (lane := lane_of(job.spec)) is not None}
    blocking = {attempt.job_id: attempt.id for attempt in attempts if not attempt.is_alive}
    line = candidates(rows, used_s, blocking, dependencies, lanes)
    held = holdings(jobs, attempts, used_s, policy.grace_s, now)
    waiting = {row.lane: row.id for row in rows if row.lane is not None}
    return Scene(line, held, waiting | lanes, policy, half_life_s)


def read_ended_use(tx: Transaction, nodes: tuple[Node, ...], half_life_s: float, now: float) -> list[Usage]:
    """Use that has ended and still counts."""
    return usages(tx.ended_use(now - _HALF_LIVES * half_life_s), nodes)


def outlook(tx: Transaction, nodes: tuple[Node, ...] | None, spec: Document, owner: str, now: float) -> Outlook | None:
    """What a pass would decide about one job more.

    Args:
        tx: For reading.
        nodes: The cluster; None: not reachable.
        spec: Resolved, of a job that may be submitted.
        owner: Who would submit it.
        now: Seconds since the epoch.

    Returns:
        None if nobody can tell: the cluster is not reachable, or too many jobs wait to ask at each keystroke.
    """
    scene = read_scene(tx, now)
    if nodes is None or len(scene.line) > MOST_WAITING:
        return None
    limit = spec["queue"]["time_limit"]
    newcomer = Candidate(
        job_id="",
        seq=1 + max([*(one.seq for one in scene.line), *(one.seq for one in scene.held)], default=0),
        gang=gang_of(spec),
        priority=spec["queue"]["priority"],
        project=spec["queue"]["project"],
        user=owner,
        hindrance=_hindrance(tx, scene, spec),
        time_left_s=None if limit is None else float(duration_s(limit)),
    )
    spent = read_ended_use(tx, nodes, scene.half_life_s, now) + live_usages(scene.held, nodes)
    use = decayed_use(spent, now, scene.half_life_s)
    decisions = plan([*scene.line, newcomer], nodes, scene.held, now, use=use, policy=scene.policy)
    found = next(one for one in decisions if one.job_id == newcomer.job_id)
    if isinstance(found, Start):
        return Outlook(0, "", now)
    assert isinstance(found, Wait)
    return Outlook(found.place, found.reason, found.starts_at)


def _hindrance(tx: Transaction, scene: Scene, spec: Document) -> str:
    waits = []
    for parent in spec["queue"]["after"]:
        parent_id, _, condition = parent.partition(":")
        state = tx.job(parent_id).state
        if judge(Dependency("", parent_id, condition or "ok", state)) is None:
            waits.append(f"{parent_id} ({state})")
    if waits:
        return f"after {', '.join(waits)}"
    lane = lane_of(spec)
    return f"after {scene.lanes[lane]}, which writes to the same place" if lane in scene.lanes else ""
