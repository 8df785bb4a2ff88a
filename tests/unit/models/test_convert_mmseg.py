from __future__ import annotations

import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plain_mmseg import random_mmseg_state, segment_mmseg
from plain_segmenter import State
from segfleet_models.build import build_segmenter
from segfleet_models.convert import Imported
from segfleet_models.convert_mmseg import from_mmseg, load_mmseg
from segfleet_models.inference import WindowConfig, predict_probabilities
from segfleet_models.mmseg_config import parse_config
from segfleet_models.segmenter import Segmenter

OLD = """
backbone_norm_cfg = dict(type='LN', eps=1e-06, requires_grad=True)
img_norm_cfg = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True)
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='VisionTransformer', img_size=(64, 64), num_heads=3, drop_path_rate=0.2,
                  norm_cfg=dict(type='LN', eps=1e-06, requires_grad=True), interpolate_mode='bicubic'),
    decode_head=dict(type='SegmenterMaskTransformerHead', num_heads=3, drop_path_rate=0.05, align_corners=False),
    test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(48, 48)))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', img_scale=(256, 80), flip=False)]
"""
NEW = (
    OLD.replace("img_norm_cfg = dict(mean", "data_preprocessor = dict(mean")
    .replace("to_rgb=True", "bgr_to_rgb=True")
    .replace("dict(type='MultiScaleFlipAug', img_scale=(256, 80), flip=False)", "dict(type='Resize', scale=(256, 80))")
)
NAMES = [f"class {i}" for i in range(150)]
PALETTE = [[i, 2, 3] for i in range(150)]
OLD_META = {"CLASSES": NAMES, "PALETTE": PALETTE, "config": OLD, "mmseg_version": "0.21.1"}
NEW_META = {"dataset_meta": {"classes": tuple(NAMES), "palette": PALETTE}, "cfg": NEW, "iter": 160000}


def built(imported: Imported) -> Segmenter:
    model = build_segmenter(imported.config)
    model.load_state_dict(imported.state)
    return model.eval()


def stretched(model: Segmenter, images: Tensor) -> Tensor:
    """As MMSegmentation goes from patches to pixels, and our `mmseg` protocol."""
    return torch.nn.functional.interpolate(model(images), size=images.shape[2:], mode="bilinear", align_corners=False)


@pytest.mark.parametrize("decoder", ["mask", "linear"])
@pytest.mark.parametrize(
    ("patch", "size", "meta"),
    [(8, (32, 32), OLD_META), (16, (50, 71), NEW_META), (32, (100, 60), OLD_META)],
)
def test_logits_equal_the_plain_implementation(
    tmp_path: Path, decoder: str, patch: int, size: tuple[int, int], meta: dict[str, Any]
) -> None:
    state = random_mmseg_state(decoder=decoder, patch=patch)
    torch.save({"state_dict": state, "meta": meta, "optimizer": {}}, tmp_path / "iter_160000.pth")
    imported = load_mmseg(tmp_path / "iter_160000.pth")
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    model = built(imported)
    with torch.no_grad():
        plain = segment_mmseg(pixels, state, patch=patch, stored_grid=4, heads=3)
        torch.testing.assert_close(stretched(model, pixels), plain, rtol=1e-5, atol=1e-5)
    leftover = ("decode_head.conv_seg.bias", "decode_head.conv_seg.weight")
    assert imported.left_out == (leftover if decoder == "mask" else ())


