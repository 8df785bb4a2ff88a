from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deployment import KUBERNETES, Document, kube_faults, manifest, manifests, settings_file
from kube_server import Kubernetes
from segfleet.cluster import rayjob
from segfleet.cluster.needs import Needs
from segfleet.settings import Settings

ID = "job-aaaaaaaa-a1"
NEEDS = Needs(workers=2, cpus=4, gpus=1, project="vision", time_limit_s=60.0)
OWN_SCHEMAS = ("RayJob", "RayCluster", "ClusterQueue", "LocalQueue", "ResourceFlavor")
MANIFESTS = [pytest.param(one, id=f"{name}:{one['kind']}/{one['metadata']['name']}") for name, one in manifests()]


def made(queue: str = "{project}") -> Document:
    """The RayJob that the launcher makes from the template."""
    template = rayjob.checked_template(manifest("RayJob"), "rayjob.yaml")
    return rayjob.manifest(ID, "python -m x", {"job": "job-aaaaaaaa"}, NEEDS, template, queue)


def pod_templates() -> Iterator[tuple[str, Document]]:
    for _, one in manifests():
        for place, template in _templates(one):
            yield f"{one['kind']}{place}", template


def _templates(node: Any, place: str = "") -> Iterator[tuple[str, Document]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in ("template", "submitterPodTemplate"):
                yield f"{place}/{key}", value
            else:
                yield from _templates(value, f"{place}/{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _templates(value, f"{place}/{number}")


PODS = dict(pod_templates())


@pytest.mark.parametrize("document", [m for m in MANIFESTS if m.values[0]["kind"] in OWN_SCHEMAS])
def test_objects_of_kuberay_and_kueue_are_as_their_definitions_say(document: Document) -> None:
    assert kube_faults(document, document["kind"]) == []


@pytest.mark.parametrize("place", PODS)
def test_pods_are_as_kubernetes_defines_them(place: str) -> None:
    assert kube_faults(PODS[place], "podTemplate") == []


@pytest.mark.parametrize("queue", ["", "{project}"])
def test_what_the_launcher_makes_is_a_rayjob(queue: str) -> None:
    assert kube_faults(made(queue), "RayJob") == []


@pytest.mark.parametrize(
    "change",
    [
        {"suspended": True},
        {"backoffLimit": "0"},
        {"rayClusterSpec": {"workerGroupSpecs": []}},
        {"rayClusterSpec": {"headGroupSpec": {"rayStartParams": {}, "template": {"spec": {"container": []}}}}},
    ],
)
def test_the_definitions_find_what_is_wrong(change: Document) -> None:
    document = copy.deepcopy(made())
    document["spec"] |= change
    assert kube_faults(document, "RayJob")


@pytest.mark.parametrize("place", PODS)
def test_pods_may_nothing_that_they_do_not_need(place: str) -> None:
    spec = PODS[place]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is (spec.get("serviceAccountName") == "segfleet")
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        security = container["securityContext"]
        assert (security["allowPrivilegeEscalation"], security["capabilities"]) == (False, {"drop": ["ALL"]})
        assert container["image"] == "segfleet:0.1.0"
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("place", PODS)
def test_what_pods_mount_is_there(place: str) -> None:
    spec = PODS[place]["spec"]
    volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
    mounted = {
        m["name"] for c in [*spec["containers"], *spec.get("initContainers", ())] for m in c.get("volumeMounts", ())
    }
    assert mounted == set(volumes)
    claims = {m["metadata"]["name"] for _, m in manifests() if m["kind"] == "PersistentVolumeClaim"}
    named = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
    assert named <= claims
    secrets = {m["metadata"]["name"] for _, m in manifests() if m["kind"] == "Secret"}
    assert {v["secret"]["secretName"] for v in volumes.values() if "secret" in v} <= secrets


def test_the_roles_allow_what_the_launcher_asks_and_no_more(tmp_path: Path) -> None:
    kube = Kubernetes(tmp_path, namespace="fleet")
    kube.put("/api/v1/namespaces/fleet/pods", "pod")
    kube.texts["/api/v1/namespaces/fleet/pods/pod/log"] = httpx.Response(200, text="x")
    kube.launcher.submit(ID, "x", {}, {}, NEEDS)
    kube.launcher.status(ID)
    kube.launcher.session()
    kube.launcher.machines()
    kube.launcher.logs(ID)
    kube.launcher.stop(ID)
    asked = {_verb(request) for request in kube.requests}
    allowed = {
        (group, resource, verb)
        for kind in ("Role", "ClusterRole")
        for rule in manifest(kind)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert asked == allowed


def _verb(request: httpx.Request) -> tuple[str, str, str]:
    """Group, resource and verb, as the API server derives them from a request."""
    path = request.url.path.removeprefix("/api/v1/").removeprefix("/apis/ray.io/v1/")
    group = "ray.io" if "/apis/ray.io/" in request.url.path else ""
    words = path.split("/")
    if words[0] == "namespaces" and len(words) > 2:
        words = words[2:]
    resource = words[0] if len(words) < 3 else f"{words[0]}/{words[2]}"
    verbs = {"POST": "create", "DELETE": "delete", "GET": "get" if len(words) > 1 else "list"}
    return group, resource, verbs[request.method]


def test_bindings_and_selectors_point_at_what_is_there() -> None:
    for kind, role in (("RoleBinding", "Role"), ("ClusterRoleBinding", "ClusterRole")):
        binding = manifest(kind)
        assert binding["roleRef"]["name"] == manifest(role)["metadata"]["name"]
        assert binding["subjects"][0]["name"] == manifest("ServiceAccount")["metadata"]["name"]
    deployment = manifest("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == manifest("Service")["spec"]["selector"] == labels
    assert deployment["template"]["spec"]["serviceAccountName"] == manifest("ServiceAccount")["metadata"]["name"]
    job_labels = {
        frozenset(template["metadata"]["labels"].items()) for place, template in PODS.items() if "Ray" in place
    }
    selector = manifest("NetworkPolicy", "jobs")["spec"]["podSelector"]["matchLabels"]
    assert all(selector.items() <= dict(labels).items() for labels in job_labels)
    assert manifest("NetworkPolicy", "nothing")["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_secrets_have_no_values() -> None:
    secrets = [one for name, one in manifests() if one["kind"] == "Secret"]
    assert {name for name, one in manifests() if one["kind"] == "Secret"} == {"secrets.example.yaml"}
    assert [set(secret["stringData"].values()) for secret in secrets] == [{""}] * 2
    keys = manifest("Secret", "segfleet-secrets")["stringData"]
    command = manifest("Deployment")["spec"]["template"]["spec"]["initContainers"][0]["command"][-1]
    assert f"for name in {' '.join(keys)};" in command


def test_kustomize_takes_every_file_but_those_for_people() -> None:
    document = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text(encoding="utf-8"))
    maps = {generator["name"]: generator for generator in document["configMapGenerator"]}
    taken = {*document["resources"], *maps["rayjob-template"]["files"], *maps["segfleet-settings"]["envs"]}
    files = {path.name for path in KUBERNETES.iterdir()}
    assert files - taken == {"kustomization.yaml", "secrets.example.yaml", "raycluster.yaml"}
    assert taken <= files
    assert document["namespace"] == manifest("Namespace")["metadata"]["name"]


def test_the_service_accepts_its_settings() -> None:
    spec = manifest("Deployment")["spec"]["template"]["spec"]
    [container] = spec["containers"]
    env = settings_file() | {one["name"]: one["value"] for one in container["env"]}
    env["SEGFLEET_KUBE_NAMESPACE"] = "segfleet"  # a pod reads it from a file
    settings = Settings.from_environment(env)
    assert settings.hands_over
    assert settings.kube is not None
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert settings.kube.template.parent == Path(mounts["template"])
    assert settings.kube.queue.replace("{project}", "default") == manifest("LocalQueue")["metadata"]["name"]
    assert settings.door is not None
    assert str(settings.door.tls_cert).startswith(mounts["tls"])
    assert settings.attempts_url == "https://segfleet.segfleet.svc:8443"
    assert "segfleet.segfleet.svc" in settings.door.names
    assert settings.home.root.parent == Path(mounts["home"])


def test_every_variable_is_one_that_the_service_reads() -> None:
    platform = KUBERNETES.parents[1] / "platform" / "segfleet"
    code = "".join(path.read_text(encoding="utf-8") for path in [*platform.glob("*settings.py"), platform / "door.py"])
    known = set(re.findall(r"\bSEGFLEET_[A-Z0-9_]+", code))
    assert set(settings_file()) <= known


def test_ray_is_the_version_of_the_lock() -> None:
    lock = (KUBERNETES.parents[1] / "requirements.lock").read_text(encoding="utf-8")
    [version] = re.findall(r"^ray==(\S+)$", lock, re.MULTILINE)
    assert manifest("RayJob")["spec"]["rayClusterSpec"]["rayVersion"] == version
    assert manifest("RayCluster")["spec"]["rayVersion"] == version
    for kind in ("RayJob", "RayCluster"):
        cluster = manifest(kind)["spec"]
        assert cluster.get("rayClusterSpec", cluster)["authOptions"] == {"mode": "token"}


def test_kueue_finds_the_queue_and_all_that_a_job_asks_for() -> None:
    queue = manifest("ClusterQueue")["spec"]["resourceGroups"][0]
    assert manifest("LocalQueue")["spec"]["clusterQueue"] == manifest("ClusterQueue")["metadata"]["name"]
    assert [flavor["name"] for flavor in queue["flavors"]] == [manifest("ResourceFlavor")["metadata"]["name"]]
    cluster = made()["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    asked = {
        name for group in groups for c in group["template"]["spec"]["containers"] for name in c["resources"]["requests"]
    }
    assert asked <= set(queue["coveredResources"])
    assert [r["name"] for r in queue["flavors"][0]["resources"]] == queue["coveredResources"]
    # What Kueue asks of a RayJob (its limits for RayJobs).
    assert made()["spec"]["shutdownAfterJobFinishes"] is True
    assert not cluster.get("enableInTreeAutoscaling")
    assert "clusterSelector" not in made()["spec"]
