"""What each worker of a trial does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segfleet_jobs.attempt import Yielded
from segfleet_jobs.group import Member, Voice, report
from segfleet_jobs.links import train_rank
from segfleet_jobs.tracker import Tracker
from segfleet_jobs.trial_link import TrialLink
from segfleet_jobs.trial_task import Task, is_validation, validation_of


def train_one_rank(member: Member, config: Mapping[str, Any]) -> dict[str, Any] | Yielded:
    """One rank's part of a trial."""
    task: Task = config["task"]

    def speak(voice: Voice, tracker: Tracker) -> TrialLink:
        return TrialLink(voice.client.trial(task.number), voice.heart, tracker, task)

    return train_rank(member, config, speak, lambda metrics: report_validation(metrics, task))


def report_validation(metrics: Mapping[str, Any], task: Task) -> None:
    """Tell Ray Train of a validation, on every rank; the checkpoints are the trial's own business."""
    if is_validation(metrics["step"], task.spec):
        report({"validation": validation_of(metrics["step"], task.spec.train.validate_every)})
