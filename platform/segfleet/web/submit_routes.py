"""Routes of the page on which jobs are submitted."""

from __future__ import annotations

import functools
import re
import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import yaml
from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from segfleet.cli.job_text import outlook_text, plan_of
from segfleet.errors import Problem, SegfleetError, SpecError
from segfleet.server import job_routes
from segfleet.server.rights import IdentityArg
from segfleet.server.schemas import SpecBody
from segfleet.server.services import ServicesArg, valid_job_id
from segfleet.spec.document import parse_document
from segfleet.web.frame import page, render
from segfleet.web.visitors import FormArg

router = APIRouter()

_ONCE = re.compile(r"page-[0-9a-f]{32}")
_EXAMPLE = """\
kind: train
name: my-first-job
data:
  shards: /data/camvid
train:
  steps: 4000
"""


@router.get("/submit")
def submit_page(
    request: Request,
    services: ServicesArg,
    source: Annotated[str, Query(alias="from", max_length=20)] = "",
    example: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """The editor, with an example or the spec of another job."""
    text = _text_of(example)
    if source:
        text = yaml.safe_dump(services.queue.get(valid_job_id(source)).spec, sort_keys=False, allow_unicode=True)
    return _editor(request, text, source=source, example=example)


@router.post("/check")
def check(form: FormArg, services: ServicesArg, caller: IdentityArg) -> Response:
    """What is wrong with a spec, or what it would do: a part of the page."""
    try:
        found = job_routes.check(_body(form), services, caller)
    except SegfleetError as error:
        return HTMLResponse(render("check.html", {"problems": problems_of(error), "plan": None}))
    wait = "nobody can tell" if found.outlook is None else outlook_text(found.outlook.model_dump())
    values = {"plan": plan_of(found.spec), "needs": found.needs, "forced": found.forced, "wait": wait}
    return HTMLResponse(render("check.html", {"problems": (), **values}))


@router.post("/jobs")
def submit(request: Request, form: FormArg, services: ServicesArg, caller: IdentityArg) -> Response:
    """Put a job into the queue; the page again if it cannot be."""
    try:
        # A second click, or a form that is sent again, finds the job that the first one made.
        once = form.get("once", "")
        made = job_routes.submit(_body(form), services, caller, Response(), once if _ONCE.fullmatch(once) else None)
    except SegfleetError as error:
        return _editor(request, form.get("spec", ""), problems_of(error), HTTPStatus.UNPROCESSABLE_ENTITY)
    return RedirectResponse(f"/jobs/{made.id}", HTTPStatus.SEE_OTHER)


def _body(form: dict[str, str]) -> SpecBody:
    document = parse_document(form.get("spec", ""))
    try:
        return SpecBody(spec=document)
    except ValueError as error:
        raise SpecError([Problem("", "holds what no spec can hold, such as NaN or NUL")]) from error


def _editor(
    request: Request,
    text: str,
    problems: Sequence[Problem] = (),
    answer: HTTPStatus = HTTPStatus.OK,
    *,
    source: str = "",
    example: str = "",
) -> Response:
    values = {"text": text, "problems": problems, "source": source, "example": example, "examples": sorted(_examples())}
    return page(request, "submit.html", answer, **values, once=f"page-{secrets.token_hex(16)}")


@functools.cache
def _examples() -> Mapping[str, str]:
    """The ready specs by name; none where the service runs without its repository."""
    folder = Path(str(files("segfleet"))).parents[1] / "jobs" / "specs"
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.yaml")}


def _text_of(example: str) -> str:
    return _examples().get(example, _EXAMPLE)


def problems_of(error: SegfleetError) -> tuple[Problem, ...]:
    """What is wrong, place by place."""
    return error.problems if isinstance(error, SpecError) else (Problem("", str(error)),)
