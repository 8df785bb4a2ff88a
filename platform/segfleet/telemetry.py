"""What this process counts of itself, for Prometheus; totals of jobs are counted in the database, see `server.metrics`.

The counters begin at nought with the process, which Prometheus knows how to deal with. Every label has few values.
"""

from __future__ import annotations

import platform
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"})

HTTP_REQUESTS = Counter(
    "segfleet_http_requests", "Answered requests.", ("method", "route", "status"), registry=REGISTRY
)
HTTP_SECONDS = Histogram(
    "segfleet_http_request_seconds",
    "Time from a request's arrival to the end of its answer.",
    ("route",),
    registry=REGISTRY,
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0),
)
PASS_SECONDS = Histogram(
    "segfleet_scheduling_pass_seconds",
    "Time of one pass of the scheduler over the queue.",
    registry=REGISTRY,
    buckets=(0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
)
TURNS = Counter("segfleet_dispatch_turns", "Turns of the dispatcher.", ("outcome",), registry=REGISTRY)
DATABASE_ERRORS = Counter("segfleet_database_errors", "Transactions that the database refused.", registry=REGISTRY)
WEBHOOK_TRIES = Counter("segfleet_webhook_tries", "Requests to webhooks.", ("outcome",), registry=REGISTRY)
_BUILD = Gauge("segfleet_build_info", "Always 1.", ("version", "python"), registry=REGISTRY)
_BUILD.labels(version("segfleet"), platform.python_version()).set(1)


def count_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count an answered request.

    Args:
        method: Of the request.
        route: The pattern of its path, which callers cannot invent; empty if none matched.
        status: Of the answer; 0: there was none.
        seconds: It took.
    """
    named = route or "unmatched"
    HTTP_REQUESTS.labels(method if method in _METHODS else "other", named, str(status)).inc()
    HTTP_SECONDS.labels(named).observe(seconds)
