from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from segfleet_models.encoder import Encoder, pretrained_state
from segfleet_models.positions import resize_positions


def make_encoder(backbone: str = "test_vit", *, patch_size: int = 16, img_size: int = 64, **options: float) -> Encoder:
    return Encoder(backbone, patch_size=patch_size, img_size=img_size, **options)


@pytest.mark.parametrize(
    ("backbone", "num_prefix"),
    [("test_vit", 1), ("test_vit2", 1), ("test_vit3", 1), ("deit_tiny_distilled_patch16_224", 2)],
)
def test_equals_timm_at_the_stored_size(backbone: str, num_prefix: int) -> None:
    encoder = make_encoder(backbone).eval()
    images = torch.randn(1, 3, 64, 64)
    peer = timm.create_model(backbone, num_classes=0, img_size=64).eval()
    state = peer.state_dict() | encoder.vit.state_dict()  # a pooled peer norms and pools outside our encoder
    peer.load_state_dict({key: value for key, value in state.items() if key in peer.state_dict()})
    peer.norm = encoder.vit.norm
    with torch.no_grad():
        expected = peer.forward_features(images)[:, num_prefix:]
        assert torch.equal(encoder(images), expected)
    assert encoder.num_prefix_tokens == num_prefix


@pytest.mark.parametrize("backbone", ["test_vit", "test_vit2", "test_vit3", "deit_tiny_distilled_patch16_224"])
def test_every_parameter_gets_a_gradient(backbone: str) -> None:
    encoder = make_encoder(backbone)
    encoder(torch.randn(1, 3, 48, 64)).square().sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (32, 128), (112, 48)])
def test_takes_any_number_of_whole_patches(size: tuple[int, int]) -> None:
    tokens = make_encoder()(torch.randn(2, 3, *size))
    assert tokens.shape == (2, size[0] * size[1] // 256, 64)


def test_refuses_a_part_of_a_patch() -> None:
    with pytest.raises(ValueError, match="64x70 pixels is no multiple of the patch size 16"):
        make_encoder()(torch.randn(1, 3, 64, 70))


def test_stores_the_positions_of_the_padded_crop() -> None:
    assert make_encoder(patch_size=14, img_size=64).vit.pos_embed.shape == (1, 1 + 5 * 5, 64)


def test_states_the_pixel_statistics_of_the_weights() -> None:
    assert make_encoder("vit_tiny_patch16_384").mean == (0.5, 0.5, 0.5)
    deit = make_encoder("deit_tiny_distilled_patch16_224")
    assert (deit.mean, deit.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_drop_path_rises_linearly_from_zero() -> None:
    blocks = make_encoder(drop_path_rate=0.1).vit.blocks
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.02, 0.04, 0.06, 0.08, 0.1])
    assert not hasattr(blocks[0].drop_path1, "drop_prob")


@pytest.mark.parametrize(("dropout", "num_active"), [(0.0, 0), (0.1, 1 + 6 * 4)])
def test_dropout_sits_in_every_place_or_nowhere(dropout: float, num_active: int) -> None:
    encoder = make_encoder(dropout=dropout)
    dropouts = {name: child for name, child in encoder.named_modules() if isinstance(child, nn.Dropout)}
    assert sum(child.p == dropout > 0 for name, child in dropouts.items() if "head_drop" not in name) == num_active
    if dropout == 0:
        assert {name.rsplit(".")[-1] for name in dropouts} == {"attn_drop"}  # read for its rate, never called


def test_layer_norm_eps_is_the_backbones_unless_given() -> None:
    def all_eps(encoder: Encoder) -> set[float]:
        return {child.eps for child in encoder.modules() if isinstance(child, nn.LayerNorm)}

    assert all_eps(make_encoder()) == {1e-6}
    assert all_eps(make_encoder(layer_norm_eps=1e-5)) == {1e-5}


@pytest.mark.parametrize("backbone", ["vit_smal_patch16_384", "resnet50", "swin_tiny_patch4_window7_224", ""])
def test_refuses_what_is_no_plain_vit(backbone: str) -> None:
    with pytest.raises(ValueError, match="is not a plain ViT known to timm"):
        make_encoder(backbone)


def test_names_the_backbone_that_was_probably_meant() -> None:
    with pytest.raises(ValueError, match="vit_small_patch16_384"):
        make_encoder("vit_smal_patch16_384")


def test_pretrained_weights_that_do_not_exist_are_named() -> None:
    with pytest.raises(ValueError, match=r"no weights for backbone 'test_vit\.nobody'"):
        pretrained_state("test_vit.nobody")


def test_load_casts_and_drops_what_a_classifier_adds() -> None:
    source = timm.create_model("test_vit", num_classes=10, img_size=64).half()
    state = source.state_dict() | {"mask_token": torch.zeros(1, 64), "fc_norm.weight": torch.ones(64)}
    encoder = make_encoder()
    encoder.load_backbone(state)
    loaded = encoder.vit.state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in loaded.values())
    assert all(torch.equal(tensor, state[key].float()) for key, tensor in loaded.items())


def test_load_resizes_positions_and_keeps_the_prefix() -> None:
    state = timm.create_model("test_vit", num_classes=0).half().state_dict()  # 10 x 10 positions
    encoder = make_encoder()
    encoder.load_backbone(state)
    state = {key: tensor.float() for key, tensor in state.items()}  # a half's 3 digits must not be halved again
    table = state["pos_embed"][:, 1:].view(1, 10, 10, 64).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(table, size=(4, 4), mode="bilinear").permute(0, 2, 3, 1).reshape(1, 16, 64)
    torch.testing.assert_close(encoder.vit.pos_embed[:, 1:], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(encoder.vit.pos_embed[:, :1], state["pos_embed"][:, :1])


def test_a_resampled_patch_embedding_answers_alike_on_enlarged_pictures() -> None:
    state = timm.create_model("test_vit", num_classes=0, patch_size=8, img_size=32).state_dict()
    small, large = make_encoder(patch_size=8, img_size=32).eval(), make_encoder(patch_size=16, img_size=64).eval()
    small.load_backbone(state)
    large.load_backbone(state)
    images = nn.functional.interpolate(torch.randn(1, 3, 4, 4), size=(32, 32), mode="bilinear")
    enlarged = nn.functional.interpolate(images, size=(64, 64), mode="bicubic", antialias=True)
    with torch.no_grad():
        small_patches, large_patches = small.vit.patch_embed.proj(images), large.vit.patch_embed.proj(enlarged)
    assert torch.corrcoef(torch.stack([small_patches.flatten(), large_patches.flatten()]))[0, 1] > 0.99


def test_load_lists_all_that_does_not_fit() -> None:
    state = timm.create_model("test_vit", num_classes=0, img_size=64).state_dict()
    del state["norm.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["norm.bias"] = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"1 missing \(norm.weight\); 1 unexpected \(extra.weight\); 1 of another shape"
    ) as e:
        make_encoder().load_backbone(state)
    assert "norm.bias is (3,) instead of (64,)" in str(e.value)


def test_load_refuses_positions_that_are_no_square() -> None:
    state = timm.create_model("test_vit", num_classes=0, img_size=64).state_dict()
    state["pos_embed"] = torch.zeros(1, 1 + 15, 64)
    with pytest.raises(ValueError, match="16 positions"):
        make_encoder().load_backbone(state)


def test_equal_grids_share_the_table() -> None:
    table = torch.randn(1, 17, 8)
    assert resize_positions(table, (4, 4), (4, 4), 1) is table
    # As many positions, but another shape: not the same table.
    assert not torch.equal(resize_positions(table, (4, 4), (2, 8), 1), table)
