from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from kube_server import LOST, TEMPLATE, Kubernetes, refusal
from segfleet.cluster.launcher import ClusterUnreachableError, RayJobStatus, RayState, SubmissionRefusedError
from segfleet.cluster.needs import Needs
from segfleet.errors import LaunchError, SettingsError
from segfleet.kube_settings import KubeSettings
from segfleet.queue.machines import Machine

ID = "job-aaaaaaaa-a1"
NEEDS = Needs(workers=2, cpus=4, gpus=1, project="vision", time_limit_s=90.5)


@pytest.fixture
def kube(tmp_path: Path) -> Kubernetes:
    return Kubernetes(tmp_path)


def submit(kube: Kubernetes, needs: Needs = NEEDS, code: str = "xyz") -> None:
    env = {"SEGFLEET_ATTEMPT": ID, "SEGFLEET_CODE": code}
    kube.launcher.submit(ID, "python -P -m segfleet_jobs.train", env, {"job": "job-aaaaaaaa", "attempt": "1"}, needs)


def set_status(kube: Kubernetes, **status: Any) -> None:
    kube.of("rayjobs")[ID]["status"] = status
    kube.launcher.session()


def test_an_attempt_is_a_rayjob_of_its_own_name_with_the_resources_of_its_gang(kube: Kubernetes) -> None:
    submit(kube)
    rayjob = kube.of("rayjobs")[ID]
    spec = rayjob["spec"]
    assert (spec["jobId"], spec["backoffLimit"], spec["suspend"]) == (ID, 0, False)
    assert spec["entrypoint"] == "python -P -m segfleet_jobs.train"
    assert (spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"] > 0) == (True, True)
    assert spec["activeDeadlineSeconds"] == 91 + 3600
    [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert [group[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [2, 2, 2]
    worker = group["template"]["spec"]["containers"][0]
    for kind in ("requests", "limits"):
        assert (worker["resources"][kind]["cpu"], worker["resources"][kind]["nvidia.com/gpu"]) == ("4", "1")
        assert worker["resources"][kind]["memory"]
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert rayjob["metadata"]["labels"]["segfleet/job"] == "job-aaaaaaaa"
    assert "kueue.x-k8s.io/queue-name" not in rayjob["metadata"]["labels"]


def test_without_gpus_and_limit_none_are_asked_for(kube: Kubernetes) -> None:
    submit(kube, Needs(1, 2, 0, "vision"))
    spec = kube.of("rayjobs")[ID]["spec"]
    assert "activeDeadlineSeconds" not in spec
    assert "nvidia.com/gpu" not in json.dumps(spec)


def test_the_code_is_in_a_secret_that_the_rayjob_owns_and_nowhere_else(kube: Kubernetes) -> None:
    submit(kube, code="canary-0123456789")
    rayjob, secret = kube.of("rayjobs")[ID], kube.of("secrets")[ID]
    assert secret["stringData"]["SEGFLEET_CODE"] == "canary-0123456789"
    [owner] = secret["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("RayJob", ID, f"uid-{ID}")
    text = json.dumps(rayjob)
    assert "canary" not in text
    assert base64.b64encode(b"canary-0123456789").decode() not in text
    assert text.count(f'{{"secretRef": {{"name": "{ID}"}}}}') == 2


def test_kueue_gets_the_job_suspended_and_with_the_queue_of_its_project(tmp_path: Path) -> None:
    kube = Kubernetes(tmp_path, queue="team-{project}")
    submit(kube)
    rayjob = kube.of("rayjobs")[ID]
    assert rayjob["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-vision"
    assert rayjob["spec"]["suspend"] is True
    assert kube.launcher.status(ID) == RayJobStatus(RayState.PENDING, "", is_held=True)


def test_submitting_twice_makes_one_rayjob_and_keeps_the_first_secret(kube: Kubernetes) -> None:
    submit(kube, code="first")
    submit(kube, code="second")
    assert list(kube.of("rayjobs")) == list(kube.of("secrets")) == [ID]
    assert kube.of("secrets")[ID]["stringData"]["SEGFLEET_CODE"] == "first"


@pytest.mark.parametrize("which", [0, 1])
def test_a_lost_answer_is_found_by_the_next_look(kube: Kubernetes, which: int) -> None:
    kube.next = [None] * which + [LOST]
    with pytest.raises(ClusterUnreachableError, match="ReadTimeout"):
        submit(kube, code="first")
    # Without its environment a RayJob would wait for ever: it counts as not there, and is sent again.
    assert (kube.launcher.status(ID) is None) == (which == 0)
    submit(kube, code="second")
    assert kube.launcher.status(ID) == RayJobStatus(RayState.PENDING)
    assert kube.of("secrets")[ID]["stringData"]["SEGFLEET_CODE"] == ("second" if which == 0 else "first")


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (refusal(422, "Invalid", "spec.entrypoint: bad"), SubmissionRefusedError, "spec.entrypoint: bad"),
        (refusal(400, "BadRequest", "strict decoding"), SubmissionRefusedError, "strict decoding"),
        (refusal(403, "Forbidden", "exceeded quota"), LaunchError, "exceeded quota; see the roles"),
        (refusal(409, "Conflict"), LaunchError, "HTTP 409"),
        (refusal(429, "TooManyRequests"), LaunchError, "fewer requests"),
        (refusal(500, "InternalError"), LaunchError, "HTTP 500"),
        (httpx.Response(200, text="<html>"), LaunchError, "does not answer like Kubernetes"),
        (refusal(401, "Unauthorized"), ClusterUnreachableError, "does not accept the token"),
        (httpx.ConnectError("refused"), ClusterUnreachableError, "cannot be reached"),
    ],
)
def test_failures_of_a_submission_tell_what_they_are(
    kube: Kubernetes, answer: httpx.Response | Exception, error: type[LaunchError], words: str
) -> None:
    kube.next = [answer]
    with pytest.raises(LaunchError, match=words) as caught:
        submit(kube)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, RayJobStatus(RayState.PENDING)),
        ({"jobDeploymentStatus": "Initializing"}, RayJobStatus(RayState.PENDING)),
        ({"jobDeploymentStatus": "Waiting"}, RayJobStatus(RayState.PENDING)),
        ({"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, RayJobStatus(RayState.RUNNING)),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, RayJobStatus(RayState.RUNNING)),
        ({"jobDeploymentStatus": "Running", "jobStatus": "FAILED"}, RayJobStatus(RayState.FAILED)),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, RayJobStatus(RayState.SUCCEEDED)),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, RayJobStatus(RayState.STOPPED)),
        (
            {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", "message": "too long\0"},
            RayJobStatus(RayState.FAILED, "DeadlineExceeded: too long"),
        ),
        ({"jobDeploymentStatus": "ValidationFailed"}, RayJobStatus(RayState.FAILED)),
        ({"jobDeploymentStatus": "Suspending", "jobStatus": ""}, RayJobStatus(RayState.PENDING, is_held=True)),
        ({"jobDeploymentStatus": "Suspended", "jobStatus": ""}, RayJobStatus(RayState.PENDING, is_held=True)),
    ],
)
def test_what_a_rayjobs_status_means(kube: Kubernetes, status: dict[str, str], expected: RayJobStatus) -> None:
    submit(kube)
    set_status(kube, **status)
    assert kube.launcher.status(ID) == expected


@pytest.mark.parametrize("status", [{"jobDeploymentStatus": "Dreaming"}, {"jobStatus": "ASLEEP"}])
def test_an_unknown_status_is_an_error_never_a_verdict(kube: Kubernetes, status: dict[str, str]) -> None:
    submit(kube)
    set_status(kube, **status)
    with pytest.raises(LaunchError, match="newer than this version"):
        kube.launcher.status(ID)


def test_a_stopped_job_is_there_until_its_pods_are_gone(kube: Kubernetes) -> None:
    submit(kube)
    set_status(kube, jobDeploymentStatus="Running", jobStatus="RUNNING")
    kube.of("rayjobs")[ID]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    kube.launcher.session()
    status = kube.launcher.status(ID)
    assert status is not None
    assert not status.is_terminal
    kube.launcher.stop(ID)
    assert kube.requests[-1].url.params["propagationPolicy"] == "Foreground"
    assert kube.launcher.status(ID) is None
    kube.launcher.stop(ID)


def test_a_turn_costs_one_list_however_many_attempts_there_are(kube: Kubernetes) -> None:
    path = "/apis/ray.io/v1/namespaces/fleet/rayjobs"
    for number in range(5):
        kube.put(path, f"job-{number}", status={"jobStatus": "RUNNING", "jobDeploymentStatus": "Running"})
    assert kube.launcher.session() == "life-1"
    asked = len(kube.requests)
    assert all(kube.launcher.status(f"job-{number}") for number in range(5))
    assert len(kube.requests) == asked == 1 + 3


def test_a_list_that_expires_is_read_anew(kube: Kubernetes) -> None:
    path = "/apis/ray.io/v1/namespaces/fleet/rayjobs"
    for number in range(3):
        kube.put(path, f"job-{number}", status={"jobStatus": "RUNNING", "jobDeploymentStatus": "Running"})
    gone = refusal(410, "Expired")
    kube.next = [None, None, gone, None, None]
    kube.launcher.session()
    assert kube.launcher.status("job-2") == RayJobStatus(RayState.RUNNING)
    kube.next = [None] + [gone] * 3
    with pytest.raises(LaunchError, match="expire again and again"):
        kube.launcher.session()


def test_a_token_that_kubernetes_replaces_is_read_anew(kube: Kubernetes, tmp_path: Path) -> None:
    assert kube.launcher.session() == "life-1"
    kube.token = "second"
    with pytest.raises(ClusterUnreachableError, match="kube-token"):
        kube.launcher.session()
    kube.token_file.write_text("second")
    assert kube.launcher.session() == "life-1"
    (tmp_path / "kube-token").unlink()
    with pytest.raises(ClusterUnreachableError, match="cannot be read"):
        kube.launcher.session()


def test_only_ready_nodes_that_take_pods_count(kube: Kubernetes) -> None:
    def node(name: str, ready: str = "True", spec: dict[str, Any] | None = None, **amounts: str) -> None:
        conditions = [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}]
        kube.put("/api/v1/nodes", name, spec=spec or {}, status={"conditions": conditions, "allocatable": amounts})

    node("a", cpu="15890m", memory="1Gi")
    node("b", cpu="8", **{"nvidia.com/gpu": "4"})
    node("drains", cpu="64", spec={"unschedulable": True})
    node("gone", ready="Unknown", cpu="64")
    assert kube.launcher.machines() == (Machine("a", "a", 15, 0), Machine("b", "b", 8, 4))
    node("odd", cpu="much")
    with pytest.raises(LaunchError, match="'much'"):
        kube.launcher.machines()


def test_logs_are_those_of_the_newest_pod_that_has_some(kube: Kubernetes) -> None:
    assert kube.launcher.logs(ID) == ""
    pods = "/api/v1/namespaces/fleet/pods"
    kube.put(pods, "old", metadata={"creationTimestamp": "2026-01-01T00:00:00Z"})
    kube.put(pods, "new", metadata={"creationTimestamp": "2026-01-02T00:00:00Z"})
    kube.texts[f"{pods}/new/log"] = httpx.Response(200, text="step 1\n")
    assert kube.launcher.logs(ID) == "step 1\n"
    assert kube.requests[-2].url.params["labelSelector"] == f"batch.kubernetes.io/job-name={ID}"
    kube.texts[f"{pods}/new/log"] = refusal(400, "BadRequest", "container is waiting to start")
    assert kube.launcher.logs(ID) == ""
    kube.texts[f"{pods}/new/log"] = refusal(500, "InternalError")
    with pytest.raises(LaunchError, match="HTTP 500"):
        kube.launcher.logs(ID)


def test_rayjobs_that_ended_long_ago_are_removed_one_a_turn(kube: Kubernetes) -> None:
    path = "/apis/ray.io/v1/namespaces/fleet/rayjobs"
    for name, ended in (("a", "2020-01-01T00:00:00Z"), ("b", "2020-01-01T00:00:00Z"), ("c", "2999-01-01T00:00:00Z")):
        kube.put(path, name, status={"jobDeploymentStatus": "Complete", "jobStatus": "FAILED", "endTime": ended})
    kube.put(path, "d", status={"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"})
    kube.launcher.session()
    assert sorted(kube.of("rayjobs")) == ["b", "c", "d"]
    kube.launcher.session()
    kube.launcher.session()
    assert sorted(kube.of("rayjobs")) == ["c", "d"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("spec: {}", "is no RayJob"),
        ("- a", "is no RayJob"),
        ("a: [", "cannot be read"),
        (TEMPLATE.read_text(encoding="utf-8").replace("containers:", "tools:"), "is no RayJob"),
    ],
)
def test_a_template_that_no_rayjob_can_be_made_from_is_refused(tmp_path: Path, text: str, words: str) -> None:
    template = tmp_path / "template.yaml"
    template.write_text(text)
    with pytest.raises(SettingsError, match=words):
        Kubernetes(tmp_path, template=template)


