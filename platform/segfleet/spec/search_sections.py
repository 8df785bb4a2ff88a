"""The sections of a search's spec: which fields vary and how, how trials are chosen, what becomes of the best."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from segfleet.spec.sections import Section, Steps, WorkerRange

Value = bool | int | float | str | None
MAX_TRIALS = 1000
MAX_COMBINATIONS = 1000
_LARGEST = 1e15
# Values of a range have 6 significant digits, or are whole.
_MOST_STEPS = 10**10


def _check_scalar(value: Any) -> Any:
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"{value!r} is no single value; write a word, a number, true, false or null")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number must be finite")
    return value


def _check_option(value: Any) -> Any:
    return tuple(map(_check_scalar, value)) if isinstance(value, list | tuple) else _check_scalar(value)


Scalar = Annotated[Any, AfterValidator(_check_scalar)]
# One value, or for several paths together one value for each of them.
Option = Annotated[Any, AfterValidator(_check_option)]
Options = Annotated[tuple[Option, ...], Field(max_length=MAX_COMBINATIONS)]
Path = Annotated[str, Field(min_length=1, max_length=200)]


class RangeSpec(Section):
    """All numbers between two bounds, both included."""

    min: int | float
    max: int | float
    log: bool = Field(False, description="evenly over the orders of magnitude")
    step: int | float | None = Field(
        None, description="distance between neighbours, from min on; null: 1 for whole numbers, else none"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if any(abs(value) > _LARGEST for value in (self.min, self.max, self.step or 0)):
            raise ValueError(f"a number must be at most {_LARGEST:g}")
        if self.min >= self.max:
            raise ValueError(f"min {self.min:g} is not below max {self.max:g}")
        if self.log and self.min <= 0:
            raise ValueError(f"min {self.min:g} is not above 0, which a logarithmic range needs")
        if self.log and self.step is not None:
            raise ValueError("log and step do not go together; list the values instead")
        if self.step is not None:
            self._check_step(self.step, self.max - self.min)
        return self

    @staticmethod
    def _check_step(step: float, width: float) -> None:
        if step <= 0:
            raise ValueError(f"step {step:g} is not above 0")
        if step > width:
            raise ValueError(f"step {step:g} leads from min beyond max at once; list the values instead")
        if step * _MOST_STEPS < width:
            raise ValueError(f"step {step:g} is too small to tell the values apart; leave it out")


def _choices_kind(body: Any) -> str:
    return "(values)" if isinstance(body, list | tuple) else "(range)"


# The names of the branches stand in pydantic's errors; `explain` leaves out what is in brackets.
Choices = Annotated[
    Annotated[Options, Tag("(values)")] | Annotated[RangeSpec, Tag("(range)")], Discriminator(_choices_kind)
]


class CasesSpec(Section):
    """Choices that depend on the value of another path; a value without a case leaves the base's value."""

    given: Path = Field(description="another path of the space, with a list of values")
    cases: Annotated[dict[str, Choices], Field(min_length=1, max_length=MAX_COMBINATIONS)] = Field(
        description="by that path's value: what this one is chosen from"
    )


class SameSpec(Section):
    """The value of another path."""

    same_as: Path = Field(description="another path of the space")


def _body_kind(body: Any) -> str:
    if isinstance(body, CasesSpec) or (isinstance(body, dict) and ("given" in body or "cases" in body)):
        return "(cases)"
    if isinstance(body, SameSpec) or (isinstance(body, dict) and "same_as" in body):
        return "(same)"
    return _choices_kind(body)


Body = Annotated[
    Annotated[Options, Tag("(values)")]
    | Annotated[RangeSpec, Tag("(range)")]
    | Annotated[CasesSpec, Tag("(cases)")]
    | Annotated[SameSpec, Tag("(same)")],
    Discriminator(_body_kind),
]
# By the name that stands in an error: what its keys are.
BRANCHES: dict[str, type[Section]] = {
    "(range)": RangeSpec,
    "(cases)": CasesSpec,
    "(same)": SameSpec,
    "(elastic)": WorkerRange,
}
Space = Annotated[dict[Path, Body], Field(min_length=1, max_length=50)]


class SearchSection(Section):
    """How trials are chosen, compared and ended."""

    metric: Literal["val/miou", "val/pixel_accuracy", "val/mean_accuracy"] = Field(
        "val/miou", description="what trials are compared by, at each validation"
    )
    mode: Literal["max", "min"] = Field("max", description="whether more or less of it is better")
    algorithm: Literal["grid", "random", "optuna"] = Field(
        "grid", description="every combination; by lot; or Optuna's TPE, which learns from the trials before"
    )
    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = Field(
        None, description="how many at most; null: as many as a grid has combinations"
    )
    scheduler: Literal["none", "asha"] = Field("none", description="asha ends trials early that are behind others")
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(0, description="of random and optuna")
    max_parallel: Annotated[int, Field(ge=1, le=64)] = Field(1, description="trials at a time, if the cluster has room")
    grace: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="asha: validations before a trial may be ended")
    reduction: Annotated[int, Field(ge=2, le=16)] = Field(4, description="asha: one in so many goes on at each rung")
    max_steps: Annotated[int, Field(ge=1)] | None = Field(None, description="budget: steps of all trials; null: none")
    max_worker_hours: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="budget: hours times workers of all trials; null: none"
    )
    patience: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = Field(
        None, description="trials in a row without a better one that end the search; null: none do"
    )
    max_failures: Annotated[int, Field(ge=0, le=MAX_TRIALS)] | None = Field(
        None, description="more failed trials fail the search; null: a quarter of the trials, at least 3"
    )


class FinalSpec(Section):
    """The best choice is trained once more."""

    steps: Steps | None = Field(None, description="train.steps; null: as in the trial")
    set: Annotated[dict[Path, Scalar], Field(max_length=50)] = Field({}, description="other fields, by path")
