"""Three real servers on one real PostgreSQL: one leads; it is killed, suspended, asked to stop; no job notices."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from factories import POSTGRES, fresh_database
from fakes import FakeLauncher
from processes import client_of, free_port, running
from ray_server import serving_ray
from segfleet.client import Client
from segfleet.cluster.launcher import RayJobStatus, RayState

pytestmark = pytest.mark.integration
LEASE_S = 2.0
NUM_JOBS = 14
SPEC = {"kind": "prepare", "name": "shapes", "dataset": "synthetic", "out": "/data/shapes"}


@dataclass
class Server:
    """A service on a home of its own."""

    home: Path
    port: int
    variables: dict[str, str]
    process: subprocess.Popen[str] | None = None
    is_away: bool = False
    stack: ExitStack = field(default_factory=ExitStack)

    def start(self) -> Client:
        self.process = self.stack.enter_context(running(self.home, self.port, **self.variables))
        return self.stack.enter_context(client_of(self.home, self.port))

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> str:
        """Wait until it has ended well; its log."""
        assert self.process is not None
        _, log = self.process.communicate(timeout=15)
        assert self.process.returncode == 0
        return log

    @property
    def answers(self) -> bool:
        return self.process is not None and not self.is_away


@dataclass
class Driver:
    """What Ray runs for an attempt: it claims, beats, and completes when it may, at whichever server answers."""

    attempt_id: str
    code: str
    servers: list[Server]
    token: str = ""
    is_over: bool = False
    is_complete: bool = False

    def act(self, may_end: bool) -> None:
        try:
            if not self.token:
                self.token = self._ask("claim", {"code": self.code, "instance": "0123456789abcdef"})["token"]
            elif not may_end:
                self._ask("heartbeat", {"progress": {"step": 1}})
            else:
                self._ask("complete", {"result": {}})
                self.is_over = self.is_complete = True
        except httpx.TransportError:
            return

    def _ask(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        server = random.choice([server for server in self.servers if server.answers])
        url = f"http://127.0.0.1:{server.port}/api/v1/attempts/{self.attempt_id}/{verb}"
        answer = httpx.post(url, json=body, headers={"Authorization": f"Bearer {self.token or '-'}"}, timeout=3)
        if answer.status_code == 503:
            raise httpx.TransportError(answer.text)
        if answer.status_code == 409:
            self.is_over = True
            return {"token": ""}
        assert answer.is_success, answer.text
        return dict(answer.json())


class Cluster:
    """The fake Ray and the drivers on it."""

    def __init__(self, servers: list[Server]) -> None:
        self.ray = FakeLauncher(cpus=4)
        self.servers, self.drivers = servers, dict[str, Driver]()
        self.may_end = False

    def turn(self) -> None:
        for attempt_id, job in list(self.ray.jobs.items()):
            driver = self.drivers.setdefault(attempt_id, Driver(attempt_id, job.env["SEGFLEET_CODE"], self.servers))
            if RayJobStatus(job.state).is_terminal:
                continue
            driver.act(self.may_end)
            job.log += "acted\n"
            if driver.is_over:
                self.ray.end(attempt_id, RayState.SUCCEEDED if driver.is_complete else RayState.FAILED)

    def until(self, what: Callable[[], bool], seconds: float = 60.0) -> float:
        began = time.monotonic()
        while not what():
            self.turn()
            time.sleep(0.05)
            assert time.monotonic() - began < seconds, "it does not come"
        return time.monotonic() - began


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Server]]:
    made: list[Server] = []
    yield made
    for server in made:
        if server.process is not None and server.process.poll() is None:
            server.send(signal.SIGCONT)
        server.stack.close()


@pytest.mark.skipif(not POSTGRES, reason="needs PostgreSQL (scripts/with_postgres.py)")
@pytest.mark.parametrize("database", ["postgres"])
def test_no_job_is_lost_or_doubled_whatever_becomes_of_the_leader(
    database: str, tmp_path: Path, servers: list[Server]
) -> None:
    url, shared = fresh_database(database, tmp_path), tmp_path / "shared"
    shared.mkdir()
    cluster = Cluster(servers)
    with serving_ray(cluster.ray) as ray_address:
        common = {
            "SEGFLEET_DATABASE_URL": url,
            "SEGFLEET_RAY_ADDRESS": ray_address,
            "SEGFLEET_SHARED": str(shared),
            "SEGFLEET_LEADER_LEASE_S": str(LEASE_S),
            "SEGFLEET_POLL_S": "0.1",
        }
        servers += [Server(tmp_path / name, free_port(), common) for name in ("one", "two", "three")]
        with ThreadPoolExecutor() as pool:
            clients = list(pool.map(Server.start, servers))
        cluster.until(lambda: leaders(clients, servers) != [])
        [first] = leaders(clients, servers)
        one, (two, three) = clients[first], [client for i, client in enumerate(clients) if i != first]
        assert [role(client) for client in (one, two, three)] == ["leader", "follower", "follower"]
        assert two.status()["leader"] == one.status()["leader"]
        ids = [(one, two)[i % 2].submit(SPEC, key=f"k{i}")["id"] for i in range(NUM_JOBS)]
        assert [(three, one)[i % 2].submit(SPEC, key=f"k{i}")["id"] for i in range(NUM_JOBS)] == ids
        # A follower says why and where a job waits, and of which size the cluster is.
        cluster.until(lambda: any(job["place"] for job in two.jobs(state="queued")))
        assert two.status()["ray"]["capacity"] == {"cpus": 4, "gpus": 0, "nodes": 1}

        servers[first].send(signal.SIGKILL)
        servers[first].is_away = True
        took = cluster.until(lambda: leaders(clients, servers) != [])
        [second] = leaders(clients, servers)
        [third] = {0, 1, 2} - {first, second}
        two, three = clients[second], clients[third]
        assert two.status()["leader"]["epoch"] == 2

        cluster.until(lambda: all(driver.token for driver in cluster.drivers.values()))
        cluster.may_end = True
        cluster.until(lambda: len(cluster.ray.runs) > 4)
        cluster.may_end = False
        begun = len(cluster.ray.runs)
        assert begun < NUM_JOBS, "there is nothing left to do for the next leader"
        servers[second].send(signal.SIGSTOP)
        servers[second].is_away = True
        took = max(took, cluster.until(lambda: role(three) == "leader"))
        cluster.may_end = True
        cluster.until(lambda: len(cluster.ray.runs) > begun)
        servers[second].send(signal.SIGCONT)
        servers[second].is_away = False
        cluster.until(lambda: role(two) == "follower")
        assert two.status()["leader"]["epoch"] == 3
        assert took < LEASE_S + 10

        cluster.until(lambda: two.status()["jobs"].get("succeeded", 0) == NUM_JOBS)
        assert max(Counter(cluster.ray.runs).values()) == 1, "an attempt was run twice"
        for job_id in ids:
            assert [attempt["state"] for attempt in two.job(job_id)["attempts"]].count("succeeded") == 1
        cluster.until(lambda: "".join(two.logs(ids[-1])) == "".join(three.logs(ids[-1])) != "")

        servers[third].send(signal.SIGTERM)
        cluster.until(lambda: role(two) == "leader", seconds=LEASE_S + 10)
        assert two.status()["leader"]["epoch"] == 4
        servers[second].send(signal.SIGTERM)
        for place in (third, second):
            log = servers[place].end()
            assert "Traceback" not in log
        assert "leadership lost" in log or "another server may lead" in log


def leaders(clients: list[Client], servers: list[Server]) -> list[int]:
    """Places of the servers that say so."""
    here = [place for place, server in enumerate(servers) if server.answers]
    return [place for place in here if role(clients[place]) == "leader"]


def role(client: Client) -> str:
    return str(client.status()["server"]["role"])
