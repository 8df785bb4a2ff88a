"""Google's ViT files (Steiner et al. 2021, AugReg: "How to train your ViT?"): from JAX's layout to timm's names.

D channels, H heads, E channels of a head, P side of a patch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = Mapping[str, NDArray[Any]]
# Files of whole training states keep the weights below this.
_STATE_PREFIX = "opt/target/"
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/.*")
# The classifier, and the layer before it that only the models of ImageNet-21k have.
_UNUSED = ("head/", "pre_logits/")
_ATTENTION = "MultiHeadDotProductAttention_1"


def from_jax(arrays: Arrays) -> dict[str, Tensor]:
    """A plain ViT's weights under timm's names.

    Args:
        arrays: `embedding/kernel` (P, P, 3, D), `Transformer/encoderblock_0/...` and so on; a head is left out.

    Returns:
        Tensors, float32.

    Raises:
        ValueError: lists the arrays that are missing or have no place in a ViT.
    """
    if any(name.startswith(_STATE_PREFIX) for name in arrays):
        # What is beside the weights is the optimiser's.
        arrays = {name.removeprefix(_STATE_PREFIX): a for name, a in arrays.items() if name.startswith(_STATE_PREFIX)}
    blocks = {int(match[1]) for name in arrays if (match := _BLOCK.fullmatch(name))}
    # A gap shows as missing; not up to the highest number, which a file may put anywhere.
    blocks |= set(range(max(len(blocks), 1)))
    places = _outside_blocks() | {key: place for i in sorted(blocks) for key, place in _block(i).items()}
    used = {name for names, _ in places.values() for name in names}
    missing = sorted(used - arrays.keys())
    unknown = sorted(name for name in arrays if name not in used and not name.startswith(_UNUSED))
    problems = [f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
    if problems:
        raise ValueError("no ViT in JAX's layout; " + "; ".join(problems))
    try:
        state = {
            key: np.concatenate([_laid_out(arrays[name], layout) for name in names]).astype(np.float32, order="C")
            for key, (names, layout) in places.items()
        }
    except (ValueError, IndexError) as error:
        raise ValueError(f"no ViT in JAX's layout; an array has other axes or no numbers: {error}") from error
    return {key: torch.from_numpy(value) for key, value in state.items()}


Place = tuple[tuple[str, ...], str]


def _outside_blocks() -> dict[str, Place]:
    return {
        "cls_token": (("cls",), "plain"),
        "pos_embed": (("Transformer/posembed_input/pos_embedding",), "plain"),
        "patch_embed.proj.weight": (("embedding/kernel",), "kernel"),
        "patch_embed.proj.bias": (("embedding/bias",), "plain"),
        "norm.weight": (("Transformer/encoder_norm/scale",), "plain"),
        "norm.bias": (("Transformer/encoder_norm/bias",), "plain"),
    }


def _block(i: int) -> dict[str, Place]:
    theirs, ours = f"Transformer/encoderblock_{i}", f"blocks.{i}"
    parts = [f"{theirs}/{_ATTENTION}/{part}" for part in ("query", "key", "value")]
    places: dict[str, Place] = {
        f"{ours}.attn.qkv.weight": (tuple(f"{part}/kernel" for part in parts), "to_heads"),
        f"{ours}.attn.qkv.bias": (tuple(f"{part}/bias" for part in parts), "flat"),
        f"{ours}.attn.proj.weight": ((f"{theirs}/{_ATTENTION}/out/kernel",), "from_heads"),
        f"{ours}.attn.proj.bias": ((f"{theirs}/{_ATTENTION}/out/bias",), "plain"),
    }
    for norm, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
        places[f"{ours}.{norm}.weight"] = ((f"{theirs}/{name}/scale",), "plain")
        places[f"{ours}.{norm}.bias"] = ((f"{theirs}/{name}/bias",), "plain")
    for layer, name in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
        places[f"{ours}.mlp.{layer}.weight"] = ((f"{theirs}/MlpBlock_3/{name}/kernel",), "matrix")
        places[f"{ours}.mlp.{layer}.bias"] = ((f"{theirs}/MlpBlock_3/{name}/bias",), "plain")
    return places


def _laid_out(array: NDArray[Any], layout: str) -> NDArray[Any]:
    """JAX multiplies x @ W, PyTorch x @ W^T; and JAX keeps the heads apart."""
    match layout:
        case "kernel":  # P P 3 D -> D 3 P P
            return array.transpose(3, 2, 0, 1)
        case "to_heads":  # D H E -> (H E) D
            return array.reshape(array.shape[0], -1).T
        case "from_heads":  # H E D -> D (H E)
            return array.reshape(-1, array.shape[-1]).T
        case "matrix":
            return array.T
        case "flat":
            return array.reshape(-1)
        case _:
            return array
