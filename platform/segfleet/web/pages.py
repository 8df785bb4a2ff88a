"""The web page as an application of its own, beside the API's under the same guard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segfleet.server.rights import authorize
from segfleet.web import (
    dataset_routes,
    frame,
    job_routes,
    model_routes,
    operating_routes,
    operation_routes,
    queue_routes,
    session_routes,
    submit_routes,
    try_routes,
)
from segfleet.web.curves import Curves
from segfleet.web.datasets import Inspections
from segfleet.web.overview import Overview
from segfleet.web.paths import HEADERS, is_page
from segfleet.web.queue_routes import Lists
from segfleet.web.visitors import require_own_page

if TYPE_CHECKING:
    from segfleet.access.desk import Access
    from segfleet.server.services import Services

_ROUTES = (
    session_routes,
    queue_routes,
    job_routes,
    submit_routes,
    model_routes,
    dataset_routes,
    operation_routes,
    operating_routes,
    try_routes,
)


def create_pages(services: Services, access: Access) -> FastAPI:
    """Build the application of the pages.

    Args:
        services: What the routes work with.
        access: Knows tokens and sessions.
    """
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(require_own_page), Depends(authorize)],
    )
    app.state.services, app.state.access = services, access
    app.state.curves = Curves(lambda job_id: services.registry.curves(job_id))
    app.state.overview = Overview(services.queue, app.state.curves)
    app.state.lists = Lists(app.state.overview)
    app.state.inspections = Inspections(services.settings.home.root / "cache" / "inspections")
    for routes in _ROUTES:
        app.include_router(routes.router)
    frame.install(app)
    return app


class Pages:
    """ASGI middleware: answers the paths of pages, and hands on all others.

    Args:
        app: The API.
        pages: The pages.
    """

    def __init__(self, app: ASGIApp, pages: ASGIApp) -> None:
        self._app, self._pages = app, pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, with the headers that keep a page to itself."""
        if scope["type"] != "http" or not is_page(scope["path"]):
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._pages(scope, receive, guarded)
