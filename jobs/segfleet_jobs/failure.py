"""Name what went wrong: the class decides whether the queue tries again."""

from __future__ import annotations

import re

from segfleet.errors import DataError, SegfleetError, ServiceError

HINTS = {
    "oom": "set train.micro_batch, lower train.global_batch or train.crop, or use more workers",
    "nan": "lower optim.lr, add optim.warmup_steps, or use precision fp32",
    "infra": "the queue tries again from the last checkpoint",
}


class NonFiniteLossError(SegfleetError):
    """Too many steps in a row had a loss or gradient that is not finite."""

    code = "nan"


class SearchFailedError(SegfleetError):
    """Too many trials of a search have failed, or its final training has."""

    code = "user"


# What a lost peer, a process that was killed, a broken network or a sick GPU look like from inside torch.
_TRANSPORT = re.compile(
    r"DataLoader worker \(pid.*(exited unexpectedly|killed by signal)|connection|closed by peer|timed? ?out|NCCL|gloo|"
    r"socket|CUDA error|cuDNN|unreachable|reset by",
    re.IGNORECASE,
)
# Ray's words for a lost machine, whichever of its exceptions brings them.
_LOST_NODE = re.compile(
    r"NodeDied|node preemption|node (has |was |is )?(died|dead|marked dead|lost|preempted|terminated)", re.IGNORECASE
)
_REPEATABLE = (
    SegfleetError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
# The most telling class wins when several ranks fail: one rank's fault breaks the connections of the others.
_TELLING = ("nan", "oom", "data", "user", "node", "infra")


def cause(error: BaseException) -> BaseException:
    """The error itself, out of what Ray Train wraps it in: the worker's own, or why the worker could not be asked."""
    for name in ("_base_exc", "health_check_failure"):
        error = getattr(error, name, error)
    return error


def classify(error: BaseException) -> tuple[str, str]:
    """(class, message) of an error: user, data, nan, oom, node or infra.

    Only what a new attempt can change counts as node or infra; an error of the user's model or spec would come again.
    An error that carries those of several workers (Ray Train's WorkerGroupError) is as telling as the most telling of
    them.
    """
    workers = getattr(error, "worker_failures", None)
    if workers:
        found = [classify(cause(inner)) for inner in workers.values()]
        return min(found, key=lambda item: _TELLING.index(item[0]))
    name = type(error).__name__
    text = str(error).strip() or name
    if isinstance(error, NonFiniteLossError):
        return "nan", f"{text}; {HINTS['nan']}"
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate memory" in text:
        return "oom", f"out of memory: {text}; {HINTS['oom']}"
    if isinstance(error, ServiceError):
        return "infra", text
    if isinstance(error, DataError):
        return "data", text
    if isinstance(error, _REPEATABLE):
        return "user", text if isinstance(error, SegfleetError) else f"{name}: {text}"
    if _LOST_NODE.search(f"{name}: {text}"):
        return "node", f"{name}: {text}"
    if type(error) is RuntimeError and not _TRANSPORT.search(text):
        return "user", f"{name}: {text}"
    return "infra", f"{name}: {text}"
