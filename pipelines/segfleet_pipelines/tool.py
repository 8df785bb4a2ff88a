"""Commands on datasets, as a process of their own: `python -m segfleet_pipelines.tool prepare | verify | inspect`.

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
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from segfleet.errors import SegfleetError, SpecError
from segfleet.spec.kinds import PrepareSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_pipelines.location import resolve_location
from segfleet_pipelines.manifest import Manifest
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
    parser = argparse.ArgumentParser(prog="segfleet", description="Prepare, verify and inspect datasets.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    make = commands.add_parser("prepare", help="raw pictures and masks -> shards and a manifest")
    make.add_argument("dataset", help="layout of the raw data: folder, camvid or synthetic")
    make.add_argument("--raw", help="folder of the raw data; none for synthetic")
    make.add_argument("--out", required=True, help="folder to write; must not exist yet, or be empty")
    make.add_argument("--processes", type=int, help="checking processes; never change the result")
    make.add_argument("--samples", type=int, help="synthetic: how many pictures")
    make.add_argument("--seed", type=int, help="of the split and of synthetic pictures")
    make.add_argument("--val-share", type=float, help="folder without split lists: share of the val split, 0..1")
    make.set_defaults(run=_prepare)

    check = commands.add_parser("verify", help="check every byte, count, picture and label")
    check.add_argument("location", help="folder of a prepared dataset")
    check.set_defaults(run=_verify)

    look = commands.add_parser("inspect", help="statistics and a picture sheet")
    look.add_argument("location", help="folder of a prepared dataset")
    look.add_argument("--split", help="split of the sheet; the first one if not given")
    look.add_argument("--count", type=int, default=12, choices=range(1, 101), metavar="1..100", help="pictures shown")
    look.add_argument("--sheet", type=Path, help="PNG to write; NAME-SPLIT-sheet.png in this folder if not given")
    look.set_defaults(run=_inspect)

    for command in (make, check, look):
        command.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    return parser


def _prepare(args: argparse.Namespace) -> int:
    fields = ("dataset", "raw", "out", "processes", "samples", "seed", "val_share")
    given = {field: getattr(args, field) for field in fields if getattr(args, field) is not None}
    spec = resolve_spec({"kind": "prepare", "name": "prepare", **given}, "segfleet prepare")
    assert isinstance(spec, PrepareSpec)
    with _progress("preparing") as report:
        manifest = prepare(spec, report)
    counts = {name: split.num_samples for name, split in manifest.splits.items()}
    out = str(resolve_location(spec.out))
    if args.json:
        return _print_json({"out": out, "content_id": manifest.content_id, "samples": counts})
    shown = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(_clean(f"{out}: {shown}, {manifest.num_classes} classes, content id {manifest.content_id}"))
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
    sheet = args.sheet or Path(f"{resolve_location(args.location).name}-{split}-sheet.png")
    write_sheet(args.location, sheet, split, args.count)
    if args.json:
        return _print_json({**asdict(summary), "sheet": str(sheet.absolute())})
    _show_summary(summary)
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


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, and the function that moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        # Hidden until the work begins: what fails at the door shows an error and no empty bar.
        task = bar.add_task(what, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


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
