"""Name what went wrong: the class decides whether the queue tries again."""

from __future__ import annotations

from segfleet.errors import DataError, SegfleetError, ServiceError

HINTS = {
    "oom": "lower train.global_batch or train.crop, or use more workers",
    "nan": "lower optim.lr, add optim.warmup_steps, or use precision fp32",
    "infra": "the queue tries again from the last checkpoint",
}


class NonFiniteLossError(SegfleetError):
    """Too many steps in a row had a loss or gradient that is not finite."""

    code = "nan"


def classify(error: BaseException) -> tuple[str, str]:
    """(class, message) of an error: user, data, nan, oom or infra.

    Only what a new attempt can change counts as infra; a torch error of the user's model or spec would come again.
    """
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
    if isinstance(error, SegfleetError | ValueError | TypeError | KeyError):
        return "user", text
    return "infra", f"{name}: {text}"
