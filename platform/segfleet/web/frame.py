"""How pages are made: templates that escape everything, fragments with a tag, pages that say what went wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from segfleet.access.sessions import form_key
from segfleet.cli.output import clean, duration
from segfleet.cli.retention import size_text
from segfleet.errors import SegfleetError
from segfleet.log_context import fields
from segfleet.server import problems
from segfleet.web import charts, figures
from segfleet.web.visitors import may

# Address and title of each entry of the navigation; shown to whoever may look at it.
_SECTIONS = (
    ("/", "Queue"),
    ("/models", "Models"),
    ("/datasets", "Datasets"),
    ("/operations", "Operations"),
    ("/submit", "New job"),
)


def _shown(value: object) -> object:
    """Every value of a template: no mark that turns the direction of writing, no control character."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return clean(value)
    return value


_templates = Environment(
    loader=PackageLoader("segfleet.web"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.globals |= {"charts": charts, "may": may, "release": version("segfleet")}
_templates.filters |= {
    "ago": lambda moment, now: duration(now - moment),
    "count": figures.count,
    "duration": duration,
    "percent": figures.percent,
    "size": size_text,
    "stamp": figures.stamp,
}


def render(template: str, values: Mapping[str, Any]) -> str:
    """A template filled in."""
    return _templates.get_template(template).render(values)


def page(request: Request, template: str, answer: HTTPStatus = HTTPStatus.OK, **values: Any) -> Response:
    """A whole page; it knows who is signed in, and the key that its forms must carry."""
    session, identity = getattr(request.state, "session", ""), getattr(request.state, "identity", None)
    frame = {
        "identity": identity,
        "form_key": form_key(session) if session else "",
        "path": request.url.path,
        "sections": [entry for entry in _SECTIONS if identity is not None and may(identity, ("GET", entry[0]))],
    }
    return HTMLResponse(render(template, {**frame, **values}), answer)


def fragment(request: Request, html: str) -> Response:
    """A part of a page with its tag; 304 if the browser has it already."""
    tag = f'"{hashlib.sha256(html.encode()).hexdigest()[:20]}"'
    headers = {"ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return HTMLResponse(html, headers=headers)


def install(app: FastAPI) -> None:
    """Answer what goes wrong with a page for people, and with a problem document for scripts."""
    app.add_exception_handler(SegfleetError, partial(_answer, _of_error))
    app.add_exception_handler(RequestValidationError, partial(_answer, _of_invalid))
    app.add_exception_handler(HTTPException, partial(_answer, _of_http))
    # The guard logs what happened.
    app.add_exception_handler(Exception, partial(_answer, _of_fault))


def _of_error(error: Any) -> tuple[HTTPStatus, str, str]:
    return problems.status_of(error), error.code, str(error)


def _of_invalid(error: Any) -> tuple[HTTPStatus, str, str]:
    fields = ", ".join(".".join(str(part) for part in item["loc"][1:]) for item in error.errors())
    return HTTPStatus.UNPROCESSABLE_ENTITY, "request_invalid", f"the request is malformed: {fields}"


def _of_http(error: Any) -> tuple[HTTPStatus, str, str]:
    status = HTTPStatus(error.status_code)
    return status, f"http_{status.value}", f"{status.phrase.lower()}: there is nothing under this address"


def _of_fault(_error: Any) -> tuple[HTTPStatus, str, str]:
    request_id = fields().get("request_id", "")
    text = f"the service failed on this request; its log says why, at request {request_id}"
    return HTTPStatus.INTERNAL_SERVER_ERROR, "internal", text


async def _answer(told: Any, request: Request, error: Exception) -> Response:
    status, code, message = told(error)
    if "text/html" in request.headers.get("accept", ""):
        return page(request, "trouble.html", status, status=status, message=message)
    return problems.refusal(status, code, message)
