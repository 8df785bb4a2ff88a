"""Routes of gates and promotions, and of the deletion of versions."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import ValidationError

from segfleet.access.roles import DEFAULT_PROJECT, Identity
from segfleet.errors import AccessError, Problem, SpecError
from segfleet.promotion.gate import Gate
from segfleet.server.model_schemas import (
    AliasName,
    DeletedAnswer,
    GateAnswer,
    GateBody,
    GatesAnswer,
    ModelName,
    ModelRef,
    NewAlias,
    NewModelName,
    PromoteBody,
    PromotionAnswer,
    PromotionsAnswer,
)
from segfleet.server.paging import Before, Limit, next_of
from segfleet.server.rights import IdentityArg
from segfleet.server.schemas import DoneAnswer, EmptyBody
from segfleet.server.services import ServicesArg
from segfleet.spec.secrets import secret_problems

router = APIRouter(prefix="/models/{name}", tags=["models"])


@router.get("/gates")
def list_gates(name: ModelName, services: ServicesArg) -> GatesAnswer:
    """The gates of a model's aliases."""
    return GatesAnswer(gates=[GateAnswer(**gate) for gate in services.promotions.gates(name)])


@router.put("/gates/{alias}")
def set_gate(
    name: NewModelName, alias: NewAlias, body: GateBody, services: ServicesArg, caller: IdentityArg
) -> GateAnswer:
    """Replace what a version must show to take over the alias."""
    # Before anything that could repeat a value.
    if problems := secret_problems(body.rules):
        raise SpecError(problems, "gate")
    try:
        gate = Gate.model_validate_json(json.dumps(body.rules))
    except ValidationError as error:
        items = error.errors(include_url=False, include_context=False, include_input=False)
        problems = [Problem(".".join(map(str, item["loc"])), str(item["msg"])) for item in items]
        raise SpecError(problems, "gate") from error
    return GateAnswer(**services.promotions.set_gate(name, alias, gate, caller.user))


@router.delete("/gates/{alias}")
def remove_gate(name: ModelName, alias: AliasName, _body: EmptyBody, services: ServicesArg) -> DoneAnswer:
    """Take an alias' gate away."""
    services.promotions.remove_gate(name, alias)
    return DoneAnswer()


@router.get("/promotions")
def list_promotions(
    name: ModelName, services: ServicesArg, before: Before = None, limit: Limit = 100
) -> PromotionsAnswer:
    """A model's promotions, the newest first."""
    found = services.promotions.list(name, limit, before)
    answers = [PromotionAnswer.of(promotion) for promotion in found]
    return PromotionsAnswer(promotions=answers, next=next_of(found, limit))


@router.post(
    "/promotions",
    status_code=HTTPStatus.ACCEPTED,
    responses={HTTPStatus.OK: {"model": PromotionAnswer, "description": "decided"}},
)
def promote(
    name: ModelName, body: PromoteBody, services: ServicesArg, caller: IdentityArg, response: Response
) -> PromotionAnswer:
    """Let a version have an alias: 200 if that is decided, 202 while it is being evaluated."""
    promotion = services.promotions.ask(
        name, body.alias, body.version, who=caller.user, project=project_of(caller, body.project)
    )
    if not promotion.is_open:
        response.status_code = HTTPStatus.OK
    return PromotionAnswer.of(promotion)


@router.get("/promotions/{promotion_id}")
def show_promotion(
    name: ModelName, promotion_id: Annotated[str, Path(description="of the promotion")], services: ServicesArg
) -> PromotionAnswer:
    """One promotion, with both figures once they are there."""
    return PromotionAnswer.of(services.promotions.get(name, promotion_id))


@router.delete("/{ref}")
def delete_version(name: ModelName, ref: ModelRef, _body: EmptyBody, services: ServicesArg) -> DeletedAnswer:
    """Take a version out of the registry; refused while an alias, a promotion or a job needs it."""
    version = services.promotions.delete_version(name, ref)
    stays = [f"MLflow's run {version['run_id']} with its curves, pictures and the model's files"]
    if version["job"]:
        stays.append(f"job {version['job']} with its checkpoints")
    return DeletedAnswer(name=name, version=version["version"], stays=stays)


def project_of(caller: Identity, wanted: str | None) -> str:
    """The project of a caller's evaluations.

    Raises:
        AccessError: the caller may not submit to it, or to none.
    """
    if wanted is None:
        wanted = DEFAULT_PROJECT if caller.may_submit_to(DEFAULT_PROJECT) else min(caller.projects, default=None)
    if wanted is None or not caller.may_submit_to(wanted):
        known = ", ".join(sorted(caller.projects)) or "none"
        raise AccessError(
            f"{caller.user!r} may not submit evaluations to project {wanted!r}, only to: {known}; "
            "name another project, or ask an admin for membership"
        )
    return wanted
