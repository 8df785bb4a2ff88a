"""Attention maps: the weights that fused attention uses and does not tell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plain_segmenter import layer_norm, linear, part
from segfleet_models.attention_maps import attention_maps, attention_weights
from segfleet_models.build import ModelConfig, build_segmenter
from segfleet_models.segmenter import Segmenter


def make_model(decoder: str = "mask", num_classes: int = 5) -> Segmenter:
    torch.manual_seed(3)
    config = ModelConfig(
        "vit_tiny_patch16_224",
        16,
        decoder,
        num_classes,
        img_size=48,
        decoder_layers=2,  # type: ignore[arg-type]
    )
    model = build_segmenter(config).eval()
    # Random weights attend to everything alike; larger ones do not.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "qkv.weight" in name:
                parameter.mul_(8)
    return model


def explicit(tokens: Tensor, state: dict[str, Tensor], heads: int, eps: float) -> Tensor:
    """(B, heads, T, T), written out."""
    batch, length, channels = tokens.shape
    normed = layer_norm(tokens, part(state, "norm1."), eps)
    q, k, _ = linear(normed, part(state, "attn.qkv.")).chunk(3, dim=-1)
    q, k = (t.view(batch, length, heads, channels // heads).transpose(1, 2) for t in (q, k))
    scores = q @ k.transpose(2, 3) / (channels // heads) ** 0.5
    weights = (scores - scores.max(-1, keepdim=True).values).exp()
    return weights / weights.sum(-1, keepdim=True)


def test_rows_sum_to_one_and_equal_attention_written_out() -> None:
    block = make_model().encoder.vit.blocks[0]
    tokens = torch.randn(2, 10, 192)
    with torch.no_grad():
        weights = attention_weights(block, tokens, [0, 7, 3])
    assert weights.shape == (2, 3, 3, 10)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 3), atol=1e-6)
    expected = explicit(tokens, dict(block.state_dict()), 3, 1e-6)[:, :, [0, 7, 3]]
    assert torch.allclose(weights, expected, atol=1e-6)
    assert weights.std() > 0.01


def test_the_weights_are_those_that_the_block_uses() -> None:
    block = make_model().encoder.vit.blocks[1]
    tokens = torch.randn(1, 6, 192)
    with torch.no_grad():
        weights = attention_weights(block, tokens, range(6))
        values = block.attn.qkv(block.norm1(tokens)).view(1, 6, 3, 3, 64)[:, :, 2].transpose(1, 2)
        mixed = block.attn.proj((weights @ values).transpose(1, 2).reshape(1, 6, 192))
        assert torch.allclose(mixed, block.attn(block.norm1(tokens)), atol=1e-5)


def test_maps_are_the_mean_over_heads_of_the_asked_patches_blocks_and_classes() -> None:
    model, images = make_model(), torch.randn(1, 3, 40, 60)  # padded to 3 x 4 patches
    entered: dict[str, Tensor] = {}
    watched = {"encoder": model.encoder.vit.blocks[7], "decoder": model.decoder.blocks[1]}
    handles = [
        block.register_forward_pre_hook(lambda _, inputs, name=name: entered.__setitem__(name, inputs[0]))
        for name, block in watched.items()
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    maps = attention_maps(model, images, patches=[(0, 1), (2, 3)], classes=[4, 0], layers=[7])
    assert set(maps.encoder) == {7}
    assert set(maps.decoder) == {0, 1}
    full = explicit(entered["encoder"], dict(watched["encoder"].state_dict()), 3, 1e-6)[0].mean(0)
    assert torch.allclose(maps.encoder[7].flatten(1), full[[1 + 1, 1 + 11], 1:], atol=1e-6)
    below = explicit(entered["decoder"], dict(watched["decoder"].state_dict()), 3, 1e-5)[0].mean(0)
    assert torch.allclose(maps.decoder[1].flatten(1), below[[12 + 4, 12 + 0], :12], atol=1e-6)
    assert maps.decoder[1].shape == (2, 3, 4)
    assert not any(block._forward_pre_hooks for block in (*model.encoder.vit.blocks, *model.decoder.blocks))


def test_a_linear_decoder_attends_to_nothing() -> None:
    maps = attention_maps(make_model("linear"), torch.randn(1, 3, 32, 32), patches=[(0, 0)], classes=[1], layers=[0])
    assert maps.decoder == {}
    assert maps.encoder[0].shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patches": [(2, 0)]}, "patch 2, 0 is outside of the picture's 2x2 patches"),
        ({"classes": [5]}, "class 5 does not exist; there are 5"),
        ({"layers": [12]}, "block 12 does not exist; there are 12"),
    ],
)
def test_what_is_not_there_is_refused(change: dict[str, object], message: str) -> None:
    asked = {"patches": [(0, 0)], "classes": [0], "layers": [0], **change}
    with pytest.raises(ValueError, match=message):
        attention_maps(make_model(), torch.zeros(1, 3, 32, 32), **asked)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of one picture, not of 2"):
        attention_maps(make_model(), torch.zeros(2, 3, 32, 32), patches=[], classes=[], layers=[])
