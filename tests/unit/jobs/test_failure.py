"""The class of a failure decides whether the queue tries again."""

from __future__ import annotations

import errno

import pytest
import torch

from segfleet.errors import CheckpointError, DataError, ServiceError
from segfleet_jobs.failure import NonFiniteLossError, classify


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NonFiniteLossError("10 steps"), "nan"),
        (MemoryError(), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "oom"),
        (DataError("shard 'x'"), "data"),
        (CheckpointError("disk full"), "user"),
        (ValueError("the weights do not fit"), "user"),
        (ServiceError("MLflow is away"), "infra"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "infra"),
        (RuntimeError("Connection closed by peer [127.0.0.1]:1234"), "infra"),
    ],
)
def test_classes(error: Exception, expected: str) -> None:
    failure_class, message = classify(error)
    assert failure_class == expected
    assert message
