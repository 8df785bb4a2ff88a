"""RayJob objects of KubeRay: how one is made from an attempt, and what its status means. Pure functions.

Fields as in KubeRay's CRD, ray.io/v1 (https://github.com/ray-project/kuberay, ray-operator/apis/ray/v1).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from segfleet.cluster.launcher import RayJobStatus, RayState
from segfleet.cluster.needs import Needs
from segfleet.errors import LaunchError, SettingsError
from segfleet.queue.model import clean_text

MANAGER = "app.kubernetes.io/managed-by=segfleet"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# A worker's log can be looked at for so long after the end; the copy of the driver's is the service's own.
TTL_S = 300
# The service ends jobs at their limit itself; Kubernetes does if the service is not there to.
_DEADLINE_MARGIN_S = 3600

Document = dict[str, Any]


def checked_template(document: Any, source: str) -> Document:
    """The `spec` of a template, if RayJobs can be made from it.

    Args:
        document: As read from YAML: an object with `spec`, such as a RayJob.
        source: Its file.

    Raises:
        SettingsError: naming what is missing.
    """
    try:
        spec = document["spec"]
        cluster = spec["rayClusterSpec"]
        groups = cluster["workerGroupSpecs"]
        for group in (cluster["headGroupSpec"], *groups):
            containers = group["template"]["spec"]["containers"]
            if not containers[0]["image"]:
                raise KeyError("image")
    except (KeyError, TypeError, IndexError) as error:
        raise SettingsError(
            f"template {source!r} is no RayJob with a head group and a worker group of one container each ({error}); "
            "begin with docker/kubernetes/rayjob.yaml"
        ) from error
    if len(groups) != 1:
        raise SettingsError(f"template {source!r} has {len(groups)} worker groups; a job's workers are all alike: one")
    return dict(spec)


def manifest(
    name: str, command: str, metadata: Mapping[str, str], needs: Needs, template: Mapping[str, Any], queue: str
) -> Document:
    """The RayJob of an attempt; its environment comes from the Secret of the same name.

    Args:
        name: The attempt's id.
        command: What the driver runs.
        metadata: Shown beside the job.
        needs: What its workers take.
        template: From `checked_template`.
        queue: Kueue's queue; empty: it is started at once.
    """
    spec = copy.deepcopy(dict(template))
    cluster = spec["rayClusterSpec"]
    head, [group] = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    # Workers run on workers alone; the head has the driver.
    head["rayStartParams"] = {**(head.get("rayStartParams") or {}), "num-cpus": "0"}
    group.update(replicas=needs.workers, minReplicas=needs.workers, maxReplicas=needs.workers)
    amounts = {"cpu": str(needs.cpus), **({"nvidia.com/gpu": str(needs.gpus)} if needs.gpus else {})}
    worker = group["template"]["spec"]["containers"][0]
    resources = worker.get("resources") or {}
    worker["resources"] = {kind: {**(resources.get(kind) or {}), **amounts} for kind in ("requests", "limits")}
    for container in (head["template"]["spec"]["containers"][0], worker):
        container["envFrom"] = [*(container.get("envFrom") or []), {"secretRef": {"name": name}}]
    spec |= {
        "entrypoint": command,
        "jobId": name,
        "metadata": dict(metadata),
        "submissionMode": "K8sJobMode",
        # A new try is a new attempt, with a fencing number of its own.
        "backoffLimit": 0,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": TTL_S,
        "suspend": bool(queue),
    }
    if needs.time_limit_s is not None:
        spec["activeDeadlineSeconds"] = math.ceil(needs.time_limit_s) + _DEADLINE_MARGIN_S
    labels = dict([MANAGER.split("=")]) | {f"segfleet/{key}": value for key, value in metadata.items()}
    if queue:
        labels[QUEUE_LABEL] = queue.replace("{project}", needs.project)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    }


def secret(name: str, uid: str, env: Mapping[str, str]) -> Document:
    """The environment of an attempt, one-time code and all; it goes when its RayJob goes.

    Args:
        name: The attempt's id.
        uid: Of its RayJob.
        env: Variables.
    """
    owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": name, "uid": uid, "blockOwnerDeletion": True}
    labels = dict([MANAGER.split("=")])
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": labels, "ownerReferences": [owner]},
        "immutable": True,
        "stringData": dict(env),
    }


def has_begun(rayjob: Mapping[str, Any]) -> bool:
    """Whether its driver was started, and so has its environment."""
    return bool((rayjob.get("status") or {}).get("jobStatus"))


def status_of(rayjob: Mapping[str, Any]) -> RayJobStatus:
    """What a RayJob's status means.

    Raises:
        LaunchError: it has a state that this version does not know.
    """
    status, spec = rayjob.get("status") or {}, rayjob.get("spec") or {}
    job, deployment = str(status.get("jobStatus") or ""), str(status.get("jobDeploymentStatus") or "")
    words = [str(status[key]) for key in ("reason", "message") if status.get(key)]
    message = clean_text(": ".join(words))
    try:
        state = RayState(job) if job else RayState.PENDING
    except ValueError as error:
        raise LaunchError(f"a RayJob has the unknown status {job!r}; is KubeRay newer than this version?") from error
    # Gone is gone only when the object is: until then its pods may still be there.
    if (rayjob.get("metadata") or {}).get("deletionTimestamp"):
        return RayJobStatus(RayState.RUNNING, "being deleted")
    match deployment:
        case "Complete" | "Failed" | "ValidationFailed":
            known = RayJobStatus(state, message)
            return known if known.is_terminal else RayJobStatus(RayState.FAILED, message)
        case "Suspending" | "Suspended":
            return RayJobStatus(RayState.PENDING, message, is_held=True)
        case "" if spec.get("suspend"):
            return RayJobStatus(RayState.PENDING, message, is_held=True)
        case "" | "Initializing" | "Waiting" | "Retrying":
            return RayJobStatus(RayState.PENDING, message)
        case "Running":
            return RayJobStatus(RayState.RUNNING if state == RayState.PENDING else state, message)
    raise LaunchError(f"a RayJob is {deployment!r}, which is unknown; is KubeRay newer than this version?")
