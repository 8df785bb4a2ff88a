from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from segfleet.spec import sections as s
from segfleet.spec.model_section import ModelSpec
from segfleet.spec.sections import duration_s

MINIMAL: dict[type[BaseModel], dict[str, Any]] = {
    s.DataSpec: {"shards": "/x"},
    ModelSpec: {"backbone": "vit_tiny_patch16_384", "patch_size": 16, "decoder": "mask"},
    s.OptimSpec: {"lr": 1.0},
    s.LossSpec: {},
    s.AugmentSpec: {},
    s.LoopSpec: {"steps": 10, "crop": 64},
    s.EvalSpec: {"window": 4096, "stride": 16},
    s.EvalDataSpec: {"shards": "/x"},
    s.ResourceSpec: {},
    s.QueueSpec: {},
    s.RegisterSpec: {"model": "m"},
}

# Section, field, accepted values, refused values: the edges on both sides.
RANGES: list[tuple[type[BaseModel], str, list[Any], list[Any]]] = [
    (ModelSpec, "patch_size", [4, 14, 64], [3, 65, 16.0, "16", True, None]),
    (ModelSpec, "decoder", ["mask", "linear"], ["fcn", "", None, 1]),
    (ModelSpec, "decoder_layers", [1, 12], [0, 13]),
    (ModelSpec, "drop_path", [0.0, 0.99], [-0.1, 1.0]),
    (ModelSpec, "dropout", [0.0, 0.99], [-0.1, 1.0]),
    (ModelSpec, "decoder_drop_path", [0.0, 0.99], [-0.1, 1.0]),
    (ModelSpec, "decoder_dropout", [0.0, 0.99], [-0.1, 1.0]),
    (ModelSpec, "backbone", ["vit_s.augreg"], ["", "../x", "vit s", "hf-hub:a/b", "a.b.c", "x" * 101]),
    (ModelSpec, "pretrained", [True, False, "/w.safetensors", "file:///w"], ["", "http://x/w", 1, None]),
    (s.OptimSpec, "name", ["sgd", "adamw"], ["adam", "SGD"]),
    (s.OptimSpec, "lr", [1e-5, 10.0, 1], [0.0, -1.0, 10.1, float("inf"), float("nan"), "0.1", None]),
    (s.OptimSpec, "momentum", [0.0, 0.99], [1.0, -0.1]),
    (s.OptimSpec, "nesterov", [True, False], ["yes", 1, None]),
    (s.OptimSpec, "weight_decay", [0.0, 1.0], [-0.1, 1.1]),
    (s.OptimSpec, "schedule", ["poly", "cosine", "constant"], ["step", None]),
    (s.OptimSpec, "power", [0.1, 10.0], [0.0, 10.1]),
    (s.OptimSpec, "min_lr", [0.0, 1.0], [-1e-9, 1.1]),
    (s.OptimSpec, "warmup_steps", [0, 1_000_000], [-1, 1_000_001]),
    (s.OptimSpec, "encoder_lr_scale", [0.0, 10.0], [-0.1, 10.1]),
    (s.OptimSpec, "layer_decay", [0.01, 1.0], [0.0, 1.1]),
    (s.OptimSpec, "clip_grad_norm", [None, 0.1, 1e6], [0.0, -1.0, 1e7]),
    (s.LossSpec, "label_smoothing", [0.0, 0.99], [-0.1, 1.0]),
    (s.LossSpec, "class_weights", [None, (0.0, 1e4)], [(1.0,), (-0.1, 1.0), (1.0, 1.1e4), (1.0,) * 10_001]),
    (s.AugmentSpec, "short_side", [None, 16, 4096], [15, 4097]),
    (s.AugmentSpec, "max_ratio", [1.0, 100.0], [0.9, 101.0]),
    (s.AugmentSpec, "scale_min", [0.1, 2.0], [0.0, -1.0]),
    (s.AugmentSpec, "scale_max", [0.5, 10.0], [10.1]),
    (s.AugmentSpec, "class_cap", [0.01, 1.0], [0.0, 1.1]),
    (s.AugmentSpec, "flip", [0.0, 1.0], [-0.1, 1.1]),
    (s.LoopSpec, "steps", [1, 100_000_000], [0, -1, 100_000_001, 1.5]),
    (s.LoopSpec, "global_batch", [1, 65_536], [0, 65_537]),
    (s.LoopSpec, "crop", [16, 4096], [15, 4097]),
    (s.LoopSpec, "precision", ["fp32", "bf16", "fp16"], ["fp8", "float32"]),
    (s.LoopSpec, "ema", [None, 0.01, 0.9999], [0.0, 1.0]),
    (s.LoopSpec, "seed", [0, 2**31 - 1], [-1, 2**31]),
    (s.LoopSpec, "validate_every", [1], [0]),
    (s.LoopSpec, "checkpoint_every", [1], [0]),
    (s.LoopSpec, "log_every", [1], [0]),
    (s.LoopSpec, "loader_processes", [0, 64], [-1, 65]),
    (s.LoopSpec, "max_nonfinite_steps", [1, 10_000], [0, 10_001]),
    (s.EvalSpec, "window", [16, 4096], [15, 4097]),
    (s.EvalSpec, "stride", [16, 4096], [15, 4097]),
    (s.EvalSpec, "short_side", [None, 16, 4096], [15, 4097]),
    (s.ResourceSpec, "workers", [1, 4096], [0, 4097, True]),
    (s.ResourceSpec, "gpus_per_worker", [0, 1], [-1, 2]),
    (s.ResourceSpec, "cpus_per_worker", [1, 512], [0, 513]),
    (s.QueueSpec, "priority", [0, 100], [-1, 101, 50.0]),
    (s.QueueSpec, "max_retries", [0, 100], [-1, 101]),
    (s.QueueSpec, "time_limit", [None, "90s", "48h"], ["", "0s", "1w", "1.5h", "-1h", " 1h", 60]),
    (s.RegisterSpec, "alias", ["candidate", "a-b_2"], ["", "Prod", "1st", "a.b", "x" * 64]),
    (s.RegisterSpec, "model", ["a", "a.b_c-d", "x" * 63], ["", "A", "-a", "a/b", "a b", "x" * 64, "a\n"]),
    (s.DataSpec, "shards", ["/x", "x/y", "file:///x"], ["", "  ", "s3://b/x", "a\0b", 3, None]),
    (s.DataSpec, "train", ["train"], ["../train", "Train", ""]),
]
CASES = [(section, field, value, True) for section, field, good, _ in RANGES for value in good]
CASES += [(section, field, value, False) for section, field, _, bad in RANGES for value in bad]


