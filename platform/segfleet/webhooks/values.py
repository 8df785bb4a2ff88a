"""What webhooks can be told, and when a try is the last."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

# Names of the history's lines; `test` is sent on request only.
EVENTS = (
    "submitted",
    "starting",
    "running",
    "preempting",
    "preempted",
    "paused",
    "resumed",
    "retrying",
    "retry_requested",
    "succeeded",
    "failed",
    "cancelled",
)
TEST = "test"
MAX_TRIES = 10
MAX_AGE_S = 86_400.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 900.0


class DeliveryState(StrEnum):
    """Where an event for a webhook stands; `dead` was given up."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """An event that waits for its webhook to take it.

    Attributes:
        seq: Rises with each event; a webhook gets its events in this order.
        id: The same at each try, so that the receiver can tell repetitions.
        webhook_id: For whom.
        url: Where.
        document: What is told.
        tries: So far.
        created_at: Seconds since the epoch.
    """

    seq: int
    id: str
    webhook_id: str
    url: str
    document: dict[str, Any]
    tries: int
    created_at: float


def after_failure(tries: int, age_s: float) -> float | None:
    """Pause before the next try in seconds; None: that was the last.

    Args:
        tries: Made so far, the failed one among them.
        age_s: Of the event.
    """
    pause_s = min(_FIRST_PAUSE_S * 2.0 ** (tries - 1), _LONGEST_PAUSE_S)
    return None if tries >= MAX_TRIES or age_s + pause_s > MAX_AGE_S else pause_s
