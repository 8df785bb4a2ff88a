"""The kinds of job: whole specs and the rules that tie their sections together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from segfleet.errors import Problem
from segfleet.spec.fields import path_problem, value_trouble
from segfleet.spec.search_sections import FinalSpec, Path, SearchSection, Space
from segfleet.spec.sections import (
    EvalDataSpec,
    EvalSpec,
    LocalPath,
    ModelReference,
    Name,
    Probability,
    QueueSpec,
    ReadLocation,
    RegisterSpec,
    ResourceSpec,
    Section,
    WriteLocation,
)
from segfleet.spec.space_rules import space_problems
from segfleet.spec.training import TrainingBody

DatasetKind = Literal[
    "folder", "ade20k", "pascal_context", "pascal_context_59", "cityscapes", "voc", "camvid", "synthetic"
]


class NamedSpec(Section):
    """What every job has."""

    kind: str
    name: Name


class TrainSpec(TrainingBody, NamedSpec):
    """Train, validate and register one model."""

    kind: Literal["train"] = "train"
    queue: QueueSpec
    register_: RegisterSpec | None = Field(None, alias="register")


class SearchSpec(NamedSpec):
    """Many trainings that differ in some fields: find the best, retrain and register it."""

    kind: Literal["search"] = "search"
    base: TrainingBody = Field(description="what the trials have in common, as in a train spec")
    written: Annotated[tuple[Path, ...], Field(max_length=500)] = Field(
        (), description="filled in by segfleet: the fields of base that you wrote; the others may follow a trial's"
    )
    space: Space = Field(description="what differs between trials: choices by path, such as train.crop")
    search: SearchSection
    final: FinalSpec | None = Field(None, description="retrain the best; null: register the best trial itself")
    register_: RegisterSpec | None = Field(None, alias="register")
    queue: QueueSpec

    def problems(self) -> list[Problem]:
        """What no single field can see, but for what one combination alone can show: see `search.plan_problems`."""
        found = [Problem(f"base.{item.path}", item.message, item.hint) for item in self.base.problems()]
        if not isinstance(self.base.resources.workers, int):
            hint = "give one number; search.max_parallel lets the search grow"
            found.append(Problem("base.resources.workers", "trials have equally many workers", hint))
        found += space_problems(self.space)
        for path, value in self.final.set.items() if self.final is not None else ():
            place = f"final.set.{path}"
            if unknown := path_problem(place, path):
                found.append(unknown)
            elif trouble := value_trouble(path, value):
                found.append(Problem(place, trouble))
        if self.search.algorithm != "grid" and self.search.trials is None:
            found.append(Problem("search.trials", f"missing; {self.search.algorithm!r} has no end of its own"))
        return found


class EvaluateSpec(Section):
    """Score a registered model on a prepared dataset."""

    kind: Literal["evaluate"] = "evaluate"
    name: Name
    model: ModelReference = Field(description="registered model, NAME@ALIAS or NAME/VERSION")
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
    reuse: bool = Field(True, description="take the dataset that an equal job has left in out, if raw is as it was")
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


JobSpec = TrainSpec | SearchSpec | EvaluateSpec | PrepareSpec
KINDS: dict[str, type[TrainSpec] | type[SearchSpec] | type[EvaluateSpec] | type[PrepareSpec]] = {
    "train": TrainSpec,
    "search": SearchSpec,
    "evaluate": EvaluateSpec,
    "prepare": PrepareSpec,
}
