"""Sending attempts to the cluster, each with the one-time code that it trades for its token."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Protocol

from segfleet.cluster.launcher import RayJobStatus, entrypoint
from segfleet.cluster.needs import Needs
from segfleet.queue import fencing
from segfleet.queue.leadership import Term
from segfleet.queue.machines import Machine
from segfleet.queue.model import Attempt, Job
from segfleet.settings import Settings


class ClusterDoor(Protocol):
    """What the dispatcher needs of a cluster; see `launcher.Launcher` and `kube_launcher.KubeLauncher`."""

    def submit(
        self, submission_id: str, command: str, env: Mapping[str, str], metadata: Mapping[str, str], needs: Needs
    ) -> None:
        """Run a command under this id, or find that it was taken already."""

    def status(self, submission_id: str) -> RayJobStatus | None:
        """What the cluster says of a submission, None if nothing."""

    def stop(self, submission_id: str) -> None:
        """Ask for its end."""

    def logs(self, submission_id: str) -> str:
        """All it has printed."""

    def session(self) -> str:
        """Name of the cluster's present life."""

    def machines(self) -> tuple[Machine, ...]:
        """The cluster's machines that are alive."""


class Sender:
    """Posts attempts, and remembers their codes until the cluster has them; the database knows their digests alone.

    Args:
        lead: The leader's right to write.
        launcher: The cluster.
        settings: Addresses for the jobs' environment.
        python: Interpreter on the cluster's nodes; None: the service's own.
    """

    def __init__(self, lead: Term, launcher: ClusterDoor, settings: Settings, python: str | None) -> None:
        self._lead, self._launcher, self._settings, self._python = lead, launcher, settings, python
        self._codes: dict[str, str] = {}

    def keep(self, attempt_id: str, code: str) -> None:
        """Remember the code of an attempt that has just been made."""
        self._codes[attempt_id] = code

    def forget(self, attempt_id: str) -> None:
        """The cluster has the attempt, or it is over."""
        self._codes.pop(attempt_id, None)

    def send(self, job: Job, attempt: Attempt) -> None:
        """Post an attempt under its own id, which the cluster takes only once.

        Raises:
            LeadershipLostError: another server leads, or may.
            SubmissionRefusedError: the cluster refuses it for good.
            LaunchError: it may have been taken or not.
        """
        env = {
            **self._settings.job_env,
            "SEGFLEET_URL": self._settings.attempts_url,
            "SEGFLEET_ATTEMPT": attempt.id,
            "SEGFLEET_CODE": self._codes.get(attempt.id) or self._new_code(attempt),
        }
        metadata = {"job": job.id, "attempt": str(attempt.number), "fence": str(attempt.fence)}
        command = entrypoint(job.kind) if self._python is None else entrypoint(job.kind, self._python)
        self._lead.require()
        gang = job.gang
        needs = Needs(attempt.workers, gang.cpus, gang.gpus, job.project, job.time_limit_s)
        self._launcher.submit(attempt.id, command, env, metadata, needs)

    def _new_code(self, attempt: Attempt) -> str:
        """Replace the code of an attempt that was committed by a service that died before Ray got it."""
        code = secrets.token_urlsafe(32)
        with self._lead.write() as tx:
            tx.change_attempt(attempt.id, {"code_hash": fencing.digest(code)})
        self._codes[attempt.id] = code
        return code
