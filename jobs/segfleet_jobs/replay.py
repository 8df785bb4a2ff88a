"""From the spool to MLflow: in order, and each point once, whatever answers are lost and whoever dies on the way.

Three things together make a repeated write harmless. A point's time is a part of what was spooled, so MLflow's database
takes the repeated point as the row that it has. How far MLflow is stands in `position.json`, replaced in one go after
each batch. And whoever begins, or has reason to doubt what came of its last request, asks MLflow for the last step of
each curve: nothing at or before it is written. Steps that a resumed training does again make the same values, so the
first point stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import mlflow
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from segfleet.errors import ServiceError
from segfleet_jobs.patience import Patience
from segfleet_jobs.run_plan import RunPlan
from segfleet_jobs.spool import Entry, Spool, forget, forget_file, owner, read, segments
from segfleet_jobs.tracking import fail_run, open_run

# What MLflow takes in one request.
BATCH_POINTS = 1000
_POSITION = "position.json"
T = TypeVar("T")


class TakenOverError(ServiceError):
    """Another process has begun to write for the same run; this one must not write any more."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far MLflow has a spool.

    Attributes:
        segment: Name of the segment whose entries come next.
        offset: Bytes into it.
        run_id: The run; empty if none was opened yet.
    """

    segment: str = ""
    offset: int = 0
    run_id: str = ""

    @classmethod
    def load(cls, folder: Path) -> Position:
        """As stored; the beginning, where nothing legible is."""
        try:
            return cls(**json.loads((folder / _POSITION).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()

    def store(self, folder: Path) -> None:
        """Replace what is stored."""
        path = folder / _POSITION
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self)), encoding="utf-8")
        new.replace(path)


class Replay:
    """Brings what a spool holds to its run; used by one thread.

    Args:
        folder: Of the spool.
        plan: The run; it is opened when there is something to write.
        own: Name of the writer that speaks for the run now.
        patience: With each call.
    """

    def __init__(self, folder: Path, plan: RunPlan, own: str, patience: Patience) -> None:
        self._folder, self._plan, self._own, self._patience = folder, plan, own, patience
        self._client = mlflow.MlflowClient()
        self._position = Position.load(folder)
        self._is_open = False
        self._recorded: dict[str, int] | None = None

    @property
    def run_id(self) -> str | None:
        """The run, once it is known."""
        return self._position.run_id or None

    def open(self) -> str:
        """The run's id; opened if need be.

        Raises:
            ServiceError: MLflow stayed away.
            TakenOverError: another process has begun.
        """
        if not self._is_open:
            self._move(replace(self._position, run_id=open_run(self._plan, self.run_id, self._wait)))
            self._is_open = True
        return self._position.run_id

    def advance(self) -> bool:
        """Write the next entries, as many as MLflow takes at a time; False: there were none.

        Raises:
            ServiceError: MLflow stayed away; the next call begins with the same entries.
            TakenOverError: another process has begun.
        """
        at = self._position
        entries, segment, offset = read(self._folder, at.segment, at.offset, BATCH_POINTS)
        if entries:
            self._log_all(self.open(), entries)
        elif segment == at.segment:
            return False
        self._move(replace(self._position, segment=segment, offset=offset))
        for entry in entries:
            if entry.file:
                forget_file(self._folder, entry.file)
        if segment != at.segment:
            forget(self._folder, segment)
        return bool(entries)

    def _move(self, position: Position) -> None:
        position.store(self._folder)
        self._position = position

    def _wait(self, call: Callable[[], T]) -> T:
        """Make a call, unless another writes now: looked up before each try, MLflow may have been away for long."""

        def checked() -> T:
            latest = segments(self._folder)
            if latest and owner(latest[-1].name) > self._own:
                raise TakenOverError(f"{owner(latest[-1].name)} writes for this run now")
            return call()

        return self._patience(checked)

    def _log_all(self, run_id: str, entries: Sequence[Entry]) -> None:
        """All points and files; only points that MLflow will never take are dropped, aloud, one entry at a time."""
        if not self._wait(lambda: self._log_points(run_id, entries)):
            for entry in entries:
                if not self._wait(partial(self._log_points, run_id, [entry])):
                    print(f"segfleet: MLflow refuses the points of step {entry.step}", flush=True)
        for entry in entries:
            path = self._folder / entry.file
            # A file is deleted when the position is beyond it, which a dying machine may have forgotten.
            if entry.file and path.is_file():
                self._wait(partial(self._client.log_artifact, run_id, str(path), entry.place or None))

    def _log_points(self, run_id: str, entries: Sequence[Entry]) -> bool:
        """False: MLflow will not have them."""
        steps, points = dict(self._last_steps(run_id)), list[Metric]()
        for entry in entries:
            fresh = [(name, value) for name, value in entry.values.items() if steps.get(name, -1) < entry.step]
            points += [Metric(name, value, entry.ms, entry.step) for name, value in fresh]
            steps |= {name: entry.step for name, _ in fresh}
        self._recorded = None  # A request that fails may have been carried out all the same.
        try:
            for begin in range(0, len(points), BATCH_POINTS):
                self._client.log_batch(run_id, metrics=points[begin : begin + BATCH_POINTS])
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            return False
        self._recorded = steps
        return True

    def _last_steps(self, run_id: str) -> dict[str, int]:
        """Last recorded step of each curve: MLflow's latest point is the one of the highest step."""
        if self._recorded is None:
            run = self._client.get_run(run_id)
            self._recorded = {point.key: int(point.step) for point in run.data._metric_objs}
        return self._recorded


def settle(folder: Path, plan: RunPlan, patience: Patience) -> str:
    """Write to MLflow what a spool still holds, in the place of whoever wrote to it; the run's id.

    Raises:
        ServiceError: MLflow stayed away; the rest stays in the spool.
    """
    spool = Spool(folder)
    spool.close()
    replay = Replay(folder, plan, spool.name, patience)
    while replay.advance():
        pass
    return replay.open()


def give_up(folder: Path, plan: RunPlan, message: str) -> None:
    """Mark the run failed, with all that is known of it, if MLflow answers; a later attempt reopens it."""
    try:
        run_id = settle(folder, plan, Patience(0.0))
    except ServiceError as error:
        # The failure itself must reach the queue, whatever becomes of the note about it.
        print(f"segfleet: MLflow was not told of the failure: {error}", flush=True)
    else:
        fail_run(run_id, message)
