"""Known causes of failures, recognised by what an attempt's log says at its end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Bytes of a log's end that are looked at: tracebacks of many ranks, but no whole training.
TAIL_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Cause:
    """Something that has gone wrong for many before.

    Attributes:
        name: Short and stable, for scripts.
        pattern: What the log says of it, within one line.
        advice: What it is and what to do.
        comes_again: Another attempt would end alike, whatever the failure's class allows.
    """

    name: str
    pattern: re.Pattern[str]
    advice: str
    comes_again: bool = False


def _cause(name: str, pattern: str, advice: str, *, comes_again: bool = False) -> Cause:
    return Cause(name, re.compile(pattern, re.IGNORECASE), advice, comes_again)


# The more telling first: one line of a log often brings the others with it.
CAUSES = (
    _cause(
        "gpu_memory",
        r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError",
        "the GPU's memory is full: lower train.global_batch or train.crop, use more workers, precision bf16 or "
        "train.checkpoint_activations",
    ),
    _cause(
        "gpu_hardware",
        r"uncorrectable ECC|\bXid \(|GPU has fallen off the bus|CUDA error: (hardware stack error|unspecified launch)",
        "a GPU is broken: ask the operator to take its machine out of the cluster",
    ),
    _cause(
        "driver_too_old",
        r"CUDA driver version is insufficient|forward compatibility was attempted on non supported HW",
        "the machine's GPU driver is older than this build of torch needs: ask the operator to update it",
        comes_again=True,
    ),
    _cause(
        "host_memory",
        r"killed due to the node running low on memory|OutOfMemoryError: .*memory monitor|oom[-_ ]kill",
        "the machine's memory is full: lower train.loader_processes or train.global_batch, or use more machines",
    ),
    _cause(
        "shared_memory",
        r"DataLoader worker .* killed by signal: Bus error|No space left on device.*/dev/shm|/dev/shm.*No space left",
        "the machine's shared memory is full: the operator should enlarge it (containers often have 64 MB), or lower "
        "train.loader_processes",
    ),
    _cause(
        "disk_full",
        r"No space left on device|Disk quota exceeded",
        "the disk is full: make room on the storage, then 'segfleet retry'",
    ),
    _cause(
        "open_files",
        r"Too many open files",
        "too many open files: the operator should raise the limit (ulimit -n), or lower train.loader_processes",
    ),
    _cause(
        "missing_package",
        r"ModuleNotFoundError: No module named|ImportError: .*(cannot open shared object file|undefined symbol)",
        "the cluster's machines lack a package or a library that the service has: install the same version on all",
        comes_again=True,
    ),
    _cause(
        "storage_denied",
        r"PermissionError: \[Errno 13\]|(?<!psutil\.)\bAccessDenied\b|InvalidAccessKeyId|SignatureDoesNotMatch|"
        r"ExpiredToken",
        "the storage refuses the job: the operator should check its keys and permissions",
        comes_again=True,
    ),
    _cause(
        "network",
        r"NCCL (WARN|error).*(unhandled system|remote process|connection)|ncclSystemError|ncclRemoteError|"
        r"Connection closed by peer",
        "a connection between workers broke: often one of them died first, so look further up in the log; if it "
        "comes again, ask the operator about the network between the machines",
    ),
)


def diagnose(log: str) -> Cause | None:
    """The first known cause that a line of the log names."""
    return next((cause for cause in CAUSES if any(map(cause.pattern.search, _lines(log)))), None)


def log_tail(path: Path) -> str:
    """The end of a log, empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _lines(log: str) -> Iterator[str]:
    # A line of a progress bar may be very long; what it says stands near its ends.
    return (line if len(line) <= 4000 else f"{line[:2000]} {line[-2000:]}" for line in log.splitlines())
