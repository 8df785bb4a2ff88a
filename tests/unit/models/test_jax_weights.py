from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segfleet_models.build import ModelConfig, build_segmenter
from segfleet_models.encoder import Encoder
from segfleet_models.weights import load_encoder_weights

Arrays = dict[str, NDArray[Any]]
CHANNELS, HEADS, HIDDEN, PATCH, GRID = 64, 2, 192, 16, 4


def google_arrays() -> Arrays:
    """Random weights of timm's `test_vit` in the layout of Google's files, heads apart and inputs first."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, CHANNELS),
        "embedding/kernel": (PATCH, PATCH, 3, CHANNELS),
        "embedding/bias": (CHANNELS,),
        "Transformer/posembed_input/pos_embedding": (1, 1 + GRID * GRID, CHANNELS),
        "head/kernel": (CHANNELS, 10),
        "head/bias": (10,),
        "pre_logits/kernel": (CHANNELS, CHANNELS),
        "pre_logits/bias": (CHANNELS,),
    }
    norms = ["Transformer/encoder_norm"]
    for i in range(6):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        norms += [f"{block}/LayerNorm_0", f"{block}/LayerNorm_2"]
        for name in ("query", "key", "value"):
            shapes[f"{attention}/{name}/kernel"] = (CHANNELS, HEADS, CHANNELS // HEADS)
            shapes[f"{attention}/{name}/bias"] = (HEADS, CHANNELS // HEADS)
        shapes |= {
            f"{attention}/out/kernel": (HEADS, CHANNELS // HEADS, CHANNELS),
            f"{attention}/out/bias": (CHANNELS,),
        }
        for name, inputs, outputs in (("Dense_0", CHANNELS, HIDDEN), ("Dense_1", HIDDEN, CHANNELS)):
            shapes[f"{block}/MlpBlock_3/{name}/kernel"] = (inputs, outputs)
            shapes[f"{block}/MlpBlock_3/{name}/bias"] = (outputs,)
    for norm in norms:
        shapes |= {f"{norm}/scale": (CHANNELS,), f"{norm}/bias": (CHANNELS,)}
    rng = np.random.default_rng(1)
    return {key: (rng.standard_normal(shape) * 0.1).astype(np.float32) for key, shape in shapes.items()}


def normed(x: NDArray[Any], arrays: Arrays, name: str) -> NDArray[Any]:
    centred = x - x.mean(-1, keepdims=True)
    scale, bias = arrays[f"{name}/scale"], arrays[f"{name}/bias"]
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


def google_forward(image: NDArray[Any], arrays: Arrays) -> NDArray[Any]:
    """A ViT in Google's own terms: (H, W, 3) to patch tokens (N, C)."""
    x = image.reshape(GRID, PATCH, GRID, PATCH, 3).transpose(0, 2, 1, 3, 4)
    x = np.einsum("ijhwc,hwcd->ijd", x, arrays["embedding/kernel"]) + arrays["embedding/bias"]
    x = (
        np.concatenate([arrays["cls"][0], x.reshape(-1, CHANNELS)])
        + arrays["Transformer/posembed_input/pos_embedding"][0]
    )
    for i in range(6):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        y = normed(x, arrays, f"{block}/LayerNorm_0")
        q, k, v = (
            np.einsum("nd,dhe->hne", y, arrays[f"{attention}/{name}/kernel"])
            + arrays[f"{attention}/{name}/bias"][:, None]
            for name in ("query", "key", "value")
        )
        weights = np.exp(np.einsum("hne,hme->hnm", q, k) / np.sqrt(CHANNELS // HEADS))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hnm,hme->nhe", weights, v)
        x = x + np.einsum("nhe,hed->nd", mixed, arrays[f"{attention}/out/kernel"]) + arrays[f"{attention}/out/bias"]
        y = normed(x, arrays, f"{block}/LayerNorm_2")
        y = y @ arrays[f"{block}/MlpBlock_3/Dense_0/kernel"] + arrays[f"{block}/MlpBlock_3/Dense_0/bias"]
        y = torch.nn.functional.gelu(torch.from_numpy(y)).numpy()
        x = x + y @ arrays[f"{block}/MlpBlock_3/Dense_1/kernel"] + arrays[f"{block}/MlpBlock_3/Dense_1/bias"]
    return normed(x, arrays, "Transformer/encoder_norm")[1:]


def load(folder: Path, arrays: Arrays) -> Encoder:
    np.savez(folder / "vit.npz", **arrays)
    encoder = Encoder("test_vit", patch_size=PATCH, img_size=GRID * PATCH).eval()
    load_encoder_weights(encoder, folder / "vit.npz")
    return encoder


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_tokens_equal_those_computed_in_the_files_own_layout(tmp_path: Path, prefix: str) -> None:
    arrays = google_arrays()
    image = np.random.default_rng(2).standard_normal((64, 64, 3)).astype(np.float32)
    encoder = load(tmp_path, {prefix + key: array for key, array in arrays.items()})
    with torch.no_grad():
        tokens = encoder(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])[0]
    torch.testing.assert_close(
        tokens, torch.from_numpy(google_forward(image, arrays).astype(np.float32)), rtol=1e-5, atol=1e-5
    )


def test_serves_as_pretrained_at_another_size(tmp_path: Path) -> None:
    np.savez(tmp_path / "vit.npz", **google_arrays())
    model = build_segmenter(ModelConfig("test_vit", PATCH, "linear", 5, 96), pretrained=str(tmp_path / "vit.npz"))
    table = torch.from_numpy(google_arrays()["Transformer/posembed_input/pos_embedding"])[:, 1:]
    table = torch.nn.functional.interpolate(table.view(1, 4, 4, -1).permute(0, 3, 1, 2), size=6, mode="bilinear")
    stored: torch.Tensor = model.encoder.vit.pos_embed
    torch.testing.assert_close(stored[:, 1:], table.flatten(2).transpose(1, 2))


def broken(change: Callable[[Arrays], object]) -> Arrays:
    arrays = google_arrays()
    change(arrays)
    return arrays


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("cls"), "missing: cls"),
        (lambda a: a.update({"conv_root/kernel": np.zeros(1)}), "unknown: conv_root/kernel"),
        (lambda a: a.pop("Transformer/encoderblock_3/LayerNorm_0/bias"), "missing: .*encoderblock_3/LayerNorm_0/bias"),
        (lambda a: a.update({f"Transformer/encoderblock_{10**15}/x": np.zeros(1)}), "missing: .*encoderblock_6/"),
        (lambda a: a.update({"embedding/kernel": np.zeros(3)}), "other axes"),
        (lambda a: a.update({"embedding/bias": np.array(1.0)}), "other axes"),
        (lambda a: a.update({"embedding/bias": np.array(["a"])}), "no numbers"),
        (lambda a: a.update({"embedding/bias": np.array([{}])}), "no archive of plain arrays"),
    ],
)
def test_other_files_are_refused_with_what_is_wrong(
    tmp_path: Path, change: Callable[[Arrays], object], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"vit\.npz: .*{message}"):
        load(tmp_path, broken(change))
