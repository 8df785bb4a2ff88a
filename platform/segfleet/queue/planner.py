"""Reads what the scheduler needs out of the queue, and lets it decide."""

from __future__ import annotations

import math

from segfleet.queue import lifecycle
from segfleet.queue.candidates import Broken, Met, judge, live_usages
from segfleet.queue.leadership import Term
from segfleet.queue.scene import read_ended_use, read_scene
from segfleet.queue.scheduling.plan import hand_over, plan
from segfleet.queue.scheduling.shares import decayed_use
from segfleet.queue.scheduling.values import Decision, Holding, Node
from segfleet.queue.states import JobState
from segfleet.queue.store import Store

# Use that has ended is added up anew once in a while; what runs is counted at each turn.
USE_EVERY_S = 60.0


class Planner:
    """The scheduler's eyes.

    Args:
        store: The database.
        lead: The leader's right to write.
        hands_over: Room and quotas are the cluster's own affair.
    """

    def __init__(self, store: Store, lead: Term, *, hands_over: bool = False) -> None:
        self._store, self._lead, self._hands_over = store, lead, hands_over
        self._counted_at = -math.inf
        self._ended_use: dict[str, float] = {}

    def decide(self, nodes: tuple[Node, ...] | None, now: float, trouble: str) -> list[Decision]:
        """One scheduling pass over the queue as it is.

        Args:
            nodes: The cluster's machines; None: not reachable.
            now: Seconds since the epoch.
            trouble: Why it is not reachable.
        """
        with self._store.read() as tx:
            scene = read_scene(tx, now)
        use = self._use(scene.held, nodes or (), scene.half_life_s, now)
        if self._hands_over and nodes is not None:
            return hand_over(scene.line, scene.held, now, use=use, policy=scene.policy)
        return plan(scene.line, nodes, scene.held, now, use=use, policy=scene.policy, unreachable=trouble)

    def resolve_dependencies(self, now: float) -> None:
        """Let go of jobs whose parents have ended as they should, and end those whose parents have not."""
        with self._store.read() as tx:
            verdicts = [judge(dependency) for dependency in tx.open_dependencies()]
        met = [verdict.dependency for verdict in verdicts if isinstance(verdict, Met)]
        if met:
            with self._lead.write() as tx:
                for dependency in met:
                    tx.meet_dependency(dependency.job_id, dependency.parent_id)
        for verdict in verdicts:
            if isinstance(verdict, Broken):
                # One transaction each: it locks the job, and many locks at a time are how deadlocks come about.
                with self._lead.write() as tx:
                    job = tx.job(verdict.dependency.job_id)
                    if job.state == JobState.QUEUED:
                        lifecycle.skip(tx, job, verdict.message, now)

    def end_late(self, now: float) -> None:
        """End the jobs that were to have started by now."""
        with self._store.read() as tx:
            late = tx.line.late(now)
        for job_id in late:
            with self._lead.write() as tx:
                job = tx.job(job_id)
                # It may have been paused, resumed or retried since.
                if job.state == JobState.QUEUED and job.start_by is not None and job.start_by <= now:
                    lifecycle.miss_start(tx, job, now)

    def _use(self, held: list[Holding], nodes: tuple[Node, ...], half_life_s: float, now: float) -> dict[str, float]:
        """Decayed use of each project: what has ended, as of the last count, and what runs."""
        # Without the cluster's size nothing can be told as a share of it.
        if nodes and now - self._counted_at >= USE_EVERY_S:
            with self._store.read() as tx:
                ended = read_ended_use(tx, nodes, half_life_s, now)
            self._ended_use, self._counted_at = decayed_use(ended, now, half_life_s), now
        fading = 2.0 ** ((self._counted_at - now) / half_life_s) if self._ended_use else 0.0
        total = decayed_use(live_usages(held, nodes), now, half_life_s)
        for project, seconds in self._ended_use.items():
            total[project] = total.get(project, 0.0) + seconds * fading
        return total
