"""Searches on the command line: the plan before, the leaderboard during and after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from segfleet.cli.output import clean, note, number, print_json, say, stdout
from segfleet.client import Client
from segfleet.leaderboard import By, Standing, leaderboard
from segfleet.spec.kinds import SearchSpec
from segfleet.spec.search import combinations, most_parallel, num_trials, planned_steps

_SHOWN_IMPOSSIBLE = 10
_MARK = "*"


def register(app: typer.Typer) -> None:
    """Add the verb to the application."""
    app.command("leaderboard")(show_leaderboard)


def show_leaderboard(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="Id of a search, as 'segfleet jobs' lists it.")],
    by: Annotated[By, typer.Option(help="Best value, best value per worker-hour, or most images a second.")] = "value",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")] = False,
) -> None:
    """Show the trials of a search, best first.

    Example: segfleet leaderboard job-ab2c3d4e --by cost
    """
    with Client() as client:
        found = client.trials(job_id)
    if as_json:
        standings = leaderboard(found["trials"], found["mode"], by)
        rows = [_row(standing) for standing in standings]
        final = [trial for trial in found["trials"] if trial["kind"] == "final"]
        print_json({"metric": found["metric"], "mode": found["mode"], "by": by, "trials": rows, "final": final})
        return
    print_leaderboard(found, by)


def print_leaderboard(found: Mapping[str, Any], by: By = "value", most: int | None = None) -> None:
    """The trials of a search as a table, best first.

    Args:
        found: What `Client.trials` gives.
        by: Order of the rows.
        most: So many rows at most; None: all.
    """
    standings = leaderboard(found["trials"], found["mode"], by)
    if not standings:
        say("no trial has begun yet")
        return
    table = Table(box=None, pad_edge=False)
    for column in _columns(str(found["metric"])):
        table.add_column(column, no_wrap=column != "CHOICE", overflow="fold")
    short = _short_names(standings)
    for standing in standings[:most]:
        table.add_row(*(Text(clean(cell)) for cell in _cells(standing, short)))
    stdout().print(table)
    for standing in standings[:most]:
        if why := standing.trial["why"]:
            say(f"trial {standing.trial['number']} {standing.trial['state']}: {why}")
    if most is not None and len(standings) > most:
        say(f"and {len(standings) - most} more: segfleet leaderboard JOB")
    say(f"{_MARK} no other trial is as good and as fast; BY COST is the place by {found['metric']} a worker-hour")
    for trial in found["trials"]:
        if trial["kind"] == "final":
            value, steps = number(trial["best_value"]), f"step {trial['step']}/{trial['num_steps']}"
            say(f"final training: {trial['state']}, {steps}, {found['metric']} {value}")


def plan_of_search(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a resolved search will do, as plain data."""
    spec = SearchSpec.model_validate_json(json.dumps(document))
    grid = combinations(spec)
    impossible = [] if grid is None else [{"params": one.params, "reason": one.reason} for one in grid.impossible]
    return {
        "algorithm": spec.search.algorithm,
        "combinations": None if grid is None else len(grid.possible) + len(grid.impossible),
        "impossible": impossible,
        "trials": num_trials(spec),
        "parallel": most_parallel(document),
        "workers_a_trial": document["base"]["resources"]["workers"],
        "steps": planned_steps(spec),
        "max_steps": spec.search.max_steps,
        "max_worker_hours": spec.search.max_worker_hours,
        "scheduler": spec.search.scheduler,
        "final": spec.final is not None,
    }


def print_plan(document: Mapping[str, Any]) -> None:
    """What a resolved search will do, for people, and which combinations are left out."""
    plan = plan_of_search(document)
    resources = document["base"]["resources"]
    count = plan["combinations"]
    of_all = "of more than can be listed" if count is None else f"of {count:,} combinations"
    each = f"{plan['workers_a_trial']} worker(s) with {resources['cpus_per_worker']} CPU"
    note(
        f"{plan['trials']:,} trials {of_all}, by {plan['algorithm']}, at most {plan['parallel']} at a time, "
        f"each on {each} and {resources['gpus_per_worker']} GPU"
    )
    budgets = [] if plan["max_steps"] is None else [f"{plan['max_steps']:,} steps"]
    budgets += [] if plan["max_worker_hours"] is None else [f"{plan['max_worker_hours']:g} worker-hours"]
    early = "; asha ends some earlier" if plan["scheduler"] == "asha" else ""
    note(f"budget: {' and '.join(budgets) or 'none'}; without it {plan['steps']:,} steps at most{early}")
    note("then the best is trained once more" if plan["final"] else "no final training: the best trial itself counts")
    print_left_out(plan["impossible"])


def print_left_out(impossible: list[dict[str, Any]]) -> None:
    """Which combinations cannot be trained, and why."""
    if not impossible:
        return
    note(f"left out as impossible: {len(impossible)} combination(s)")
    for one in impossible[:_SHOWN_IMPOSSIBLE]:
        note(f"  {_text(one['params'])}: {one['reason']}")
    if len(impossible) > _SHOWN_IMPOSSIBLE:
        note(f"  and {len(impossible) - _SHOWN_IMPOSSIBLE} more; 'segfleet check --json' lists all")


def _columns(metric: str) -> tuple[str, ...]:
    value = metric.removeprefix("val/")
    return (
        "#",
        "TRIAL",
        value,
        "BY COST",
        "BY SPEED",
        "STEP",
        "IMAGES/S",
        "PARAMETERS",
        "MiB",
        "W-HOURS",
        "CHOICE",
        "STATE",
    )


def _cells(standing: Standing, short: Mapping[str, str]) -> list[str]:
    trial, places = standing.trial, standing.places
    return [
        _place(places["value"]),
        f"{trial['number']}{_MARK if standing.is_pareto else ''}",
        number(trial["best_value"]),
        _place(places["cost"]),
        _place(places["speed"]),
        f"{trial['step']}/{trial['num_steps']}",
        number(trial["images_per_s"]),
        "-" if trial["parameters"] is None else f"{trial['parameters'] / 1e6:.1f}M",
        number(trial["peak_memory_mib"]),
        number(trial["worker_seconds"] / 3600, 3),
        _text({short[path]: value for path, value in trial["params"].items()}),
        trial["state"],
    ]


def _row(standing: Standing) -> dict[str, Any]:
    """A standing as plain data: the trial's document with its places."""
    ranking = {"places": dict(standing.places), "value_per_hour": standing.value_per_hour}
    return {**standing.trial, **ranking, "is_pareto": standing.is_pareto}


def _short_names(standings: Sequence[Standing]) -> dict[str, str]:
    """The last word of each path, or the whole path where two end alike."""
    paths = list(dict.fromkeys(path for standing in standings for path in standing.trial["params"]))
    words = [path.rpartition(".")[2] for path in paths]
    return {path: word if words.count(word) == 1 else path for path, word in zip(paths, words, strict=True)}


def _text(params: Mapping[str, Any]) -> str:
    return " ".join(
        f"{path}={value if isinstance(value, str) else json.dumps(value)}" for path, value in params.items()
    )


def _place(place: int | None) -> str:
    return "-" if place is None else str(place)
