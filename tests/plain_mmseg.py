"""MMSegmentation's Segmenter, plainly: random weights under its names, and what it makes of them.

LayerNorm epsilon is 1e-6 in the backbone and 1e-5 in the head, positions are resized bicubically, projections are
linear layers, the picture is padded inside the patch embedding and the logits are stretched straight to its size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from plain_segmenter import State, layer_norm, linear, part


def _layer(x: Tensor, state: State, heads: int, eps: float) -> Tensor:
    batch, tokens, channels = x.shape
    normed = layer_norm(x, part(state, "ln1."), eps)
    joint = normed @ state["attn.attn.in_proj_weight"].T + state["attn.attn.in_proj_bias"]
    q, k, v = (t.view(batch, tokens, heads, -1).transpose(1, 2) for t in joint.split(channels, dim=-1))
    weights = (q / math.sqrt(channels // heads) @ k.transpose(2, 3)).softmax(-1)
    x = x + linear((weights @ v).transpose(1, 2).reshape(x.shape), part(state, "attn.attn.out_proj."))
    hidden = F.gelu(linear(layer_norm(x, part(state, "ln2."), eps), part(state, "ffn.layers.0.0.")))
    return x + linear(hidden, part(state, "ffn.layers.1."))


def _layers(x: Tensor, state: State, prefix: str, heads: int, eps: float) -> Tensor:
    numbers = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    for i in range(len(numbers)):
        x = _layer(x, part(state, f"{prefix}{i}."), heads, eps)
    return x


def segment_mmseg(images: Tensor, state: State, *, patch: int, stored_grid: int, heads: int) -> Tensor:
    """Logits of every pixel of normalised pictures (B, 3, H, W) of any size."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (0, -width % patch, 0, -height % patch))
    projection = part(state, "backbone.patch_embed.projection.")
    x = F.conv2d(padded, projection["weight"], projection["bias"], stride=patch)
    h, w = x.shape[2:]
    x = torch.cat([state["backbone.cls_token"].expand(batch, -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    positions = state["backbone.pos_embed"]
    table = positions[:, 1:].reshape(1, stored_grid, stored_grid, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=(h, w), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    x = _layers(x + torch.cat([positions[:, :1], table], dim=1), state, "backbone.layers.", heads, 1e-6)
    features = layer_norm(x, part(state, "backbone.ln1."), 1e-6)[:, 1:].transpose(1, 2).reshape(batch, -1, h, w)
    if "decode_head.cls_emb" in state:
        logits = _mask_head(features, part(state, "decode_head."))
    else:
        logits = F.conv2d(features, state["decode_head.conv_seg.weight"], state["decode_head.conv_seg.bias"])
    return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)


def _mask_head(features: Tensor, state: State) -> Tensor:
    batch, channels, h, w = features.shape
    x = linear(features.flatten(2).transpose(1, 2), part(state, "dec_proj."))
    x = torch.cat([x, state["cls_emb"].expand(batch, -1, -1)], dim=1)
    x = layer_norm(_layers(x, state, "layers.", channels // 64, 1e-5), part(state, "decoder_norm."))
    patches = F.normalize(x[:, : h * w] @ state["patch_proj.weight"].T, dim=2)
    classes = F.normalize(x[:, h * w :] @ state["classes_proj.weight"].T, dim=2)
    masks = layer_norm(patches @ classes.transpose(1, 2), part(state, "mask_norm."))
    return masks.transpose(1, 2).reshape(batch, -1, h, w)


def random_mmseg_state(*, decoder: str, patch: int, grid: int = 4, classes: int = 150, channels: int = 192) -> State:
    """Random weights of a tiny ViT with twelve layers and a head."""
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.cls_token": (1, 1, channels),
        "backbone.pos_embed": (1, 1 + grid * grid, channels),
        "backbone.patch_embed.projection.weight": (channels, 3, patch, patch),
        "backbone.patch_embed.projection.bias": (channels,),
        "backbone.ln1.weight": (channels,),
        "backbone.ln1.bias": (channels,),
        "decode_head.conv_seg.weight": (classes, channels, 1, 1),
        "decode_head.conv_seg.bias": (classes,),
    }
    layers = [f"backbone.layers.{i}." for i in range(12)]
    if decoder == "mask":
        layers += [f"decode_head.layers.{i}." for i in range(2)]
        # The classifier that the head inherits stays in the early checkpoints.
        shapes |= {
            "decode_head.cls_emb": (1, classes, channels),
            "decode_head.dec_proj.weight": (channels, channels),
            "decode_head.dec_proj.bias": (channels,),
            "decode_head.patch_proj.weight": (channels, channels),
            "decode_head.classes_proj.weight": (channels, channels),
        }
        for name, width in (("decoder_norm", channels), ("mask_norm", classes)):
            shapes |= {f"decode_head.{name}.weight": (width,), f"decode_head.{name}.bias": (width,)}
    for layer in layers:
        for name, outputs, inputs in (
            ("attn.attn.out_proj.", channels, channels),
            ("ffn.layers.0.0.", 4 * channels, channels),
            ("ffn.layers.1.", channels, 4 * channels),
        ):
            shapes |= {f"{layer}{name}weight": (outputs, inputs), f"{layer}{name}bias": (outputs,)}
        shapes |= {
            f"{layer}attn.attn.in_proj_weight": (3 * channels, channels),
            f"{layer}attn.attn.in_proj_bias": (3 * channels,),
        }
        for name in ("ln1", "ln2"):
            shapes |= {f"{layer}{name}.weight": (channels,), f"{layer}{name}.bias": (channels,)}
    generator = torch.Generator().manual_seed(3)
    state = {key: torch.randn(shape, generator=generator) * 0.05 for key, shape in shapes.items()}
    norms = [key for key in state if key.endswith("weight") and ("ln" in key or "norm" in key)]
    return state | {key: 1 + state[key] for key in norms}
