"""A training that goes on with another number of workers than it began with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from segfleet_jobs.attempt import Yielded
from segfleet_jobs.checkpoint import Checkpoint, CheckpointRecord, load_checkpoint
from segfleet_jobs.loop import TrainingLoop
from training import RecordingLink, make_dataset, make_train_spec, note_samples, run_group, start_alone

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


def samples(folder: Path) -> dict[int, list[str]]:
    """Of each step the keys of the global batch, in the order of slots."""
    found: dict[int, list[tuple[int, list[str]]]] = {}
    for path in folder.glob("*.order"):
        rank = int(path.stem.split("-")[1])
        for line in path.read_text().splitlines():
            step, keys = json.loads(line)
            found.setdefault(step, []).append((rank, keys))
    return {step: [key for _, keys in sorted(parts) for key in keys] for step, parts in found.items()}


@pytest.mark.parametrize("options", [(), ("train.micro_batch=1", "loss.class_weights=[1.0, 2.0, 0.5, 3.0]")])
def test_two_workers_then_one_then_two_are_one_training(tmp_path: Path, options: tuple[str, ...]) -> None:
    shards = make_dataset(tmp_path)
    elastic = 'resources.workers={"min": 1, "max": 2}'
    spec = make_train_spec(shards, *QUIET, *options, elastic, "optim.name=sgd", "train.last_batch=short")
    whole, folder, straight = RecordingLink(), tmp_path / "changing", tmp_path / "whole"
    folder.mkdir()
    straight.mkdir()
    # In parts only where the number of workers changes: neither may show.
    start_alone(
        spec.model_copy(update={"train": spec.train.model_copy(update={"micro_batch": None})}),
        straight,
        whole,
        before=note_samples,
    )
    first = run_group(spec, folder, 2, yield_in=2, before=note_samples)
    second = RecordingLink(yield_in=2, pointer=pointer(first, 2))
    assert start_alone(spec, folder, second, attempt="a2", before=note_samples) == Yielded(4)
    third = run_group(spec, folder, 2, pointer=pointer(second, 4), attempt="a3", before=note_samples)
    found = losses(first, second, third)
    assert found.keys() == losses(whole).keys() == set(range(1, 7))
    assert found == pytest.approx(losses(whole), abs=1e-6)
    assert samples(folder) == samples(straight)
    assert len(samples(folder)) == 6
    curves = {step: values for link in (first, second, third) for step, values in link.curves.items()}
    assert {step: values["train/valid_pixels"] for step, values in curves.items() if "train/loss" in values} == {
        step: values["train/valid_pixels"] for step, values in whole.curves.items() if "train/loss" in values
    }


@pytest.mark.parametrize("size", [1, 3])
def test_gradients_of_parts_add_up_to_those_of_the_whole(tmp_path: Path, size: int) -> None:
    shards = make_dataset(tmp_path)
    whole, parts = RecordingLink(), RecordingLink()
    start_alone(make_train_spec(shards, *QUIET, "optim.name=sgd"), tmp_path / "whole", whole)
    spec = make_train_spec(shards, *QUIET, "optim.name=sgd", f"train.micro_batch={size}")
    start_alone(spec, tmp_path / "parts", parts)
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-6)
    left, right = (load_checkpoint(Path(pointer(link, 6).path)).model for link in (whole, parts))
    assert all(torch.allclose(left[name], right[name], atol=1e-5) for name in left)


def test_a_loss_that_is_not_finite_in_one_part_skips_the_whole_step(tmp_path: Path) -> None:
    spec = make_train_spec(make_dataset(tmp_path), *QUIET, "train.micro_batch=2", "train.steps=3")
    link = RecordingLink()

    def poison(loop: TrainingLoop, _: int) -> None:
        build = loop._build

        def build_poisoned(checkpoint: Checkpoint | None) -> None:
            build(checkpoint)
            calls = iter(range(100))
            # The first of the two parts of the second step.
            loop._train_step._parallel.register_forward_hook(
                lambda _module, _inputs, output: output * (float("nan") if next(calls) == 2 else 1.0)
            )

        loop._build = build_poisoned  # type: ignore[method-assign]

    result = start_alone(spec, tmp_path / "job", link, before=poison)
    assert isinstance(result, dict)
    assert result["skipped_steps"] == 1
    assert not math.isfinite(losses(link)[2])
    assert all(math.isfinite(losses(link)[step]) for step in (1, 3))
