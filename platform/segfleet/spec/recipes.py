"""Defaults of each kind and recipe, and the table of model variants.

Sources: Segmenter (Strudel et al. 2021) and its reference code's config.yml for ade20k, pascal_context and cityscapes;
strides are those of the reference's evaluation script (crop - 32). camvid is our own: the paper has no CamVid figures.
"""

from __future__ import annotations

import re
from typing import Any

Defaults = dict[str, Any]

_COMMON: Defaults = {
    "model": {"variant": "seg-s-mask/16"},
    "optim": {},
    "loss": {},
    "augment": {},
    "train": {},
    "eval": {},
    "resources": {},
    "queue": {},
}

RECIPES: dict[str, Defaults] = {
    "none": {
        "train": {"steps": 10_000, "crop": 512},
        "eval": {"window": 512, "stride": 480},
    },
    "ade20k": {
        "optim": {"lr": 1e-3},
        "augment": {"short_side": 512, "max_ratio": 4.0},
        "train": {"steps": 160_000, "last_batch": "short", "global_batch": 8, "crop": 512, "validate_every": 8_000},
        "eval": {"short_side": 512, "window": 512, "stride": 480},
    },
    "pascal_context": {
        "optim": {"lr": 1e-3},
        "augment": {"short_side": 520, "max_ratio": 8.0},
        "train": {"steps": 80_000, "last_batch": "short", "global_batch": 16, "crop": 480, "validate_every": 4_000},
        "eval": {"short_side": 520, "window": 480, "stride": 448},
    },
    "cityscapes": {
        "model": {"decoder_layers": 1},
        "optim": {"lr": 1e-2},
        "augment": {"short_side": 1024, "max_ratio": 2.0},
        "train": {"steps": 80_000, "last_batch": "short", "global_batch": 8, "crop": 768, "validate_every": 4_000},
        "eval": {"short_side": 1024, "window": 768, "stride": 736},
    },
    "camvid": {
        "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01, "encoder_lr_scale": 0.05, "min_lr": 0.0},
        "train": {"steps": 4_000, "global_batch": 8, "crop": 336, "validate_every": 500},
        "eval": {"window": 336, "stride": 240},
    },
}

KIND_DEFAULTS: dict[str, Defaults] = {
    "train": _COMMON,
    "search": {"search": {}, "queue": {}},
    "evaluate": {"resources": {}, "queue": {}},
    "prepare": {"queue": {}},
}
# Dropout of a decoder that is not told otherwise: the reference code's, and for the baselines MMSegmentation's.
DECODER_DROPOUT = {"mask": 0.1, "linear": 0.0, "naive": 0.0, "pup": 0.0, "mla": 0.0}
BASELINE_DROPOUT = 0.1

_BACKBONES = {"ti": "tiny", "s": "small", "b": "base", "l": "large"}
# Patch sizes that have pretrained weights of their own; any other starts from the /16 weights, resampled by timm.
_OWN_WEIGHTS = {
    ("s", 32): "vit_small_patch32_384",
    ("b", 32): "vit_base_patch32_384",
    ("b", 8): "vit_base_patch8_224.augreg_in21k_ft_in1k",  # timm's default tag is another training
    ("s", 14): "vit_small_patch14_dinov2",
    ("b", 14): "vit_base_patch14_dinov2",
    ("l", 14): "vit_large_patch14_dinov2",
}
_VARIANT = re.compile(r"seg-(?:(?P<size>ti|s|b|l)|(?P<deit>b-deit))(?P<mask>-mask)?/(?P<patch>8|14|16|32)")
_SETR = re.compile(r"setr-(?P<size>ti|s|b|l)-(?P<decoder>naive|pup|mla)/(?P<patch>16)")
# The systems the paper is compared with: system, then encoder.
_BASELINES = {
    **{
        f"{arch}-{short}": {"arch": arch, "backbone": backbone}
        for arch in ("deeplabv3plus", "fcn", "unet")
        for short, backbone in {"r18": "resnet18", "r50": "resnet50", "r101": "resnet101"}.items()
    },
    "deeplabv3plus-s101": {"arch": "deeplabv3plus", "backbone": "resnest101e"},
    "deeplabv3plus-s200": {"arch": "deeplabv3plus", "backbone": "resnest200e"},
    "upernet-swin-t": {"arch": "upernet", "backbone": "swin_tiny_patch4_window7_224"},
    "upernet-swin-s": {"arch": "upernet", "backbone": "swin_small_patch4_window7_224"},
    "upernet-swin-b": {"arch": "upernet", "backbone": "swin_base_patch4_window12_384"},
    "upernet-swin-l": {"arch": "upernet", "backbone": "swin_large_patch4_window12_384"},
}
VARIANT_HELP = (
    "write seg-{ti,s,b,l}[-mask]/{8,14,16,32}, seg-b-deit[-mask]/16, setr-{ti,s,b,l}-{naive,pup,mla}/16, "
    "{deeplabv3plus,fcn,unet}-{r18,r50,r101}, deeplabv3plus-{s101,s200} or upernet-swin-{t,s,b,l}"
)


def variant_fields(variant: str) -> Defaults:
    """The model fields a variant stands for.

    Raises:
        ValueError: no such variant.
    """
    if variant in _BASELINES:
        return dict(_BASELINES[variant])
    if setr := _SETR.fullmatch(variant):
        backbone = f"vit_{_BACKBONES[setr['size']]}_patch16_384"
        return {"arch": "setr", "backbone": backbone, "patch_size": 16, "decoder": setr["decoder"]}
    match = _VARIANT.fullmatch(variant)
    if match is None or (match["deit"] and match["patch"] != "16") or (match["size"], match["patch"]) == ("ti", "14"):
        raise ValueError(f"{variant!r} is not a variant; {VARIANT_HELP}")
    patch = int(match["patch"])
    if match["deit"]:
        backbone = "deit_base_distilled_patch16_384"
    else:
        backbone = _OWN_WEIGHTS.get((match["size"], patch), f"vit_{_BACKBONES[match['size']]}_patch16_384")
    return {"backbone": backbone, "patch_size": patch, "decoder": "mask" if match["mask"] else "linear"}
