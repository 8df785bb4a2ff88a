"""Where the checkpoints of a job lie, which of them is gone on from, and which are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a checkpoint lies.

    Attributes:
        address: As in the pointer.
        attempt: N of the attempt that wrote it.
        step: Optimiser steps done.
    """

    address: str
    attempt: int
    step: int


class CheckpointStore(Protocol):
    """The checkpoints of all attempts of one job or trial, and the folder of the attempt that writes."""

    @property
    def home(self) -> str:
        """The attempt's own folder, for people."""
        ...

    @property
    def attempt(self) -> int:
        """N of the attempt that writes."""
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

    def sweep(self, attempts: Callable[[int], bool]) -> None:
        """Delete what broken writes of these attempts have left."""
        ...


class FolderStore:
    """Checkpoints in folders that all workers see: written beside, flushed, renamed.

    Args:
        job_folder: Holds the attempts' folders.
        attempt_folder: The one of the attempt that writes.
    """

    def __init__(self, job_folder: Path, attempt_folder: Path) -> None:
        self._job_folder, self._attempt_folder = job_folder, attempt_folder

    @property
    def home(self) -> str:
        """See `CheckpointStore`."""
        return str(self._attempt_folder)

    @property
    def attempt(self) -> int:
        """See `CheckpointStore`."""
        return attempt_number(self._attempt_folder.name)

    def save(
        self, step: int, model: Mapping[str, Tensor], state: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> CheckpointRecord:
        """See `CheckpointStore`."""
        final = self._attempt_folder / folder_name(step)
        staging = self._attempt_folder / f".writing-{step:08d}-{os.getpid()}"
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
        return [Place(str(path), attempt_number(path.parent.name), step_of(path.name)) for path in paths]

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

    def sweep(self, attempts: Callable[[int], bool]) -> None:
        """See `CheckpointStore`."""
        for path in self._job_folder.glob("*/.writing-*"):
            if attempts(attempt_number(path.parent.name)):
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
    for place in sorted(older, key=lambda place: (place.step, place.attempt), reverse=True):
        try:
            return load_place(store, place.address), damaged
        except CheckpointError as error:
            damaged.append(str(error))
    raise CheckpointError(
        "no whole checkpoint is left: " + "; ".join(damaged) + "; 'segfleet retry --from-start' begins again"
    )


def prune(store: CheckpointStore, record: CheckpointRecord, latest: int = KEEP_LATEST) -> list[str]:
    """Delete checkpoints that are neither among the latest whole ones nor the best, and left-overs of broken writes.

    One counts as whole only if it is so now: what is older goes when it is sure that it is not needed. Touches the
    folders of this attempt and of earlier ones only: an attempt that was overtaken while it slept may not delete what
    its successor has written.

    Args:
        store: Where the job's checkpoints lie.
        record: The checkpoint that the pointer names, just written.
        latest: How many whole ones to keep.

    Returns:
        What was found damaged, and deleted.
    """
    places = [place for place in store.places() if place.attempt <= store.attempt]
    kept, damaged = {record.path: record.step}, []
    older = sorted(
        (place for place in places if place.step <= record.step and place.address != record.path),
        key=lambda place: (place.step, place.attempt),
        reverse=True,
    )
    for place in older:
        if len(kept) >= latest:
            break
        if place.step in kept.values():
            continue  # the same again, by an earlier attempt
        try:
            store.check(place)
            kept[place.address] = place.step
        except CheckpointError as error:
            damaged.append(str(error))
    for place in places:
        if place.address not in kept and place.step != record.best_step:
            store.delete(place)
    store.sweep(lambda attempt: attempt <= store.attempt)
    return damaged


def discard_earlier(store: CheckpointStore) -> None:
    """Delete the checkpoints of earlier attempts: the job begins again, nothing may fall back to what it has left."""
    for place in store.places():
        if place.attempt < store.attempt:
            store.delete(place)


def find_step(store: CheckpointStore, step: int) -> str | None:
    """Address of a kept checkpoint by its step; the latest attempt's, if several wrote it."""
    found = [place for place in store.places() if place.step == step]
    return max(found, key=lambda place: place.attempt).address if found else None


def folder_name(step: int) -> str:
    """Of a checkpoint, in its attempt's folder."""
    return f"step-{step:08d}"


def step_of(name: str) -> int:
    """The reverse of `folder_name`."""
    return int(name.removeprefix("step-"))


def attempt_number(name: str) -> int:
    """N of an attempt's folder, `JOB-aN`."""
    number = name.rpartition("a")[2]
    return int(number) if number.isdecimal() else 0


def best_step(meta: Mapping[str, Any]) -> int | None:
    """Step of the best checkpoint so far, by what a checkpoint is told to hold."""
    best = meta.get("best")
    return None if best is None else int(best["step"])
