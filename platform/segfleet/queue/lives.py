"""What the processes of an attempt tell of their time: one life from the start of its group of workers to the next.

A life keeps its own account by its own clock and tells it with heartbeats; here it gets its place in the
service's time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from segfleet.queue.model import Document

# What the loop itself can tell apart.
OWN_PARTS = ("load", "data", "step", "validation", "checkpoint", "mlflow", "other")
MAX_LIVES = 50


def told(lives: Sequence[Document], account: object, now: float) -> list[Document] | None:
    """The lives of an attempt after one of them has told its account.

    Each of its accounts came some time after it was made, so the earliest begin that any of them shows is the best.

    Args:
        lives: As stored, oldest first.
        account: {"life", "elapsed", "part", "seconds", "start", "step", "saved", "unsaved"}: the life's id; its age and
            its seconds by part; the part that it is in; the steps at which it began, stands and last wrote a
            checkpoint; and the seconds by part since then.
        now: Seconds since the epoch, by the service's clock.

    Returns:
        All lives; None: the account says nothing new, or is no account.
    """
    told = _checked(account)
    if told is None:
        return None
    known = next((life for life in lives if life["life"] == told["life"]), None)
    begin = now - told["elapsed"]
    if known is None:
        return [*lives, {**told, "begin": begin}] if len(lives) < MAX_LIVES else None
    if told["elapsed"] < known["elapsed"] or known is not lives[-1]:
        return None
    return [*lives[:-1], {**told, "begin": min(begin, known["begin"])}]


def _checked(account: object) -> Document | None:
    """Exactly the known fields, or nothing: an account must never cost an attempt its heartbeat."""
    if not isinstance(account, Mapping):
        return None
    try:
        life, part = str(account["life"])[:64], str(account["part"])
        return {
            "life": life,
            "part": part if part in OWN_PARTS else "other",
            "elapsed": _seconds(account["elapsed"]),
            "seconds": _by_part(account["seconds"]),
            "unsaved": _by_part(account["unsaved"]),
            **{name: int(_seconds(account[name])) for name in ("start", "step", "saved")},
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _by_part(seconds: Any) -> dict[str, float]:
    return {part: _seconds(seconds[part]) for part in OWN_PARTS if part in seconds}


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not (math.isfinite(seconds) and 0 <= seconds < 1e12):
        raise ValueError(f"{value!r} are no seconds")
    return seconds
