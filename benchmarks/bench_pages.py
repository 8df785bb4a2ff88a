"""What the pages of a long queue cost: `python benchmarks/bench_pages.py [--jobs 10000] [--open 200] [--seconds 20]`.

The service is a process of its own with so many jobs, and a queue in which something happens every second. Measured are

1. whole pages (median and worst), when the queue has to be looked at anew and within the same second;
2. the service's processor time while so many pages are open, each asking as often as in a browser, and without any;
3. in a real Chromium, if there is one: how long pages keep it from drawing while they change by themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from segfleet.web.overview import FRESH_S

PATHS = ("/", "/?page=100", "/?project=project-7", "/?text=shap", "/?show=ended")
ROUNDS = 5
# How often the parts of an open page ask, see templates/queue.html and job.html; a log that is silent, see job.js.
QUEUE_PARTS = (("/live", 2.0),)
JOB_PARTS = (
    ("/live?part=state", 2.0),
    ("/live?part=curves", 5.0),
    ("/live?part=pictures", 20.0),
    ("/logs?offset=1000000", 4.0),
)
TARGET_MS = 300.0
LONG_TASK_MS = 50.0
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_WATCH = """
window.seen = { tasks: [], frames: [], changes: 0 };
new PerformanceObserver((list) => list.getEntries().forEach((task) => seen.tasks.push(task.duration)))
  .observe({ type: "longtask" });
let last = performance.now();
(function tick(now) { seen.frames.push(now - last); last = now; requestAnimationFrame(tick); })(last);
addEventListener("replaced", () => (seen.changes += 1));
"""


@dataclass(frozen=True, slots=True)
class Site:
    """A service that runs.

    Attributes:
        url: Of its pages.
        token: To sign in with.
        jobs: Ids of those that run.
        process: The service's.
    """

    url: str
    token: str
    jobs: Sequence[str]
    process: psutil.Process

    @contextmanager
    def visitor(self) -> Iterator[httpx.Client]:
        """Somebody who has signed in."""
        own = {"Origin": self.url, "Sec-Fetch-Site": "same-origin", "Accept": "text/html"}
        with httpx.Client(base_url=self.url, headers=own, timeout=30) as client:
            client.post("/sign-in", data={"token": self.token})
            yield client

    def share(self, began: tuple[float, float] | None = None) -> Any:
        """(moment, processor seconds) now; since an earlier one: how much of a core was in use."""
        spent = self.process.cpu_times()
        now = time.monotonic(), spent.user + spent.system
        return now if began is None else (now[1] - began[1]) / (now[0] - began[0])


@contextmanager
def busy_service(num_jobs: int) -> Iterator[Site]:
    """The service, until it is no longer needed."""
    command = [sys.executable, str(Path(__file__).with_name("busy_service.py")), str(num_jobs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Site(**json.loads(process.stdout.readline()), process=psutil.Process(process.pid))
        process.stdin.close()


def time_pages(site: Site) -> list[float]:
    """Print how long whole pages take; the median of each when the queue is looked at anew, milliseconds."""
    medians = []
    with site.visitor() as visitor:
        for path in (*PATHS, f"/jobs/{site.jobs[0]}"):
            anew, again = [], []
            for _ in range(ROUNDS):
                time.sleep(1.1 * FRESH_S)
                for times in (anew, again):
                    began = time.perf_counter()
                    assert visitor.get(path).status_code == 200, path
                    times.append(1000 * (time.perf_counter() - began))
            medians.append(statistics.median(anew))
            told = f"{path:22} looked at anew {medians[-1]:6.1f} ms (worst {max(anew):6.1f})"
            print(f"{told}, within the same second {statistics.median(again):6.1f} ms")
    return medians


async def _keep_open(visitor: httpx.AsyncClient, path: str, every: float, until: float, times: list[float]) -> None:
    """One part of an open page, as static/page.js keeps it."""
    tag = ""
    await asyncio.sleep(random.uniform(0, every))
    while time.monotonic() < until:
        began = time.perf_counter()
        try:
            answer = await visitor.get(path, headers={"If-None-Match": tag} if tag else {})
        except httpx.TransportError:
            # The service closes connections that are silent for long; a page asks again.
            await asyncio.sleep(every)
            continue
        assert answer.status_code in (200, 304, 404), answer.status_code
        tag = answer.headers.get("etag", tag)
        times.append(1000 * (time.perf_counter() - began))
        await asyncio.sleep(every)


async def _open_pages(site: Site, cookies: httpx.Cookies, num_open: int, seconds: float) -> list[float]:
    """Half look at the queue, three tenths at a project's jobs, two tenths at a job."""
    times: list[float] = []
    until = time.monotonic() + seconds
    limits = httpx.Limits(keepalive_expiry=3.0)
    async with httpx.AsyncClient(base_url=site.url, cookies=cookies, timeout=30, limits=limits) as visitor:
        parts: list[tuple[str, float]] = []
        for number in range(num_open):
            if number % 10 < 8:
                query = "" if number % 10 < 5 else f"?project=project-{number // 10 % 20}"
                parts += [(path + query, every) for path, every in QUEUE_PARTS]
            else:
                job = site.jobs[number % len(site.jobs)]
                parts += [(f"/jobs/{job}{path}", every) for path, every in JOB_PARTS]
        await asyncio.gather(*(_keep_open(visitor, path, every, until, times) for path, every in parts))
    return times


