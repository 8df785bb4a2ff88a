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

# Rows of pixels scored at once on a CPU: few, so that a band stays in the processor's cache.
_CPU_BAND_ROWS = 8
# Elsewhere a band may be this large: enough rows to fill a GPU, and still a share of what the whole map would take.
_DEVICE_BAND_BYTES = 2**28


def cross_entropy_sum(
    patch_logits: Tensor,
    target: Tensor,
    stride: int,
    ignore_index: int,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy at pixel level, summed over the valid pixels, as `torch.nn.functional.cross_entropy` defines it.

    Logits are upsampled as by `upsample_logits`. The mean over the global batch is the sum of all ranks' sums divided
    by the sum of all weights; a mean of the ranks' means would weigh a pixel by how many others its rank ignores.

    Args:
        patch_logits: (B, K, h, w), any floating type; computed in float32 (float64 stays), also under autocast.
        target: Class of each pixel or `ignore_index`, integers (B, H, W).
        stride: Pixels that one logit stands for along a side.
        ignore_index: Label of pixels that do not count.
        label_smoothing: Share of each pixel's target that is spread evenly over all classes, in [0, 1).
        class_weights: One factor a class, not negative, (K,); None: 1 for all.

    Returns:
        The sum (scalar, 0 with a zero gradient if every pixel is ignored) and what to divide it by: the number of valid
        pixels (int64 scalar), or with class weights the sum of the weights of their classes (float64 scalar).

    Raises:
        ValueError: the patches do not cover the target, or there is not one weight a class.
    """
    check_patches_cover(patch_logits.shape[-2:], stride, target.shape[-2:])
    if class_weights is not None and class_weights.shape != patch_logits.shape[1:2]:
        raise ValueError(f"{class_weights.numel()} class weights do not fit {patch_logits.shape[1]} classes")
    total: Tensor = _BandedCrossEntropy.apply(
        patch_logits, target, stride, ignore_index, label_smoothing, class_weights
    )
    is_valid = target != ignore_index
    if class_weights is None:
        return total, is_valid.sum()
    return total, (class_weights.double()[target.long().where(is_valid, 0)] * is_valid).sum()


class _BandedCrossEntropy(torch.autograd.Function):
    """The gradient is formed in the forward pass, where each band's probabilities are at hand anyway."""

    @staticmethod
    def forward(
        ctx: Any,
        patch_logits: Tensor,
        target: Tensor,
        stride: int,
        ignore_index: int,
        label_smoothing: float,
        class_weights: Tensor | None,
    ) -> Tensor:
        with torch.autocast(patch_logits.device.type, enabled=False):
            logits = patch_logits if patch_logits.dtype == torch.float64 else patch_logits.float()
            pixel_loss = _PixelLoss(logits, ignore_index, label_smoothing, class_weights)
            total, gradient = _score_bands(
                logits.permute(0, 2, 3, 1), target, stride, pixel_loss, ctx.needs_input_grad[0]
            )
        if gradient is not None:
            # A sum over many pixels, which half precision might not hold; what comes down scales it first.
            ctx.save_for_backward(gradient.permute(0, 3, 1, 2))
            ctx.dtype = patch_logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_total).to(ctx.dtype), None, None, None, None, None


class _PixelLoss:
    """The loss of single pixels, and its gradient by their logits z.

    With smoothing e, weights u and label y: loss = c logsumexp(z) - (1 - e) u_y z_y - e/K u.z, where c is the sum of
    the factors of the other two terms.
    """

    def __init__(self, like: Tensor, ignore_index: int, smoothing: float, class_weights: Tensor | None) -> None:
        num_classes = like.shape[1]
        self._ignore_index, self._smoothing = ignore_index, smoothing
        self._weights = None if class_weights is None else class_weights.to(like)
        # Every class's factor, whatever the label; only smoothing needs it.
        shares = torch.ones(num_classes).to(like) if self._weights is None else self._weights
        self._everywhere = shares * (smoothing / num_classes) if smoothing else None

    def __call__(self, band: Tensor, labels: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Sum over a band (B, rows, W, K), which is used up, with labels (B, rows, W, 1); and the gradient by it."""
        is_valid = labels != self._ignore_index
        labels = labels.where(is_valid, 0)
        own = is_valid.to(band.dtype)
        if self._weights is not None:
            own = own * self._weights[labels]
        own = own * (1 - self._smoothing) if self._smoothing else own
        factor = own if self._everywhere is None else own + is_valid * self._everywhere.sum()
        log_sum = band.logsumexp(dim=-1, keepdim=True)
        # Differences of numbers of one size, so that large logits do not cost digits.
        total = ((log_sum - band.gather(-1, labels)) * own).sum()
        if self._everywhere is not None:
            mean = (band @ self._everywhere).unsqueeze(-1)
            total = total + ((log_sum * self._everywhere.sum() - mean) * is_valid).sum()
        if not with_gradient:
            return total, None
        share = band.sub_(log_sum).exp_().mul_(factor)  # probabilities, in the logits' own memory
        if self._everywhere is not None:
            share.sub_(is_valid * self._everywhere)
        return total, share.scatter_add_(-1, labels, -own)


def _band_rows(batch: int, width: int, num_classes: int, device: torch.device) -> int:
    if device.type == "cpu":
        return _CPU_BAND_ROWS
    return max(_CPU_BAND_ROWS, _DEVICE_BAND_BYTES // (4 * batch * width * num_classes))


def _score_bands(
    logits: Tensor, target: Tensor, stride: int, pixel_loss: _PixelLoss, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss, and its gradient by `logits` (B, h, w, K)."""
    batch, grid_height, grid_width, num_classes = logits.shape
    height, width = target.shape[-2:]
    across = bilinear_matrix(grid_width, grid_width * stride, logits.device)[:width].to(logits)  # W w
    down = bilinear_matrix(grid_height, grid_height * stride, logits.device)[:height].to(logits)  # H h
    wide = across @ logits  # B h W K
    wide_gradient = torch.zeros_like(wide) if with_gradient else None
    total = logits.new_zeros(())
    num_rows = _band_rows(batch, width, num_classes, logits.device)
    for top in range(0, height, num_rows):
        bottom = min(top + num_rows, height)
        # The patch rows whose centres lie around these pixels.
        first = max(0, (2 * top + 1 - stride) // (2 * stride))
        last = min(grid_height, (2 * bottom - 1 + stride) // (2 * stride) + 1)
        weights = down[top:bottom, first:last]
        band = (weights @ wide[:, first:last].flatten(2)).view(batch, bottom - top, width, num_classes)
        band_total, share = pixel_loss(band, target[:, top:bottom].long().unsqueeze(-1), with_gradient)
        total += band_total
        if wide_gradient is not None and share is not None:
            wide_gradient[:, first:last] += (weights.T @ share.flatten(2)).view_as(wide_gradient[:, first:last])
    return total, None if wide_gradient is None else across.T @ wide_gradient
