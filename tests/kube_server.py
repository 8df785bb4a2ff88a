"""A Kubernetes API server in memory, and a cluster behind one: for tests of what is sent to KubeRay."""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx

from fakes import FakeJob, FakeLauncher
from segfleet.cluster.kube_launcher import KubeLauncher
from segfleet.cluster.launcher import RayJobStatus, RayState
from segfleet.kube_settings import KubeSettings
from world import World

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
        self.token, self.page, self.life = "first", 2, 1
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
        self.settings = KubeSettings(**values)
        self.launcher = KubeLauncher(self.settings, httpx.MockTransport(self.answer))

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        return next((found for path, found in self.objects.items() if path.endswith(f"/{kind}")), {})

    def put(self, path: str, name: str, **body: Any) -> dict[str, Any]:
        metadata = {"name": name, "uid": f"uid-{name}", **body.pop("metadata", {})}
        self.objects.setdefault(path, {})[name] = {"metadata": metadata, **body}
        return self.objects[path][name]

    def answer(self, request: httpx.Request) -> httpx.Response:
        """What the server says to a request."""
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
            return httpx.Response(200, json={"metadata": {"uid": f"life-{self.life}"}})
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


class KubeRay(FakeLauncher):
    """What a `FakeLauncher` is to Ray, behind the API of Kubernetes; its `next_submits` hit Secrets as well.

    An attempt runs once its RayJob and its Secret are there, and with Kueue once it is no longer held.
    """

    def __init__(self, folder: Path, **changes: Any) -> None:
        super().__init__()
        self.api = _KubeRayApi(self, folder, **changes)

    def restart_head(self) -> None:
        """The namespace is deleted with everything in it, and made anew."""
        super().restart_head()
        self.api.life = self.life
        self.api.objects.clear()


class _KubeRayApi(Kubernetes):
    def __init__(self, ray: KubeRay, folder: Path, **changes: Any) -> None:
        super().__init__(folder, **changes)
        self._ray = ray

    def _do(self, request: httpx.Request) -> httpx.Response:
        if not self._ray.reachable:
            raise httpx.ConnectError("refused")
        if request.method == "POST":
            return self._post(request)
        if request.method == "DELETE":
            return self._delete(request)
        if self._ray.failing and "/rayjobs" in request.url.path:
            return refusal(500, "InternalError")
        self._show()
        return super()._do(request)

    def _post(self, request: httpx.Request) -> httpx.Response:
        behaviour = self._ray.next_submits.pop(0) if self._ray.next_submits else "ok"
        if behaviour == "refused":
            return refusal(422, "Invalid", "bad entrypoint")
        if behaviour == "lost":
            raise httpx.ReadTimeout("slow")
        answer = super()._do(request)
        if answer.is_success and request.url.path.endswith("/secrets"):
            self._start(json.loads(request.content))
        if behaviour == "lost_answer":
            raise httpx.ReadTimeout("slow")
        return answer

    def _start(self, secret: dict[str, Any]) -> None:
        name = secret["metadata"]["name"]
        spec = self.of("rayjobs")[name]["spec"]
        job = FakeJob(spec["entrypoint"], secret["stringData"], spec["metadata"], is_held=spec["suspend"])
        self._ray.jobs[name] = job
        self._ray.runs.append(name)

    def _delete(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        self._ray.stops.append(name)
        job = self._ray.jobs.get(name)
        if job is not None and not self._ray.obeys_stop and name in self.of("rayjobs"):
            self.of("rayjobs")[name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            return httpx.Response(200, json={})
        if job is not None and not RayJobStatus(job.state).is_terminal:
            job.state = RayState.STOPPED
        self.of("secrets").pop(name, None)
        return super()._do(request)

    def _show(self) -> None:
        """The operator's work: what becomes of the pods stands in the RayJobs; and there is one node."""
        node = {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"cpu": str(self._ray.cpus)}}
        self.put("/api/v1/nodes", "node", status=node)
        for name, rayjob in self.of("rayjobs").items():
            job = self._ray.jobs.get(name)
            if job is not None and job.is_held:
                rayjob["status"] = {"jobDeploymentStatus": "Suspended"}
            elif job is not None:
                ended = {RayState.FAILED: "Failed", RayState.SUCCEEDED: "Complete"}
                rayjob["status"] = {
                    "jobStatus": job.state.value,
                    "jobDeploymentStatus": ended.get(job.state, "Running"),
                    "message": job.message,
                }


class KubeWorld(World):
    """A service whose jobs go to Kubernetes."""

    kube: ClassVar[dict[str, Any]] = {}

    def __init__(self, root: Path, url: str | None = None) -> None:
        self.cluster = KubeRay(root, **self.kube)
        super().__init__(root, url, ray=self.cluster, door=self.cluster.api.launcher, kube=self.cluster.api.settings)


@contextmanager
def serving_kube(kube: Kubernetes, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve an API server of memory on the loopback interface; its base URL."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Head and body in one packet, or each answer waits for an acknowledgement.
        wbufsize = -1

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {"authorization": self.headers.get("Authorization") or ""}
            with lock:
                try:
                    url = f"http://kube{self.path}"
                    answer = kube.answer(httpx.Request(self.command, url, headers=headers, content=body))
                except httpx.HTTPError:
                    self.close_connection = True
                    return
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_DELETE = _any  # noqa: N815 (the base class's names)

        def handle(self) -> None:
            with suppress(OSError):
                super().handle()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        def get_request(self) -> tuple[Any, Any]:
            connection, address = super().get_request()
            # The handshake is the handler thread's affair.
            if tls is not None:
                connection = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            return connection, address

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
