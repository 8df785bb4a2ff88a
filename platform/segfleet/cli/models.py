"""Verbs for registered models: models list, show, compare, pull, import and export, and predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from segfleet.cli import promotions
from segfleet.cli.children import options, require, run_module
from segfleet.cli.model_text import comparison, comparison_rows, figures_text, gate_text, lineage
from segfleet.cli.output import ago, clean, number, print_json, say, stdout
from segfleet.client import Client
from segfleet.errors import SettingsError

app = typer.Typer(
    help="The model registry: list, show, compare, promote, gate, pull, delete, import, export.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
Reference = Annotated[str, typer.Argument(metavar="MODEL", help="NAME@ALIAS or NAME/VERSION.")]


def register(application: typer.Typer) -> None:
    """Add `predict` to the application."""
    application.command()(predict)


promotions.register(app)


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the registered models.

    Example: segfleet models list
    """
    with Client() as client:
        models = client.models()
    if as_json:
        print_json(models)
        return
    if not models:
        say("no models yet; a job with a 'register' section makes one")
        return
    table = _table("NAME", "LATEST", "ALIASES", "CHANGED")
    for model in models:
        aliases = ", ".join(f"@{alias} -> {version}" for alias, version in model["aliases"].items())
        _row(table, model["name"], model["latest_version"], aliases, f"{ago(model['updated_at'])} ago")
    stdout().print(table)


@app.command()
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="NAME, NAME@ALIAS or NAME/VERSION.")],
    as_json: Json = False,
) -> None:
    """Show a model's versions, gates and promotions, or one version with its lineage, metrics and tags.

    Example: segfleet models show segmenter-camvid

    Example: segfleet models show segmenter-camvid@candidate
    """
    with Client() as client:
        document = client.model(model)
        name = document["name"]
        document["promotions"] = [
            one for one in client.promotions(name) if document.get("version") in (None, one["version"], one["holder"])
        ]
        if "versions" in document:
            document["gates"] = client.gates(name)
    if as_json:
        print_json(document)
        return
    if "versions" in document:
        _show_versions(document)
    else:
        _show_version(document)
    _show_promotions(document["promotions"])


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="NAME@ALIAS or NAME/VERSION.")],
    b: Annotated[str, typer.Argument(metavar="B", help="NAME@ALIAS or NAME/VERSION.")],
    as_json: Json = False,
) -> None:
    """Show two versions side by side: figures of each dataset with B - A, size, data, and where their specs differ.

    Example: segfleet models compare segmenter-camvid@champion segmenter-camvid@candidate
    """
    for reference in (a, b):
        if "@" not in reference and "/" not in reference:
            raise SettingsError(f"{reference!r} names no version; write NAME@ALIAS or NAME/VERSION")
    with Client() as client:
        compared = comparison(client.model(a), client.model(b))
    if as_json:
        print_json(compared)
        return
    table = _table("", compared["a"], compared["b"], "B - A")
    for row in comparison_rows(compared):
        _row(table, *row)
    stdout().print(table)


