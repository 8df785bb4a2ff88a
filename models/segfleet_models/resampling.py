"""Bilinear resizing in parts: as a matrix for one side, or a few rows at a time.

What PyTorch's bilinear interpolation gives (align_corners off, no antialiasing), without the whole map.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows of a picture: their numbers, int64 (R,), to normalised pixels (1, 3, R, W).
PictureRows = Callable[[Tensor], Tensor]


def bilinear_matrix(num_sources: int, num_targets: int, device: torch.device | None = None) -> Tensor:
    """Weights that resize one side, (num_targets, num_sources) float32; rows add up to 1."""
    return F.interpolate(
        torch.eye(num_sources, device=device)[None], size=num_targets, mode="linear", align_corners=False
    )[0].T


def resized_rows(source: PictureRows, size: tuple[int, int], new_size: tuple[int, int]) -> PictureRows:
    """Rows of a picture of `size` (H, W) as they are after resizing it to `new_size`."""
    if size == new_size:
        return source
    scale = size[0] / new_size[0]

    def rows(numbers: Tensor) -> Tensor:
        places = ((numbers + 0.5) * scale - 0.5).clamp_(min=0)
        above = places.floor().long()
        below = (above + 1).clamp_(max=size[0] - 1)
        upper, lower = source(above), source(below)
        pixels = torch.lerp(upper, lower, (places - above)[:, None].to(upper.device))
        return F.interpolate(pixels, size=(len(numbers), new_size[1]), mode="bilinear", align_corners=False)

    return rows
