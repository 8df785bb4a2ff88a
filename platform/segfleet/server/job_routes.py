"""Routes of jobs: check, submit, look, cancel, pause, resume, retry, read logs."""

from __future__ import annotations

import json
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response

from segfleet.access.roles import Identity, Role
from segfleet.errors import AccessError, Problem, SpecError
from segfleet.queue.model import Wanted, gang_of
from segfleet.queue.states import JobState, is_terminal
from segfleet.server.etags import IfMatch, IfNoneMatch, tagged
from segfleet.server.goodput_schemas import FaultAnswer, GoodputAnswer
from segfleet.server.inputs import require_inputs, require_model
from segfleet.server.logs import read_logs
from segfleet.server.paging import MOST, After, Before, Exact, Limit, next_of
from segfleet.server.rights import IdentityArg
from segfleet.server.schemas import (
    AttemptAnswer,
    CheckAnswer,
    EmptyBody,
    EventAnswer,
    EventsAnswer,
    JobAnswer,
    JobDetailAnswer,
    JobsAnswer,
    OutlookAnswer,
    PriorityBody,
    RetryBody,
    SpecBody,
    SubmittedAnswer,
    needs_of,
)
from segfleet.server.services import JobId, Services, ServicesArg
from segfleet.spec.document import MAX_BYTES
from segfleet.spec.resolve import resolve_spec, to_document
from segfleet.spec.secrets import secret_problems
from segfleet.spec.sections import QueueSpec
from segfleet.wire import IDEMPOTENCY_KEY, LOG_END, NEXT_OFFSET

router = APIRouter(tags=["jobs"])

IdempotencyKey = Annotated[
    str | None, Header(pattern=IDEMPOTENCY_KEY, description="the same key and spec give the same job again")
]

Offset = Annotated[int, Query(ge=0, lt=2**63, description="bytes that are known already")]
_LOG: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.post("/check")
def check(body: SpecBody, services: ServicesArg, caller: IdentityArg) -> CheckAnswer:
    """Validate a spec, fill in its defaults, ask all that `submit` asks, tell how it would wait; store nothing."""
    spec, forced = _resolved(body, services, caller)
    services.queue.check(spec, caller.user)
    found = None if services.settings.hands_over else services.queue.outlook(spec, caller.user)
    outlook = None if found is None else OutlookAnswer(**asdict(found))
    return CheckAnswer(spec=spec, needs=needs_of(gang_of(spec)), forced=list(forced), outlook=outlook)


