"""Checkpoints and logs on disk: found, measured and removed without ever leaving the folder or following a link.

STORAGE/JOB/ATTEMPT/step-00001000                   of a job
STORAGE/JOB/trials/NUMBER/ATTEMPT/step-00001000     of a search's trial
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segfleet.errors import SettingsError
from segfleet.queue.model import ATTEMPT_ID, JOB_ID

REMOVING = ".removing-"
_STEP = re.compile(r"step-(?P<step>[0-9]{8,12})(?:\.[0-9]+)?")
_ANY = re.compile(r".+")
_NUMBER = re.compile(r"[1-9][0-9]{0,5}")
_REMNANTS = (REMOVING, ".writing-")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's folder.

    Attributes:
        path: Below the storage.
        trial: Number of the search's trial; None: the job's own.
        step: None: the remnant of a write or a deletion that was cut off.
        bytes: Of all files.
    """

    path: str
    trial: int | None
    step: int | None
    bytes: int


def checkpoints(storage: Path, job_id: str) -> list[Checkpoint]:
    """All checkpoints of a job, in the order of their names. Links are not looked at."""
    if not JOB_ID.fullmatch(job_id) or not _is_folder(storage / job_id):
        return []
    found = []
    trials = sorted((int(folder.name), folder) for folder in _folders(storage / job_id / "trials", _NUMBER))
    folders: list[tuple[int | None, Path]] = [(None, storage / job_id), *trials]
    for trial, folder in folders:
        for attempt in _folders(folder, ATTEMPT_ID):
            for path in _folders(attempt, _ANY):
                match = _STEP.fullmatch(path.name)
                if match is None and not path.name.startswith(_REMNANTS):
                    continue
                step = None if match is None else int(match["step"])
                found.append(Checkpoint(str(path.relative_to(storage)), trial, step, size_of(path)))
    return found


def logs(folder: Path) -> dict[str, list[tuple[str, int]]]:
    """(name, bytes) of the copies of logs, by job."""
    found: dict[str, list[tuple[str, int]]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            attempt_id, dot, ending = entry.name.partition(".")
            if ending == "log" and dot and ATTEMPT_ID.fullmatch(attempt_id) and entry.is_file(follow_symlinks=False):
                size = entry.stat(follow_symlinks=False).st_size
                found.setdefault(attempt_id.rpartition("-")[0], []).append((entry.name, size))
    return {job_id: sorted(files) for job_id, files in found.items()}


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).lstat().st_size
            except FileNotFoundError:
                continue
    return total


def remove(base: Path, name: str) -> bool:
    """Remove a folder or file below a base; False: it is not there.

    A folder is renamed first, so that nobody takes one that is half removed for whole; cut off, it is found again as a
    remnant.

    Args:
        base: The storage, or the folder of logs.
        name: Below it.

    Raises:
        SettingsError: the name leads out of the base, or a part of it is a link; nothing was removed.
    """
    path = _inside(base, name)
    if not path.exists():
        return False
    if not path.is_dir():
        path.unlink()
        return True
    if not path.name.startswith(REMOVING):
        renamed = path.with_name(REMOVING + path.name)
        if renamed.exists():
            shutil.rmtree(renamed)
        path = path.rename(renamed)
    shutil.rmtree(path)
    return True


def _inside(base: Path, name: str) -> Path:
    path = base / name
    parts = Path(name).parts
    if Path(name).is_absolute() or not parts or ".." in parts:
        raise SettingsError(f"{name!r} is no path below {str(base)!r}; nothing was removed")
    step = base
    for part in parts:
        step /= part
        if step.is_symlink():
            raise SettingsError(f"{str(step)!r} is a link, which retention does not follow; nothing was removed")
    return path


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _folders(parent: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    if not _is_folder(parent):
        return
    with os.scandir(parent) as entries:
        names = sorted(
            entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and pattern.fullmatch(entry.name)
        )
    for name in names:
        yield parent / name
