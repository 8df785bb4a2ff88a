"""Verbs of retention: set, show, plan, apply."""

from __future__ import annotations

import time
from collections import Counter
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from segfleet.cli.output import clean, duration, note, print_json, say, stdout
from segfleet.client import Client
from segfleet.errors import SettingsError, SpecError
from segfleet.spec.document import apply_overrides

app = typer.Typer(
    help="What of ended jobs may go: set, show, plan, apply.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@app.command("set")
def set_rules(
    changes: Annotated[list[str], typer.Argument(metavar="RULE=VALUE...", help="RULE=null: never, or the default.")],
    as_json: Json = False,
) -> None:
    """Change rules; those that are not named stay. Deletes nothing: see plan, then apply.

    checkpoints_after, logs_after, runs_after: age since the job's end at which they go; null: never.
    keep_best, keep_latest: checkpoints of each job and trial that stay (true).
    retry_for: so long failed and cancelled jobs keep what a retry would go on from (30d).

    Example: segfleet retention set checkpoints_after=30d logs_after=180d

    Example: segfleet retention set keep_latest=false
    """
    with Client() as client:
        try:
            rules = apply_overrides(client.retention(), changes)
        except SpecError as error:
            raise SettingsError(str(error)) from error
        rules = client.set_retention(rules)
    _show_rules(rules, as_json)


@app.command()
def show(as_json: Json = False) -> None:
    """Show the rules as they hold.

    Example: segfleet retention show
    """
    with Client() as client:
        rules = client.retention()
    _show_rules(rules, as_json)


@app.command()
def plan(as_json: Json = False) -> None:
    """Show what would go now, and delete nothing.

    Example: segfleet retention plan
    """
    with Client() as client:
        found = client.plan_retention()
    if as_json:
        print_json(found)
        return
    if found["pieces"]:
        table = Table(box=None, pad_edge=False)
        for name in ("JOB", "KIND", "SIZE", "NAME"):
            table.add_column(name, overflow="fold")
        for piece in found["pieces"]:
            size = size_text(piece["bytes"]) if piece["bytes"] else "-"
            table.add_row(*(Text(clean(text)) for text in (piece["job"], piece["kind"], size, piece["name"])))
        stdout().print(table)
    say(f"would go: {_summary(found['pieces'])}")


@app.command()
def apply(
    yes: Annotated[bool, typer.Option("--yes", help="Do it: what is deleted does not come back.")] = False,
    as_json: Json = False,
) -> None:
    """Delete what 'segfleet retention plan' shows. Stopped in between, the next one goes on.

    Example: segfleet retention apply --yes
    """
    if not yes:
        raise SettingsError("what is deleted does not come back; look at 'segfleet retention plan', then add --yes")
    gone: list[dict[str, Any]] = []
    with Client() as client:
        began = time.monotonic()
        for answer in client.apply_retention():
            gone += answer["gone"]
            if answer["left"] and gone:
                rest_s = (time.monotonic() - began) / len(gone) * answer["left"]
                note(f"{len(gone)} gone, {answer['left']} left, about {duration(rest_s)}")
    if as_json:
        print_json({"gone": gone, "bytes": sum(piece["bytes"] for piece in gone)})
    else:
        say(f"gone: {_summary(gone)}")


def size_text(size: float) -> str:
    """A number of bytes for people."""
    for unit in _UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"


def _summary(pieces: list[dict[str, Any]]) -> str:
    if not pieces:
        return "nothing"
    counts = Counter(piece["kind"] for piece in pieces)
    kinds = ", ".join(f"{count} {kind}{'s' if count != 1 else ''}" for kind, count in sorted(counts.items()))
    jobs = len({piece["job"] for piece in pieces})
    return f"{kinds} of {jobs} job{'s' if jobs != 1 else ''}, {size_text(sum(piece['bytes'] for piece in pieces))}"


def _show_rules(rules: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(rules)
        return
    if not any(rules[name] for name in ("checkpoints_after", "logs_after", "runs_after")):
        note("nothing ever goes: checkpoints_after, logs_after and runs_after are not set")
    say(", ".join(f"{name}={'null' if value is None else str(value).lower()}" for name, value in rules.items()))
