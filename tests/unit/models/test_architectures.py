"""The systems Segmenter is compared with, and other plain ViTs as its encoder: one interface for all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from segfleet_models.build import ModelConfig, build_segmenter
from segfleet_models.convolutional import ConvolutionalSegmenter
from segfleet_models.inference import WindowConfig, predict
from segfleet_models.losses import cross_entropy_sum
from segfleet_models.segmenter import Segmenter

K = 5
SMALL_SWIN = "swin_tiny_patch4_window7_224"
ARCHS = {
    "setr-naive": ModelConfig("test_vit", 16, "naive", K, 64, arch="setr"),
    "setr-pup": ModelConfig("test_vit", 16, "pup", K, 64, arch="setr"),
    "setr-mla": ModelConfig("test_vit", 16, "mla", K, 64, arch="setr"),
    "deeplabv3plus": ModelConfig("resnet18", None, None, K, 64, arch="deeplabv3plus"),
    "fcn": ModelConfig("resnet18", None, None, K, 64, arch="fcn"),
    "unet": ModelConfig("resnet18", None, None, K, 64, arch="unet"),
    "upernet": ModelConfig(SMALL_SWIN, None, None, K, 64, arch="upernet"),
    "linear with batch norm": ModelConfig("test_vit", 16, "linear", K, 64, decoder_norm="batch", decoder_dropout=0.1),
}
STRIDES = {"setr-naive": 16, "setr-pup": 2, "setr-mla": 4, "deeplabv3plus": 4, "fcn": 8, "unet": 1, "upernet": 4}
OTHER_VITS = {
    "DINOv3": ("vit_small_patch16_dinov3", 16),
    "EVA-02": ("eva02_tiny_patch14_224", 14),
    "SigLIP": ("vit_base_patch16_siglip_224", 16),
    "DINOv2": ("vit_small_patch14_reg4_dinov2", 14),
}


def _quick(names: Iterable[str]) -> list[str]:
    """Those without the ones that alone take seconds."""
    return [name for name in names if name not in ("upernet", "SigLIP")]


@pytest.mark.parametrize("name", [*_quick(ARCHS), pytest.param("upernet", marks=pytest.mark.integration)])
def test_any_size_gives_logits_of_its_stride_and_every_parameter_learns(name: str) -> None:
    torch.manual_seed(0)
    model = build_segmenter(ARCHS[name])
    stride = STRIDES.get(name, 16)
    assert model.output_stride == stride
    logits = model(torch.randn(2, 3, 67, 81))
    assert logits.shape == (2, K, math.ceil(67 / stride), math.ceil(81 / stride))
    loss, _ = cross_entropy_sum(logits, torch.randint(0, K, (2, 67, 81)), stride, 255)
    loss.backward()
    # DDP would wait for ever for a parameter without a gradient.
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["setr-mla", "deeplabv3plus", "unet"])
def test_a_picture_of_any_size_gets_its_label_map(name: str) -> None:
    model = build_segmenter(ARCHS[name]).eval()
    image = torch.randint(0, 256, (70, 97, 3), dtype=torch.uint8)
    labels = predict(model, image, WindowConfig(window=64, stride=48))
    assert labels.shape == (70, 97)
    square = image[:64, :64]
    with torch.no_grad():
        whole = model.upsample(model(model.normalise(square[None])), (64, 64)).argmax(dim=1)[0]
    assert torch.equal(predict(model, square, WindowConfig(window=64, stride=48)), whole)


@pytest.mark.parametrize("name", ARCHS)
def test_a_configuration_survives_as_plain_data(name: str) -> None:
    assert ModelConfig.from_dict(ARCHS[name].to_dict()) == ARCHS[name]


def test_a_configuration_of_before_there_were_others_is_a_segmenters() -> None:
    old = {"backbone": "test_vit", "patch_size": 16, "decoder": "linear", "num_classes": 3, "img_size": 64}
    assert ModelConfig.from_dict(old).arch == "segmenter"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "pspnet"}, "arch 'pspnet' is unknown; use segmenter, setr"),
        ({"decoder": "mask"}, "decoder 'mask' is unknown to arch 'setr'; use 'naive' or 'pup' or 'mla'"),
        ({"patch_size": None}, "patch_size None does not go with arch 'setr'"),
        ({"arch": "unet", "decoder": None}, "patch_size 16 does not go with arch 'unet'"),
        ({"decoder_norm": "batch"}, "decoder_norm 'batch' must be"),
        (
            {"arch": "unet", "decoder": None, "patch_size": None, "backbone": "resnet1"},
            "'resnet1' is not known to timm",
        ),
        ({"arch": "unet", "decoder": None, "patch_size": None, "backbone": "test_vit"}, "does not go with arch 'unet'"),
        ({"backbone": "resnet18"}, "'resnet18' is not a plain ViT"),
    ],
)
def test_what_does_not_go_together_is_said(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_segmenter(replace(ARCHS["setr-naive"], **changes))  # type: ignore[arg-type]


def test_the_baselines_have_the_librarys_own_parameters() -> None:
    library = smp.Unet("tu-resnet18", encoder_weights=None, classes=K)
    ours = build_segmenter(ARCHS["unet"])
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in library.parameters())
    assert [p.shape for p in ours.parameters()] == [p.shape for p in library.parameters()]


def test_an_unet_equals_the_library_s() -> None:
    ours = build_segmenter(ARCHS["unet"]).eval()
    library = smp.Unet("tu-resnet18", encoder_weights=None, classes=K).eval()
    for mine, theirs in ((ours.encoder, library.encoder), (ours.decoder, library.decoder)):
        theirs.load_state_dict(mine.state_dict())
    library.segmentation_head.load_state_dict(ours.head.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), library(images))


@pytest.mark.parametrize("backbone", ["resnet18", SMALL_SWIN])
def test_timms_classifier_weights_are_taken_over(backbone: str) -> None:
    classifier = timm.create_model(backbone, num_classes=7)
    model = ConvolutionalSegmenter("upernet", backbone, K, img_size=64)
    model.load_backbone(classifier.state_dict())
    own = dict(classifier.named_parameters())
    taken = {key.replace("layers_", "layers."): value for key, value in model.encoder.model.named_parameters()}
    assert taken
    assert all(torch.equal(value, own[key]) for key, value in taken.items())


def test_weights_of_another_network_are_refused_by_name() -> None:
    model = ConvolutionalSegmenter("unet", "resnet18", K, img_size=64)
    state = timm.create_model("resnet18").state_dict()
    state["layer9.conv.weight"] = state.pop("layer1.0.conv1.weight")
    with pytest.raises(ValueError, match=r"1 missing \(layer1.0.conv1.weight\).*1 unexpected \(layer9.conv.weight\)"):
        model.load_backbone(state)


@pytest.mark.parametrize("name", [*_quick(OTHER_VITS), pytest.param("SigLIP", marks=pytest.mark.integration)])
def test_other_plain_vits_are_encoders_at_any_size(name: str) -> None:
    torch.manual_seed(0)
    backbone, patch = OTHER_VITS[name]
    model = build_segmenter(ModelConfig(backbone, patch, "linear", K, 4 * patch, drop_path=0.0))
    for grid in ((4, 4), (3, 6)):
        logits = model(torch.randn(1, 3, grid[0] * patch, grid[1] * patch))
        assert logits.shape == (1, K, *grid)
    logits.square().mean().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.integration
@pytest.mark.parametrize(
    ("backbone", "patch"),
    [("eva02_tiny_patch14_224", 14), ("vit_base_patch16_siglip_224", 16), ("deit3_small_patch16_224", 16)],
)
def test_files_of_classifiers_that_average_or_pool_are_taken_over(backbone: str, patch: int) -> None:
    """Their final norm is called otherwise, or there is a pooling head that an encoder has no use for."""
    published = timm.create_model(backbone).state_dict()
    model = build_segmenter(ModelConfig(backbone, patch, "linear", K, 4 * patch))
    assert isinstance(model, Segmenter)
    model.encoder.load_backbone(published)
    taken = model.encoder.vit.state_dict()
    norm = published.get("norm.weight", published.get("fc_norm.weight"))
    assert norm is not None
    assert torch.equal(taken["norm.weight"], norm)
    key = next(key for key in published if key.startswith("blocks.3.attn."))
    assert torch.equal(taken[key], published[key])


def test_rotary_encoders_equal_timms_own_forward() -> None:
    torch.manual_seed(0)
    model = build_segmenter(ModelConfig("vit_small_patch16_dinov3", 16, "linear", K, 64, drop_path=0.0)).eval()
    assert isinstance(model, Segmenter)
    images = torch.randn(1, 3, 48, 80)
    with torch.no_grad():
        vit = model.encoder.vit
        torch.testing.assert_close(model.encoder(images), vit.forward_features(images)[:, vit.num_prefix_tokens :])


def test_layers_count_from_the_picture_upwards() -> None:
    model = build_segmenter(ARCHS["setr-naive"])
    found = {key: model.layer_of(key) for key, _ in model.named_parameters()}
    assert found["encoder.vit.pos_embed"] == found["encoder.vit.patch_embed.proj.weight"] == 0
    assert found["encoder.vit.blocks.0.norm1.weight"] == 1
    assert found["encoder.vit.blocks.5.norm1.weight"] == 6
    assert found["encoder.vit.norm.weight"] == found["decoder.classify.0.weight"] == 7
    maps = build_segmenter(ARCHS["unet"])
    assert maps.layer_of("encoder.model.conv1.weight") == 0
    assert maps.layer_of("encoder.model.layer4.0.conv1.weight") == 4
    assert maps.layer_of("head.0.weight") == 5


def test_recomputed_activations_give_the_same_gradients_to_the_bit() -> None:
    config = ModelConfig("test_vit", 16, "mask", K, 64, 1, drop_path=0.3, dropout=0.2, decoder_dropout=0.1)
    torch.manual_seed(0)
    model = build_segmenter(config)
    images = torch.randn(2, 3, 64, 64)
    gradients = []
    for enabled in (False, True):
        model.set_checkpoint_activations(enabled)
        model.zero_grad()
        torch.manual_seed(1)
        model(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None and b is not None)


def test_recomputed_activations_are_not_kept() -> None:
    model = build_segmenter(ModelConfig("test_vit", 16, "linear", K, 64, drop_path=0.0))
    kept: dict[bool, int] = {}
    for enabled in (False, True):
        model.set_checkpoint_activations(enabled)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value,misc]
            model(torch.randn(1, 3, 128, 128))
        kept[enabled] = sum(sizes)
    assert kept[True] < kept[False] / 3
    with pytest.raises(ValueError, match="keeps its activations"):
        build_segmenter(ARCHS["unet"]).set_checkpoint_activations(True)


def test_a_linear_decoder_normalises_and_drops_whole_channels() -> None:
    model = build_segmenter(ARCHS["linear with batch norm"])
    assert isinstance(model.decoder.norm, nn.BatchNorm1d)
    assert isinstance(model.decoder.dropout, nn.Dropout1d)
    plain = build_segmenter(replace(ARCHS["linear with batch norm"], decoder_norm="none", decoder_dropout=0.0))
    assert set(plain.decoder.state_dict()) == {"head.weight", "head.bias"}
