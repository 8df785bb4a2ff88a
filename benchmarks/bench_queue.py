"""The queue with many jobs: the service on SQLite asked over HTTP, and one pass of the scheduler over all of them.

Run: python benchmarks/bench_queue.py [--jobs N]
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil

from segfleet.client import Client
from segfleet.queue.scheduling.plan import plan
from segfleet.queue.scheduling.values import Candidate, Gang, Holding, Node, Policy, Quota
from segfleet.queue.service import Queue
from segfleet.queue.store import Store
from segfleet.spec.resolve import resolve_spec, to_document

PROJECTS = [f"project-{number}" for number in range(40)]
NODES = (Node(32, 8),) * 64
GUARANTEES = {project: Quota(gpus=10, max_gpus=64) for project in PROJECTS}
POLICIES = {
    "no rules": Policy(),
    "quotas": Policy(projects=GUARANTEES),
    "quotas, reclaim and preemption": Policy(projects=GUARANTEES, preempts_for_priority=True, preempts_to_reclaim=True),
}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    jobs = parser.parse_args().jobs
    _time_service(jobs)
    _time_passes(jobs)


def _time_service(jobs: int) -> None:
    spec = {"kind": "prepare", "name": "bench", "dataset": "synthetic", "out": "/data/none", "reuse": False}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        _fill(home, spec, jobs)
        with _serving(home) as (url, process), Client(url, (home / "token").read_text().strip()) as client:
            time.sleep(5)
            memory = process.memory_info().rss / 2**20
            print(f"service with {jobs} jobs stored, idle: {memory:.0f} MiB, {_cpu_share(process):.1%} of a core")
            newest = client.submit(spec)["id"]
            for name, ask in (
                ("submit", lambda: client.submit(spec)),
                ("a page of 100 jobs", lambda: client.jobs(limit=100)),
                ("a page of 100 jobs by project, state and name", lambda: _filtered(client)),
                ("one job", lambda: client.job(newest)),
            ):
                _time(f"{name} with {jobs} jobs stored", ask)
            _time_streams(url, home, process)


def _fill(home: Path, spec: dict[str, object], jobs: int) -> None:
    resolved = to_document(resolve_spec(spec))
    (home / "storage").mkdir()
    store = Store(f"sqlite:///{home / 'segfleet.db'}")
    queue = Queue(store, time.time, home / "storage")
    for number in range(jobs):
        queue.submit(resolved, owner="bench", key=str(number))
    store.close()


def _filtered(client: Client) -> None:
    client.jobs(limit=100, project="default", state=["queued", "running"], name="ben")


@contextmanager
def _serving(home: Path) -> Iterator[tuple[str, psutil.Process]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    nowhere = "http://127.0.0.1:1"
    names = {
        "SEGFLEET_HOME": home,
        "SEGFLEET_PORT": port,
        "SEGFLEET_RAY_ADDRESS": nowhere,
        "SEGFLEET_MLFLOW_URI": nowhere,
    }
    environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
    command = [sys.executable, "-m", "segfleet.server"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        while not _answers(url) and process.poll() is None:
            time.sleep(0.1)
        try:
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.TransportError:
        return False


def _time(name: str, ask: Callable[[], object], rounds: int = 200) -> None:
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        ask()
        times.append(1000 * (time.perf_counter() - begin))
    slow = statistics.quantiles(times, n=20)[-1]
    print(f"{name}: median {statistics.median(times):.1f} ms, 95th percentile {slow:.0f} ms")


def _cpu_share(process: psutil.Process, seconds: float = 10.0) -> float:
    process.cpu_percent()
    time.sleep(seconds)
    return process.cpu_percent() / 100


def _time_streams(url: str, home: Path, process: psutil.Process) -> None:
    """200 idle listeners, of two tokens since one may have 100."""
    admin = {"Authorization": f"Bearer {(home / 'token').read_text().strip()}"}
    made = httpx.post(f"{url}/api/v1/tokens", json={"user": "ann"}, headers=admin).json()
    bearers = [admin, {"Authorization": f"Bearer {made['token']}"}]
    with ExitStack() as stack:
        http = stack.enter_context(httpx.Client(limits=httpx.Limits(max_connections=None)))
        for number in range(200):
            stack.enter_context(http.stream("GET", f"{url}/api/v1/events", headers=bearers[number % 2]))
        memory = process.memory_info().rss / 2**20
        print(f"200 listeners to the history, idle: {memory:.0f} MiB, {_cpu_share(process):.1%} of a core")


def _time_passes(jobs: int) -> None:
    """Gangs and elastic jobs of all projects in three bands, and 200 attempts that hold nearly all GPUs."""
    rng = random.Random(1)
    waiting = []
    for seq in range(jobs):
        workers = rng.choice((1, 2, 4, 8))
        waiting.append(
            Candidate(
                job_id=f"job-{seq}",
                seq=seq,
                gang=Gang(workers, 4, 1, rng.choice((workers, 16))),
                priority=rng.choice((40, 50, 60)),
                project=PROJECTS[seq % len(PROJECTS)],
                user=f"user-{seq % 100}",
                time_left_s=rng.choice((None, 600.0, 3600.0, 7200.0)),
            )
        )
    running = []
    for number in range(200):
        workers = rng.choice((1, 2, 3, 4))
        running.append(
            Holding(
                job_id=f"job-{jobs + number}",
                seq=jobs + number,
                gang=Gang(workers, 4, 1),
                workers=workers,
                since=-rng.uniform(0, 5000),
                priority=rng.choice((30, 50)),
                project=PROJECTS[number % len(PROJECTS)],
                ends_by=rng.choice((None, rng.uniform(1, 10_000))),
            )
        )
    for name, policy in POLICIES.items():
        passes = []
        for _ in range(9):
            begin = time.process_time()
            plan(waiting, NODES, running, 0.0, policy=policy)
            passes.append(time.process_time() - begin)
        print(
            f"one pass over {jobs} queued and {len(running)} running jobs of {len(PROJECTS)} projects on {len(NODES)}"
            f" nodes, {name}: median {1000 * statistics.median(passes):.0f} ms of CPU, max {1000 * max(passes):.0f} ms"
        )


if __name__ == "__main__":
    main()
