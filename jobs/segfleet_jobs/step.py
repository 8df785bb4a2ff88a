"""One optimiser step over the global batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from segfleet.spec.kinds import TrainSpec
from segfleet_jobs.failure import NonFiniteLossError
from segfleet_jobs.optim import learning_rate, set_learning_rate
from segfleet_jobs.ranks import Ranks
from segfleet_models.losses import cross_entropy_sum
from segfleet_models.segmenter import Segmenter
from segfleet_pipelines.batch import Batch
from segfleet_pipelines.device_augment import augment_batch

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did, equal on every rank.

    Attributes:
        loss: Mean over the valid pixels of the global batch; not finite if the step was skipped for it.
        lr: Learning rate of the step.
        num_valid: Valid pixels of the global batch.
        is_applied: False if loss or gradient was not finite and nothing was changed.
        must_yield: Whether any rank was asked to end the attempt.
    """

    loss: float
    lr: float
    num_valid: int
    is_applied: bool
    must_yield: bool


class TrainStep:
    """Forward, loss, gradient all-reduce and update; every rank decides alike.

    The loss is the mean over the valid pixels of the *global* batch. DDP averages gradients over ranks, so each rank
    scales its pixel sum by world_size / global pixels.
    """

    def __init__(
        self,
        model: Segmenter,
        parallel: nn.Module,
        optimizer: torch.optim.Optimizer,
        spec: TrainSpec,
        ignore_index: int,
        ranks: Ranks,
    ) -> None:
        self._model, self._parallel, self._optimizer = model, parallel, optimizer
        self._spec, self._ignore_index, self._ranks = spec, ignore_index, ranks
        self._trainable = [p for group in optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=spec.train.precision == "fp16")
        self.skipped_in_a_row = 0

    def __call__(self, batch: Batch, must_yield: bool = False) -> StepResult:
        """Train on this rank's part of the global batch.

        Args:
            batch: The part.
            must_yield: Whether this rank was asked to end the attempt; after the step, all ranks know.

        Raises:
            NonFiniteLossError: `max_nonfinite_steps` steps in a row could not be applied.
        """
        lr = learning_rate(self._spec.optim, batch.step, self._spec.train.steps)
        set_learning_rate(self._optimizer, lr)
        self._optimizer.zero_grad(set_to_none=True)
        loss_sum, num_valid = self._forward(batch)
        # One small all-reduce before the backward: if any rank's sum is not finite, the total is not finite.
        asked = torch.tensor(float(must_yield), dtype=torch.float64, device=loss_sum.device)
        totals = torch.stack([loss_sum.detach().double(), num_valid.double(), asked])
        self._ranks.sum_(totals)
        mean = float(totals[0] / totals[1].clamp(min=1))
        is_applied = bool(torch.isfinite(totals[0])) and self._backward(loss_sum, totals[1])
        self.skipped_in_a_row = 0 if is_applied else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= self._spec.train.max_nonfinite_steps:
            raise NonFiniteLossError(
                f"loss or gradient was not finite in {self.skipped_in_a_row} steps in a row up to step {batch.step}"
            )
        return StepResult(mean, lr, int(totals[1]), is_applied, bool(totals[2] > 0))

    def warm_up(self, crop: int) -> None:
        """One forward and backward on an empty picture; changes neither weights nor optimiser."""
        device = self._ranks.device
        images = torch.zeros(1, 3, crop, crop, device=device)
        masks = torch.zeros(1, crop, crop, dtype=torch.uint8, device=device)
        total, _ = cross_entropy_sum(self._patch_logits(images), masks, self._model.patch_size, self._ignore_index)
        torch.autograd.backward(total)
        self._optimizer.zero_grad(set_to_none=True)

    def _forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        device = self._ranks.device
        images = batch.images.to(device, non_blocking=True)
        masks = batch.masks.to(device, non_blocking=True)
        extents = batch.extents.to(device, non_blocking=True)
        if batch.jitter is not None:
            images, masks = augment_batch(images, masks, extents, batch.jitter.to(device, non_blocking=True))
        images = self._model.normalise(images, extents)
        return cross_entropy_sum(self._patch_logits(images), masks, self._model.patch_size, self._ignore_index)

    def _patch_logits(self, images: torch.Tensor) -> torch.Tensor:
        precision = self._spec.train.precision
        with torch.autocast(self._ranks.device.type, dtype=_AUTOCAST.get(precision), enabled=precision != "fp32"):
            patch_logits: torch.Tensor = self._parallel(images)
        return patch_logits

    def _backward(self, loss_sum: torch.Tensor, global_valid: torch.Tensor) -> bool:
        """Back-propagate and update; False if the (identical on all ranks) gradient is not finite."""
        scale = self._ranks.world_size / global_valid.clamp(min=1).to(loss_sum.dtype)
        torch.autograd.backward(self.scaler.scale(loss_sum * scale))
        self.scaler.unscale_(self._optimizer)
        gradients = [p.grad for p in self._trainable if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        is_finite = bool(torch.isfinite(norm))
        if is_finite and self._spec.optim.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._trainable, self._spec.optim.clip_grad_norm, norm)
        if is_finite:
            self.scaler.step(self._optimizer)
        self.scaler.update()
        return is_finite
