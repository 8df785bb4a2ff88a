"""One rank of a small real training, in a process of its own that kills itself at a chosen moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from segfleet.spec.kinds import TrainSpec
from segfleet_jobs import checkpoint, checkpoint_store
from segfleet_jobs.checkpoint import CheckpointRecord
from segfleet_jobs.loop import TrainingLoop
from segfleet_jobs.pulse import Pulse
from segfleet_jobs.ranks import Ranks
from segfleet_jobs.step import LaunchedStep, TrainStep
from segfleet_pipelines.batch import Batch
from training import RecordingLink


@dataclass(frozen=True, slots=True)
class Kill:
    """When a rank dies.

    Attributes:
        phase: What it is at.
        rank: Which one.
        number: At the so-manieth event of the phase, from 0.
        delay_s: So long after it, from another thread; 0: at once.
    """

    phase: str
    rank: int
    number: int
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt of a training.

    Attributes:
        folder: Of the job.
        attempt: Its name.
        kill: None: it is left alone.
    """

    spec: TrainSpec
    world_size: int
    port: int
    folder: Path
    attempt: str
    kill: Kill | None

    def file(self, what: str, rank: int) -> Path:
        """Where a rank notes something."""
        return self.folder / f"{self.attempt}-{what}-{rank}.jsonl"


class Killer:
    """Counts events by phase, and kills its process at one of them."""

    def __init__(self, run: Run, rank: int) -> None:
        self._kill = run.kill if run.kill and run.kill.rank == rank else None
        self.seen: Counter[str] = Counter()

    def event(self, phase: str) -> None:
        """One more; perhaps the last."""
        number, kill = self.seen[phase], self._kill
        self.seen[phase] += 1
        if kill is None or (kill.phase, kill.number) != (phase, number):
            return
        if kill.delay_s:
            timer = threading.Timer(kill.delay_s, _die)
            timer.daemon = True
            timer.start()
        else:
            _die()

    def before(self, owner: Any, name: str, phase: str) -> None:
        """Every call of a function is an event."""
        real: Callable[..., Any] = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            self.event(phase)
            return real(*args, **options)

        setattr(owner, name, counted)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class CountedPulse(Pulse):
    """The loop's own notes of where it is, as events."""

    def __init__(self, killer: Killer) -> None:
        super().__init__()
        self._killer = killer

    def begin_step(self, step: int) -> None:
        """A step begins."""
        super().begin_step(step)
        self._killer.event("step")

    def enter(self, phase: str) -> None:
        """Another phase begins."""
        super().enter(phase)
        if phase in ("backward", "validation"):
            self._killer.event(phase)


class FileLink(RecordingLink):
    """The pointer and the curves in files, where they outlive the process."""

    def __init__(self, run: Run, killer: Killer) -> None:
        super().__init__()
        self._run, self._killer, self._place = run, killer, run.folder / "pointer.json"

    def latest_checkpoint(self) -> dict[str, Any] | None:
        """As the service would have stored it."""
        return json.loads(self._place.read_text()) if self._place.exists() else None

    def set_checkpoint(self, record: CheckpointRecord) -> None:
        """The checkpoint is whole on the disk, and its pointer not yet moved; then it is, and nothing is pruned."""
        self._killer.event("pointer")
        draft = self._place.with_suffix(".new")
        draft.write_text(json.dumps(record.to_dict()))
        self._killer.event("pointer")
        draft.replace(self._place)
        self._killer.event("pointer")

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Points of the curves, without those that tell of time."""
        kept = {name: value for name, value in values.items() if not name.startswith("time/")}
        kept.pop("train/samples_per_s", None)
        _note(self._run.file("curves", 0), [step, kept])

    def damaged(self, message: str) -> None:
        """No kill may leave anything damaged."""
        _note(self._run.file("damaged", 0), message)

    def progress(self, document: dict[str, Any]) -> None:
        """Nobody asks."""


def run_rank(run: Run, rank: int) -> None:
    """Train to the end, or to the kill; what it did lies in files."""
    # Here, and not between the lines of the table: ranks that lose their peer say so at length.
    sys.stderr = (run.folder / f"{run.attempt}-{rank}.log").open("w")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(run.port))
    torch.set_num_threads(1)
    killer = Killer(run, rank)
    if run.world_size > 1:
        dist.init_process_group("gloo", rank=rank, world_size=run.world_size)
    killer.event("resume")
    _hook(killer, run, rank)
    ranks = Ranks(rank, run.world_size, torch.device("cpu"), CountedPulse(killer))
    loop = TrainingLoop(run.spec, ranks, FileLink(run, killer), run.folder, run.folder / run.attempt, _no_report)
    result = loop.run()
    assert isinstance(result, dict)
    del result["seconds"]
    _note(run.file("result", rank), [result, dict(killer.seen)])
    if run.world_size > 1:
        dist.destroy_process_group()


def _hook(killer: Killer, run: Run, rank: int) -> None:
    for name in ("save_file", "_sha256_of_medium", "_compare"):
        killer.before(checkpoint, name, "checkpoint")
    for name in ("write_checkpoint", "flush", "check_checkpoint"):
        killer.before(checkpoint_store, name, "checkpoint")
    killer.before(shutil, "rmtree", "prune")
    killer.before(dist, "all_reduce", "all-reduce")
    launch = TrainStep.launch

    def noted(self: TrainStep, batch: Batch, must_yield: bool = False) -> LaunchedStep:
        _note(run.file("order", rank), [batch.step, batch.keys])
        return launch(self, batch, must_yield)

    TrainStep.launch = noted  # type: ignore[method-assign]


def _note(path: Path, value: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")


def _no_report(*_: object) -> None:
    pass
