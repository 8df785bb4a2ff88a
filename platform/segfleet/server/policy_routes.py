"""Routes of the operator: quotas, weights and the rules of the whole queue."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from segfleet.queue.policy import Scope
from segfleet.server.schemas import PoliciesAnswer, PolicyAnswer, PolicyBody
from segfleet.server.services import ServicesArg

router = APIRouter(prefix="/policies", tags=["policies"])


@router.get("")
def list_policies(services: ServicesArg) -> PoliciesAnswer:
    """All rules that are set; where none are, the defaults hold."""
    return PoliciesAnswer(policies=[PolicyAnswer(**policy) for policy in services.queue.policies()])


@router.put("/{scope}/{name}")
def set_policy(
    scope: Annotated[Scope, Path(description="what the rules are for")],
    name: Annotated[str, Path(description="of the project or user, or `cluster`")],
    body: PolicyBody,
    services: ServicesArg,
) -> PolicyAnswer:
    """Replace the rules of the cluster (name `cluster`), a project or a user; empty rules remove them."""
    return PolicyAnswer(**services.queue.set_policy(scope, name, body.rules))
