"""The service's application on a real queue, with a registry made of dictionaries: what the tests of HTTP talk to."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi.testclient import TestClient

from factories import migrated_database
from segfleet.access.sessions import form_key
from segfleet.errors import ModelError
from segfleet.queue import lifecycle
from segfleet.queue.leadership import Office
from segfleet.queue.service import Queue
from segfleet.queue.store import Store
from segfleet.registry.registration import Registration
from segfleet.server.api import create_app
from segfleet.server.services import Services
from segfleet.settings import Home, Settings

API_TOKEN = "right-token-of-the-service"
CODE = "one-time-code"
URL = "http://127.0.0.1:8700"
# What browsers say of a request that a page of this service makes.
FROM_PAGE = {"Accept": "text/html", "Origin": URL, "Sec-Fetch-Site": "same-origin"}


@dataclass
class FakeRegistry:
    """Knows one model, `seg`, whose version 1 is `@best`, with version 2 beside it; both hold `files`."""

    files: dict[str, bytes] = field(default_factory=lambda: {"MLmodel": b"flavors: {}\n", "data/w.bin": b"\0" * 5000})
    registered: list[Registration] = field(default_factory=list)
    figures: dict[tuple[str, str], dict[str, float | None]] = field(default_factory=dict)
    versions: set[str] = field(default_factory=lambda: {"1", "2"})
    aliases: dict[str, str] = field(default_factory=lambda: {"best": "1"})
    moves: list[tuple[str, str]] = field(default_factory=list)
    made_by: dict[str, list[str]] = field(default_factory=dict)
    runs: dict[str, list[str]] = field(default_factory=dict)

    curves_of: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)

    def is_up(self) -> bool:
        return True

    def curves(self, job_id: str) -> dict[str, Any] | None:
        return self.curves_of.get(job_id)

    def picture(self, run_id: str, name: str) -> bytes:
        return self.pictures[name]

    def versions_by_job(self) -> dict[str, list[str]]:
        return dict(self.made_by)

    def runs_by_job(self) -> dict[str, list[str]]:
        return {job_id: list(runs) for job_id, runs in self.runs.items()}

    def remove_run(self, run_id: str) -> bool:
        for runs in self.runs.values():
            if run_id in runs:
                runs.remove(run_id)
                return True
        return False

    def models(self) -> list[dict[str, Any]]:
        return [{"name": "seg", "aliases": dict(self.aliases), "latest_version": "2", "updated_at": 1_700_000_000.0}]

    def model(self, name: str) -> dict[str, Any]:
        self._known(name)
        return {**self.models()[0], "versions": [self.version(name, "1")]}

    def version(self, name: str, ref: str) -> dict[str, Any]:
        self._known(name, ref)
        number = self.aliases[ref.removeprefix("@")] if ref.startswith("@") else ref
        aliases = [alias for alias, version in self.aliases.items() if version == number]
        document = {"name": name, "version": number, "aliases": aliases, "job": None, "run_id": "r" * 32}
        return {**document, "created_at": 1_700_000_000.0, "metrics": {}, "tags": {}}

    def holder(self, name: str, alias: str) -> str | None:
        self._known(name)
        return self.aliases.get(alias)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        self._known(name, version)
        self.aliases[alias] = version
        self.moves.append((alias, version))

    def delete_version(self, name: str, version: str) -> None:
        self._known(name, version)
        self.versions.discard(version)

    def fetch_pictures(self, version: dict[str, Any], folder: Path) -> None:
        folder.mkdir()
        confusion = {"class_names": ["a<b", "c"], "matrix": [[3, 1], [0, 2]]}
        (folder / "confusion.json").write_text(json.dumps(confusion))

    def fetch(self, name: str, ref: str, folder: Path) -> Path:
        self._known(name, ref)
        for path, content in self.files.items():
            (folder / "artifacts" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "artifacts" / path).write_bytes(content)
        return folder / "artifacts"

    def register(self, wanted: Registration) -> str:
        self.registered.append(wanted)
        return "1"

    def add_metrics(self, name: str, version: str, metrics: dict[str, float | None]) -> None:
        self._known(name, version)
        self.figures.setdefault((name, version), {}).update(metrics)

    def _known(self, name: str, ref: str = "1") -> None:
        known = ref.removeprefix("@") in self.aliases if ref.startswith("@") else ref in self.versions
        if name != "seg" or not known:
            raise ModelError(f"the registry has no {name}/{ref}")


@dataclass
class Service:
    """The application under test and what stands behind it."""

    http: TestClient
    queue: Queue
    registry: FakeRegistry
    home: Home

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {API_TOKEN}"}

    def submit(self, **changes: Any) -> dict[str, Any]:
        body = {"spec": prepare_spec(**changes)}
        answer = self.http.post("/api/v1/jobs", json=body, headers=self.bearer)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def start(self, job_id: str) -> str:
        """What the dispatcher does when it sends a job to the cluster; the attempt's id."""
        with self.queue.store.write() as tx:
            code_hash = hashlib.sha256(CODE.encode()).hexdigest()
            return lifecycle.begin_attempt(tx, tx.job(job_id), 1, code_hash, self.queue.clock()).id

    def claim(self, attempt_id: str, code: str = CODE) -> Any:
        body = {"code": code, "instance": "0123456789abcdef"}
        return self.http.post(f"/api/v1/attempts/{attempt_id}/claim", json=body)

    def running(self, **changes: Any) -> tuple[str, str, dict[str, str]]:
        """A claimed job: its id, its attempt's id and the attempt's headers."""
        job_id = self.submit(**changes)["id"]
        attempt_id = self.start(job_id)
        token = self.claim(attempt_id).json()["token"]
        return job_id, attempt_id, {"Authorization": f"Bearer {token}"}


