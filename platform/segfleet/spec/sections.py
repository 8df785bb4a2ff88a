"""The sections of a spec: frozen values with bounds; the descriptions are the documentation of every field."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from segfleet.spec.location import split_location

JOB_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration_s(text: str) -> int:
    """Seconds in a duration such as `90s`, `30m`, `48h` or `7d`.

    Raises:
        ValueError: not of that form, or zero.
    """
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if match is None or int(match[1]) == 0:
        raise ValueError(f"{text!r} is not a duration; write for instance 90s, 30m, 48h or 7d")
    return int(match[1]) * _SECONDS[match[2]]


def _check_duration(text: str) -> str:
    duration_s(text)
    return text


def short(value: Any) -> str:
    """A value as Python writes it, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_name(text: str) -> str:
    if not JOB_NAME.fullmatch(text):
        raise ValueError(
            f"{short(text)} is no name; use 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
        )
    return text


def _check_location(*schemes: str) -> Callable[[str], str]:
    """A check that a location is a path or an address of one of the schemes, and holds nothing but a place."""

    def check(text: str) -> str:
        if (scheme := split_location(text).scheme) not in schemes:
            known = ", ".join(f"{name}://" for name in schemes)
            raise ValueError(f"scheme {scheme!r} is not supported here; use a path or {known}")
        return text

    return check


Name = Annotated[str, AfterValidator(_check_name)]
Alias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Duration = Annotated[str, AfterValidator(_check_duration)]
_JOB_REFERENCE = r"^job-[a-z2-7]{8}(:(ok|failed|any))?$"
_MODEL_REFERENCE = r"^[a-z0-9][a-z0-9._-]{0,62}(@[a-z][a-z0-9_-]{0,62}|/[1-9][0-9]{0,8})$"
# What to write where a pattern is not met, for people.
FORMS = {
    _JOB_REFERENCE: "write JOB, JOB:ok, JOB:failed or JOB:any, such as job-ab2c3d4e:ok",
    _MODEL_REFERENCE: "write NAME@ALIAS or NAME/VERSION, such as road@champion or road/7",
}
JobReference = Annotated[str, Field(pattern=_JOB_REFERENCE)]
ModelReference = Annotated[str, Field(pattern=_MODEL_REFERENCE)]
# On this file system; to write shards to; to read shards from.
LocalPath = Annotated[str, AfterValidator(_check_location("file"))]
WriteLocation = Annotated[str, AfterValidator(_check_location("file", "s3", "gs"))]
ReadLocation = Annotated[str, AfterValidator(_check_location("file", "s3", "gs", "http", "https"))]
Steps = Annotated[int, Field(ge=1, le=100_000_000)]
Pixels = Annotated[int, Field(ge=16, le=4096)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Base of every part of a spec: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Weight = Annotated[float, Field(ge=0.01, le=100.0)]


class MixSpec(Section):
    """One more dataset to train on, of the same classes."""

    shards: ReadLocation = Field(description="folder of a prepared dataset")
    split: Name = Field("train", description="split to train on")
    weight: Weight = Field(1.0, description="share of the samples drawn, relative to the other datasets' weights")


class DataSpec(Section):
    """Which prepared dataset, which of its splits, and in which order."""

    shards: ReadLocation = Field(description="folder of a prepared dataset (holds manifest.json)")
    train: Name = Field("train", description="split to train on")
    val: Name = Field("val", description="split to validate on")
    weight: Weight = Field(1.0, description="with mix: share of this dataset's samples")
    mix: Annotated[tuple[MixSpec, ...], Field(max_length=16)] = Field(
        (), description="more datasets to train on; validation is on this one"
    )
    share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0,
        description="share of this dataset's training samples to train on, a fixed choice at random: it depends on "
        "neither seed nor workers, and a smaller share is part of a larger one",
    )
    shuffle_shards: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        None, description="shuffle within windows of so many shards, for data larger than the cache; null: globally"
    )
    skip_budget: Annotated[float, Field(ge=0.0, le=0.01)] = Field(
        0.0, description="largest share of damaged training samples to leave out; 0: any damage fails the job"
    )

    @property
    def sources(self) -> tuple[MixSpec, ...]:
        """All that is trained on: this dataset, then those mixed in."""
        return MixSpec(shards=self.shards, split=self.train, weight=self.weight), *self.mix


