"""A training that goes on with another number of workers than it began with."""

from __future__ import annotations

from pathlib import Path

import pytest

from segfleet_jobs.attempt import Yielded
from segfleet_jobs.checkpoint import CheckpointRecord
from training import RecordingLink, make_dataset, make_train_spec, run_alone, run_group, start_alone

pytestmark = pytest.mark.integration
# Dropout and stochastic depth draw from a stream a rank; without them nothing depends on the number of ranks.
QUIET = ("model.dropout=0.0", "model.drop_path=0.0", "model.decoder_dropout=0.0")


def losses(*links: RecordingLink) -> dict[int, float]:
    curves = {step: values for link in links for step, values in link.curves.items()}
    return {step: values["train/loss"] for step, values in curves.items() if "train/loss" in values}


def pointer(link: RecordingLink, step: int) -> CheckpointRecord:
    assert link.pointer is not None
    assert link.pointer.step == step
    return link.pointer


def test_two_workers_then_one_then_two_are_one_training(tmp_path: Path) -> None:
    shards = make_dataset(tmp_path)
    spec = make_train_spec(shards, *QUIET, 'resources.workers={"min": 1, "max": 2}', "optim.name=sgd")
    whole = RecordingLink()
    run_alone(spec, tmp_path / "whole", whole)
    folder = tmp_path / "changing"
    first = run_group(spec, folder, 2, yield_in=2)
    second = RecordingLink(yield_in=2, pointer=pointer(first, 2))
    assert start_alone(spec, folder, second, attempt="a2") == Yielded(4)
    third = run_group(spec, folder, 2, pointer=pointer(second, 4), attempt="a3")
    found = losses(first, second, third)
    assert found.keys() == losses(whole).keys() == set(range(1, 7))
    assert found == pytest.approx(losses(whole), abs=1e-6)
    samples = {step: values["train/valid_pixels"] for step, values in whole.curves.items()}
    changing = [values for link in (first, second, third) for values in link.curves.items()]
    assert all(values["train/valid_pixels"] == samples[step] for step, values in changing if "train/loss" in values)
