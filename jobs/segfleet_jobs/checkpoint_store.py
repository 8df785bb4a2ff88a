"""Where the checkpoints of a job lie, which of them is gone on from, and which are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from segfleet.errors import CheckpointError
from segfleet_jobs.checkpoint import (
    Checkpoint,
    CheckpointRecord,
    check_checkpoint,
    flush,
    load_checkpoint,
    write_checkpoint,
)

KEEP_LATEST = 2
# Of a folder that is being written, with step, process and group behind it.
_STAGING = ".writing-"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a checkpoint lies.

    Attributes:
        address: As in the pointer.
        attempt: N of the attempt that wrote it.
        step: Optimiser steps done.
        group: Number of the attempt's group of workers that wrote it.
    """

    address: str
    attempt: int
    step: int
    group: int = 1

    @property
    def writer(self) -> tuple[int, int]:
        """Attempt and group; later writers are greater."""
        return self.attempt, self.group


class CheckpointStore(Protocol):
    """The checkpoints of all attempts of one job or trial, and the folder of the attempt that writes.

    Every group of workers writes to places of its own: one that was cut off and wakes up spoils nothing of the next.
    """

    @property
    def home(self) -> str:
        """The attempt's own folder, for people."""
        ...

    @property
    def writer(self) -> tuple[int, int]:
        """N of the attempt that writes, and the number of its group of workers."""
        ...

    def save(
        self, step: int, model: Mapping[str, Tensor], state: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> CheckpointRecord:
        """Write a checkpoint so that one that is there is always whole.

        Raises:
            OSError: no space or no right to write; nothing of this checkpoint stays, older ones are untouched.
            DataError: as OSError, of an object store.
        """
        ...

    def places(self) -> list[Place]:
        """Of all attempts, in no order."""
        ...

    def opened(self, address: str) -> AbstractContextManager[Path]:
        """The files of a checkpoint in a folder of this machine, while the context is open.

        Raises:
            CheckpointError: it cannot be had.
        """
        ...

    def check(self, place: Place) -> None:
        """Make sure that a checkpoint is whole, as far as that can be seen from here.

        Raises:
            CheckpointError: it is not; names the file.
        """
        ...

    def delete(self, place: Place) -> None:
        """Delete a checkpoint; what does not go is left."""
        ...

    def sweep(self) -> None:
        """Delete what broken writes of this writer and of earlier ones have left."""
        ...


class FolderStore:
    """Checkpoints in folders that all workers see: written beside, flushed, renamed.

    Args:
        job_folder: Holds the attempts' folders.
        attempt_folder: The one of the attempt that writes.
        group: Number of its group of workers.
    """

    def __init__(self, job_folder: Path, attempt_folder: Path, group: int = 1) -> None:
        self._job_folder, self._attempt_folder, self._group = job_folder, attempt_folder, group

    @property
    def home(self) -> str:
        """See `CheckpointStore`."""
        return str(self._attempt_folder)

    @property
    def writer(self) -> tuple[int, int]:
        """See `CheckpointStore`."""
        return attempt_number(self._attempt_folder.name), self._group

    def save(
        self, step: int, model: Mapping[str, Tensor], state: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> CheckpointRecord:
        """See `CheckpointStore`."""
        final = self._attempt_folder / folder_name(step, self._group)
        staging = self._attempt_folder / f"{_STAGING}{step:08d}-{os.getpid()}.{self._group}"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir(parents=True)
            digest, size = write_checkpoint(staging, step, model, state, meta)
            if final.exists():
                # A resumed attempt redoes steps; the bytes are the same, but a damaged older copy must not survive.
                shutil.rmtree(final)
            staging.rename(final)
            flush(self._attempt_folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        return CheckpointRecord(str(final), step, digest, size, best_step(meta))

    def places(self) -> list[Place]:
        """See `CheckpointStore`."""
        paths = self._job_folder.glob("*/step-*")
        return [Place(str(path), attempt_number(path.parent.name), *step_of(path.name)) for path in paths]

    @contextmanager
    def opened(self, address: str) -> Iterator[Path]:
        """See `CheckpointStore`."""
        if "://" in address:
            raise CheckpointError(f"checkpoint {address!r} lies in an object store; set SEGFLEET_CHECKPOINTS again")
        yield Path(address)

    def check(self, place: Place) -> None:
        """See `CheckpointStore`."""
        check_checkpoint(Path(place.address))

    def delete(self, place: Place) -> None:
        """See `CheckpointStore`."""
        shutil.rmtree(place.address, ignore_errors=True)

    def sweep(self) -> None:
        """See `CheckpointStore`."""
        for path in self._job_folder.glob(f"*/{_STAGING}*"):
            if (attempt_number(path.parent.name), int(path.suffix[1:] or 1)) <= self.writer:
                shutil.rmtree(path, ignore_errors=True)


def load_place(store: CheckpointStore, address: str, sha256: str | None = None) -> Checkpoint:
    """Read a checkpoint after checking every hash.

    Raises:
        CheckpointError: missing or damaged; names the file.
    """
    with store.opened(address) as folder:
        return load_checkpoint(folder, sha256, address)


def load_latest(store: CheckpointStore, pointer: CheckpointRecord | None) -> tuple[Checkpoint | None, list[str]]:
    """The pointer's checkpoint, or the newest older one whose hashes hold.

    Args:
        store: Where the job's checkpoints lie.
        pointer: The job's recorded checkpoint; None for a job that has none.

    Returns:
        The checkpoint (None only without a pointer) and what was found damaged on the way.

    Raises:
        CheckpointError: there was a checkpoint, but none is whole; training never starts over in silence.
    """
    if pointer is None:
        return None, []
    damaged = []
    try:
        return load_place(store, pointer.path, pointer.sha256), []
    except CheckpointError as error:
        damaged.append(str(error))
    older = [place for place in store.places() if place.step <= pointer.step and place.address != pointer.path]
    for place in sorted(older, key=lambda place: (place.step, place.writer), reverse=True):
        try:
            return load_place(store, place.address), damaged
        except CheckpointError as error:
            damaged.append(str(error))
    raise CheckpointError(
        "no whole checkpoint is left: " + "; ".join(damaged) + "; 'segfleet retry --from-start' begins again"
    )


def prune(store: CheckpointStore, record: CheckpointRecord, latest: int = KEEP_LATEST) -> list[str]:
    """Delete checkpoints that are neither among the latest whole ones nor the best, and left-overs of broken writes.

    One counts as whole only if it is so now: what is older goes when it is sure that it is not needed. Touches what
    this writer and earlier ones have written only: who was overtaken while it slept may not delete what its successor
    has written.

    Args:
        store: Where the job's checkpoints lie.
        record: The checkpoint that the pointer names, just written.
        latest: How many whole ones to keep.

    Returns:
        What was found damaged, and deleted.
    """
    places = [place for place in store.places() if place.writer <= store.writer]
    kept, damaged = {record.path: record.step}, []
    older = sorted(
        (place for place in places if place.step <= record.step and place.address != record.path),
        key=lambda place: (place.step, place.writer),
        reverse=True,
    )
    for place in older:
        if len(kept) >= latest:
            break
        if place.step in kept.values():
            continue  # the same again, by an earlier writer
        try:
            store.check(place)
            kept[place.address] = place.step
        except CheckpointError as error:
            damaged.append(str(error))
    for place in places:
        if place.address not in kept and place.step != record.best_step:
            store.delete(place)
    store.sweep()
    return damaged


def discard_earlier(store: CheckpointStore) -> None:
    """Delete the checkpoints of earlier writers: the job begins again, nothing may fall back to what they have left."""
    for place in store.places():
        if place.writer < store.writer:
            store.delete(place)


def find_step(store: CheckpointStore, step: int) -> str | None:
    """Address of a kept checkpoint by its step; the latest writer's, if several wrote it."""
    found = [place for place in store.places() if place.step == step]
    return max(found, key=lambda place: place.writer).address if found else None


def folder_name(step: int, group: int) -> str:
    """Of a checkpoint, in its attempt's folder; most attempts have one group of workers, whose number is left out."""
    return f"step-{step:08d}" + (f".{group}" if group > 1 else "")


def step_of(name: str) -> tuple[int, int]:
    """Step and group, the reverse of `folder_name`."""
    step, _, group = name.removeprefix("step-").partition(".")
    return int(step), int(group or 1)


def attempt_number(name: str) -> int:
    """N of an attempt's folder, `JOB-aN`."""
    number = name.rpartition("a")[2]
    return int(number) if number.isdecimal() else 0


def best_step(meta: Mapping[str, Any]) -> int | None:
    """Step of the best checkpoint so far, by what a checkpoint is told to hold."""
    best = meta.get("best")
    return None if best is None else int(best["step"])
