"""How errors travel over HTTP: one document for the service to write and the clients to read back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from segfleet.errors import Problem, SegfleetError, ServiceError, SpecError

API = "/api/v1"
PROBLEM_JSON = "application/problem+json"
NEXT_OFFSET = "X-Next-Offset"
LOG_END = "X-Log-End"
REQUEST_ID = "X-Request-Id"
DIGEST = "Repr-Digest"
IDEMPOTENCY_KEY = r"^[\x21-\x7e]{1,200}$"


def error_document(error: SegfleetError) -> dict[str, Any]:
    """The error as plain data: its code, its message for people, and what it is rebuilt from."""
    document: dict[str, Any] = {"code": error.code, "message": str(error)}
    if isinstance(error, SpecError):
        return {**document, "source": error.source, "problems": error.as_json()}
    return {**document, "args": [str(argument) for argument in error.args]}


def error_from(document: Any, status: int) -> SegfleetError:
    """Rebuild the error that `error_document` described; anything unknown becomes a ServiceError.

    Args:
        document: The decoded body of a refusal, trusted in nothing.
        status: HTTP status, for a refusal without a readable body.
    """
    if not isinstance(document, dict) or not isinstance(document.get("message"), str):
        return ServiceError(f"the service answered {status} without saying why; look into its log")
    kind = _classes().get(str(document.get("code")), ServiceError)
    try:
        if kind is SpecError:
            problems = [Problem(**{str(key): str(text) for key, text in item.items()}) for item in document["problems"]]
            return SpecError(problems, str(document.get("source", "spec")))
        error = kind(*(str(argument) for argument in document.get("args", ())))
    except (TypeError, KeyError, AttributeError):
        return ServiceError(document["message"])
    return error if str(error) == document["message"] else ServiceError(document["message"])


def _classes() -> dict[str, type[SegfleetError]]:
    return {kind.code: kind for kind in _tree(SegfleetError)}


def _tree(root: type[SegfleetError]) -> Iterator[type[SegfleetError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)
