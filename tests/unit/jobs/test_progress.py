"""Speed, time left and the account of where time went, with a clock in hand."""

from __future__ import annotations

from typing import Any

import pytest

from segfleet.spec.sections import LoopSpec
from segfleet_jobs.progress import Progress, SplitProgress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_account_speed_and_time_left() -> None:
    clock, told = Clock(), list[dict[str, Any]]()
    progress = Progress(LoopSpec(steps=10, crop=64, global_batch=4, validate_every=5), told.append, clock)
    progress.start(0, None)
    for done in range(1, 6):
        with progress.timed("data"):
            clock.now += 0.5
        with progress.timed("step"):
            clock.now += 1.5
        progress.stepped(done, loss=1.0, lr=0.1)
    assert told[-1]["samples_per_s"] == pytest.approx(2.0)
    assert told[-1]["eta_s"] == pytest.approx(5 * 2.0)
    with progress.timed("validation"):
        clock.now += 7.0
    progress.validated(0.25)
    assert told[-1]["miou"] == 0.25
    assert progress.seconds == {
        "load": 0.0,
        "data": 2.5,
        "step": 7.5,
        "validation": 7.0,
        "checkpoint": 0.0,
        "mlflow": 0.0,
        "other": 0.0,
    }
    with progress.timed("step"):
        clock.now += 2.0
    progress.stepped(6, loss=1.0, lr=0.1)
    # 4 steps of 2 s and one more validation like the last.
    assert told[-1]["eta_s"] == pytest.approx(4 * 2.0 + 7.0)


def test_each_document_stands_for_itself() -> None:
    told = list[dict[str, Any]]()
    progress = Progress(LoopSpec(steps=10, crop=64), told.append, Clock())
    progress.start(3, {"miou": 0.5})
    progress.validating(2)
    assert told[0].pop("account")["start"] == 3
    assert told[0] == {"num_steps": 10, "step": 3, "phase": "train", "miou": 0.5}
    assert told[1]["phase"] == "validate"


def test_an_evaluation_tells_how_much_is_left_for_all_ranks() -> None:
    clock, told = Clock(), list[dict[str, Any]]()
    progress = SplitProgress(7, 2, told.append, clock)
    for _ in range(4):
        clock.now += 0.5
        progress.done()
    assert [entry["step"] for entry in told] == [2, 4, 6, 7]
    assert told[0]["samples_per_s"] == pytest.approx(4.0)
    assert [entry["eta_s"] for entry in told] == pytest.approx([1.2, 0.8, 0.2, 0.0], abs=0.06)


def test_a_validation_is_told_when_it_begins_and_skipped_steps_with_their_ranks() -> None:
    clock, told = Clock(), list[dict[str, Any]]()
    progress = Progress(LoopSpec(steps=10, crop=64), told.append, clock)
    progress.start(0, None)
    with progress.timed("validation"):
        assert told[-1]["account"]["part"] == "validation"
    progress.skipped(2, (1,))
    with progress.timed("step"):
        clock.now += 0.5
    progress.stepped(1, loss=1.0, lr=0.1)
    assert (told[-1]["skipped_steps"], told[-1]["nonfinite_ranks"]) == (2, [1])
    progress.saved(1)
    progress.validating(1)
    assert (told[-1]["account"]["saved"], told[-1]["account"]["step"]) == (1, 1)
