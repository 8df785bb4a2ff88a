"""Routes of a job's page: what it shows, and what it lets people do."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response

from segfleet.errors import ModelError, Problem, SpecError
from segfleet.server import job_routes
from segfleet.server.rights import IdentityArg
from segfleet.server.schemas import EmptyBody, PriorityBody, RetryBody
from segfleet.server.services import JobId, Services, ServicesArg
from segfleet.web.frame import fragment, page, render
from segfleet.web.job_view import curves_view, papers_view, state_view
from segfleet.web.search_view import search_view
from segfleet.web.visitors import FormArg

router = APIRouter()

_SHEET = re.compile(r"step-[0-9]{8,12}\.png")
_PART_TEMPLATES = {"state": "job_state.html", "curves": "job_curves.html", "pictures": "job_pictures.html"}
_TRIALS = "job_trials.html"


@router.get("/jobs/{job_id}")
def job_page(request: Request, job_id: JobId, services: ServicesArg, caller: IdentityArg) -> Response:
    """A job."""
    values = _values(request, services, caller, job_id)
    values |= papers_view(services, values["job"])
    parts = {name: render(template, values) for name, template in _PART_TEMPLATES.items()}
    if values["job"].kind == "search":
        parts["trials"] = _trials(services, job_id)
    return page(request, "job.html", **{**values, "parts_of": parts})


@router.get("/jobs/{job_id}/live")
def job_part(
    request: Request,
    job_id: JobId,
    services: ServicesArg,
    caller: IdentityArg,
    part: Annotated[str, Query(pattern="^(state|curves|pictures|trials)$")],
) -> Response:
    """A part of a job's page that is open."""
    if part == "trials":
        return fragment(request, _trials(services, job_id))
    if part == "state":
        values = _values(request, services, caller, job_id)
    else:
        values = {"job": services.queue.get(job_id), **_learning(request, services, job_id)}
    return fragment(request, render(_PART_TEMPLATES[part], values))


def _values(request: Request, services: Services, caller: IdentityArg, job_id: str) -> dict[str, Any]:
    view = state_view(services, caller, request.state.session, job_id)
    return {**view, **_learning(request, services, job_id)}


def _learning(request: Request, services: Services, job_id: str) -> dict[str, Any]:
    return curves_view(services, request.app.state.curves.of(job_id))


def _trials(services: Services, job_id: str) -> str:
    return render(_TRIALS, {"job": services.queue.get(job_id), **search_view(services, job_id)})


@router.get("/jobs/{job_id}/logs")
def logs(job_id: JobId, services: ServicesArg, offset: Annotated[int, Query(ge=0, lt=2**63)] = 0) -> Response:
    """A piece of the log, as the API gives it."""
    return job_routes.logs(job_id, services, offset)


@router.get("/jobs/{job_id}/pictures/{name}")
def picture(request: Request, job_id: JobId, name: str, services: ServicesArg) -> Response:
    """A sheet of sample predictions."""
    learning = request.app.state.curves.of(job_id)
    found = learning.found or {}
    if not _SHEET.fullmatch(name) or name not in found.get("pictures", ()):
        raise ModelError(f"job {job_id} has no sheet of predictions {name[:40]!r}")
    content = services.registry.picture(found["run_id"], name)
    return Response(content, headers={"Cache-Control": "private, max-age=3600"}, media_type="image/png")


@router.post("/jobs/{job_id}/cancel")
def cancel(job_id: JobId, services: ServicesArg, caller: IdentityArg) -> Response:
    """Cancel the job."""
    job_routes.cancel(job_id, EmptyBody(), services, caller, None)
    return _back(job_id)


@router.post("/jobs/{job_id}/pause")
def pause(job_id: JobId, services: ServicesArg, caller: IdentityArg) -> Response:
    """Take the job out of the line."""
    job_routes.pause(job_id, EmptyBody(), services, caller, None)
    return _back(job_id)


@router.post("/jobs/{job_id}/resume")
def resume(job_id: JobId, services: ServicesArg, caller: IdentityArg) -> Response:
    """Put the job back into the line."""
    job_routes.resume(job_id, EmptyBody(), services, caller, None)
    return _back(job_id)


@router.post("/jobs/{job_id}/retry")
def retry(job_id: JobId, form: FormArg, services: ServicesArg, caller: IdentityArg) -> Response:
    """Queue the job again."""
    body = RetryBody(from_start=form.get("from_start") == "yes")
    job_routes.retry(job_id, body, services, caller, None)
    return _back(job_id)


@router.post("/jobs/{job_id}/priority")
def priority(job_id: JobId, form: FormArg, services: ServicesArg, caller: IdentityArg) -> Response:
    """Change the job's priority."""
    text = form.get("priority", "")
    if not re.fullmatch(r"[0-9]{1,3}", text) or int(text) > 100:
        raise SpecError(
            [Problem("priority", f"{text[:20]!r} is no priority", "give a whole number from 0 to 100")], "form"
        )
    job_routes.priority(job_id, PriorityBody(priority=int(text)), services, caller, None)
    return _back(job_id)


def _back(job_id: str) -> Response:
    return RedirectResponse(f"/jobs/{job_id}", HTTPStatus.SEE_OTHER)
