"""The training loss, as a sum and a count, so that ranks can be averaged by their pixels.

Written out, upsampling and cross-entropy take three maps of all classes at full size: 450 MiB for 150 classes and one
crop of 512, most of a small model's memory and 40 % of its step. Here a band of rows at a time is upsampled, scored and
turned into its share of the gradient, and forgotten.

Shapes: B batch, K classes, H W pixels, h w patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segfleet_models.resampling import bilinear_matrix
from segfleet_models.segmenter import check_patches_cover

# Rows of pixels scored at once: few, so that a band stays in the processor's cache.
_BAND_ROWS = 8


def cross_entropy_sum(
    patch_logits: Tensor, target: Tensor, patch_size: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Cross-entropy at pixel level, summed over the valid pixels.

    Logits are upsampled as by `upsample_logits`. The mean over the global batch is the sum of all ranks' sums divided
    by the sum of all counts; a mean of the ranks' means would weigh a pixel by how many others its rank ignores.

    Args:
        patch_logits: (B, K, h, w), any floating type; computed in float32, also under autocast.
        target: Class of each pixel or `ignore_index`, integers (B, H, W).
        patch_size: Side of a patch in pixels.
        ignore_index: Label of pixels that do not count.

    Returns:
        The sum (float32 scalar, 0 with a zero gradient if every pixel is ignored) and the number of valid pixels (int64
        scalar).

    Raises:
        ValueError: the patches do not cover the target.
    """
    check_patches_cover(patch_logits.shape[-2:], patch_size, target.shape[-2:])
    total: Tensor = _BandedCrossEntropy.apply(patch_logits, target, patch_size, ignore_index)
    return total, (target != ignore_index).sum()


class _BandedCrossEntropy(torch.autograd.Function):
    """The gradient is formed in the forward pass, where each band's probabilities are at hand anyway."""

    @staticmethod
    def forward(ctx: Any, patch_logits: Tensor, target: Tensor, patch_size: int, ignore_index: int) -> Tensor:
        with torch.autocast(patch_logits.device.type, enabled=False):
            total, gradient = _score_bands(
                patch_logits.float().permute(0, 2, 3, 1), target, patch_size, ignore_index, ctx.needs_input_grad[0]
            )
        if gradient is not None:
            ctx.save_for_backward(gradient.permute(0, 3, 1, 2).to(patch_logits.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_total, None, None, None


def _score_bands(
    logits: Tensor, target: Tensor, patch_size: int, ignore_index: int, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss, and its gradient by `logits` (B, h, w, K; float32)."""
    batch, grid_height, _, num_classes = logits.shape
    height, width = target.shape[-2:]
    grid_width = logits.shape[2]
    across = bilinear_matrix(grid_width, grid_width * patch_size, logits.device)[:width]  # W w
    down = bilinear_matrix(grid_height, grid_height * patch_size, logits.device)[:height]  # H h
    wide = across @ logits  # B h W K
    wide_gradient = torch.zeros_like(wide) if with_gradient else None
    total = logits.new_zeros(())
    for top in range(0, height, _BAND_ROWS):
        bottom = min(top + _BAND_ROWS, height)
        # The patch rows whose centres lie around these pixels.
        first = max(0, (2 * top + 1 - patch_size) // (2 * patch_size))
        last = min(grid_height, (2 * bottom - 1 + patch_size) // (2 * patch_size) + 1)
        weights = down[top:bottom, first:last]
        band = (weights @ wide[:, first:last].flatten(2)).view(batch, bottom - top, width, num_classes)
        labels = target[:, top:bottom].long().unsqueeze(-1)
        is_valid = labels != ignore_index
        labels = labels.where(is_valid, 0)
        log_sum = band.logsumexp(dim=-1, keepdim=True)
        total += ((log_sum - band.gather(-1, labels)) * is_valid).sum()
        if wide_gradient is not None:
            share = band.sub_(log_sum).exp_().mul_(is_valid)  # probabilities, in the logits' own memory
            share.scatter_add_(-1, labels, -is_valid.to(share.dtype))
            wide_gradient[:, first:last] += (weights.T @ share.flatten(2)).view_as(wide_gradient[:, first:last])
    return total, None if wide_gradient is None else across.T @ wide_gradient
