"""The client's verbs of gates and promotions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from segfleet.connection import Connection, Document, as_document, path_of
from segfleet.errors import ModelError
from segfleet.spec.absolute import with_absolute_paths
from segfleet.spec.reference import split_reference

_OPEN = ("pending", "moving")


class _Connected(Protocol):
    _connection: Connection


class PromotionCalls:
    """Who may have an alias; `segfleet.client.Client` brings the connection."""

    def gates(self: _Connected, model: str) -> list[Document]:
        """The gates of a model: {"alias", "rules", "set_by", "set_at"}."""
        answer = as_document(self._connection.get(path_of("models", model, "gates")))
        return [as_document(gate) for gate in answer.get("gates", [])]

    def set_gate(self: _Connected, model: str, alias: str, rules: Mapping[str, Any]) -> Document:
        """Replace what a version must show to take over an alias; for operators.

        Args:
            model: Registered model.
            alias: Such as champion.
            rules: shards (a relative path is the caller's) and, where the defaults do not fit: split, eval, metric,
                margin, tolerance with faster, resources.

        Raises:
            SpecError: a rule is unknown or out of range.
            AccessError: the caller is no operator.
        """
        rules = dict(rules)
        if isinstance(rules.get("shards"), str):
            rules |= with_absolute_paths({"data": {"shards": rules["shards"]}})["data"]
        return as_document(self._connection.put(path_of("models", model, "gates", alias), {"rules": rules}))

    def remove_gate(self: _Connected, model: str, alias: str) -> None:
        """Take an alias' gate away; for operators.

        Raises:
            ModelError: it has none.
            AccessError: the caller is no operator.
        """
        self._connection.request("DELETE", path_of("models", model, "gates", alias), body={})

    def promote(self: _Connected, name_ref: str, alias: str, *, project: str | None = None) -> Document:
        """Let a version have an alias: at once if the alias has no gate, else when it has passed.

        Args:
            name_ref: NAME/VERSION or NAME@ALIAS.
            alias: That it is to have.
            project: Of the evaluations; None: `default`, or the caller's first.

        Returns:
            The promotion: {"id", "state": pending, moving, promoted, refused or stale, "why", "figures", ...}.

        Raises:
            ModelError: no such model or version.
        """
        name, ref = _version_of(name_ref)
        body = {"alias": alias, "version": ref, "project": project}
        return as_document(self._connection.post(path_of("models", name, "promotions"), body))

    def promotions(self: _Connected, model: str, *, limit: int | None = 100) -> list[Document]:
        """A model's promotions, the newest first: at most `limit`, or all."""
        return self._connection.pages(path_of("models", model, "promotions"), "promotions", limit)

    def watch_promotion(
        self: _Connected, model: str, promotion_id: str, *, poll_s: float = 1.0, patience_s: float = 120.0
    ) -> Iterator[Document]:
        """The promotion again and again, the last time when it is decided; outlives restarts of the service."""
        path = path_of("models", model, "promotions", promotion_id)
        while True:
            promotion = as_document(self._connection.get(path, patience_s=patience_s))
            yield promotion
            if promotion["state"] not in _OPEN:
                return
            time.sleep(poll_s)

    def delete_version(self: _Connected, name_ref: str) -> Document:
        """Take a version out of the registry; for operators.

        Returns:
            {"name", "version", "stays": what is left of it elsewhere}.

        Raises:
            ModelError: no such version.
            ModelRefusedError: an alias points to it, or a promotion or a job needs it.
            AccessError: the caller is no operator.
        """
        name, ref = _version_of(name_ref)
        return as_document(self._connection.request("DELETE", path_of("models", name, ref), body={}).json())


def _version_of(name_ref: str) -> tuple[str, str]:
    name, ref = split_reference(name_ref)
    if not name or not ref:
        raise ModelError(f"{name_ref!r} names no version; write NAME@ALIAS or NAME/VERSION")
    return name, ref
