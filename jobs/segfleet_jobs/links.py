"""The loop's links to the world: rank 0's to the service and MLflow, and that of every other rank, which is silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from segfleet.errors import LaunchError
from segfleet.spec.kinds import TrainSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_jobs.attempt import Heart, Yielded
from segfleet_jobs.checkpoint import CheckpointRecord
from segfleet_jobs.checkpoint_bucket import open_checkpoints
from segfleet_jobs.evaluation import Picture
from segfleet_jobs.group import Member, Voice, report
from segfleet_jobs.loop import Link, TrainingLoop
from segfleet_jobs.pictures import prediction_sheet
from segfleet_jobs.spool import SPOOL
from segfleet_jobs.tracker import Tracker
from segfleet_pipelines.manifest import Manifest

# What of a step's figures a reader of the log wants to see, and as what.
_IN_LOG = {
    "train/loss": "loss {:.4g}",
    "train/lr": "lr {:.3g}",
    "train/samples_per_s": "{:.3g} samples/s",
    "val/miou": "mIoU {:.4f}",
    "val/pixel_accuracy": "pixel accuracy {:.4f}",
}


class Pointer(Protocol):
    """Where the service keeps the pointer to the latest checkpoint: the job's, or a trial's."""

    @property
    def attempt_id(self) -> str:
        """Of the attempt that asks."""

    def latest_checkpoint(self) -> dict[str, Any] | None:
        """The pointer's value."""

    def set_checkpoint(self, record: Mapping[str, Any]) -> object:
        """Move it."""

    def damaged(self, message: str) -> None:
        """Have the job's history tell of a damaged checkpoint."""


class ServiceLink:
    """Rank 0's link: progress by heartbeat, curves to MLflow and their gist to the log, checkpoints to the queue.

    Args:
        pointer: Where the checkpoint pointer is kept.
        heart: Tells of progress.
        tracker: Writes the curves.
        who: Before each line of the log; several trials write into one.
    """

    def __init__(self, pointer: Pointer, heart: Heart, tracker: Tracker, who: str = "") -> None:
        self._pointer, self._heart, self._tracker, self._who = pointer, heart, tracker, who

    def latest_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint pointer."""
        return self._pointer.latest_checkpoint()

    def set_checkpoint(self, record: CheckpointRecord) -> None:
        """Move the pointer, once the curves up to it are on the disk."""
        self._tracker.sync()
        self._pointer.set_checkpoint(record.to_dict())

    def damaged(self, message: str) -> None:
        """Tell the log and the job's history."""
        print(f"segfleet: {self._who}{message}", flush=True)
        self._pointer.damaged(message)

    def progress(self, document: dict[str, Any]) -> None:
        """Tell with the next heartbeat."""
        self._heart.progress(document)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Add points to the curves, and a line to the log."""
        self._tracker.metrics(step, values)
        figures = ", ".join(text.format(values[name]) for name, text in _IN_LOG.items() if name in values)
        print(f"segfleet: {self._who}step {step}: {figures}", flush=True)

    def pictures(self, step: int, pictures: tuple[Picture, ...], manifest: Manifest) -> None:
        """Store a sheet of sample predictions."""
        if pictures:
            self._tracker.picture(step, prediction_sheet(pictures, manifest))

    def confusion(self, step: int, matrix: torch.Tensor, manifest: Manifest) -> None:
        """Store the confusion matrix in place of an earlier one."""
        self._tracker.confusion(step, matrix.tolist(), manifest.class_names)

    def must_yield(self) -> bool:
        """What the answer to a heartbeat has said."""
        return self._heart.must_yield


class SilentLink:
    """The link of every other rank."""

    def latest_checkpoint(self) -> dict[str, Any] | None:
        """Rank 0 asks for all."""
        return None

    def set_checkpoint(self, record: CheckpointRecord) -> None:
        """Rank 0 does it."""

    def damaged(self, message: str) -> None:
        """Rank 0 tells."""

    def progress(self, document: dict[str, Any]) -> None:
        """Rank 0 tells."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Rank 0 tells."""

    def pictures(self, step: int, pictures: tuple[Picture, ...], manifest: Manifest) -> None:
        """Rank 0 tells."""

    def confusion(self, step: int, matrix: torch.Tensor, manifest: Manifest) -> None:
        """Rank 0 tells."""

    def must_yield(self) -> bool:
        """Rank 0 hears it, and tells with the next step."""
        return False


def train_rank(
    member: Member,
    config: Mapping[str, Any],
    speak: Callable[[Voice, Tracker], Link],
    tell: Callable[[dict[str, Any]], None],
) -> dict[str, Any] | Yielded:
    """One rank's part of a training.

    Args:
        member: The rank.
        config: As of `training_config`.
        speak: Makes rank 0's link.
        tell: Tells Ray Train that a checkpoint has begun.
    """
    spec = resolve_spec(config["spec"])
    if not isinstance(spec, TrainSpec):
        raise LaunchError("the workers were given another kind of job")
    folders = Path(config["job_folder"]), Path(config["attempt_folder"])
    store = open_checkpoints(config["checkpoints"], folders[1].name, member.group)
    checked = config["skips"], config["content_ids"]
    if member.voice is None:
        return TrainingLoop(spec, member.ranks, SilentLink(), *folders, tell, *checked, store=store).run()
    tracker = Tracker(folders[0] / SPOOL, config["run"])
    try:
        return TrainingLoop(
            spec, member.ranks, speak(member.voice, tracker), *folders, tell, *checked, store=store
        ).run()
    finally:
        tracker.close()


def train_alone(member: Member, config: Mapping[str, Any]) -> dict[str, Any] | Yielded:
    """One rank's part of a training that is a job of its own; here, so that workers load nothing that drivers need."""
    return train_rank(member, config, lambda voice, tracker: ServiceLink(voice.client, voice.heart, tracker), report)
