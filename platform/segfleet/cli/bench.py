"""Verbs that measure: bench model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segfleet.cli.children import options, require, run_module

app = typer.Typer(help="Measure: model.", no_args_is_help=True, rich_markup_mode=None, add_completion=False)


@app.callback()
def _group() -> None:
    """Measure on this machine."""


@app.command()
def model(
    variants: Annotated[
        list[str] | None, typer.Argument(metavar="VARIANT...", help="Such as seg-s-mask/16; default: Ti and S.")
    ] = None,
    spec: Annotated[list[Path] | None, typer.Option(help="A training spec; may be repeated.")] = None,
    size: Annotated[int, typer.Option(min=16, max=4096, help="Side of the pictures, pixels.")] = 512,
    batch: Annotated[
        int | None, typer.Option(min=1, max=65_536, help="Pictures at once; else all that fit on a GPU, 2 on a CPU.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Repetitions; the median counts.")] = 10,
    classes: Annotated[int, typer.Option(min=2, max=10_000, help="Classes that are scored.")] = 150,
    train: Annotated[bool, typer.Option("--train", help="Training steps only.")] = False,
    forward: Annotated[bool, typer.Option("--forward", help="Forward passes only.")] = False,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; else the spec's own.")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")] = False,
) -> None:
    """Measure images a second and memory of models, by the paper's protocol.

    On a GPU with the largest batch that fits. A training step is the whole one: loss, gradients, update.

    Example: segfleet bench model seg-s-mask/16 seg-b-mask/16

    Example: segfleet bench model --spec camvid.yaml --train --batch 8 --json
    """
    require("bench model", ("torch", "timm"), "train")
    given = options(
        size=size,
        batch=batch,
        steps=steps,
        classes=classes,
        train=train,
        forward=forward,
        precision=precision,
        compile=compile_,
        json=as_json,
    )
    given += [word for path in spec or () for word in ("--spec", str(path))]
    raise typer.Exit(run_module("segfleet_jobs.bench", [*given, "--", *(variants or ())]))
