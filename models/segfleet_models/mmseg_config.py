"""The configuration that MMSegmentation writes into a checkpoint: Python source, read without running any of it."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from typing import Any

from segfleet_models.convert import HALF, Channels

_MAX_CHARACTERS = 1 << 20
# What our modules compute, by the configuration's name for it; anything else there is another model.
_COMPUTED: tuple[tuple[tuple[str, ...], Any], ...] = (
    (("type",), "EncoderDecoder"),
    (("backbone", "type"), "VisionTransformer"),
    (("backbone", "with_cls_token"), True),
    (("backbone", "interpolate_mode"), "bicubic"),
    (("backbone", "act_cfg", "type"), "GELU"),
    (("decode_head", "align_corners"), False),
    (("decode_head", "norm_cfg", "eps"), 1e-5),
    (("decode_head", "act_cfg", "type"), "GELU"),
)


def parse_config(text: str) -> dict[str, Any]:
    """The assignments of a configuration whose values are plain data.

    Args:
        text: Lines such as `model = dict(type='EncoderDecoder', test_cfg=dict(mode='slide'))`.

    Returns:
        Names to values; an assignment of anything but literals, containers and `dict(...)` is left out.

    Raises:
        ValueError: the text is no Python, or larger than a configuration ever is.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ValueError("the configuration inside the checkpoint is larger than one ever is")
    try:
        with warnings.catch_warnings(action="ignore"):  # what the compiler thinks of somebody's escapes
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the configuration inside the checkpoint cannot be read: {error}") from error
    config: dict[str, Any] = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                try:
                    config[name] = _plain(value)
                except (ValueError, TypeError, RecursionError):
                    continue
    return config


def _plain(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            return {str(keyword.arg): _plain(keyword.value) for keyword in keywords if keyword.arg}
        case ast.Dict(keys=keys, values=values):
            return {_plain(k): _plain(v) for k, v in zip(keys, values, strict=True) if k is not None}
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_plain(element) for element in elements]
        case _:
            return ast.literal_eval(node)


def look_up(config: Mapping[str, Any], *path: str) -> Any:
    """The value at a path of sections; None if a section or the value is not there."""
    value: Any = config
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def check_computed(config: Mapping[str, Any], decoder_heads: int | None) -> None:
    """Refuse a configuration of a model that ours is not.

    Args:
        config: What `parse_config` read; what it does not say is not looked at.
        decoder_heads: Attention heads of our mask transformer; None: there is none.

    Raises:
        ValueError: names the first setting that differs.
    """
    heads = () if decoder_heads is None else ((("decode_head", "num_heads"), decoder_heads),)
    for path, expected in (*_COMPUTED, *heads):
        value = look_up(config, "model", *path)
        if value is not None and value != expected:
            raise ValueError(
                f"the configuration inside the checkpoint says model.{'.'.join(path)} is {value!r}; only {expected!r} "
                "can be imported"
            )


def encoder_heads(config: Mapping[str, Any]) -> int | None:
    """Attention heads of the backbone, if the configuration says how many."""
    heads = look_up(config, "model", "backbone", "num_heads")
    return None if heads is None else int(_number(heads, "model.backbone.num_heads"))


def encoder_epsilon(config: Mapping[str, Any]) -> float:
    """The backbone's LayerNorm epsilon: 1e-6 in the published configurations, 1e-5 for a norm that names none."""
    norm = look_up(config, "model", "backbone", "norm_cfg")
    return _number(norm.get("eps", 1e-5), "model.backbone.norm_cfg.eps") if isinstance(norm, Mapping) else 1e-6


def normalisation(config: Mapping[str, Any]) -> tuple[Channels, Channels]:
    """Mean and standard deviation of the pixels, in units of [0, 1].

    Raises:
        ValueError: the model is for BGR pictures, or these are no three numbers.
    """
    newer = look_up(config, "model", "data_preprocessor") or config.get("data_preprocessor")
    values, switch = (newer, "bgr_to_rgb") if newer else (config.get("img_norm_cfg"), "to_rgb")
    if not isinstance(values, Mapping) or not values.get("mean") or not values.get("std"):
        return HALF, HALF
    if not values.get(switch):
        raise ValueError("the configuration inside the checkpoint feeds BGR pictures; only RGB models can be imported")
    return _shares(values["mean"]), _shares(values["std"])


def sliding_window(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Window and stride in pixels, if the configuration says them.

    Raises:
        ValueError: they are no squares.
    """
    test = look_up(config, "model", "test_cfg")
    if not isinstance(test, Mapping) or test.get("mode") != "slide":
        return None
    (height, width), (down, right) = (_pair(test.get(name)) for name in ("crop_size", "stride"))
    if height != width or down != right:
        raise ValueError(
            f"window {height}x{width}, stride {down}x{right} in the configuration inside the checkpoint; only squares "
            "can be imported"
        )
    return height, down


def short_side(config: Mapping[str, Any]) -> int | None:
    """The smaller side of the box into which pictures are resized, pixels, if the configuration has one."""
    pipeline = config.get("test_pipeline")
    for step in pipeline if isinstance(pipeline, list) else []:
        box = look_up(step, "img_scale") or look_up(step, "scale")
        if box is not None:
            return min(_pair(box))
    return None


def rate(config: Mapping[str, Any], part: str, name: str, default: float) -> float:
    """A rate of `backbone` or `decode_head`, or `default`."""
    value = look_up(config, "model", part, name)
    return default if value is None else _number(value, f"model.{part}.{name}")


def _pair(value: Any) -> tuple[int, int]:
    match value:
        case [int() as first, int() as second]:
            pair = first, second
        case int():
            pair = value, value
        case _:
            pair = 0, 0
    if min(pair) < 1:
        raise ValueError(f"the configuration inside the checkpoint has a size of {value!r}; pixels above 0 are needed")
    return pair


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"the configuration inside the checkpoint says {name} is {value!r}; a number is needed")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"the configuration inside the checkpoint has a {name} that is beyond any number") from error


def _shares(values: Any) -> Channels:
    match values:
        case [red, green, blue]:
            first, second, third = (_number(value, "mean or std") / 255 for value in (red, green, blue))
            return first, second, third
    raise ValueError(f"the configuration inside the checkpoint has {values!r} for mean or std; use three numbers")
