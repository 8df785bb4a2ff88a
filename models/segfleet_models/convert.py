"""Weights of other people's Segmenters: what every format has in common. Every key of a file is accounted for.

A format is a function from our parameter's name to its own; see `convert_reference`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from segfleet_models.build import ModelConfig, build_segmenter

Channels = tuple[float, float, float]
# Pixels from -1 to 1, as AugReg's weights expect: 127.5 and 127.5 on 0..255.
HALF: Channels = (0.5, 0.5, 0.5)

# (channels, layers, heads) -> timm's names of the plain ViT and of the distilled DeiT; weights tags do not matter.
_BACKBONES = {
    (192, 12, 3): ("vit_tiny_patch16_384", "deit_tiny_distilled_patch16_224"),
    (384, 12, 6): ("vit_small_patch16_384", "deit_small_distilled_patch16_224"),
    (768, 12, 12): ("vit_base_patch16_384", "deit_base_distilled_patch16_384"),
    (1024, 24, 16): ("vit_large_patch16_384", None),
}
_WRAPPERS = ("module.", "model.")


@dataclass(frozen=True, slots=True)
class Imported:
    """Somebody's Segmenter in our terms.

    Attributes:
        config: The architecture, with what the weights expect of epsilon, positions and pixels.
        state: Our parameter names to tensors, float32; fits `build_segmenter(config)` exactly.
        window: Side of the evaluation's square window, pixels.
        stride: Its step, pixels.
        short_side: To which pictures are resized in evaluation; None: their own size.
        dataset: Name of the dataset as the file says it, if it does.
        protocol: How its code cuts pictures into windows, see `WindowConfig`.
        class_names: In label order, if the file has them.
        palette: Their colours (RGB, 0..255), if the file has them.
        left_out: Keys of the file that an encoder and a decoder have no use for, such as the ImageNet heads.
        assumed: What the file does not say and is taken to be as in what its code publishes: `pixels`, `epsilon`,
            `window` or `short_side`, each with words for a person.
    """

    config: ModelConfig
    state: dict[str, Tensor]
    window: int
    stride: int
    short_side: int | None = None
    dataset: str | None = None
    protocol: Literal["reference", "mmseg"] = "reference"
    class_names: tuple[str, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    left_out: tuple[str, ...] = ()
    assumed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Source:
    """Where one of our parameters comes from.

    Attributes:
        key: The file's name for it.
        adapt: From the file's layout to ours.
    """

    key: str
    adapt: Callable[[Tensor], Tensor] = lambda tensor: tensor


def backbone_name(channels: int, layers: int, heads: int, *, distilled: bool) -> str:
    """timm's name of the plain ViT of these sizes.

    Raises:
        ValueError: there is none.
    """
    plain, with_distillation = _BACKBONES.get((channels, layers, heads), (None, None))
    name = with_distillation if distilled else plain
    if name is None:
        kind = "distilled DeiT" if distilled else "ViT"
        known = ", ".join("/".join(map(str, size)) for size in _BACKBONES)
        raise ValueError(
            f"no {kind} has {channels} channels, {layers} layers and {heads} heads; known sizes are {known}"
        )
    return name


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without `module.` and `model.`, which DataParallel and training modules put before every one of them."""
    plain = dict(state)
    for prefix in (*_WRAPPERS, *_WRAPPERS):
        if plain and all(key.startswith(prefix) for key in plain):
            plain = {key.removeprefix(prefix): tensor for key, tensor in plain.items()}
    return plain


def take_over(
    config: ModelConfig, state: Mapping[str, Tensor], source_of: Callable[[str], Source], unused: re.Pattern[str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Every parameter of the model from the file, and every key of the file to its place.

    Args:
        config: The model wanted.
        state: The file's tensors.
        source_of: The format: our parameter's name to where it comes from.
        unused: Matches, whole, the names that may be left out.

    Returns:
        Our state dict, float32, and the names left out.

    Raises:
        ValueError: lists every key that is missing, unknown or of another shape, by the file's names.
    """
    with torch.device("meta"):
        wanted = {key: tensor.shape for key, tensor in build_segmenter(config).state_dict().items()}
    sources = {key: source_of(key) for key in wanted}
    rest = sorted(state.keys() - {source.key for source in sources.values()})
    left_out = tuple(key for key in rest if unused.fullmatch(key))
    found = {key: source.adapt(state[source.key]) for key, source in sources.items() if source.key in state}
    findings = {
        "missing": [source.key for source in sources.values() if source.key not in state],
        "unknown": [key for key in rest if key not in left_out],
        "of another shape": [
            f"{sources[key].key} gives {tuple(tensor.shape)} instead of {tuple(wanted[key])}"
            for key, tensor in found.items()
            if tensor.shape != wanted[key]
        ],
    }
    problems = [f"{len(keys)} {what}: {', '.join(keys)}" for what, keys in findings.items() if keys]
    if problems:
        raise ValueError("the checkpoint is not the model it says it is; " + "; ".join(problems))
    # Cloned: a file's tensors may be views of one storage, or several names of one tensor.
    return {key: tensor.detach().to(torch.float32, copy=True).contiguous() for key, tensor in found.items()}, left_out


def stored_grid(state: Mapping[str, Tensor], key: str, num_prefix: int) -> int:
    """Side of the square grid of patches that the table of positions under `key`, (1, num_prefix + N, C), is for.

    Raises:
        ValueError: there is no table, or its grid is no square.
    """
    positions = state.get(key)
    if positions is None or positions.ndim != 3:
        raise ValueError(f"the checkpoint has no table of positions {key}; is it of this format?")
    side = math.isqrt(max(positions.shape[1] - num_prefix, 0))
    if side == 0 or side * side != positions.shape[1] - num_prefix:
        raise ValueError(f"{positions.shape[1]} position embeddings, {num_prefix} of them of prefix tokens: no square")
    return side
