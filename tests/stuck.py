"""Ways in which one rank of a training holds the others up; here because the ranks' processes import them by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segfleet_jobs import loop as loop_module
from segfleet_jobs.loop import TrainingLoop
from segfleet_jobs.pulse import Beater

FAULTY_RANK = 1
FAULTY_STEP = 4


def stop_itself(loop: TrainingLoop, rank: int, folder: Path) -> None:
    """Rank 1 is stopped in the middle of a step, as by SIGSTOP from outside."""
    _beat(loop, rank, folder)
    steps = iter(range(1_000))

    def must_yield() -> bool:
        if next(steps) == FAULTY_STEP and rank == FAULTY_RANK:
            time.sleep(1.0)  # until its beats have told of this step
            os.kill(os.getpid(), signal.SIGSTOP)
        return False

    loop._link.must_yield = must_yield  # type: ignore[method-assign]


def stall_the_loader(loop: TrainingLoop, rank: int, folder: Path) -> None:
    """Rank 1's loader gives no more batches."""
    _beat(loop, rank, folder)
    if rank == FAULTY_RANK:
        _delay_batches(first=FAULTY_STEP, seconds=600.0)


def slow_the_loader(loop: TrainingLoop, rank: int, folder: Path) -> None:
    """Each batch of rank 1 takes long."""
    _beat(loop, rank, folder)
    if rank == FAULTY_RANK:
        _delay_batches(first=0, seconds=1.5)


def _beat(loop: TrainingLoop, rank: int, folder: Path) -> None:
    # Never closed: the process ends with the training.
    Beater(loop._ranks.pulse, folder, rank, "here", interval_s=0.2).__enter__()


def _delay_batches(first: int, seconds: float) -> None:
    build = loop_module.train_loader

    def delayed(*args: Any, **options: Any) -> Iterator[Any]:
        for number, batch in enumerate(build(*args, **options)):
            if number >= first:
                time.sleep(seconds)
            yield batch

    loop_module.train_loader = delayed  # type: ignore[assignment]
