"""GET /metrics: the service in the text format of Prometheus.

What is counted over jobs comes from the database at each scrape, so that totals outlive the process and every server
on a database says the same; what the process does is counted in `segfleet.telemetry`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from segfleet.queue.policy import policy_of
from segfleet.queue.scheduling.values import Quota
from segfleet.queue.states import AttemptState
from segfleet.queue.store import Transaction
from segfleet.server.services import Services, ServicesArg
from segfleet.telemetry import REGISTRY

# Users name projects: the largest keep a name of their own, the rest is one.
MAX_PROJECTS = 100
REST = "_rest"
_BOUNDS_S = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0, 604_800.0)
_QUOTAS = ("workers", "gpus", "max_workers", "max_gpus", "max_running", "max_queued")

router = APIRouter(tags=["service"])


@router.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
)
def metrics(services: ServicesArg) -> Response:
    """All figures, in the text format of Prometheus."""
    figures = CollectorRegistry()
    figures.register(_Figures(services))
    return Response(generate_latest(REGISTRY) + generate_latest(figures), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class _Figures(Collector):
    """The queue's figures, read anew for one scrape.

    Args:
        services: With the queue.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    def describe(self) -> list[Any]:
        """Nothing: registering must not read the database."""
        return []

    def collect(self) -> Iterator[Any]:
        """All families."""
        queue = self._services.queue
        with queue.store.read() as tx:
            yield from _job_families(tx)
            yield from _use_families(tx, self._services)
            yield from _attempt_families(tx)
            spent = tx.goodput.sums()
            oldest, policies = tx.metrics.oldest_heartbeat(), tx.policies()
            delivered = [((row.state,), row.number) for row in tx.metrics.deliveries()]
        age_s = 0.0 if oldest is None else max(0.0, queue.clock() - oldest)
        yield _gauge("oldest_heartbeat_seconds", "Age of the running attempts' oldest sign of life.", [((), age_s)])
        seconds = [((part,), value) for part, value in spent.items()]
        yield _gauge(
            "job_seconds", "Where jobs' time went, up to each one's latest end of an attempt.", seconds, "part"
        )
        yield _gauge("webhook_deliveries", "Events for webhooks.", delivered, "state")
        quotas = [
            ((project, rule), value)
            for project, quota in sorted(policy_of(policies)[0].projects.items())[:MAX_PROJECTS]
            for rule, value in _set_rules(quota)
        ]
        yield _gauge("project_quota", "Quotas of projects that have some.", quotas, "project", "rule")
        leads = self._services.office.term is not None
        yield _gauge("is_leader", "1: this server dispatches.", [((), float(leads))])


def _job_families(tx: Transaction) -> Iterator[Any]:
    rows = tx.metrics.jobs_by_project()
    sizes: Counter[str] = Counter()
    for row in rows:
        sizes[row.project] += row.number
    named = {project for project, _ in sizes.most_common(MAX_PROJECTS)}
    counts: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        counts[(row.state, row.project if row.project in named else REST)] += row.number
    yield _gauge("jobs", "Jobs.", counts.items(), "state", "project")
    yield _histogram("queue_wait_seconds", "From submission to the first start.", *tx.metrics.waits(_BOUNDS_S))
    yield _histogram(
        "job_run_seconds", "From the first start to the end, of succeeded jobs.", *tx.metrics.runs(_BOUNDS_S)
    )


def _use_families(tx: Transaction, services: Services) -> Iterator[Any]:
    nodes, rows = services.queue.board.nodes, tx.metrics.use()
    totals = () if nodes is None else (("cpus", sum(n.cpus for n in nodes)), ("gpus", sum(n.gpus for n in nodes)))
    yield _gauge("cluster_up", "1: the cluster answers.", [((), float(nodes is not None))])
    yield _gauge("cluster_resources", "What the cluster has.", [((what,), n) for what, n in totals], "resource")
    used: Counter[tuple[str, ...]] = Counter()
    by_project: Counter[tuple[str, ...]] = Counter()
    named = {row.project for row in sorted(rows, key=lambda row: -row.workers)[:MAX_PROJECTS]}
    for row in rows:
        for what in ("workers", "cpus", "gpus"):
            used[(what,)] += getattr(row, what)
            by_project[(row.project if row.project in named else REST, what)] += getattr(row, what)
    in_use = [((what,), used[(what,)]) for what in ("workers", "cpus", "gpus")]
    yield _gauge("cluster_used", "What jobs hold of the cluster.", in_use, "resource")
    yield _gauge("project_used", "What a project's jobs hold.", by_project.items(), "project", "resource")


def _attempt_families(tx: Transaction) -> Iterator[Any]:
    rows = tx.metrics.ended_attempts()
    ended = CounterMetricFamily(
        "segfleet_attempts_ended", "Ended attempts by state and class of failure.", labels=("state", "failure")
    )
    for row in rows:
        ended.add_metric((row.state, row.failure or ""), row.number)
    yield ended
    preempted = sum(row.number for row in rows if row.state == AttemptState.PREEMPTED)
    yield CounterMetricFamily("segfleet_preemptions", "Attempts that made room or paused.", value=preempted)


def _set_rules(quota: Quota) -> list[tuple[str, float]]:
    return [(rule, value) for rule in _QUOTAS if (value := getattr(quota, rule)) is not None]


def _gauge(name: str, text: str, values: Iterable[tuple[tuple[str, ...], float]], *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"segfleet_{name}", text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _histogram(name: str, text: str, counts: Sequence[int], total_s: float) -> HistogramMetricFamily:
    bounds = [str(bound) for bound in _BOUNDS_S] + ["+Inf"]
    assert math.isfinite(total_s)
    return HistogramMetricFamily(f"segfleet_{name}", text, list(zip(bounds, counts, strict=True)), total_s)
