"""Specs and jobs in words."""

from __future__ import annotations

import time
from typing import Any

from rich.text import Text

from segfleet.cli.output import ago, clean, duration, note, number, say
from segfleet.cli.time_text import fault_lines, time_lines

_STATE_STYLES = {
    "running": "cyan",
    "starting": "cyan",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "preempting": "magenta",
    "paused": "yellow",
}


def plan_of(spec: dict[str, Any]) -> str:
    """A valid spec in one line: what will be done, and by how many workers."""
    if spec["kind"] == "prepare":
        return f"prepare {spec['dataset']} into {spec['out']}"
    if spec["kind"] == "search":
        return f"{spec['search']['metric']} over {', '.join(spec['space'])}"
    resources = spec["resources"]
    gpus, cpus = resources["gpus_per_worker"], resources["cpus_per_worker"]
    return f"{_work(spec)}; {_workers(resources['workers'])} with {cpus} CPU and {gpus} GPU each"


def _workers(workers: int | dict[str, int]) -> str:
    """3 workers, or 2 to 8 workers."""
    if isinstance(workers, dict):
        return f"{workers['min']} to {workers['max']} workers"
    return f"{workers} worker{'s' if workers != 1 else ''}"


def _work(spec: dict[str, Any]) -> str:
    if spec["kind"] == "train":
        train = spec["train"]
        batch = f"{train['global_batch']} samples at {train['crop']} pixels"
        return f"{train['steps']} steps of {batch} in {train['precision']}"
    windows = spec["eval"]
    flip = " and flip" if windows and windows["flip"] else ""
    how = f"{len(windows['scales'])} scale(s){flip}" if windows else "as the model was validated"
    return f"evaluate {spec['model']} on {spec['data']['shards']}, {spec['data']['split']}, {how}, {spec['precision']}"


def job_cells(job: dict[str, Any]) -> list[Text]:
    """A job as a row of the list of jobs."""
    progress = job["progress"] or {}
    step = f"{progress['step']}/{progress['num_steps']}" if "step" in progress else "-"
    miou = (job["result"] or {}).get("miou", progress.get("miou"))
    place = f"place {job['place']}{_start(job)}: " if job["place"] else ""
    cells = [job["id"], job["name"], job["kind"], job["state"], step, number(miou), ago(job["created_at"])]
    texts = [Text(clean(cell)) for cell in cells]
    texts[3].stylize(_STATE_STYLES.get(job["state"], ""))
    reason = "cancelling" if job["cancel_requested"] and not job["finished_at"] else job["reason"]
    return [*texts, Text(clean(f"{place}{reason}"))]


def print_job(job: dict[str, Any]) -> None:
    """A job at length: state, times, progress, attempts."""
    say(f"{job['id']} {job['name']} ({job['kind']}, project {job['project']}, priority {job['priority']})")
    place = f", place {job['place']}{_start(job)}" if job["place"] else ""
    say(f"{job['state']}{place}{': ' + job['reason'] if job['reason'] else ''}")
    if job["started_at"] is not None:
        end = job["finished_at"]
        say(f"started {ago(job['started_at'])} ago, " + (f"took {ago(job['started_at'], end)}" if end else "runs"))
    elif job["state"] == "queued" and job["start_by"] is not None:
        say(f"fails if it has not started in {duration(job['start_by'] - time.time())}")
    if "max_workers" in job["needs"] and job["state"] in ("starting", "running", "preempting"):
        bounds = f"{job['needs']['workers']}-{job['needs']['max_workers']}"
        say(f"runs with {job['attempts'][-1]['workers']} of {bounds} workers")
    if where := _progress(job["progress"] or {}, has_ended=bool(job["finished_at"])):
        say(", ".join(where))
    for attempt in job["attempts"]:
        why = f": {attempt['failure']['message']}" if attempt["failure"] else ""
        say(f"  {attempt['id']} {attempt['state']}{why}")
    for line in (*fault_lines(job["faults"]), *time_lines(job["goodput"])):
        say(line)


def _progress(progress: dict[str, Any], has_ended: bool) -> list[str]:
    """What the job is at, how far, how well, and how long it will still take."""
    parts = [] if has_ended or not progress.get("phase") else [str(progress["phase"])]
    if "step" in progress:
        parts.append(f"step {progress['step']}/{progress['num_steps']}")
    figures = (("loss", "loss"), ("miou", "mIoU"))
    parts += [f"{name} {number(progress[key])}" for key, name in figures if progress.get(key) is not None]
    if not has_ended and progress.get("eta_s") is not None:
        parts.append(f"left {duration(progress['eta_s'])}")
    return parts


def _start(job: dict[str, Any]) -> str:
    """When a waiting job is expected to start, if anybody can tell."""
    return f" in about {duration(job['starts_at'] - time.time())}" if job["starts_at"] is not None else ""


def outlook_text(outlook: dict[str, Any]) -> str:
    """Where a job would stand in the line if it were submitted now."""
    if not outlook["place"]:
        return "it would start at once"
    start = f", to start{_start(outlook)}" if outlook["starts_at"] is not None else ""
    return f"it would wait at place {outlook['place']}{start}: {outlook['reason']}"


def print_outcome(job: dict[str, Any]) -> None:
    """How a job has ended, and what to do next."""
    result = job["result"] or {}
    if job["state"] == "failed" and job["error"]:
        note(f"{job['id']} failed ({job['error']['class']}): {job['error']['message']}")
        if "advice" in job["error"]:
            note(f"the log says {job['error']['cause']}: {job['error']['advice']}")
        note(f"see: segfleet logs {job['id']}; once mended: segfleet retry {job['id']}")
    elif job["state"] == "succeeded":
        miou = f", mIoU {number(result['miou'])}" if "miou" in result else ""
        what = (
            f": {result['model_version']} on {result['dataset']}, {result['split']}"
            if "model_version" in result
            else ""
        )
        reused = f", reused from {result['reused_from']}" if "reused_from" in result else ""
        say(f"{job['id']} succeeded{miou}{what}{reused}")
        model = result.get("model")
        if model:
            name = f"{model['name']}@{model['alias']}" if model.get("alias") else f"{model['name']}/{model['version']}"
            say(f"registered as {model['name']}/{model['version']}; segfleet predict --model {name} IMAGE --out DIR")
    elif job["state"] == "cancelled":
        note(f"{job['id']} was cancelled")
