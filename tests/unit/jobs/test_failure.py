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
        (RuntimeError("The size of tensor a (4) must match the size of tensor b (5)"), "user"),
        (AssertionError("internal"), "user"),
        (RuntimeError("NCCL communicator was aborted"), "infra"),
        (RuntimeError("DataLoader worker (pid(s) 666) exited unexpectedly"), "infra"),
        (RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed."), "infra"),
        (RuntimeError("Connection closed by peer [127.0.0.1]:1234"), "infra"),
        (OSError("The actor died because its node has died. Node Id: 3f"), "node"),
    ],
)
def test_classes(error: Exception, expected: str) -> None:
    failure_class, message = classify(error)
    assert failure_class == expected
    assert message


class GroupError(Exception):
    """Like Ray Train's: carries the errors of its workers."""

    def __init__(self, worker_failures: dict[int, Exception]) -> None:
        super().__init__("worker errors")
        self.worker_failures = worker_failures


def test_the_most_telling_error_of_a_group_counts() -> None:
    broken = RuntimeError("Connection closed by peer")
    assert classify(GroupError({0: broken, 1: MemoryError()}))[0] == "oom"
    assert classify(GroupError({0: NonFiniteLossError("10 steps"), 1: broken}))[0] == "nan"
    assert classify(GroupError({0: broken, 1: broken}))[0] == "infra"
