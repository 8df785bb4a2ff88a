"""Learned position embeddings on another grid than the one they were trained for.

h w are patches, C channels.
"""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

PositionMode = Literal["bilinear", "bicubic", "bicubic_antialias"]
POSITION_MODES: tuple[str, ...] = get_args(PositionMode)

# Antialiasing is more than a filter on the way down: PyTorch's cubic kernel differs too (-0.5 instead of -0.75).
_OPTIONS: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "bilinear"},
    "bicubic": {"mode": "bicubic"},
    "bicubic_antialias": {"mode": "bicubic", "antialias": True},
}
# AugReg's, the first ViT's and DeiT's files: the size is in the name, and nothing but how they were trained follows it.
_REFERENCE_BACKBONE = re.compile(
    r"(vit|deit)_(tiny|small|base|large)_(distilled_)?patch(8|16|32)_(224|384)(\.(augreg|orig|fb)_\w+)?|test_vit\w*"
)


def source_mode(backbone: str) -> PositionMode:
    """How the code that a backbone's weights come with resizes their positions.

    The reference code of Segmenter (timm 0.4.12) does it bilinearly for AugReg and DeiT; today's timm, which publishes
    all the others, bicubically with antialiasing.
    """
    return "bilinear" if _REFERENCE_BACKBONE.fullmatch(backbone) else "bicubic_antialias"


def resize_positions(
    positions: Tensor,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    num_prefix: int,
    mode: PositionMode = "bilinear",
) -> Tensor:
    """Resize a table of position embeddings.

    Args:
        positions: (1, num_prefix + old h * old w, C); the prefix rows are passed through.
        old_grid: (h, w) of the table, in patches.
        new_grid: (h, w) wanted.
        num_prefix: Rows at the head of the table that belong to prefix tokens.
        mode: Bilinear as the reference code, bicubic as MMSegmentation, bicubic with antialiasing as timm.

    Returns:
        (1, num_prefix + new h * new w, C); `positions` itself if the grids are equal.
    """
    if tuple(old_grid) == tuple(new_grid):
        return positions
    prefix, table = positions[:, :num_prefix], positions[:, num_prefix:]
    table = table.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=tuple(new_grid), align_corners=False, **_OPTIONS[mode])
    return torch.cat([prefix, table.flatten(2).transpose(1, 2)], dim=1)
