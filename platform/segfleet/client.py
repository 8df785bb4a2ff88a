"""The service from Python: what the command line, the tests and a researcher's notebook use.

    from segfleet import Client

    client = Client()
    job = client.submit("camvid.yaml")
    client.wait(job["id"])
    client.pull("segmenter-camvid@candidate", "model")

Jobs, models and events are plain data, exactly as the service sent them (documented in its OpenAPI document).
"""

from __future__ import annotations

import codecs
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from segfleet.access.calls import AccessCalls
from segfleet.address import service_address
from segfleet.archive import unpack
from segfleet.connection import Connection, Document, as_document, path_of
from segfleet.errors import ModelError, ServiceError, SettingsError
from segfleet.promotion.calls import PromotionCalls
from segfleet.retention.calls import RetentionCalls
from segfleet.settings import default_home
from segfleet.spec.absolute import with_absolute_paths
from segfleet.spec.document import read_document
from segfleet.webhooks.calls import WebhookCalls
from segfleet.wire import DIGEST, IDEMPOTENCY_KEY, LOG_END, NEXT_OFFSET

FOLLOW_PATIENCE_S = 120.0
_TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
_MODEL_REF = re.compile(r"(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<version>[0-9]+))")


class Client(PromotionCalls, WebhookCalls, RetentionCalls, AccessCalls):
    """Talks to one service; usable as a context manager.

    Args:
        url: Base URL; None takes SEGFLEET_URL or what the home folder's service wrote.
        token: Bearer token; None takes SEGFLEET_TOKEN or the home folder's token file.
        patience_s: How long one call goes on trying while the service is being restarted, seconds.
        transport: Replaces the network, for tests.

    Raises:
        SettingsError: no address or token was given and none is found.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        patience_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if url is None or token is None:
            url, token = service_address(default_home(), url=url, token=token)
        self._connection = Connection(url, token, patience_s=patience_s, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the sockets back."""
        self._connection.close()

    @property
    def url(self) -> str:
        """Base URL of the service."""
        return self._connection.url

    def check(self, spec: Mapping[str, Any] | str | Path) -> Document:
        """Validate a spec and fill in its defaults; starts nothing.

        Args:
            spec: Plain data or the path of a YAML or JSON file. Relative paths in it are the caller's.

        Returns:
            {"spec": the resolved spec, "needs": {"workers", "cpus", "gpus"}, "forced": paths of the operator's values}.

        Raises:
            SpecError: with every problem found.
        """
        return as_document(self._connection.post("/check", {"spec": _readied(spec)}))

    def submit(self, spec: Mapping[str, Any] | str | Path, *, key: str | None = None) -> Document:
        """Put a job into the queue.

        A request whose answer is lost is sent again under the same key, so that there is one job and not two.

        Args:
            spec: As for `check`.
            key: Idempotency key, 1 to 200 visible ASCII characters; the same key with the same spec gives the same
                job. None makes a new one.

        Returns:
            The job, with "replayed": whether the key was known already.

        Raises:
            SettingsError: the key cannot be one.
            SpecError: the spec is wrong, its data is not there, or the cluster can never hold the job.
            IdempotencyConflictError: the key belongs to another spec.
        """
        if key is not None and not re.fullmatch(IDEMPOTENCY_KEY, key):
            raise SettingsError(f"key {key!r} cannot be one; use 1 to 200 visible ASCII characters without spaces")
        headers = {"Idempotency-Key": str(uuid.uuid4()) if key is None else key}
        return as_document(self._connection.post("/jobs", {"spec": _readied(spec)}, headers=headers))

    def jobs(
        self,
        *,
        state: str | Sequence[str] | None = None,
        project: str | None = None,
        owner: str | None = None,
        kind: str | None = None,
        name: str | None = None,
        limit: int | None = 100,
    ) -> list[Document]:
        """Jobs without their specs, the newest first: at most `limit`, or all; of any of the states, with that in
        their name."""
        wanted = {"state": state, "project": project, "owner": owner, "kind": kind, "name": name}
        return self._connection.pages("/jobs", "jobs", limit, wanted)

    def job(self, job_id: str) -> Document:
        """One job with its spec, its attempts and, while it is queued, why it waits and at which place.

        Raises:
            UnknownJobError: no such job.
        """
        return as_document(self._connection.get(path_of("jobs", job_id)))

    def events(self, job_id: str) -> list[Document]:
        """What happened to a job, the oldest first."""
        return self._connection.items(self._connection.get(path_of("jobs", job_id, "events")), "events")

    def trials(self, job_id: str) -> Document:
        """All trials of a search, and what they are compared by.

        Returns:
            {"trials": by number, "metric", "mode": max or min}; `segfleet.leaderboard` ranks them.

        Raises:
            QueueError: the job is no search.
        """
        return as_document(self._connection.get(path_of("jobs", job_id, "trials")))

    def watch(self, job_id: str, *, poll_s: float = 1.0) -> Iterator[Document]:
        """The job again and again, the last time in its terminal state; outlives restarts of the service."""
        while True:
            job = as_document(self._connection.get(path_of("jobs", job_id), patience_s=FOLLOW_PATIENCE_S))
            yield job
            if job["state"] in _TERMINAL:
                return
            time.sleep(poll_s)

    def wait(self, job_id: str, *, timeout_s: float | None = None, poll_s: float = 1.0) -> Document:
        """Wait until the job is in a terminal state, and return it.

        Raises:
            ServiceError: still going after `timeout_s`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for job in self.watch(job_id, poll_s=poll_s):
            if job["state"] in _TERMINAL:
                return job
            if deadline is not None and time.monotonic() + poll_s > deadline:
                raise ServiceError(f"job {job_id} is still {job['state']} after {timeout_s:g} s; it goes on")
        raise AssertionError("watch ends with a terminal state")

    def logs(self, job_id: str, *, follow: bool = False, poll_s: float = 1.0) -> Iterator[str]:
        """The logs of all attempts in order, piece by piece.

        Args:
            job_id: The job.
            follow: Go on until the job has ended and its log is complete.
            poll_s: Pause when nothing new has come, seconds.

        Yields:
            Text as the job wrote it; bytes that are no UTF-8 are replaced. May hold control characters.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        patience_s = FOLLOW_PATIENCE_S if follow else None
        offset = 0
        while True:
            answer = self._connection.request(
                "GET", path_of("jobs", job_id, "logs"), params={"offset": offset}, patience_s=patience_s
            )
            following, end = answer.headers.get(NEXT_OFFSET, ""), answer.headers.get(LOG_END)
            if not following.isdecimal():
                raise self._connection.stranger()
            if answer.content:
                yield decoder.decode(answer.content)
            offset = int(following)
            if end == "true" or not (follow or answer.content):
                yield decoder.decode(b"", final=True)
                return
            if not answer.content:
                time.sleep(poll_s)

    def cancel(self, job_id: str) -> Document:
        """Ask for the job's end; it is `cancelled` once nothing of it runs any more.

        Raises:
            IllegalTransitionError: it has ended already.
        """
        return as_document(self._connection.post(path_of("jobs", job_id, "cancel"), {}))

    def pause(self, job_id: str) -> Document:
        """Take a job out of the line; a running one writes a checkpoint first, and goes on from it after `resume`.

        Raises:
            IllegalTransitionError: it has ended already.
        """
        return as_document(self._connection.post(path_of("jobs", job_id, "pause"), {}))

    def resume(self, job_id: str) -> Document:
        """Put a paused job back into the line, at the place of its age.

        Raises:
            IllegalTransitionError: it is not paused.
        """
        return as_document(self._connection.post(path_of("jobs", job_id, "resume"), {}, repeatable=False))

    def set_priority(self, job_id: str, priority: int) -> Document:
        """Change a job's priority, 0 to 100.

        Raises:
            IllegalTransitionError: it has ended already.
        """
        return as_document(self._connection.post(path_of("jobs", job_id, "priority"), {"priority": priority}))

    def retry(self, job_id: str, *, from_start: bool = False) -> Document:
        """Queue a failed or cancelled job again, from its last checkpoint unless `from_start`.

        Raises:
            IllegalTransitionError: it has not failed or been cancelled.
        """
        body = {"from_start": from_start}
        return as_document(self._connection.post(path_of("jobs", job_id, "retry"), body, repeatable=False))

    def models(self) -> list[Document]:
        """Registered models: name, versions' number, aliases, newest version."""
        return self._connection.items(self._connection.get("/models"), "models")

    def model(self, name_ref: str) -> Document:
        """A registered model (NAME) with its versions, or one version of it (NAME@ALIAS, NAME/VERSION).

        Raises:
            ModelError: no such model, version or alias.
        """
        if "@" in name_ref or "/" in name_ref:
            return as_document(self._connection.get(_version_path(name_ref)))
        return as_document(self._connection.get(path_of("models", name_ref)))

    def register_model(
        self,
        name: str,
        *,
        run_id: str,
        model_uri: str,
        content_digest: str,
        alias: str | None = None,
        metrics: Mapping[str, float | None] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Document:
        """Make a version of a model that was logged to MLflow by somebody else than a job.

        Args:
            name: Registered model; made if there is none.
            run_id: MLflow run that logged it.
            model_uri: `models:/m-...`, as MLflow named it.
            content_digest: SHA-256, in hexadecimal, of all that the model consists of; the same content is the same
                version.
            alias: Moved to the version; None moves none.
            metrics: Stay with the version.
            tags: Stay with the version.

        Returns:
            {"name", "version", "alias"}.

        Raises:
            ModelError: MLflow has no such logged model.
            ModelRefusedError: the run is not the model's, or a tag uses a reserved prefix.
            ServiceError: a name or another field is malformed.
        """
        body = {
            "run_id": run_id,
            "model_uri": model_uri,
            "content_digest": content_digest,
            "alias": alias,
            "metrics": dict(metrics or {}),
            "tags": dict(tags or {}),
        }
        return as_document(self._connection.post(path_of("models", name, "versions"), body))

    def pull(self, name_ref: str, out: str | Path) -> Path:
        """Fetch the files of a model version into a new folder; an interrupted pull leaves no such folder.

        Args:
            name_ref: NAME@ALIAS or NAME/VERSION.
            out: The folder to make; must not exist.

        Returns:
            The folder.

        Raises:
            ModelError: no such version, or `out` exists.
            DataError: the archive is damaged or unsafe, or the disk is full.
        """
        path = _version_path(name_ref) + "/archive"
        with self._connection.stream(path) as answer:
            return unpack(answer.iter_bytes(), Path(out), answer.headers.get(DIGEST, ""))

    def status(self) -> Document:
        """The service's version, its queue in numbers, and whether Ray and MLflow answer."""
        return as_document(self._connection.get("/status"))


def _readied(spec: Mapping[str, Any] | str | Path) -> Document:
    return with_absolute_paths(spec if isinstance(spec, Mapping) else read_document(Path(spec)))


def _version_path(name_ref: str) -> str:
    match = _MODEL_REF.fullmatch(name_ref)
    if match is None:
        raise ModelError(f"{name_ref!r} names no version; write NAME@ALIAS or NAME/VERSION")
    return path_of("models", match["name"], f"@{match['alias']}" if match["alias"] else match["version"])
