"""The queue with many jobs: submit to answer, and one turn of the scheduler over all of them, on SQLite.

Run: python benchmarks/bench_queue.py [--jobs N]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from segfleet.queue.model import Needs
from segfleet.queue.scheduler import Candidate, Capacity, plan
from segfleet.queue.service import Queue
from segfleet.queue.store import Store
from segfleet.spec.resolve import resolve_spec, to_document


def main() -> None:
    """Print both figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    jobs = parser.parse_args().jobs
    spec = to_document(resolve_spec({"kind": "train", "name": "bench", "data": {"shards": "/data/none"}}))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{Path(folder) / 'queue.db'}")
        queue = Queue(store, time.time, Path(folder))
        submits = []
        for number in range(jobs):
            begin = time.perf_counter()
            queue.submit(spec, owner="bench", key=str(number))
            submits.append(time.perf_counter() - begin)
        store.close()
    candidates = [Candidate(f"job-{n}", n, n % 101, Needs(1 + n % 4, 0)) for n in range(jobs)]
    turns = []
    for _ in range(9):
        begin = time.perf_counter()
        plan(candidates, Capacity(64, 0, 8), [], 0.0)
        turns.append(time.perf_counter() - begin)
    last = submits[-1000:]
    print(
        f"submit with {jobs} jobs stored: median {1000 * statistics.median(last):.1f} ms, max {1000 * max(last):.0f} ms"
    )
    print(f"one plan over {jobs} queued jobs: median {1000 * statistics.median(turns):.0f} ms")


if __name__ == "__main__":
    main()
