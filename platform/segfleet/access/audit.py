"""The entry that a request leaves in the audit log.

The entry of the request being served is kept in a context variable. The first transaction that the request commits
stores it along with the change itself; a request that changed nothing, or was refused, stores it at its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from segfleet.access.tokens import ANY_TOKEN
from segfleet.queue.model import clean_text

DONE = "done"


@dataclass(slots=True)
class Entry:
    """Who asked for what.

    Attributes:
        at: Seconds since the epoch.
        who: The user's name.
        token_id: Public id of the token.
        address: Where the request came from.
        action: Method and path of the route.
        subject: What it is about, such as a job's id.
        is_stored: Whether it is in the log.
    """

    at: float
    who: str
    token_id: str
    address: str
    action: str
    subject: str
    is_stored: bool = False

    def row(self, outcome: str) -> dict[str, Any]:
        """The values that are stored; a caller chooses the path, so not more than the columns hold."""
        return {
            "at": self.at,
            "who": self.who,
            "token_id": self.token_id,
            "address": clean_text(self.address)[:64],
            "action": _shown(self.action, 128),
            "subject": _shown(self.subject, 256),
            "outcome": outcome,
        }


def _shown(text: str, most: int) -> str:
    """What may stay in the log for ever: a token that somebody put into a path is none of it."""
    return ANY_TOKEN.sub("[hidden]", clean_text(text))[:most]


_current: ContextVar[Entry | None] = ContextVar("segfleet_audit_entry", default=None)


def pending() -> Entry | None:
    """The entry of the request being served, as long as it is not stored."""
    entry = _current.get()
    return None if entry is None or entry.is_stored else entry


def name_subject(subject: str) -> None:
    """Say what the request turned out to be about, for the routes whose path does not tell."""
    if (entry := pending()) is not None:
        entry.subject = subject


@contextmanager
def recording(entry: Entry) -> Iterator[None]:
    """Let the transactions inside store the entry."""
    before = _current.set(entry)
    try:
        yield
    finally:
        _current.reset(before)
