"""Verbs of webhooks: create, list, delete, test, deliveries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from segfleet.cli.output import ago, clean, note, print_json, say, stdout
from segfleet.client import Client

app = typer.Typer(
    help="Post job events to an address: create, list, delete, test, deliveries.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
Webhook = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Its id, from 'segfleet webhook list'.")]
TEST_WAIT_S, _LOOK_EVERY_S = 20.0, 0.5


@app.command()
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="Begins with https://.")],
    events: Annotated[str, typer.Option(help="Comma-separated names of changes.")] = "succeeded,failed,cancelled",
    project: Annotated[str | None, typer.Option(help="Whose jobs; all if not given (operators).")] = None,
    as_json: Json = False,
) -> None:
    """Let job events be posted to an address, and print the secret of their signatures for the only time.

    Events: submitted, starting, running, preempting, preempted, paused, resumed, retrying, retry_requested, succeeded,
    failed, cancelled.

    Example: segfleet webhook create https://hooks.example.org/segfleet --events succeeded,failed --project vision
    """
    with Client() as client:
        made = client.create_webhook(url, [name.strip() for name in events.split(",") if name.strip()], project=project)
    if as_json:
        print_json(made)
        return
    note(f"webhook {made['id']} of {_whose(made)}: {', '.join(made['events'])}")
    note("its secret is shown this once; the receiver checks signatures with it")
    say(made["secret"])


@app.command("list")
def list_webhooks(as_json: Json = False) -> None:
    """Show your webhooks, or all if you are an operator.

    Example: segfleet webhook list
    """
    with Client() as client:
        found = client.webhooks()
    if as_json:
        print_json(found)
        return
    rows = [
        (one["id"], one["owner"], _whose(one), ", ".join(one["events"]), _counts(one["deliveries"]), one["url"])
        for one in found
    ]
    _show(("WEBHOOK", "OWNER", "JOBS OF", "EVENTS", "DELIVERED", "URL"), rows, "there are no webhooks")


@app.command()
def delete(webhook: Webhook) -> None:
    """Take a webhook away, with all that waits for it.

    Example: segfleet webhook delete wh-0123456789ab
    """
    with Client() as client:
        client.delete_webhook(webhook)
    say(f"{clean(webhook)} is deleted")


@app.command("test")
def try_out(webhook: Webhook, as_json: Json = False) -> None:
    """Send an event that tells of nothing, and say what became of it. Exit code 1: it was not taken.

    Example: segfleet webhook test wh-0123456789ab
    """
    with Client() as client:
        event_id, until = client.test_webhook(webhook), time.monotonic() + TEST_WAIT_S
        while True:
            found = next(row for row in client.deliveries(webhook) if row["id"] == event_id)
            if found["state"] != "pending" or found["tries"] or time.monotonic() > until:
                break
            time.sleep(_LOOK_EVERY_S)
    if as_json:
        print_json(found)
    else:
        say(f"{event_id}: {found['state']}, {clean(found['answer']) or 'not sent yet: earlier events wait before it'}")
    if found["state"] != "delivered":
        raise typer.Exit(1)


@app.command()
def deliveries(
    webhook: Webhook,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 20,
    as_json: Json = False,
) -> None:
    """Show what became of a webhook's events; those that were given up are dead.

    Example: segfleet webhook deliveries wh-0123456789ab
    """
    with Client() as client:
        found = client.deliveries(webhook, limit=limit)
    if as_json:
        print_json(found)
        return
    now = time.time()
    rows = [
        (
            ago(row["created_at"], now),
            row["id"],
            row["event"],
            row["job"] or "",
            row["state"],
            str(row["tries"]),
            row["answer"],
        )
        for row in found
    ]
    _show(("WHEN", "ID", "EVENT", "JOB", "STATE", "TRIES", "ANSWER"), rows, "nothing was sent yet")


def _show(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], nothing: str) -> None:
    if not rows:
        say(nothing)
        return
    table = Table(box=None, pad_edge=False)
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(text)) for text in row))
    stdout().print(table)


def _whose(webhook: dict[str, Any]) -> str:
    return str(webhook["project"] or "all projects")


def _counts(counts: dict[str, int]) -> str:
    rest = ", ".join(f"{count} {state}" for state, count in counts.items() if count and state != "delivered")
    return f"{counts.get('delivered', 0)}" + (f" ({rest})" if rest else "")
