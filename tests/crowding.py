"""A group of processes that may have but little memory: who takes more is killed by the kernel."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LIMIT = 16 * 2**20


@contextmanager
def crowded() -> Iterator[Path]:
    """Where to write the id of a process that shall have 16 MiB more at most; skips where that cannot be had."""
    root = Path("/sys/fs/cgroup")
    name, limit, swap = "memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
    if (root / "cgroup.controllers").exists():
        name, limit, swap = "", "memory.max", "memory.swap.max"
    group = root / name / f"segfleet-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(LIMIT))
        if (group / swap).exists():
            (group / swap).write_text("0" if swap == "memory.swap.max" else str(LIMIT))
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no group of processes with a limit of memory can be made: {error}")
    members = group / "cgroup.procs"
    try:
        yield members
    finally:
        deadline = time.monotonic() + 10
        while members.read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.1)  # until the killed are gone
        group.rmdir()
