"""The client's verbs of retention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from segfleet.connection import Connection, Document, as_document

# A plan looks at every file of every ended job.
_PATIENCE_S = 120.0


class _Connected(Protocol):
    _connection: Connection


class RetentionCalls:
    """What of ended jobs may go; `segfleet.client.Client` brings the connection."""

    def retention(self: _Connected) -> Document:
        """The rules as they hold."""
        return as_document(as_document(self._connection.get("/retention"))["rules"])

    def set_retention(self: _Connected, rules: Mapping[str, Any]) -> Document:
        """Replace the rules; for admins. Nothing is deleted by that alone.

        Raises:
            SpecError: unknown rule, or a value out of range.
        """
        return as_document(as_document(self._connection.put("/retention", {"rules": dict(rules)}))["rules"])

    def plan_retention(self: _Connected) -> Document:
        """What would go now: {"pieces": [{"job", "kind", "name", "bytes"}], "bytes"}; for operators."""
        return as_document(self._connection.get("/retention/plan", patience_s=_PATIENCE_S))

    def apply_retention(self: _Connected) -> Iterator[Document]:
        """Delete what may go; for admins. Yields what is gone after every few seconds, until all is.

        Yields:
            {"gone": pieces as in `plan_retention`, "bytes", "left": number of pieces}.
        """
        while True:
            answer = as_document(self._connection.post("/retention/apply", {}, patience_s=_PATIENCE_S))
            yield answer
            # What cannot go now, as a job that has come back to life, is not waited for.
            if not answer["left"] or not answer["gone"]:
                return
