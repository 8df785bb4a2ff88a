"""Route of the operator's page: how the parts are, who may how much, who has done what."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from segfleet.server.rights import AccessArg, IdentityArg
from segfleet.server.services import ServicesArg
from segfleet.server.status_routes import status
from segfleet.spec.filling import leaves
from segfleet.web.frame import page
from segfleet.web.visitors import may

router = APIRouter()

_ENTRIES = 50


@router.get("/operations")
def operations_page(
    request: Request,
    services: ServicesArg,
    access: AccessArg,
    caller: IdentityArg,
    before: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
) -> Response:
    """Health, machines, rules, tokens, what is kept, and a page of the audit log."""
    entries = access.audit(before, _ENTRIES)
    rules = {(one["scope"], one["name"]): sorted(leaves(one["rules"]).items()) for one in services.queue.policies()}
    return page(
        request,
        "operations.html",
        now=access.now(),
        status=status(services),
        nodes=services.queue.board.nodes,
        rules=rules,
        tokens=access.tokens() if may(caller, ("GET", "/tokens")) else None,
        retention=sorted(leaves(services.retention.rules()).items()),
        entries=entries,
        older=entries[-1]["seq"] if len(entries) == _ENTRIES else None,
        before=before,
    )