class OptimSpec(Section):
    """Optimiser and learning-rate schedule, stepped every iteration."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0.0, le=10.0)] = Field(0.001, description="learning rate at step 0 after warm-up")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.9, description="SGD only")
    nesterov: bool = Field(True, description="SGD only; the reference code's timm 0.4.12 means Nesterov by 'sgd'")
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0, description="never applied to biases, norms, position or class embeddings"
    )
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: Annotated[float, Field(gt=0.0, le=10.0)] = Field(0.9, description="of the poly schedule")
    min_lr: Annotated[float, Field(ge=0.0, le=1.0)] = Field(1e-5, description="where poly and cosine end")
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = Field(0, description="linear rise from 0")
    encoder_lr_scale: Annotated[float, Field(ge=0.0, le=10.0)] = Field(
        1.0, description="the encoder's learning rate as a share of lr; 0 freezes the encoder"
    )
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="learning rate of an encoder block as a share of the next one's (BEiT's layer-wise decay)"
    )
    clip_grad_norm: Annotated[float, Field(gt=0.0, le=1e6)] | None = Field(
        None, description="upper bound of the gradient's norm over all parameters; null: none"
    )

    @model_validator(mode="after")
    def _floor_below_start(self) -> Self:
        if self.schedule != "constant" and self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr:g} is above lr {self.lr:g}; lower min_lr")
        return self


class LossSpec(Section):
    """Cross-entropy at pixel level, the mean over the valid pixels of the global batch."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="share of the target spread over all classes"
    )
    class_weights: (
        Annotated[tuple[Annotated[float, Field(ge=0.0, le=1e4)], ...], Field(min_length=2, max_length=10_000)] | None
    ) = Field(None, description="one factor a class; the mean is then over the weights of the valid pixels")

    @model_validator(mode="after")
    def _every_pixel_has_weight(self) -> Self:
        # A batch of pixels without weight would still have a loss, and nothing to divide it by.
        if self.label_smoothing and self.class_weights is not None and 0.0 in self.class_weights:
            raise ValueError(
                "class_weights of 0 and label_smoothing do not go together; give a small weight, or leave one"
            )
        return self


class AugmentSpec(Section):
    """The recipe's augmentations in the reference code's order."""

    short_side: Pixels | None = Field(None, description="short side that scale 1.0 means; null: the picture's own")
    max_ratio: Annotated[float, Field(ge=1.0, le=100.0)] = Field(
        8.0, description="bound of the long side over the short side's target"
    )
    scale_min: Annotated[float, Field(gt=0.0, le=10.0)] = Field(0.5, description="smallest random scale")
    scale_max: Annotated[float, Field(gt=0.0, le=10.0)] = Field(2.0, description="largest random scale")
    class_cap: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.75, description="largest share of one class in a crop, tried 10 times"
    )
    flip: Probability = Field(0.5, description="chance of a horizontal flip")
    photometric: bool = Field(True, description="brightness, contrast, saturation and hue")
    on_device: bool = Field(False, description="flip and photometric distortion on the training device")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scale_min > self.scale_max:
            raise ValueError(f"scale_min {self.scale_min:g} is above scale_max {self.scale_max:g}")
        return self


class LoopSpec(Section):
    """Length, batch and rhythm of the training loop."""

    steps: Steps = Field(description="optimiser steps")
    global_batch: Annotated[int, Field(ge=1, le=65_536)] = Field(8, description="samples a step over all workers")
    micro_batch: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        None, description="samples a worker computes at once, if not all of its part; their gradients are added up"
    )
    last_batch: Literal["wrap", "short", "drop"] = Field(
        "wrap",
        description="when the batch does not divide the samples: fill up from the next epoch, keep the short batch, "
        "or leave these samples out of the epoch",
    )
    crop: Pixels = Field(description="side of the training crop, pixels; padded to the patch size by the model")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="fp16 needs a GPU")
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None, description="decay of an exponential mean of the weights, which is validated and registered; null: none"
    )
    compile: bool = Field(False, description="torch.compile; the first steps take minutes")
    checkpoint_activations: bool = Field(
        False, description="recompute the encoder's blocks in the backward pass: less memory, more time"
    )
    channels_last: bool = Field(False, description="memory format; faster for convolutional networks on GPUs")
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(0, description="of weights, sample order and augmentation")
    validate_every: Steps = Field(1000, description="steps between validations; the last step always validates")
    checkpoint_every: Steps = Field(1000, description="steps between checkpoints; validations checkpoint too")
    log_every: Steps = Field(10, description="steps between metric points")
    loader_processes: Annotated[int, Field(ge=0, le=64)] = Field(2, description="data processes a worker")
    max_nonfinite_steps: Annotated[int, Field(ge=1, le=10_000)] = Field(
        10, description="skipped steps in a row (loss or gradient not finite) that fail the job"
    )


