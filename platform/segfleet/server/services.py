"""What the routes work with, and who is asking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Path, Request

from segfleet.errors import UnauthorizedError, UnknownJobError
from segfleet.queue.model import ATTEMPT_ID, JOB_ID
from segfleet.queue.service import Queue
from segfleet.server.guard import bearer_of
from segfleet.settings import Settings

if TYPE_CHECKING:
    # Importing MLflow takes a second; only the process that makes a registry pays for it.
    from segfleet.registry.registry import Registry


@dataclass(frozen=True, slots=True)
class Services:
    """Everything behind the routes.

    Attributes:
        settings: Addresses and folders.
        queue: The jobs.
        registry: The models.
        is_dispatching: Whether the dispatcher's thread lives.
    """

    settings: Settings
    queue: Queue
    registry: Registry
    is_dispatching: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Caller:
    """An attempt that has proved who it is; whether it may still write is the queue's to say."""

    attempt_id: str
    token: str


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def valid_job_id(job_id: Annotated[str, Path()]) -> str:
    """The id, if it can be a job's.

    Raises:
        UnknownJobError: it cannot.
    """
    if not JOB_ID.fullmatch(job_id):
        raise UnknownJobError(job_id)
    return job_id


def _caller(request: Request, attempt_id: Annotated[str, Path()]) -> Caller:
    token = bearer_of(request.headers)
    known = ATTEMPT_ID.fullmatch(attempt_id) and _services(request).queue.is_token(attempt_id, token)
    if not known:
        raise UnauthorizedError("this is not the attempt's token")
    return Caller(attempt_id, token)


ServicesArg = Annotated[Services, Depends(_services)]
JobId = Annotated[str, Depends(valid_job_id)]
CallerArg = Annotated[Caller, Depends(_caller)]
