"""What the service does with users and tokens: tell who asks, make tokens, revoke them, read the audit log."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any

from segfleet.access import audit
from segfleet.access.roles import DEFAULT_PROJECT, LOCAL_USER, Identity, Role
from segfleet.access.rows import User
from segfleet.access.sessions import Sessions
from segfleet.access.tokens import HOME_TOKEN_ID, digest, id_of, new_token, same_digest, same_secret
from segfleet.errors import AccessError, QueueUnavailableError, SettingsError, UnauthorizedError, UnknownTokenError
from segfleet.queue.clock import Clock
from segfleet.queue.store import Store

USER_NAME = re.compile(r"[a-z][a-z0-9._-]{0,62}")
DEFAULT_LIFE_S = 90 * 86_400.0
MAX_TOKENS_LISTED = 1000
# Seconds between two writes of a token's last use: reading must not turn every request into a write.
LAST_USED_EVERY_S = 600.0
# Names that the queue's history uses for others than people.
_NOT_PEOPLE = re.compile(r"local|service|scheduler|dispatcher|operator|queue|ray|cluster|job-.*")
_NOBODY = digest("nobody")


class Access:
    """Users and tokens of one service; safe to share between threads.

    Args:
        store: The queue's database.
        clock: Seconds since the epoch.
        home_token: The token in the home folder; it stands for user `local` with role `admin`.

    Raises:
        SettingsError: the home's token is empty, which would open everything to everybody.
    """

    def __init__(self, store: Store, clock: Clock, home_token: str) -> None:
        if not home_token:
            raise SettingsError("the service's token is empty; remove the home folder's file 'token' and start again")
        self._store, self._clock, self._home_token = store, clock, home_token
        self.sessions = Sessions(store, clock, self.holder)

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock()

    def identify(self, token: str) -> Identity:
        """The person behind a bearer token.

        Raises:
            UnauthorizedError: no token, an unknown, expired or revoked one.
            QueueUnavailableError: the database cannot be asked.
        """
        if same_secret(token, self._home_token):
            return Identity(LOCAL_USER, Role.ADMIN, frozenset(), HOME_TOKEN_ID)
        token_id = id_of(token)
        if token_id is None:
            raise UnauthorizedError(
                "send a token as 'Authorization: Bearer': the home folder's file 'token', or one that an admin made "
                "with 'segfleet token create'"
            )
        return self.holder(token_id, digest(token))

    def holder(self, token_id: str, secret_hash: str) -> Identity:
        """The person behind a token that is known by its id and digest.

        Raises:
            UnauthorizedError: an unknown, expired or revoked one.
            QueueUnavailableError: the database cannot be asked.
        """
        if token_id == HOME_TOKEN_ID and same_digest(secret_hash, digest(self._home_token)):
            return Identity(LOCAL_USER, Role.ADMIN, frozenset(), HOME_TOKEN_ID)
        with self._store.read() as tx:
            row = tx.access.token(token_id)
            user = None if row is None else tx.access.user(row.user_name)
        if not same_digest(secret_hash, _NOBODY if row is None else row.secret_hash) or row is None or user is None:
            raise UnauthorizedError("this token is not known here; ask an admin for a new one")
        now = self._clock()
        # Whoever shows the whole token may know what has become of it.
        if row.revoked_at is not None:
            raise UnauthorizedError(f"token {token_id} was revoked; ask an admin for a new one")
        if row.expires_at is not None and now >= row.expires_at:
            raise UnauthorizedError(f"token {token_id} has expired; ask an admin for a new one")
        if row.last_used_at is None or now - row.last_used_at >= LAST_USED_EVERY_S:
            # A database that cannot be written to just now is no reason to refuse a reader.
            with contextlib.suppress(QueueUnavailableError), self._store.write() as tx:
                tx.access.change_token(token_id, {"last_used_at": now})
        return Identity(user.name, user.role, user.projects, token_id)

    def create_token(
        self, name: str, role: Role | None, projects: Sequence[str] | None, life_s: float | None, made_by: str
    ) -> tuple[dict[str, Any], str]:
        """Make a token for a user, who is made too if there is none of that name.

        Args:
            name: The user.
            role: The user's role from now on; None keeps it, and is `user` for a new one.
            projects: The user's projects from now on; None keeps them, and is `default` for a new user.
            life_s: Seconds until it expires; None: never.
            made_by: Who asks.

        Returns:
            The token as `tokens` lists it, and its text, which is not stored anywhere.

        Raises:
            AccessError: the name cannot be one.
        """
        if not USER_NAME.fullmatch(name) or _NOT_PEOPLE.fullmatch(name):
            raise AccessError(
                f"{name!r} cannot name a user; use 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter, "
                "and none of the service's own names"
            )
        token_id, text = new_token()
        now = self._clock()
        values = {
            "id": token_id,
            "user_name": name,
            "secret_hash": digest(text),
            "created_at": now,
            "expires_at": None if life_s is None else now + life_s,
            "made_by": made_by,
        }
        with self._store.write() as tx:
            known = tx.access.user(name) or User(name, Role.USER, frozenset({DEFAULT_PROJECT}))
            wanted = User(name, role or known.role, known.projects if projects is None else frozenset(projects))
            # Roles and projects have no history but this one.
            projects_now = ",".join(sorted(wanted.projects))
            audit.name_subject(f"user {name}, token {token_id}, role {wanted.role}, projects {projects_now}")
            tx.access.put_user(wanted, now)
            tx.access.insert_token(values)
            row = tx.access.token(token_id)
        return _shown(row, wanted, now), text

    def tokens(self) -> list[dict[str, Any]]:
        """The newest tokens of all users, without anything that opens the service."""
        with self._store.read() as tx:
            rows = tx.access.tokens(MAX_TOKENS_LISTED)
            users = tx.access.users_named({row.user_name for row in rows})
        now = self._clock()
        return [_shown(row, users[row.user_name], now) for row in rows]

    def revoke(self, token_id: str) -> dict[str, Any]:
        """End a token at once; asked again, it says the same.

        Args:
            token_id: Its public id, or the whole token.

        Raises:
            UnknownTokenError: there is none of that id.
        """
        token_id, now = id_of(token_id) or token_id, self._clock()
        with self._store.write() as tx:
            row = tx.access.token(token_id)
            if row is None:
                raise UnknownTokenError(token_id)
            if row.revoked_at is None:
                tx.access.change_token(token_id, {"revoked_at": now})
                row = tx.access.token(token_id)
            assert row is not None
            user = tx.access.user(row.user_name)
        assert user is not None
        return _shown(row, user, now)

    def record(self, entry: audit.Entry, outcome: str) -> None:
        """Store the entry of a request that stored none with a change of its own."""
        with self._store.write() as tx:
            tx.access.add_audit(entry.row(outcome))

    def audit(self, before: int | None, limit: int) -> list[dict[str, Any]]:
        """Entries of the audit log, the newest first.

        Args:
            before: Only entries with a lower number; None: from the newest on.
            limit: Most entries.
        """
        with self._store.read() as tx:
            return [dict(row._mapping) for row in tx.access.audit(before, limit)]


def _shown(row: Any, user: User, now: float) -> dict[str, Any]:
    is_expired = row.expires_at is not None and now >= row.expires_at
    state = "revoked" if row.revoked_at is not None else "expired" if is_expired else "valid"
    dates = {name: getattr(row, name) for name in ("created_at", "expires_at", "last_used_at", "revoked_at")}
    person = {"user": user.name, "role": str(user.role), "projects": sorted(user.projects)}
    return {"id": row.id, **person, "state": state, **dates, "made_by": row.made_by}
