"""Refusals: which HTTP status an error has, and what its answer looks like. No other module chooses a status."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from segfleet.errors import (
    AccessError,
    AttemptFencedError,
    DataError,
    IdempotencyConflictError,
    IllegalTransitionError,
    JobChangedError,
    LaunchError,
    ModelError,
    ModelRefusedError,
    QueueError,
    QueueUnavailableError,
    QuotaExceededError,
    SegfleetError,
    ServiceError,
    SpecError,
    TooManyStreamsError,
    TryBusyError,
    UnauthorizedError,
    UnknownJobError,
    UnknownTokenError,
    UnknownWebhookError,
    WebhookError,
)
from segfleet.log_context import fields
from segfleet.wire import PROBLEM_JSON, error_document

# The first row that fits counts, so a class stands before its base.
_STATUSES: tuple[tuple[type[SegfleetError], HTTPStatus], ...] = (
    (SpecError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (IdempotencyConflictError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (DataError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (UnknownJobError, HTTPStatus.NOT_FOUND),
    (ModelRefusedError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (ModelError, HTTPStatus.NOT_FOUND),
    (QueueUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (AttemptFencedError, HTTPStatus.CONFLICT),
    (JobChangedError, HTTPStatus.PRECONDITION_FAILED),
    (IllegalTransitionError, HTTPStatus.CONFLICT),
    (QuotaExceededError, HTTPStatus.CONFLICT),
    (QueueError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (UnauthorizedError, HTTPStatus.UNAUTHORIZED),
    (UnknownTokenError, HTTPStatus.NOT_FOUND),
    (AccessError, HTTPStatus.FORBIDDEN),
    (UnknownWebhookError, HTTPStatus.NOT_FOUND),
    (WebhookError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (LaunchError, HTTPStatus.SERVICE_UNAVAILABLE),
    (TooManyStreamsError, HTTPStatus.TOO_MANY_REQUESTS),
    (TryBusyError, HTTPStatus.TOO_MANY_REQUESTS),
    (ServiceError, HTTPStatus.SERVICE_UNAVAILABLE),
    (SegfleetError, HTTPStatus.INTERNAL_SERVER_ERROR),
)
_RETRY_AFTER_S = "2"


class ProblemAnswer(BaseModel):
    """A refusal: what, why, and what to do."""

    status: int
    title: str
    code: str
    message: str
    request_id: str = ""


# Statuses of refusals that any request may meet, for the OpenAPI document.
_REFUSALS = (400, 401, 403, 404, 405, 408, 409, 412, 413, 415, 421, 422, 429, 500, 503)
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {
        "description": HTTPStatus(status).phrase,
        "content": {PROBLEM_JSON: {"schema": ProblemAnswer.model_json_schema()}},
    }
    for status in _REFUSALS
}


def status_of(error: SegfleetError) -> HTTPStatus:
    """The status an error is answered with."""
    return next(status for kind, status in _STATUSES if isinstance(error, kind))


def problem(status: HTTPStatus, document: dict[str, Any]) -> JSONResponse:
    """A problem document as an answer."""
    headers = {}
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        headers["Retry-After"] = _RETRY_AFTER_S
    body = {"status": status.value, "title": status.phrase, **document}
    if request_id := fields().get("request_id"):
        body["request_id"] = request_id
    return JSONResponse(body, status, headers, media_type=PROBLEM_JSON)


def answer(error: SegfleetError) -> JSONResponse:
    """The problem document for an error."""
    return problem(status_of(error), error_document(error))


def refusal(status: HTTPStatus, code: str, message: str) -> JSONResponse:
    """A refusal that no error class stands for."""
    return problem(status, {"code": code, "message": message})


def install(app: FastAPI) -> None:
    """Answer every exception a route can raise with a problem document."""
    app.add_exception_handler(SegfleetError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)


async def _answer_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SegfleetError)
    return answer(error)


async def _answer_invalid(_request: Request, error: Exception) -> JSONResponse:
    """What is wrong with a request, without repeating what was sent: it may hold a secret."""
    assert isinstance(error, RequestValidationError)
    problems = [
        {"path": ".".join(str(part) for part in item["loc"]), "message": str(item["msg"]), "hint": ""}
        for item in error.errors()
    ]
    text = "; ".join(f"{item['path']}: {item['message']}" for item in problems)
    document = {"code": "request_invalid", "message": f"the request is malformed: {text}", "problems": problems}
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, document)


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    message = f"{request.method} is no request this path knows" if status == 405 else status.phrase.lower()
    return refusal(status, f"http_{status.value}", message)
