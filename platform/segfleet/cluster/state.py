"""What `segfleet up` has started, on disk; and the lock that makes it the only one of its home."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from segfleet.errors import SettingsError
from segfleet.settings import Home


@dataclass(frozen=True, slots=True)
class Started:
    """One process that `up` has started.

    Attributes:
        pid: Process id.
        fingerprint: Of command and environment; another one means that it cannot be taken over.
    """

    pid: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class State:
    """Contents of state.json.

    Attributes:
        stack: Random id; part of the mark that every process carries.
        url: Base URL of the service; clients read it.
        up_pid: The supervising process.
        ports: By name: service, mlflow, and those of Ray.
        ready: Every part has answered.
        processes: By component.
    """

    stack: str
    url: str
    up_pid: int
    ports: dict[str, int]
    ready: bool = False
    processes: dict[str, Started] = field(default_factory=dict)

    def mark(self, component: str) -> str:
        """The mark of a component's processes."""
        return f"{self.stack}:{component}"

    def with_process(self, component: str, started: Started) -> State:
        """The same with one process added or replaced."""
        return replace(self, processes={**self.processes, component: started})

    @classmethod
    def load(cls, home: Home) -> Self | None:
        """Read the state file; None if there is none, or none that can be understood."""
        try:
            data = json.loads(home.state.read_text(encoding="utf-8"))
            processes = {name: Started(**started) for name, started in data.pop("processes").items()}
            return cls(**data, processes=processes)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def save(self, home: Home) -> None:
        """Replace the state file in one step.

        Raises:
            OSError: the home cannot be written to.
        """
        staged = home.state.with_suffix(".tmp")
        with staged.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(home.state)


@contextmanager
def exclusive(home: Home) -> Iterator[None]:
    """Hold the home's lock; the system gives it back whatever becomes of this process.

    Raises:
        SettingsError: another process holds it.
    """
    descriptor = os.open(home.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(
                f"'segfleet up' is already running on home {str(home.root)!r} (pid {holder(home.lock) or 'unknown'}); "
                "stop it with 'segfleet down' or choose another with --home"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def is_held(home: Home) -> bool:
    """Whether a process holds the home's lock."""
    try:
        descriptor = os.open(home.lock, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder(lock: Path) -> int | None:
    """Process id that the lock's last holder wrote; only meaningful while the lock is held."""
    try:
        return int(lock.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
