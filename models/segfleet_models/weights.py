"""Weights on disk: published backbones in, whole models in and out."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from segfleet_models.encoder import load_exactly
from segfleet_models.jax_weights import from_jax

_UNREADABLE = (OSError, pickle.UnpicklingError, RuntimeError, EOFError)


class TakesBackbone(Protocol):
    """What has an encoder to fill."""

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Take over timm's weights."""


def load_encoder_weights(encoder: TakesBackbone, path: str | Path) -> None:
    """Load a backbone from a local file: timm's or DeiT's, or Google's in JAX's layout.

    Args:
        encoder: Receives the weights; see `Encoder.load_backbone` for what is resized and left out.
        path: safetensors or AugReg .npz (by their suffixes), or a torch file of tensors only, also with the tensors
            under `model` or `state_dict`; any floating type.

    Raises:
        ValueError: the file cannot be read, or its contents do not fit.
    """
    try:
        encoder.load_backbone(read_tensors(Path(path)))
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
        load_exactly(model, read_tensors(Path(path)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """The table of tensors in a file, from under `model` or `state_dict` if it is there; nothing in it can run.

    Raises:
        ValueError: the file cannot be read, or holds no such table.
    """
    state = _read_container(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("holds no table of tensors")
    return state


def read_torch(path: Path, dropped: Iterable[str] = ()) -> Any:
    """What torch.save wrote, plain data and tensors only.

    Args:
        path: The file.
        dropped: Full names of classes and functions whose results an empty object takes the place of, so that data of
            no use to us does not make a file unreadable. None of them is imported, let alone called.

    Raises:
        ValueError: the file cannot be read, or holds objects of other kinds.
    """
    try:
        with torch.serialization.safe_globals([(_Dropped, name) for name in dropped]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(f"cannot be read as weights: {error}") from error


class _Dropped:
    """Stands where an object of a dropped kind was, and keeps nothing of it."""

    def __init__(self, *_arguments: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


def _read_container(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if path.suffix == ".npz":
            return from_jax(_read_npz(path))
    except (OSError, SafetensorError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"cannot be read as weights: {error}") from error
    return read_torch(path)


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, AttributeError, TypeError) as error:
        # NumPy's word for a pickle, and what it says of a file that is a single array and no archive.
        raise ValueError(f"cannot be read as weights: no archive of plain arrays ({error})") from error
