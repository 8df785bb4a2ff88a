"""The attempt's talk with the service: claim, heartbeat, checkpoint pointer, registration, the end.

Every call after the claim carries the attempt's token, so a process that has lost its job is told so (it is *fenced*)
and stops. Calls wait out a service that is away: it may be killed and started again while jobs go on.
"""

from __future__ import annotations

import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from segfleet.errors import AttemptFencedError, LaunchError, ServiceError

HEARTBEAT_S = 3.0
PATIENCE_S = 1800.0
_FENCED = (httpx.codes.CONFLICT, httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a process of an attempt needs to speak for it; the token stays out of every repr."""

    url: str
    attempt_id: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a driver gets for its one-time code."""

    credentials: Credentials
    job_id: str
    spec: dict[str, Any]
    storage: str


def claim(environment: Mapping[str, str]) -> Grant:
    """Trade the one-time code in the environment for the attempt's token.

    Raises:
        LaunchError: the variables are missing; a job is started by the service, not by hand.
        AttemptFencedError: the code is used up or the attempt is over.
        ServiceError: the service stayed away.
    """
    try:
        url, attempt_id, code = (environment[f"SEGFLEET_{name}"] for name in ("URL", "ATTEMPT", "CODE"))
    except KeyError as error:
        raise LaunchError(
            f"{error.args[0]} is not set; jobs are started by the service: use 'segfleet submit'"
        ) from error
    body = {"code": code, "instance": uuid.uuid4().hex}
    with httpx.Client(base_url=url, timeout=30.0) as http:
        answer = _call(http, "POST", f"/api/v1/attempts/{attempt_id}/claim", attempt_id, body, patience_s=120.0)
    credentials = Credentials(url, attempt_id, str(answer["token"]))
    return Grant(credentials, str(answer["job_id"]), dict(answer["spec"]), str(answer["storage"]))


class AttemptClient:
    """The calls of one attempt; safe to use from several threads."""

    def __init__(self, credentials: Credentials) -> None:
        self.attempt_id = credentials.attempt_id
        self._http = httpx.Client(
            base_url=f"{credentials.url}/api/v1/attempts/{credentials.attempt_id}/",
            headers={"Authorization": f"Bearer {credentials.token}"},
            timeout=30.0,
        )

    def heartbeat(self, progress: Mapping[str, Any] | None) -> str:
        """Say that the attempt lives; the answer is `continue`, `preempt` or `cancel`.

        Raises:
            AttemptFencedError: this attempt must stop.
            ServiceError: the service is away (one try only; the next beat comes soon).
        """
        return str(self._post("heartbeat", {"progress": progress}, patience_s=0.0)["command"])

    def latest_checkpoint(self) -> dict[str, Any] | None:
        """The job's checkpoint pointer, or None if it has none yet."""
        answer = _call(self._http, "GET", "checkpoint", self.attempt_id, None, PATIENCE_S)
        found = answer.get("checkpoint")
        return dict(found) if found else None

    def set_checkpoint(self, record: Mapping[str, Any]) -> None:
        """Move the job's checkpoint pointer to a checkpoint that is durable on disk."""
        self._post("checkpoint", {"checkpoint": dict(record)})

    def register(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Have the service make the job's one version in the model registry."""
        return self._post("register", dict(body))

    def evaluated(self, version: str, metrics: Mapping[str, float]) -> None:
        """Have the service write an evaluation's figures to the version of the spec's model that was evaluated."""
        self._post("evaluated", {"version": version, "metrics": dict(metrics)})

    def complete(self, result: Mapping[str, Any]) -> None:
        """End the attempt and the job with a result."""
        self._post("complete", {"result": dict(result)})

    def fail(self, failure_class: str, message: str) -> None:
        """End the attempt with a classified failure; any process of the attempt may call it."""
        self._post("fail", {"failure": {"class": failure_class, "message": message[:4000]}})

    def yield_(self) -> None:
        """End the attempt as it was asked to; the job goes on later from its checkpoint."""
        self._post("yield", {})

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _post(self, verb: str, body: dict[str, Any], patience_s: float = PATIENCE_S) -> dict[str, Any]:
        return _call(self._http, "POST", verb, self.attempt_id, body, patience_s)


@dataclass(frozen=True, slots=True)
class Yielded:
    """What an attempt ends with that was asked to stop: the step of its last checkpoint."""

    step: int


class Heart:
    """A thread that beats while the attempt works and calls `on_end` once when the attempt must stop.

    To be asked to make room is no such end: the attempt goes on to its next checkpoint, and the heart with it.
    """

    def __init__(self, client: AttemptClient, on_end: Callable[[str], None], interval_s: float = HEARTBEAT_S) -> None:
        self._client, self._on_end, self._interval_s = client, on_end, interval_s
        self._progress: dict[str, Any] | None = None
        self._stop, self._asked_to_yield = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heart", daemon=True)

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=35.0)

    def progress(self, progress: Mapping[str, Any]) -> None:
        """What the next beat tells; the latest wins."""
        self._progress = dict(progress)

    @property
    def must_yield(self) -> bool:
        """Whether the attempt was asked to write a checkpoint and end."""
        return self._asked_to_yield.is_set()

    def _beat(self) -> None:
        while not self._stop.is_set():
            progress, self._progress = self._progress, None
            try:
                command = self._client.heartbeat(progress)
            except AttemptFencedError as error:
                command = str(error)
            except ServiceError:
                # A silent service is no reason to stop: it may come back, and the lease is its own business.
                command = "continue"
                self._progress = self._progress or progress
            except Exception as error:
                # Whatever a beat trips over, the next one must come: the lease hangs on it.
                print(f"segfleet: a heartbeat failed: {error!r}", flush=True)
                command = "continue"
            if command == "preempt":
                self._asked_to_yield.set()
            elif command != "continue" and not self._stop.is_set():
                self._on_end(command)
                return
            self._stop.wait(self._interval_s)


def exit_process(reason: str) -> None:
    """End this process at once: nothing it holds may still be written."""
    print(f"segfleet: the attempt must stop ({reason})", flush=True)
    os._exit(3)


def _call(
    http: httpx.Client, method: str, path: str, attempt_id: str, body: dict[str, Any] | None, patience_s: float
) -> dict[str, Any]:
    """One call, repeated while the service is away or busy, for `patience_s` seconds."""
    give_up = time.monotonic() + patience_s
    pause_s = 0.2
    while True:
        try:
            response = http.request(method, path, json=_plain(body))
            if response.status_code in _FENCED:
                raise AttemptFencedError(attempt_id, _message(response))
            if response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                if response.is_success:
                    return dict(response.json())
                raise ServiceError(f"the service refused {path!r} of {attempt_id}: {_message(response)}")
            away = f"status {response.status_code}"
        except httpx.TransportError as error:
            away = str(error) or type(error).__name__
        if time.monotonic() >= give_up:
            raise ServiceError(f"the service did not answer {path!r} of {attempt_id}: {away}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 5.0)


def _plain(value: Any) -> Any:
    """The value without what JSON cannot say: a loss that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"
