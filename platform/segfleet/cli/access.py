"""Verbs of admins and operators: token create, list and revoke; audit."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from segfleet.access.roles import Role
from segfleet.cli.output import ago, clean, duration, note, print_json, say, stdout
from segfleet.client import Client

app = typer.Typer(
    help="Users' tokens: create, list, revoke (admins).",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]


def register(main: typer.Typer) -> None:
    """Add the verb `audit` to the application."""
    main.command()(audit)


@app.command()
def create(
    user: Annotated[str, typer.Argument(help="Name of the user; made if it is not known yet.")],
    role: Annotated[Role | None, typer.Option("--role", help="The user's role from now on (new: user).")] = None,
    project: Annotated[
        list[str] | None,
        typer.Option("--project", help="Where the user may submit from now on (new: default); repeatable."),
    ] = None,
    expires: Annotated[str, typer.Option("--expires", help="Life, such as 12h or 90d, or never.")] = "90d",
    as_json: Json = False,
) -> None:
    """Make a token and print it, for the only time.

    Example: segfleet token create ann --project vision --project maps

    Example: segfleet token create ci --role viewer --expires never
    """
    with Client() as client:
        made = client.create_token(user, role=role, projects=project, expires=expires)
    if as_json:
        print_json(made)
        return
    projects = ", ".join(made["projects"]) or "none"
    note(f"token {made['id']} of {made['user']}: role {made['role']}, projects {projects}, expires {_end(made)}")
    note("it is shown this once; give it to the user as SEGFLEET_TOKEN")
    say(made["token"])


@app.command("list")
def list_tokens(as_json: Json = False) -> None:
    """Show all tokens, without what is secret in them.

    Example: segfleet token list
    """
    with Client() as client:
        tokens = client.tokens()
    if as_json:
        print_json(tokens)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("ID", "USER", "ROLE", "PROJECTS", "STATE", "EXPIRES", "USED", "MADE BY"):
        table.add_column(column, no_wrap=column in ("ID", "STATE"))
    for token in tokens:
        used = "never" if token["last_used_at"] is None else f"{ago(token['last_used_at'])} ago"
        person = (token["user"], token["role"], ", ".join(token["projects"]))
        cells = (token["id"], *person, token["state"], _end(token), used, token["made_by"])
        table.add_row(*(Text(clean(cell)) for cell in cells))
    stdout().print(table)


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As 'token list' shows it.")], as_json: Json = False
) -> None:
    """End a token at once; its user and jobs stay.

    Example: segfleet token revoke 0123456789ab
    """
    with Client() as client:
        token = client.revoke_token(token_id)
    if as_json:
        print_json(token)
    else:
        say(f"token {token['id']} of {token['user']} is revoked")


def audit(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most entries.")] = 50,
    before: Annotated[int | None, typer.Option(min=1, help="Only entries with a lower number.")] = None,
    as_json: Json = False,
) -> None:
    """Show who changed what, or was refused: the newest first (operators).

    Example: segfleet audit --limit 20
    """
    with Client() as client:
        page = client.audit(before=before, limit=limit)
    if as_json:
        print_json(page)
        return
    for entry in page["entries"]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["at"]))
        who = f"{entry['who']} ({entry['token_id']}, {entry['address']})"
        say(f"{entry['seq']:6} {at} {who}: {entry['action']} {entry['subject']}: {entry['outcome']}")
    if page["next"] is not None:
        note(f"older ones: segfleet audit --before {page['next']}")


def _end(token: dict[str, Any]) -> str:
    if token["expires_at"] is None:
        return "never"
    left_s = token["expires_at"] - time.time()
    return f"in {duration(left_s)}" if left_s > 0 else "has expired"
