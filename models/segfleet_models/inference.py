"""From a picture to its label map: sliding windows, scales and flips, as the reference evaluates.

Logits are averaged over windows, probabilities over scales and flips. H W are a picture's pixels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segfleet_models.segmenter import Segmenter

# Windows that go through the model at once; bounds the memory of a large picture.
_WINDOWS_PER_BATCH = 4


@dataclass(frozen=True)
class WindowConfig:
    """How a picture is cut up and looked at.

    Attributes:
        window: Side of the square window, pixels.
        stride: Step of the window, pixels, at most `window`.
        short_side: Resize the picture to this short side first; None keeps its size.
        scales: Factors on that size; probabilities are averaged over them.
        flip: Average with the horizontally flipped picture too.

    Raises:
        ValueError: windows would leave gaps, or a value is not positive.
    """

    window: int
    stride: int
    short_side: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.window:
            raise ValueError(f"stride {self.stride} must be between 1 and the window {self.window}")
        if self.short_side is not None and self.short_side < 1:
            raise ValueError(f"short side {self.short_side} must be at least 1 pixel")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales {self.scales} must be one or more positive factors")


def predict(
    model: Segmenter,
    image: Tensor | NDArray[np.uint8],
    config: WindowConfig,
    device: torch.device | str | None = None,
) -> Tensor:
    """Label every pixel of a picture.

    Args:
        model: In evaluation mode.
        image: RGB, uint8, (H, W, 3), any size.
        config: Windows, scales and flips.
        device: Where the model is; None takes it from the model.

    Returns:
        Class of each pixel, (H, W) on the model's device; uint8, or int16 for more than 255 classes, as 255 is the
        usual ignore label.

    Raises:
        ValueError: the picture is not RGB uint8, or the model is in training mode.
    """
    image = torch.as_tensor(image)
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.numel() == 0:
        raise ValueError(f"a picture must be uint8 (H, W, 3), not {image.dtype} {tuple(image.shape)}")
    if model.training:
        raise ValueError("the model is in training mode, its dropout would blur the result; call model.eval() first")
    with torch.inference_mode():
        labels = _score_passes(model, image.to(device or model.mean.device), config).argmax(dim=0)
    # Converted outside: the caller may not change an inference tensor in place.
    return labels.to(torch.uint8 if model.num_classes <= 255 else torch.int16)


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side: every `stride` pixels, the last one flush with the border.

    Raises:
        ValueError: the side is shorter than the window.
    """
    if side < window:
        raise ValueError(f"a side of {side} pixels is shorter than the window of {window}")
    return [*range(0, side - window, stride), side - window]


def pass_size(size: tuple[int, int], config: WindowConfig, scale: float) -> tuple[int, int]:
    """Size a picture of `size` (H, W) is looked at in one pass; never smaller than the window."""
    short = min(size)
    factor = scale if config.short_side is None else int(config.short_side * scale) / short
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    short = min(height, width)
    if short >= config.window:
        return height, width
    # The reference enlarges a small picture to the window instead of padding it.
    return int(height * config.window / short + 0.5), int(width * config.window / short + 0.5)


def _score_passes(model: Segmenter, image: Tensor, config: WindowConfig) -> Tensor:
    size = (image.shape[0], image.shape[1])
    pixels = model.normalise(image[None])
    flips = (False, True) if config.flip else (False,)
    passes = [(scale, flip) for scale in config.scales for flip in flips]
    total: Tensor | None = None
    for scale, flip in passes:
        resized = _resize(pixels, pass_size(size, config, scale))
        logits = _resize(_slide(model, resized.flip(3) if flip else resized, config), size)[0]
        logits = logits.flip(2) if flip else logits
        if len(passes) == 1:
            return logits  # softmax keeps the order of the classes
        probabilities = logits.softmax(dim=0)
        total = probabilities if total is None else total.add_(probabilities)
    assert total is not None  # a WindowConfig has at least one scale
    return total


def _slide(model: Segmenter, pixels: Tensor, config: WindowConfig) -> Tensor:
    """Mean logits (1, K, H, W) over the windows that cover each pixel of one picture (1, 3, H, W)."""
    height, width = pixels.shape[-2:]
    squares = [
        (slice(top, top + config.window), slice(left, left + config.window))
        for top in window_starts(height, config.window, config.stride)
        for left in window_starts(width, config.window, config.stride)
    ]
    total = pixels.new_zeros(1, model.num_classes, height, width)
    cover = pixels.new_zeros(height, width)
    for first in range(0, len(squares), _WINDOWS_PER_BATCH):
        batch = squares[first : first + _WINDOWS_PER_BATCH]
        patch_logits = model(torch.cat([pixels[..., rows, columns] for rows, columns in batch])).float()
        for (rows, columns), window_logits in zip(batch, patch_logits.split(1), strict=True):
            total[..., rows, columns] += model.upsample(window_logits, (config.window, config.window))
            cover[rows, columns] += 1
    return total.div_(cover)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