Env = dict[str, str]
KUBE: Env = {
    "SEGFLEET_LAUNCHER": "kuberay",
    "SEGFLEET_KUBE_TEMPLATE": "/etc/segfleet/rayjob.yaml",
    "SEGFLEET_KUBE_NAMESPACE": "fleet",
}


def test_the_launcher_and_who_owns_the_quotas_are_one_setting_each() -> None:
    assert KubeSettings.of({}) is None
    ours = KubeSettings.of(KUBE)
    assert ours is not None
    assert (ours.url, ours.queue) == ("https://kubernetes.default.svc", "")
    kueue = KubeSettings.of({**KUBE, "SEGFLEET_QUOTA": "kueue"})
    assert kueue is not None
    assert kueue.queue == "{project}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda env: env | {"SEGFLEET_LAUNCHER": "slurm"}, "use ray or kuberay"),
        (lambda env: env | {"SEGFLEET_QUOTA": "both"}, "use segfleet or kueue"),
        (lambda env: {"SEGFLEET_QUOTA": "kueue"}, "needs SEGFLEET_LAUNCHER=kuberay"),
        (lambda env: env | {"SEGFLEET_KUBE_URL": "http://10.0.0.1"}, "no https address"),
        (lambda env: env | {"SEGFLEET_KUBE_URL": "https://["}, "no https address"),
        (lambda env: env | {"SEGFLEET_KUBE_TEMPLATE": ""}, "needs SEGFLEET_KUBE_TEMPLATE"),
        (lambda env: env | {"SEGFLEET_KUBE_NAMESPACE": ""}, "outside of a pod"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change: Callable[[Env], Env], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        KubeSettings.of(change(KUBE))
