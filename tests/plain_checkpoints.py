"""Checkpoints of the reference code with random weights, and what the plain implementation makes of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from plain_segmenter import State, decode_masks, encode, linear, part


def segment(images: Tensor, state: State, *, patch: int, stored_grid: int, heads: int) -> Tensor:
    """Patch logits of a whole model under the reference's names; pictures are padded right and below with 0."""
    padded = F.pad(images, (0, -images.shape[3] % patch, 0, -images.shape[2] % patch))
    tokens = encode(padded, part(state, "encoder."), patch, stored_grid, heads)
    if "decoder.head.weight" in state:
        logits = linear(tokens, part(state, "decoder.head."))
    else:
        layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("decoder.blocks."))
        logits = decode_masks(tokens, part(state, "decoder."), layers, max(1, tokens.shape[2] // 64))
    return logits.transpose(1, 2).reshape(len(images), -1, padded.shape[2] // patch, padded.shape[3] // patch)


def enlarge(logits: Tensor, patch: int, size: tuple[int, int]) -> Tensor:
    """Patch logits to the padded picture, cut to the picture."""
    padded = (logits.shape[2] * patch, logits.shape[3] * patch)
    return F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)[:, :, : size[0], : size[1]]


def random_state(
    *,
    decoder: str,
    patch: int,
    grid: int = 4,
    channels: int = 192,
    layers: int = 12,
    classes: int = 5,
    distilled: bool = False,
    seed: int = 3,
) -> State:
    """Random weights of every part, under the reference's names and with its unused ImageNet heads."""
    prefix = 1 + distilled
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.cls_token": (1, 1, channels),
        "encoder.pos_embed": (1, prefix + grid * grid, channels),
        "encoder.patch_embed.proj.weight": (channels, 3, patch, patch),
        "encoder.patch_embed.proj.bias": (channels,),
        "encoder.norm.weight": (channels,),
        "encoder.norm.bias": (channels,),
        "encoder.head.weight": (10, channels),
        "encoder.head.bias": (10,),
    }
    if distilled:
        shapes |= {"encoder.dist_token": (1, 1, channels)}
        shapes |= {"encoder.head_dist.weight": (10, channels), "encoder.head_dist.bias": (10,)}
    for i in range(layers):
        shapes |= _block_shapes(f"encoder.blocks.{i}.", channels)
    if decoder == "linear":
        shapes |= {"decoder.head.weight": (classes, channels), "decoder.head.bias": (classes,)}
    else:
        shapes |= _mask_shapes(channels, classes)
    generator = torch.Generator().manual_seed(seed)
    state = {key: torch.randn(shape, generator=generator) * 0.05 for key, shape in shapes.items()}
    norms = [key for key in state if key.endswith("weight") and "norm" in key]
    return state | {key: 1 + state[key] for key in norms}


def _mask_shapes(channels: int, classes: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "decoder.cls_emb": (1, classes, channels),
        "decoder.proj_dec.weight": (channels, channels),
        "decoder.proj_dec.bias": (channels,),
        "decoder.proj_patch": (channels, channels),
        "decoder.proj_classes": (channels, channels),
    }
    for name, width in (("decoder_norm", channels), ("mask_norm", classes)):
        shapes |= {f"decoder.{name}.weight": (width,), f"decoder.{name}.bias": (width,)}
    for i in range(2):
        shapes |= _block_shapes(f"decoder.blocks.{i}.", channels)
    return shapes


def _block_shapes(prefix: str, channels: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, outputs, inputs in (
        ("attn.qkv", 3 * channels, channels),
        ("attn.proj", channels, channels),
        ("mlp.fc1", 4 * channels, channels),
        ("mlp.fc2", channels, 4 * channels),
    ):
        shapes |= {f"{prefix}{name}.weight": (outputs, inputs), f"{prefix}{name}.bias": (outputs,)}
    for name in ("norm1", "norm2"):
        shapes |= {f"{prefix}{name}.weight": (channels,), f"{prefix}{name}.bias": (channels,)}
    return shapes
