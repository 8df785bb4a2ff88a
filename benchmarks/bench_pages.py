"""How long the web page of a long queue takes: `python benchmarks/bench_pages.py [--jobs 10000] [--open 200]`.

The database holds so many jobs, all of which wait, with a place for each. Measured are whole pages as the service
answers them (median and worst of 30), each of which finds an overview that is too old, and the service's time for one
round of all the pages that are open, of which most are told that nothing has changed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from factories import train_document  # noqa: E402 - they lie beside the tests
from segfleet.queue import intake  # noqa: E402
from segfleet.queue.board import Board  # noqa: E402
from segfleet.queue.scheduling.values import Node, Wait  # noqa: E402
from segfleet.web.overview import FRESH_S  # noqa: E402
from serving import Service, serving, sign_in  # noqa: E402

_ROUNDS = 30
# How often an open page asks, see static/page.js.
_LIVE_EVERY_S = 2.0
_TARGET_MS = 300.0


def fill(service: Service, num_jobs: int) -> None:
    """Put so many jobs into the queue, and a place for each on the board."""
    documents = [train_document(project=f"project-{number}") for number in range(20)]
    with service.queue.store.write() as tx:
        jobs = [intake.create(tx, documents[i % 20], f"user-{i % 50}", 1_700_000_000.0 + i) for i in range(num_jobs)]
    waits = {job.id: Wait(job.id, place, "waits behind others") for place, job in enumerate(jobs, start=1)}
    service.queue.board = Board((Node(64, 8),) * 16, "", waits)


def timed_ms(ask: Callable[[], Any]) -> float:
    """Milliseconds of one answer."""
    began = time.perf_counter()
    answer = ask()
    assert answer.status_code in (200, 304), answer.status_code
    return 1000 * (time.perf_counter() - began)


def main() -> int:
    """Measure and tell; 1: the queue's page is too slow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--open", type=int, default=200, help="pages that are open at a time")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as service:
        fill(service, chosen.jobs)
        sign_in(service)
        html = {"Accept": "text/html"}
        medians = []
        for path in ("/", "/?page=100", "/?project=project-7", "/?text=shap", "/?show=ended", "/live"):
            times = []
            for _ in range(_ROUNDS):
                time.sleep(FRESH_S if len(times) < 3 else 0.0)
                times.append(timed_ms(lambda path=path: service.http.get(path, headers=html)))
            old, fresh = times[:3], times[3:]
            medians.append(statistics.median(old))
            told = f"{path:22} looked at anew {statistics.median(old):6.1f} ms (worst {max(old):6.1f})"
            print(f"{told}, within the same second {statistics.median(fresh):5.1f} ms")
        tag = service.http.get("/live").headers["etag"]
        began = time.process_time()
        for _ in range(chosen.open):
            timed_ms(lambda: service.http.get("/live", headers={"If-None-Match": tag}))
        share = (time.process_time() - began) / _LIVE_EVERY_S
        print(
            f"{chosen.open} open pages, each asking every {_LIVE_EVERY_S:g} s: {share:.2f} of a core, client included"
        )
    return 0 if max(medians) < _TARGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())
