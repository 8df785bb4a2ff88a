from __future__ import annotations

from typing import Any

import torch
from torch import nn

from segfleet_jobs.ema import WeightAverage


def make() -> tuple[Any, WeightAverage]:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    return model, WeightAverage(model, 0.75)


def test_the_mean_follows_by_its_decay_and_takes_buffers_as_they_are() -> None:
    model, average = make()
    begin = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    model(torch.randn(4, 2))
    for _ in range(2):
        average.update(torch.tensor(True))
    torch.testing.assert_close(average.model[0].weight, begin + 1 - 0.75**2)
    assert torch.equal(average.model[1].running_mean, model[1].running_mean)
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_a_skipped_step_does_not_move_it() -> None:
    model, average = make()
    begin = average.model[0].weight.clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    average.update(torch.tensor(False))
    assert torch.equal(average.model[0].weight, begin)


def test_frozen_weights_stay_to_the_bit() -> None:
    model, average = make()
    model[0].requires_grad_(False)
    for _ in range(5):
        average.update(torch.tensor(True))
    assert torch.equal(average.model[0].weight, model[0].weight)
