"""Flip and photometric distortion of a whole batch on the training device, to relieve the CPU.

The parameters were drawn with the rest (`photometric.draw_jitter`), and the arithmetic is the CPU's down to OpenCV's
HSV of 8 bits with its 180 hues, so the pictures are the same to two levels. After the first batch nothing waits for the
device.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from segfleet_pipelines.photometric import Jitter

# Samples worked on at a time: the intermediate results of a sample take some forty times its memory.
_CHUNK = 4

_SHIFT = 12  # of OpenCV's fixed-point division


def augment_batch(images: Tensor, masks: Tensor, extents: Tensor, jitter: Tensor) -> tuple[Tensor, Tensor]:
    """Distort and mirror each sample inside its extent.

    Args:
        images: RGB, uint8 (B, H, W, 3); what lies beyond the extents comes out as anything.
        masks: Labels, uint8 (B, H, W).
        extents: Height and width of each sample, int64 (B, 2).
        jitter: Fields of a `photometric.Jitter`, float32 (B, 7).

    Returns:
        New pictures and masks of the same shapes, on the same device.
    """
    flip = Jitter(*jitter.unbind(1)).flip
    columns = torch.arange(masks.shape[2], device=masks.device)
    widths = extents[:, 1:]
    mirrored = torch.where((flip[:, None] > 0) & (columns < widths), widths - 1 - columns, columns)
    masks = masks.gather(2, mirrored[:, None, :].expand_as(masks))
    images = images.gather(2, mirrored[:, None, :, None].expand_as(images))
    chunks = (slice(begin, begin + _CHUNK) for begin in range(0, len(images), _CHUNK))
    fields = jitter[:, :, None, None]
    return torch.cat([_distort(images[chunk], Jitter(*fields[chunk].unbind(1))) for chunk in chunks]), masks


def _distort(images: Tensor, jitter: Jitter[Tensor]) -> Tensor:
    """`photometric.distort` of uint8 (B, H, W, 3) by fields of (B, 1, 1)."""
    planes = images.movedim(3, 0).float()
    planes = _linear(planes, 1.0, jitter.brightness)
    planes = _linear(planes, jitter.contrast_before, 0.0)
    hue, saturation, value = _to_hsv(planes)
    hue = torch.remainder(hue + jitter.hue, 180)
    saturation = _linear(saturation, jitter.saturation, 0.0)
    planes = torch.where(jitter.hsv > 0, _to_rgb(hue, saturation, value), planes)
    return _linear(planes, jitter.contrast_after, 0.0).to(torch.uint8).movedim(0, 3).contiguous()


def _linear(values: Tensor, alpha: Tensor | float, beta: Tensor | float) -> Tensor:
    """alpha * x + beta, clipped and cut down to whole numbers."""
    return (values * alpha + beta).clamp(0, 255).floor()


def _to_hsv(planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue (0..179), saturation and value (0..255) as OpenCV has them, each (B, H, W), from RGB (3, B, H, W).

    Source: OpenCV, imgproc/src/color_hsv, RGB2HSV for bytes: fixed-point division by tables.
    """
    red, green, blue = planes
    value, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    spread = value - low
    turn = torch.where(
        value == red, green - blue, torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    )
    by_value, by_spread = _division_tables(planes.device)
    saturation = _divide(spread, by_value, value)
    hue = _divide(turn, by_spread, spread)
    return torch.where(hue < 0, hue + 180, hue), saturation, value


def _divide(numbers: Tensor, table: Tensor, places: Tensor) -> Tensor:
    factors = table[places.to(torch.int32)]
    return ((numbers.to(torch.int32) * factors + (1 << (_SHIFT - 1))) >> _SHIFT).float()


@lru_cache(maxsize=8)
def _division_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """255 / v and 30 / v in fixed point for v of 0..255, 0 for v = 0."""
    divisors = torch.arange(256, dtype=torch.float64).clamp(min=1)
    tables = [torch.round(factor * 2**_SHIFT / divisors).to(torch.int32) for factor in (255, 30)]
    for table in tables:
        table[0] = 0
    return tables[0].to(device), tables[1].to(device)


def _to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """RGB (3, B, H, W), whole numbers, from OpenCV's HSV of bytes.

    Each channel is the value less its share of the saturation, which rises and falls along the circle of hues. OpenCV
    cuts the fractions off here.
    """
    saturation = saturation / 255
    sixths = hue / 30
    channels = []
    for offset in (5.0, 3.0, 1.0):
        place = torch.remainder(sixths + offset, 6)
        share = torch.minimum(place, 4 - place).clamp(0, 1)
        channels.append(torch.floor(value * (1 - saturation * share)))
    return torch.stack(channels)
