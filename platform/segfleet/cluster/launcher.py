"""The door to Ray: its Jobs REST API, spoken with httpx so that the service needs no Ray of its own.

Ray keeps jobs in memory only, and forgets them all when its head restarts: `session` tells one head's life from the
next. Its word on a job is a hint, never proof; the queue believes heartbeats and completion calls.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx

from segfleet.cluster.needs import Needs
from segfleet.errors import LaunchError
from segfleet.queue.machines import Machine
from segfleet.queue.model import clean_text

# The one table from a job's kind to the module that runs it.
ENTRY_MODULES = {
    "train": "segfleet_jobs.train",
    "evaluate": "segfleet_jobs.evaluate",
    "prepare": "segfleet_jobs.prepare",
    "search": "segfleet_jobs.search",
}
# The first submission to a new head has to wait for the head's own agent.
_TIMEOUT = httpx.Timeout(10.0, connect=2.0)
_MAX_ROWS = 10_000
# The log itself is copied and looked at; in a sentence for people its end is noise.
_LOG_FOLLOWS = ", last available logs"


class ClusterUnreachableError(LaunchError):
    """Ray does not answer, or not to us; nothing can be known of any job until it does."""

    code = "cluster_unreachable"


class SubmissionRefusedError(LaunchError):
    """Ray is there and says that this submission is wrong; sending it again would not help."""

    code = "submission_refused"


class RayState(StrEnum):
    """Ray's own states of a job."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class RayJobStatus:
    """What Ray says of a submission.

    Attributes:
        message: Ray's explanation, without the log's last lines that it brings along after a failure.
        is_held: The cluster has it but keeps it from running, or took it off its nodes again, as Kueue does.
    """

    state: RayState
    message: str = ""
    is_held: bool = False

    @property
    def is_terminal(self) -> bool:
        """Whether Ray considers the job over."""
        return self.state in (RayState.STOPPED, RayState.SUCCEEDED, RayState.FAILED)


def entrypoint(kind: str, python: str = sys.executable) -> str:
    """The command Ray runs in a shell: a constant for each kind of job, holding nothing that a user wrote.

    Args:
        kind: Kind of job.
        python: Interpreter on the cluster's nodes.
    """
    return f"{shlex.quote(python)} -P -m {ENTRY_MODULES[kind]}"


