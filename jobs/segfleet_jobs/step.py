"""One optimiser step over the global batch, without the CPU waiting for the device.

Whether a step may be applied is known on the device alone: the optimiser, the mean of the weights and the buffers are
told there. What a step did travels to the CPU beside the next step's work and is read when it has arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from segfleet.spec.kinds import TrainSpec
from segfleet_jobs.ema import KeptBuffers, WeightAverage
from segfleet_jobs.failure import NonFiniteLossError
from segfleet_jobs.optim import learning_rate, set_learning_rate
from segfleet_jobs.ranks import Ranks
from segfleet_models.losses import cross_entropy_sum
from segfleet_models.segmenter import SegmentationModel
from segfleet_pipelines.batch import Batch
from segfleet_pipelines.device_augment import augment_batch

# What autocast computes in; fp32 needs none.
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did, equal on every rank.

    Attributes:
        loss: Mean over the valid pixels of the global batch; not finite if the step was skipped for it.
        lr: Learning rate of the step.
        num_valid: Valid pixels of the global batch.
        is_applied: False if loss or gradient was not finite and nothing was changed.
        must_yield: Whether any rank was asked to end the attempt.
        nonfinite_ranks: On which ranks the loss was not finite; none, if only the common gradient was not.
    """

    loss: float
    lr: float
    num_valid: int
    is_applied: bool
    must_yield: bool
    nonfinite_ranks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step that the device may still be at.

    Attributes:
        step: Its number.
        lr: Its learning rate.
        figures: On the CPU, once `arrived`: loss, valid pixels, ranks asked to yield, 1 if applied, then for each rank
            1 if its loss was not finite.
        arrived: When the figures are there; None: they are.
    """

    step: int
    lr: float
    figures: Tensor
    arrived: torch.cuda.Event | None


class TrainStep:
    """Forward, loss, gradient all-reduce and update; every rank decides alike.

    The loss is the mean over the valid pixels (or their class weights) of the *global* batch. DDP averages gradients
    over ranks, so each rank scales its pixel sum by world_size / global weight.

    Args:
        model: The plain model.
        parallel: The model as it is called: itself, or wrapped for several ranks, or compiled.
        optimizer: Of `build_optimizer`.
        spec: The training.
        ignore_index: Label of pixels that do not count.
        ranks: This process in its group.
        average: Follows the weights; None: none.
    """

    def __init__(
        self,
        model: SegmentationModel,
        parallel: nn.Module,
        optimizer: torch.optim.Optimizer,
        spec: TrainSpec,
        ignore_index: int,
        ranks: Ranks,
        average: WeightAverage | None = None,
    ) -> None:
        self._model, self._parallel, self._optimizer, self._average = model, parallel, optimizer, average
        self._spec, self._ignore_index, self._ranks = spec, ignore_index, ranks
        self._trainable = [p for group in optimizer.param_groups for p in group["params"]]
        weights = spec.loss.class_weights
        self._class_weights = None if weights is None else torch.tensor(weights, device=ranks.device)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=spec.train.precision == "fp16")
        self.skipped_in_a_row = 0

    def __call__(self, batch: Batch, must_yield: bool = False) -> StepResult:
        """Launch a step and wait for it."""
        return self.read(self.launch(batch, must_yield))

    def launch(self, batch: Batch, must_yield: bool = False) -> LaunchedStep:
        """Train on this rank's part of the global batch; does not wait for the device.

        Args:
            batch: The part.
            must_yield: Whether this rank was asked to end the attempt; whoever reads the step, on any rank, knows.
        """
        lr = learning_rate(self._spec.optim, batch.step, self._spec.train.steps)
        set_learning_rate(self._optimizer, lr)
        self._optimizer.zero_grad(set_to_none=True)
        buffers = KeptBuffers(self._model)
        images, masks = self._prepare(batch)
        is_whole = self._part(len(masks)) == len(masks)
        totals = (self._whole if is_whole else self._in_parts)(images, masks, must_yield)
        divisor = torch.where(totals[1] > 0, totals[1], 1.0)
        is_applied = self._update(totals[0])
        buffers.restore(~is_applied)
        if self._average is not None:
            self._average.update(is_applied)
        figures = torch.stack([totals[0] / divisor, totals[2], totals[3], is_applied.double()])
        figures = torch.cat([figures, totals[4:]])
        return LaunchedStep(batch.step, lr, *self._send(figures))

    def read(self, launched: LaunchedStep) -> StepResult:
        """What a step did; each must be read, in order and on all ranks at the same place.

        Raises:
            NonFiniteLossError: `max_nonfinite_steps` steps in a row could not be applied.
        """
        if launched.arrived is not None:
            launched.arrived.synchronize()
        loss, num_valid, asked, is_applied, *nonfinite = launched.figures.tolist()
        ranks = tuple(rank for rank, is_it in enumerate(nonfinite) if is_it)
        self.skipped_in_a_row = 0 if is_applied else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= self._spec.train.max_nonfinite_steps:
            raise NonFiniteLossError(
                f"loss or gradient was not finite in {self.skipped_in_a_row} steps in a row up to step "
                f"{launched.step}; {where_nonfinite(ranks, self._ranks.world_size)}"
            )
        return StepResult(loss, launched.lr, int(num_valid), bool(is_applied), asked > 0, ranks)

    def warm_up(self, crop: int) -> None:
        """One forward and backward on empty pictures; changes neither weights nor buffers nor optimiser."""
        device, size = self._ranks.device, self._part(self._spec.train.global_batch // self._ranks.world_size)
        images = torch.zeros(size, 3, crop, crop, device=device)
        masks = torch.zeros(size, crop, crop, dtype=torch.uint8, device=device)
        buffers = KeptBuffers(self._model)
        torch.autograd.backward(self._loss(images, masks)[0])
        buffers.restore(torch.ones((), dtype=torch.bool, device=device))
        self._optimizer.zero_grad(set_to_none=True)

    def _part(self, size: int) -> int:
        """How many of so many samples are computed at once."""
        return min(size, self._spec.train.micro_batch or size)

    def _whole(self, images: Tensor, masks: Tensor, must_yield: bool) -> Tensor:
        """Gradients of this rank's samples at once; (4 + world_size,), as of `_totals`."""
        loss_sum, weight = self._loss(images, masks)
        num_valid = weight if self._class_weights is None else (masks != self._ignore_index).sum()
        # One small all-reduce before the backward: if any rank's sum is not finite, the total is not finite.
        totals = self._totals(loss_sum.detach(), weight, num_valid, must_yield)
        self._ranks.pulse.enter("backward")
        self._propagate(loss_sum, totals[1])
        return totals

    def _in_parts(self, images: Tensor, masks: Tensor, must_yield: bool) -> Tensor:
        """Gradients of one part after the other, added up, with the activations of one part in memory.

        The divisor must be known before the first backward: it depends on the labels alone. The ranks' gradients are
        summed once, after the last part.
        """
        is_valid = masks != self._ignore_index
        num_valid = is_valid.sum()
        weight = num_valid
        if self._class_weights is not None:
            labels = torch.where(is_valid, masks, 0).long()
            weight = (self._class_weights.double()[labels] * is_valid).sum()
        zero = torch.zeros((), device=self._ranks.device)
        weights = self._totals(zero, weight, num_valid, must_yield)
        self._ranks.pulse.enter("backward")
        total = torch.zeros((), dtype=torch.float64, device=self._ranks.device)
        size = self._part(len(masks))
        for start in range(0, len(masks), size):
            with nullcontext() if start + size >= len(masks) else self._unsynced():
                loss_sum, _ = self._loss(images[start : start + size], masks[start : start + size])
                total += loss_sum.detach()
                self._propagate(loss_sum, weights[1])
        losses = self._totals(total, torch.zeros_like(weight), torch.zeros_like(num_valid), False)
        return weights + losses

    def _totals(self, loss_sum: Tensor, weight: Tensor, num_valid: Tensor, must_yield: bool) -> Tensor:
        """Sums over all ranks: loss, divisor, valid pixels, asked to yield; then each rank's flag of no finite loss."""
        asked = torch.full((), float(must_yield), dtype=torch.float64, device=loss_sum.device)
        own = torch.stack([loss_sum.double(), weight.double(), num_valid.double(), asked])
        return self._ranks.sum_(torch.cat([own, self._own_flag(~torch.isfinite(own[0]))]))

    def _unsynced(self) -> AbstractContextManager[None]:
        """Gradients stay with their rank."""
        # torch.compile's wrapper passes it on to DDP.
        parallel = cast(nn.parallel.DistributedDataParallel, self._parallel)
        return parallel.no_sync() if self._ranks.world_size > 1 else nullcontext()

    def _prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Normalised pictures and masks on the device."""
        device = self._ranks.device
        images = batch.images.to(device, non_blocking=True)
        masks = batch.masks.to(device, non_blocking=True)
        extents = batch.extents.to(device, non_blocking=True)
        if batch.jitter is not None:
            images, masks = augment_batch(images, masks, extents, batch.jitter.to(device, non_blocking=True))
        return self._model.normalise(images, extents), masks

    def _loss(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        loop = self._spec.train
        if loop.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(
            self._ranks.device.type, dtype=AUTOCAST.get(loop.precision), enabled=loop.precision != "fp32"
        ):
            patch_logits: Tensor = self._parallel(images)
        return cross_entropy_sum(
            patch_logits,
            masks,
            self._model.output_stride,
            self._ignore_index,
            label_smoothing=self._spec.loss.label_smoothing,
            class_weights=self._class_weights,
        )

    def _propagate(self, loss_sum: Tensor, weight: Tensor) -> None:
        """Back-propagate, given what all ranks' sums are divided by."""
        divisor = torch.where(weight > 0, weight, 1.0)
        scale = (self._ranks.world_size / divisor).to(loss_sum.dtype)
        torch.autograd.backward(self.scaler.scale(loss_sum * scale))

    def _update(self, total: Tensor) -> Tensor:
        """Apply the gradients; False on the device if loss or (identical on all ranks) gradient is not finite."""
        self.scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._trainable if p.grad is not None])
        is_applied = torch.isfinite(total) & torch.isfinite(norm).to(total.device)
        if self._spec.optim.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._trainable, self._spec.optim.clip_grad_norm, norm)
        # What GradScaler.step tells a fused optimiser, for every precision; gradients are unscaled already.
        self._optimizer.grad_scale = None  # type: ignore[attr-defined]
        self._optimizer.found_inf = (~is_applied).float()  # type: ignore[attr-defined]
        self._optimizer.step()
        self.scaler.update()
        return is_applied

    def _own_flag(self, is_set: Tensor) -> Tensor:
        """A flag of each rank, (world_size,), of which this rank knows its own."""
        flags = torch.zeros(self._ranks.world_size, dtype=torch.float64, device=is_set.device)
        flags[self._ranks.rank] = is_set
        return flags

    def _send(self, figures: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """Begin to copy to the CPU."""
        if figures.device.type != "cuda":
            return figures, None
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copy = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True).copy_(figures, non_blocking=True)
        arrived.record()
        return copy, arrived


def where_nonfinite(ranks: Sequence[int], world_size: int) -> str:
    """Where a loss that is not finite arose, for a person."""
    if not ranks:
        return "in the last one every rank's loss was finite, but not their gradient"
    if len(ranks) == world_size:
        return "in the last one on every rank"
    return f"in the last one on rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
