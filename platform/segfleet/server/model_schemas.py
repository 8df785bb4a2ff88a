"""Shapes of requests and answers about model versions, gates and promotions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, Field

from segfleet.promotion.values import Promotion, PromotionState
from segfleet.server.paging import Page
from segfleet.server.schemas import Body, PlainData, Text
from segfleet.spec.sections import Alias, Name

Figure = Annotated[float, Field(allow_inf_nan=False)]


ModelName = Annotated[str, Path(description="of the model")]
NewModelName = Annotated[Name, Path(description="of the model")]
ModelRef = Annotated[str, Path(description="number of a version, or @ALIAS")]
AliasName = Annotated[str, Path(description="of the model, such as champion")]
NewAlias = Annotated[Alias, Path(description="of the model, such as champion")]


class ModelSummaryAnswer(BaseModel):
    """A registered model."""

    name: str
    aliases: dict[str, str] = Field(description="version by alias")
    latest_version: str | None
    updated_at: float


class ModelsAnswer(BaseModel):
    """All registered models."""

    models: list[ModelSummaryAnswer]


class ModelVersionAnswer(BaseModel):
    """A version of a model."""

    name: str
    version: str
    aliases: list[str]
    job: str | None = Field(description="whose attempt registered it; null: it was brought along")
    run_id: str | None = Field(description="of MLflow")
    created_at: float
    metrics: dict[str, float] = Field(description="by name; one of an evaluation says of which dataset and how")
    tags: dict[str, str] = Field(description="lineage: datasets, code, parent trial, licences, content")


class ModelAnswer(ModelSummaryAnswer):
    """A registered model with its versions, the newest first."""

    versions: list[ModelVersionAnswer]


class RegisterBody(Body):
    """A logged model that shall become the job's version in the registry."""

    run_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    model_uri: Annotated[str, Field(max_length=300)]
    metrics: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_./ -]{1,100}$")], Figure | None]
    tags: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_./ -]{1,100}$")], Text]


class EvaluatedBody(Body):
    """What a model version has reached on a dataset; every name says on which, and how it was measured."""

    version: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]
    metrics: Annotated[
        dict[Annotated[str, Field(pattern=r"^eval/[A-Za-z0-9_./ -]{1,200}$")], Figure | None], Field(max_length=100)
    ]


class VersionBody(RegisterBody):
    """A logged model that was brought along and shall become a version."""

    content_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="SHA-256 of weights and configuration; the same content is the same version"
    )
    alias: Alias | None = Field(None, description="that the version is promoted to; null: none")


class VersionAnswer(BaseModel):
    """Where a model is in the registry."""

    name: str
    version: str
    alias: str | None = Field(description="null: none was asked for, or the version does not have it (yet)")
    promotion: str | None = Field(description="by which the version gets the alias, or not; null: none was asked for")

    @classmethod
    def of(cls, promotion: Promotion) -> VersionAnswer:
        """The answer for a version that an alias was asked for."""
        alias = promotion.alias if promotion.state == PromotionState.PROMOTED else None
        return cls(name=promotion.model, version=promotion.version, alias=alias, promotion=promotion.id)


class GateBody(Body):
    """All rules of a gate; what is left out has its default."""

    rules: PlainData


class GateAnswer(BaseModel):
    """What a version must show to take over an alias."""

    model: str
    alias: str
    rules: dict[str, Any]
    set_by: str
    set_at: float


class GatesAnswer(BaseModel):
    """The gates of a model."""

    gates: list[GateAnswer]


class PromoteBody(Body):
    """A version that is to have an alias."""

    alias: Alias
    version: Annotated[str, Field(pattern=r"^([1-9][0-9]{0,8}|@[a-z][a-z0-9_-]{0,62})$")] = Field(
        description="its number, or @ALIAS"
    )
    project: Annotated[str, Field(max_length=63)] | None = Field(
        None, description="of the evaluations; null: `default`, or the caller's first"
    )


class SidesAnswer(BaseModel):
    """Something of the candidate and of the holder; null where it is not there (yet)."""

    candidate: Any
    holder: Any


class PromotionAnswer(BaseModel):
    """A promotion; times are seconds since the epoch."""

    id: str
    model: str
    alias: str
    version: str = Field(description="the candidate")
    holder: str | None = Field(description="who had the alias when it was asked")
    who: str
    project: str
    state: Literal["pending", "moving", "promoted", "refused", "stale"]
    why: str
    gate: dict[str, Any] | None = Field(description="the rules when it was asked; null: none")
    evaluations: SidesAnswer = Field(description="jobs")
    figures: SidesAnswer = Field(description="what the evaluations have found")
    created_at: float
    updated_at: float

    @classmethod
    def of(cls, promotion: Promotion) -> PromotionAnswer:
        """The answer for a promotion."""
        fields = {name: getattr(promotion, name) for name in cls.model_fields}
        return cls.model_validate({**fields, "state": str(promotion.state)})


class PromotionsAnswer(Page):
    """A page of a model's promotions, the newest first."""

    promotions: list[PromotionAnswer]


class DeletedAnswer(BaseModel):
    """A version that is out of the registry, and what stays of it."""

    name: str
    version: str
    stays: list[str]
