"""Roles, and the person behind a request."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# The holder of the home folder's own token: whoever runs the service.
LOCAL_USER = "local"
# Of users that are made without a project; also the project of specs that name none.
DEFAULT_PROJECT = "default"


class Role(StrEnum):
    """What a user may do; each role may do all that those before it may."""

    VIEWER = "viewer"
    USER = "user"
    OPERATOR = "operator"
    ADMIN = "admin"

    def covers(self, needed: Role) -> bool:
        """Whether this role may do what the other one may."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Identity:
    """A person that has shown a valid token.

    Attributes:
        user: Name; owner of the jobs that are submitted.
        role: What the user may do.
        projects: Where a user of role `user` may submit; operators and admins may everywhere.
        token_id: Public id of the token that was shown.
    """

    user: str
    role: Role
    projects: frozenset[str]
    token_id: str

    def may_submit_to(self, project: str) -> bool:
        """Whether jobs of this project may be this user's."""
        return self.role.covers(Role.OPERATOR) or project in self.projects
