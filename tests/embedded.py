"""The whole stack of one home, started and ended as people do it: service, Ray, MLflow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from segfleet.cluster.ports import free_ports
from segfleet.cluster.processes import end_tree
from segfleet.cluster.state import State
from segfleet.settings import Home, read_token

_UP = [sys.executable, "-m", "segfleet.cli.main"]


@dataclass(frozen=True, slots=True)
class Embedded:
    """A stack that runs.

    Attributes:
        url: Of the service.
        environment: For commands on this home.
    """

    home: Home
    url: str
    environment: dict[str, str]

    @property
    def token(self) -> str:
        """The home's own, an admin's."""
        return read_token(self.home.token)


@contextmanager
def embedded(root: Path, **variables: str) -> Iterator[Embedded]:
    """Start a stack with its home in a folder, and end it with all its processes."""
    home, port = Home(root), free_ports(1)[0]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SEGFLEET_")}
    # The environment is read when `up` starts the service.
    environment = {**kept, "SEGFLEET_HOME": str(root), **variables}
    up = [*_UP, "up", "--home", str(root), "--port", str(port), "--detach"]
    started = subprocess.run(up, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert started.returncode == 0, started.stdout + started.stderr
    try:
        yield Embedded(home, f"http://127.0.0.1:{port}", environment)
    finally:
        state = State.load(home)
        subprocess.run([*_UP, "down", "--home", str(root)], env=environment, check=False)
        for part in ("service", "ray", "mlflow"):
            if state is not None:
                end_tree(None, state.mark(part), 0.0)
