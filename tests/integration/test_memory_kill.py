"""The kernel kills a process for want of memory: the count that tells of it goes up."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from crowding import crowded
from segfleet_jobs.faults import count_memory_kills

pytestmark = pytest.mark.integration

# Joins the group before it takes more than the group may have.
SCRIPT = """
import os, pathlib, sys
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
taken = []
while len(taken) < 400:
    taken.append(bytearray(os.urandom(1 << 20)))
"""


def test_a_kill_by_the_kernel_is_counted() -> None:
    with crowded() as members:
        before = count_memory_kills()
        ended = subprocess.run([sys.executable, "-c", SCRIPT, str(members)], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert count_memory_kills() > before
