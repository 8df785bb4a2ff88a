"""Routes of streams: server-sent events of the history, of a job and of its log."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from segfleet.errors import QueueUnavailableError, UnauthorizedError
from segfleet.queue.states import JobState
from segfleet.server import sources
from segfleet.server.guard import bearer_of
from segfleet.server.paging import Exact
from segfleet.server.rights import AccessArg, IdentityArg
from segfleet.server.services import JobId, ServicesArg
from segfleet.server.streams import EVENT_STREAM, EventStream, Source

router = APIRouter(tags=["streams"], responses={200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}}})

_LOOK_AT_TOKEN_S = 10.0
_MOST = 2**63

After = Annotated[
    int | None,
    Query(ge=0, lt=_MOST, description="go on behind this id; the header Last-Event-ID, which browsers send, wins"),
]
LastEventId = Annotated[int | None, Header(alias="Last-Event-ID", ge=0, lt=_MOST, description="as `after`")]


@router.get("/events", response_class=StreamingResponse)
async def events(
    request: Request,
    services: ServicesArg,
    access: AccessArg,
    caller: IdentityArg,
    after: After = None,
    last_event_id: LastEventId = None,
    project: Exact = None,
    owner: Exact = None,
    job: Exact = None,
    kind: Exact = None,
    state: Annotated[JobState | None, Query(description="lines that brought a job into it")] = None,
) -> EventStream:
    """The history of all jobs as it goes on: an event `history` for each line, whose id is the line's `seq`.

    Without `after` it begins now; `after=0` begins with the first line there is. It does not end by itself.
    """
    interest = sources.Interest(project, owner, job, kind, state)
    start = after if last_event_id is None else last_event_id
    return _opened(request, services, access, caller.token_id, sources.history(services.feed, interest, start))


@router.get("/jobs/{job_id}/stream", response_class=StreamingResponse)
async def job_stream(
    request: Request,
    job_id: JobId,
    services: ServicesArg,
    access: AccessArg,
    caller: IdentityArg,
    after: After = None,
    last_event_id: LastEventId = None,
) -> EventStream:
    """A job's life: `job` is the job without its spec, at first and at each change; `history` a line of its history
    behind `after`, with its `seq` as id. Ends with `end` once the job has ended."""
    await run_in_threadpool(services.queue.get, job_id)
    start = (after if last_event_id is None else last_event_id) or 0
    source = sources.life(services.feed, services.queue, job_id, start)
    return _opened(request, services, access, caller.token_id, source)


@router.get("/jobs/{job_id}/logs/stream", response_class=StreamingResponse)
async def log_stream(
    request: Request,
    job_id: JobId,
    services: ServicesArg,
    access: AccessArg,
    caller: IdentityArg,
    after: After = None,
    last_event_id: LastEventId = None,
) -> EventStream:
    """The log of all attempts as it grows: `log` has a piece of text, its id is the byte behind it.

    Ends with `end` once nothing will be added any more.
    """
    await run_in_threadpool(services.queue.get, job_id)
    start = (after if last_event_id is None else last_event_id) or 0
    source = sources.log(services.feed, services.queue, services.settings.home.logs, job_id, start)
    return _opened(request, services, access, caller.token_id, source)


def _opened(request: Request, services: ServicesArg, access: AccessArg, token_id: str, source: Source) -> EventStream:
    token, looked_at = bearer_of(request.headers), time.monotonic()

    async def is_allowed() -> bool:
        nonlocal looked_at
        if time.monotonic() - looked_at < _LOOK_AT_TOKEN_S:
            return True
        looked_at = time.monotonic()
        try:
            await run_in_threadpool(access.identify, token)
        except UnauthorizedError:
            return False
        except QueueUnavailableError:
            return True
        return True

    services.places.take(token_id)
    return EventStream(source, is_allowed, lambda: services.places.give_back(token_id))
