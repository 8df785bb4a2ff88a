"""The real DINOv2 ViT-S/14, where its weights are at hand; they are not part of this repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from segfleet_models.build import ModelConfig, build_segmenter

NAME = "vit_small_patch14_dinov2.fp16.safetensors"
FOLDER = Path(os.environ.get("SEGFLEET_TEST_WEIGHTS", Path(__file__).parents[4] / "shared" / "weights"))

pytestmark = pytest.mark.skipif(
    not (FOLDER / NAME).is_file(), reason=f"{NAME} is not there; set SEGFLEET_TEST_WEIGHTS to its folder"
)


def test_tokens_at_a_training_crop_are_timms() -> None:
    config = ModelConfig("vit_small_patch14_dinov2", 14, "linear", 5, img_size=112)
    encoder = build_segmenter(config, str(FOLDER / NAME)).encoder.eval()
    state = {key: value.float() for key, value in load_file(FOLDER / NAME).items()}
    assert state["pos_embed"].shape[1] == 1 + 37 * 37
    peer = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=112).eval()
    peer.load_state_dict(state | {"pos_embed": encoder.vit.pos_embed})
    images = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), peer.forward_features(images)[:, 1:])
