"""Verbs for jobs: check, submit, jobs, show, logs, cancel, pause, resume, priority, retry, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table

from segfleet.address import NoServiceError
from segfleet.cli.children import options, require, run_module
from segfleet.cli.follow import follow_job, print_log
from segfleet.cli.job_text import job_cells, outlook_text, plan_of, print_job, print_outcome
from segfleet.cli.output import ago, note, print_json, say, stdout
from segfleet.cli.searches import plan_of_search, print_leaderboard, print_left_out, print_plan
from segfleet.client import Client
from segfleet.connection import UnreachableError
from segfleet.errors import SettingsError, SpecError
from segfleet.queue.states import JobState
from segfleet.spec.document import apply_overlay, apply_overrides, read_document
from segfleet.spec.resolve import resolve_spec, to_document

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job, as 'segfleet jobs' lists it.")]
SpecFile = Annotated[
    Path, typer.Argument(metavar="SPEC", exists=True, dir_okay=False, help="YAML or JSON file of a job spec.")
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one value of the spec; repeatable.")
]
Overlays = Annotated[
    list[Path] | None,
    typer.Option(
        "--overlay",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Lay this document over the spec, before any --set; null takes a key out. Repeatable.",
    ),
]

# A search may have a thousand; 'segfleet leaderboard' shows all.
_SHOWN_TRIALS = 20


def register(app: typer.Typer) -> None:
    """Add the verbs to the application."""
    for verb in (check, submit, jobs, show, logs, cancel, pause, resume, priority, retry, report):
        app.command()(verb)


def check(spec: SpecFile, changes: Changes = None, overlays: Overlays = None, as_json: Json = False) -> None:
    """Validate a spec, fill in its defaults and show the plan: all errors at once, nothing started.

    Works without a service; with one, its queue's rules are asked too.

    Example: segfleet check jobs/specs/camvid-seg-s-linear-14.yaml --set train.steps=500
    """
    try:
        document = _read(spec, changes, overlays)
        resolved, outlook = to_document(resolve_spec(document, str(spec))), None
        if (answer := _ask_service(document)) is not None:
            resolved, outlook = answer["spec"], answer["outlook"]
            _tell_forced(answer["forced"])
    except SpecError as error:
        if as_json:
            print_json({"ok": False, "problems": error.as_json()})
        raise
    is_search = resolved["kind"] == "search"
    if as_json:
        print_json(
            {"ok": True, "spec": resolved, "outlook": outlook}
            | ({"plan": plan_of_search(resolved)} if is_search else {})
        )
        return
    sys.stdout.write(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=False))
    note(f"{spec} is valid: {plan_of(resolved)}")
    if outlook is not None:
        note(outlook_text(outlook))
    if is_search:
        print_plan(resolved)


def submit(
    spec: SpecFile,
    changes: Changes = None,
    overlays: Overlays = None,
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same key and spec give the same job.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show live progress; exit 0 if the job succeeds.")] = False,
    as_json: Json = False,
) -> None:
    """Put a job into the queue.

    Example: segfleet submit jobs/specs/camvid-seg-s-linear-14.yaml --follow

    Example: segfleet submit spec.yaml --set data.shards=shards/mine --set optim.lr=0.01 --key nightly-7

    Example: segfleet submit jobs/specs/paper/table3.yaml --overlay jobs/specs/paper/tiny.yaml
    """
    document = _read(spec, changes, overlays)
    resolve_spec(document, str(spec))
    with Client() as client:
        job = client.submit(document, key=key)
        if not as_json:
            known = " was submitted before under this key" if job.get("replayed") else " submitted"
            say(f"{job['id']}{known} ({job['name']})")
            _tell_forced(job["forced"])
            if job["kind"] == "search":
                print_left_out(plan_of_search(job["spec"])["impossible"])
        if not follow:
            if as_json:
                print_json(job)
            else:
                say(f"{job['state']}: {job['reason']}" if job["reason"] else job["state"])
                say(f"see it with: segfleet show {job['id']}, segfleet logs {job['id']} --follow")
            return
        job = follow_job(client, job["id"])
    if as_json:
        print_json(job)
    else:
        print_outcome(job)
    raise typer.Exit(0 if job["state"] == "succeeded" else 1)


def jobs(
    state: Annotated[list[JobState] | None, typer.Option(help="Only these; may be given several times.")] = None,
    project: Annotated[str | None, typer.Option(help="Only jobs of this project.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only jobs of this user.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind, such as train.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs with this in their name.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 100,
    every: Annotated[bool, typer.Option("--all", help="However many there are.")] = False,
    as_json: Json = False,
) -> None:
    """List jobs, the newest first.

    Example: segfleet jobs --state running --state queued --owner ann
    """
    with Client() as client:
        most = None if every else limit
        found = client.jobs(state=state, limit=most, project=project, owner=owner, kind=kind, name=name)
    if as_json:
        print_json(found)
        return
    if not found:
        say("no such jobs")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("JOB", "NAME", "KIND", "STATE", "STEP", "mIoU", "AGE", "REASON"):
        table.add_column(column, no_wrap=column not in ("NAME", "REASON"), overflow="fold")
    for job in found:
        table.add_row(*job_cells(job))
    stdout().print(table)


def show(job_id: JobId, as_json: Json = False) -> None:
    """Show one job: state, progress, attempts, history, result.

    Example: segfleet show job-ab2c3d4e
    """
    with Client() as client:
        job = client.job(job_id)
        events = client.events(job_id)
        found = client.trials(job_id) if job["kind"] == "search" else None
    if as_json:
        print_json({**job, "events": events} | ({} if found is None else {"trials": found["trials"]}))
        return
    print_job(job)
    for event in events:
        target = f" -> {event['target']}" if event["target"] not in (None, event["kind"]) else ""
        say(f"  {ago(event['at'])} ago: {event['kind']}{target} (by {event['who']})")
    if found is not None:
        print_leaderboard(found, most=_SHOWN_TRIALS)
    print_outcome(job)


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job's log is complete.")] = False,
) -> None:
    """Print the log of a job, all attempts in order; survives the end of the cluster.

    Example: segfleet logs job-ab2c3d4e --follow
    """
    with Client() as client:
        try:
            print_log(client.logs(job_id, follow=follow))
        except KeyboardInterrupt:
            note(f"stopped following; {job_id} goes on")
            raise typer.Exit(130) from None


def cancel(job_id: JobId, as_json: Json = False) -> None:
    """End a job; it is cancelled once nothing of it runs any more.

    Example: segfleet cancel job-ab2c3d4e
    """
    with Client() as client:
        job = client.cancel(job_id)
    _answer(job, as_json, "is cancelled" if job["state"] == "cancelled" else "is being cancelled")


def pause(job_id: JobId, as_json: Json = False) -> None:
    """Take a job out of the line; a running one writes a checkpoint first and keeps it.

    Example: segfleet pause job-ab2c3d4e
    """
    with Client() as client:
        job = client.pause(job_id)
    _answer(job, as_json, "is paused" if job["state"] == "paused" else "pauses at its next checkpoint")


def resume(job_id: JobId, as_json: Json = False) -> None:
    """Put a paused job back into the line, at the place of its age.

    Example: segfleet resume job-ab2c3d4e
    """
    with Client() as client:
        job = client.resume(job_id)
    _answer(job, as_json, "is queued again")


def priority(
    job_id: JobId,
    value: Annotated[int, typer.Argument(metavar="N", min=0, max=100, help="0 to 100; higher runs first.")],
    as_json: Json = False,
) -> None:
    """Change a job's priority.

    Example: segfleet priority job-ab2c3d4e 80
    """
    with Client() as client:
        job = client.set_priority(job_id, value)
    _answer(job, as_json, f"has priority {job['priority']}")


def retry(
    job_id: JobId,
    from_start: Annotated[bool, typer.Option("--from-start", help="Forget the checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Queue a failed or cancelled job again, from its last checkpoint.

    Example: segfleet retry job-ab2c3d4e
    """
    with Client() as client:
        job = client.retry(job_id, from_start=from_start)
    _answer(job, as_json, f"is {job['state']} again")


