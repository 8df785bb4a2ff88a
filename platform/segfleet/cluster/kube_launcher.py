"""The door to KubeRay: each attempt is a RayJob of its own, with a Ray cluster of its own.

What `segfleet.cluster.launcher.Launcher` is to a Ray cluster that is there, this is to Kubernetes, and the queue
does not tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import httpx
import yaml

from segfleet.cluster.kube_api import KubeApi, already_exists, document, failed, words_of
from segfleet.cluster.launcher import RayJobStatus, SubmissionRefusedError
from segfleet.cluster.needs import Needs
from segfleet.cluster.rayjob import MANAGER, checked_template, has_begun, manifest, secret, status_of
from segfleet.errors import LaunchError, SettingsError
from segfleet.kube_settings import KubeSettings
from segfleet.queue.machines import Machine

# Ended RayJobs are objects without pods; they are kept so long for people to look at.
KEEP = timedelta(hours=1)


class KubeLauncher:
    """KubeRay in one namespace.

    Args:
        settings: Of Kubernetes.
        transport: Replaces the network, for tests.

    Raises:
        SettingsError: the template cannot be used.
    """

    def __init__(self, settings: KubeSettings, transport: httpx.BaseTransport | None = None) -> None:
        self._settings = settings
        self._template = _read_template(settings)
        self._api = KubeApi(settings, transport)
        self._jobs = f"/apis/ray.io/v1/namespaces/{settings.namespace}/rayjobs"
        self._core = f"/api/v1/namespaces/{settings.namespace}"
        # What the last list said, so that a turn of the dispatcher costs one request and not one for each attempt.
        self._seen: dict[str, dict[str, Any]] = {}
        self._equipped: set[str] = set()

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def submit(
        self,
        submission_id: str,
        command: str,
        env: Mapping[str, str],
        metadata: Mapping[str, str],
        needs: Needs | None = None,
    ) -> None:
        """Make the RayJob of an attempt, then the Secret with its environment; what is there already stays.

        The Secret comes second, because its owner must be there; pods wait for it.

        Args:
            submission_id: The attempt's id.
            command: From `entrypoint`.
            env: Environment of driver and workers.
            metadata: Shown beside the job.
            needs: What it takes; it must be given.

        Raises:
            SubmissionRefusedError: Kubernetes refuses this RayJob for good.
            LaunchError: Kubernetes cannot be reached, or failed; the RayJob may have been made or not.
        """
        assert needs is not None
        self._seen.pop(submission_id, None)
        wanted = manifest(submission_id, command, metadata, needs, self._template, self._settings.queue)
        answer = self._api.ask("POST", self._jobs, json=wanted)
        if answer.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY):
            raise SubmissionRefusedError(f"Kubernetes refuses {submission_id}: {words_of(answer)}")
        found = self._get(submission_id) if already_exists(answer) else document(answer)
        if found is None:
            raise LaunchError(f"RayJob {submission_id} was there and is gone")
        answer = self._api.ask(
            "POST", f"{self._core}/secrets", json=secret(submission_id, found["metadata"]["uid"], env)
        )
        if not answer.is_success and not already_exists(answer):
            raise failed(answer)

    def status(self, submission_id: str) -> RayJobStatus | None:
        """What Kubernetes says of an attempt; None: it has no RayJob, or one that never got its environment.

        Raises:
            LaunchError: Kubernetes failed, or cannot be reached (then ClusterUnreachableError).
        """
        found = self._seen.get(submission_id) or self._get(submission_id)
        if found is None:
            return None
        status = status_of(found)
        is_waiting = not status.is_terminal and not has_begun(found)
        return None if is_waiting and not self._is_equipped(submission_id) else status

    def stop(self, submission_id: str) -> None:
        """Delete a RayJob: its driver and its pods get SIGTERM, then SIGKILL after their grace.

        Raises:
            LaunchError: Kubernetes failed, or cannot be reached (then ClusterUnreachableError).
        """
        self._seen.pop(submission_id, None)
        # In the foreground: the object is there until its pods are gone.
        answer = self._api.ask("DELETE", f"{self._jobs}/{submission_id}", params={"propagationPolicy": "Foreground"})
        if answer.status_code != httpx.codes.NOT_FOUND and not answer.is_success:
            raise failed(answer)

    def logs(self, submission_id: str) -> str:
        """All that the driver has printed so far; empty if it has no pod yet, or none any more.

        Raises:
            LaunchError: Kubernetes failed, or cannot be reached (then ClusterUnreachableError).
        """
        pods = self._api.items(f"{self._core}/pods", f"batch.kubernetes.io/job-name={submission_id}")
        if not pods:
            return ""
        newest = max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp") or ""))
        answer = self._api.ask("GET", f"{self._core}/pods/{newest['metadata']['name']}/log")
        # 400: its container has not started.
        if answer.status_code in (httpx.codes.NOT_FOUND, httpx.codes.BAD_REQUEST):
            return ""
        if not answer.is_success:
            raise failed(answer)
        return answer.text

    def session(self) -> str:
        """Name of the namespace's life; with another one, everything that was in it is gone.

        Raises:
            LaunchError: Kubernetes failed, or cannot be reached (then ClusterUnreachableError).
        """
        namespace = self._api.get(self._core)
        if namespace is None:
            raise LaunchError(f"Kubernetes has no namespace {self._settings.namespace!r}")
        self._seen = {job["metadata"]["name"]: job for job in self._api.items(self._jobs, MANAGER)}
        self._equipped &= self._seen.keys()
        self._tidy()
        return str(namespace["metadata"]["uid"])

    def machines(self) -> tuple[Machine, ...]:
        """Each node that is ready and takes pods; those that drain are cordoned and do not count.

        Each job has a Ray of its own, so what is in use of a node only the pods tell: it is left unsaid.

        Raises:
            LaunchError: Kubernetes failed, or cannot be reached (then ClusterUnreachableError).
        """
        nodes = self._api.items("/api/v1/nodes", self._settings.nodes)
        return tuple(_machine(node) for node in nodes if _takes_pods(node))

    def _get(self, name: str) -> dict[str, Any] | None:
        return self._api.get(f"{self._jobs}/{name}")

    def _is_equipped(self, name: str) -> bool:
        if name not in self._equipped and self._api.get(f"{self._core}/secrets/{name}") is not None:
            self._equipped.add(name)
        return name in self._equipped

    def _tidy(self) -> None:
        """Delete one RayJob that ended long ago; a turn does no more, so that it stays short."""
        before = datetime.now(UTC) - KEEP
        for name, job in self._seen.items():
            ended = _time((job.get("status") or {}).get("endTime"))
            if ended is not None and ended < before and not job["metadata"].get("deletionTimestamp"):
                self.stop(name)
                return


def _read_template(settings: KubeSettings) -> dict[str, Any]:
    try:
        text = settings.template.read_text(encoding="utf-8")
        return checked_template(yaml.safe_load(text), str(settings.template))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"SEGFLEET_KUBE_TEMPLATE={str(settings.template)!r} cannot be read: {error}") from error


def _takes_pods(node: Mapping[str, Any]) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or ()
    is_ready = any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
    return is_ready and not (node.get("spec") or {}).get("unschedulable")


def _machine(node: Mapping[str, Any]) -> Machine:
    amounts = (node.get("status") or {}).get("allocatable") or {}
    name = str(node["metadata"]["name"])
    return Machine(name, name, _whole(amounts.get("cpu", "0")), _whole(amounts.get("nvidia.com/gpu", "0")))


def _whole(quantity: object) -> int:
    """Whole units of a quantity, such as 15 of 15890m."""
    text = str(quantity)
    try:
        return int(Decimal(text.removesuffix("m")) / (1000 if text.endswith("m") else 1))
    except InvalidOperation as error:
        raise LaunchError(f"Kubernetes tells an unknown amount {text!r} of a node") from error


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None