@app.command()
def pull(
    model: Reference,
    out: Annotated[Path, typer.Option(help="Folder to make; must not exist.")],
    as_json: Json = False,
) -> None:
    """Fetch the files of a model version.

    Example: segfleet models pull segmenter-camvid@candidate --out model
    """
    with Client() as client:
        folder = client.pull(model, out)
    if as_json:
        print_json({"model": model, "folder": str(folder)})
    else:
        say(f"{model} is in {folder}")


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="checkpoint.pth with variant.yml beside it, or a .pth.")],
    name: Annotated[str, typer.Option(help="Registered model to make a version of.")],
    format_: Annotated[str, typer.Option("--format", metavar="reference|mmseg", help="The code it comes from.")],
    alias: Annotated[str | None, typer.Option(help="Moved to the version.")] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="FILE|DATASET", help="Class names, where the checkpoint does not say them.")
    ] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Pixels, instead of the checkpoint's own.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Pixels, instead of the checkpoint's own.")] = None,
    short_side: Annotated[int | None, typer.Option(min=1, help="Pixels, instead of the checkpoint's own.")] = None,
    as_json: Json = False,
) -> None:
    """Register a released checkpoint of the reference code or of MMSegmentation.

    Example: segfleet models import --format reference seg_tiny_mask/checkpoint.pth --name seg-t-mask --alias released

    Example: segfleet models import --format mmseg segmenter_vit-s_mask.pth --name seg-s-mask --classes ade20k
    """
    require("models import", ("torch", "timm", "mlflow", "safetensors"), "train")
    given = options(
        format=format_,
        name=name,
        alias=alias,
        classes=classes,
        window=window,
        stride=stride,
        short_side=short_side,
        json=as_json,
    )
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true"}
    raise typer.Exit(run_module("segfleet_jobs.import_model", [*given, "--", str(path)], quiet))


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="NAME@ALIAS, NAME/VERSION, or the folder of a pulled model.")
    ],
    out: Annotated[Path, typer.Option(help="File to write; a JSON beside it says what it holds.")],
    format_: Annotated[
        str, typer.Option("--format", metavar="onnx|torch", help="ONNX, or PyTorch's exported program (.pt2).")
    ] = "onnx",
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Pictures' size in pixels; the model's window if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model as one file for other programs, checked against the model itself.

    Example: segfleet models export segmenter-camvid@candidate --out camvid.onnx

    Example: segfleet models export segmenter-camvid/3 --format torch --size 512x1024 --out camvid.pt2
    """
    require("models export", ("torch", "timm"), "train")
    given = [*options(format=format_, out=out, size=size, json=as_json), "--", model]
    raise typer.Exit(run_module("segfleet_jobs.export", given))


def predict(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE", help="Pictures, folders of pictures, or quoted patterns (** for any depth)."),
    ],
    model: Annotated[str, typer.Option(help="NAME@ALIAS, NAME/VERSION, or the folder of a pulled model.")],
    out: Annotated[Path, typer.Option(help="Folder for masks and overlays; a folder's layout is kept.")],
    no_overlay: Annotated[bool, typer.Option("--no-overlay", help="Write masks only.")] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write STEM-probabilities.npy besides: float16 (K, H, W).")
    ] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out what this model has done; goes on after an interruption.")
    ] = False,
    max_megapixels: Annotated[float | None, typer.Option(help="Refuse larger pictures; 200 if not given.")] = None,
    label_ids: Annotated[
        str | None, typer.Option(help="cityscapes: write labelIds/ for the official evaluator besides.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write masks and overlays of pictures, by a registered model.

    Example: segfleet predict --model segmenter-camvid@candidate street.jpg --out predictions

    Example: segfleet predict --model segmenter-camvid@candidate photos "more/**/*.png" --out predictions

    Example: segfleet predict --model cityscapes@best val/*/*.png --out predictions --label-ids cityscapes
    """
    require("predict", ("torch", "timm", "PIL"), "train")
    given = options(
        model=model,
        out=out,
        no_overlay=no_overlay,
        probabilities=probabilities,
        skip_existing=skip_existing,
        max_megapixels=max_megapixels,
        label_ids=label_ids,
        json=as_json,
    )
    # A picture's name may begin with a dash, so that the names stand behind a double one.
    raise typer.Exit(run_module("segfleet_jobs.predict", [*given, "--", *images]))


def _show_versions(model: dict[str, Any]) -> None:
    table = _table("VERSION", "ALIASES", "mIoU", "JOB", "MADE")
    for version in model["versions"]:
        aliases = ", ".join(f"@{alias}" for alias in version["aliases"])
        made = f"{ago(version['created_at'])} ago"
        _row(table, version["version"], aliases, _miou(version), version["job"], made)
    say(model["name"])
    stdout().print(table)
    for gate in model["gates"]:
        say(f"gate of @{gate['alias']}: {gate_text(gate['rules'])}")


def _show_version(version: dict[str, Any]) -> None:
    aliases = ", ".join(f"@{alias}" for alias in version["aliases"]) or "no alias"
    say(f"{version['name']}/{version['version']} ({aliases}), made {ago(version['created_at'])} ago")
    for line in lineage(version):
        say(line)
    table = _table("", "")
    table.show_header = False
    for name, value in sorted(version["metrics"].items()):
        _row(table, name, number(value))
    for name, value in sorted(version["tags"].items()):
        if name != "segfleet.spec":
            _row(table, name, value)
    stdout().print(table)


def _show_promotions(found: list[dict[str, Any]]) -> None:
    if not found:
        return
    table = _table("PROMOTION", "VERSION", "ALIAS", "STATE", "FIGURES", "BY", "WHEN", "WHY")
    for one in found:
        versions = f"{one['holder'] or '-'} -> {one['version']}"
        when = f"{ago(one['updated_at'])} ago"
        figures = figures_text(one)
        _row(table, one["id"], versions, f"@{one['alias']}", one["state"], figures, one["who"], when, one["why"])
    stdout().print(table)


def _miou(version: dict[str, Any]) -> str:
    metrics = version["metrics"]
    return number(metrics.get("miou", metrics.get("val/miou")))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _row(table: Table, *cells: object) -> None:
    table.add_row(*(Text("-" if cell is None else clean(cell)) for cell in cells))
