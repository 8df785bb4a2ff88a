"""Verbs for the operator's rules: quota set and show."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from segfleet.cli.output import clean, print_json, say, stdout
from segfleet.client import Client
from segfleet.errors import SettingsError, SpecError
from segfleet.spec.document import apply_overrides

app = typer.Typer(
    help="Quotas, weights and preemption: set, show.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]


@app.command("set")
def set_rules(
    whose: Annotated[str, typer.Argument(metavar="WHOSE", help="cluster, project:NAME or user:NAME.")],
    changes: Annotated[list[str], typer.Argument(metavar="RULE=VALUE...", help="RULE=null removes a rule.")],
    as_json: Json = False,
) -> None:
    """Change rules; those that are not named stay.

    project: workers, gpus (guaranteed), max_workers, max_gpus, max_running, max_queued, weight, limits.F, forced.F.
    user: max_workers, max_gpus, max_running, max_queued.
    cluster: preempt_for_priority, preempt_to_reclaim, min_run, grace, half_life, entry_penalty, max_overtaken,
    limits.F, forced.F.

    F is a field of specs: limits bound it from above, forced puts a value into every spec.

    Example: segfleet quota set project:vision workers=8 max_workers=16 weight=2

    Example: segfleet quota set cluster preempt_for_priority=true grace=2m

    Example: segfleet quota set project:vision limits.queue.time_limit=48h forced.queue.max_retries=5
    """
    scope, _, name = whose.partition(":")
    if not name and scope != "cluster":
        raise SettingsError(f"{whose!r} names nobody; write cluster, project:NAME or user:NAME")
    name = name or scope
    with Client() as client:
        known = {(policy["scope"], policy["name"]): policy["rules"] for policy in client.policies()}
        try:
            rules = apply_overrides(known.get((scope, name), {}), changes)
        except SpecError as error:
            raise SettingsError(str(error)) from error
        policy = client.set_policy(scope, name, rules)
    if as_json:
        print_json(policy)
    else:
        say(f"{_whose(policy)}: {_rules(policy) or 'no rules'}")


@app.command()
def show(as_json: Json = False) -> None:
    """Show all rules that are set.

    Example: segfleet quota show
    """
    with Client() as client:
        policies = client.policies()
    if as_json:
        print_json(policies)
        return
    if not policies:
        say("no rules are set: projects share alike, nobody is limited, and nothing is preempted")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("WHOSE", no_wrap=True)
    table.add_column("RULES", overflow="fold")
    for policy in policies:
        table.add_row(Text(clean(_whose(policy))), Text(clean(_rules(policy))))
    stdout().print(table)


def _whose(policy: dict[str, Any]) -> str:
    return policy["scope"] if policy["scope"] == policy["name"] else f"{policy['scope']}:{policy['name']}"


def _rules(policy: dict[str, Any]) -> str:
    return ", ".join(f"{rule}={value}" for rule, value in policy["rules"].items())
