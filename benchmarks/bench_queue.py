"""The queue with many jobs: submit to answer on SQLite, and one pass of the scheduler over all of them.

Run: python benchmarks/bench_queue.py [--jobs N]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

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
    _time_submits(jobs)
    _time_passes(jobs)


def _time_submits(jobs: int) -> None:
    spec = to_document(resolve_spec({"kind": "train", "name": "bench", "data": {"shards": "/data/none"}}))
    submits = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{Path(folder) / 'queue.db'}")
        queue = Queue(store, time.time, Path(folder))
        for number in range(jobs):
            begin = time.perf_counter()
            queue.submit(spec, owner="bench", key=str(number))
            submits.append(time.perf_counter() - begin)
        store.close()
    last = submits[-1000:]
    print(
        f"submit with {jobs} jobs stored: median {1000 * statistics.median(last):.1f} ms, max {1000 * max(last):.0f} ms"
    )


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
