"""The client's verbs of admins and operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from segfleet.connection import Connection, Document, as_document, path_of


class _Connected(Protocol):
    _connection: Connection


class AccessCalls:
    """Rules, tokens and the audit log; `segfleet.client.Client` brings the connection."""

    def policies(self: _Connected) -> list[Document]:
        """The operator's rules: {"scope": cluster, project or user, "name", "rules"}."""
        return [as_document(policy) for policy in as_document(self._connection.get("/policies")).get("policies", [])]

    def set_policy(self: _Connected, scope: str, name: str, rules: Mapping[str, Any]) -> Document:
        """Replace all rules of the cluster, a project or a user; empty rules remove them.

        Raises:
            SpecError: unknown scope or rule, or a value out of range.
        """
        return as_document(self._connection.put(path_of("policies", scope, name), {"rules": dict(rules)}))

    def create_token(
        self: _Connected,
        user: str,
        *,
        role: str | None = None,
        projects: Sequence[str] | None = None,
        expires: str = "90d",
    ) -> Document:
        """Make a token for a user, who is made too if there is none of that name; for admins.

        Args:
            user: Name.
            role: The user's from now on: viewer, user, operator or admin; None keeps it (new: user).
            projects: Where the user may submit from now on; None keeps them (new: default).
            expires: A duration such as 12h or 90d, or never.

        Returns:
            The token's document; "token" in it is the secret, told this once.

        Raises:
            AccessError: the caller is no admin, or the name cannot be one.
        """
        body = {
            "user": user,
            "role": None if role is None else str(role),
            "projects": None if projects is None else list(projects),
            "expires": expires,
        }
        return as_document(self._connection.post("/tokens", body, repeatable=False))

    def tokens(self: _Connected) -> list[Document]:
        """The newest 1000 tokens of all users, without what is secret in them; for admins.

        Raises:
            AccessError: the caller is no admin.
        """
        return [as_document(token) for token in as_document(self._connection.get("/tokens")).get("tokens", [])]

    def revoke_token(self: _Connected, token_id: str) -> Document:
        """End a token at once; for admins.

        Raises:
            AccessError: the caller is no admin.
            UnknownTokenError: no such token.
        """
        return as_document(self._connection.post(path_of("tokens", token_id, "revoke"), {}))

    def audit(self: _Connected, *, before: int | None = None, limit: int = 100) -> Document:
        """A page of the audit log, the newest first; for operators.

        Args:
            before: Only entries with a lower `seq`: the `next` of the page before.
            limit: 1 to 1000.

        Returns:
            {"entries": [{"seq", "at", "who", "token_id", "address", "action", "subject", "outcome"}], "next"}.

        Raises:
            AccessError: the caller is no operator.
        """
        return as_document(self._connection.get("/audit", before=before, limit=limit))
