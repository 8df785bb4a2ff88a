"""What a trial of a search says and hears while it trains."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from segfleet.errors import ServiceError
from segfleet_jobs.attempt import Heart, TrialClient
from segfleet_jobs.checkpoint import CheckpointRecord
from segfleet_jobs.links import ServiceLink
from segfleet_jobs.tracker import Tracker
from segfleet_jobs.trial_task import Task, stop_sign, validation_of

_LOOK_EVERY_S = 1.0


class TrialLink(ServiceLink):
    """Rank 0's link of a trial: validations are reported, and it hears whether the trial was stopped.

    Args:
        trial: The calls about the trial.
        heart: Hears whether the attempt has to make room.
        tracker: Writes the trial's curves.
        task: The trial.
        clock: Seconds that only rise.
    """

    def __init__(
        self,
        trial: TrialClient,
        heart: Heart,
        tracker: Tracker,
        task: Task,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(trial, heart, tracker, f"trial {task.number} ")
        self._trial, self._task, self._clock = trial, task, clock
        self._begin = self._looked_at = clock()
        self._is_stopped = False

    def progress(self, document: dict[str, Any]) -> None:
        """While trials run, the driver tells of the whole search; the final training is all that a search does."""
        if self._task.kind == "final":
            super().progress({**document, "phase": f"final training, {document['phase']}"})

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Add points to the curves; a validation goes to the service too, before its checkpoint makes it final."""
        super().metrics(step, values)
        if self._task.metric in values:
            number = validation_of(step, self._task.spec.train.validate_every)
            seconds = round(self._task.seconds + self._clock() - self._begin, 3)
            self._tell(lambda: self._trial.report(number, step, values[self._task.metric], values["val/miou"], seconds))

    def set_checkpoint(self, record: CheckpointRecord) -> None:
        """Move the trial's pointer, and tell what the trial has cost so far."""
        self._tell(lambda: super(TrialLink, self).set_checkpoint(record))
        spent = self._task.worker_seconds + self._task.spec.resources.min_workers * (self._clock() - self._begin)
        self._tell(lambda: self._trial.state("running", worker_seconds=round(spent, 3)))

    def must_yield(self) -> bool:
        """Whether to end here: to make room, or because the trial was stopped."""
        return super().must_yield() or self._sees_stop_sign()

    def _sees_stop_sign(self) -> bool:
        now = self._clock()
        if not self._is_stopped and now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            self._is_stopped = stop_sign(self._task.folder).exists()
        return self._is_stopped

    def _tell(self, call: Callable[[], object]) -> None:
        """What the service refuses of a trial that it knows as stopped is of no use any more."""
        try:
            call()
        except ServiceError:
            if not stop_sign(self._task.folder).exists():
                raise
            self._is_stopped = True
