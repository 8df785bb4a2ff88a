"""The demo: from nothing to a registered model that predicts, through the public commands alone.

Starts everything on a fresh home folder, prepares synthetic pictures, trains on two workers, predicts, and prints what
it measured. Whatever happens, what it started is stopped at the end. `make demo` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from segfleet.cluster.ports import free_ports

ROOT = Path(__file__).resolve().parent.parent
SEGFLEET = Path(sys.executable).with_name("segfleet")
SPEC = ROOT / "jobs" / "specs" / "demo.yaml"
MODEL = "segmenter-demo@candidate"
# The trained model must beat always answering the commonest class by this factor.
NEEDED_RATIO = 4.0


class DemoError(Exception):
    """A stage failed; the message says which and where to look."""


@dataclass
class Demo:
    """One run: where its things are, and how long each stage took.

    Attributes:
        home: Home folder of the embedded services; short, because Ray puts sockets below it.
        out: Folder of the results.
        seconds: Duration of each stage that has ended.
    """

    home: Path
    out: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and take its time."""
        print(f"\n== {name}", flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started

    def run(self, *arguments: str | Path) -> None:
        """Run a segfleet command in the open.

        Raises:
            DemoError: it did not end with exit code 0.
        """
        self._run(arguments, stdout=None)

    def ask(self, *arguments: str | Path) -> Any:
        """Run a segfleet command with `--json`; what it says besides goes to the terminal.

        Raises:
            DemoError: it did not end with exit code 0.
        """
        return json.loads(self._run([*arguments, "--json"], stdout=subprocess.PIPE))

    def _run(self, arguments: Any, stdout: int | None) -> str:
        words = [str(argument) for argument in arguments]
        print(f"$ segfleet {' '.join(words if len(words) < 10 else [*words[:10], '...'])}", flush=True)
        done = subprocess.run([SEGFLEET, *words], stdout=stdout, text=True, cwd=self.out, env=self.environment)
        if done.returncode:
            raise DemoError(
                f"'segfleet {words[0]}' ended with exit code {done.returncode}; logs are in {self.home / 'logs'}"
            )
        return done.stdout or ""

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, pointed at the demo's own services."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SEGFLEET_")}
        return {**kept, "SEGFLEET_HOME": str(self.home)}


def extract_pictures(shards: Path, out: Path, count: int) -> list[Path]:
    """Take the first validation pictures out of their shard, which is an ordinary tar file.

    Raises:
        DemoError: the shard holds no picture.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures: list[Path] = []
    with tarfile.open(shards / "val-000000.tar") as tar:
        for member in tar:
            key, _, kind = Path(member.name).name.partition(".")
            content = tar.extractfile(member)
            if kind.startswith("image.") and content is not None and len(pictures) < count:
                pictures.append(out / f"{key}{Path(kind).suffix}")
                pictures[-1].write_bytes(content.read())
    if not pictures:
        raise DemoError(f"{shards / 'val-000000.tar'} holds no picture")
    return pictures


def figures(job: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, str]:
    """What the closing table says about the job and the services.

    Args:
        job: A succeeded training job, as `segfleet show --json` gives it.
        status: The services while idle, as `segfleet status --json` gives them.
    """
    result = job["result"]
    idle = {part["name"]: part["memory_mib"] for part in status["parts"]}
    return {
        "job": f"{job['id']}, {len(job['attempts'])} attempt(s), {job['finished_at'] - job['created_at']:.0f} s",
        "val mIoU": f"{result['miou']:.3f} at step {result['best_step']}",
        "always the commonest class": f"{result['baseline_miou']:.3f}",
        "ratio": f"{ratio(result):.1f} (at least {NEEDED_RATIO:g} needed)",
        "model": "{name}/{version} @{alias}".format(**result["model"]),
        "idle memory": ", ".join(f"{name} {mib:.0f} MiB" for name, mib in idle.items()),
        **{f"{part['name']} was at": part["address"] for part in status["parts"]},
    }


def ratio(result: Mapping[str, Any]) -> float:
    """How many times better the model is than always answering the commonest class."""
    return float(result["miou"] / result["baseline_miou"])


def play(demo: Demo, samples: int, changes: list[str]) -> dict[str, Any]:
    """All stages but the end.

    Returns:
        Figures for the closing table under `figures`, and the job's `result`.

    Raises:
        DemoError: a stage failed.
    """
    shards = demo.home / "shards"
    with demo.stage("start Ray, MLflow and the service"):
        demo.run("up", "--home", demo.home, "--port", str(free_ports(1)[0]), "--detach")
        status = demo.ask("status")
    with demo.stage("prepare the data"):
        demo.run("prepare", "synthetic", "--out", shards, "--samples", str(samples), "--processes", "2")
    with demo.stage("verify and look at it"):
        demo.run("verify", shards)
        demo.run("inspect", shards, "--split", "val", "--sheet", demo.out / "data.png")
    with demo.stage("train on two workers"):
        overrides = [word for change in [f"data.shards={shards}", *changes] for word in ("--set", change)]
        job_id = demo.ask("submit", SPEC, *overrides, "--follow")["id"]
        job = demo.ask("show", job_id)
    with demo.stage("look at the registered model"):
        demo.run("models", "show", MODEL)
    with demo.stage("predict"):
        pictures = extract_pictures(shards, demo.out / "pictures", 6)
        demo.run("predict", "--model", MODEL, "--out", demo.out / "predictions", *pictures)
    with demo.stage("report"):
        demo.ask("report", job_id, "--out", demo.out / "report")
    return {"figures": figures(job, status), "result": job["result"]}


def close(demo: Demo) -> None:
    """Stop what the demo has started, undisturbed by an impatient second Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    print("\n== stop", flush=True)
    subprocess.run([SEGFLEET, "down", "--home", str(demo.home)], check=False, env=demo.environment)


def show_table(demo: Demo, facts: Mapping[str, str]) -> None:
    """Print the closing table."""
    table = Table(title="segfleet demo", show_header=False)
    for name, seconds in demo.seconds.items():
        table.add_row(name, f"{seconds:.0f} s")
    table.add_row("all stages", f"{sum(demo.seconds.values()):.0f} s", end_section=True)
    for name, text in facts.items():
        table.add_row(name, text)
    table.add_section()
    for name in ("data.png", "predictions", "report"):
        table.add_row(name, str(demo.out / name))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(f"Look at it again: SEGFLEET_HOME={demo.home} {SEGFLEET} up   (remove it: rm -r {demo.home})")


def main() -> int:
    """Command line; exit code 0 if every stage succeeded and the model is good enough."""
    parser = argparse.ArgumentParser(description="From raw pictures to a registered model on this machine")
    parser.add_argument("--out", type=Path, default=ROOT / "demo-output", help="folder of the results, made anew")
    parser.add_argument("--samples", type=int, default=300, help="synthetic pictures")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change the job's spec")
    options = parser.parse_args()
    demo = Demo(Path(tempfile.mkdtemp(prefix="segfleet-", dir="/tmp")), options.out.absolute())
    shutil.rmtree(demo.out, ignore_errors=True)
    demo.out.mkdir(parents=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        outcome = play(demo, options.samples, options.set)
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    finally:
        close(demo)
    show_table(demo, outcome["figures"])
    if ratio(outcome["result"]) < NEEDED_RATIO:
        print(f"error: the model is not {NEEDED_RATIO:g} times better than the commonest class", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
