"""A small real training for tests: a dataset of coloured boxes, a tiny Segmenter, a group of gloo processes."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from segfleet.spec.document import apply_overrides
from segfleet.spec.kinds import PrepareSpec, TrainSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_jobs.attempt import Yielded
from segfleet_jobs.checkpoint import Checkpoint, CheckpointRecord
from segfleet_jobs.evaluation import Picture
from segfleet_jobs.loop import TrainingLoop
from segfleet_jobs.ranks import Ranks
from segfleet_jobs.step import LaunchedStep
from segfleet_pipelines.batch import Batch, Skips
from segfleet_pipelines.manifest import Manifest
from segfleet_pipelines.writer import prepare

COLOURS = np.array([[40, 40, 40], [220, 60, 60], [60, 200, 80], [70, 90, 230]], np.uint8)


class InterruptedTrainingError(Exception):
    """The test's kill."""


def make_dataset(folder: Path, *, num_samples: int = 18, seed: int = 0) -> str:
    """Prepare a dataset of noisy coloured boxes with an ignored border; its location."""
    rng = np.random.default_rng(seed)
    raw = folder / "raw"
    for name in ("images", "masks", "splits"):
        (raw / name).mkdir(parents=True)
    stems = [f"s{number:03d}" for number in range(num_samples)]
    for stem in stems:
        height, width = (int(side) for side in rng.integers(40, 80, 2))
        mask = np.zeros((height, width), np.uint8)
        for label in (1, 2, 3):
            top, left = int(rng.integers(0, height - 20)), int(rng.integers(0, width - 20))
            mask[top : top + 20, left : left + 20] = label
        image = np.clip(COLOURS[mask] + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)
        mask[:2] = 255
        cv2.imwrite(str(raw / "images" / f"{stem}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        cv2.imwrite(str(raw / "masks" / f"{stem}.png"), mask)
    (raw / "classes.yaml").write_text("names: [ground, red, green, blue]\nignore_index: 255\n")
    (raw / "splits" / "train.txt").write_text("\n".join(stems[:-5]) + "\n")
    (raw / "splits" / "val.txt").write_text("\n".join(stems[-5:]) + "\n")
    spec = resolve_spec(
        {
            "kind": "prepare",
            "name": "boxes",
            "dataset": "folder",
            "raw": str(raw),
            "out": str(folder / "shards"),
            "processes": 1,
        }
    )
    assert isinstance(spec, PrepareSpec)
    prepare(spec)
    return str(folder / "shards")


def make_train_spec(shards: str, *overrides: str) -> TrainSpec:
    """A training of seconds; `overrides` as of --set."""
    document = {
        "kind": "train",
        "name": "tiny",
        "data": {"shards": shards},
        "model": {
            "backbone": "vit_tiny_patch16_224",
            "patch_size": 16,
            "decoder": "mask",
            "decoder_layers": 1,
            "pretrained": False,
            "dropout": 0.1,
        },
        "optim": {"name": "adamw", "lr": 0.001, "weight_decay": 0.01},
        "train": {
            "steps": 6,
            "global_batch": 4,
            "crop": 32,
            "validate_every": 3,
            "checkpoint_every": 2,
            "log_every": 1,
            "loader_processes": 0,
        },
        "eval": {"window": 48, "stride": 32},
    }
    spec = resolve_spec(apply_overrides(document, list(overrides)))
    assert isinstance(spec, TrainSpec)
    return spec


class RecordingLink:
    """Keeps what the loop tells; can kill the training after a step, or ask it to make room in one."""

    def __init__(
        self, kill_after: int | None = None, pointer: CheckpointRecord | None = None, yield_in: int | None = None
    ) -> None:
        self.kill_after, self.pointer, self.yield_in = kill_after, pointer, yield_in
        self.steps_begun = 0
        self.curves: dict[int, dict[str, float]] = {}
        self.records: list[CheckpointRecord] = []
        self.sheets: list[int] = []
        self.confusions: dict[int, torch.Tensor] = {}
        self.damages: list[str] = []

    def latest_checkpoint(self) -> dict[str, Any] | None:
        return self.pointer.to_dict() if self.pointer else None

    def set_checkpoint(self, record: CheckpointRecord) -> None:
        self.pointer = record
        self.records.append(record)

    def damaged(self, message: str) -> None:
        self.damages.append(message)

    def progress(self, document: dict[str, Any]) -> None:
        if self.kill_after is not None and document.get("step", 0) >= self.kill_after and "loss" in document:
            raise InterruptedTrainingError

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.curves.setdefault(step, {}).update(values)

    def must_yield(self) -> bool:
        self.steps_begun += 1
        return self.steps_begun == self.yield_in

    def pictures(self, step: int, pictures: tuple[Picture, ...], manifest: Manifest) -> None:
        if pictures:
            self.sheets.append(step)

    def confusion(self, step: int, matrix: torch.Tensor, manifest: Manifest) -> None:
        assert matrix.shape == (manifest.num_classes, manifest.num_classes)
        self.confusions[step] = matrix


def run_alone(
    spec: TrainSpec, folder: Path, link: RecordingLink, attempt: str = "a1", skips: Skips = ()
) -> dict[str, Any]:
    """Train in this process to the end."""
    result = start_alone(spec, folder, link, attempt, skips)
    assert isinstance(result, dict)
    return result


def start_alone(
    spec: TrainSpec,
    folder: Path,
    link: RecordingLink,
    attempt: str = "a1",
    skips: Skips = (),
    before: Callable[[TrainingLoop, int], None] | None = None,
) -> dict[str, Any] | Yielded:
    """Train in this process, perhaps not to the end."""
    loop = TrainingLoop(spec, Ranks(0, 1, torch.device("cpu")), link, folder, folder / attempt, _no_report, skips)
    if before is not None:
        before(loop, 0)
    return loop.run()


def run_group(
    spec: TrainSpec,
    folder: Path,
    world_size: int,
    *,
    kill_after: int | None = None,
    pointer: CheckpointRecord | None = None,
    yield_in: int | None = None,
    attempt: str = "a1",
    before: Callable[[TrainingLoop, int], None] | None = None,
) -> RecordingLink:
    """Train in `world_size` gloo processes; rank 0's link. A killed training ends quietly."""
    result = folder / f"{attempt}-link.pt"
    args = (world_size, free_port(), spec, folder, kill_after, pointer, yield_in, attempt, result, before)
    multiprocessing.spawn(_rank, args, nprocs=world_size)  # type: ignore[no-untyped-call]
    link = RecordingLink()
    link.__dict__.update(torch.load(result, weights_only=False))
    return link


def poison_last_rank(loop: TrainingLoop, rank: int) -> None:
    """Make every forward pass of rank 1 alone give NaN; here because the ranks' processes import it by name."""
    if rank != 1:
        return
    build = loop._build

    def build_poisoned(checkpoint: Checkpoint | None) -> None:
        build(checkpoint)
        loop._train_step._parallel.register_forward_hook(lambda _module, _inputs, output: output * float("nan"))

    loop._build = build_poisoned  # type: ignore[method-assign]


def _rank(
    rank: int,
    world_size: int,
    port: int,
    spec: TrainSpec,
    folder: Path,
    kill_after: int | None,
    pointer: CheckpointRecord | None,
    yield_in: int | None,
    attempt: str,
    result: Path,
    before: Callable[[TrainingLoop, int], None] | None,
) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    link = RecordingLink(kill_after, pointer, yield_in if rank == 0 else None)
    loop = TrainingLoop(spec, Ranks(rank, world_size, torch.device("cpu")), link, folder, folder / attempt, _no_report)
    if before is not None:
        before(loop, rank)
    try:
        loop.run()
    except InterruptedTrainingError:
        pass
    finally:
        dist.destroy_process_group()
    if rank == 0:
        torch.save(link.__dict__, result)


def _no_report(*_: object) -> None:
    pass


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def note_samples(loop: TrainingLoop, rank: int) -> None:
    """Have a rank write down what it trains on; not in a test's module, which the ranks' processes cannot import."""
    build = loop._build
    attempt = Path(loop._store.home)

    def build_noting(checkpoint: Checkpoint | None) -> None:
        build(checkpoint)
        launch = loop._train_step.launch

        def noted(batch: Batch, must_yield: bool = False) -> LaunchedStep:
            with (attempt.parent / f"{attempt.name}-{rank}.order").open("a") as file:
                file.write(json.dumps([batch.step, batch.keys]) + "\n")
            return launch(batch, must_yield)

        loop._train_step.launch = noted  # type: ignore[method-assign]

    loop._build = build_noting  # type: ignore[method-assign]
