"""Shapes of the requests and answers about tokens and the audit log."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from segfleet.access.roles import Role
from segfleet.server.paging import Page
from segfleet.server.schemas import Body
from segfleet.spec.sections import Duration, Name


class TokenBody(Body):
    """A new token, and what its user is from now on."""

    user: Name
    role: Annotated[Role | None, Field(strict=False)] = Field(
        None, description="null keeps the user's role; a new user's is 'user'"
    )
    projects: Annotated[list[Name], Field(max_length=100)] | None = Field(
        None, description="null keeps the user's projects; a new user's is 'default'"
    )
    expires: Duration | Literal["never"] = Field("90d", description="a duration such as 12h or 90d, or never")


class TokenAnswer(BaseModel):
    """A token without anything that opens the service; times are seconds since the epoch."""

    id: str
    user: str
    role: Role
    projects: list[str]
    state: Literal["valid", "expired", "revoked"]
    created_at: float
    expires_at: float | None = Field(description="null: never")
    last_used_at: float | None = Field(description="exact to ten minutes; null: never")
    revoked_at: float | None
    made_by: str


class NewTokenAnswer(TokenAnswer):
    """A token that was just made."""

    token: str = Field(description="the only time it is told")


class TokensAnswer(BaseModel):
    """The tokens of all users, the newest first."""

    tokens: list[TokenAnswer]


class AuditEntry(BaseModel):
    """One request that changed something, or was refused."""

    seq: int
    at: float
    who: str
    token_id: str
    address: str = Field(description="where it came from")
    action: str
    subject: str = Field(description="what it is about, such as a job's id")
    outcome: str = Field(description="done, or the HTTP status of the refusal")


class AuditAnswer(Page):
    """A page of the audit log, the newest first."""

    entries: list[AuditEntry]