@pytest.mark.parametrize(("section", "field", "value", "accepted"), CASES)
def test_bounds_of_each_field(section: type[BaseModel], field: str, value: Any, accepted: bool) -> None:
    document = {**MINIMAL[section], field: value}
    if accepted:
        assert getattr(section.model_validate(document), field) == value
    else:
        with pytest.raises(ValidationError):
            section.model_validate(document)


@pytest.mark.parametrize("scales", [[1.0], [0.5, 1.0, 1.75], [0.1], [4.0], [1.0] * 16])
def test_scales_accepted(scales: list[float]) -> None:
    found = s.EvalSpec.model_validate_json(f'{{"window": 64, "stride": 32, "scales": {scales}}}').scales
    assert found == tuple(scales)


@pytest.mark.parametrize("scales", [[], [0.05], [4.1], [1.0] * 17, "1.0", 1.0])
def test_scales_refused(scales: Any) -> None:
    with pytest.raises(ValidationError):
        s.EvalSpec.model_validate({"window": 64, "stride": 32, "scales": scales})


@pytest.mark.parametrize("section", MINIMAL)
def test_sections_are_frozen_and_closed(section: type[BaseModel]) -> None:
    value = section.model_validate(MINIMAL[section])
    with pytest.raises(ValidationError, match="frozen"):
        setattr(value, next(iter(section.model_fields)), 1)
    with pytest.raises(ValidationError, match="Extra inputs"):
        section.model_validate({**MINIMAL[section], "surprise": 1})


def test_stride_may_not_skip_pixels() -> None:
    with pytest.raises(ValidationError, match="stride 65 is above window 64"):
        s.EvalSpec(window=64, stride=65)
    assert s.EvalSpec(window=64, stride=64).stride == 64


def test_poly_may_not_end_above_its_start() -> None:
    with pytest.raises(ValidationError, match=r"min_lr 0\.1 is above lr 0\.01; lower min_lr"):
        s.OptimSpec(lr=0.01, min_lr=0.1)
    assert s.OptimSpec(lr=0.01, min_lr=0.1, schedule="constant").lr == 0.01


def test_scales_of_augmentation_are_ordered() -> None:
    with pytest.raises(ValidationError, match="scale_min 3 is above scale_max 2"):
        s.AugmentSpec(scale_min=3.0)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("48h", 172_800), ("7d", 604_800)])
def test_durations(text: str, seconds: int) -> None:
    assert duration_s(text) == seconds


def test_every_field_that_needs_one_has_a_description() -> None:
    plain = {"name", "schedule", "project", "model"}
    bare = [
        f"{section.__name__}.{name}"
        for section in MINIMAL
        for name, field in section.model_fields.items()
        if not field.description and name not in plain
    ]
    assert bare == []


def test_weights_of_0_and_smoothing_do_not_go_together() -> None:
    with pytest.raises(ValidationError, match="do not go together"):
        s.LossSpec(class_weights=(0.0, 1.0), label_smoothing=0.1)
    assert s.LossSpec(class_weights=(0.0, 1.0)).label_smoothing == 0.0
