"""The attempt's talk with the service: claim, heartbeat, checkpoint pointer, registration, the end.

Every call after the claim carries the attempt's token, so a process that has lost its job is told so (it is *fenced*)
and stops. Calls wait out a service that is away: it may be killed and started again while jobs go on.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from segfleet.errors import AttemptFencedError, LaunchError, SegfleetError, ServiceError
from segfleet_jobs.ground import Machine
from segfleet_jobs.service_call import call

HEARTBEAT_S = 3.0
PATIENCE_S = 1800.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a process of an attempt needs to speak for it; what is secret stays out of every repr.

    Attributes:
        mlflow: Variables of the environment that let a process in at the MLflow server.
        group: Number of the group of workers that speaks, from 1; 0: the attempt's own process.
    """

    url: str
    attempt_id: str
    token: str = field(repr=False)
    mlflow: Mapping[str, str] = field(default_factory=dict, repr=False)
    group: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """What a driver gets for its one-time code.

    Attributes:
        storage: Folder of the job; the attempt writes below its own subfolder.
        workers: How many the attempt has; an elastic job may have had others in an earlier attempt.
        earlier: {"job_id", "result"} of the latest equal job that has succeeded, if it may be reused.
    """

    credentials: Credentials
    job_id: str
    spec: dict[str, Any]
    storage: str
    workers: int
    earlier: dict[str, Any] | None = None


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
        answer = call(http, "POST", f"/api/v1/attempts/{attempt_id}/claim", attempt_id, body, patience_s=120.0)
    credentials = Credentials(url, attempt_id, str(answer["token"]), dict(answer["mlflow"]))
    job_id, spec, workers = str(answer["job_id"]), dict(answer["spec"]), int(answer["workers"])
    return Grant(credentials, job_id, spec, str(answer["storage"]), workers, answer["earlier"])