class AppTransport(httpx.BaseTransport):
    """Carries a client's requests into the application; loses the next `lost_answers` on the way back."""

    def __init__(self, http: TestClient) -> None:
        self.http, self.lost_answers, self.requests = http, 0, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        url, headers = str(request.url), dict(request.headers)
        answer = self.http.request(request.method, url, content=request.read(), headers=headers)
        if self.lost_answers:
            self.lost_answers -= 1
            raise httpx.ReadError("connection reset", request=request)
        return httpx.Response(answer.status_code, headers=dict(answer.headers), content=answer.content)


def sign_in(service: Service, token: str = API_TOKEN, headers: dict[str, str] = FROM_PAGE) -> httpx.Response:
    """Post the form of the sign-in; the client keeps the cookie."""
    answer: Any = service.http.post("/sign-in", data={"token": token}, headers=headers, follow_redirects=False)
    return answer


def session_of(service: Service) -> str:
    """The id of the session that the client holds."""
    return str(service.http.cookies["segfleet"])


def page_key(service: Service) -> str:
    """What the forms of the client's session carry."""
    return form_key(session_of(service))


def prepare_spec(**changes: Any) -> dict[str, Any]:
    """A short valid spec as a user writes it."""
    return {"kind": "prepare", "name": "shapes", "dataset": "synthetic", "out": "/data/shapes", **changes}


def no_services() -> Any:
    """Stands for the services of an application of which only the routes are looked at."""
    settings = SimpleNamespace(home=SimpleNamespace(root=Path("nowhere")))
    return SimpleNamespace(queue=SimpleNamespace(store=None, clock=None), settings=settings)


def make_shards(folder: Path) -> str:
    """What the service takes for a prepared dataset: it leaves the contents to the job."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return str(folder)


@contextmanager
def serving(folder: Path) -> Iterator[Service]:
    """The application with its home in a folder; every look at its clock is a second later."""
    home = Home(folder / "home")
    home.create()
    settings = Settings(home, 8700, "http://ray.invalid", "http://mlflow.invalid", home.database_url)
    store = Store(migrated_database(home.root / "segfleet.db"))
    seconds = itertools.count(1_700_000_000)
    queue, registry = Queue(store, lambda: float(next(seconds)), home.storage), FakeRegistry()
    office = Office(store, queue.clock, settings.server, settings.leader_lease_s)
    services = Services(settings, queue, registry, lambda: True, office)  # type: ignore[arg-type]
    # This client waits for the end of an answer, and streams have none; those who read them serve at a real address.
    services.feed.close()
    app = create_app(services, API_TOKEN)
    with TestClient(app, base_url=URL, raise_server_exceptions=False) as http:
        yield Service(http, queue, registry, home)
    store.close()
