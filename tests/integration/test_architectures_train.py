"""Every architecture goes the whole road of training: data, steps, validation, checkpoint, and on from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segfleet.spec.kinds import TrainSpec
from segfleet_jobs.checkpoint import CheckpointRecord, load_checkpoint
from segfleet_models.build import ModelConfig, build_segmenter
from training import InterruptedTrainingError, RecordingLink, make_dataset, make_train_spec, run_alone, run_group

pytestmark = pytest.mark.integration

SMALL_VIT = {"backbone": "test_vit", "patch_size": 16}
MODELS: dict[str, dict[str, Any]] = {
    "segmenter-mask": {**SMALL_VIT, "decoder": "mask"},
    "setr-naive": {**SMALL_VIT, "arch": "setr", "decoder": "naive"},
    "setr-pup": {**SMALL_VIT, "arch": "setr", "decoder": "pup"},
    "setr-mla": {**SMALL_VIT, "arch": "setr", "decoder": "mla"},
    "deeplabv3plus": {"arch": "deeplabv3plus", "backbone": "resnet18"},
    "fcn": {"arch": "fcn", "backbone": "resnet18"},
    "unet": {"arch": "unet", "backbone": "resnet18"},
    "upernet": {"arch": "upernet", "backbone": "swin_tiny_patch4_window7_224"},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_dataset(tmp_path_factory.mktemp("architectures"))


def make_spec(shards: str, name: str, *overrides: str) -> TrainSpec:
    model = f"model={json.dumps({**MODELS[name], 'pretrained': False})}"
    # SGD, whose state is the smallest: what is written weighs more here than what is computed.
    optim = ("optim.name=sgd", "optim.lr=0.01")
    loop = ("train.steps=3", "train.validate_every=3", "train.checkpoint_every=3")
    return make_train_spec(shards, model, *optim, *loop, "eval.window=64", "eval.stride=48", *overrides)


def files(record: CheckpointRecord) -> dict[str, torch.Tensor]:
    return load_file(Path(record.path) / "model.safetensors") | load_file(Path(record.path) / "state.safetensors")


def equal(left: CheckpointRecord, right: CheckpointRecord) -> bool:
    a, b = files(left), files(right)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_validates_and_leaves_checkpoints(shards: str, tmp_path: Path, name: str) -> None:
    link = RecordingLink()
    result = run_alone(make_spec(shards, name), tmp_path, link)
    assert (result["step"], result["num_samples"], result["skipped_steps"]) == (3, 5, 0)
    assert 0 < result["miou"] <= 1
    assert sorted(link.curves) == [1, 2, 3]
    assert all(0 < values["train/loss"] < 100 for values in link.curves.values())
    assert [record.step for record in link.records] == [3]
    # What was left behind is the whole model: nothing more is needed to build it anew.
    last = load_checkpoint(Path(link.records[-1].path))
    model = build_segmenter(ModelConfig.from_dict(last.meta["model"]))
    model.load_state_dict(last.model)
    assert sum(parameter.numel() for parameter in model.parameters()) == result["num_parameters"]


@pytest.mark.parametrize("name", ["setr-naive", "unet"])
def test_with_batch_norm_too_a_resumed_run_equals_the_whole_one(shards: str, tmp_path: Path, name: str) -> None:
    spec = make_spec(shards, name, "train.checkpoint_every=2")
    whole, first = RecordingLink(), RecordingLink(kill_after=3)
    expected = run_alone(spec, tmp_path / "whole", whole)
    with pytest.raises(InterruptedTrainingError):
        run_alone(spec, tmp_path / "resumed", first)
    assert first.pointer is not None
    assert first.pointer.step == 2
    second = RecordingLink(pointer=first.pointer)
    result = run_alone(spec, tmp_path / "resumed", second, attempt="a2")
    assert any(key.endswith("running_mean") for key in files(whole.records[-1]))
    assert equal(whole.records[-1], second.records[-1])
    assert (result["miou"], result["iou"]) == (expected["miou"], expected["iou"])


def test_two_workers_with_batch_norm_resume_bit_for_bit(shards: str, tmp_path: Path) -> None:
    spec = make_spec(shards, "setr-naive", "resources.workers=2", "train.checkpoint_every=2")
    whole = run_group(spec, tmp_path / "whole", 2)
    first = run_group(spec, tmp_path / "resumed", 2, kill_after=3)
    assert first.pointer is not None
    assert first.pointer.step == 2
    second = run_group(spec, tmp_path / "resumed", 2, pointer=first.pointer, attempt="a2")
    assert equal(whole.records[-1], second.records[-1])
