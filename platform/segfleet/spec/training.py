"""What one training does: the body that a train job and every trial of a search have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from segfleet.errors import Problem
from segfleet.spec.model_section import ModelSpec, has_batch_norm
from segfleet.spec.sections import (
    AugmentSpec,
    DataSpec,
    EvalSpec,
    LoopSpec,
    LossSpec,
    OptimSpec,
    ResourceSpec,
    Section,
)

# They normalise over what a worker has of the batch, at a place where one sample has one value a channel.
_TWO_SAMPLES = frozenset({"deeplabv3plus", "upernet"})
Recipe = Literal["ade20k", "pascal_context", "cityscapes", "camvid", "none"]


def usable_workers(fewest: int, most: int, global_batch: int, arch: str) -> tuple[int, ...]:
    """The numbers of workers with which a training can run: those that have equal shares of each step's samples.

    Args:
        fewest: Lower bound.
        most: Upper bound.
        global_batch: Samples a step, over all workers.
        arch: Of the model; some need two samples a worker.
    """
    share = 2 if arch in _TWO_SAMPLES else 1
    most = min(most, global_batch // share)
    return tuple(count for count in range(fewest, most + 1) if global_batch % count == 0)


class TrainingBody(Section):
    """Data, model and way of one training, and what it needs."""

    recipe: Recipe = Field("none", description="whose defaults fill data, augment, optim, train and eval")
    data: DataSpec
    model: ModelSpec
    optim: OptimSpec
    loss: LossSpec
    augment: AugmentSpec
    train: LoopSpec
    eval: EvalSpec
    resources: ResourceSpec

    def problems(self) -> list[Problem]:
        """What no single field can see."""
        found = []
        workers, batch = self.resources.min_workers, self.train.global_batch
        bounds = workers, self.resources.max_workers, batch
        has_share = bool(usable_workers(*bounds, "segmenter"))
        if not has_share:
            between = f"{workers} workers"
            if self.resources.max_workers > workers:
                between = f"any number from {workers} to {self.resources.max_workers} workers"
            found.append(
                Problem(
                    "train.global_batch",
                    f"{batch} is not divisible by {between}",
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
        is_short = batch < 2 * workers or (has_share and not usable_workers(*bounds, self.model.arch))
        if self.model.arch in _TWO_SAMPLES and is_short:
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
