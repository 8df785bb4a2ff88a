"""Watch a job live: a progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from segfleet.cli.output import clean, clean_line, duration, note, number, stderr
from segfleet.client import Client

Job = Mapping[str, Any]

LINE_EVERY_S = 10.0


def follow_job(client: Client, job_id: str) -> dict[str, Any]:
    """Show a job's progress on stderr until it has ended.

    Returns:
        The job in its terminal state.

    Raises:
        Exit: with code 130 on Ctrl-C; the job goes on.
    """
    console = stderr()
    show = _show_live if console.is_terminal else _show_lines
    try:
        return dict(show(client.watch(job_id), console))
    except KeyboardInterrupt:
        note(
            f"stopped following; {job_id} goes on. See 'segfleet show {job_id}', end it with 'segfleet cancel {job_id}'"
        )
        raise typer.Exit(130) from None


def describe(job: Job) -> str:
    """One line about where a job is: state, then figures while it runs, or why it waits."""
    progress = job["progress"] or {}
    if job["cancel_requested"] and job["state"] not in ("succeeded", "failed", "cancelled"):
        return "cancelling"
    if job["state"] == "running" and progress:
        phase = progress.get("phase") or "running"
        parts = [str(phase)] + [f"{name} {text}" for name, text in _figures(progress) if text != "-"]
        return "  ".join(parts)
    place = f", place {job['place']}" if job.get("place") else ""
    return f"{job['state']}{place}{': ' + str(job['reason']) if job['reason'] else ''}"


def print_log(pieces: Iterable[str]) -> None:
    """Write the pieces of a log to stdout line by line, without what a terminal would obey."""
    rest = ""
    for piece in pieces:
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            sys.stdout.write(clean_line(line) + "\n")
        sys.stdout.flush()
    if rest:
        sys.stdout.write(clean_line(rest) + "\n")
        sys.stdout.flush()


def _figures(progress: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "loss", number(progress.get("loss"))
    yield "mIoU", number(progress.get("miou"), 3)
    yield "samples/s", number(progress.get("samples_per_s"), 3)
    yield "left", duration(progress.get("eta_s"))


def _show_live(jobs: Iterable[Job], console: Console) -> Job:
    columns = (
        BarColumn(bar_width=24),
        TextColumn("{task.fields[steps]}", markup=False),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
    )
    job: Job = {}
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None, steps="", text="")
        for job in jobs:
            step, total = _steps(job)
            steps = f"{step}/{total}" if total else ""
            bar.update(task, completed=step, total=total or None, steps=steps, text=clean(describe(job)))
    return job


def _show_lines(jobs: Iterable[Job], console: Console, clock: Callable[[], float] = time.monotonic) -> Job:
    job: Job = {}
    shown_state, shown_at = "", 0.0
    for job in jobs:
        now = clock()
        if job["state"] != shown_state or now - shown_at >= LINE_EVERY_S:
            step, total = _steps(job)
            steps = f"step {step}/{total}  " if total else ""
            console.print(clean(f"{job['id']}  {steps}{describe(job)}"), markup=False)
            shown_state, shown_at = job["state"], now
    return job


def _steps(job: Job) -> tuple[int, int]:
    progress = job["progress"] or {}
    return int(progress.get("step") or 0), int(progress.get("num_steps") or 0)
