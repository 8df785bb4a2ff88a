"""What a fresh process is asked to do; it can import this by name."""

from __future__ import annotations

import time

import torch

from segfleet_jobs.measuring import PeakMemory


def held_mib() -> float:
    """What `PeakMemory` tells of 128 MiB that are gone again when it is asked."""
    with PeakMemory(torch.device("cpu")) as peak:
        held = torch.ones(32 * 2**20)
        time.sleep(0.5)
        del held
    assert peak.mib is not None
    return peak.mib
