"""The application: all routes under one guard."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI

from segfleet.server import attempt_routes, job_routes, model_routes, policy_routes, problems
from segfleet.server.guard import Guard
from segfleet.server.services import Services, ServicesArg
from segfleet.wire import API

_status = APIRouter(tags=["service"])


def create_app(services: Services, token: str) -> FastAPI:
    """Build the service's application.

    Args:
        services: What the routes work with.
        token: Bearer token of the service.
    """
    app = FastAPI(
        title="segfleet",
        version=version("segfleet"),
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    for router in (_status, job_routes.router, attempt_routes.router, model_routes.router, policy_routes.router):
        app.include_router(router, prefix=API)
    app.add_api_route("/healthz", _healthz)
    app.add_middleware(Guard, token=token)
    problems.install(app)
    return app


def _healthz() -> dict[str, str]:
    """Says that the service answers, and nothing else: it asks for no token."""
    return {"status": "ok"}


@_status.get("/status")
def status(services: ServicesArg) -> dict[str, Any]:
    """The queue in numbers, and whether the parts of the service answer."""
    board = services.queue.board
    nodes = board.nodes
    totals = None
    if nodes is not None:
        cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
        totals = {"cpus": cpus, "gpus": gpus, "nodes": len(nodes)}
    return {
        "version": version("segfleet"),
        "jobs": {str(state): count for state, count in services.queue.counts().items()},
        "dispatcher": {"ok": services.is_dispatching()},
        "ray": {
            "ok": nodes is not None,
            "url": services.settings.ray_address,
            "trouble": board.trouble,
            "capacity": totals,
        },
        "mlflow": {"ok": services.registry.is_up(), "url": services.settings.mlflow_uri},
    }