def report(
    job_id: JobId,
    out: Annotated[Path | None, typer.Option(help="Folder for the files (default: report-JOB).")] = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option(help="Show attention on this picture instead of the dataset's; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a page of figures, curves and pictures: of a finished training or evaluation, or of a search.

    Example: segfleet report job-ab2c3d4e --out report
    """
    require("report", ("jinja2", "matplotlib", "mlflow", "numpy", "torch"), "train")
    chosen = [part for path in picture or [] for part in options(picture=path)]
    raise typer.Exit(run_module("segfleet_jobs.report", [*options(out=out, json=as_json), *chosen, "--", job_id]))


def _read(spec: Path, changes: list[str] | None, overlays: list[Path] | None) -> dict[str, Any]:
    document = read_document(spec)
    for overlay in overlays or []:
        document = apply_overlay(document, read_document(overlay))
    try:
        return apply_overrides(document, changes or [])
    except SpecError as error:
        # Not the spec is wrong but the command line.
        raise SettingsError(str(error)) from error


def _ask_service(document: dict[str, Any]) -> dict[str, Any] | None:
    """What a running service says, which knows the queue's rules; without one the check stays local."""
    try:
        with Client(patience_s=0.0) as client:
            return client.check(document)
    except (NoServiceError, UnreachableError):
        note("checked without a service: none answers")
        return None


def _tell_forced(paths: list[str]) -> None:
    if paths:
        note(f"the operator's values stand in {', '.join(paths)}; see 'segfleet quota show'")


def _answer(job: dict[str, Any], as_json: bool, what: str) -> None:
    if as_json:
        print_json(job)
    else:
        say(f"{job['id']} {what}")
