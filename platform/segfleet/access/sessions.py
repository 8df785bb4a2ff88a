"""Sessions of the web page: what a browser holds instead of a token.

A session's id is 256 random bits, of which the database keeps the digest. It is worth as much as the token that opened
it, for as long as that token is: every look asks for the token anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
from collections.abc import Callable

from segfleet.access.roles import Identity
from segfleet.access.tokens import digest
from segfleet.errors import QueueUnavailableError, UnauthorizedError
from segfleet.queue.clock import Clock
from segfleet.queue.store import Store

# Seconds without any use.
LIFE_S = 12 * 3600.0
# Seconds between two writes: looking must not turn every request into a write.
_PROLONG_EVERY_S = 600.0


class Sessions:
    """The sessions of one database; safe to share between threads.

    Args:
        store: The queue's database.
        clock: Seconds since the epoch.
        holder: Tells who a token's id and digest stand for, or raises UnauthorizedError.
    """

    def __init__(self, store: Store, clock: Clock, holder: Callable[[str, str], Identity]) -> None:
        self._store, self._clock, self._holder = store, clock, holder

    def open(self, identity: Identity, token: str) -> str:
        """Begin a session of whoever has just shown a valid token; its id.

        Raises:
            QueueUnavailableError: the database cannot be written to.
        """
        session_id, now = secrets.token_urlsafe(32), self._clock()
        values = {
            "id_hash": digest(session_id),
            "token_id": identity.token_id,
            "secret_hash": digest(token),
            "created_at": now,
            "expires_at": now + LIFE_S,
        }
        with self._store.write() as tx:
            tx.sessions.remove_expired(now)
            tx.sessions.add(values)
        return session_id

    def holder_of(self, session_id: str) -> Identity:
        """The person behind a session.

        Raises:
            UnauthorizedError: there is no such session, it has expired, or its token is not valid any more.
            QueueUnavailableError: the database cannot be asked.
        """
        now, id_hash = self._clock(), digest(session_id)
        with self._store.read() as tx:
            row = tx.sessions.find(id_hash)
        if row is None or now >= row.expires_at:
            raise UnauthorizedError("the session is over; sign in again")
        identity = self._holder(row.token_id, row.secret_hash)
        if row.expires_at - now < LIFE_S - _PROLONG_EVERY_S:
            # A database that cannot be written to just now is no reason to send a reader away.
            with contextlib.suppress(QueueUnavailableError), self._store.write() as tx:
                tx.sessions.prolong(id_hash, now + LIFE_S)
        return identity

    def close(self, session_id: str) -> None:
        """End a session; one that is over already stays so."""
        with self._store.write() as tx:
            tx.sessions.remove(digest(session_id))


def form_key(session_id: str) -> str:
    """What each form of a session's pages carries, so that no other site can send one; tells nothing of the id."""
    return hmac.new(session_id.encode(), b"segfleet form", hashlib.sha256).hexdigest()
