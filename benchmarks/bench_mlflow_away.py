"""A training whose MLflow server is killed and comes back minutes later: the longest step, and what has arrived.

The steps do no training: each writes its points, and now and then a picture, as a training of that pace would. Halfway
the server is killed; it is started again after `--away` seconds. Then the end of a job: what is left is written, the
model is logged and registered, twice.

Run: nice python benchmarks/bench_mlflow_away.py [--away 300] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import mlflow

from segfleet.registry.registration import Registration, of_job
from segfleet.registry.registry import Registry
from segfleet_jobs.logged_model import log_segmenter
from segfleet_jobs.patience import Patience
from segfleet_jobs.replay import settle
from segfleet_jobs.run_plan import RunPlan
from segfleet_jobs.tracker import Tracker
from segfleet_jobs.tracking import end_run

CURVES = [f"val_iou/class-{number}" for number in range(20)]
PICTURE_EVERY = 200
BEFORE_S = AFTER_S = 10.0
PLAN = RunPlan("segfleet/bench", "away", {"segfleet.job": "away"}, {}, {}, {"kind": "train"})


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--away", type=float, default=300.0, help="seconds")
    parser.add_argument("--pace", type=float, default=10.0, help="steps a second")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    with tempfile.TemporaryDirectory() as folder:
        figures = _measure(Path(folder), options.away, options.pace)
    lines = [json.dumps(figures)] if options.json else [f"{name}: {value}" for name, value in figures.items()]
    print("\n".join(lines))


def _measure(folder: Path, away_s: float, pace: float) -> dict[str, Any]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
    server = _start(folder, port)
    servers = [server]

    def outage() -> None:
        time.sleep(BEFORE_S)
        _stop(servers.pop())
        time.sleep(away_s)
        servers.append(_start(folder, port))

    absence = threading.Thread(target=outage)
    try:
        tracker = Tracker(folder / "spool", PLAN)
        absence.start()
        steps, longest_s, spooled = _train(tracker, folder / "spool", BEFORE_S + away_s + AFTER_S, pace)
        absence.join()
        tracker.close()
        begin, patience = time.monotonic(), Patience()
        run_id = settle(folder / "spool", PLAN, patience)
        settled_s = time.monotonic() - begin
        return {
            "away, s": away_s,
            "steps": steps,
            "longest step, ms": round(1000 * longest_s, 1),
            "spool at its largest, KiB": round(spooled / 1024),
            "to settle after the last step, s": round(settled_s, 2),
            **_arrived(run_id, steps),
            "versions": _register(folder, run_id, patience),
        }
    finally:
        for server in servers:
            _stop(server)


def _train(tracker: Tracker, spool: Path, seconds: float, pace: float) -> tuple[int, float, int]:
    """Steps, the longest of them without its pause, and the most bytes that waited."""
    step, longest_s, most, end = 0, 0.0, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        step += 1
        begin = time.perf_counter()
        tracker.metrics(step, {"train/loss": 1 / step, **dict.fromkeys(CURVES, step / 7)})
        if step % PICTURE_EVERY == 0:
            tracker.picture(step, b"png" * 30_000)
            tracker.sync()
        longest_s = max(longest_s, time.perf_counter() - begin)
        if step % 50 == 0:
            most = max(most, sum(path.stat().st_size for path in spool.rglob("*") if path.is_file()))
        time.sleep(1 / pace)
    return step, longest_s, most


def _arrived(run_id: str, steps: int) -> dict[str, int]:
    client, missing, doubled = mlflow.MlflowClient(), 0, 0
    for name in ["train/loss", *CURVES]:
        found = Counter(point.step for point in client.get_metric_history(run_id, name))
        missing += sum(step not in found for step in range(1, steps + 1))
        doubled += sum(found.values()) - len(found)
    pictures = len(client.list_artifacts(run_id, "predictions"))
    return {
        "points": (1 + len(CURVES)) * steps,
        "missing": missing,
        "doubled": doubled,
        "pictures missing": steps // PICTURE_EVERY - pictures,
    }


def _register(folder: Path, run_id: str, patience: Patience) -> int:
    weights = folder / "model.safetensors"
    weights.write_bytes(b"weights" * 1000)
    registry = Registry(mlflow.get_tracking_uri())
    for _ in range(2):
        uri = log_segmenter(run_id, weights, {"model": {"arch": "segmenter"}}, patience)
        registry.register(Registration("away", run_id, uri, of_job("away", 1), {}, {}))
    end_run(run_id, {}, patience)
    return len(registry.model("away")["versions"])


def _start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    flags = [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts"]
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1", *flags]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, cwd=folder, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).is_success:
                return server
        except httpx.TransportError:
            time.sleep(0.2)
    _stop(server)
    raise SystemExit("the MLflow server did not start")


def _stop(server: subprocess.Popen[bytes]) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


if __name__ == "__main__":
    main()
