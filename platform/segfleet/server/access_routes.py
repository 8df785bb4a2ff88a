"""Routes of admins and operators: tokens and the audit log."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path

from segfleet.server.access_schemas import (
    AuditAnswer,
    AuditEntry,
    NewTokenAnswer,
    TokenAnswer,
    TokenBody,
    TokensAnswer,
)
from segfleet.server.paging import Before, Limit, next_of
from segfleet.server.rights import AccessArg, IdentityArg
from segfleet.server.schemas import EmptyBody
from segfleet.spec.sections import duration_s

router = APIRouter(tags=["access"])


@router.post("/tokens", status_code=HTTPStatus.CREATED)
def create_token(body: TokenBody, access: AccessArg, caller: IdentityArg) -> NewTokenAnswer:
    """Make a token; a user that is not known yet is made too. The answer holds the token, for the only time."""
    life_s = None if body.expires == "never" else float(duration_s(body.expires))
    shown, token = access.create_token(body.user, body.role, body.projects, life_s, caller.user)
    return NewTokenAnswer(**shown, token=token)


@router.get("/tokens")
def list_tokens(access: AccessArg) -> TokensAnswer:
    """The newest 1000 tokens of all users."""
    return TokensAnswer(tokens=[TokenAnswer(**shown) for shown in access.tokens()])


@router.post("/tokens/{token_id}/revoke")
def revoke_token(
    token_id: Annotated[str, Path(max_length=128, description="id of the token, or all of it")],
    _body: EmptyBody,
    access: AccessArg,
) -> TokenAnswer:
    """End a token at once; it is named by its id, or whole by whoever found it."""
    return TokenAnswer(**access.revoke(token_id))


@router.get("/audit")
def read_audit(
    access: AccessArg,
    before: Before = None,
    limit: Limit = 100,
) -> AuditAnswer:
    """Who changed what, or was refused: a page, the newest first."""
    entries = [AuditEntry(**entry) for entry in access.audit(before, limit)]
    return AuditAnswer(entries=entries, next=next_of(entries, limit))
