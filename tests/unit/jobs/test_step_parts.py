"""A worker's batch computed in parts: the gradients of the whole, the activations of one part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segfleet_jobs.optim import build_optimizer
from segfleet_jobs.ranks import Ranks
from segfleet_jobs.step import TrainStep
from segfleet_pipelines.batch import Batch
from training import make_train_spec

NUM_SAMPLES = 5
WEIGHTS = "loss.class_weights=[1.0, 2.0, 0.5, 3.0]"


class Patches(nn.Module):
    """Scores patches of 8 pixels with one convolution; notes how many samples it is given, may fail one call."""

    output_stride = 8

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.poisoned_call = -1
        self.encoder = nn.Conv2d(3, 4, 8, stride=8)

    def no_weight_decay(self) -> set[str]:
        return set()

    def normalise(self, images: Tensor, extents: Tensor) -> Tensor:
        assert len(extents) == len(images)
        return images.permute(0, 3, 1, 2).float().div(255)

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        scores: Tensor = self.encoder(images)
        return scores * float("nan") if len(self.sizes) - 1 == self.poisoned_call else scores


def build(*overrides: str) -> tuple[Any, TrainStep]:
    torch.manual_seed(0)
    size = f"train.global_batch={NUM_SAMPLES}"
    spec = make_train_spec("/nowhere", "train.crop=16", size, "optim.name=sgd", *overrides)
    model: Any = Patches()
    optimizer = build_optimizer(model, spec.optim)
    return model, TrainStep(model, model, optimizer, spec, 255, Ranks(0, 1, torch.device("cpu")))


def batch(step: int) -> Batch:
    """Samples with different numbers of valid pixels, one with none."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (NUM_SAMPLES, 16, 16, 3), dtype=torch.uint8, generator=generator)
    masks = torch.randint(0, 4, (NUM_SAMPLES, 16, 16), dtype=torch.uint8, generator=generator)
    for sample in range(NUM_SAMPLES):
        masks[sample, : 4 * sample] = 255
    return Batch(images, masks, torch.full((NUM_SAMPLES, 2), 16), None, ("k",) * NUM_SAMPLES, (), 0, step)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("options", [(), (WEIGHTS,), ("loss.label_smoothing=0.1", "optim.clip_grad_norm=0.5")])
def test_parts_train_like_the_whole(size: int, options: tuple[str, ...]) -> None:
    whole, whole_step = build(*options)
    parts, parts_step = build(*options, f"train.micro_batch={size}")
    for number in range(3):
        expected, found = whole_step(batch(number)), parts_step(batch(number))
        assert found.loss == pytest.approx(expected.loss, abs=1e-6)
        assert (found.num_valid, found.is_applied) == (expected.num_valid, True)
    assert torch.allclose(parts.encoder.weight, whole.encoder.weight, atol=1e-6)
    assert set(whole.sizes) == {NUM_SAMPLES}
    assert max(parts.sizes) == size
    assert sum(parts.sizes) == 3 * NUM_SAMPLES


def test_a_part_as_large_as_the_batch_is_the_whole_bit_for_bit() -> None:
    whole, whole_step = build()
    parts, parts_step = build(f"train.micro_batch={NUM_SAMPLES + 3}")
    for number in range(2):
        assert parts_step(batch(number)) == whole_step(batch(number))
    assert torch.equal(parts.encoder.weight, whole.encoder.weight)


@pytest.mark.parametrize("call", [0, 1, 2])
def test_one_part_that_is_not_finite_skips_the_step(call: int) -> None:
    model, step = build("train.micro_batch=2")
    model.poisoned_call = call
    before = model.encoder.weight.detach().clone()
    result = step(batch(0))
    assert not result.is_applied
    assert result.nonfinite_ranks == (0,)
    assert torch.equal(model.encoder.weight, before)
    assert step(batch(1)).is_applied


def test_whoever_is_asked_to_yield_says_so_once() -> None:
    _, step = build("train.micro_batch=2")
    assert step(batch(0), must_yield=True).must_yield
    assert not step(batch(1)).must_yield
