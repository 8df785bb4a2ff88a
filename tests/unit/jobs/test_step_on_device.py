from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from factories import train_document
from segfleet.spec.kinds import TrainSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_jobs.ranks import Ranks
from segfleet_jobs.step import StepResult, TrainStep
from segfleet_pipelines.batch import Batch
from segfleet_pipelines.photometric import Jitter, apply_jitter

SIDE = 32


class TinySegmenter(nn.Module):
    """Scores patches of 8 pixels with one convolution."""

    output_stride = 8

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 8, stride=8)

    def normalise(self, images: Tensor, extents: Tensor) -> Tensor:
        inside = torch.arange(SIDE) < extents[:, 1:]
        return images.permute(0, 3, 1, 2).float().div(255) * inside[:, None, None, :]

    def forward(self, images: Tensor) -> Tensor:
        return self.convolution(images)


def step(batch: Batch) -> StepResult:
    spec = resolve_spec(train_document())
    assert isinstance(spec, TrainSpec)
    model: Any = TinySegmenter()
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr_scale": 1.0}], lr=0.1, fused=True)
    return TrainStep(model, model, optimizer, spec, 255, Ranks(0, 1, torch.device("cpu")))(batch)


def test_flip_and_colour_left_to_the_device_are_done_before_the_step() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    masks = rng.integers(0, 4, (2, SIDE, SIDE), dtype=np.uint8)
    jitters = [Jitter(1.0, 20.0, 1.3, 0.0, 1.0, 0.0, 1.0), Jitter(1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.7)]
    widths = (SIDE, 20)
    masks[1, :, 20:] = 255
    left = Batch(
        torch.from_numpy(images.copy()), torch.from_numpy(masks.copy()), torch.tensor([[SIDE, w] for w in widths]),
        torch.tensor(jitters), ("a", "b"), (), 0, 0,
    )  # fmt: skip
    for image, mask, jitter, width in zip(images, masks, jitters, widths, strict=True):
        part = np.ascontiguousarray(image[:, :width]), np.ascontiguousarray(mask[:, :width])
        image[:, :width], mask[:, :width] = apply_jitter(*part, jitter)
    done = replace(left, images=torch.from_numpy(images), masks=torch.from_numpy(masks), jitter=None)
    assert step(left) == step(done)
    assert step(replace(left, jitter=None)) != step(done)
