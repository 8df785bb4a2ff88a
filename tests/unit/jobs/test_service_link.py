"""Rank 0's link to the service: the checkpoint pointer within one attempt and over several."""

from __future__ import annotations

from typing import Any

import pytest

from segfleet.errors import ServiceError
from segfleet_jobs.checkpoint import CheckpointRecord
from segfleet_jobs.links import ServiceLink


class FakePointer:
    """As the service keeps it: within one group of workers it only rises."""

    def __init__(self, attempt_id: str, stored: dict[str, Any] | None) -> None:
        self.attempt_id, self.stored = attempt_id, stored

    def latest_checkpoint(self) -> dict[str, Any] | None:
        return self.stored

    def set_checkpoint(self, record: dict[str, Any]) -> None:
        if self.stored and self.stored["attempt"] == self.attempt_id and record["step"] <= self.stored["step"]:
            raise ServiceError("the service refused")
        self.stored = {**record, "attempt": self.attempt_id}

    def damaged(self, message: str) -> None:
        raise AssertionError(message)


class FakeTracker:
    """Nothing to sync."""

    def sync(self) -> None:
        return


def move(pointer: FakePointer, *steps: int) -> list[int]:
    """Begin a group of workers and write checkpoints; where the pointer is after each."""
    link = ServiceLink(pointer, None, FakeTracker())  # type: ignore[arg-type]
    link.latest_checkpoint()
    found = []
    for step in steps:
        link.set_checkpoint(CheckpointRecord(f"/x/step-{step}", step, "0" * 64, 1))
        assert pointer.stored is not None
        found.append(pointer.stored["step"])
    return found


def test_a_group_that_passed_over_its_attempts_own_checkpoint_can_redo_its_steps() -> None:
    pointer = FakePointer("job-a1 group 2", {"path": "/x/step-30", "step": 30, "attempt": "job-a1 group 1"})
    assert move(pointer, 20, 30, 40) == [20, 30, 40]


@pytest.mark.parametrize("stored", [None, {"path": "/x/step-30", "step": 30, "attempt": "job-a1"}])
def test_a_later_attempt_may_begin_lower(stored: dict[str, Any] | None) -> None:
    assert move(FakePointer("job-a2", stored), 20, 30) == [20, 30]
