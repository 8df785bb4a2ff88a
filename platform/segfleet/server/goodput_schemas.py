"""Shapes of a job's split of time, and of the faults of its workers."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from segfleet.queue.desk import FaultKind
from segfleet.queue.goodput import Goodput
from segfleet.queue.model import Event, clean_text


class GoodputAnswer(BaseModel):
    """Where a job's time went, from its first start to its end or to now."""

    share: float | None = Field(description="share of the time in step, validation and work; pauses do not count")
    wall_s: float = Field(description="from the first start to the end, or to now; the sum of `seconds`")
    first_wait_s: float = Field(description="from submission to the first start; not in `wall_s`")
    seconds: dict[str, float] = Field(description="by part, over all attempts")

    @classmethod
    def of(cls, goodput: Goodput | None) -> GoodputAnswer | None:
        """The answer for a split."""
        return None if goodput is None else cls(**goodput.to_document())


class FaultAnswer(BaseModel):
    """What went wrong: a `fault` started the group anew, a `straggler` slowed it, a `damage`d checkpoint was no use."""

    at: float
    kind: str
    attempt: int
    rank: int | None
    phase: str | None
    step: int | None
    message: str

    @classmethod
    def of(cls, event: Event) -> FaultAnswer:
        """The answer for a line of the history."""
        return cls(at=event.at, kind=event.kind, attempt=event.attempt, **event.detail)


class FaultBody(BaseModel):
    """What an attempt tells of one of its workers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: FaultKind
    rank: Annotated[int, Field(ge=0, lt=2**31)] | None
    phase: Annotated[str, Field(max_length=32)] | None
    step: Annotated[int, Field(ge=0, lt=2**63)] | None
    message: Annotated[str, Field(max_length=2000)]

    def detail(self) -> dict[str, Any]:
        """What the history keeps."""
        phase = None if self.phase is None else clean_text(self.phase)
        return {"rank": self.rank, "phase": phase, "step": self.step, "message": clean_text(self.message)}
