"""A promotion as stored."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from segfleet.promotion.gate import Gate
from segfleet.queue.model import Document

CANDIDATE, HOLDER = "candidate", "holder"


class PromotionState(StrEnum):
    """Where a promotion stands; the last three are final.

    `moving` is decided: the alias is being moved, and until that is known to have happened nobody else moves it.
    """

    PENDING = "pending"
    MOVING = "moving"
    PROMOTED = "promoted"
    REFUSED = "refused"
    STALE = "stale"


OPEN = (PromotionState.PENDING, PromotionState.MOVING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """One wish to let a version have an alias.

    Attributes:
        seq: Rises with each.
        id: `pro-` and sixteen characters.
        model: Registered model.
        alias: That it is about.
        version: The candidate.
        holder: Version that had the alias when this was asked; the candidate is compared with it and no other.
        who: Who asked, and owns the evaluations.
        project: Of the evaluations.
        origin: `JOB/GENERATION` of a job that registered the version; a job asks once, however often its attempts do.
        state: Where it stands.
        why: The reason of the state, in a sentence.
        gate: The rules when it was asked; None: the alias has none.
        evaluations: Jobs of the two sides.
        figures: `Figures` of the two sides, as plain data, once they are there.
        mover: The process that moves the alias.
        created_at: Seconds since the epoch.
        updated_at: Of the last change.
    """

    seq: int
    id: str
    model: str
    alias: str
    version: str
    holder: str | None
    who: str
    project: str
    origin: str | None
    state: PromotionState
    why: str
    gate: Document | None
    evaluations: Document
    figures: Document
    mover: str | None
    created_at: float
    updated_at: float

    @property
    def is_open(self) -> bool:
        """Whether it can still change."""
        return self.state in OPEN

    @property
    def rules(self) -> Gate | None:
        """The gate as a value."""
        return None if self.gate is None else Gate.model_validate_json(json.dumps(self.gate))


def new_promotion_id() -> str:
    """An id that nobody guesses: the idempotency keys of the evaluations are made of it."""
    return f"pro-{secrets.token_hex(8)}"


def both(candidate: Any = None, holder: Any = None) -> Document:
    """Something of the candidate and of the holder; None where it is not there (yet)."""
    return {"candidate": candidate, "holder": holder}
