"""SQL of users, tokens and the audit log, inside one transaction of the queue's database."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from segfleet.access.roles import Role
from segfleet.queue.database import WRITE
from segfleet.queue.tables import audit, members, tokens, users


@dataclass(frozen=True, slots=True)
class User:
    """A user as stored."""

    name: str
    role: Role
    projects: frozenset[str]


class AccessRows:
    """Reads and writes of users, tokens and audit entries.

    Args:
        connection: With the transaction begun.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def user(self, name: str) -> User | None:
        """A user with the projects, locked in a write transaction; None: there is none of that name."""
        query = select(users.c.role).where(users.c.name == name)
        if self._connection.get_execution_options().get(WRITE):
            query = query.with_for_update()
        role = self._connection.scalar(query)
        if role is None:
            return None
        projects = self._connection.scalars(select(members.c.project).where(members.c.user_name == name))
        return User(name, Role(role), frozenset(projects))

    def put_user(self, user: User, now: float) -> None:
        """Make a user, or replace role and projects of one that is there."""
        changed = self._connection.execute(update(users).where(users.c.name == user.name).values(role=user.role))
        if changed.rowcount == 0:
            self._connection.execute(insert(users).values(name=user.name, role=user.role, created_at=now))
        self._connection.execute(delete(members).where(members.c.user_name == user.name))
        for project in sorted(user.projects):
            self._connection.execute(insert(members).values(user_name=user.name, project=project))

    def insert_token(self, values: dict[str, Any]) -> None:
        """Add a token's digest."""
        self._connection.execute(insert(tokens).values(values))

    def token(self, token_id: str) -> Row[Any] | None:
        """A token's row by its public id."""
        return self._connection.execute(select(tokens).where(tokens.c.id == token_id)).one_or_none()

    def tokens(self, limit: int) -> list[Row[Any]]:
        """The newest tokens of all users."""
        query = select(tokens).order_by(tokens.c.created_at.desc(), tokens.c.id).limit(limit)
        return list(self._connection.execute(query))

    def users_named(self, names: Collection[str]) -> dict[str, User]:
        """Users by name."""
        roles = self._connection.execute(select(users.c.name, users.c.role).where(users.c.name.in_(names)))
        projects: dict[str, set[str]] = {}
        for row in self._connection.execute(select(members).where(members.c.user_name.in_(names))):
            projects.setdefault(row.user_name, set()).add(row.project)
        return {row.name: User(row.name, Role(row.role), frozenset(projects.get(row.name, ()))) for row in roles}

    def change_token(self, token_id: str, changes: dict[str, Any]) -> None:
        """Write changed fields of a token."""
        self._connection.execute(update(tokens).where(tokens.c.id == token_id).values(changes))

    def add_audit(self, values: dict[str, Any]) -> None:
        """Append to the audit log."""
        self._connection.execute(insert(audit).values(values))

    def audit(self, before: int | None, limit: int) -> list[Row[Any]]:
        """Entries of the audit log, the newest first."""
        query = select(audit).order_by(audit.c.seq.desc()).limit(limit)
        return list(self._connection.execute(query if before is None else query.where(audit.c.seq < before)))