@router.post(
    "/jobs",
    status_code=HTTPStatus.CREATED,
    responses={HTTPStatus.OK: {"model": SubmittedAnswer, "description": "the idempotency key was known already"}},
)
def submit(
    body: SpecBody,
    services: ServicesArg,
    caller: IdentityArg,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> SubmittedAnswer:
    """Put a job into the queue: 201, or 200 if the idempotency key was known already."""
    spec, forced = _resolved(body, services, caller)
    job, replayed = services.queue.submit(spec, owner=caller.user, key=idempotency_key)
    if replayed:
        response.status_code = HTTPStatus.OK
    return SubmittedAnswer(**JobAnswer.fields_of(job), spec=job.spec, replayed=replayed, forced=list(forced))


@router.get("/jobs")
def list_jobs(
    services: ServicesArg,
    state: Annotated[list[JobState] | None, Query(max_length=len(JobState), description="any of these")] = None,
    project: Exact = None,
    owner: Exact = None,
    kind: Exact = None,
    name: Annotated[str | None, Query(max_length=63, description="anywhere in the job's name")] = None,
    before: Before = None,
    limit: Limit = 100,
) -> JobsAnswer:
    """Jobs without their specs: a page, the newest first. Jobs that are submitted meanwhile shift no page."""
    jobs = services.queue.list(Wanted(tuple(state or ()), project, owner, kind, name, before), limit)
    answers = [JobAnswer(**JobAnswer.fields_of(job)) for job in jobs]
    return JobsAnswer(jobs=answers, next=next_of(jobs, limit))


@router.get("/jobs/{job_id}", response_model=JobDetailAnswer, responses={304: {"description": "nothing has changed"}})
def show(job_id: JobId, services: ServicesArg, if_none_match: IfNoneMatch = None) -> Response:
    """A job with its spec and attempts; a queued one says why it waits and at which place."""
    job = services.queue.get(job_id)
    attempts = [AttemptAnswer.of(attempt) for attempt in services.queue.attempts(job_id)]
    answer = JobDetailAnswer(
        **JobAnswer.fields_of(job),
        spec=job.spec,
        attempts=attempts,
        goodput=GoodputAnswer.of(services.queue.goodput(job_id)),
        faults=[FaultAnswer.of(event) for event in services.queue.faults(job_id)],
    )
    return tagged(answer, job.version, if_none_match)


@router.get("/jobs/{job_id}/events")
def events(job_id: JobId, services: ServicesArg, after: After = 0, limit: Limit = MOST) -> EventsAnswer:
    """A job's history, the oldest first."""
    found = services.queue.events(job_id, after, limit)
    return EventsAnswer(events=[EventAnswer.of(event) for event in found], next=next_of(found, limit))


@router.get("/jobs/{job_id}/logs", response_class=Response, responses=_LOG)
def logs(job_id: JobId, services: ServicesArg, offset: Offset = 0) -> Response:
    """At most 1 MiB of the logs of all attempts, from a byte offset on.

    X-Next-Offset is where to go on; X-Log-End is `true` once nothing will be added behind it.
    """
    # The job before its log: an end seen first would promise a log that is still being copied.
    job = services.queue.get(job_id)
    attempts = services.queue.attempts(job_id)
    complete = is_terminal(job.state) and all(attempt.closed for attempt in attempts)
    data, following = read_logs(services.settings.home.logs, [attempt.id for attempt in attempts], offset)
    headers = {NEXT_OFFSET: str(following), LOG_END: "true" if complete and not data else "false"}
    return Response(data, headers=headers, media_type="application/octet-stream")


@router.post("/jobs/{job_id}/cancel")
def cancel(job_id: JobId, _body: EmptyBody, services: ServicesArg, caller: IdentityArg, versions: IfMatch) -> JobAnswer:
    """Ask for the job's end; it is cancelled once nothing of it runs any more."""
    return JobAnswer(**JobAnswer.fields_of(services.queue.cancel(job_id, caller.user, versions)))


@router.post("/jobs/{job_id}/pause")
def pause(job_id: JobId, _body: EmptyBody, services: ServicesArg, caller: IdentityArg, versions: IfMatch) -> JobAnswer:
    """Take the job out of the line; a running one writes a checkpoint first."""
    return JobAnswer(**JobAnswer.fields_of(services.queue.pause(job_id, caller.user, versions)))


@router.post("/jobs/{job_id}/resume")
def resume(job_id: JobId, _body: EmptyBody, services: ServicesArg, caller: IdentityArg, versions: IfMatch) -> JobAnswer:
    """Put a paused job back into the line."""
    _require_member(caller, services.queue.get(job_id).project)
    return JobAnswer(**JobAnswer.fields_of(services.queue.resume(job_id, caller.user, versions)))


@router.post("/jobs/{job_id}/priority")
def priority(
    job_id: JobId, body: PriorityBody, services: ServicesArg, caller: IdentityArg, versions: IfMatch
) -> JobAnswer:
    """Change the job's priority."""
    job = services.queue.set_priority(job_id, caller.user, body.priority, versions)
    return JobAnswer(**JobAnswer.fields_of(job))


@router.post("/jobs/{job_id}/retry")
def retry(job_id: JobId, body: RetryBody, services: ServicesArg, caller: IdentityArg, versions: IfMatch) -> JobAnswer:
    """Queue a failed or cancelled job again."""
    # Whoever has left a project since does not go on in it.
    _require_member(caller, services.queue.get(job_id).project)
    job = services.queue.retry(job_id, caller.user, from_start=body.from_start, versions=versions)
    return JobAnswer(**JobAnswer.fields_of(job))


def _resolved(body: SpecBody, services: Services, caller: Identity) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The full spec, and where the operator's values are in it instead of the user's."""
    size = len(json.dumps(body.spec).encode())
    if size > MAX_BYTES:
        raise SpecError([Problem("", f"{size} bytes; a spec has at most {MAX_BYTES}")])
    # Before anything that could repeat a value.
    if problems := secret_problems(body.spec):
        raise SpecError(problems)
    document, forced = services.queue.force(body.spec)
    spec = resolve_spec(document)
    _require_allowed(caller, spec.queue, services)
    require_inputs(spec)
    require_model(spec, services.registry)
    return to_document(spec), forced


def _require_member(caller: Identity, project: str) -> None:
    if not caller.may_submit_to(project):
        known = ", ".join(sorted(caller.projects)) or "none"
        raise AccessError(
            f"{caller.user!r} may not submit to project {project!r} (queue.project), only to: {known}; "
            "ask an admin for membership"
        )


def _require_allowed(caller: Identity, wanted: QueueSpec, services: Services) -> None:
    _require_member(caller, wanted.project)
    usual: int = QueueSpec.model_fields["priority"].default
    if wanted.priority <= usual or caller.role.covers(Role.OPERATOR):
        return
    if not services.queue.is_forced(wanted.project, "queue.priority"):
        raise AccessError(f"queue.priority {wanted.priority} is above {usual}: an operator can give it to the job")
