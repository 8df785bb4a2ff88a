"""The kinds of job: whole specs and the rules that tie their sections together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from segfleet.errors import Problem
from segfleet.spec.sections import (
    AugmentSpec,
    DataSpec,
    EvalDataSpec,
    EvalSpec,
    LocalPath,
    LoopSpec,
    LossSpec,
    ModelSpec,
    Name,
    OptimSpec,
    Probability,
    QueueSpec,
    ReadLocation,
    RegisterSpec,
    ResourceSpec,
    Section,
    WriteLocation,
    has_batch_norm,
)

Recipe = Literal["ade20k", "pascal_context", "cityscapes", "camvid", "none"]
DatasetKind = Literal[
    "folder", "ade20k", "pascal_context", "pascal_context_59", "cityscapes", "voc", "camvid", "synthetic"
]


class TrainSpec(Section):
    """Train, validate and register one model."""

    kind: Literal["train"] = "train"
    name: Name
    recipe: Recipe = Field("none", description="whose defaults fill data, augment, optim, train and eval")
    data: DataSpec
    model: ModelSpec
    optim: OptimSpec
    loss: LossSpec
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
        if self.data.mix and self.train.last_batch != "wrap":
            found.append(
                Problem(
                    "train.last_batch",
                    f"{self.train.last_batch!r} has no meaning with data.mix, whose datasets end their epochs apart",
                    "use wrap",
                )
            )
        for path, pixels in (("train.crop", self.train.crop), ("eval.window", self.eval.window)):
            if self.model.patch_size is not None and pixels < self.model.patch_size:
                found.append(Problem(path, f"{pixels} is smaller than one patch of {self.model.patch_size} pixels"))
        if self.model.arch in ("deeplabv3plus", "upernet") and batch < 2 * workers:
            found.append(
                Problem(
                    "train.global_batch",
                    f"{batch} samples for {workers} workers, and batch normalisation needs two a worker",
                    f"use at least {2 * workers}",
                )
            )
        if self.train.last_batch == "short" and has_batch_norm(self.model.model_dump()):
            found.append(
                Problem("train.last_batch", "'short' can leave a worker without samples to normalise over", "use wrap")
            )
        if self.train.checkpoint_activations and self.model.patch_size is None:
            found.append(
                Problem(
                    "train.checkpoint_activations", f"arch {self.model.arch!r} cannot", "only plain ViT encoders can"
                )
            )
        if self.train.precision == "fp16" and self.resources.gpus_per_worker == 0:
            found.append(Problem("train.precision", "fp16 needs a GPU", "use bf16 or fp32 on the CPU"))
        return found


class EvaluateSpec(Section):
    """Score a registered model on a prepared dataset."""

    kind: Literal["evaluate"] = "evaluate"
    name: Name
    model: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}(@[a-z][a-z0-9_-]{0,62}|/[1-9][0-9]{0,8})$")] = (
        Field(description="registered model, NAME@ALIAS or NAME/VERSION")
    )
    data: EvalDataSpec
    eval: EvalSpec | None = Field(None, description="windows, scales and flip; null: as the model was validated")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="fp16 needs a GPU")
    worst: Annotated[int, Field(ge=0, le=64)] = Field(8, description="pictures on the sheet of the worst ones")
    resources: ResourceSpec
    queue: QueueSpec

    def problems(self) -> list[Problem]:
        """What no single field can see."""
        if self.precision == "fp16" and self.resources.gpus_per_worker == 0:
            return [Problem("precision", "fp16 needs a GPU", "use bf16 or fp32 on the CPU")]
        return []


class PrepareSpec(Section):
    """Turn raw pictures and masks into shards with a manifest."""

    kind: Literal["prepare"] = "prepare"
    name: Name
    dataset: DatasetKind = Field(description="layout of the raw data")
    raw: LocalPath | None = Field(
        None, description="folder (ade20k: or zip file) of the raw data; none for dataset: synthetic"
    )
    out: WriteLocation = Field(description="folder to write; must not hold a finished dataset already")
    base: ReadLocation | None = Field(
        None, description="prepared dataset whose shards are taken over; only new samples are written"
    )
    adopt: bool = Field(False, description="raw holds WebDataset shards made elsewhere; index them, rewrite nothing")
    images: Literal["keep", "jpeg95"] = Field(
        "keep", description="keep: bytes as they are; jpeg95: PNG pictures become JPEG q95 4:4:4 (lossy)"
    )
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
        if self.adopt and self.dataset == "synthetic":
            return [
                Problem("adopt", "synthetic pictures have no shards made elsewhere", "name the dataset they are of")
            ]
        if self.adopt and (self.base is not None or self.images != "keep"):
            return [Problem("adopt", "nothing is rewritten, so base and images have no meaning", "leave them out")]
        return []


JobSpec = TrainSpec | EvaluateSpec | PrepareSpec
KINDS: dict[str, type[TrainSpec] | type[EvaluateSpec] | type[PrepareSpec]] = {
    "train": TrainSpec,
    "evaluate": EvaluateSpec,
    "prepare": PrepareSpec,
}
