"""The application: all routes under one guard."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends, FastAPI

from segfleet.access.desk import Access
from segfleet.server import (
    access_routes,
    attempt_routes,
    job_routes,
    metrics,
    model_routes,
    policy_routes,
    problems,
    promotion_routes,
    retention_routes,
    stream_routes,
    trial_routes,
    webhook_routes,
)
from segfleet.server.guard import Guard
from segfleet.server.rights import authorize
from segfleet.server.services import Services, ServicesArg
from segfleet.wire import API

_status = APIRouter(tags=["service"])


def create_app(services: Services, token: str, names: Collection[str] = ()) -> FastAPI:
    """Build the service's application.

    Args:
        services: What the routes work with.
        token: The home folder's token.
        names: Hosts that the service answers for besides those of the loopback interface.

    Raises:
        SettingsError: the token is empty.
    """
    app = FastAPI(
        title="segfleet",
        version=version("segfleet"),
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(authorize)],
        responses=problems.RESPONSES,
    )
    access = Access(services.queue.store, services.queue.clock, token)
    app.state.services, app.state.access = services, access
    # What lies below a model's name comes before its versions, whose reference would match it too.
    models = (promotion_routes, model_routes)
    for routes in (
        job_routes,
        attempt_routes,
        stream_routes,
        trial_routes,
        *models,
        policy_routes,
        access_routes,
        webhook_routes,
        retention_routes,
    ):
        app.include_router(routes.router, prefix=API)
    app.include_router(_status, prefix=API)
    app.add_api_route("/healthz", _healthz)
    app.include_router(metrics.router)
    app.add_middleware(Guard, access=access, names=names)
    problems.install(app)
    return app


def _healthz() -> dict[str, str]:
    """Says that the service answers, and nothing else: it asks for no token."""
    return {"status": "ok"}


@_status.get("/status")
def status(services: ServicesArg) -> dict[str, Any]:
    """The queue in numbers, and whether the parts of the service answer."""
    board, office = services.queue.board, services.office
    nodes, leader = board.nodes, office.leader()
    totals = None
    if nodes is not None:
        cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
        totals = {"cpus": cpus, "gpus": gpus, "nodes": len(nodes)}
    return {
        "version": version("segfleet"),
        "jobs": {str(state): count for state, count in services.queue.counts().items()},
        "dispatcher": {"ok": services.is_dispatching()},
        "server": {"name": office.holder, "role": "follower" if office.term is None else "leader"},
        "leader": {"name": leader.holder, "epoch": leader.epoch, "since": leader.since},
        "ray": {
            "ok": nodes is not None,
            "url": services.settings.cluster_url,
            "trouble": board.trouble,
            "capacity": totals,
        },
        "mlflow": {"ok": services.registry.is_up(), "url": services.settings.mlflow_uri},
    }