def test_a_picture_is_labelled_as_by_the_plain_implementation() -> None:
    """Smaller than the window and no multiple of the patch: neither enlarged nor cut, but stretched."""
    state = random_mmseg_state(decoder="linear", patch=16)
    imported = from_mmseg(state, OLD_META)
    picture = torch.randint(0, 256, (50, 39, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    pixels = (picture.permute(2, 0, 1)[None].float() - 127.5) / 127.5
    config = WindowConfig(imported.window, imported.stride, protocol=imported.protocol)
    with torch.no_grad():
        plain = segment_mmseg(pixels, state, patch=16, stored_grid=4, heads=3).softmax(1)[0].permute(1, 2, 0)
    torch.testing.assert_close(predict_probabilities(built(imported), picture, config), plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("meta", [OLD_META, NEW_META], ids=["0.x", "1.x"])
def test_takes_over_what_the_checkpoint_says(meta: dict[str, Any]) -> None:
    imported = from_mmseg(random_mmseg_state(decoder="mask", patch=16), meta)
    assert (imported.window, imported.stride, imported.short_side, imported.protocol) == (64, 48, 80, "mmseg")
    assert (imported.class_names, imported.assumed) == (tuple(NAMES), {})
    assert imported.palette is not None
    assert imported.palette[7] == (7, 2, 3)
    config = imported.config
    assert (config.backbone, config.patch_size, config.img_size) == ("vit_tiny_patch16_384", 16, 64)
    assert (config.layer_norm_eps, config.position_mode, config.few_classes_norm) == (1e-6, "bicubic", "layer")
    assert (config.mean, config.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (config.drop_path, config.decoder_drop_path, config.decoder_dropout) == (0.2, 0.05, 0.0)


def test_without_a_configuration_the_published_one_is_assumed_and_said() -> None:
    imported = from_mmseg(random_mmseg_state(decoder="mask", patch=32, grid=16), {})
    assert (imported.window, imported.stride, imported.short_side) == (512, 480, 512)
    assert (imported.class_names, imported.palette) == (None, None)
    assert imported.assumed.keys() == {"pixels", "epsilon", "window", "short_side"}
    assert (imported.config.layer_norm_eps, imported.config.mean) == (1e-6, (0.5, 0.5, 0.5))


def test_a_norm_without_an_epsilon_has_pytorch_s() -> None:
    text = "model = dict(backbone=dict(norm_cfg=dict(type='LN')))"
    assert from_mmseg(random_mmseg_state(decoder="linear", patch=16), {"cfg": text}).config.layer_norm_eps == 1e-5


def test_every_unknown_missing_and_misshapen_key_is_listed() -> None:
    state = random_mmseg_state(decoder="mask", patch=16)
    for key in ("backbone.layers.7.ffn.layers.0.0.bias", "decode_head.mask_norm.bias"):
        del state[key]
    state |= {"backbone.layers.3.ln3.bias": torch.zeros(192), "neck.weight": torch.zeros(1)}
    state["decode_head.patch_proj.weight"] = torch.zeros(192)
    with pytest.raises(ValueError, match="the checkpoint is not the model") as caught:
        from_mmseg(state, {})
    message = str(caught.value)
    assert "2 missing: " in message
    assert "backbone.layers.7.ffn.layers.0.0.bias" in message
    assert "decode_head.mask_norm.bias" in message
    assert "2 unknown: backbone.layers.3.ln3.bias, neck.weight" in message
    assert "decode_head.patch_proj.weight gives (192,) instead of (192, 192)" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("to_rgb=True", "to_rgb=False"), "BGR"),
        (("crop_size=(64, 64)", "crop_size=(64, 32)"), "only squares"),
        (("crop_size=(64, 64)", "crop_size='all'"), "a size of 'all'"),
        (("'bicubic'", "'bilinear'"), "interpolate_mode is 'bilinear'"),
        (("'EncoderDecoder'", "'CascadeEncoderDecoder'"), "type is 'CascadeEncoderDecoder'"),
        (("num_heads=3, drop_path_rate=0.05", "num_heads=6"), "decode_head.num_heads is 6"),
        (("num_heads=3, drop_path_rate=0.2", "num_heads=[]"), r"num_heads is \[\]; a number"),
        (("num_heads=3, drop_path_rate=0.2", "num_heads=6"), "no ViT has 192 channels, 12 layers and 6 heads"),
        (("align_corners=False", "align_corners=True"), "align_corners is True"),
        (("eps=1e-06, requires_grad=True), i", "eps='x'), i"), "eps is 'x'"),
        (("mean=[127.5, 127.5, 127.5]", "mean=[127.5]"), "use three numbers"),
        (("mean=[127.5, 127.5, 127.5]", f"mean=[127.5, 1{'0' * 400}, 127.5]"), "beyond any number"),
        (("model =", "model (="), "cannot be read"),
    ],
)
def test_a_configuration_of_another_model_is_refused(change: tuple[str, str], message: str) -> None:
    text = OLD.replace(*change)
    assert text != OLD
    with pytest.raises(ValueError, match=message):
        from_mmseg(random_mmseg_state(decoder="mask", patch=16, classes=5), {"config": text})


def test_a_configuration_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (
        "import os\nos.mkdir('sprung')\na = dict(b=[1, (2, 'c')])\nd = os.mkdir('sprung')\ne = dict(f=open('x', 'w'))"
    )
    assert parse_config(text) == {"a": {"b": [1, [2, "c"]]}}
    assert list(tmp_path.iterdir()) == []
    for wrong in ("a = (", "a" * (1 << 21), "\0", "[" * 5000 + "]" * 5000):
        with pytest.raises(ValueError, match="inside the checkpoint"):
            parse_config(wrong)


def history_buffer(monkeypatch: pytest.MonkeyPatch) -> type:
    """mmengine's class of that name, as a module of its own so that pickle finds it."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = np.arange(3.0)
            self._last = np.float64(2.0)
            self._statistics_methods: dict[str, Callable[..., Any]] = {"min": type(self).min}

        def min(self) -> float:
            return float(self._log_history.min())

    HistoryBuffer.__module__ = "mmengine.logging.history_buffer"
    HistoryBuffer.__qualname__ = "HistoryBuffer"
    HistoryBuffer.min.__qualname__ = "HistoryBuffer.min"
    HistoryBuffer.min.__module__ = "mmengine.logging.history_buffer"
    module: Any = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return HistoryBuffer


def test_what_a_1x_run_leaves_in_its_checkpoint_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_mmseg_state(decoder="linear", patch=16)
    hub = {"log_scalars": {"train/loss": history_buffer(monkeypatch)()}, "runtime_info": {"iter": 160000}}
    torch.save({"state_dict": state, "meta": NEW_META, "message_hub": hub}, tmp_path / "iter.pth")
    monkeypatch.undo()
    assert load_mmseg(tmp_path / "iter.pth").config.num_classes == 150


class Trap:
    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


@pytest.mark.parametrize(
    "trap", [Trap(os.mkdir, "sprung"), Trap(eval, "__import__('os').mkdir('sprung')")], ids=["os", "eval"]
)
def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: Trap) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": random_mmseg_state(decoder="linear", patch=16), "meta": {"x": trap}}, "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth: cannot be read as weights"):
        load_mmseg(tmp_path / "evil.pth")
    assert not (tmp_path / "sprung").exists()


def test_getattr_in_a_checkpoint_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is let through for mmengine's sake, and stands for an empty object."""
    monkeypatch.chdir(tmp_path)
    state: State = random_mmseg_state(decoder="linear", patch=16)
    torch.save({"state_dict": state, "meta": {"x": Trap(getattr, "text", "upper")}}, "odd.pth")
    assert load_mmseg("odd.pth").config.decoder == "linear"
    torch.save({"state_dict": state | {"x": Trap(getattr, "text", "upper")}}, "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth: holds no table of tensors"):
        load_mmseg("odd.pth")


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"state_dict": {"a": torch.zeros(1)}}, [1]])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"^\S*other\.pth: (holds no table of tensors|.*no Segmenter)"):
        load_mmseg(tmp_path / "other.pth")
    (tmp_path / "text.pth").write_bytes(pickle.dumps("text", protocol=2))
    with pytest.raises(ValueError, match=r"text\.pth: "):
        load_mmseg(tmp_path / "text.pth")
