"""A step launches all its work without looking at a value, and a step that must not count changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from segfleet.spec.kinds import TrainSpec
from segfleet_jobs.ema import WeightAverage
from segfleet_jobs.failure import NonFiniteLossError
from segfleet_jobs.optim import build_optimizer, set_training_mode
from segfleet_jobs.ranks import Ranks
from segfleet_jobs.step import TrainStep
from segfleet_pipelines.batch import Batch
from training import make_train_spec

CPU = Ranks(0, 1, torch.device("cpu"))
# What reads a value of a tensor, so that the CPU waits for the device.
LOOKS = {"aten._local_scalar_dense.default", "aten.is_nonzero.default", "aten.nonzero.default", "aten.equal.default"}


class Recorder(TorchDispatchMode):
    """Names of all operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Counting(nn.Module):
    """Scores patches of 8 pixels with one convolution; keeps statistics, like batch norm."""

    output_stride = 8

    def __init__(self) -> None:
        super().__init__()
        self.poison = False
        self.encoder = nn.Conv2d(3, 4, 8, stride=8)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("seen", torch.zeros(()))

    def no_weight_decay(self) -> set[str]:
        return set()

    def normalise(self, images: torch.Tensor, extents: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 3, 1, 2).float().div(255)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        factor = float("nan") if self.poison else 1.0
        self.seen.add_(factor)
        return self.dropout(self.encoder(images)) * factor


def build(*overrides: str) -> tuple[Any, WeightAverage, TrainStep]:
    torch.manual_seed(0)
    spec: TrainSpec = make_train_spec("/nowhere", "train.crop=16", "train.global_batch=1", *overrides)
    model: Any = Counting()
    optimizer, average = build_optimizer(model, spec.optim), WeightAverage(model, 0.5)
    set_training_mode(model, spec.optim)
    return model, average, TrainStep(model, model, optimizer, spec, 255, CPU, average)


def batch(step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8, generator=generator)
    masks = torch.randint(0, 4, (1, 16, 16), dtype=torch.uint8, generator=generator)
    return Batch(images, masks, torch.tensor([[16, 16]]), None, ("a",), (), 0, step)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_nothing_is_looked_at_in_a_step(name: str) -> None:
    options = ("loss.label_smoothing=0.1", "loss.class_weights=[1.0, 2.0, 0.5, 1.0]", "optim.clip_grad_norm=1.0")
    _, _, step = build(f"optim.name={name}", *options)
    step.launch(batch())
    with Recorder() as recorder:
        step.launch(batch(1))
    assert "aten.isfinite.default" in recorder.names or "aten.abs.default" in recorder.names
    assert LOOKS.isdisjoint(recorder.names)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("at", [0, 1])
def test_a_step_that_is_not_finite_changes_nothing_and_the_next_goes_on(name: str, at: int) -> None:
    model, average, step = build(f"optim.name={name}")
    plain_model, plain_average, plain = build(f"optim.name={name}")
    torch.manual_seed(1)
    for number in range(2):
        if number == at:
            model.poison = True
            before = [tensor.clone() for tensor in (*model.state_dict().values(), *average.model.parameters())]
            state = torch.get_rng_state()
            assert not step(batch(number)).is_applied
            torch.set_rng_state(state)
            after = (*model.state_dict().values(), *average.model.parameters())
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            model.poison = False
        assert step(batch(number)).is_applied
    torch.manual_seed(1)
    for number in range(2):
        plain(batch(number))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain_model.parameters(), strict=True))
    pairs = zip(average.model.parameters(), plain_average.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_too_many_skipped_steps_fail_when_read() -> None:
    model, _, step = build("train.max_nonfinite_steps=2")
    model.poison = True
    launched = [step.launch(batch(number)) for number in range(3)]
    assert not step.read(launched[0]).is_applied
    with pytest.raises(NonFiniteLossError, match="2 steps in a row up to step 1"):
        step.read(launched[1])


def test_warming_up_leaves_statistics_alone() -> None:
    model, _, step = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step.warm_up(16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
