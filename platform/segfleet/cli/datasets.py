"""Verbs for datasets: download, prepare, verify, inspect. The data tools do the work in a process of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from segfleet.cli.children import options, require, run_module
from segfleet.spec.kinds import DatasetKind

_TOOL = "segfleet_pipelines.tool"
_NEEDED = ("numpy", "cv2", "PIL", "pyarrow", "webdataset")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
Location = Annotated[
    str, typer.Argument(metavar="URI", help="Folder of a prepared dataset: a path, file://, s3://, gs://, http(s)://.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs to the application."""
    app.command()(download)
    app.command()(prepare)
    app.command()(verify)
    app.command()(inspect)


def download(
    dataset: Annotated[
        str,
        typer.Argument(metavar="DATASET", help="ade20k, pascal_context, pascal_context_59, voc, camvid, cityscapes."),
    ],
    raw: Annotated[str, typer.Option(help="Folder for the raw data; what is there and whole stays.")],
    mirror: Annotated[str | None, typer.Option(help="http(s) URL of a folder with the same files.")] = None,
    discard_archives: Annotated[
        bool, typer.Option("--discard-archives", help="Remove each archive once it is unpacked.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Get, check and unpack the published files of a dataset. Interrupted, it goes on where it was.

    Example: segfleet download ade20k --raw data/ade20k

    Example: segfleet download voc --raw data/voc --mirror http://files.example.org/datasets
    """
    given = options(raw=raw, mirror=mirror, discard_archives=discard_archives, json=as_json)
    _run("download", [dataset, *given])


def prepare(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help=", ".join(get_args(DatasetKind)) + ".")],
    out: Annotated[str, typer.Option(help="Folder to write, a path, s3:// or gs://; must hold no dataset yet.")],
    raw: Annotated[
        str | None, typer.Option(help="Folder (ade20k: or zip file) of the raw data; none for synthetic.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Prepared dataset to begin with: only what is new is written.")
    ] = None,
    adopt: Annotated[bool, typer.Option("--adopt", help="Raw holds WebDataset shards: only index them.")] = False,
    images: Annotated[str | None, typer.Option(help="keep (default), or jpeg95: PNG becomes JPEG, lossy.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Writing processes; never change the result.")] = None,
    samples: Annotated[int | None, typer.Option(min=2, help="Number of pictures; synthetic only.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the split and of synthetic pictures.")] = None,
    val_share: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Validation share, without lists.")] = None,
    as_json: Json = False,
) -> None:
    """Turn raw pictures and masks into shards with a manifest. Interrupted, it goes on where it was.

    Example: segfleet prepare camvid --raw data/camvid --out shards/camvid

    Example: segfleet prepare folder --raw my-pictures --out shards/mine --processes 8

    Example: segfleet prepare folder --raw my-pictures --out shards/mine-2 --base shards/mine

    Example: segfleet prepare ade20k --adopt --raw shards/ade20k --out shards/ade20k
    """
    given = options(
        raw=raw,
        out=out,
        base=base,
        adopt=adopt,
        images=images,
        processes=processes,
        samples=samples,
        seed=seed,
        val_share=val_share,
        json=as_json,
    )
    _run("prepare", [dataset, *given])


def verify(location: Location, as_json: Json = False) -> None:
    """Check every byte, picture and label of a prepared dataset.

    Example: segfleet verify shards/camvid
    """
    _run("verify", [location, *options(json=as_json)])


def inspect(
    location: Location,
    sheet: Annotated[Path | None, typer.Option(help="PNG to write (default: NAME-SPLIT-sheet.png, here).")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the sheet (default: the first one).")] = None,
    count: Annotated[int | None, typer.Option(min=1, max=100, help="Samples on the sheet.")] = None,
    as_json: Json = False,
) -> None:
    """Print classes, pixel shares and sizes of a prepared dataset, and write a sheet with overlays.

    Example: segfleet inspect shards/camvid --sheet sheet.png --split val
    """
    _run("inspect", [location, *options(sheet=sheet, split=split, count=count, json=as_json)])


def _run(verb: str, arguments: list[str]) -> None:
    require(verb, _NEEDED, "train")
    raise typer.Exit(run_module(_TOOL, [verb, *arguments]))
