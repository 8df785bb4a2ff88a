"""The loop with its options on: resuming stays exact, ranks agree, what is frozen stays."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segfleet.errors import SpecError
from segfleet_jobs.attempt import Yielded
from segfleet_jobs.checkpoint import CheckpointRecord, load_checkpoint
from training import (
    InterruptedTrainingError,
    RecordingLink,
    make_dataset,
    make_train_spec,
    run_alone,
    run_group,
    start_alone,
)

pytestmark = pytest.mark.integration

QUIET = ("model.dropout=0.0", "model.drop_path=0.0", "model.decoder_dropout=0.0")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_dataset(tmp_path_factory.mktemp("options"))


def files(record: CheckpointRecord) -> dict[str, torch.Tensor]:
    return load_file(Path(record.path) / "model.safetensors") | load_file(Path(record.path) / "state.safetensors")


def equal(left: CheckpointRecord, right: CheckpointRecord) -> bool:
    a, b = files(left), files(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses(link: RecordingLink) -> dict[int, float]:
    return {step: values["train/loss"] for step, values in link.curves.items()}


@pytest.mark.parametrize(
    "options",
    [
        ("train.ema=0.9", "optim.layer_decay=0.8", "loss.label_smoothing=0.1", "optim.schedule=cosine"),
        ("train.ema=0.5", "optim.name=sgd", "train.log_every=100", "loss.class_weights=[1.0, 2.0, 0.5, 3.0]"),
        ("model.decoder=linear", "model.decoder_norm=batch", "optim.encoder_lr_scale=0.0", "train.log_every=4"),
        ("train.checkpoint_activations=true",),
    ],
    ids=["ema-decay-smoothing", "ema-weights-sgd", "frozen-batch-norm", "recomputed"],
)
def test_a_resumed_run_equals_the_whole_one_bit_for_bit(shards: str, tmp_path: Path, options: tuple[str, ...]) -> None:
    spec = make_train_spec(shards, *options)
    whole, first = RecordingLink(), RecordingLink(kill_after=5)
    run_alone(spec, tmp_path / "whole", whole)
    with pytest.raises(InterruptedTrainingError):
        run_alone(spec, tmp_path / "resumed", first)
    second = RecordingLink(pointer=first.pointer)
    run_alone(spec, tmp_path / "resumed", second, attempt="a2")
    assert equal(whole.records[-1], second.records[-1])
    if spec.optim.encoder_lr_scale == 0:
        begin, end = (load_checkpoint(Path(record.path)).model for record in whole.records[-2:])
        encoder = [name for name in begin if name.startswith("encoder.")]
        assert encoder
        assert all(torch.equal(begin[name], end[name]) for name in encoder)
    if spec.train.ema is not None:
        last = load_checkpoint(Path(whole.records[-1].path))
        assert any(not torch.equal(last.state[f"weights/{name}"], last.model[name]) for name in last.model)


def test_one_and_two_workers_have_the_same_loss_with_class_weights(shards: str, tmp_path: Path) -> None:
    options = ("loss.class_weights=[0.2, 2.0, 0.01, 5.0]", "loss.label_smoothing=0.1", "train.ema=0.5")
    spec = make_train_spec(shards, *QUIET, *options, "train.steps=3")
    alone = RecordingLink()
    run_alone(spec, tmp_path / "one", alone)
    assert losses(run_group(spec, tmp_path / "two", 2)) == pytest.approx(losses(alone), rel=1e-5)


def test_compiled_it_learns_the_same_under_the_same_names(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_train_spec(shards, *QUIET, "train.steps=2", "train.validate_every=2")
    plain, compiled = RecordingLink(), RecordingLink()
    run_alone(spec, tmp_path / "plain", plain)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    loop = spec.train.model_copy(update={"compile": True})
    run_alone(spec.model_copy(update={"train": loop}), tmp_path / "compiled", compiled)
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)
    assert files(compiled.records[-1]).keys() == files(plain.records[-1]).keys()


def test_one_weight_a_class_or_a_clear_error(shards: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"loss.class_weights.*3 weights for the 4 classes"):
        run_alone(make_train_spec(shards, "loss.class_weights=[1.0, 1.0, 1.0]"), tmp_path, RecordingLink())


def test_a_job_that_is_asked_to_make_room_between_two_logs_does_so_one_step_later(shards: str, tmp_path: Path) -> None:
    spec = make_train_spec(shards, "train.log_every=100", "train.checkpoint_every=100", "train.validate_every=100")
    link = RecordingLink(yield_in=3)
    assert start_alone(spec, tmp_path, link) == Yielded(4)
    assert link.records[-1].step == 4
