"""Verbs for who may have an alias: models gate, promote, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from segfleet.cli.follow import describe
from segfleet.cli.model_text import gate_text
from segfleet.cli.output import clean, note, print_json, say
from segfleet.client import Client
from segfleet.errors import SettingsError
from segfleet.spec.document import read_document

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
Reference = Annotated[str, typer.Argument(metavar="MODEL", help="NAME@ALIAS or NAME/VERSION.")]


def register(models: typer.Typer) -> None:
    """Add the verbs to those of models."""
    for verb in (promote, gate, delete):
        models.command()(verb)


def promote(
    model: Reference,
    alias: Annotated[str, typer.Option(help="That the version is to have, such as champion.")],
    project: Annotated[str | None, typer.Option(help="Of the evaluations; 'default' if not given.")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for the evaluations.")] = False,
    as_json: Json = False,
) -> None:
    """Let a version have an alias: at once, or when it has passed the alias' gate.

    With a gate, the version and the alias' holder are evaluated on the same data in the same way, where that has not
    been done yet; the service goes on with it also when this command is stopped. Exit code 1: not promoted.

    Example: segfleet models promote segmenter-camvid/3 --alias champion

    Example: segfleet models promote segmenter-camvid@candidate --alias champion --no-wait
    """
    with Client() as client:
        promotion = client.promote(model, alias, project=project)
        if not no_wait:
            promotion = _follow(client, promotion)
    if as_json:
        print_json(promotion)
    else:
        say(summary(promotion))
    if promotion["state"] in ("refused", "stale"):
        raise typer.Exit(1)


def gate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Registered model.")],
    alias: Annotated[str | None, typer.Option(help="That the gate is before, such as champion.")] = None,
    shards: Annotated[str | None, typer.Option(help="Prepared dataset to evaluate on.")] = None,
    split: Annotated[str | None, typer.Option(help="Its split; val if not given.")] = None,
    metric: Annotated[str | None, typer.Option(help="Score that decides; miou if not given.")] = None,
    margin: Annotated[float | None, typer.Option(help="Better by at least that much; 0 if not given.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Or worse by at most that much, if --faster.")] = None,
    faster: Annotated[float | None, typer.Option(help="At least so many times the holder's images/s.")] = None,
    eval_file: Annotated[
        Path | None, typer.Option("--eval", metavar="FILE", help="YAML of an eval section; as validated if not given.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Of one evaluation.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, max=1, help="Of each worker.")] = 0,
    show: Annotated[bool, typer.Option("--show", help="Only show the gates.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take the alias' gate away.")] = False,
    as_json: Json = False,
) -> None:
    """Declare what a version must show to take over an alias.

    Example: segfleet models gate segmenter-camvid --alias champion --shards shards/camvid --margin 0.002

    Example: segfleet models gate segmenter-camvid --alias champion --shards s3://data/camvid --tolerance 0.005
    --faster 1.2

    Example: segfleet models gate segmenter-camvid --show
    """
    with Client() as client:
        if remove:
            client.remove_gate(name, _needed(alias, "--alias"))
        elif not show:
            rules: dict[str, Any] = {
                "shards": _needed(shards, "--shards"),
                "split": split,
                "metric": metric,
                "margin": margin,
                "tolerance": tolerance,
                "faster": faster,
                "eval": None if eval_file is None else read_document(eval_file),
            }
            given = {key: value for key, value in rules.items() if value is not None}
            resources = {"workers": workers, "gpus_per_worker": gpus}
            client.set_gate(name, _needed(alias, "--alias"), {**given, "resources": resources})
        gates = client.gates(name)
    if as_json:
        print_json(gates)
        return
    for one in gates:
        say(f"@{one['alias']}: {gate_text(one['rules'])} (set by {one['set_by']})")
    if not gates:
        say(f"{name} has no gates: every alias moves at once")


def delete(model: Annotated[str, typer.Argument(metavar="NAME/VERSION")], as_json: Json = False) -> None:
    """Take a version out of the registry; refused while an alias, a promotion or a job needs it.

    Example: segfleet models delete segmenter-camvid/2
    """
    if "@" in model:
        raise SettingsError(f"{model!r} is an alias; name the version, as NAME/VERSION")
    with Client() as client:
        deleted = client.delete_version(model)
    if as_json:
        print_json(deleted)
        return
    say(f"{deleted['name']}/{deleted['version']} is out of the registry")
    for what in deleted["stays"]:
        say(f"stays: {what}")


def summary(promotion: dict[str, Any]) -> str:
    """A promotion in a line."""
    who = f"{promotion['model']}/{promotion['version']} -> @{promotion['alias']}"
    return f"{promotion['id']}  {who}  {promotion['state']}: {promotion['why']}"


def _follow(client: Client, promotion: dict[str, Any]) -> dict[str, Any]:
    """Tell on stderr how the evaluations go, until the promotion is decided."""
    said = ""
    try:
        for now in client.watch_promotion(promotion["model"], promotion["id"]):
            promotion = now
            text = _progress(client, now)
            if text != said:
                note(said := text)
    except KeyboardInterrupt:
        note(f"stopped waiting; {promotion['id']} goes on. See 'segfleet models show {promotion['model']}'")
        raise typer.Exit(130) from None
    return promotion


def _progress(client: Client, promotion: dict[str, Any]) -> str:
    if promotion["state"] != "pending":
        return f"{promotion['state']}: {promotion['why']}"
    parts = []
    for side, job_id in promotion["evaluations"].items():
        if job_id is not None:
            job = client.job(job_id)
            progress = job["progress"] or {}
            steps = f" {progress['step']}/{progress['num_steps']}" if "step" in progress else ""
            parts.append(f"{side} {job_id}: {clean(describe(job))}{steps}")
    return "; ".join(parts) or promotion["why"]


def _needed(value: str | None, flag: str) -> str:
    if value is None:
        raise SettingsError(f"{flag} is missing")
    return value
