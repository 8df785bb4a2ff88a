"""Checkpoints of the reference code (Strudel et al. 2021, github.com/rstrudel/segmenter) with their variant.yml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import Tensor

from segfleet_models.build import ModelConfig
from segfleet_models.convert import (
    HALF,
    Channels,
    Imported,
    Source,
    backbone_name,
    stored_grid,
    take_over,
    without_wrappers,
)
from segfleet_models.weights import read_tensors

# The reference rounds ImageNet's statistics to two decimals of 0..255.
_NORMALISATIONS: dict[str, tuple[Channels, Channels]] = {
    "vit": (HALF, HALF),
    "deit": ((123.68 / 255, 116.28 / 255, 103.53 / 255), (58.4 / 255, 57.12 / 255, 57.38 / 255)),
}
_DECODERS: dict[str, Literal["mask", "linear"]] = {"mask_transformer": "mask", "linear": "linear"}
# The ImageNet heads, which the reference never removes.
_UNUSED = re.compile(r"encoder\.(head|head_dist)\.(weight|bias)")
_MAX_YAML_BYTES = 1 << 20


class _VariantLoader(yaml.SafeLoader):
    """YAML's plain types, and a Python tuple as a list: yaml.dump wrote the picture size as one."""


def _sequence(loader: yaml.SafeLoader, node: yaml.Node) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise yaml.constructor.ConstructorError(None, None, "a tuple that is no sequence", node.start_mark)
    return list(loader.construct_sequence(node, deep=True))


_VariantLoader.add_constructor("tag:yaml.org,2002:python/tuple", _sequence)


def read_variant(text: str) -> dict[str, Any]:
    """Parse a variant.yml; of Python's tags only the tuple is taken, as a plain list.

    Raises:
        ValueError: no YAML, another tag, or no mapping.
    """
    try:
        document = yaml.load(text, Loader=_VariantLoader)  # noqa: S506 - derived from SafeLoader
    # The others are what PyYAML lets through for a value that its own tag does not fit, such as `!!int ""`.
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"cannot be read as a variant: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ValueError("cannot be read as a variant: no mapping at the top")
    return document


def load_reference(path: str | Path) -> Imported:
    """Import a checkpoint of the reference code.

    Args:
        path: checkpoint.pth, or the folder that holds it; variant.yml must lie beside.

    Raises:
        ValueError: a file is missing, cannot be read safely, or does not fit the other.
    """
    path = Path(path)
    if path.is_dir():
        path /= "checkpoint.pth"
    variant_path = path.with_name("variant.yml")
    try:
        if variant_path.stat().st_size > _MAX_YAML_BYTES:
            raise ValueError("larger than a variant ever is")
        variant = read_variant(variant_path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{variant_path}: {error.strerror}; it must lie beside the checkpoint") from error
    except ValueError as error:
        raise ValueError(f"{variant_path}: {error}") from error
    try:
        return from_reference(read_tensors(path), variant)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def from_reference(state: Mapping[str, Tensor], variant: Mapping[str, Any]) -> Imported:
    """Our configuration and weights for a state dict and its variant.

    Args:
        state: `encoder.*` and `decoder.*`, perhaps behind `module.` or `model.`.
        variant: The contents of variant.yml.

    Raises:
        ValueError: the variant lacks a value or has an impossible one, or a key is missing, unknown or of another
            shape; then all of them are listed.
    """
    state = without_wrappers(state)
    config = _config(state, _section(variant, "net_kwargs"), variant)
    evaluation = _section(variant, "inference_kwargs")
    short_side, window, stride = (_integer(evaluation, name) for name in ("im_size", "window_size", "window_stride"))
    data = variant.get("dataset_kwargs")
    dataset = data.get("dataset") if isinstance(data, Mapping) else None
    weights, left_out = take_over(config, state, _source, _UNUSED)
    return Imported(
        config,
        weights,
        window=window,
        stride=stride,
        short_side=short_side,
        dataset=str(dataset) if dataset else None,
        left_out=left_out,
    )


def _config(state: Mapping[str, Tensor], net: Mapping[str, Any], variant: Mapping[str, Any]) -> ModelConfig:
    decoder = _section(net, "decoder")
    kind = _DECODERS.get(str(decoder.get("name")))
    if kind is None:
        raise ValueError(f"variant: decoder {decoder.get('name')!r} is neither of {', '.join(_DECODERS)}")
    distilled = bool(net.get("distilled", "encoder.dist_token" in state))
    patch_size = _integer(net, "patch_size")
    sizes = (_integer(net, name) for name in ("d_model", "n_layers", "n_heads"))
    mean, std = _normalisation(net, variant)
    grid = _grid(net, patch_size)
    table_side = stored_grid(state, "encoder.pos_embed", 1 + distilled)
    if table_side != grid:
        raise ValueError(f"variant: a picture has {grid}x{grid} patches, the checkpoint {table_side}x{table_side}")
    return ModelConfig(
        backbone=backbone_name(*sizes, distilled=distilled),
        patch_size=patch_size,
        decoder=kind,
        num_classes=_integer(net, "n_cls"),
        img_size=grid * patch_size,
        decoder_layers=_integer(decoder, "n_layers") if kind == "mask" else ModelConfig.decoder_layers,
        drop_path=_rate(net, "drop_path_rate"),
        dropout=_rate(net, "dropout"),
        decoder_drop_path=_rate(decoder, "drop_path_rate") if kind == "mask" else ModelConfig.decoder_drop_path,
        decoder_dropout=_rate(decoder, "dropout") if kind == "mask" else ModelConfig.decoder_dropout,
        layer_norm_eps=1e-5,
        position_mode="bilinear",
        mean=mean,
        std=std,
        few_classes_norm="layer",
    )


def _normalisation(net: Mapping[str, Any], variant: Mapping[str, Any]) -> tuple[Channels, Channels]:
    data = variant.get("dataset_kwargs")
    name = net.get("normalization") or (data.get("normalization") if isinstance(data, Mapping) else None)
    if name not in _NORMALISATIONS:
        raise ValueError(f"variant: normalization {name!r} is neither of {', '.join(_NORMALISATIONS)}")
    return _NORMALISATIONS[name]


def _grid(net: Mapping[str, Any], patch_size: int) -> int:
    """Patches along a side; unlike us the reference rounds down."""
    sizes = net.get("image_size")
    pair: list[Any] = list(sizes) if isinstance(sizes, list | tuple) else [sizes, sizes]
    if len(pair) != 2 or not all(type(side) is int and side >= patch_size for side in pair) or pair[0] != pair[1]:
        raise ValueError(f"variant: image_size {sizes!r} is no square of at least one patch")
    side: int = pair[0]
    return side // patch_size


def _section(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = parent.get(name)
    if not isinstance(section, Mapping):
        raise ValueError(f"variant: there is no section {name!r}")
    return section


def _integer(section: Mapping[str, Any], name: str) -> int:
    value = section.get(name)
    if type(value) is not int or value < 1:
        raise ValueError(f"variant: {name} is {value!r}; an integer above 0 is needed")
    return value


def _rate(section: Mapping[str, Any], name: str) -> float:
    value = section.get(name, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"variant: {name} is {value!r}; a number is needed")
    return float(value)


def _source(key: str) -> Source:
    return Source(key.replace("encoder.vit.", "encoder.", 1))
