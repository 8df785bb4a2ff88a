"""What a candidate must show to take over an alias, and the decision; no effects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from segfleet.spec.sections import EvalSpec, Name, ReadLocation, ResourceSpec, Section

# Of an evaluation's scores, those of which more is better; with the names that evaluations give them.
Metric = Literal["miou", "pixel_accuracy", "mean_accuracy", "boundary_miou", "miou_small", "miou_medium", "miou_large"]
# Scores come with six digits; what differs by less is the last digit's rounding.
_ROUNDING = 1e-9


class Gate(Section):
    """How candidate and holder of an alias are compared."""

    shards: ReadLocation = Field(description="folder of a prepared dataset of the model's classes")
    split: Name = Field("val", description="split to evaluate on")
    eval: EvalSpec | None = Field(None, description="windows, scales and flip; null: as the models were validated")
    metric: Metric = Field("miou", description="score that decides")
    margin: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="the candidate must be better by at least that much; a tie is never better"
    )
    tolerance: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="or it may be worse by at most that much, if it is `faster`; null: it may not"
    )
    faster: Annotated[float, Field(gt=1, le=1000)] | None = Field(
        None, description="images/s of the candidate, in images/s of the holder, that a tolerated loss must be worth"
    )
    resources: ResourceSpec = Field(
        default_factory=lambda: ResourceSpec.model_validate({}), description="of one evaluation"
    )

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.tolerance is None) != (self.faster is None):
            raise ValueError("tolerance and faster belong together: give both or none")
        return self


@dataclass(frozen=True, slots=True)
class Figures:
    """What an evaluation has found of one version.

    Attributes:
        job: The evaluation.
        content_id: Of the data.
        split: Of the data.
        protocol: Label of windows, scales, flip and precision.
        value: The gate's metric; None if nothing was scored.
        images_per_s: Pictures a second over all workers.
    """

    job: str
    content_id: str
    split: str
    protocol: str
    value: float | None
    images_per_s: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the candidate may have the alias, and the reason in a sentence."""

    passed: bool
    why: str


def figures_of(job_id: str, result: Mapping[str, Any], metric: str) -> Figures:
    """The figures in an evaluation's result."""
    return Figures(
        job=job_id,
        content_id=str(result.get("content_id")),
        split=str(result.get("split")),
        protocol=str((result.get("protocol") or {}).get("label")),
        value=_number(result.get(metric)),
        images_per_s=_number(result.get("samples_per_s")),
    )


def decide(gate: Gate, candidate: Figures, holder: Figures | None) -> Verdict:
    """Compare a candidate with the alias' holder.

    Args:
        gate: The rule.
        candidate: Its figures.
        holder: Those of the holder; None: nobody holds the alias, so that nobody can be better.
    """
    if candidate.value is None:
        return Verdict(False, f"the candidate has no {gate.metric} on this split")
    if holder is None:
        return Verdict(True, f"{gate.metric} {candidate.value:.4f}, and nobody holds the alias yet")
    if trouble := _not_comparable(candidate, holder):
        return Verdict(False, trouble)
    if holder.value is None:
        return Verdict(False, f"the holder has no {gate.metric} on this split, so that nothing can be compared")
    gain = candidate.value - holder.value
    said = f"{gate.metric} {candidate.value:.4f} against {holder.value:.4f} ({gain:+.4f})"
    if gain > _ROUNDING and gain >= gate.margin - _ROUNDING:
        return Verdict(True, f"{said}: better by at least the margin {gate.margin:g}")
    if gate.tolerance is None or gate.faster is None:
        return Verdict(False, f"{said}: not better by the margin {gate.margin:g}")
    return _tolerated(gate.tolerance, gate.faster, gain, said, candidate, holder)


def _tolerated(tolerance: float, faster: float, gain: float, said: str, candidate: Figures, holder: Figures) -> Verdict:
    if gain < -tolerance - _ROUNDING:
        return Verdict(False, f"{said}: worse by more than the tolerance {tolerance:g}")
    if not candidate.images_per_s or not holder.images_per_s:
        return Verdict(False, f"{said}: within the tolerance {tolerance:g}, but its speed was not measured")
    times = candidate.images_per_s / holder.images_per_s
    said += f", {candidate.images_per_s:.3g} against {holder.images_per_s:.3g} images/s ({times:.2f} times)"
    if times < faster - _ROUNDING:
        return Verdict(False, f"{said}: within the tolerance {tolerance:g}, but not {faster:g} times as fast")
    return Verdict(True, f"{said}: within the tolerance {tolerance:g} and at least {faster:g} times as fast")


def _not_comparable(candidate: Figures, holder: Figures) -> str:
    """Why two evaluations did not measure the same thing; empty if they did."""
    if (candidate.content_id, candidate.split) != (holder.content_id, holder.split):
        return (
            "candidate and holder were evaluated on different data: the dataset was changed in between; promote again"
        )
    if candidate.protocol != holder.protocol:
        return (
            f"candidate and holder were evaluated differently ({candidate.protocol} and {holder.protocol}), each as it "
            "was validated: give the gate an eval section"
        )
    return ""


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
