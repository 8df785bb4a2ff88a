"""The application: all routes under one guard."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import version

from fastapi import Depends, FastAPI, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

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
    status_routes,
    stream_routes,
    trial_routes,
    webhook_routes,
)
from segfleet.server.guard import Guard
from segfleet.server.rights import authorize
from segfleet.server.services import Services
from segfleet.web.pages import Pages, create_pages
from segfleet.wire import API

# For the document alone: the guard has looked at the token by then.
_BEARER = HTTPBearer(
    scheme_name="token", description="a user's token; routes of attempts take the attempt's", auto_error=False
)


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
        generate_unique_id_function=_operation_id,
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
        status_routes,
    ):
        app.include_router(routes.router, prefix=API, dependencies=[Security(_BEARER)])
    app.add_api_route("/healthz", _healthz)
    app.include_router(metrics.router, dependencies=[Security(_BEARER)])
    app.add_middleware(Pages, pages=create_pages(services, access))
    app.add_middleware(Guard, access=access, names=names)
    problems.install(app)
    return app


def _healthz() -> dict[str, str]:
    """Says that the service answers, and nothing else: it asks for no token."""
    return {"status": "ok"}


def _operation_id(route: APIRoute) -> str:
    """What generated clients call it, such as jobs_cancel."""
    return "_".join([*map(str, route.tags), route.name.strip("_")])
