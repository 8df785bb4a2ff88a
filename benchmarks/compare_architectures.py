"""Segmenter and the systems the paper compares it with: same data, spec, trainer and evaluation, one table.

Toy size on synthetic pictures from random weights, in this process: it shows that all of them train and what a step
costs, not which is best. Where published weights can be fetched, a real comparison is one spec for each variant.

Run: python benchmarks/compare_architectures.py [--steps N] [--threads N] [--only NAME ...] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segfleet.spec.kinds import PrepareSpec, TrainSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_jobs.checkpoint import CheckpointRecord
from segfleet_jobs.evaluation import Picture
from segfleet_jobs.loop import TrainingLoop, model_config
from segfleet_jobs.ranks import Ranks
from segfleet_models.build import build_segmenter
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.writer import prepare

CROP, BATCH, SAMPLES = 64, 8, 100
SMALL_VIT = {"backbone": "vit_tiny_patch16_384", "patch_size": 16}
# Encoders of about the same small size; the decoders are as they are for large ones.
MODELS: dict[str, dict[str, Any]] = {
    "segmenter mask": {**SMALL_VIT, "decoder": "mask"},
    "segmenter linear": {**SMALL_VIT, "decoder": "linear"},
    "setr naive": {**SMALL_VIT, "arch": "setr", "decoder": "naive"},
    "setr pup": {**SMALL_VIT, "arch": "setr", "decoder": "pup"},
    "setr mla": {**SMALL_VIT, "arch": "setr", "decoder": "mla"},
    "deeplabv3plus": {"arch": "deeplabv3plus", "backbone": "resnet18"},
    "fcn": {"arch": "fcn", "backbone": "resnet18"},
    "unet": {"arch": "unet", "backbone": "resnet18"},
    "upernet": {"arch": "upernet", "backbone": "swin_tiny_patch4_window7_224"},
}


@dataclass(frozen=True, slots=True)
class Row:
    """One architecture.

    Attributes:
        name: Architecture and decoder.
        backbone: timm name of the encoder.
        parameters: Of encoder and decoder.
        output_stride: Pixels that one logit stands for along a side.
        steps: Of training.
        train_images_per_s: The steps alone, without waiting for data.
        eval_images_per_s: Whole validation pictures, with reading and scoring.
        miou: Of the best validation, in [0, 1].
    """

    name: str
    backbone: str
    parameters: int
    output_stride: int
    steps: int
    train_images_per_s: float
    eval_images_per_s: float
    miou: float


def make_spec(shards: str, model: dict[str, Any], steps: int) -> TrainSpec:
    """The same for all of them but for the model."""
    spec = resolve_spec(
        {
            "kind": "train",
            "name": "compare",
            "data": {"shards": shards},
            "model": {**model, "pretrained": False, "drop_path": 0.0},
            "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01, "warmup_steps": min(10, steps - 1)},
            "train": {
                "steps": steps,
                "global_batch": BATCH,
                "crop": CROP,
                "validate_every": steps,
                "checkpoint_every": steps,
                "log_every": steps,
                "loader_processes": 0,
            },
            "eval": {"window": CROP, "stride": 48},
        }
    )
    assert isinstance(spec, TrainSpec)
    return spec


@dataclass
class Meter:
    """The loop's only listener: shows progress with the time left, over all architectures.

    Attributes:
        parts: Trainings in all.
        part: Trainings done.
    """

    parts: int
    part: int = 0
    name: str = ""
    _begin: float = field(default_factory=time.perf_counter)

    def latest_checkpoint(self) -> dict[str, Any] | None:
        """Every training is a new one."""
        return None

    def set_checkpoint(self, record: CheckpointRecord) -> None:
        """Nothing goes on from here."""

    def progress(self, document: dict[str, Any]) -> None:
        """One line that is written over; the time left assumes that what is to come takes as long as what was."""
        if document["phase"] != "train":
            return
        done = (self.part + document.get("step", 0) / document["num_steps"]) / self.parts
        spent = time.perf_counter() - self._begin
        left = f"{spent / done * (1 - done):.0f} s left" if done > 0 else ""
        text = f"[{self.part + 1}/{self.parts}] {self.name}: step {document['step']}/{document['num_steps']}  {left}"
        print(f"\r{text:<78}", end="", file=sys.stderr, flush=True)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Only the result counts."""

    def pictures(self, step: int, pictures: tuple[Picture, ...], manifest: Manifest) -> None:
        """Only the result counts."""

    def confusion(self, step: int, matrix: Tensor, manifest: Manifest) -> None:
        """Only the result counts."""

    def must_yield(self) -> bool:
        """Nobody waits."""
        return False


def make_data(folder: Path) -> str:
    """Synthetic landscapes; the location."""
    out = str(folder / "shards")
    spec = resolve_spec(
        {"kind": "prepare", "name": "synthetic", "dataset": "synthetic", "out": out, "samples": SAMPLES, "processes": 1}
    )
    assert isinstance(spec, PrepareSpec)
    prepare(spec)
    return out


def train(name: str, shards: str, steps: int, folder: Path, meter: Meter) -> Row:
    """Train one architecture from random weights, the same seed for all."""
    spec = make_spec(shards, MODELS[name], steps)
    stride = build_segmenter(model_config(spec, 2)).output_stride
    meter.name = name
    loop = TrainingLoop(spec, Ranks(0, 1, torch.device("cpu")), meter, folder, folder / "a1", lambda *_: None)
    result = loop.run()
    assert isinstance(result, dict)
    meter.part += 1
    return Row(
        name,
        spec.model.backbone,
        result["num_parameters"],
        stride,
        steps,
        round(steps * BATCH / result["seconds"]["step"], 2),
        round(result["num_samples"] / result["seconds"]["validation"], 2),
        round(result["miou"], 4),
    )


def show(rows: list[Row]) -> None:
    """The table as Markdown."""
    print("| arch | encoder | parameters | output stride | steps | training images/s | evaluation images/s | mIoU |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.name} | {row.backbone} | {row.parameters / 1e6:.1f} M | {row.output_stride} | {row.steps} "
            f"| {row.train_images_per_s:.1f} | {row.eval_images_per_s:.1f} | {100 * row.miou:.1f} % |"
        )


def main() -> None:
    """Train all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="of each training, at least 2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="NAME")
    parser.add_argument("--json", action="store_true", help="one document instead of the table")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps is {options.steps}; use at least 2")
    torch.set_num_threads(options.threads)
    meter = Meter(len(options.only))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        shards = make_data(Path(temporary))
        for name in options.only:
            # A folder of its own: the checkpoints of a large decoder are gone before the next one's are written.
            with tempfile.TemporaryDirectory(dir=temporary) as folder:
                rows.append(train(name, shards, options.steps, Path(folder), meter))
    print(file=sys.stderr)
    if options.json:
        print(json.dumps({"crop": CROP, "batch": BATCH, "threads": options.threads, "rows": [asdict(r) for r in rows]}))
    else:
        show(rows)


if __name__ == "__main__":
    main()
