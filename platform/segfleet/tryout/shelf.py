"""Pulled models in the home folder: those used last, as many as there is room for."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

MOST_BYTES = 4 << 30
_STAGED, _WORK = ".staged-", ".work-"


class Models(Protocol):
    """What is asked of the registry."""

    def version(self, name: str, ref: str) -> dict[str, Any]:
        """One version, by its number or by `@alias`."""

    def fetch(self, name: str, ref: str, folder: Path) -> Path:
        """Copy the files of a version to somewhere below a folder that exists."""


class Shelf:
    """Models by version; used by one thread at a time.

    Args:
        folder: Made when it is first needed.
        models: The registry.
        most_bytes: What all models may take together; the one in use stays whatever it takes.
    """

    def __init__(self, folder: Path, models: Models, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._models, self._most_bytes = folder, models, most_bytes

    def workplace(self) -> tempfile.TemporaryDirectory[str]:
        """An empty folder that its user removes; what a killed service has left goes now."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for left in self._folder.glob(".*"):
            shutil.rmtree(left, ignore_errors=True)
        return tempfile.TemporaryDirectory(prefix=_WORK, dir=self._folder)

    def model(self, version: Mapping[str, Any]) -> Path:
        """The folder of a model version, as `segfleet models pull` makes it.

        Args:
            version: As the registry describes it.

        Raises:
            ModelError: the registry does not have it.
            ServiceError: the registry does not answer.
        """
        name, number = version["name"], version["version"]
        # A model that was deleted and made anew has the same numbers, of other runs.
        run = hashlib.sha256(str(version["run_id"]).encode()).hexdigest()[:16]
        kept = self._folder / f"{name}-{number}-{run}"
        if not kept.is_dir():
            with tempfile.TemporaryDirectory(prefix=_STAGED, dir=self._folder) as staged:
                self._models.fetch(name, number, Path(staged)).rename(kept)
        os.utime(kept)
        self._make_room(kept)
        return kept

    def _make_room(self, needed: Path) -> None:
        room = self._most_bytes - _size(needed)
        others = [folder for folder in self._folder.iterdir() if folder != needed and not folder.name.startswith(".")]
        for folder in sorted(others, key=lambda folder: -folder.stat().st_mtime):
            room -= _size(folder)
            if room < 0:
                shutil.rmtree(folder, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
