"""SETR's decoders on a plain ViT (Zheng et al., CVPR 2021), in MMSegmentation's measures.

Left out are the auxiliary heads on lower blocks, which serve training alone. A decoder ends in a 1x1 convolution, which
commutes with the bilinear enlargement after it: so logits are returned before the last enlargement, and the loss and
the sliding window go on from there as for all models.

Shapes: B batch, N = h * w patch tokens, C channels, K classes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfleet_models.decoder import to_grid

# Channels of the convolutions, as in MMSegmentation's configurations.
_WIDTH = 256
_MLA_HEAD_WIDTH = 128
_PUP_STAGES = 4
_MLA_LEVELS = 4
_MLA_SCALE = 4


class NaiveDecoder(nn.Module):
    """Two 1x1 convolutions on the patches.

    Args:
        embed_dim: C of the encoder.
        num_classes: K.
        dropout: Of whole channels before the last layer, in [0, 1).
    """

    scale, layers = 1, ()

    def __init__(self, embed_dim: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.norm = nn.LayerNorm(embed_dim)
        self.conv = _convolution(embed_dim, _WIDTH, kernel=1)
        self.classify = _classifier(_WIDTH, num_classes, dropout)

    def forward(self, tokens: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Patch tokens (B, N, C) to logits (B, K, h, w)."""
        logits: Tensor = self.classify(self.conv(to_grid(self.norm(tokens), grid_size)))
        return logits


class ProgressiveDecoder(nn.Module):
    """PUP: four times a 3x3 convolution and twice the size; the last enlargement is left to `upsample`.

    Args:
        embed_dim: C of the encoder.
        num_classes: K.
        dropout: Of whole channels before the last layer, in [0, 1).
    """

    scale, layers = 2 ** (_PUP_STAGES - 1), ()

    def __init__(self, embed_dim: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.norm = nn.LayerNorm(embed_dim)
        widths = [embed_dim, *[_WIDTH] * _PUP_STAGES]
        self.convs = nn.ModuleList(_convolution(before, after, kernel=3) for before, after in pairwise(widths))
        self.classify = _classifier(_WIDTH, num_classes, dropout)

    def forward(self, tokens: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Patch tokens (B, N, C) to logits (B, K, 8 h, 8 w)."""
        features = to_grid(self.norm(tokens), grid_size)
        for number, conv in enumerate(self.convs):
            features = conv(features if number == 0 else _enlarge(features, 2))
        logits: Tensor = self.classify(features)
        return logits


class MultiLevelDecoder(nn.Module):
    """MLA: four levels of the encoder, added up from the top, each enlarged four times, side by side.

    The lower three are taken from evenly spaced blocks; the top one is the encoder's normed output.

    Args:
        embed_dim: C of the encoder.
        num_classes: K.
        depth: Blocks of the encoder, at least 4.
        dropout: Of whole channels before the last layer, in [0, 1).

    Raises:
        ValueError: the encoder has fewer than four blocks.
    """

    scale = _MLA_SCALE

    def __init__(self, embed_dim: int, num_classes: int, depth: int, dropout: float = 0.0) -> None:
        super().__init__()
        if depth < _MLA_LEVELS:
            raise ValueError(f"an encoder of {depth} blocks has no {_MLA_LEVELS} levels; use decoder naive or pup")
        self.num_classes = num_classes
        self.layers = tuple(depth * level // _MLA_LEVELS for level in range(1, _MLA_LEVELS))
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dim) for _ in range(_MLA_LEVELS))
        self.inner = nn.ModuleList(_convolution(embed_dim, _WIDTH, kernel=1) for _ in range(_MLA_LEVELS))
        self.outer = nn.ModuleList(_convolution(_WIDTH, _WIDTH, kernel=3) for _ in range(_MLA_LEVELS))
        self.heads = nn.ModuleList(
            nn.Sequential(
                _convolution(_WIDTH, _MLA_HEAD_WIDTH, kernel=3),
                _convolution(_MLA_HEAD_WIDTH, _MLA_HEAD_WIDTH, kernel=3),
            )
            for _ in range(_MLA_LEVELS)
        )
        self.classify = _classifier(_MLA_LEVELS * _MLA_HEAD_WIDTH, num_classes, dropout)

    def forward(self, levels: list[Tensor], grid_size: tuple[int, int]) -> Tensor:
        """Four levels of patch tokens (B, N, C), the top one last, to logits (B, K, 4 h, 4 w)."""
        total: Tensor | None = None
        maps = []
        for tokens, norm, inner, outer, head in reversed(
            list(zip(levels, self.norms, self.inner, self.outer, self.heads, strict=True))
        ):
            features = inner(to_grid(norm(tokens), grid_size))
            total = features if total is None else total + features
            maps.append(_enlarge(head(outer(total)), _MLA_SCALE))
        logits: Tensor = self.classify(torch.cat(maps, dim=1))
        return logits


SetrDecoder = Literal["naive", "pup", "mla"]


def build_setr_decoder(kind: SetrDecoder, embed_dim: int, num_classes: int, depth: int, dropout: float) -> nn.Module:
    """The decoder of this name.

    Raises:
        ValueError: the encoder is not deep enough for it.
    """
    if kind == "mla":
        return MultiLevelDecoder(embed_dim, num_classes, depth, dropout)
    return (NaiveDecoder if kind == "naive" else ProgressiveDecoder)(embed_dim, num_classes, dropout)


def _convolution(before: int, after: int, *, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


def _classifier(channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Dropout2d(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Conv2d(channels, num_classes, 1))


def _enlarge(features: Tensor, factor: int) -> Tensor:
    return F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)
