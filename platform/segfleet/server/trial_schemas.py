"""Shapes of requests and answers about trials."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from segfleet.queue.trials import TrialKind, TrialState
from segfleet.server.schemas import Body, PlainData, Text
from segfleet.spec.sections import Steps

TrialNumber = Annotated[int, Field(ge=1, le=10_000)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Figure = Annotated[float, Field(ge=0.0, le=1e12)]


class TrialBody(Body):
    """A trial that is to be run."""

    number: TrialNumber
    kind: TrialKind = "trial"
    params: Annotated[PlainData, Field(max_length=100)] = Field(description="value of each path that the trial varies")
    num_steps: Steps


class TrialStateBody(Body):
    """Where a trial is now."""

    state: TrialState
    why: Text = Field("", description="why it was stopped or has failed")
    mlflow_run: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    worker_seconds: _Figure | None = Field(None, description="over all its attempts; never falls")


class TrialReportBody(Body):
    """What a validation has shown."""

    validation: Annotated[int, Field(ge=1)] = Field(description="from 1, without gaps")
    step: Annotated[int, Field(ge=0, le=100_000_000)]
    value: Annotated[float, Field(allow_inf_nan=False)] | None = Field(description="of the search's metric")
    miou: Annotated[float, Field(allow_inf_nan=False)] | None = None
    seconds: _Figure = Field(description="busy so far, over all its attempts")


class TrialMeasuredBody(Body):
    """Size and speed of a trial's model; null keeps what is known."""

    parameters: _Count | None = None
    images_per_s: _Figure | None = None
    peak_memory_mib: _Figure | None = None


class TrialAnswer(BaseModel):
    """One trial of a search; times are seconds since the epoch."""

    number: int
    kind: TrialKind = Field(description="final: the retraining of the best choice")
    params: dict[str, Any]
    state: TrialState
    why: str
    step: int
    num_steps: int
    reports: list[dict[str, Any]] = Field(description="validation, step, value, miou, seconds, at; the oldest first")
    best_value: float | None = Field(description="of the search's metric")
    best_step: int | None
    parameters: int | None
    images_per_s: float | None = Field(description="measured the same way for all trials")
    peak_memory_mib: float | None
    worker_seconds: float
    checkpoint: dict[str, Any] | None
    mlflow_run: str | None
    attempt: int = Field(description="number of the search's attempt that ran it last")
    created_at: float
    started_at: float | None
    finished_at: float | None
    updated_at: float

    @classmethod
    def of(cls, trial: dict[str, Any]) -> TrialAnswer:
        """The answer for a trial's row."""
        return cls(**{name: trial[name] for name in cls.model_fields})


class TrialsAnswer(BaseModel):
    """Trials by number."""

    trials: list[TrialAnswer]


class SearchTrialsAnswer(TrialsAnswer):
    """All trials of a search."""

    metric: str
    mode: Literal["max", "min"]
