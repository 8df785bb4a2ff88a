"""Where a Segmenter looks: the attention weights of its encoder and of its mask decoder.

Fused attention keeps no weights, so they are computed anew from what enters a block: softmax(q k' / sqrt(d)) for the
queries that are asked for only. Shapes: B batch, T tokens, R queries, h w patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfleet_models.decoder import MaskTransformerDecoder
from segfleet_models.encoder import Encoder
from segfleet_models.segmenter import Segmenter


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of one picture, the mean over the heads; each map sums to at most 1, the rest went to other tokens.

    Attributes:
        encoder: Block number to how much each chosen patch attends to every patch, (R, h, w).
        decoder: Block number to how much each chosen class attends to every patch, (R, h, w); empty if the decoder is
            no mask transformer.
    """

    encoder: dict[int, Tensor]
    decoder: dict[int, Tensor]


def attention_maps(
    model: Segmenter,
    images: Tensor,
    *,
    patches: Sequence[tuple[int, int]],
    classes: Sequence[int],
    layers: Sequence[int],
) -> AttentionMaps:
    """Attention maps of one picture, from one forward pass over the whole of it.

    Args:
        model: In evaluation mode, with a plain ViT encoder.
        images: One normalised picture, (1, 3, H, W), of any size.
        patches: Row and column of the patches that ask, in the encoder.
        classes: Indices of the classes that ask, in the mask decoder.
        layers: Encoder blocks, from 0; all decoder blocks are taken.

    Raises:
        ValueError: the model has no ViT encoder, more than one picture, or no such patch, class or block.
    """
    if not isinstance(model.encoder, Encoder):
        raise ValueError(f"a {type(model.encoder).__name__} has no attention between patches to show")
    if model.encoder.is_rotary:
        raise ValueError("attention of encoders with rotary positions is not shown")
    if len(images) != 1:
        raise ValueError(f"attention maps are of one picture, not of {len(images)}")
    height, width = (-(-side // model.encoder.patch_size) for side in images.shape[-2:])
    blocks = list(model.encoder.vit.blocks)
    _check(patches, classes, layers, (height, width), model.num_classes, len(blocks))
    decoder = model.decoder
    decoder_blocks = list(decoder.blocks) if isinstance(decoder, MaskTransformerDecoder) else []
    with torch.no_grad(), _recorded([blocks[i] for i in layers]) as seen, _recorded(decoder_blocks) as seen_below:
        model(images)
        first = model.encoder.num_prefix_tokens
        rows = [first + row * width + column for row, column in patches]
        maps = {
            layer: _maps(blocks[layer], tokens, rows, first, (height, width))
            for layer, tokens in zip(layers, seen, strict=True)
        }
        class_rows = [height * width + i for i in classes]
        below = {
            number: _maps(decoder_blocks[number], tokens, class_rows, 0, (height, width))
            for number, tokens in enumerate(seen_below)
        }
    return AttentionMaps(maps, below)


def attention_weights(block: nn.Module, tokens: Tensor, rows: Sequence[int]) -> Tensor:
    """How much some tokens attend to all tokens in a pre-norm ViT block.

    Args:
        block: A timm ViT block.
        tokens: What enters it, (B, T, C).
        rows: Numbers of the tokens that ask.

    Returns:
        (B, heads, R, T); each row sums to 1.
    """
    attention: Any = block.attn
    normed: Tensor = block.norm1(tokens)  # type: ignore[operator]
    batch, length, _ = normed.shape
    joint = attention.qkv(normed).view(batch, length, 3, attention.num_heads, -1)
    queries, keys, _ = joint.permute(2, 0, 3, 1, 4).unbind(0)
    queries, keys = attention.q_norm(queries[:, :, list(rows)]), attention.k_norm(keys)
    return F.softmax(queries @ keys.transpose(-2, -1) * attention.scale, dim=-1)


def _maps(block: nn.Module, tokens: Tensor, rows: Sequence[int], first: int, grid_size: tuple[int, int]) -> Tensor:
    weights = attention_weights(block, tokens, rows)[0].mean(dim=0)
    height, width = grid_size
    return weights[:, first : first + height * width].reshape(len(rows), height, width)


@contextmanager
def _recorded(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What enters each block, in the order of `blocks`, while the context lasts."""
    entered: list[Tensor] = [torch.empty(0)] * len(blocks)

    def keep(number: int) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            entered[number] = arguments[0]

        return hook

    handles = [block.register_forward_pre_hook(keep(number)) for number, block in enumerate(blocks)]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def _check(
    patches: Sequence[tuple[int, int]],
    classes: Sequence[int],
    layers: Sequence[int],
    grid_size: tuple[int, int],
    num_classes: int,
    num_blocks: int,
) -> None:
    height, width = grid_size
    for row, column in patches:
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"patch {row}, {column} is outside of the picture's {height}x{width} patches")
    for what, chosen, bound in (("class", classes, num_classes), ("block", layers, num_blocks)):
        for number in chosen:
            if not 0 <= number < bound:
                raise ValueError(f"{what} {number} does not exist; there are {bound}, counted from 0")
