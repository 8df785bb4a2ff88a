"""Settings of a service that sends its jobs to Kubernetes, as RayJob objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from segfleet.errors import SettingsError

# Where a pod finds its service account.
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class KubeSettings:
    """How the service talks to Kubernetes.

    Attributes:
        url: Base URL of the API server.
        namespace: Where RayJobs are made.
        token_file: Bearer token; read anew for each request, since Kubernetes replaces it every hour.
        ca_file: Whose certificate the API server has, PEM.
        template: YAML file with the `spec` that RayJobs are made from.
        nodes: Label selector of the nodes that count as the cluster; empty: all.
        queue: Name of Kueue's LocalQueue, in which {project} stands for the job's project; empty: the service's own
            quotas hold, and Kueue is not asked.
    """

    url: str
    namespace: str
    token_file: Path
    ca_file: Path
    template: Path
    nodes: str = ""
    queue: str = ""

    @classmethod
    def of(cls, env: Mapping[str, str]) -> KubeSettings | None:
        """What an environment says; None: jobs go to a Ray cluster that is there.

        Variables: SEGFLEET_LAUNCHER (ray or kuberay), SEGFLEET_QUOTA (segfleet or kueue), SEGFLEET_KUBE_TEMPLATE,
        SEGFLEET_KUBE_NAMESPACE, SEGFLEET_KUBE_NODES, SEGFLEET_KUBE_URL, SEGFLEET_KUBE_TOKEN_FILE,
        SEGFLEET_KUBE_CA_FILE, SEGFLEET_KUEUE_QUEUE.

        Raises:
            SettingsError: one of them is none of its values, or one is missing.
        """
        launcher = _choice(env, "SEGFLEET_LAUNCHER", ("ray", "kuberay"))
        owner = _choice(env, "SEGFLEET_QUOTA", ("segfleet", "kueue"))
        if launcher == "ray":
            if owner == "kueue":
                raise SettingsError("SEGFLEET_QUOTA=kueue needs SEGFLEET_LAUNCHER=kuberay: Kueue admits RayJobs")
            return None
        if not env.get("SEGFLEET_KUBE_TEMPLATE"):
            raise SettingsError(
                "SEGFLEET_LAUNCHER=kuberay needs SEGFLEET_KUBE_TEMPLATE, a file such as docker/kubernetes/rayjob.yaml"
            )
        return cls(
            url=_api_server(env.get("SEGFLEET_KUBE_URL", "https://kubernetes.default.svc")),
            namespace=env.get("SEGFLEET_KUBE_NAMESPACE") or _namespace(),
            token_file=Path(env.get("SEGFLEET_KUBE_TOKEN_FILE", f"{_ACCOUNT}/token")),
            ca_file=Path(env.get("SEGFLEET_KUBE_CA_FILE", f"{_ACCOUNT}/ca.crt")),
            template=Path(env["SEGFLEET_KUBE_TEMPLATE"]),
            nodes=env.get("SEGFLEET_KUBE_NODES", ""),
            queue=env.get("SEGFLEET_KUEUE_QUEUE", "{project}") if owner == "kueue" else "",
        )


def _choice(env: Mapping[str, str], name: str, values: tuple[str, ...]) -> str:
    value = env.get(name) or values[0]
    if value not in values:
        raise SettingsError(f"{name}={value!r} is none of its values; use {' or '.join(values)}")
    return value


def _api_server(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_safe = bool(parts.hostname) and (
            parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
        )
    except ValueError:
        is_safe = False
    if not is_safe:
        raise SettingsError(f"SEGFLEET_KUBE_URL={url!r} is no https address; write one such as https://10.0.0.1:6443")
    return url.rstrip("/")


def _namespace() -> str:
    try:
        return Path(_ACCOUNT, "namespace").read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(
            "SEGFLEET_LAUNCHER=kuberay outside of a pod needs SEGFLEET_KUBE_NAMESPACE, SEGFLEET_KUBE_URL, "
            "SEGFLEET_KUBE_TOKEN_FILE and SEGFLEET_KUBE_CA_FILE"
        ) from error
