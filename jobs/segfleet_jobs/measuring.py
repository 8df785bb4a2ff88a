"""What a measurement needs: a process of its own, and the height of the memory meanwhile."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Self, TypeVar

import torch

from segfleet.errors import SettingsError

# Without one of a GPU's size to find, two: norms over the batch refuse a single picture.
CPU_BATCH = 2
_STATM = Path("/proc/self/statm")
_SAMPLE_EVERY_S = 0.001
_Result = TypeVar("_Result")


def in_fresh_process(function: Callable[..., _Result], *args: object) -> _Result:
    """Call a function where nothing has run before: freed memory of earlier work would hide what it takes.

    Args:
        function: Of a module that can be imported by name.
        args: What it is given; like its result and errors they are pickled.

    Raises:
        SettingsError: the process was killed.
    """
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *args).result()
    except BrokenProcessPool as error:
        raise SettingsError(
            "the process that measured was killed, most likely for lack of memory; try a smaller batch or size"
        ) from error


class PeakMemory:
    """How much the memory grows, at its height, while a `with` block runs.

    On a GPU that is what PyTorch allocates there; on a CPU this process's resident memory, looked at every ms.

    Attributes:
        mib: The growth, MiB; None until the block has ended, and where the system doesn't tell (only Linux does).
    """

    def __init__(self, device: torch.device) -> None:
        self.mib: float | None = None
        self._device = device
        self._before = self._highest = 0
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        elif _STATM.exists():
            self._before = _resident_bytes()
            self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self._highest = torch.cuda.max_memory_allocated(self._device)
        elif _STATM.exists():
            self._highest = max(self._highest, _resident_bytes())
            self._done.set()
            self._sampler.join()
        if self._before:
            self.mib = max(0, self._highest - self._before) / 2**20

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_EVERY_S):
            self._highest = max(self._highest, _resident_bytes())


def _resident_bytes() -> int:
    return int(_STATM.read_text().split()[1]) * resource.getpagesize()
