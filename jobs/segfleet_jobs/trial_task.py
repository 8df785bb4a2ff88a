"""A trial of a search as its own process and its workers are given it, and where it lies; light to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from segfleet.spec.kinds import TrainSpec
from segfleet_jobs.attempt import Grant
from segfleet_jobs.checked_data import CheckedData
from segfleet_jobs.checkpoint_home import checkpoint_home


@dataclass(frozen=True, slots=True)
class Task:
    """A trial that is to run, or to go on.

    Attributes:
        grant: Of the search's attempt.
        number: Of the trial.
        kind: trial or final.
        spec: The training.
        metric: Name of the figure that is reported at each validation, such as val/miou.
        parent_run: MLflow's run of the search.
        tags: What the trial's own run says of it.
        checked: The data's check, where it has been made already.
        worker_seconds: What earlier attempts have spent on it.
        seconds: What the report of its latest checkpoint says, or an earlier one.
    """

    grant: Grant
    number: int
    kind: str
    spec: TrainSpec
    metric: str
    parent_run: str
    tags: Mapping[str, str]
    checked: CheckedData | None
    worker_seconds: float
    seconds: float

    @property
    def folder(self) -> Path:
        """The trial's own, on storage that all workers share."""
        return trial_folder(self.grant, self.number)

    @property
    def checkpoints(self) -> str:
        """Where the trial's checkpoints lie: in its folder, or below an address in an object store."""
        return checkpoint_home(self.grant, "trials", str(self.number))


def trial_folder(grant: Grant, number: int) -> Path:
    """Where a trial of the search keeps its checkpoints."""
    return Path(grant.storage) / "trials" / str(number)


def stop_sign(folder: Path) -> Path:
    """The file by which the driver tells a trial to end: it is there before the service knows that it was stopped."""
    return folder / "stop"


def validation_of(step: int, validate_every: int) -> int:
    """Number, from 1, of the validation after a step that validates; the last step always does."""
    return -(-step // validate_every)


def is_validation(step: int, spec: TrainSpec) -> bool:
    """Whether the loop validates after this step."""
    return step % spec.train.validate_every == 0 or step == spec.train.steps
