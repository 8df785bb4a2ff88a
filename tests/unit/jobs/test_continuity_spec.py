"""Checkpoints of earlier versions go on; what decides the weights may not change."""

from __future__ import annotations

import copy

import pytest

from factories import train_document
from segfleet.errors import CheckpointError
from segfleet.spec.resolve import resolve_spec, to_document
from segfleet_jobs.continuity import check_same_spec


def test_a_checkpoint_without_the_newer_fields_goes_on_at_their_defaults() -> None:
    now = to_document(resolve_spec(train_document()))
    before = copy.deepcopy(now)
    del before["loss"], before["train"]["ema"], before["model"]["arch"], before["optim"]["layer_decay"]
    check_same_spec(before, now)
    now["train"]["ema"] = 0.9
    now["loss"]["label_smoothing"] = 0.1
    with pytest.raises(CheckpointError, match=r"loss\.label_smoothing, train\.ema"):
        check_same_spec(before, now)


@pytest.mark.parametrize("name", ["compile", "checkpoint_activations", "channels_last"])
def test_how_it_is_computed_may_change(name: str) -> None:
    now = to_document(resolve_spec(train_document()))
    before = copy.deepcopy(now)
    before["train"][name] = not before["train"][name]
    check_same_spec(before, now)
    before["train"]["micro_batch"] = 1
    check_same_spec(before, now)


def test_a_linear_decoder_of_an_earlier_version_goes_on_without_dropout() -> None:
    document = {**train_document(), "model": {"variant": "seg-s/16"}}
    now = to_document(resolve_spec(document))
    before = copy.deepcopy(now)
    del before["model"]["arch"], before["model"]["decoder_norm"]
    before["model"]["decoder_dropout"] = 0.1
    check_same_spec(before, now)