class EvalSpec(Section):
    """Sliding-window evaluation at the picture's original size."""

    short_side: Pixels | None = Field(None, description="resize to this short side first; null: original size")
    window: Pixels = Field(description="side of the square window, pixels")
    stride: Pixels = Field(description="step of the window, pixels")
    scales: Annotated[tuple[Annotated[float, Field(ge=0.1, le=4.0)], ...], Field(min_length=1, max_length=16)] = Field(
        (1.0,), description="probabilities are averaged over these scales"
    )
    flip: bool = Field(False, description="average with the flipped picture too")
    protocol: Literal["reference", "mmseg"] = Field(
        "reference",
        description="reference: a picture below the window is enlarged to it; mmseg: the window shrinks to the picture",
    )

    @model_validator(mode="after")
    def _covering(self) -> Self:
        if self.stride > self.window:
            raise ValueError(f"stride {self.stride} is above window {self.window}: pixels would be skipped")
        return self


class EvalDataSpec(Section):
    """What a model is evaluated on."""

    shards: ReadLocation = Field(description="folder of a prepared dataset of the model's classes")
    split: Name = Field("val", description="split to evaluate on")


Workers = Annotated[int, Field(ge=1, le=4096)]


class WorkerRange(Section):
    """Between how many workers an attempt may have; each may have another number."""

    min: Workers = Field(description="the fewest; the job starts as soon as there is room for them")
    max: Workers = Field(description="the most; more than the fewest only while nobody else wants them")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


def _workers_kind(workers: Any) -> str:
    return "(elastic)" if isinstance(workers, Mapping | WorkerRange) else "(number)"


class ResourceSpec(Section):
    """What one attempt needs; a job starts with all of it or not at all."""

    workers: Annotated[
        Annotated[Workers, Tag("(number)")] | Annotated[WorkerRange, Tag("(elastic)")], Discriminator(_workers_kind)
    ] = Field(1, description="DDP processes; {min: 2, max: 8}: as many as are free")
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = Field(0, description="0: CPU (gloo), 1: GPU (NCCL)")
    cpus_per_worker: Annotated[int, Field(ge=1, le=512)] = Field(1, description="CPUs reserved for each worker")

    @property
    def min_workers(self) -> int:
        """The fewest workers an attempt may have."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def max_workers(self) -> int:
        """The most workers an attempt may have."""
        return self.workers if isinstance(self.workers, int) else self.workers.max


class QueueSpec(Section):
    """How the queue treats the job."""

    project: Name = "default"
    priority: Annotated[int, Field(ge=0, le=100)] = Field(50, description="higher runs first")
    after: Annotated[tuple[JobReference, ...], Field(max_length=32)] = Field(
        (), description="start when these jobs have ended: JOB or JOB:ok (succeeded), JOB:failed, JOB:any"
    )
    time_limit: Duration | None = Field(None, description="over all attempts, such as 90m or 48h; null: none")
    start_within: Duration | None = Field(
        None, description="fail if no attempt has started so long after submit, resume or retry; null: wait for ever"
    )
    max_retries: Annotated[int, Field(ge=0, le=100)] = Field(
        3,
        description="new attempts after losses to infrastructure without a new checkpoint between them",
    )


class RegisterSpec(Section):
    """Where the best model goes in the registry."""

    model: Name
    alias: Alias = Field("candidate", description="moved to the new version")
