"""SQL of the web page's sessions, inside one transaction of the queue's database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from segfleet.queue.tables import sessions


class SessionRows:
    """Reads and writes of sessions, which are known by the digests of their ids.

    Args:
        connection: With the transaction begun.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, values: dict[str, Any]) -> None:
        """Add a session."""
        self._connection.execute(insert(sessions).values(values))

    def find(self, id_hash: str) -> Row[Any] | None:
        """A session's row."""
        return self._connection.execute(select(sessions).where(sessions.c.id_hash == id_hash)).one_or_none()

    def prolong(self, id_hash: str, expires_at: float) -> None:
        """Let a session live until then."""
        self._connection.execute(update(sessions).where(sessions.c.id_hash == id_hash).values(expires_at=expires_at))

    def remove(self, id_hash: str) -> None:
        """End a session."""
        self._connection.execute(delete(sessions).where(sessions.c.id_hash == id_hash))

    def remove_expired(self, now: float) -> None:
        """Forget the sessions that have expired."""
        self._connection.execute(delete(sessions).where(sessions.c.expires_at <= now))
