"""Weights on disk: published backbones in, whole models in and out."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from segfleet_models.encoder import Encoder, load_exactly


def load_encoder_weights(encoder: Encoder, path: str | Path) -> None:
    """Load a backbone from a local file with timm's parameter names.

    Args:
        encoder: Receives the weights; see `Encoder.load_backbone` for what is resized and left out.
        path: safetensors (by its suffix) or a torch file of tensors only, also with the tensors under `model` or
            `state_dict`; any floating type.

    Raises:
        ValueError: the file cannot be read, or its contents do not fit.
    """
    try:
        encoder.load_backbone(_read_state(Path(path)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write all of a model's parameters as safetensors, overwriting `path`; the caller makes that safe."""
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, path)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Read back what `save_weights` wrote, into a model of the same architecture.

    Raises:
        ValueError: the file cannot be read, or differs from the model in any name or shape.
    """
    try:
        load_exactly(model, _read_state(Path(path)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_state(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
            return tensors
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"cannot be read as weights: {error}") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("holds no table of tensors")
    return state
