"""A folder to work in beside the one to be made: what is not finished never has the final name.

Its name follows from the place to be made, so that the next run to the same place finds the finished shards of a run
that was killed. One run at a time holds it, locked.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from segfleet.errors import DataError
from segfleet_pipelines.local_files import sync_folder
from segfleet_pipelines.manifest import MANIFEST_NAME

_SUFFIX = ".partial"


@dataclass(frozen=True, slots=True)
class Staging:
    """Names of everything in the folder."""

    root: Path

    @property
    def dataset(self) -> Path:
        """The dataset in the making."""
        return self.root / "dataset"

    @property
    def rows(self) -> Path:
        """Records of finished shards."""
        return self.root / "rows"

    @property
    def worker_lock(self) -> Path:
        """Locked (shared) by every process that writes shards."""
        return self.root / "workers.lock"

    def num_finished(self) -> int:
        """How many shards have a record."""
        return sum(1 for _ in self.rows.glob("*.parquet"))

    def remains(self) -> str:
        """What is left for the next run, for people."""
        return (
            f"{self.num_finished()} finished shards are kept in {self.root}: the next run to the same place goes on "
            "from there; remove the folder if there will be none"
        )

    def keep_only(self, shards: set[str]) -> None:
        """Make the folders, and remove what earlier runs have left in them, but for these shards and their records.

        Args:
            shards: File names.
        """
        for folder, names in ((self.dataset, shards), (self.rows, {record_name(shard) for shard in shards})):
            folder.mkdir(exist_ok=True)
            for path in folder.iterdir():
                if path.name not in names:
                    path.unlink()

    def shard(self, name: str) -> Path:
        """Path of a shard."""
        return self.dataset / name

    def record(self, name: str) -> Path:
        """Path of a shard's record."""
        return self.rows / record_name(name)


def record_name(shard: str) -> str:
    """Name of a shard's record."""
    return f"{shard}.parquet"


def staging_beside(out: Path) -> Path:
    """Where `out` is made: a hidden folder on the same file system."""
    return out.parent / f".{out.name}{_SUFFIX}"


@contextmanager
def staging_folder(root: Path, out: str) -> Iterator[Staging]:
    """The folder to make a dataset in. At the end it is gone, unless an error has left finished shards in it.

    Args:
        root: The folder.
        out: What is made there, for people.

    Raises:
        DataError: another run holds it, or something in it or of the raw data cannot be used.
    """
    with _telling(root), _held(root, out):
        staging = Staging(root)
        try:
            _wait_for_workers(staging.worker_lock)
            yield staging
        except BaseException:
            if not staging.num_finished():
                shutil.rmtree(root, ignore_errors=True)
            raise
        shutil.rmtree(root, ignore_errors=True)


def clear_finished(parent: Path) -> None:
    """Remove the folders of runs that were killed between publishing their dataset and removing the rest.

    Args:
        parent: Where folders to make datasets in lie.
    """
    for root in parent.glob(f".*{_SUFFIX}"):
        staging = Staging(root)
        # The dataset's folder is made before that of the records, and goes only by publishing.
        if staging.rows.is_dir() and not staging.dataset.exists():
            with suppress(DataError), _held(root, str(root)):
                if not staging.dataset.exists():
                    shutil.rmtree(root, ignore_errors=True)


def publish(finished: Path, out: Path) -> None:
    """Give a finished folder its final name, in one step and durably.

    Raises:
        DataError: another run has published to `out` meanwhile.
    """
    sync_folder(finished)
    try:
        finished.rename(out)
    except OSError as error:
        refuse_occupied(out)
        raise DataError(f"{out} cannot be written: {error.strerror}; choose another place") from error
    sync_folder(out.parent)


def refuse_occupied(out: Path) -> None:
    """Make sure that nothing would be overwritten.

    Raises:
        DataError: `out` is a file or a folder with something in it.
    """
    if (out / MANIFEST_NAME).exists():
        raise DataError(f"{out} holds a prepared dataset already; choose another place or remove it first")
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise DataError(f"{out} exists and is not an empty folder; choose another place")


@contextmanager
def _telling(root: Path) -> Iterator[None]:
    """Errors of the disk name the file, which may also be one of the raw data."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or root} cannot be used: {error.strerror or error}; free space or choose another place"
        ) from error


@contextmanager
def _held(root: Path, out: str) -> Iterator[None]:
    """Make the folder and hold the lock on it."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(root, out)
    except OSError as error:
        raise DataError(f"{root.parent} cannot be written: {error.strerror}; choose another place") from error
    try:
        yield
    finally:
        os.close(lock)


def _lock(root: Path, out: str) -> int:
    """A handle of the folder, which is made if need be, with the lock on it."""
    while True:
        root.mkdir(exist_ok=True)
        # Whoever held the folder may end and remove it at any moment: then it is made anew.
        with suppress(FileNotFoundError):
            handle = os.open(root, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(handle), root.stat()):
                    return handle
            except BlockingIOError as error:
                os.close(handle)
                raise DataError(f"another run is making {out}; wait for it or end it") from error
            except OSError:
                os.close(handle)
                raise
            os.close(handle)


def _wait_for_workers(path: Path) -> None:
    """A killed run's processes end with it, but not at once; until then they may still write."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    finally:
        os.close(handle)
