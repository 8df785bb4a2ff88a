"""`python -m segfleet_jobs.bench`: images a second and memory of models, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch

from segfleet.cli.output import clean, number
from segfleet.errors import SegfleetError, SettingsError
from segfleet.spec.document import apply_overrides, read_document
from segfleet.spec.kinds import TrainSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_jobs.bench_model import Measurement, Mode, Task, measure
from segfleet_jobs.measuring import in_fresh_process
from segfleet_jobs.prediction_progress import progress

DEFAULT_VARIANTS = ("seg-ti-mask/16", "seg-s-mask/16")
# column: digits of its numbers
_COLUMNS = {
    "model": 0,
    "mode": 0,
    "batch": 6,
    "images_per_s": 3,
    "step_ms": 4,
    "peak_mib": 4,
    "Mparameters": 4,
    "gflops": 4,
}


def tasks(options: argparse.Namespace) -> list[Task]:
    """The lines of the table.

    Raises:
        SpecError: a variant or spec is none.
        SettingsError: a spec is of another kind than training.
    """
    modes: list[Mode] = [mode for mode in get_args(Mode) if getattr(options, mode)] or list(get_args(Mode))
    named = {variant: _document(variant) for variant in options.variants}
    named |= {str(path): read_document(path) for path in options.spec}
    named = named or {variant: _document(variant) for variant in DEFAULT_VARIANTS}
    specs = {name: _spec(document, name, options) for name, document in named.items()}
    return [
        # Weights of classes say how many there are.
        Task(name, spec, len(spec.loss.class_weights or ()) or options.classes, mode, options.batch, options.steps)
        for name, spec in specs.items()
        for mode in modes
    ]


def _document(variant: str) -> dict[str, Any]:
    # The dataset is never opened: only the network matters.
    return {"kind": "train", "name": "bench", "data": {"shards": "none"}, "model": {"variant": variant}}


def _spec(document: dict[str, Any], name: str, options: argparse.Namespace) -> TrainSpec:
    changes = [f"train.crop={options.size}", f"resources.gpus_per_worker={int(torch.cuda.is_available())}"]
    changes += [f"train.precision={options.precision}"] if options.precision else []
    changes += ["train.compile=true"] if options.compile else []
    if document.get("kind") not in (None, "train"):
        raise SettingsError(f"{name} is a spec of kind {document['kind']!r}; give one of kind train")
    spec = resolve_spec(apply_overrides(document, changes), name)
    assert isinstance(spec, TrainSpec)
    return spec


def measure_told(task: Task) -> Measurement:
    """Measure, with progress on stderr; a model that cannot be built is the user's mistake.

    Raises:
        SettingsError: the model cannot be built or run at this size.
    """
    try:
        with progress(f"{task.model} {task.mode}", task.steps) as tell:
            return measure(task, tell)
    except ValueError as error:
        raise SettingsError(f"{task.model}: {error}") from error


def table(measurements: Sequence[Measurement]) -> str:
    """For people; right-aligned but for the names."""
    rows = [[name.replace("_", " ") for name in _COLUMNS]]
    for one in measurements:
        values = {**asdict(one), "Mparameters": one.parameters / 1e6}
        row = [
            values[name] if isinstance(values[name], str) else number(values[name], _COLUMNS[name]) for name in _COLUMNS
        ]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if position < 2 else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="segfleet bench model", description="Images a second and memory of models.")
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="such as seg-s-mask/16")
    parser.add_argument("--spec", type=Path, action="append", default=[], help="a training spec; may be repeated")
    parser.add_argument("--size", type=int, default=512, help="side of the pictures, pixels")
    parser.add_argument("--batch", type=int, help="pictures at once; else as many as fit on the GPU, 2 on a CPU")
    parser.add_argument("--steps", type=int, default=10, help="repetitions that are timed; the median counts")
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--train", action="store_true", help="training steps only")
    parser.add_argument("--forward", action="store_true", help="forward passes only")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="else the spec's own")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit code is 0, 2 for wrong use, or 1; a failure's reason is on stderr."""
    options = _parser().parse_args(arguments)
    try:
        measurements = [in_fresh_process(measure_told, task) for task in tasks(options)]
    except SegfleetError as error:
        print(f"error: {clean(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({"machine": _machine(), "measurements": [asdict(one) for one in measurements]}))
    else:
        print(table(measurements))
        print(f"{options.size}x{options.size} pixels, {options.classes} classes, {_machine()}")
    return 0


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads != 1 else ''}"


if __name__ == "__main__":
    sys.exit(main())
