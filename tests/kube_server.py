"""A Kubernetes API server in memory, and a cluster behind one: for tests of what is sent to KubeRay."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from fakes import FakeClock, FakeJob, FakeLauncher
from segfleet.cluster.kube_launcher import KubeLauncher
from segfleet.cluster.launcher import RayJobStatus, RayState
from segfleet.cluster.needs import Needs
from segfleet.kube_settings import KubeSettings

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "docker" / "kubernetes" / "rayjob.yaml"
LOST = object()


class Kubernetes:
    """An API server in memory, with one namespace.

    Attributes:
        objects: By path of their collection and name.
        next: What the coming requests meet, first first: a response, an exception, LOST (done, but no answer), or
            None for the usual.
        token: The one that is accepted.
    """

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.objects: dict[str, dict[str, dict[str, Any]]] = {}
        self.next: list[httpx.Response | Exception | object | None] = []
        self.requests: list[httpx.Request] = []
        self.texts: dict[str, httpx.Response] = {}
        self.token, self.page = "first", 2
        self.token_file = folder / "kube-token"
        self.token_file.write_text("first\n")
        values: dict[str, Any] = {
            "url": "https://kube:6443",
            "namespace": "fleet",
            "token_file": self.token_file,
            "ca_file": folder / "ca.crt",
            "template": TEMPLATE,
            **changes,
        }
        self.launcher = KubeLauncher(KubeSettings(**values), httpx.MockTransport(self._answer))

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        return next((found for path, found in self.objects.items() if path.endswith(f"/{kind}")), {})

    def put(self, path: str, name: str, **body: Any) -> dict[str, Any]:
        metadata = {"name": name, "uid": f"uid-{name}", **body.pop("metadata", {})}
        self.objects.setdefault(path, {})[name] = {"metadata": metadata, **body}
        return self.objects[path][name]

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        behaviour = self.next.pop(0) if self.next else None
        if isinstance(behaviour, Exception):
            raise behaviour
        if isinstance(behaviour, httpx.Response):
            return behaviour
        if request.headers["authorization"] != f"Bearer {self.token}":
            return refusal(401, "Unauthorized")
        answer = self._do(request)
        if behaviour is LOST:
            raise httpx.ReadTimeout("slow")
        return answer

    def _do(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/api/v1/namespaces/fleet":
            return httpx.Response(200, json={"metadata": {"uid": "life-1"}})
        if path in self.texts:
            return self.texts[path]
        if request.method == "POST":
            body = json.loads(request.content)
            name = body["metadata"]["name"]
            if name in self.objects.get(path, {}):
                return refusal(409, "AlreadyExists")
            body["metadata"]["uid"] = f"uid-{name}"
            self.objects.setdefault(path, {})[name] = body
            return httpx.Response(201, json=body)
        collection, _, name = path.rpartition("/")
        if request.method == "DELETE":
            found = self.objects.get(collection, {}).pop(name, None)
            return refusal(404, "NotFound") if found is None else httpx.Response(200, json=found)
        if re.fullmatch(r".*/(rayjobs|nodes|pods)", path):
            return self._list(path, request)
        found = self.objects.get(collection, {}).get(name)
        return refusal(404, "NotFound") if found is None else httpx.Response(200, json=found)

    def _list(self, path: str, request: httpx.Request) -> httpx.Response:
        items = list(self.objects.get(path, {}).values())
        begin = int(request.url.params.get("continue") or 0)
        rest = str(begin + self.page) if begin + self.page < len(items) else ""
        page = items[begin : begin + self.page]
        return httpx.Response(200, json={"metadata": {"continue": rest}, "items": page})


def refusal(status: int, reason: str, message: str = "no") -> httpx.Response:
    return httpx.Response(status, json={"kind": "Status", "reason": reason, "message": message})
