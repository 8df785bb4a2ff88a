"""The kinds of job: whole specs and the rules that tie their sections together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from segfleet.errors import Problem
from segfleet.spec.sections import (
    AugmentSpec,
    DataSpec,
    EvalSpec,
    Location,
    LoopSpec,
    ModelSpec,
    Name,
    OptimSpec,
    Probability,
    QueueSpec,
    RegisterSpec,
    ResourceSpec,
    Section,
)

Recipe = Literal["ade20k", "pascal_context", "cityscapes", "camvid", "none"]
DatasetKind = Literal["folder", "camvid", "synthetic"]


class TrainSpec(Section):
    """Train, validate and register one model."""

    kind: Literal["train"] = "train"
    name: Name
    recipe: Recipe = Field("none", description="whose defaults fill data, augment, optim, train and eval")
    data: DataSpec
    model: ModelSpec
    optim: OptimSpec
    augment: AugmentSpec
    train: LoopSpec
    eval: EvalSpec
    resources: ResourceSpec
    queue: QueueSpec
    register_: RegisterSpec | None = Field(None, alias="register")

    def problems(self) -> list[Problem]:
        """What no single field can see."""
        found = []
        workers, batch = self.resources.workers, self.train.global_batch
        if batch % workers:
            found.append(
                Problem(
                    "train.global_batch",
                    f"{batch} is not divisible by {workers} workers",
                    f"use {max(workers, batch // workers * workers)} or another number of workers",
                )
            )
        for path, pixels in (("train.crop", self.train.crop), ("eval.window", self.eval.window)):
            if pixels < self.model.patch_size:
                found.append(Problem(path, f"{pixels} is smaller than one patch of {self.model.patch_size} pixels"))
        if self.train.precision == "fp16" and self.resources.gpus_per_worker == 0:
            found.append(Problem("train.precision", "fp16 needs a GPU", "use bf16 or fp32 on the CPU"))
        return found


class PrepareSpec(Section):
    """Turn raw pictures and masks into shards with a manifest."""

    kind: Literal["prepare"] = "prepare"
    name: Name
    dataset: DatasetKind = Field(description="layout of the raw data")
    raw: Location | None = Field(None, description="folder of the raw data; none for dataset: synthetic")
    out: Location = Field(description="folder to write; must not hold a finished dataset already")
    processes: Annotated[int, Field(ge=1, le=256)] = Field(2, description="encoding processes; never change the result")
    val_share: Probability = Field(0.2, description="folder without split lists: share of the seeded validation split")
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(0, description="of the split and of synthetic pictures")
    samples: Annotated[int, Field(ge=2, le=1_000_000)] = Field(300, description="dataset: synthetic only")
    queue: QueueSpec

    def problems(self) -> list[Problem]:
        """What no single field can see."""
        if self.dataset == "synthetic" and self.raw is not None:
            return [Problem("raw", "synthetic pictures are generated, they have no raw folder", "leave raw out")]
        if self.dataset != "synthetic" and self.raw is None:
            return [Problem("raw", f"missing; dataset {self.dataset!r} is read from a folder")]
        return []


JobSpec = TrainSpec | PrepareSpec
KINDS: dict[str, type[TrainSpec] | type[PrepareSpec]] = {"train": TrainSpec, "prepare": PrepareSpec}
