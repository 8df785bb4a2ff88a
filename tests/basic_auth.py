"""A door with a password before an HTTP server on the loopback interface, as MLflow's basic-auth application has it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager

from relay import Answer, Request, relay

USER, PASSWORD = "segfleet", "correct-horse-battery"
LOGIN = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
_OPEN = ("/health", "/version")


@contextmanager
def behind_password(url: str) -> Iterator[tuple[str, list[str]]]:
    """(address of the door, paths that were asked for without the right password)."""
    expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    refused: list[str] = []

    def handle(request: Request, body: bytes) -> None:
        if request.path not in _OPEN and request.headers.get("Authorization") != expected:
            refused.append(request.path)
            request.answer(Answer(401, {"WWW-Authenticate": 'Basic realm="mlflow"'}, b"You are not authenticated."))
        else:
            request.answer(request.forward(body))

    with relay(url, handle) as door:
        yield door, refused
