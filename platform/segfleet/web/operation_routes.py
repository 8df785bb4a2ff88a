"""Route of the operator's page: how the parts are, who may how much, who has done what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from segfleet.access.desk import Access
from segfleet.access.roles import Identity, Role
from segfleet.errors import Problem
from segfleet.server.access_schemas import NewTokenAnswer
from segfleet.server.rights import AccessArg, IdentityArg
from segfleet.server.services import Services, ServicesArg
from segfleet.server.status_routes import status
from segfleet.spec.filling import leaves
from segfleet.web.frame import page
from segfleet.web.visitors import may

router = APIRouter()

_ENTRIES = 50


@dataclass(frozen=True, slots=True)
class Refused:
    """A form that was sent and not taken.

    Attributes:
        form: Which one.
        typed: Its fields.
        problems: What is wrong with them.
    """

    form: str = ""
    typed: Mapping[str, str] | None = None
    problems: tuple[Problem, ...] = ()


@router.get("/operations")
def operations_page(
    request: Request,
    services: ServicesArg,
    access: AccessArg,
    caller: IdentityArg,
    before: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
) -> Response:
    """Health, machines, rules, tokens, what is kept, and a page of the audit log."""
    return operations(request, services, access, caller, before=before)


def operations(
    request: Request,
    services: Services,
    access: Access,
    caller: Identity,
    *,
    before: int | None = None,
    refused: Refused | None = None,
    made: NewTokenAnswer | None = None,
    answer: HTTPStatus = HTTPStatus.OK,
) -> Response:
    """The operator's page.

    Args:
        before: Entries of the audit log with a lower number; None: the newest.
        refused: A form that was not taken.
        made: A token that was just made: the only time it is shown.
    """
    entries = access.audit(before, _ENTRIES)
    policies = services.queue.policies()
    rules = {(one["scope"], one["name"]): sorted(leaves(one["rules"]).items()) for one in policies}
    return page(
        request,
        "operations.html",
        answer,
        now=access.now(),
        status=status(services),
        machines=services.queue.board.machines,
        rules=rules,
        lines={whose: _lines(pairs) for whose, pairs in rules.items()},
        tokens=access.tokens() if may(caller, ("GET", "/tokens")) else None,
        roles=list(Role),
        retention=(kept := sorted(leaves(services.retention.rules()).items())),
        retention_lines=_lines([(rule, value) for rule, value in kept if value is not None]),
        may_keep=may(caller, ("POST", "/retention")),
        refused=refused or Refused(),
        made=made,
        entries=entries,
        older=entries[-1]["seq"] if len(entries) == _ENTRIES else None,
        before=before,
    )


def _lines(pairs: list[tuple[str, Any]]) -> str:
    """Rules as the form takes them back."""
    return "\n".join(f"{rule}={value if isinstance(value, str) else json.dumps(value)}" for rule, value in pairs)
