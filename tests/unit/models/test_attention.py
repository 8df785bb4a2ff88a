from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segfleet_models.attention import LeanAttention

RATE = 0.3


def by_heads(layer: LeanAttention, x: Tensor) -> Tensor:
    """Plainly, with every head's weights kept."""
    batch, length, channels = x.shape
    parts = layer.qkv(x).view(batch, length, 3, layer.num_heads, -1).permute(2, 3, 0, 1, 4)
    heads = [F.scaled_dot_product_attention(q, k, v, dropout_p=RATE) for q, k, v in zip(*parts, strict=True)]
    found: Tensor = layer.proj(torch.stack(heads, dim=2).reshape(batch, length, channels))
    return found


def test_output_and_gradients_are_those_of_the_plain_way_with_the_same_dropped_weights() -> None:
    torch.manual_seed(0)
    layer = LeanAttention(48, num_heads=3, qkv_bias=True, attn_drop=RATE).double()
    x = torch.randn(2, 9, 48, dtype=torch.float64)
    results = []
    for forward in (layer, lambda x: by_heads(layer, x)):
        layer.zero_grad()
        torch.manual_seed(1)
        output = forward(x)
        output.square().sum().backward()
        results.append([output.detach(), *(parameter.grad.clone() for parameter in layer.parameters())])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_in_evaluation_it_is_timms_and_exact() -> None:
    layer = LeanAttention(32, num_heads=2, attn_drop=RATE)
    x = torch.randn(1, 5, 32)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    weights = (layer.qkv(x).view(1, 5, 3, 2, 16).permute(2, 0, 3, 1, 4)).unbind(0)
    expected = layer.proj(F.scaled_dot_product_attention(*weights).transpose(1, 2).reshape(1, 5, 32))
    torch.testing.assert_close(layer(x), expected)


def test_no_weights_are_kept_for_the_gradient() -> None:
    tokens = 200
    layer = LeanAttention(32, num_heads=2, attn_drop=RATE)
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.randn(1, tokens, 32))
    assert sizes
    assert max(sizes) < tokens * tokens


def test_odd_shapes_are_refused_as_timm_does() -> None:
    with pytest.raises(RuntimeError):
        LeanAttention(32, num_heads=2, attn_drop=RATE)(torch.randn(1, 5, 31))
