"""MMSegmentation's Segmenter checkpoints, 0.x and 1.x: the names are the same, the data beside the weights differ.

0.x keeps CLASSES, PALETTE and the configuration's text in `meta`; 1.x calls them dataset_meta and cfg.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from segfleet_models.build import ModelConfig
from segfleet_models.convert import (
    Imported,
    Source,
    backbone_name,
    stored_grid,
    take_over,
    without_wrappers,
)
from segfleet_models.mmseg_config import (
    check_computed,
    encoder_epsilon,
    encoder_heads,
    normalisation,
    parse_config,
    rate,
    short_side,
    sliding_window,
)
from segfleet_models.weights import read_torch

_OURS_TO_THEIRS = (
    (r"encoder\.vit\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
    (r"encoder\.vit\.blocks\.", "backbone.layers."),
    (r"encoder\.vit\.norm\.", "backbone.ln1."),
    (r"encoder\.vit\.", "backbone."),
    (r"decoder\.blocks\.", "decode_head.layers."),
    (r"decoder\.proj_dec\.", "decode_head.dec_proj."),
    (r"decoder\.head\.", "decode_head.conv_seg."),
    (r"decoder\.proj_(patch|classes)$", r"decode_head.\1_proj.weight"),
    (r"decoder\.", "decode_head."),
)
_IN_BLOCKS = (
    (r"\.norm([12])\.", r".ln\1."),
    (r"\.attn\.qkv\.", ".attn.attn.in_proj_"),
    (r"\.attn\.proj\.", ".attn.attn.out_proj."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
)
# The early mask head did not delete the classifier it inherits; an auxiliary head serves training alone.
_UNUSED = re.compile(r"decode_head\.conv_seg\.(weight|bias)|auxiliary_head\..*")
_HEAD_CHANNELS = 64
_LAYER = re.compile(r"(backbone|decode_head)\.layers\.(\d+)\..*")
# Objects of a training run that 1.x leaves in its checkpoints: histories of its losses.
_OF_THE_RUN = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "builtins.getattr",
    "__builtin__.getattr",
)


def load_mmseg(path: str | Path) -> Imported:
    """Import a checkpoint of MMSegmentation.

    Args:
        path: The .pth file.

    Raises:
        ValueError: it cannot be read safely, or is no Segmenter.
    """
    path = Path(path)
    try:
        document = read_torch(path, dropped=_OF_THE_RUN)
        state = document.get("state_dict", document) if isinstance(document, Mapping) else None
        if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
            raise ValueError("holds no table of tensors")
        meta = document.get("meta")
        return from_mmseg(state, meta if isinstance(meta, Mapping) else {})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def from_mmseg(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Imported:
    """Our configuration and weights for a state dict and what lies beside it.

    Patch, depth, width, classes and the stored grid come from the shapes; heads have 64 channels. What the
    configuration's text says beside that is taken over; where there is no text, what the published configurations say
    is assumed, and named in the result.

    Args:
        state: `backbone.*` and `decode_head.*`, perhaps behind `module.`.
        meta: The checkpoint's; may be empty.

    Raises:
        ValueError: a key is missing, unknown or of another shape (all are listed), or the configuration is of another
            model.
    """
    state = without_wrappers(state)
    text = meta.get("cfg") or meta.get("config")
    settings = parse_config(text) if isinstance(text, str) else {}
    config = _config(state, settings)
    weights, left_out = take_over(config, state, _source, _UNUSED)
    # 480 for 512 and 608 for 640 in the published configurations, whose pictures have a short side of the window.
    usual = config.img_size, max(config.img_size - 32, config.img_size // 2)
    window, stride = sliding_window(settings) or usual
    data = meta.get("dataset_meta")
    data = data if isinstance(data, Mapping) else {}
    return Imported(
        config,
        weights,
        window=window,
        stride=stride,
        short_side=short_side(settings) or config.img_size,
        protocol="mmseg",
        class_names=_names(data.get("classes") or meta.get("CLASSES")),
        palette=_colours(data.get("palette") or meta.get("PALETTE")),
        left_out=left_out,
        assumed=_assumed(settings, config, usual),
    )


def _assumed(settings: Mapping[str, Any], config: ModelConfig, usual: tuple[int, int]) -> dict[str, str]:
    assumed = {} if "model" in settings else {"pixels": "RGB, (x - 127.5) / 127.5", "epsilon": "1e-6 in the encoder"}
    if sliding_window(settings) is None:
        assumed["window"] = f"windows of {usual[0]} pixels, stride {usual[1]}"
    if short_side(settings) is None:
        assumed["short_side"] = f"short side of {config.img_size} pixels"
    return assumed


def _config(state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> ModelConfig:
    kernel = state.get("backbone.patch_embed.projection.weight")
    is_mask = "decode_head.cls_emb" in state
    classes = state.get("decode_head.cls_emb" if is_mask else "decode_head.conv_seg.weight")
    if kernel is None or kernel.ndim != 4 or classes is None or classes.ndim < 3:
        raise ValueError(
            "no backbone.patch_embed.projection.weight, or neither decode_head.cls_emb nor decode_head.conv_seg.weight:"
            " this is no Segmenter of MMSegmentation"
        )
    channels, patch_size = int(kernel.shape[0]), int(kernel.shape[2])
    check_computed(settings, channels // _HEAD_CHANNELS if is_mask else None)
    heads = encoder_heads(settings) or channels // _HEAD_CHANNELS
    mean, std = normalisation(settings)
    return ModelConfig(
        backbone=backbone_name(channels, _layers(state, "backbone"), heads, distilled=False),
        patch_size=patch_size,
        decoder="mask" if is_mask else "linear",
        num_classes=int(classes.shape[1] if is_mask else classes.shape[0]),
        img_size=stored_grid(state, "backbone.pos_embed", 1) * patch_size,
        decoder_layers=max(1, _layers(state, "decode_head")) if is_mask else ModelConfig.decoder_layers,
        drop_path=rate(settings, "backbone", "drop_path_rate", ModelConfig.drop_path),
        dropout=rate(settings, "backbone", "drop_rate", 0.0),
        decoder_drop_path=rate(settings, "decode_head", "drop_path_rate", 0.1),
        decoder_dropout=rate(settings, "decode_head", "drop_rate", 0.0),
        layer_norm_eps=encoder_epsilon(settings),
        position_mode="bicubic",
        mean=mean,
        std=std,
        few_classes_norm="layer",
    )


def _layers(state: Mapping[str, Tensor], part: str) -> int:
    return len({match[2] for key in state if (match := _LAYER.fullmatch(key)) and match[1] == part})


def _names(names: Any) -> tuple[str, ...] | None:
    return tuple(str(name) for name in names) if isinstance(names, list | tuple) else None


def _colours(palette: Any) -> tuple[tuple[int, int, int], ...] | None:
    if not isinstance(palette, list | tuple):
        return None
    try:
        return tuple((int(red), int(green), int(blue)) for red, green, blue in palette)
    except (TypeError, ValueError) as error:
        raise ValueError("the palette inside the checkpoint is no list of three numbers a class") from error


def _source(key: str) -> Source:
    theirs = key
    for pattern, name in _OURS_TO_THEIRS:
        theirs, count = re.subn(f"^{pattern}", name, theirs)
        if count:
            break
    if ".layers." in theirs:
        for pattern, name in _IN_BLOCKS:
            theirs = re.sub(pattern, name, theirs, count=1)
    if key in ("decoder.proj_patch", "decoder.proj_classes"):
        return Source(theirs, lambda weight: weight.mT if weight.ndim == 2 else weight)
    if key == "decoder.head.weight":
        return Source(theirs, lambda kernel: kernel.flatten(1))
    return Source(theirs)
