"""A plain Segmenter, written from the paper's and the reference's formulae.

It works on a state dict alone: explicit attention, no timm.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def part(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def layer_norm(x: Tensor, state: State, eps: float = 1e-5) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * state["weight"] + state["bias"]


def linear(x: Tensor, state: State) -> Tensor:
    return x @ state["weight"].T + state["bias"]


def block(x: Tensor, state: State, heads: int, eps: float = 1e-5) -> Tensor:
    batch, tokens, channels = x.shape
    normed = layer_norm(x, part(state, "norm1."), eps)
    q, k, v = linear(normed, part(state, "attn.qkv.")).chunk(3, dim=-1)
    q, k, v = (t.view(batch, tokens, heads, channels // heads).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(2, 3) / math.sqrt(channels // heads)).softmax(-1)
    x = x + linear((weights @ v).transpose(1, 2).reshape(batch, tokens, channels), part(state, "attn.proj."))
    hidden = F.gelu(linear(layer_norm(x, part(state, "norm2."), eps), part(state, "mlp.fc1.")))
    return x + linear(hidden, part(state, "mlp.fc2."))


def encode(
    images: Tensor,
    state: State,
    patch: int,
    stored_grid: int,
    heads: int,
    eps: float = 1e-5,
    mode: str = "bilinear",
) -> Tensor:
    batch, _, height, width = images.shape
    h, w = height // patch, width // patch
    pixels = images.view(batch, 3, h, patch, w, patch).permute(0, 2, 4, 1, 3, 5).reshape(batch, h * w, -1)
    x = pixels @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    prefix = [state[name].expand(batch, 1, -1) for name in ("cls_token", "dist_token") if name in state]
    extra = len(prefix)
    table = state["pos_embed"][:, extra:].view(1, stored_grid, stored_grid, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=(h, w), mode=mode, align_corners=False).flatten(2).transpose(1, 2)
    x = torch.cat([*prefix, x], dim=1) + torch.cat([state["pos_embed"][:, :extra], table], dim=1)
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    for i in range(depth):
        x = block(x, part(state, f"blocks.{i}."), heads, eps)
    return layer_norm(x, part(state, "norm."), eps)[:, extra:]


def decode_masks(tokens: Tensor, state: State, layers: int, heads: int) -> Tensor:
    patches = tokens.shape[1]
    x = torch.cat([linear(tokens, part(state, "proj_dec.")), state["cls_emb"].expand(len(tokens), -1, -1)], dim=1)
    for i in range(layers):
        x = block(x, part(state, f"blocks.{i}."), heads)
    x = layer_norm(x, part(state, "decoder_norm."))
    p = x[:, :patches] @ state["proj_patch"]
    c = x[:, patches:] @ state["proj_classes"]
    p, c = p / p.norm(dim=-1, keepdim=True), c / c.norm(dim=-1, keepdim=True)
    return layer_norm(torch.einsum("bnd,bkd->bnk", p, c), part(state, "mask_norm."))
