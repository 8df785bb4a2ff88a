"""Routes of the operator's forms: rules, tokens, and what is kept; each does what the API's route does."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import RedirectResponse, Response

from segfleet.errors import AccessError, Problem, SpecError
from segfleet.server import access_routes, retention_routes
from segfleet.server.access_schemas import TokenBody
from segfleet.server.rights import AccessArg, IdentityArg
from segfleet.server.schemas import EmptyBody, PolicyBody
from segfleet.server.services import ServicesArg
from segfleet.spec.document import apply_overrides
from segfleet.web.frame import page
from segfleet.web.operation_routes import Refused, operations
from segfleet.web.visitors import FormArg, may

router = APIRouter()

_PAGE = "/operations"


@router.post("/policies")
def set_rules(
    request: Request, form: FormArg, services: ServicesArg, access: AccessArg, caller: IdentityArg
) -> Response:
    """Replace the rules of the cluster, a project or a user; none: remove them."""
    scope, name = form.get("scope", ""), form.get("name", "").strip()
    name = "cluster" if scope == "cluster" else name
    try:
        services.queue.set_policy(scope, name, PolicyBody(rules=_rules_of(form)).rules)
    except (SpecError, ValidationError) as error:
        return _refused(request, services, access, caller, form, error)
    return RedirectResponse(f"{_PAGE}#rules-title", HTTPStatus.SEE_OTHER)


@router.post("/tokens")
def create_token(
    request: Request, form: FormArg, services: ServicesArg, access: AccessArg, caller: IdentityArg
) -> Response:
    """Make a token; its text is in this one answer."""
    projects = [name.strip() for name in form.get("projects", "").split(",") if name.strip()]
    try:
        body = TokenBody.model_validate(
            {
                "user": form.get("user", "").strip(),
                "role": form.get("role") or None,
                "projects": projects or None,
                "expires": form.get("expires", "").strip(),
            }
        )
        made = access_routes.create_token(body, access, caller)
    except ValidationError as error:
        return _refused(request, services, access, caller, form, error)
    except AccessError as error:
        named = SpecError([Problem("user", str(error))], "form")
        return _refused(request, services, access, caller, form, named)
    return operations(request, services, access, caller, made=made)


@router.post("/tokens/{token_id}/revoke")
def revoke_token(token_id: str, access: AccessArg) -> Response:
    """End a token at once."""
    access_routes.revoke_token(token_id, EmptyBody(), access)
    return RedirectResponse(f"{_PAGE}#tokens-title", HTTPStatus.SEE_OTHER)


@router.post("/retention")
def set_retention(
    request: Request, form: FormArg, services: ServicesArg, access: AccessArg, caller: IdentityArg
) -> Response:
    """Replace the rules of what is kept; deletes nothing."""
    try:
        retention_routes.set_retention(retention_routes.RulesBody(rules=_rules_of(form)), services)
    except (SpecError, ValidationError) as error:
        return _refused(request, services, access, caller, form, error)
    return RedirectResponse("/retention/plan", HTTPStatus.SEE_OTHER)


@router.get("/retention/plan")
def plan_page(request: Request, services: ServicesArg, caller: IdentityArg) -> Response:
    """What would go now; nothing is deleted by looking."""
    return _plan(request, services, caller)


@router.post("/retention/apply")
def apply(request: Request, services: ServicesArg, caller: IdentityArg) -> Response:
    """Delete what may go, for some seconds, and say what is left."""
    gone = retention_routes.apply_retention(EmptyBody(), services, caller)
    return _plan(request, services, caller, gone)


def _plan(request: Request, services: ServicesArg, caller: IdentityArg, gone: Any = None) -> Response:
    plan = retention_routes.plan_retention(services)
    may_apply = may(caller, ("POST", "/retention/apply"))
    return page(request, "retention.html", plan=plan, gone=gone, may_apply=may_apply)


def _rules_of(form: Mapping[str, str]) -> dict[str, Any]:
    """What a field of lines `rule=value` says, as the commands read it."""
    lines = [line.strip() for line in form.get("rules", "").splitlines()]
    return apply_overrides({}, [line for line in lines if line])


def _refused(
    request: Request,
    services: ServicesArg,
    access: AccessArg,
    caller: IdentityArg,
    form: Mapping[str, str],
    error: SpecError | ValidationError,
) -> Response:
    """The page again, with what was typed and what is wrong with it."""
    if isinstance(error, SpecError):
        problems = error.problems
    else:
        items = error.errors(include_url=False, include_context=False, include_input=False)
        problems = tuple(Problem(".".join(map(str, item["loc"])), str(item["msg"])) for item in items)
    refused = Refused(form.get("form", ""), form, problems)
    return operations(request, services, access, caller, refused=refused, answer=HTTPStatus.UNPROCESSABLE_ENTITY)
