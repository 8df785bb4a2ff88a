"""Both Segmenters against an independent plain implementation, written from the paper's and the reference's formulae.

It works on the state dict alone: explicit attention, no timm, LayerNorm eps 1e-5 throughout.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segfleet_models.decoder import LinearDecoder, MaskTransformerDecoder
from segfleet_models.encoder import Encoder
from segfleet_models.segmenter import Segmenter

State = dict[str, Tensor]
HEADS = {"test_vit": 2, "deit_tiny_distilled_patch16_224": 3}


def part(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def layer_norm(x: Tensor, state: State) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * state["weight"] + state["bias"]


def linear(x: Tensor, state: State) -> Tensor:
    return x @ state["weight"].T + state["bias"]


def block(x: Tensor, state: State, heads: int) -> Tensor:
    batch, tokens, channels = x.shape
    normed = layer_norm(x, part(state, "norm1."))
    q, k, v = linear(normed, part(state, "attn.qkv.")).chunk(3, dim=-1)
    q, k, v = (t.view(batch, tokens, heads, channels // heads).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(2, 3) / math.sqrt(channels // heads)).softmax(-1)
    x = x + linear((weights @ v).transpose(1, 2).reshape(batch, tokens, channels), part(state, "attn.proj."))
    hidden = F.gelu(linear(layer_norm(x, part(state, "norm2.")), part(state, "mlp.fc1.")))
    return x + linear(hidden, part(state, "mlp.fc2."))


def encode(images: Tensor, state: State, patch: int, stored_grid: int, heads: int) -> Tensor:
    batch, _, height, width = images.shape
    h, w = height // patch, width // patch
    pixels = images.view(batch, 3, h, patch, w, patch).permute(0, 2, 4, 1, 3, 5).reshape(batch, h * w, -1)
    x = pixels @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    prefix = [state[name].expand(batch, 1, -1) for name in ("cls_token", "dist_token") if name in state]
    extra = len(prefix)
    table = state["pos_embed"][:, extra:].view(1, stored_grid, stored_grid, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=(h, w), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    x = torch.cat([*prefix, x], dim=1) + torch.cat([state["pos_embed"][:, :extra], table], dim=1)
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    for i in range(depth):
        x = block(x, part(state, f"blocks.{i}."), heads)
    return layer_norm(x, part(state, "norm."))[:, extra:]


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


def randomised(model: Segmenter) -> Segmenter:
    """Every parameter away from its start, so that a norm's weight of 1 or a bias of 0 hides nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model.eval()


def make_segmenter(backbone: str, patch: int, decoder: str, num_classes: int) -> Segmenter:
    torch.manual_seed(0)
    encoder = Encoder(backbone, patch_size=patch, img_size=64, drop_path_rate=0.1, layer_norm_eps=1e-5)
    if decoder == "linear":
        return randomised(Segmenter(encoder, LinearDecoder(encoder.embed_dim, num_classes)))
    return randomised(Segmenter(encoder, MaskTransformerDecoder(encoder.embed_dim, num_classes, num_layers=2)))


@pytest.mark.parametrize("decoder", ["linear", "mask"])
@pytest.mark.parametrize(
    ("backbone", "patch", "size"),
    [
        ("test_vit", 16, (64, 64)),  # the stored grid
        ("test_vit", 8, (64, 64)),
        ("test_vit", 16, (32, 128)),  # as many tokens as the stored grid, other shape
        ("test_vit", 16, (50, 71)),  # padded to 64 x 80
        ("deit_tiny_distilled_patch16_224", 16, (64, 48)),  # a second prefix token
    ],
)
def test_forward_equals_the_plain_implementation(
    backbone: str, patch: int, size: tuple[int, int], decoder: str
) -> None:
    # In double precision: the norm over five classes may blow single precision's last bits up beyond any tolerance.
    model = make_segmenter(backbone, patch, decoder, num_classes=5).double()
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    height, width = size

    with torch.no_grad():
        ours = model.upsample(model(images), size)

        state = model.state_dict()
        padded = F.pad(images, (0, -width % patch, 0, -height % patch))
        grid = (padded.shape[2] // patch, padded.shape[3] // patch)
        tokens = encode(padded, part(state, "encoder.vit."), patch, 64 // patch, HEADS[backbone])
        if decoder == "linear":
            logits = linear(tokens, part(state, "decoder.head."))
        else:
            logits = decode_masks(tokens, part(state, "decoder."), 2, max(1, tokens.shape[2] // 64))
        logits = logits.transpose(1, 2).reshape(2, 5, *grid)
        plain = F.interpolate(logits, size=padded.shape[2:], mode="bilinear", align_corners=False)

    torch.testing.assert_close(ours, plain[:, :, :height, :width], rtol=1e-5, atol=1e-5)
