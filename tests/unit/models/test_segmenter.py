from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from segfleet_models.build import ModelConfig, build_segmenter
from segfleet_models.segmenter import Segmenter, upsample_logits


def make_model(decoder: str = "mask", patch_size: int = 16, **changes: object) -> Segmenter:
    fields = {"num_classes": 5, "img_size": 64} | changes
    return build_segmenter(ModelConfig("test_vit", patch_size, decoder, **fields)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("decoder", ["linear", "mask"])
@pytest.mark.parametrize("size", [(64, 64), (65, 63), (1, 1), (17, 130)])
def test_takes_pictures_of_any_size(size: tuple[int, int], decoder: str) -> None:
    model = make_model(decoder)
    patch_logits = model(torch.randn(2, 3, *size))
    assert patch_logits.shape == (2, 5, -(-size[0] // 16), -(-size[1] // 16))
    assert model.upsample(patch_logits, size).shape == (2, 5, *size)


def test_pads_right_and_below_with_the_mean_colour() -> None:
    model = make_model()
    images = torch.randn(1, 3, 40, 55)
    assert torch.equal(model(images), model(F.pad(images, (0, 9, 0, 8))))


def test_upsampling_keeps_pixels_where_they_were() -> None:
    """Resizing straight to the picture's size would stretch the scores by the width of the padding."""
    patch_logits = torch.arange(5.0).expand(1, 1, 5, 5)
    pixels = upsample_logits(patch_logits, 16, (70, 70))
    assert pixels.shape == (1, 1, 70, 70)
    # Patch 2 is centred between pixels 39 and 40.
    assert (pixels[0, 0, 0, 39] + pixels[0, 0, 0, 40]) / 2 == pytest.approx(2.0)


@pytest.mark.parametrize("size", [(64, 81), (97, 80), (48, 80)])
def test_upsampling_refuses_patches_of_another_picture(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="do not cover a picture"):
        upsample_logits(torch.zeros(1, 1, 4, 5), 16, size)


def test_normalise_follows_the_backbone() -> None:
    model = make_model()
    images = torch.randint(0, 256, (2, 4, 6, 3), dtype=torch.uint8)
    expected = (images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    torch.testing.assert_close(model.normalise(images), expected)
    assert model.normalise(images).is_contiguous()


def test_normalise_blanks_each_pictures_padding() -> None:
    model = make_model()
    images = torch.full((2, 4, 6, 3), 255, dtype=torch.uint8)
    pixels = model.normalise(images, torch.tensor([[4, 5], [2, 6]]))
    assert (pixels != 0).sum(dim=(1, 2, 3)).tolist() == [3 * 4 * 5, 3 * 2 * 6]
    assert (pixels[0, :, :, :5] == 1).all()
    assert (pixels[1, :, :2] == 1).all()


def test_embeddings_are_named_for_weight_decay() -> None:
    assert make_model().no_weight_decay() == {
        "encoder.vit.pos_embed",
        "encoder.vit.cls_token",
        "decoder.cls_emb",
    }


def test_state_dict_holds_parameters_only() -> None:
    model = make_model()
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


def test_seed_decides_the_start() -> None:
    torch.manual_seed(3)
    first = make_model().state_dict()
    torch.manual_seed(3)
    second = make_model().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


# Counts of the reference's modules, without the ImageNet heads that it drags along.
@pytest.mark.parametrize(
    ("config", "encoder", "decoder"),
    [
        (ModelConfig("vit_tiny_patch16_384", 16, "mask", 150, 512), 5_876_392 - 193_000, 1_029_996),
        (ModelConfig("vit_small_patch16_384", 16, "mask", 150, 512), 22_368_616 - 385_000, 4_050_348),
        (ModelConfig("vit_base_patch16_384", 16, "mask", 150, 512), 87_203_560 - 769_000, 16_063_020),
        (ModelConfig("deit_base_distilled_patch16_384", 16, "mask", 150, 512), 87_974_096 - 1_538_000, 16_063_020),
        (ModelConfig("vit_large_patch16_384", 16, "mask", 150, 640), 305_764_328 - 1_025_000, 28_495_148),
        (ModelConfig("vit_large_patch16_384", 16, "mask", 60, 480), 305_047_528 - 1_025_000, 28_402_808),
        (ModelConfig("vit_large_patch16_384", 16, "mask", 19, 768, 1), 306_485_224 - 1_025_000, 15_764_518),
        (ModelConfig("vit_small_patch16_384", 16, "linear", 150, 512), 22_368_616 - 385_000, 384 * 150 + 150),
    ],
)
def test_sizes_are_those_of_the_paper(config: ModelConfig, encoder: int, decoder: int) -> None:
    with torch.device("meta"):
        model = build_segmenter(config)
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) == encoder
    assert sum(parameter.numel() for parameter in model.decoder.parameters()) == decoder
