from __future__ import annotations

import os
import signal

import pytest

from memory import held_mib
from segfleet.errors import SettingsError
from segfleet_jobs import measuring
from segfleet_jobs.measuring import in_fresh_process

pytestmark = pytest.mark.integration


def test_answers_raises_or_is_killed() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(FileNotFoundError):
        in_fresh_process(os.stat, "/nowhere")
    with pytest.raises(SettingsError, match="was killed, most likely for lack of memory"):
        in_fresh_process(signal.raise_signal, signal.SIGKILL)


@pytest.mark.skipif(not measuring._STATM.exists(), reason="only Linux tells a process's memory")
def test_peak_memory_sees_what_is_freed_again() -> None:
    assert 120 < in_fresh_process(held_mib) < 200
