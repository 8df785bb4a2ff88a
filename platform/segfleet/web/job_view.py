"""What a job's page shows, put together from the queue and MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from segfleet.access.roles import Identity
from segfleet.access.sessions import form_key
from segfleet.cli.output import duration
from segfleet.errors import SpecError
from segfleet.queue.model import Attempt, Job
from segfleet.queue.states import AttemptState, JobState, is_terminal
from segfleet.server.services import Services
from segfleet.spec.filling import leaves
from segfleet.spec.resolve import resolve_spec, to_document
from segfleet.web.curves import Learning
from segfleet.web.figures import is_number, progress_of
from segfleet.web.visitors import may

_ACTIONS: Mapping[str, frozenset[JobState]] = {
    "pause": frozenset({JobState.QUEUED, JobState.STARTING, JobState.RUNNING, JobState.PREEMPTING}),
    "resume": frozenset({JobState.PAUSED}),
    "retry": frozenset({JobState.FAILED, JobState.CANCELLED}),
    "cancel": frozenset(JobState) - {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED},
    "priority": frozenset(JobState) - {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED},
}
# Name in MLflow, title, unit, and the factor that gives it.
_SERIES = (
    ("train/loss", "Training loss", "", 1),
    ("val/miou", "Validation mIoU", " %", 100),
    ("train/lr", "Learning rate", "", 1),
    ("train/samples_per_s", "Training speed", " samples/s", 1),
)
# Fields that every job has to have: a mark at them says nothing.
_SMALLEST: Mapping[str, Mapping[str, Any]] = {
    "train": {"data": {"shards": "/"}},
    "evaluate": {"model": "m/1", "data": {"shards": "/"}},
    "search": {"base": {"data": {"shards": "/"}}, "space": {"train.crop": [256, 512]}},
    "prepare": {"dataset": "synthetic", "out": "/"},
}


def state_view(services: Services, caller: Identity, session: str, job_id: str) -> dict[str, Any]:
    """How a job stands, and what the caller may do with it: what is looked at every few seconds.

    Raises:
        UnknownJobError: no such job.
    """
    queue = services.queue
    job, attempts, now = queue.get(job_id), queue.attempts(job_id), queue.clock()
    goodput = queue.goodput(job_id)
    split = None if goodput is None else goodput.to_document()
    return {
        "job": job,
        "now": now,
        "progress": progress_of(job.progress),
        "miou": (job.result or {}).get("miou", (job.progress or {}).get("miou")),
        "attempts": attempts,
        "spans": _spans(attempts, now),
        "end": now if job.finished_at is None else job.finished_at,
        "goodput": split,
        "goodput_spans": [] if split is None else _parts_of_time(split["seconds"]),
        "actions": _actions(job, caller),
        "may_clone": may(caller, ("POST", "/jobs")),
        "may_promote": may(caller, ("POST", "/models/{name}/promotions")),
        "form_key": form_key(session),
        "ray_url": _web(services.settings.ray_address),
        "is_over": is_terminal(job.state),
    }


def papers_view(services: Services, job: Job) -> dict[str, Any]:
    """What was asked for, and what has happened so far, as a page shows it once."""
    return {"events": services.queue.events(job.id)[-40:][::-1], "spec": spec_lines(job)}


def curves_view(services: Services, learning: Learning) -> dict[str, Any]:
    """All that MLflow knows of a job, and where its pages are."""
    found = learning.found or {"series": {}, "classes": {}, "pictures": []}
    series = [
        (title, [(step, factor * value) for step, value in found["series"].get(name, [])], unit)
        for name, title, unit, factor in _SERIES
    ]
    classes = sorted(found["classes"].items(), key=lambda item: (-item[1], item[0]))
    base = _web(services.settings.mlflow_uri)
    run = f"{base}/#/experiments/{found['experiment_id']}/runs/{found['run_id']}" if base and "run_id" in found else ""
    sheets = [(int(name[5:].partition(".")[0]), name) for name in found["pictures"] if name[5:13].isdecimal()]
    return {"learning": learning, "series": series, "classes": classes, "mlflow_url": run, "sheets": sheets}


def spec_lines(job: Job) -> list[tuple[str, str, bool]]:
    """(field, value, whether it is another than the default) of a job's resolved spec."""
    values = leaves(job.spec)
    smallest = {"kind": job.kind, "name": "job", **_SMALLEST.get(job.kind, {})}
    try:
        usual = leaves(to_document(resolve_spec(smallest)))
    except SpecError:
        usual = values
    return [(path, _text(value), path not in usual or usual[path] != value) for path, value in values.items()]


def _actions(job: Job, caller: Identity) -> list[str]:
    wanted = [name for name, states in _ACTIONS.items() if job.state in states]
    if job.cancel_requested and not is_terminal(job.state):
        return []
    return [name for name in wanted if may(caller, ("POST", f"/jobs/{{job_id}}/{name}"), job.owner)]


def _spans(attempts: Sequence[Attempt], now: float) -> list[tuple[float, float, str, str]]:
    spans = []
    for attempt in attempts:
        end = now if attempt.finished_at is None else attempt.finished_at
        why = f": {attempt.failure['message']}" if attempt.failure else ""
        text = f"attempt {attempt.number}, {attempt.state} after {duration(end - attempt.created_at)}{why}"
        if attempt.claimed_at is not None:
            spans.append((attempt.created_at, attempt.claimed_at, "starting", f"attempt {attempt.number}, starting"))
        kind = "running" if attempt.state == AttemptState.RUNNING else str(attempt.state)
        spans.append((attempt.claimed_at or attempt.created_at, end, kind, text))
    return spans


def _parts_of_time(seconds: Mapping[str, float]) -> list[tuple[float, float, str, str]]:
    ends = list(accumulate(seconds.values()))
    return [
        (end - length, end, f"part-{part}", f"{part} {duration(length)}")
        for end, (part, length) in zip(ends, seconds.items(), strict=True)
    ]


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if is_number(value) and isinstance(value, float) else str(value)


def _web(address: str) -> str:
    return address.rstrip("/") if address.startswith(("http://", "https://")) else ""