class AttemptClient:
    """The calls of one attempt; safe to use from several threads."""

    def __init__(self, credentials: Credentials) -> None:
        self.attempt_id = credentials.attempt_id
        # Every process of an attempt has a client before it speaks to MLflow, which reads them at each call. They come
        # this way because Ray shows the environment that it starts a job with.
        os.environ.update(credentials.mlflow)
        # Ray Train's workers print everybody's INFO, and a line for each heartbeat would bury what the job says.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._http = httpx.Client(
            base_url=f"{credentials.url}/api/v1/attempts/{credentials.attempt_id}/",
            headers={"Authorization": f"Bearer {credentials.token}"},
            timeout=30.0,
        )

    def begin_group(self, scope: str) -> tuple[int, str]:
        """Take over from the earlier groups of workers of a scope: a trial's, or the attempt's own.

        Returns:
            The group's number, from 1, and the token of all its workers.
        """
        answer = self.tell("group", {"scope": scope})
        return int(answer["number"]), str(answer["token"])

    def leave(self, machines: Iterable[Machine]) -> None:
        """Machines below the attempt are about to go: it will be asked to yield.

        Raises:
            SegfleetError: the service refuses it, or is away (one try only).
        """
        nodes = [{"node": one.node, "address": one.address, "leaves_at": one.leaves_at or None} for one in machines]
        self.tell("leave", {"nodes": nodes}, patience_s=0.0)

    def heartbeat(self, progress: Mapping[str, Any] | None) -> str:
        """Say that the attempt lives; the answer is `continue`, `preempt` or `cancel`.

        Raises:
            AttemptFencedError: this attempt must stop.
            ServiceError: the service is away (one try only; the next beat comes soon).
        """
        return str(self.tell("heartbeat", {"progress": progress}, patience_s=0.0)["command"])

    def latest_checkpoint(self) -> dict[str, Any] | None:
        """The job's checkpoint pointer, or None if it has none yet."""
        found = self.ask("checkpoint").get("checkpoint")
        return dict(found) if found else None

    def set_checkpoint(self, record: Mapping[str, Any]) -> None:
        """Move the job's checkpoint pointer to a checkpoint that is durable on disk."""
        self.tell("checkpoint", {"checkpoint": dict(record)})

    def register(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Have the service make the job's one version in the model registry."""
        return self.tell("register", dict(body))

    def evaluated(self, version: str, metrics: Mapping[str, float]) -> None:
        """Have the service write an evaluation's figures to the version of the spec's model that was evaluated."""
        self.tell("evaluated", {"version": version, "metrics": dict(metrics)})

    def complete(self, result: Mapping[str, Any]) -> None:
        """End the attempt and the job with a result."""
        self.tell("complete", {"result": dict(result)})

    def fail(self, failure_class: str, message: str) -> None:
        """End the attempt with a classified failure; any process of the attempt may call it."""
        self.tell("fail", {"failure": {"class": failure_class, "message": message[:4000]}})

    def fault(self, kind: str, message: str, *, rank: int | None, phase: str | None, step: int | None) -> None:
        """Have the job's history tell what went wrong with a worker; if the service is away, only the log does."""
        body = {"kind": kind, "rank": rank, "phase": phase, "step": step, "message": message[:2000]}
        try:
            self.tell("fault", body, patience_s=10.0)
        except SegfleetError as error:
            print(f"segfleet: the service was not told: {message}: {error}", flush=True)

    def damaged(self, message: str) -> None:
        """Have the job's history tell that a damaged checkpoint was passed over."""
        self.fault("damage", message, rank=None, phase="load", step=None)

    def yield_(self) -> None:
        """End the attempt as it was asked to; the job goes on later from its checkpoint."""
        self.tell("yield", {})

    def trials(self) -> list[dict[str, Any]]:
        """All trials of the attempt's search, by number, as the service has stored them."""
        return [dict(trial) for trial in self.ask("trials")["trials"]]

    def add_trial(self, number: int, kind: str, params: Mapping[str, Any], num_steps: int) -> dict[str, Any]:
        """Note a trial (kind `trial` or `final`) before it runs; the same again changes nothing.

        Raises:
            ServiceError: the number belongs to other parameters.
        """
        return self.tell("trials", {"number": number, "kind": kind, "params": dict(params), "num_steps": num_steps})

    def trial(self, number: int) -> TrialClient:
        """The calls about one trial."""
        return TrialClient(self, number)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(self, path: str) -> dict[str, Any]:
        """GET a path below the attempt's own."""
        return call(self._http, "GET", path, self.attempt_id, None, PATIENCE_S)

    def tell(self, path: str, body: dict[str, Any], patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """POST to a path below the attempt's own."""
        return call(self._http, "POST", path, self.attempt_id, body, patience_s)


class TrialClient:
    """What a search's attempt tells of one trial; every call may be made again. Answers are the trial's document."""

    def __init__(self, attempt: AttemptClient, number: int) -> None:
        self._attempt, self.number = attempt, number

    @property
    def attempt_id(self) -> str:
        """Of the attempt that runs the trial."""
        return self._attempt.attempt_id

    def state(
        self, state: str, *, why: str = "", mlflow_run: str | None = None, worker_seconds: float | None = None
    ) -> dict[str, Any]:
        """Say where the trial is: running, succeeded, stopped or failed.

        Args:
            state: Running again takes the trial over from an earlier attempt.
            why: Why it was stopped or has failed.
            mlflow_run: Its run; None keeps what is known.
            worker_seconds: Over all its attempts so far; None keeps what is known.

        Raises:
            ServiceError: the trial cannot go there from where it is.
        """
        body = {"state": state, "why": why[:4000], "mlflow_run": mlflow_run, "worker_seconds": worker_seconds}
        return self._post("state", body)

    def report(
        self, validation: int, step: int, value: float | None, miou: float | None, seconds: float
    ) -> dict[str, Any]:
        """Append what the trial's `validation`-th validation, from 1, has shown; a known one stays as it was."""
        body = {"validation": validation, "step": step, "value": value, "miou": miou, "seconds": seconds}
        return self._post("report", body)

    def latest_checkpoint(self) -> dict[str, Any] | None:
        """The trial's checkpoint pointer, or None if it has none yet."""
        found = self._attempt.ask(f"trials/{self.number}/checkpoint").get("checkpoint")
        return dict(found) if found else None

    def set_checkpoint(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Move the trial's checkpoint pointer to a checkpoint that is durable on disk."""
        return self._post("checkpoint", {"checkpoint": dict(record)})

    def damaged(self, message: str) -> None:
        """Have the search's history tell that a damaged checkpoint of the trial was passed over."""
        self._attempt.damaged(f"trial {self.number}: {message}")

    def measured(
        self,
        *,
        parameters: int | None = None,
        images_per_s: float | None = None,
        peak_memory_mib: float | None = None,
    ) -> dict[str, Any]:
        """Note size and speed of the trial's model; None keeps what is known."""
        body = {"parameters": parameters, "images_per_s": images_per_s, "peak_memory_mib": peak_memory_mib}
        return self._post("measured", body)

    def _post(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._attempt.tell(f"trials/{self.number}/{verb}", body)


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
