"""Evaluation written out plainly: one window after the other, all classes at full size, as the reference code goes.

Tests compare with it, and the benchmark measures it beside ours. Shares no code with `segfleet_models.inference`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfleet_models.inference import WindowConfig


class FixedLogits(nn.Module):
    """Stands for a model: windows get ready logits in the order in which they come, at no cost.

    Args:
        num_classes: K.
        output_stride: Side of a patch, pixels.
        grid: Patches (h, w) of a window.
        num_windows: Windows until the logits begin anew.
    """

    def __init__(self, num_classes: int, output_stride: int, grid: tuple[int, int], num_windows: int) -> None:
        super().__init__()
        self.num_classes, self.output_stride, self.mean = num_classes, output_stride, torch.zeros(1, 3, 1, 1)
        generator = torch.Generator().manual_seed(0)
        self.logits = 4 * torch.randn(num_windows, num_classes, *grid, generator=generator)
        self.num_seen = 0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """The next windows' logits, (B, K, h, w)."""
        first, self.num_seen = self.num_seen, (self.num_seen + len(images)) % len(self.logits)
        return self.logits[first : first + len(images)]

    @staticmethod
    def normalise(images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 to (B, 3, H, W)."""
        return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def plain_probabilities(model: nn.Module, image: Tensor, config: WindowConfig) -> Tensor:
    """Probabilities (K, H, W) of a picture (H, W, 3)."""
    size = image.shape[:2]
    maps = []
    for scale in config.scales:
        pixels = _looked_at(model.normalise(image[None]), config, scale)  # type: ignore[operator]
        for flip in (False, True) if config.flip else (False,):
            logits = _merged(model, pixels.flip(3) if flip else pixels, config)
            logits = F.interpolate(logits, size=size, mode="bilinear")
            maps.append((logits.flip(3) if flip else logits).softmax(1))
    return maps[0][0] if len(maps) == 1 else torch.stack(maps).mean(0)[0]


def _looked_at(pixels: Tensor, config: WindowConfig, scale: float) -> Tensor:
    short = min(pixels.shape[2:])
    factor = scale if config.short_side is None else int(config.short_side * scale) / short
    pixels = F.interpolate(
        pixels, size=[max(1, int(side * factor + 0.5)) for side in pixels.shape[2:]], mode="bilinear"
    )
    short = min(pixels.shape[2:])
    if short < config.window and config.protocol == "reference":
        enlarged = [int(side * config.window / short + 0.5) for side in pixels.shape[2:]]
        pixels = F.interpolate(pixels, size=enlarged, mode="bilinear")
    return pixels


def _merged(model: nn.Module, pixels: Tensor, config: WindowConfig) -> Tensor:
    """Mean logits (1, K, H, W) of the windows over each pixel."""
    height, width = pixels.shape[2:]
    squares = [(rows, columns) for rows in _windows(height, config) for columns in _windows(width, config)]
    maps = [_upsampled(model, pixels[:, :, rows, columns], config) for rows, columns in squares]
    total, count = torch.zeros(1, maps[0].shape[1], height, width), torch.zeros(height, width)
    for (rows, columns), window_map in zip(squares, maps, strict=True):
        total[:, :, rows, columns] += window_map
        count[rows, columns] += 1
    return total / count


def _windows(side: int, config: WindowConfig) -> Iterator[slice]:
    last = max(0, side - config.window)
    for start in [*range(0, last, config.stride), last]:
        yield slice(start, min(side, start + config.window))


def _upsampled(model: nn.Module, window: Tensor, config: WindowConfig) -> Tensor:
    height, width = window.shape[2:]
    logits = model(window)
    if config.protocol == "mmseg":
        return F.interpolate(logits, size=(height, width), mode="bilinear")
    patch: int = model.output_stride  # type: ignore[assignment]
    padded = F.interpolate(logits, size=(logits.shape[2] * patch, logits.shape[3] * patch), mode="bilinear")
    return padded[:, :, :height, :width]