class Launcher:
    """Ray's Jobs API at one address.

    Args:
        address: Base URL of the dashboard, such as http://127.0.0.1:8265.
        token: Ray's cluster token; None only for a cluster without authentication.
        transport: Replaces the network, for tests.
    """

    def __init__(self, address: str, token: str | None, transport: httpx.BaseTransport | None = None) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        # Proxy settings of the environment are not meant for the cluster's private address.
        self._http = httpx.Client(
            base_url=address, headers=headers, timeout=_TIMEOUT, transport=transport, trust_env=False
        )
        self._is_token_due = token is not None
        self._closed_session = ""

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(
        self,
        submission_id: str,
        command: str,
        env: Mapping[str, str],
        metadata: Mapping[str, str],
        needs: Needs | None = None,  # noqa: ARG002 - the driver itself asks Ray for its workers
    ) -> None:
        """Run a command under an id of our choice; an id that Ray knows already is accepted as done.

        Args:
            submission_id: The attempt's id.
            command: From `entrypoint`.
            env: Environment of the driver and its workers. Ray shows it to everyone who may ask it.
            metadata: Shown by Ray beside the job.
            needs: What it takes; the cluster is there already.

        Raises:
            SubmissionRefusedError: Ray refuses this submission for good.
            LaunchError: Ray cannot be reached, or failed; the submission may have been taken or not.
        """
        body = {
            "entrypoint": command,
            "submission_id": submission_id,
            "metadata": dict(metadata),
            "runtime_env": {"env_vars": dict(env)},
        }
        answer = self._ask("POST", "/api/jobs/", json=body)
        # Ray answers a known id with 500 and a traceback around the agent's 400.
        if answer.is_success or f"submission_id {submission_id} already exists" in answer.text:
            return
        if answer.status_code == httpx.codes.BAD_REQUEST:
            raise SubmissionRefusedError(f"Ray refuses {submission_id}: {_last_line(answer.text)}")
        raise _failed(answer)

    def status(self, submission_id: str) -> RayJobStatus | None:
        """What Ray says of a submission; None: this head has never heard of it.

        Raises:
            LaunchError: Ray failed, or cannot be reached (then ClusterUnreachableError).
        """
        answer = self._ask("GET", f"/api/jobs/{submission_id}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        document = self._document(answer)
        try:
            message = str(document.get("message") or "").partition(_LOG_FOLLOWS)[0]
            return RayJobStatus(RayState(document["status"]), clean_text(message))
        except (KeyError, ValueError) as error:
            raise LaunchError(f"Ray at {self._http.base_url} describes {submission_id} in an unknown way") from error

    def stop(self, submission_id: str) -> None:
        """Ask Ray to stop a job: SIGTERM, then SIGKILL after the head's RAY_JOB_STOP_WAIT_TIME_S.

        Stopping a job that is over, or that Ray does not know, does nothing.

        Raises:
            LaunchError: Ray failed, or cannot be reached (then ClusterUnreachableError).
        """
        answer = self._ask("POST", f"/api/jobs/{submission_id}/stop")
        if answer.status_code != httpx.codes.NOT_FOUND:
            self._document(answer)

    def logs(self, submission_id: str) -> str:
        """All that the job's driver has printed so far; empty if Ray does not know the job.

        Raises:
            LaunchError: Ray failed, or cannot be reached (then ClusterUnreachableError).
        """
        answer = self._ask("GET", f"/api/jobs/{submission_id}/logs")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return ""
        return str(self._document(answer).get("logs") or "")

    def session(self) -> str:
        """Name of the head's life; another name means that Ray has forgotten every job.

        A head that answers without a token, although there is one for it, counts as not reachable.

        Raises:
            LaunchError: Ray failed, or cannot be reached (then ClusterUnreachableError).
        """
        name = str(self._document(self._ask("GET", "/api/version")).get("session_name", ""))
        if self._is_token_due and name != self._closed_session:
            self._require_closed()
            self._closed_session = name
        return name

    def machines(self) -> tuple[Machine, ...]:
        """Each node that is alive, with what its placement groups have reserved of it.

        Ray shows nodes that drain as before.

        Raises:
            LaunchError: Ray failed, or cannot be reached (then ClusterUnreachableError).
        """
        nodes = self._table("nodes")
        try:
            # Only people want to know what is in use: that Ray does not tell it stops no job.
            reserved = _reserved(self._table("placement_groups"))
        except LaunchError:
            reserved = None
        try:
            return tuple(_machine(node, reserved) for node in nodes if node["state"] == "ALIVE")
        except (KeyError, TypeError) as error:
            raise LaunchError(f"Ray at {self._http.base_url} describes its nodes in an unknown way") from error

    def _table(self, name: str) -> list[dict[str, Any]]:
        document = self._document(self._ask("GET", f"/api/v0/{name}", params={"detail": "1", "limit": _MAX_ROWS}))
        try:
            return list(document["data"]["result"]["result"])
        except (KeyError, TypeError) as error:
            raise LaunchError(f"Ray at {self._http.base_url} describes its {name} in an unknown way") from error

    def _require_closed(self) -> None:
        """Refuse a head that asks nobody for a token: whoever reaches it runs code there."""
        try:
            request = self._http.build_request("GET", "/api/jobs/")
            del request.headers["Authorization"]
            answer = self._http.send(request)
        except httpx.HTTPError as error:
            raise ClusterUnreachableError(f"Ray at {self._http.base_url} cannot be reached") from error
        if answer.status_code not in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise ClusterUnreachableError(
                f"Ray at {self._http.base_url} does not refuse who has no token (HTTP {answer.status_code}); "
                "start Ray with RAY_AUTH_MODE=token"
            )

    def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise ClusterUnreachableError(
                f"Ray at {self._http.base_url} cannot be reached ({type(error).__name__}); is the cluster up?"
            ) from error
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise ClusterUnreachableError(
                f"Ray at {self._http.base_url} refuses the service's token (HTTP {answer.status_code}); "
                "start the service with the cluster's token"
            )
        return answer

    def _document(self, answer: httpx.Response) -> dict[str, Any]:
        if not answer.is_success:
            raise _failed(answer)
        try:
            document = answer.json()
        except ValueError as error:
            raise LaunchError(f"{answer.url} does not answer like Ray's Jobs API; check the address") from error
        if not isinstance(document, dict):
            raise LaunchError(f"{answer.url} does not answer like Ray's Jobs API; check the address")
        return document


def _reserved(groups: Iterable[Mapping[str, Any]]) -> dict[str, Counter[str]]:
    """How much of each resource is reserved on each node."""
    reserved: dict[str, Counter[str]] = {}
    for group in groups:
        if group.get("state") != "CREATED":
            continue
        for bundle in group.get("bundles") or ():
            reserved.setdefault(str(bundle.get("node_id")), Counter()).update(bundle.get("unit_resources") or {})
    return reserved


def _machine(node: Mapping[str, Any], reserved: Mapping[str, Counter[str]] | None) -> Machine:
    name, total = str(node["node_id"]), node["resources_total"]
    used = None if reserved is None else reserved.get(name, Counter())
    return Machine(
        name,
        str(node.get("node_ip") or name),
        int(total.get("CPU", 0)),
        int(total.get("GPU", 0)),
        None if used is None else math.ceil(used["CPU"]),
        None if used is None else math.ceil(used["GPU"]),
    )


def _failed(answer: httpx.Response) -> LaunchError:
    return LaunchError(f"Ray answers {answer.url.path} with HTTP {answer.status_code}: {_last_line(answer.text)}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in clean_text(text).splitlines() if line.strip(" .")]
    return lines[-1][:300] if lines else "no explanation"
