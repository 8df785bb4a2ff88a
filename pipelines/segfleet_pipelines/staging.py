"""A folder to work in beside the one to be made: what is not finished never has the final name."""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segfleet.errors import DataError
from segfleet_pipelines.manifest import MANIFEST_NAME


@contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """A new hidden folder on the same file system as `out`, gone at the end.

    Folders that killed runs have left are removed; those of living runs are locked and stay.

    Raises:
        DataError: `out` holds something already, or cannot be written.
    """
    refuse_occupied(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        work = out.parent / f".{out.name}.partial-{secrets.token_hex(4)}"
        work.mkdir()
    except OSError as error:
        raise DataError(f"{out.parent} cannot be written: {error.strerror}; choose another place") from error
    lock = os.open(work, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def publish(finished: Path, out: Path) -> None:
    """Give a finished folder its final name, in one step and durably.

    Raises:
        DataError: another run has published to `out` meanwhile.
    """
    _sync(finished)
    try:
        finished.rename(out)
    except OSError as error:
        refuse_occupied(out)
        raise DataError(f"{out} cannot be written: {error.strerror}; choose another place") from error
    _sync(out.parent)


def refuse_occupied(out: Path) -> None:
    """Make sure that nothing would be overwritten.

    Raises:
        DataError: `out` is a file or a folder with something in it.
    """
    if (out / MANIFEST_NAME).exists():
        raise DataError(f"{out} holds a prepared dataset already; choose another place or remove it first")
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise DataError(f"{out} exists and is not an empty folder; choose another place")


def _remove_abandoned(out: Path) -> None:
    for work in out.parent.glob(f".{glob.escape(out.name)}.partial-*"):
        lock = os.open(work, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(work, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
