"""What the routes work with, and who is asking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Path, Request

from segfleet.errors import UnauthorizedError, UnknownJobError
from segfleet.promotion.desk import Promotions
from segfleet.queue.leadership import Office
from segfleet.queue.model import ATTEMPT_ID, JOB_ID
from segfleet.queue.service import Queue
from segfleet.retention.desk import Retention
from segfleet.server.feed import Feed
from segfleet.server.guard import bearer_of
from segfleet.server.streams import Places
from segfleet.settings import Settings
from segfleet.tryout.desk import Tries
from segfleet.webhooks.desk import Webhooks

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
        is_dispatching: Whether the dispatcher's threads live.
        office: Who leads.
        promotions: Of the models.
        webhooks: Of the jobs.
        retention: What of ended jobs may go.
        feed: Of the streams.
        places: For the streams.
        tries: Of models on pictures.
    """

    settings: Settings
    queue: Queue
    registry: Registry
    is_dispatching: Callable[[], bool]
    office: Office
    promotions: Promotions = field(init=False)
    webhooks: Webhooks = field(init=False)
    retention: Retention = field(init=False)
    feed: Feed = field(init=False)
    places: Places = field(init=False)
    tries: Tries = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "promotions", Promotions(self.queue, self.registry))
        key_path, hosts = self.settings.home.webhook_key, self.settings.webhook_hosts
        object.__setattr__(self, "webhooks", Webhooks(self.queue.store, self.queue.clock, key_path, hosts))
        home = self.settings.home
        retention = Retention(self.queue.store, self.queue.clock, home.storage, home.logs, self.registry)
        object.__setattr__(self, "retention", retention)
        object.__setattr__(self, "feed", Feed(self.queue))
        object.__setattr__(self, "places", Places())
        object.__setattr__(self, "tries", Tries(home.tries, self.registry, self.queue.clock))


@dataclass(frozen=True, slots=True)
class Caller:
    """An attempt that has proved who it is; whether it may still write is the queue's to say."""

    attempt_id: str
    token: str


AttemptId = Annotated[str, Path(description="the job's id, `-a` and the attempt's number")]


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def valid_job_id(job_id: Annotated[str, Path(description="of the job: `job-` and eight characters")]) -> str:
    """The id, if it can be a job's.

    Raises:
        UnknownJobError: it cannot.
    """
    if not JOB_ID.fullmatch(job_id):
        raise UnknownJobError(job_id)
    return job_id


def _caller(request: Request, attempt_id: AttemptId) -> Caller:
    token = bearer_of(request.headers)
    known = ATTEMPT_ID.fullmatch(attempt_id) and _services(request).queue.is_token(attempt_id, token)
    if not known:
        raise UnauthorizedError("this is not the attempt's token")
    return Caller(attempt_id, token)


ServicesArg = Annotated[Services, Depends(_services)]
JobId = Annotated[str, Depends(valid_job_id)]
CallerArg = Annotated[Caller, Depends(_caller)]
