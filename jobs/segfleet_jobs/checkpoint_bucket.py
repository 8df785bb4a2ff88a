"""Checkpoints in an object store: made on this machine, sent file by file, and there when meta.json is."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from segfleet.errors import CheckpointError, DataError
from segfleet_jobs.checkpoint import FILES, META, CheckpointRecord, check_sizes, write_checkpoint
from segfleet_jobs.checkpoint_store import (
    CheckpointStore,
    FolderStore,
    Place,
    attempt_number,
    best_step,
    folder_name,
    step_of,
)
from segfleet_pipelines.object_tree import ObjectTree
from segfleet_pipelines.storage import open_storage

# A step-00001000 of an attempt, and a file in it.
_OBJECT = re.compile(r"([^/]+)/(step-[0-9]{8,}(?:\.[0-9]+)?)/([^/]+)")


class BucketStore:
    """Checkpoints below an s3:// or gs:// address.

    Args:
        job: Address of the job.
        attempt: Name of the attempt that writes.
        group: Number of its group of workers.
    """

    def __init__(self, job: str, attempt: str, group: int = 1) -> None:
        self._tree, self._name, self._group = ObjectTree(job), attempt, group

    @property
    def home(self) -> str:
        """See `CheckpointStore`."""
        return f"{self._tree.address}/{self._name}"

    @property
    def writer(self) -> tuple[int, int]:
        """See `CheckpointStore`."""
        return attempt_number(self._name), self._group

    def save(
        self, step: int, model: Mapping[str, Tensor], state: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> CheckpointRecord:
        """See `CheckpointStore`."""
        name = f"{self._name}/{folder_name(step, self._group)}"
        target = open_storage(f"{self._tree.address}/{name}")
        with tempfile.TemporaryDirectory(prefix="segfleet-checkpoint-") as scratch:
            digest, size = write_checkpoint(Path(scratch), step, model, state, meta)
            # What a resumed attempt writes anew is no checkpoint while it is half the old and half the new one.
            self._tree.delete(f"{name}/{META}")
            for file in FILES:
                target.upload(Path(scratch) / file, file)
        return CheckpointRecord(target.address, step, digest, size, best_step(meta))

    def places(self) -> list[Place]:
        """See `CheckpointStore`."""
        return [
            Place(f"{self._tree.address}/{attempt}/{folder}", attempt_number(attempt), *step_of(folder))
            for attempt, folder, file in self._objects()
            if file == META
        ]

    @contextmanager
    def opened(self, address: str) -> Iterator[Path]:
        """See `CheckpointStore`; a checkpoint from before the job's moved into the object store lies in a folder."""
        if "://" not in address:
            yield Path(address)
            return
        with tempfile.TemporaryDirectory(prefix="segfleet-checkpoint-") as scratch:
            try:
                source = open_storage(address)
                for name in source.names():
                    source.download(name, Path(scratch) / name)
            except DataError as error:
                raise CheckpointError(f"checkpoint {address!r} cannot be read: {error}") from error
            yield Path(scratch)

    def check(self, place: Place) -> None:
        """See `CheckpointStore`; by the sizes: the store has hashes of its own, and tells what it finds damaged."""
        try:
            source = open_storage(place.address)
            sizes = {name: source.size(name) for name in source.names()}
            check_sizes(source.read(META), sizes, place.address)
        except DataError as error:
            raise CheckpointError(f"checkpoint {place.address!r} cannot be read: {error}") from error

    def delete(self, place: Place) -> None:
        """See `CheckpointStore`."""
        attempt, folder = place.address.rsplit("/", 2)[1:]
        # Without meta.json it is none, however far the rest comes.
        try:
            for name in reversed(FILES):
                self._tree.delete(f"{attempt}/{folder}/{name}")
        except DataError as error:
            print(f"segfleet: {place.address} is not deleted: {error}", flush=True)

    def sweep(self) -> None:
        """See `CheckpointStore`."""
        objects = self._objects()
        whole = {(attempt, folder) for attempt, folder, file in objects if file == META}
        for attempt, folder, file in objects:
            if (attempt, folder) not in whole and (attempt_number(attempt), step_of(folder)[1]) <= self.writer:
                self._tree.delete(f"{attempt}/{folder}/{file}")

    def _objects(self) -> list[tuple[str, str, str]]:
        matches = (_OBJECT.fullmatch(name) for name in self._tree.names())
        return [(match[1], match[2], match[3]) for match in matches if match]


def open_checkpoints(job: str | Path, attempt: str, group: int = 1) -> CheckpointStore:
    """Where a job's checkpoints lie.

    Args:
        job: Folder of the job, or its address in an object store.
        attempt: Name of the attempt that writes, `JOB-aN`.
        group: Number of its group of workers, from 1.

    Raises:
        DataError: no such address.
    """
    if "://" in str(job):
        return BucketStore(str(job), attempt, group)
    return FolderStore(Path(job), Path(job) / attempt, group)
