from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from segfleet_models.build import ModelConfig, build_segmenter

CONFIG = ModelConfig("test_vit", patch_size=16, decoder="mask", num_classes=5, img_size=64)


def test_configuration_survives_the_trip_to_plain_data() -> None:
    assert ModelConfig.from_dict(CONFIG.to_dict()) == CONFIG


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": "unet"}, "decoder 'unet' is unknown"),
        ({"num_classes": 1}, "num_classes is 1; use at least 2"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"decoder_dropout": -0.1}, "decoder_dropout is -0.1"),
        ({"colour": "red"}, "unknown model settings colour"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(CONFIG.to_dict() | changes)


def test_missing_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"incomplete model settings.*num_classes"):
        ModelConfig.from_dict({"backbone": "test_vit", "patch_size": 16, "decoder": "mask", "img_size": 64})


def test_pretrained_file_fills_the_encoder(tmp_path: Path) -> None:
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    save_file(state, tmp_path / "backbone.safetensors")
    model = build_segmenter(CONFIG, str(tmp_path / "backbone.safetensors"))
    assert torch.equal(model.encoder.vit.blocks[5].mlp.fc2.weight, state["blocks.5.mlp.fc2.weight"])
    assert model.training


def test_pretrained_true_takes_what_timm_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    monkeypatch.setattr("segfleet_models.build.pretrained_state", {"test_vit": state}.__getitem__)
    model = build_segmenter(CONFIG, True)
    assert torch.equal(model.encoder.vit.cls_token, state["cls_token"])


def test_settings_reach_both_halves() -> None:
    config = ModelConfig("test_vit", 8, "mask", 7, 64, 1, drop_path=0.3, decoder_dropout=0.25)
    model = build_segmenter(config)
    assert len(model.decoder.blocks) == 1  # type: ignore[arg-type]
    assert model.decoder.blocks[0].attn.attn_drop.p == 0.25  # type: ignore[index,union-attr]
    assert model.encoder.vit.blocks[-1].drop_path2.drop_prob == pytest.approx(0.3)
    assert (model.output_stride, model.num_classes) == (8, 7)
