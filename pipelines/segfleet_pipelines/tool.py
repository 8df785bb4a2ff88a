"""Commands on datasets, as a process of their own: `python -m segfleet_pipelines.tool VERB`.

Verbs: download, prepare, verify, inspect.

Exit code 0: done, 1: the data are bad or the work failed, 2: wrong use.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, Self, get_args

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from segfleet.errors import SegfleetError, SpecError
from segfleet.spec.kinds import DatasetKind, PrepareSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_pipelines.download import DownloadReport, download
from segfleet_pipelines.labels import describe
from segfleet_pipelines.location import parse_location, resolve_location
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.raw_files import RAW_FILES
from segfleet_pipelines.sheet import write_sheet
from segfleet_pipelines.summary import DatasetSummary, summarize
from segfleet_pipelines.verify import verify
from segfleet_pipelines.writer import prepare

_MIB = 1024 * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _end)
    try:
        return int(args.run(args))
    except SpecError as error:
        return _complain(str(error), 2)
    except SegfleetError as error:
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="segfleet", description="Download, prepare, verify and inspect datasets.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    get = commands.add_parser("download", help="published files -> a folder of raw data, checked and unpacked")
    get.add_argument("dataset", choices=RAW_FILES, metavar="DATASET", help=", ".join(RAW_FILES))
    get.add_argument("--raw", required=True, help="folder for the raw data; what is there and whole stays")
    get.add_argument("--mirror", help="http(s) URL of a folder with the same files, used instead of the public places")
    get.add_argument("--discard-archives", action="store_true", help="remove each archive once it is unpacked")
    get.set_defaults(run=_download)

    make = commands.add_parser("prepare", help="raw pictures and masks -> shards and a manifest")
    make.add_argument("dataset", help=f"layout of the raw data: {', '.join(get_args(DatasetKind))}")
    make.add_argument("--raw", help="folder of the raw data (ade20k: or its zip file); none for synthetic")
    make.add_argument("--out", required=True, help="folder to write, a path, s3:// or gs://; must hold no dataset yet")
    make.add_argument("--base", help="prepared dataset to begin with: only what is new is written")
    make.add_argument("--adopt", action="store_true", default=None, help="raw holds WebDataset shards: only index them")
    make.add_argument("--images", help="keep: as they are; jpeg95: PNG pictures become JPEG (lossy)")
    make.add_argument("--processes", type=int, help="writing processes; never change the result")
    make.add_argument("--samples", type=int, help="synthetic: how many pictures")
    make.add_argument("--seed", type=int, help="of the split and of synthetic pictures")
    make.add_argument("--val-share", type=float, help="folder without split lists: share of the val split, 0..1")
    make.set_defaults(run=_prepare)

    check = commands.add_parser("verify", help="check every byte, count, picture and label")
    check.add_argument("location", help="prepared dataset: a path, file://, s3://, gs://, http(s)://")
    check.set_defaults(run=_verify)

    look = commands.add_parser("inspect", help="statistics and a picture sheet")
    look.add_argument("location", help="prepared dataset: a path, file://, s3://, gs://, http(s)://")
    look.add_argument("--split", help="split of the sheet; the first one if not given")
    look.add_argument("--count", type=int, default=12, choices=range(1, 101), metavar="1..100", help="pictures shown")
    look.add_argument("--sheet", type=Path, help="PNG to write; NAME-SPLIT-sheet.png in this folder if not given")
    look.set_defaults(run=_inspect)

    for command in (get, make, check, look):
        command.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    return parser


def _download(args: argparse.Namespace) -> int:
    raw = resolve_location(args.raw)
    with _Transfers() as bars:
        result = download(args.dataset, raw, bars, mirror=args.mirror, discard_archives=args.discard_archives)
    if args.json:
        return _print_json(asdict(result))
    _show_download(result)
    return 0


def _show_download(result: DownloadReport) -> None:
    for file in result.files:
        how = "downloaded" if file.url else "was there"
        known = f"fits the published {', '.join(file.checked)}" if file.checked else "no published digest is known"
        print(_clean(f"{file.file}: {how}, sha256 {file.sha256}, {known}"))
        if file.unpacked:
            print(_clean(f"  unpacked to {file.unpacked}"))
    print(_clean(f"next: {result.next}"))


def _prepare(args: argparse.Namespace) -> int:
    fields = ("dataset", "raw", "out", "base", "adopt", "images", "processes", "samples", "seed", "val_share")
    given = {field: getattr(args, field) for field in fields if getattr(args, field) is not None}
    spec = resolve_spec({"kind": "prepare", "name": "prepare", **given}, "segfleet prepare")
    assert isinstance(spec, PrepareSpec)
    notes: list[str] = []
    with _progress("preparing") as report:
        manifest = prepare(spec, report, notes.append)
    summary = summarize(spec.out)
    counts = {name: split.num_samples for name, split in manifest.splits.items()}
    out = str(parse_location(spec.out))
    if args.json:
        doubts = [doubt for split in summary.splits.values() for doubt in split.doubts]
        return _print_json(
            {"out": out, "content_id": manifest.content_id, "samples": counts, "notes": notes, "doubts": doubts}
        )
    shown = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(_clean(f"{out}: {shown}, {manifest.num_classes} classes, content id {manifest.content_id}"))
    _show_labels(summary, notes)
    return 0


def _verify(args: argparse.Namespace) -> int:
    with _progress("verifying") as report:
        result = verify(args.location, report)
    failed = int(bool(result.problems))
    if args.json:
        return _print_json({"ok": not failed, **asdict(result)}) or failed
    if failed:
        lines = "".join(f"\n  - {problem}" for problem in result.problems)
        return _complain(f"{args.location}: {len(result.problems)} problems{lines}", 1)
    size = f"{result.num_samples} samples in {result.num_shards} shards, {result.bytes / _MIB:.1f} MiB"
    print(_clean(f"{args.location}: sound. {size}, content id {result.content_id}"))
    return 0


def _inspect(args: argparse.Namespace) -> int:
    summary = summarize(args.location)
    split = args.split or next(iter(Manifest.load(args.location).splits))
    place = parse_location(args.location)
    sheet = args.sheet or Path(f"{Path(place.path).name or place.host}-{split}-sheet.png")
    write_sheet(args.location, sheet, split, args.count)
    if args.json:
        return _print_json({**asdict(summary), "sheet": str(sheet.absolute())})
    _show_summary(summary)
    _show_labels(summary)
    print(_clean(f"picture sheet of {split}: {sheet}"))
    return 0


def _show_summary(summary: DatasetSummary) -> None:
    console = Console()
    print(_clean(f"{summary.name}, {len(summary.class_names)} classes, content id {summary.content_id}"))
    sizes = Table("split", "pictures", "shards", "MiB", "width (min, median, max)", "height (min, median, max)")
    for name, split in summary.splits.items():
        spans = (f"{span.min}  {span.median:g}  {span.max}" for span in (split.width, split.height))
        sizes.add_row(name, str(split.num_samples), str(split.num_shards), f"{split.bytes / _MIB:.1f}", *spans)
    console.print(sizes)
    classes = Table("label", "class", *(f"{name}: pixels, pictures" for name in summary.splits))
    for label, class_name in enumerate(summary.class_names):
        cells = [
            f"{100 * split.pixel_shares[label]:6.2f} %  {split.pictures_with[label]:6d}"
            for split in summary.splits.values()
        ]
        classes.add_row(str(label), Text(_clean(class_name)), *cells)
    ignored = (f"{100 * split.ignored_share:6.2f} %" for split in summary.splits.values())
    classes.add_row(str(summary.ignore_index), "(ignored)", *ignored)
    console.print(classes)


def _show_labels(summary: DatasetSummary, notes: Sequence[str] = ()) -> None:
    """The label check: facts on stdout, what needs a look on stderr."""
    for split in summary.splits.values():
        print(_clean(describe(split.labels, summary.ignore_index)))
    for line in (*notes, *(doubt for split in summary.splits.values() for doubt in split.doubts)):
        print(_clean(f"warning: {line}"), file=sys.stderr)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, and the function that moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        # Hidden until the work begins: what fails at the door shows an error and no empty bar.
        task = bar.add_task(what, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


class _Transfers:
    """Bars on stderr, one for each file that is on its way."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}", table_column=Column(max_width=40, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=10),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def moved(self, what: str, done: int, total: int | None) -> None:
        if what not in self._tasks:
            # Bytes of an earlier run count as done, but not as speed.
            self._tasks[what] = self._bar.add_task(what, total=total, completed=done)
        self._bar.update(self._tasks[what], completed=done, total=total)

    def warn(self, message: str) -> None:
        self._bar.console.print(Text(_clean(message)))


def _print_json(document: dict[str, Any]) -> int:
    print(json.dumps(document, ensure_ascii=False))
    return 0


def _complain(message: str, code: int) -> int:
    print(f"error: {_clean(message)}", file=sys.stderr)
    return code


def _clean(text: str) -> str:
    """Without control characters: file and class names come from strangers."""
    return "".join(char for char in text if char.isprintable() or char == "\n")


def _end(_signal: int, _frame: object) -> NoReturn:
    """Leave by an exception, so that unfinished work is cleaned up."""
    raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