def time_open(site: Site, num_open: int, seconds: float) -> float:
    """Print what open pages cost the service; how much of a core it is with them."""
    began = site.share()
    time.sleep(seconds / 4)
    alone = site.share(began)
    with site.visitor() as visitor:
        began = site.share()
        times = asyncio.run(_open_pages(site, visitor.cookies, num_open, seconds))
    share = float(site.share(began))
    told = (
        f"{num_open} open pages, {len(times) / seconds:.0f} requests/s: {share:.2f} of a core ({alone:.2f} without any)"
    )
    worst = statistics.quantiles(times, n=100)[98]
    print(f"{told}; a part answers in {statistics.median(times):.1f} ms (99 of 100 in {worst:.1f})")
    return share


def time_browser(site: Site, seconds: float) -> float:
    """Print how a browser copes with pages that change; its longest task, milliseconds."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return 0.0
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        return 0.0
    longest = [0.0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(site.url)
        page.fill("input[name=token]", site.token)
        page.click("button:has-text('Sign in')")
        for address in ("/", f"/jobs/{site.jobs[0]}"):
            page.goto(site.url + address)
            page.wait_for_timeout(1000)
            page.evaluate(_WATCH)
            page.wait_for_timeout(1000 * seconds)
            seen = page.evaluate("seen")
            frames, tasks = seen["frames"], [task for task in seen["tasks"] if task > LONG_TASK_MS]
            longest += tasks
            told = (
                f"{address:20} {seen['changes']} changes in {seconds:g} s, {len(tasks)} tasks over {LONG_TASK_MS:g} ms"
            )
            told += f" (longest {max(tasks, default=0):.0f}); a frame in {statistics.median(frames):.1f} ms"
            print(f"{told} (99 of 100 in {statistics.quantiles(frames, n=100)[98]:.1f}, worst {max(frames):.1f})")
        browser.close()
    return max(longest)


def main() -> int:
    """Measure and tell; 1: a page is too slow, or the pages cost more than a core."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--open", type=int, default=200, help="pages that are open at a time")
    parser.add_argument("--seconds", type=float, default=20, help="for which pages are open")
    chosen = parser.parse_args()
    with busy_service(chosen.jobs) as site:
        medians = time_pages(site)
        share = time_open(site, chosen.open, chosen.seconds)
        time_browser(site, chosen.seconds)
    return 0 if max(medians) < TARGET_MS and share < 1 else 1


if __name__ == "__main__":
    sys.exit(main())
