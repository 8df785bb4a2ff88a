"""Segmenter and its training step written out plainly, as the reference code goes: the benchmark's other side.

Attention with its matrix kept, Dropout modules of rate 0, scores of all pixels and classes at full size. Parameter
names are those of `segfleet_models`, so that both can be given the same weights. Shares no code with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Softmax attention in heads of 64, its matrix materialised."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.scale = dim // 64, 64**-0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to the same."""
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        weights = self.attn_drop((q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1))
        out: Tensor = self.proj_drop(self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, dim)))
        return out


class Mlp(nn.Module):
    """Two layers with GELU between."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2, self.drop = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to the same."""
        out: Tensor = self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))
        return out


class Block(nn.Module):
    """Pre-norm, with stochastic depth."""

    def __init__(self, dim: int, dropout: float, drop_path: float, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attn, self.mlp, self.drop_path = Attention(dim, dropout), Mlp(dim, dropout), drop_path

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to the same."""
        x = x + self._dropped(self.attn(self.norm1(x)))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return x
        keep = 1 - self.drop_path
        return x / keep * (keep + torch.rand(len(x), 1, 1)).floor()


class PlainSegmenter(nn.Module):
    """A ViT with class token and mask transformer; scores of all pixels.

    Args:
        dim: C.
        num_classes: K.
        size: Side of the picture, pixels.
        patch: Side of a patch, pixels.
        depth: Blocks of the encoder.
        decoder_layers: Blocks of the mask transformer.
        dropout: Of the mask transformer.
        drop_path: Of the encoder's last block.
        eps: Of the encoder's norms.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        size: int,
        patch: int = 16,
        depth: int = 12,
        decoder_layers: int = 2,
        dropout: float = 0.1,
        drop_path: float = 0.1,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        side = size // patch
        rates = torch.linspace(0, drop_path, depth).tolist()
        vit, proj = nn.Module(), nn.Module()
        proj.proj = nn.Conv2d(3, dim, patch, stride=patch)
        vit.patch_embed = proj
        vit.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        vit.pos_embed = nn.Parameter(torch.zeros(1, side * side + 1, dim))
        vit.pos_drop = nn.Dropout(0.0)
        vit.blocks = nn.Sequential(*(Block(dim, 0.0, rate, eps) for rate in rates))
        vit.norm = nn.LayerNorm(dim, eps=eps)
        decoder = nn.Module()
        decoder.proj_dec = nn.Linear(dim, dim)
        decoder.cls_emb = nn.Parameter(torch.zeros(1, num_classes, dim))
        decoder.blocks = nn.Sequential(*(Block(dim, dropout, 0.0, 1e-5) for _ in range(decoder_layers)))
        decoder.decoder_norm = nn.LayerNorm(dim)
        decoder.proj_patch = nn.Parameter(torch.zeros(dim, dim))
        decoder.proj_classes = nn.Parameter(torch.zeros(dim, dim))
        decoder.mask_norm = nn.LayerNorm(num_classes)
        self.encoder = nn.Module()
        self.encoder.vit, self.decoder = vit, decoder

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) to scores (B, K, H, W)."""
        vit, decoder = self.encoder.vit, self.decoder
        x = vit.patch_embed.proj(pixels)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        x = vit.pos_drop(torch.cat([vit.cls_token.expand(len(x), -1, -1), x], dim=1) + vit.pos_embed)
        tokens = vit.norm(vit.blocks(x))[:, 1:]
        joint = torch.cat([decoder.proj_dec(tokens), decoder.cls_emb.expand(len(x), -1, -1)], dim=1)
        joint = decoder.decoder_norm(decoder.blocks(joint))
        patches = joint[:, : height * width] @ decoder.proj_patch
        classes = joint[:, height * width :] @ decoder.proj_classes
        patches = patches / patches.norm(dim=-1, keepdim=True)
        classes = classes / classes.norm(dim=-1, keepdim=True)
        masks = decoder.mask_norm(patches @ classes.transpose(1, 2))
        masks = masks.reshape(len(x), height, width, -1).permute(0, 3, 1, 2)
        return F.interpolate(masks, size=pixels.shape[2:], mode="bilinear")


def plain_step(model: PlainSegmenter, optimizer: torch.optim.Optimizer, pixels: Tensor, masks: Tensor) -> float:
    """One training step; the loss."""
    loss = F.cross_entropy(model(pixels), masks, ignore_index=255)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.item()
