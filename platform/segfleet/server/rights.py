"""Who may use which route: the one table, and the check that every route passes through.

A route that is not in the table is refused to everybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from segfleet.access import audit
from segfleet.access.desk import Access
from segfleet.access.roles import Identity, Role
from segfleet.errors import AccessError
from segfleet.server.services import ServicesArg, valid_job_id
from segfleet.wire import API


@dataclass(frozen=True, slots=True)
class Right:
    """What a route asks for.

    Attributes:
        role: The least role.
        of_own_job: Whether users below operator may use it on jobs of their own only.
    """

    role: Role
    of_own_job: bool = False


_VIEW, _USE = Right(Role.VIEWER), Right(Role.USER)
_OWN, _OPERATE, _ADMIN = Right(Role.USER, of_own_job=True), Right(Role.OPERATOR), Right(Role.ADMIN)

# Of the web page alone; where a page has the path of the API's route, the right is the same.
PAGE_RIGHTS: Mapping[tuple[str, str], Right | None] = {
    ("GET", "/sign-in"): None,
    ("POST", "/sign-in"): None,
    ("GET", "/static/{name}"): None,
    ("POST", "/sign-out"): _VIEW,
    ("GET", "/"): _VIEW,
    ("GET", "/live"): _VIEW,
    ("GET", "/jobs/{job_id}/live"): _VIEW,
    ("GET", "/jobs/{job_id}/pictures/{name}"): _VIEW,
    ("GET", "/submit"): _USE,
    ("GET", "/models/{name}/tries"): _USE,
    ("POST", "/models/{name}/tries"): _USE,
    ("GET", "/models/{name}/tries/{try_id}"): _USE,
    ("GET", "/models/{name}/tries/{try_id}/live"): _USE,
    ("GET", "/models/{name}/tries/{try_id}/overlay"): _USE,
    ("GET", "/operations"): _OPERATE,
    ("GET", "/datasets"): _VIEW,
    ("GET", "/datasets/{dataset_id}"): _VIEW,
    ("GET", "/datasets/{dataset_id}/live"): _VIEW,
    ("GET", "/datasets/{dataset_id}/sheet"): _VIEW,
    ("GET", "/models/{name}/sheets"): _VIEW,
    # Forms cannot put; the API's routes of the same rules have the same rights.
    ("POST", "/policies"): _OPERATE,
    ("POST", "/retention"): _ADMIN,
}
# None: open, or the caller is an attempt, which proves itself to the route.
RIGHTS: Mapping[tuple[str, str], Right | None] = {
    ("GET", "/healthz"): None,
    ("GET", "/metrics"): _VIEW,
    ("GET", "/status"): _VIEW,
    ("POST", "/check"): _USE,
    ("POST", "/jobs"): _USE,
    ("GET", "/jobs"): _VIEW,
    ("GET", "/jobs/{job_id}"): _VIEW,
    ("GET", "/jobs/{job_id}/events"): _VIEW,
    ("GET", "/jobs/{job_id}/logs"): _VIEW,
    ("GET", "/jobs/{job_id}/logs/stream"): _VIEW,
    ("GET", "/jobs/{job_id}/stream"): _VIEW,
    ("GET", "/events"): _VIEW,
    ("GET", "/jobs/{job_id}/trials"): _VIEW,
    ("POST", "/jobs/{job_id}/cancel"): _OWN,
    ("POST", "/jobs/{job_id}/pause"): _OWN,
    ("POST", "/jobs/{job_id}/resume"): _OWN,
    ("POST", "/jobs/{job_id}/retry"): _OWN,
    ("POST", "/jobs/{job_id}/priority"): _OPERATE,
    ("POST", "/attempts/{attempt_id}/claim"): None,
    ("POST", "/attempts/{attempt_id}/heartbeat"): None,
    ("POST", "/attempts/{attempt_id}/group"): None,
    ("POST", "/attempts/{attempt_id}/leave"): None,
    ("POST", "/attempts/{attempt_id}/fault"): None,
    ("GET", "/attempts/{attempt_id}/checkpoint"): None,
    ("POST", "/attempts/{attempt_id}/checkpoint"): None,
    ("POST", "/attempts/{attempt_id}/complete"): None,
    ("POST", "/attempts/{attempt_id}/fail"): None,
    ("POST", "/attempts/{attempt_id}/yield"): None,
    ("POST", "/attempts/{attempt_id}/register"): None,
    ("POST", "/attempts/{attempt_id}/evaluated"): None,
    ("GET", "/attempts/{attempt_id}/trials"): None,
    ("POST", "/attempts/{attempt_id}/trials"): None,
    ("POST", "/attempts/{attempt_id}/trials/{number}/state"): None,
    ("POST", "/attempts/{attempt_id}/trials/{number}/report"): None,
    ("GET", "/attempts/{attempt_id}/trials/{number}/checkpoint"): None,
    ("POST", "/attempts/{attempt_id}/trials/{number}/checkpoint"): None,
    ("POST", "/attempts/{attempt_id}/trials/{number}/measured"): None,
    ("GET", "/models"): _VIEW,
    ("GET", "/models/{name}"): _VIEW,
    ("POST", "/models/{name}/versions"): _USE,
    ("GET", "/models/{name}/{ref}"): _VIEW,
    ("GET", "/models/{name}/{ref}/archive"): _VIEW,
    ("DELETE", "/models/{name}/{ref}"): _OPERATE,
    ("GET", "/models/{name}/gates"): _VIEW,
    ("PUT", "/models/{name}/gates/{alias}"): _OPERATE,
    ("DELETE", "/models/{name}/gates/{alias}"): _OPERATE,
    ("GET", "/models/{name}/promotions"): _VIEW,
    ("POST", "/models/{name}/promotions"): _USE,
    ("GET", "/models/{name}/promotions/{promotion_id}"): _VIEW,
    ("GET", "/policies"): _VIEW,
    ("PUT", "/policies/{scope}/{name}"): _OPERATE,
    ("GET", "/retention"): _VIEW,
    ("PUT", "/retention"): _ADMIN,
    ("GET", "/retention/plan"): _OPERATE,
    ("POST", "/retention/apply"): _ADMIN,
    # Whose webhook it is, the webhooks' own desk looks at.
    ("GET", "/webhooks"): _USE,
    ("POST", "/webhooks"): _USE,
    ("DELETE", "/webhooks/{webhook_id}"): _USE,
    ("POST", "/webhooks/{webhook_id}/test"): _USE,
    ("GET", "/webhooks/{webhook_id}/deliveries"): _USE,
    ("GET", "/tokens"): _ADMIN,
    ("POST", "/tokens"): _ADMIN,
    ("POST", "/tokens/{token_id}/revoke"): _ADMIN,
    ("GET", "/audit"): _OPERATE,
    **PAGE_RIGHTS,
}


def authorize(request: Request, services: ServicesArg) -> None:
    """Refuse a request that the caller's role or name does not allow.

    Raises:
        AccessError: the role is too low, the job is somebody else's, or the route is not in the table.
        UnknownJobError: the route is about a job that is not there.
    """
    route = (request.method, request.scope["route"].path.removeprefix(API))
    parameters = request.path_params
    if (entry := audit.pending()) is not None:
        entry.action, entry.subject = " ".join(route), " ".join(map(str, parameters.values()))
    if route not in RIGHTS:
        raise AccessError(f"nobody has been given the right to {' '.join(route)}")
    right = RIGHTS[route]
    if right is None:
        return
    caller = identity_of(request)
    if not caller.role.covers(right.role):
        raise AccessError(
            f"{' '.join(route)} needs the role {right.role}; {caller.user!r} has the role {caller.role}: ask an admin"
        )
    if right.of_own_job and not caller.role.covers(Role.OPERATOR):
        owner = services.queue.get(valid_job_id(parameters["job_id"])).owner
        if owner != caller.user:
            raise AccessError(f"job {parameters['job_id']} belongs to {owner!r}: ask its owner or an operator")


def identity_of(request: Request) -> Identity:
    """The person that the guard has let in."""
    identity: Identity = request.state.identity
    return identity


def _access(request: Request) -> Access:
    access: Access = request.app.state.access
    return access


IdentityArg = Annotated[Identity, Depends(identity_of)]
AccessArg = Annotated[Access, Depends(_access)]
