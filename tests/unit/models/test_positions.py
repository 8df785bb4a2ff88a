"""Position embeddings on another grid, and other code's backbones at another size: each as its code resizes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from segfleet_models.build import ModelConfig, build_segmenter
from segfleet_models.encoder import Encoder
from segfleet_models.positions import PositionMode, resize_positions, source_mode

TORCH: dict[PositionMode, dict[str, Any]] = {
    "bilinear": {"mode": "bilinear", "antialias": False},
    "bicubic": {"mode": "bicubic", "antialias": False},
    "bicubic_antialias": {"mode": "bicubic", "antialias": True},
}


def resized(table: Tensor, old: tuple[int, int], new: tuple[int, int], mode: PositionMode) -> Tensor:
    """A table without prefix, (1, N, C), by PyTorch alone."""
    grid = table.reshape(*old, -1).permute(2, 0, 1)[None]
    return F.interpolate(grid, size=new, **TORCH[mode]).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("mode", TORCH)
@pytest.mark.parametrize("new", [(3, 3), (7, 11), (24, 6), (5, 6)])
def test_equal_to_pytorch_and_to_timm(mode: PositionMode, new: tuple[int, int], prefix: int) -> None:
    table = torch.randn(1, prefix + 36, 8, generator=torch.Generator().manual_seed(prefix))
    ours = resize_positions(table, (6, 6), new, prefix, mode)
    assert ours.shape == (1, prefix + new[0] * new[1], 8)
    assert torch.equal(ours[:, :prefix], table[:, :prefix])
    torch.testing.assert_close(ours[:, prefix:], resized(table[:, prefix:], (6, 6), new, mode), rtol=1e-6, atol=1e-6)
    options = {"interpolation": TORCH[mode]["mode"], "antialias": TORCH[mode]["antialias"]}
    timms = resample_abs_pos_embed(table, list(new), [6, 6], prefix, **options)
    torch.testing.assert_close(ours, timms, rtol=1e-6, atol=1e-6)


def test_the_modes_differ() -> None:
    table = torch.randn(1, 37, 8, generator=torch.Generator().manual_seed(0))
    tables = [resize_positions(table, (6, 6), (3, 3), 1, mode) for mode in TORCH]
    assert all(float((a - b).abs().max()) > 0.01 for i, a in enumerate(tables) for b in tables[:i])


@pytest.mark.parametrize(
    ("backbone", "mode"),
    [
        ("vit_small_patch16_384", "bilinear"),
        ("vit_small_patch16_384.augreg_in21k_ft_in1k", "bilinear"),
        ("vit_base_patch8_224.augreg_in21k", "bilinear"),
        ("vit_large_patch32_384.orig_in21k_ft_in1k", "bilinear"),
        ("deit_tiny_patch16_224.fb_in1k", "bilinear"),
        ("deit_base_distilled_patch16_384", "bilinear"),
        ("vit_small_patch14_dinov2.lvd142m", "bicubic_antialias"),
        ("vit_small_patch14_reg4_dinov2", "bicubic_antialias"),
        ("vit_base_patch16_224.dino", "bicubic_antialias"),
        ("vit_base_patch16_224.mae", "bicubic_antialias"),
        ("vit_base_patch16_clip_224.openai", "bicubic_antialias"),
        ("vit_base_patch16_siglip_224", "bicubic_antialias"),
        ("deit3_small_patch16_224", "bicubic_antialias"),
    ],
)
def test_the_mode_is_that_of_the_code_the_weights_come_with(backbone: str, mode: PositionMode) -> None:
    assert source_mode(backbone) == mode


def stored(path: Path, backbone: str, img_size: int) -> Tensor:
    """The table that a model for `img_size` begins with, given a file of weights."""
    model: Any = build_segmenter(ModelConfig(backbone, 16, "linear", 5, img_size), pretrained=str(path))
    table: Tensor = model.encoder.vit.pos_embed.detach()
    return table


def weights_of(backbone: str, img_size: int) -> dict[str, Tensor]:
    """Random weights of a backbone with a classifier, as its code publishes them."""
    state: dict[str, Tensor] = Encoder(backbone, patch_size=16, img_size=img_size).vit.state_dict()
    return {**state, "head.weight": torch.zeros(10, 4), "head.bias": torch.zeros(10)}


def test_a_deit_file_keeps_both_tokens_and_is_resized_bilinearly(tmp_path: Path) -> None:
    backbone = "deit_tiny_distilled_patch16_224"
    state = weights_of(backbone, 224) | {"head_dist.weight": torch.zeros(10, 4), "head_dist.bias": torch.zeros(10)}
    torch.save({"model": state}, tmp_path / "deit.pth")
    table = stored(tmp_path / "deit.pth", backbone, 96)
    assert torch.equal(table[:, :2], state["pos_embed"][:, :2])
    torch.testing.assert_close(table[:, 2:], resized(state["pos_embed"][:, 2:], (14, 14), (6, 6), "bilinear"))


@pytest.mark.parametrize(
    ("backbone", "prefix", "mode"),
    [("test_vit", 1, "bilinear"), ("vit_wee_patch16_reg1_gap_256", 0, "bicubic_antialias")],
)
def test_a_file_from_timm_s_hub_is_resized_as_by_its_code(
    tmp_path: Path, backbone: str, prefix: int, mode: PositionMode
) -> None:
    state = weights_of(backbone, 160)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    table = stored(tmp_path / "model.safetensors", backbone, 96)
    torch.testing.assert_close(table[:, prefix:], resized(state["pos_embed"][:, prefix:], (10, 10), (6, 6), mode))
    assert torch.equal(table[:, :prefix], state["pos_embed"][:, :prefix])
