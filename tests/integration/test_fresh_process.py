from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from segfleet.errors import SettingsError
from segfleet_jobs import measuring
from segfleet_jobs.measuring import PeakMemory, in_fresh_process

pytestmark = pytest.mark.integration


def test_answers_raises_or_is_killed() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(FileNotFoundError):
        in_fresh_process(os.stat, "/nowhere")
    with pytest.raises(SettingsError, match="was killed, most likely for lack of memory"):
        in_fresh_process(signal.raise_signal, signal.SIGKILL)


def _hold_for_a_while() -> float:
    with PeakMemory(torch.device("cpu")) as peak:
        held = torch.ones(32 * 2**20)
        time.sleep(0.5)
        del held
    assert peak.mib is not None
    return peak.mib


@pytest.mark.skipif(not measuring._STATM.exists(), reason="only Linux tells a process's memory")
def test_peak_memory_sees_what_is_freed_again() -> None:
    assert 120 < in_fresh_process(_hold_for_a_while) < 200
