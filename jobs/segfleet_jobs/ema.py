"""An exponential mean of the weights over the steps, kept on the device (Polyak and Juditsky 1992)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from segfleet_models.segmenter import SegmentationModel


class WeightAverage:
    """A copy of a model whose parameters follow the model's slowly; its buffers are the model's own of the moment.

    Args:
        model: On its device, before it is wrapped or compiled.
        decay: Share of the mean that stays in a step, in (0, 1).

    Attributes:
        model: The copy, in evaluation mode; this is what is validated and registered.
    """

    def __init__(self, model: SegmentationModel, decay: float) -> None:
        self._source, self._decay = model, decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, is_applied: Tensor) -> None:
        """Follow one step; not by a bit if it was skipped, and without a look from the CPU.

        Args:
            is_applied: 1 or 0, scalar on the device.
        """
        weight = (1 - self._decay) * is_applied.float()
        for parameter, current in zip(self.model.parameters(), self._source.parameters(), strict=True):
            if current.requires_grad:
                parameter.lerp_(current, weight.to(current.dtype))
        for buffer, latest in zip(self.model.buffers(), self._source.buffers(), strict=True):
            buffer.copy_(latest)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from a state dict of the mean."""
        self.model.load_state_dict(weights)


class KeptBuffers:
    """Puts a model's buffers (the statistics of batch norm) back as they were, decided on the device."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [buffer for buffer in model.buffers() if buffer.numel()]
        self._before = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def restore(self, where: Tensor) -> None:
        """Args: where: Boolean scalar on the device; False leaves the buffers as they are."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(torch.where(where, before, buffer))
