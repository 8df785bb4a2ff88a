"""The client's verbs of jobs; each change takes `if_tag`, and then fails if the job is no longer as it was."""

from __future__ import annotations

import codecs
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segfleet.connection import Connection, Document, as_document, path_of
from segfleet.errors import ServiceError, SettingsError
from segfleet.event_stream import StreamEvent
from segfleet.event_stream import follow as follow_stream
from segfleet.spec.absolute import with_absolute_paths
from segfleet.spec.document import read_document
from segfleet.wire import IDEMPOTENCY_KEY, NEXT_OFFSET

FOLLOW_PATIENCE_S = 120.0
_TERMINAL = frozenset({"succeeded", "failed", "cancelled"})


class JobCalls:
    """Submit, look, follow, change; `segfleet.client.Client` brings the connection."""

    _connection: Connection

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

    def tag(self, job_id: str) -> str:
        """What stands for the job as it is now: given to a change as `if_tag`, that fails if the job has changed."""
        answer = self._connection.request("GET", path_of("jobs", job_id))
        return str(answer.headers.get("ETag", ""))

    def events(self, job_id: str) -> list[Document]:
        """All that happened to a job, the oldest first."""
        return self._connection.pages(path_of("jobs", job_id, "events"), "events", None, place="after")

    def trials(self, job_id: str) -> Document:
        """All trials of a search, and what they are compared by.

        Returns:
            {"trials": by number, "metric", "mode": max or min}; `segfleet.leaderboard` ranks them.

        Raises:
            QueueError: the job is no search.
        """
        return as_document(self._connection.get(path_of("jobs", job_id, "trials")))

    def history(
        self, *, after: int | None = None, timeout_s: float | None = None, **wanted: str | None
    ) -> Iterator[StreamEvent]:
        """The history of all jobs as it goes on; outlives restarts of the service, and tells each line once.

        Args:
            after: Begin behind the line of this `seq`; 0: with the first; None: now.
            timeout_s: Stop after so many seconds; None: never.
            wanted: project, owner, job, kind and state (the one that a line brought its job into).
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        return follow_stream(
            self._connection, "/events", after=after, patience_s=FOLLOW_PATIENCE_S, params=wanted, until=until
        )

    def stream(self, job_id: str, *, after: int = 0, timeout_s: float | None = None) -> Iterator[StreamEvent]:
        """A job's life up to its end: `job` whenever it has changed, `history` for each line behind `after`.

        Raises:
            UnknownJobError: no such job.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        path = path_of("jobs", job_id, "stream")
        return follow_stream(self._connection, path, after=after, patience_s=FOLLOW_PATIENCE_S, until=until)

    def watch(self, job_id: str, *, timeout_s: float | None = None) -> Iterator[Document]:
        """The job without its spec whenever it has changed, the last time in its terminal state."""
        for message in self.stream(job_id, timeout_s=timeout_s):
            if message.event == "job":
                yield message.data

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> Document:
        """Wait until the job is in a terminal state, and return it.

        Raises:
            ServiceError: still going after `timeout_s`.
        """
        for _ in self.watch(job_id, timeout_s=timeout_s):
            pass
        job = self.job(job_id)
        if job["state"] not in _TERMINAL:
            raise ServiceError(f"job {job_id} is still {job['state']} after {timeout_s:g} s; it goes on")
        return job

    def logs(self, job_id: str, *, follow: bool = False) -> Iterator[str]:
        """The logs of all attempts in order, piece by piece.

        Args:
            job_id: The job.
            follow: Go on until the job has ended and its log is complete.

        Yields:
            Text as the job wrote it; bytes that are no UTF-8 are replaced. May hold control characters.
        """
        if follow:
            path = path_of("jobs", job_id, "logs", "stream")
            for message in follow_stream(self._connection, path, after=0, patience_s=FOLLOW_PATIENCE_S):
                yield str(message.data.get("text", ""))
            return
        decoder, offset = codecs.getincrementaldecoder("utf-8")(errors="replace"), 0
        while True:
            answer = self._connection.request("GET", path_of("jobs", job_id, "logs"), params={"offset": offset})
            following = answer.headers.get(NEXT_OFFSET, "")
            if not following.isdecimal():
                raise self._connection.stranger()
            yield decoder.decode(answer.content, final=not answer.content)
            if not answer.content:
                return
            offset = int(following)

    def cancel(self, job_id: str, *, if_tag: str | None = None) -> Document:
        """Ask for the job's end; it is `cancelled` once nothing of it runs any more.

        Raises:
            IllegalTransitionError: it has ended already.
        """
        return self._change(job_id, "cancel", {}, if_tag)

    def pause(self, job_id: str, *, if_tag: str | None = None) -> Document:
        """Take a job out of the line; a running one writes a checkpoint first, and goes on from it after `resume`.

        Raises:
            IllegalTransitionError: it has ended already.
        """
        return self._change(job_id, "pause", {}, if_tag)

    def resume(self, job_id: str, *, if_tag: str | None = None) -> Document:
        """Put a paused job back into the line, at the place of its age.

        Raises:
            IllegalTransitionError: it is not paused.
        """
        return self._change(job_id, "resume", {}, if_tag, repeatable=False)

    def set_priority(self, job_id: str, priority: int, *, if_tag: str | None = None) -> Document:
        """Change a job's priority, 0 to 100.

        Raises:
            IllegalTransitionError: it has ended already.
        """
        return self._change(job_id, "priority", {"priority": priority}, if_tag)

    def retry(self, job_id: str, *, from_start: bool = False, if_tag: str | None = None) -> Document:
        """Queue a failed or cancelled job again, from its last checkpoint unless `from_start`.

        Raises:
            IllegalTransitionError: it has not failed or been cancelled.
        """
        return self._change(job_id, "retry", {"from_start": from_start}, if_tag, repeatable=False)

    def _change(
        self, job_id: str, verb: str, body: Document, if_tag: str | None, *, repeatable: bool = True
    ) -> Document:
        headers = None if if_tag is None else {"If-Match": if_tag}
        path = path_of("jobs", job_id, verb)
        return as_document(self._connection.post(path, body, headers=headers, repeatable=repeatable))


def _readied(spec: Mapping[str, Any] | str | Path) -> Document:
    return with_absolute_paths(spec if isinstance(spec, Mapping) else read_document(Path(spec)))
