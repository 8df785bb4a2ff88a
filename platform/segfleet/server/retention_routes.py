"""Routes of retention: its rules, what would go, and letting it go."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from segfleet.errors import SpecError
from segfleet.retention.desk import as_document
from segfleet.server.rights import IdentityArg
from segfleet.server.schemas import Body, EmptyBody, PlainData
from segfleet.server.services import ServicesArg
from segfleet.spec.secrets import secret_problems

router = APIRouter(prefix="/retention", tags=["retention"])


class RulesBody(Body):
    """All rules; what is left out has its default."""

    rules: PlainData


class RulesAnswer(BaseModel):
    """The rules as they hold."""

    rules: dict[str, Any]


class PieceAnswer(BaseModel):
    """Something of a job that takes room."""

    job: str
    kind: Literal["checkpoint", "log", "run"]
    name: str = Field(description="path below the storage or the logs, or the run's id")
    bytes: int = Field(description="0 where nobody can tell")


class PlanAnswer(BaseModel):
    """What may go, the longest ended job first."""

    pieces: list[PieceAnswer]
    bytes: int


class GoneAnswer(BaseModel):
    """What is gone, and how many pieces are left: ask again for those."""

    gone: list[PieceAnswer]
    bytes: int
    left: int


@router.get("")
def show_retention(services: ServicesArg) -> RulesAnswer:
    """The rules as they hold, with their defaults."""
    return RulesAnswer(rules=services.retention.rules())


@router.put("")
def set_retention(body: RulesBody, services: ServicesArg) -> RulesAnswer:
    """Replace the rules; nothing is deleted by that alone."""
    if problems := secret_problems(body.rules):
        raise SpecError(problems, "rules")
    return RulesAnswer(rules=services.retention.set_rules(body.rules))


@router.get("/plan")
def plan_retention(services: ServicesArg) -> PlanAnswer:
    """What would go now; deletes nothing."""
    pieces = services.retention.plan()
    answers = [PieceAnswer.model_validate(as_document(job_id, piece)) for job_id, piece in pieces]
    return PlanAnswer(pieces=answers, bytes=sum(piece.bytes for _, piece in pieces))


@router.post("/apply")
def apply_retention(_body: EmptyBody, services: ServicesArg, caller: IdentityArg) -> GoneAnswer:
    """Delete what may go, for some seconds."""
    gone, left = services.retention.apply(caller)
    answers = [PieceAnswer.model_validate(as_document(job_id, piece)) for job_id, piece in gone]
    return GoneAnswer(gone=answers, bytes=sum(piece.bytes for _, piece in gone), left=left)
